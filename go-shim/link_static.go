//go:build !walrusds_dynamic

package walrusds

// The build scripts point build/lib at the directory that holds the library.

// #cgo LDFLAGS: -L${SRCDIR}/../build/lib -L${SRCDIR}/../target/release -l:libwalrusds.a -lm -ldl -lpthread
import "C"
