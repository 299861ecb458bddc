//go:build !walrusds_dynamic

package walrusds

// #cgo LDFLAGS: -L${SRCDIR}/../target/release -l:libwalrusds.a -lm -ldl -lpthread
import "C"
