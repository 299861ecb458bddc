package walrusds

import (
	"context"
	"path"
	"sync"
	"time"

	dsq "github.com/ipfs/go-datastore/query"
)

// Query lists keys, and values unless q.KeysOnly is set, page by page: neither side ever holds the
// whole result, and what is not read is not fetched. It sees the keys as the index has them when a
// page is read, so deleting while reading is fine (`ipfs repo gc` does).
//
// Keys come in ascending byte order. Prefix, Limit and Offset are the engine's work when there are
// no filters and at most the order by key; otherwise go-datastore's own functions are applied here.
// ctx governs the whole iteration. A value that cannot be read is a Result with an Error, and the
// iteration goes on with the next; an error of the listing itself is the last Result.
func (d *Datastore) Query(ctx context.Context, q dsq.Query) (dsq.Results, error) {
	rest := q // what is left to do on this side
	rest.Prefix = ""
	if len(rest.Orders) > 0 && isOrderByKey(rest.Orders[0]) {
		rest.Orders = nil // keys are unique: further orders never matter
	}
	pushed := queryOptions{prefix: cleanPrefix(q.Prefix), keysOnly: q.KeysOnly}
	if len(rest.Filters) == 0 && len(rest.Orders) == 0 {
		pushed.offset, pushed.limit = positive(q.Offset), positive(q.Limit)
		rest.Offset, rest.Limit = 0, 0
	}
	// A filter or order may look at values that the caller does not want to have.
	strip := q.KeysOnly && needsValues(rest)
	if strip {
		pushed.keysOnly = false
	}

	ctx, cancel := context.WithCancel(ctx)
	c, err := d.begin(ctx, d.queries)
	if err != nil {
		cancel()
		return nil, err
	}
	defer c.end()
	id, err := d.eng.queryOpen(c.opts, pushed)
	if err != nil {
		err = contextual(ctx, err)
		cancel()
		return nil, err
	}
	it := &iterator{d: d, ctx: ctx, cancel: cancel, id: id, keysOnly: pushed.keysOnly, expirations: q.ReturnExpirations}
	results := dsq.ResultsFromIterator(q, dsq.Iterator{Next: it.next, Close: it.close})
	if len(rest.Filters) == 0 && len(rest.Orders) == 0 && rest.Offset <= 0 && rest.Limit <= 0 {
		return results, nil
	}
	rest.Offset, rest.Limit = int(positive(rest.Offset)), int(positive(rest.Limit))
	results = dsq.NaiveQueryApply(rest, results)
	if strip {
		inner := results
		results = dsq.ResultsFromIterator(q, dsq.Iterator{
			Next: func() (dsq.Result, bool) {
				r, ok := inner.NextSync()
				r.Value = nil
				return r, ok
			},
			Close: inner.Close,
		})
	}
	return results, nil
}

func positive(n int) uint64 {
	if n < 0 {
		return 0
	}
	return uint64(n)
}

// cleanPrefix brings a prefix into the form in which the engine wants it: "/" for everything, or
// "/a" for what lies strictly below "/a/".
func cleanPrefix(prefix string) string {
	if prefix == "" {
		return "/"
	}
	if prefix[0] != '/' {
		prefix = "/" + prefix
	}
	return path.Clean(prefix)
}

func isOrderByKey(o dsq.Order) bool {
	switch o.(type) {
	case dsq.OrderByKey, *dsq.OrderByKey:
		return true
	}
	return false
}

func needsValues(q dsq.Query) bool {
	for _, f := range q.Filters {
		switch f.(type) {
		case dsq.FilterKeyCompare, *dsq.FilterKeyCompare, dsq.FilterKeyPrefix, *dsq.FilterKeyPrefix:
		default:
			return true
		}
	}
	for _, o := range q.Orders {
		switch o.(type) {
		case dsq.OrderByKey, *dsq.OrderByKey, dsq.OrderByKeyDescending, *dsq.OrderByKeyDescending:
		default:
			return true
		}
	}
	return false
}

// iterator walks over an engine query. Close may come from another goroutine than next.
type iterator struct {
	d           *Datastore
	ctx         context.Context
	cancel      context.CancelFunc
	keysOnly    bool
	expirations bool

	mu   sync.Mutex
	id   queryID
	done bool
	page []entry
	pos  int
}

// entry is one row of a page, already in Go's memory.
type entry struct {
	key       string
	value     []byte
	size      uint64
	expiresAt int64
	err       error
}

func (it *iterator) next() (dsq.Result, bool) {
	it.mu.Lock()
	defer it.mu.Unlock()
	if it.done {
		return dsq.Result{}, false
	}
	if it.pos == len(it.page) {
		if err := it.fetch(); err != nil {
			it.finish()
			return dsq.Result{Error: err}, true
		}
		if len(it.page) == 0 {
			it.finish()
			return dsq.Result{}, false
		}
	}
	e := it.page[it.pos]
	it.page[it.pos] = entry{} // the value is the caller's now
	it.pos++
	if e.err != nil {
		return dsq.Result{Error: e.err}, true
	}
	r := dsq.Result{Entry: dsq.Entry{Key: e.key, Value: e.value, Size: int(e.size)}}
	if it.expirations && e.expiresAt != 0 {
		r.Expiration = time.Unix(e.expiresAt, 0)
	}
	return r, true
}

func (it *iterator) fetch() error {
	c, err := it.d.begin(it.ctx, it.d.queries)
	if err != nil {
		return err
	}
	defer c.end()
	it.page, err = it.d.eng.queryNext(c.opts, it.id, it.keysOnly, it.page[:0])
	it.pos = 0
	return contextual(it.ctx, err)
}

// finish gives the engine's query back; it.mu is held.
func (it *iterator) finish() {
	if it.done {
		return
	}
	it.done = true
	it.page, it.pos = nil, 0
	it.d.eng.queryClose(it.id)
	it.cancel()
}

func (it *iterator) close() error {
	it.cancel() // wakes a next that is waiting for its page
	it.mu.Lock()
	defer it.mu.Unlock()
	it.finish()
	return nil
}
