//go:build walrusds_dynamic

package walrusds

// #cgo LDFLAGS: -L${SRCDIR}/../target/release -lwalrusds -Wl,-rpath,$ORIGIN/../lib
import "C"
