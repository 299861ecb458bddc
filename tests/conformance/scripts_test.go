package conformance

import (
	"context"
	"fmt"
	"math/rand"
	"reflect"
	"testing"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	walrusds "github.com/walrusds/walrusds/go-shim"
)

// Random scripts of operations do the same to walrusds as to go-datastore's map.
func TestScriptsAgainstMap(t *testing.T) {
	scripts := 200
	if testing.Short() {
		scripts = 20
	}
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		t.Parallel()
		d := open(t, index, changes)
		for seed := 0; seed < scripts; seed++ {
			script := make([]byte, 100+seed%20*70)
			rand.New(rand.NewSource(int64(seed))).Read(script)
			// Each script has a part of the tree for itself.
			c := &comparison{t: t, ours: d, theirs: ds.NewMapDatastore(), root: ds.NewKey(fmt.Sprintf("/%d", seed))}
			c.keys = []ds.Key{c.root.ChildString("first")}
			for n := 0; len(script) > 0 && !t.Failed(); n++ {
				script = c.step(n, script)
			}
			c.query(dsq.Query{Prefix: c.root.String()})
			if t.Failed() {
				t.Fatalf("this was script %d", seed)
			}
		}
	})
}

// comparison is one datastore of each kind, with the same content below root.
type comparison struct {
	t      *testing.T
	ours   *walrusds.Datastore
	theirs *ds.MapDatastore
	root   ds.Key
	keys   []ds.Key // that were in use
	batch  [2]ds.Batch
}

// step runs the operation that the first bytes of the script encode on both datastores, and returns
// the rest of the script.
func (c *comparison) step(n int, script []byte) []byte {
	ctx, next := context.Background(), func() byte {
		if len(script) == 0 {
			return 0
		}
		b := script[0]
		script = script[1:]
		return b
	}
	operation, key := next()%12, c.key(n, next())
	value := make([]byte, int(next()))
	for i := range value {
		value[i] = byte(n + i)
	}
	what := fmt.Sprintf("step %d, operation %d, %s", n, operation, key)
	switch operation {
	case 0, 1:
		c.same(what, c.ours.Put(ctx, key, value), c.theirs.Put(ctx, key, value))
	case 2:
		c.same(what, c.ours.Delete(ctx, key), c.theirs.Delete(ctx, key))
	case 3, 4:
		a, errA := c.ours.Get(ctx, key)
		b, errB := c.theirs.Get(ctx, key)
		c.same(what, string(a), string(b), errA, errB)
	case 5:
		a, errA := c.ours.Has(ctx, key)
		b, errB := c.theirs.Has(ctx, key)
		c.same(what, a, b, errA, errB)
	case 6:
		a, errA := c.ours.GetSize(ctx, key)
		b, errB := c.theirs.GetSize(ctx, key)
		c.same(what, a, b, errA, errB)
	case 7, 8, 9:
		c.inBatch(what, operation, key, value)
	case 10:
		c.same(what, c.ours.Sync(ctx, key), c.theirs.Sync(ctx, key))
	case 11:
		q := dsq.Query{Prefix: c.root.String(), KeysOnly: next()%2 == 0, Limit: int(next() % 8), Offset: int(next() % 8)}
		if next()%2 == 0 {
			q.Prefix = key.String()
		}
		switch next() % 3 {
		case 0:
			q.Orders = []dsq.Order{dsq.OrderByKey{}}
		case 1:
			q.Orders = []dsq.Order{dsq.OrderByKeyDescending{}}
		case 2:
			q.Orders = []dsq.Order{dsq.OrderByValue{}, dsq.OrderByKey{}}
			q.KeysOnly = false // the map would forget the values first, and order by nothing
		}
		ops := []dsq.Op{dsq.Equal, dsq.NotEqual, dsq.GreaterThan, dsq.GreaterThanOrEqual, dsq.LessThan, dsq.LessThanOrEqual}
		if o := int(next()); o%2 == 0 {
			q.Filters = []dsq.Filter{dsq.FilterKeyCompare{Op: ops[o/2%len(ops)], Key: c.key(n, next()).String()}}
		}
		c.query(q)
	}
	return script
}

// key is one that was in use, a child of one, or a new one.
func (c *comparison) key(n int, choice byte) ds.Key {
	k := c.keys[int(choice>>2)%len(c.keys)]
	switch choice % 4 {
	case 0:
		k = k.ChildString(fmt.Sprintf("%c%d", `%_\'`[n%4], n))
	case 1:
		k = c.root.ChildString(fmt.Sprint(n))
	default:
		return k
	}
	c.keys = append(c.keys, k)
	return k
}

func (c *comparison) inBatch(what string, operation byte, key ds.Key, value []byte) {
	ctx := context.Background()
	if c.batch[0] == nil {
		a, errA := c.ours.Batch(ctx)
		b, errB := c.theirs.Batch(ctx)
		c.same(what, errA, errB)
		c.batch = [2]ds.Batch{a, b}
	}
	a, b := c.batch[0], c.batch[1]
	switch {
	case len(value)%4 == 0:
		c.same(what+" commit", a.Commit(ctx), b.Commit(ctx))
		c.batch = [2]ds.Batch{}
	case operation == 9:
		c.same(what, a.Delete(ctx, key), b.Delete(ctx, key))
	default:
		c.same(what, a.Put(ctx, key, value), b.Put(ctx, key, value))
	}
}

func (c *comparison) query(q dsq.Query) {
	r, err := c.theirs.Query(context.Background(), q)
	must(c.t, err)
	stored, err := r.Rest()
	must(c.t, err)
	got := all(c.t, c.ours, q)
	if len(q.Orders) == 0 {
		dsq.Sort([]dsq.Order{dsq.OrderByKey{}}, stored)
	}
	if len(got) != len(stored) {
		c.t.Errorf("%v: %d entries, the map has %d", q, len(got), len(stored))
		return
	}
	for i, e := range stored {
		if got[i].Key != e.Key || !q.KeysOnly && string(got[i].Value) != string(e.Value) {
			c.t.Errorf("%v: entry %d is %v, in the map %v", q, i, got[i], e)
		}
	}
}

// same compares results by pairs.
func (c *comparison) same(what string, pairs ...any) {
	c.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !reflect.DeepEqual(pairs[i], pairs[i+1]) {
			c.t.Errorf("%s: %v, the map says %v", what, pairs[i], pairs[i+1])
		}
	}
}
