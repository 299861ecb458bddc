package walrusds

import (
	"context"
	"path"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	dsq "github.com/ipfs/go-datastore/query"
)

// Query lists keys, and values unless q.KeysOnly is set, page by page: neither side ever holds the
// whole result, and pages that are not read are not fetched. It sees the keys as the index has them
// when a page is read, so deleting while reading is fine (`ipfs repo gc` does so).
//
// Prefix, the order by key (either way) and filters on keys (FilterKeyCompare, FilterKeyPrefix) are
// the index's work, and so are Offset and Limit when nothing else is left to do. Other orders and
// filters are go-datastore's own functions, applied here to what the index gives; another order
// than by key has to read all of that first. Without an order keys come in ascending byte order.
//
// ctx governs the whole iteration. A value that cannot be read is a Result with an Error, and the
// iteration goes on with the next; an error of the listing itself is the last Result.
func (d *Datastore) Query(ctx context.Context, q dsq.Query) (dsq.Results, error) {
	pushed, rest := split(q)
	// A filter or order may look at values that the caller does not want to have.
	strip := q.KeysOnly && (len(rest.Filters) > 0 || len(rest.Orders) > 0)
	if strip {
		pushed.keysOnly = false
	}
	pushed.withoutSizes = pushed.keysOnly && !q.ReturnsSizes && !q.ReturnExpirations

	ctx, cancel := context.WithCancel(ctx)
	c, err := d.begin(ctx, d.queries)
	if err != nil {
		cancel()
		return nil, err
	}
	defer c.end()
	if !storable(pushed.prefix) { // nothing can be below it
		cancel()
		return dsq.ResultsWithEntries(q, nil), nil
	}
	id, err := d.eng.queryOpen(c.opts, pushed)
	if err != nil {
		err = contextual(ctx, err)
		cancel()
		return nil, err
	}
	it := &iterator{d: d, ctx: ctx, cancel: cancel, id: id, keysOnly: pushed.keysOnly, sizes: !pushed.withoutSizes, expirations: q.ReturnExpirations}
	results := dsq.ResultsFromIterator(q, dsq.Iterator{Next: it.next, Close: it.close})
	if len(rest.Filters) == 0 && len(rest.Orders) == 0 {
		return results, nil
	}
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

// Further conditions are applied here: a statement has room for a limited number.
const maxConditions = 100

// split divides a query into the engine's part and the part applied here to its answer.
func split(q dsq.Query) (pushed queryOptions, rest dsq.Query) {
	pushed = queryOptions{prefix: cleanPrefix(q.Prefix), keysOnly: q.KeysOnly}
	rest = q
	rest.Prefix, rest.Filters = "", nil
	if len(q.Orders) > 0 {
		switch q.Orders[0].(type) { // keys are unique: further orders never matter
		case dsq.OrderByKey, *dsq.OrderByKey:
			rest.Orders = nil
		case dsq.OrderByKeyDescending, *dsq.OrderByKeyDescending:
			rest.Orders, pushed.descending = nil, true
		}
	}
	for _, f := range q.Filters {
		if c, ok := condition(f); ok && len(pushed.conditions) < maxConditions {
			pushed.conditions = append(pushed.conditions, c)
		} else {
			rest.Filters = append(rest.Filters, f)
		}
	}
	offset, limit := max(q.Offset, 0), max(q.Limit, 0)
	if len(rest.Filters) == 0 && len(rest.Orders) == 0 {
		pushed.offset, pushed.limit = uint64(offset), uint64(limit)
		offset, limit = 0, 0
	}
	rest.Offset, rest.Limit = offset, limit
	return pushed, rest
}

// condition returns a filter in the engine's form, if it is a filter on keys. Texts that no key can
// hold are compared here, where they need no special care.
func condition(f dsq.Filter) (keyCondition, bool) {
	switch f := f.(type) {
	case *dsq.FilterKeyCompare:
		return condition(*f)
	case *dsq.FilterKeyPrefix:
		return condition(*f)
	case dsq.FilterKeyPrefix:
		return keyCondition{conditionStartsWith, f.Prefix}, storable(f.Prefix)
	case dsq.FilterKeyCompare:
		kind, ok := conditionOf[f.Op]
		return keyCondition{kind, f.Key}, ok && storable(f.Key)
	}
	return keyCondition{}, false
}

var conditionOf = map[dsq.Op]conditionKind{
	dsq.Equal:              conditionEqual,
	dsq.NotEqual:           conditionNotEqual,
	dsq.LessThan:           conditionLess,
	dsq.LessThanOrEqual:    conditionLessOrEqual,
	dsq.GreaterThan:        conditionGreater,
	dsq.GreaterThanOrEqual: conditionGreaterOrEqual,
}

// storable tells whether a text may be a part of a key.
func storable(text string) bool {
	return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0
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

// iterator walks over an engine query. Close may come from another goroutine than next.
type iterator struct {
	d           *Datastore
	ctx         context.Context
	cancel      context.CancelFunc
	keysOnly    bool
	sizes       bool
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
	it.page[it.pos] = entry{} // the caller owns the value now
	it.pos++
	if e.err != nil {
		return dsq.Result{Error: e.err}, true
	}
	r := dsq.Result{Entry: dsq.Entry{Key: e.key, Value: e.value, Size: int(e.size)}}
	if !it.sizes {
		r.Size = -1
	}
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
