package plugin

import (
	"context"
	"path"
	"sync"

	dsq "github.com/ipfs/go-datastore/query"
	logging "github.com/ipfs/go-log/v2"

	walrusds "github.com/walrusds/walrusds/go-shim"
)

var log = logging.Logger("walrusds")

// forKubo is the datastore as Kubo has it below a mount point. The layers above it put prefixes
// before the keys of a listing and take them away again, and they end the process with a panic for a
// key that is not below the root, or not in its clean form. Kubo never writes such a key, but a row
// of an index may come from anywhere. So a listing leaves them out.
type forKubo struct {
	*walrusds.Datastore
	told *sync.Once
}

func (d forKubo) Query(ctx context.Context, q dsq.Query) (dsq.Results, error) {
	results, err := d.Datastore.Query(ctx, q)
	if err != nil {
		return nil, err
	}
	next := func() (dsq.Result, bool) {
		for {
			r, ok := results.NextSync()
			if !ok || r.Error != nil || isBelowRoot(r.Key) {
				return r, ok
			}
			d.told.Do(func() {
				log.Warnf("the index has a row with the key %.100q, which is none that Kubo writes: listings leave such rows out", r.Key)
			})
		}
	}
	return dsq.ResultsFromIterator(q, dsq.Iterator{Next: next, Close: results.Close}), nil
}

func isBelowRoot(key string) bool {
	return len(key) > 1 && key[0] == '/' && path.Clean(key) == key
}
