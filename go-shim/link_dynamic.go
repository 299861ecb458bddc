//go:build walrusds_dynamic

package walrusds

// The build scripts point build/lib at the directory that holds the library.

// #cgo LDFLAGS: -L${SRCDIR}/../build/lib -L${SRCDIR}/../target/release -lwalrusds -Wl,-rpath,$ORIGIN/../lib
import "C"
