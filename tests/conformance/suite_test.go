package conformance

import (
	"testing"

	dstest "github.com/ipfs/go-datastore/test"
)

// go-datastore's own suite, every part of it. Run in short, with as many elements as the suite
// itself takes under the race detector.
func TestSuite(t *testing.T) {
	if testing.Short() {
		dstest.ElemCount = 20
	}
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		t.Parallel() // it waits more than it works
		dstest.SubtestAll(t, open(t, index, changes))
	})
}
