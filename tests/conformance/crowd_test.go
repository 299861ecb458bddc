package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"testing"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	walrusds "github.com/walrusds/walrusds/go-shim"
)

// The empty key, ds.Key{}, is a key of its own, as for go-datastore's map. (ds.NewKey and ds.RawKey
// make "/" of an empty text.)
func TestEmptyKey(t *testing.T) {
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		ctx := context.Background()
		d, m := open(t, index, changes), ds.NewMapDatastore()
		empty, root := ds.Key{}, ds.NewKey("/")
		c := &comparison{t: t, ours: d, theirs: m, keys: []ds.Key{empty}}
		stored := func(what string) {
			t.Helper()
			for _, k := range []ds.Key{empty, root} {
				has, err := d.Has(ctx, k)
				hasMap, errMap := m.Has(ctx, k)
				c.same(what+" Has", has, hasMap, err, errMap)
				value, err := d.Get(ctx, k)
				valueMap, errMap := m.Get(ctx, k)
				c.same(what+" Get", string(value), string(valueMap), err, errMap)
				size, err := d.GetSize(ctx, k)
				sizeMap, errMap := m.GetSize(ctx, k)
				c.same(what+" GetSize", size, sizeMap, err, errMap)
			}
			for _, q := range []dsq.Query{
				{}, {Prefix: "/"}, {Prefix: "/a"}, {KeysOnly: true, Orders: []dsq.Order{dsq.OrderByKeyDescending{}}},
				{Offset: 1, Orders: []dsq.Order{dsq.OrderByKey{}}}, {Limit: 1, Orders: []dsq.Order{dsq.OrderByKey{}}},
				{Filters: []dsq.Filter{dsq.FilterKeyCompare{Op: dsq.Equal}}},
				{Filters: []dsq.Filter{dsq.FilterKeyCompare{Op: dsq.GreaterThan}}},
				{Filters: []dsq.Filter{dsq.FilterKeyPrefix{}}},
			} {
				c.query(q)
			}
		}
		stored("nothing is there:")
		for _, k := range []ds.Key{empty, root, ds.NewKey("/a/b")} {
			what := fmt.Sprintf("put %q", k)
			c.same(what, d.Put(ctx, k, []byte(what)), m.Put(ctx, k, []byte(what)))
			stored(what)
		}
		batch, err := d.Batch(ctx)
		must(t, err)
		must(t, batch.Put(ctx, empty, []byte("in a batch")))
		must(t, batch.Delete(ctx, root))
		must(t, batch.Commit(ctx))
		must(t, m.Put(ctx, empty, []byte("in a batch")))
		must(t, m.Delete(ctx, root))
		stored("after a batch:")
		c.same("delete", d.Delete(ctx, empty), m.Delete(ctx, empty))
		stored("deleted:")
	})
}

// TestScriptsInParallelAgainstMap does the work of go-datastore's fuzz program, whose package is in
// no release: several goroutines run scripts of random operations, on keys that they share and on
// keys of their own, against walrusds and against a map at once. On its own keys each goroutine
// gets the value that the map holds; on a shared one, a value that some goroutine has put there.
// When all are done, both hold the same.
func TestScriptsInParallelAgainstMap(t *testing.T) {
	scripts, steps := 12, 2000
	if testing.Short() {
		scripts, steps = 2, 250
	}
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		t.Parallel()
		for seed := 0; seed < scripts && !t.Failed(); seed++ {
			s, dir := spec(index, changes), t.TempDir()
			d, err := walrusds.Open(s, dir)
			must(t, err)
			m := dssync.MutexWrap(ds.NewMapDatastore())
			keys := sharedKeys(rand.New(rand.NewSource(int64(seed))))
			var threads sync.WaitGroup
			var writing sync.Map
			for thread := 0; thread < 8; thread++ {
				p := &parallel{
					t: t, ours: d, theirs: m, shared: keys, thread: thread,
					r: rand.New(rand.NewSource(int64(seed<<8 | thread))), writing: &writing,
				}
				threads.Add(1)
				go func() {
					defer threads.Done()
					for n := 0; n < steps && !t.Failed(); n++ {
						p.step(n)
					}
				}()
			}
			threads.Wait()
			if seed%2 == 1 { // the contents after reopening
				must(t, d.Close())
				d, err = walrusds.Open(s, dir)
				must(t, err)
			}
			p := &parallel{t: t, ours: d, theirs: m, shared: keys}
			p.sameContent()
			must(t, d.Close())
			if t.Failed() {
				t.Fatalf("this was script %d", seed)
			}
		}
	})
}

// sharedKeys are keys that lie below each other, and the empty one.
func sharedKeys(r *rand.Rand) []ds.Key {
	keys := []ds.Key{{}, ds.NewKey("/")}
	for len(keys) < 12 {
		of := keys[r.Intn(len(keys))]
		keys = append(keys, of.ChildString(fmt.Sprintf("%x", r.Intn(1<<12))))
	}
	return keys
}

// parallel is one of the goroutines.
type parallel struct {
	t      *testing.T
	ours   *walrusds.Datastore
	theirs ds.Datastore
	shared []ds.Key
	thread int
	r      *rand.Rand
	// A *sync.Mutex for each shared key.
	writing *sync.Map
}

// valueOf makes a value that tells the key it was put under.
func (p *parallel) valueOf(k ds.Key, n int) []byte {
	head := fmt.Sprintf("%q of %d, %d.", k.String(), p.thread, n)
	return append([]byte(head), bytes.Repeat([]byte{byte(n)}, p.r.Intn(2000))...)
}

func (p *parallel) step(n int) {
	ctx, own := context.Background(), p.r.Intn(2) == 0
	key := p.shared[p.r.Intn(len(p.shared))]
	if own {
		key = ds.NewKey(fmt.Sprintf("/own/%d/%d", p.thread, p.r.Intn(10)))
	}
	failed := func(what string, err error) {
		if err != nil {
			p.t.Errorf("%s %q: %v", what, key, err)
		}
	}
	switch p.r.Intn(8) {
	case 0, 1:
		p.write(key, own, n, func(d ds.Write, value []byte) error { return d.Put(ctx, key, value) })
	case 2:
		p.write(key, own, n, func(d ds.Write, _ []byte) error { return d.Delete(ctx, key) })
	case 3:
		value, err := p.ours.Get(ctx, key)
		if own {
			expected, errMap := p.theirs.Get(ctx, key)
			if !bytes.Equal(value, expected) || !errors.Is(err, errMap) {
				p.t.Errorf("Get %q: %.60q, %v; the map has %.60q, %v", key, value, err, expected, errMap)
			}
		} else if err != nil && err != ds.ErrNotFound {
			failed("Get", err)
		} else if head := fmt.Sprintf("%q of ", key.String()); err == nil && !bytes.HasPrefix(value, []byte(head)) {
			p.t.Errorf("Get %q: somebody else's value: %.60q", key, value)
		}
	case 4:
		has, err := p.ours.Has(ctx, key)
		failed("Has", err)
		if expected, _ := p.theirs.Has(ctx, key); own && has != expected {
			p.t.Errorf("Has %q: %v, the map says %v", key, has, expected)
		}
	case 5:
		size, err := p.ours.GetSize(ctx, key)
		if err != ds.ErrNotFound {
			failed("GetSize", err)
		}
		if expected, _ := p.theirs.GetSize(ctx, key); own && size != expected {
			p.t.Errorf("GetSize %q: %d, the map says %d", key, size, expected)
		}
	case 6:
		p.batch(n)
	case 7:
		prefix := fmt.Sprintf("/own/%d", p.thread)
		q := dsq.Query{Prefix: prefix, KeysOnly: p.r.Intn(2) == 0, Orders: []dsq.Order{dsq.OrderByKey{}}}
		p.sameQuery(q)
		if p.r.Intn(4) == 0 {
			failed("Sync", p.ours.Sync(ctx, key))
		}
	}
}

// alone excludes other writers of a shared key: two writes at the same time could leave each of the
// two datastores with a different value.
func (p *parallel) alone(key ds.Key) (release func()) {
	held, _ := p.writing.LoadOrStore(key, new(sync.Mutex))
	held.(*sync.Mutex).Lock()
	return held.(*sync.Mutex).Unlock
}

func (p *parallel) write(key ds.Key, own bool, n int, do func(d ds.Write, value []byte) error) {
	if !own {
		defer p.alone(key)()
	}
	value := p.valueOf(key, n)
	if err := errors.Join(do(p.ours, value), do(p.theirs, value)); err != nil {
		p.t.Errorf("writing %q: %v", key, err)
	}
}

// batch writes its own keys, some of them twice, and one that is shared.
func (p *parallel) batch(n int) {
	ctx := context.Background()
	b, err := p.ours.Batch(ctx)
	if err != nil {
		p.t.Errorf("Batch: %v", err)
		return
	}
	shared := p.shared[p.r.Intn(len(p.shared))]
	defer p.alone(shared)()
	for i := p.r.Intn(8) + 1; i >= 0; i-- {
		key := ds.NewKey(fmt.Sprintf("/own/%d/%d", p.thread, p.r.Intn(10)))
		if i == 1 {
			key = shared
		}
		if p.r.Intn(4) == 0 {
			err = errors.Join(b.Delete(ctx, key), p.theirs.Delete(ctx, key))
		} else {
			value := p.valueOf(key, n)
			err = errors.Join(b.Put(ctx, key, value), p.theirs.Put(ctx, key, value))
		}
		if err != nil {
			p.t.Errorf("in a batch, %q: %v", key, err)
		}
	}
	if err := b.Commit(ctx); err != nil {
		p.t.Errorf("Commit: %v", err)
	}
}

func (p *parallel) sameContent() {
	for _, keysOnly := range []bool{false, true} {
		p.sameQuery(dsq.Query{KeysOnly: keysOnly, Orders: []dsq.Order{dsq.OrderByKey{}}})
	}
	for _, key := range p.shared {
		value, err := p.ours.Get(context.Background(), key)
		expected, errMap := p.theirs.Get(context.Background(), key)
		if !bytes.Equal(value, expected) || !errors.Is(err, errMap) {
			p.t.Errorf("in the end %q: %.60q, %v; the map has %.60q, %v", key, value, err, expected, errMap)
		}
	}
}

func (p *parallel) sameQuery(q dsq.Query) {
	rest := func(d ds.Datastore) []dsq.Entry {
		r, err := d.Query(context.Background(), q)
		if err == nil {
			var entries []dsq.Entry
			if entries, err = r.Rest(); err == nil {
				return entries
			}
		}
		p.t.Errorf("%v: %v", q, err)
		return nil
	}
	got, expected := rest(p.ours), rest(p.theirs)
	if len(got) != len(expected) {
		p.t.Errorf("%v: %d entries, the map has %d", q, len(got), len(expected))
		return
	}
	for i, e := range expected {
		if got[i].Key != e.Key || !q.KeysOnly && !bytes.Equal(got[i].Value, e.Value) {
			p.t.Errorf("%v: entry %d is %q with %.60q, in the map %q with %.60q", q, i, got[i].Key, got[i].Value, e.Key, e.Value)
		}
	}
}
