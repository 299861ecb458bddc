package conformance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	walrusds "github.com/walrusds/walrusds/go-shim"
)

// Keys that mean something to LIKE, to SQL, to paths or to a collation, and some that are prefixes
// of others.
var oddKeys = []string{
	"/", "/a", "/A", "/a/b", "/a/b/c", "/ab", "/a_c", "/a%", "/a%/b", "/axc", "/a\\", "/a\\/b", "/a\\%", "/a'", "/a'/b'", "/a\"b", "/a;--",
	"/a$1", "/a b", "/a\tb", "/a\n", "/%", "/_", "/\\", "/'", "/%/x", "/_/x", "/\\/x", "/'/x", "/B", "/b", "/Z", "/z",
	"/é", "/e\u0301", "/日本", "/日本/語", "/\u007f", "/\u0080", "/\uD7FF", "/\uE000", "/\U0010FFFF", "/\U0010FFFF/x",
}

// fill stores each key with a value that is not in the keys' order, and returns what a query for
// everything must give.
func fill(t testing.TB, d *walrusds.Datastore, keys []string) []dsq.Entry {
	t.Helper()
	ctx := context.Background()
	b, err := d.Batch(ctx)
	must(t, err)
	shuffled := rand.New(rand.NewSource(1)).Perm(len(keys))
	entries := make([]dsq.Entry, len(keys))
	for i, k := range keys {
		value := []byte(fmt.Sprintf("%06d%.*s", shuffled[i], shuffled[i]%5, "....."))
		entries[i] = dsq.Entry{Key: k, Value: value, Size: len(value)}
		must(t, b.Put(ctx, ds.RawKey(k), value))
	}
	must(t, b.Commit(ctx))
	return entries
}

func all(t testing.TB, d *walrusds.Datastore, q dsq.Query) []dsq.Entry {
	t.Helper()
	r, err := d.Query(context.Background(), q)
	must(t, err)
	if got := r.Query(); !reflect.DeepEqual(got.Orders, q.Orders) || got.Prefix != q.Prefix || got.Limit != q.Limit {
		t.Errorf("the results are those of %v, not of %v", got, q)
	}
	entries, err := r.Rest()
	must(t, err)
	must(t, r.Close())
	return entries
}

// Every filter and order, alone and together, gives what go-datastore's own functions make of the
// same entries, whether the index does it or not.
func TestQueryAgainstNaive(t *testing.T) {
	compare := []dsq.Op{dsq.Equal, dsq.NotEqual, dsq.GreaterThan, dsq.GreaterThanOrEqual, dsq.LessThan, dsq.LessThanOrEqual}
	prefixes := []string{"", "/", "/a", "/a/", "a", "/a%", "/_", "/\\", "/'", "/nothing", "/\U0010FFFF", "/\xff", "/a\x00", "/日本"}
	values := []dsq.Filter{dsq.FilterValueCompare{Op: dsq.LessThan, Value: []byte("000020")}, odd{}}
	orders := [][]dsq.Order{
		nil, {dsq.OrderByKey{}}, {&dsq.OrderByKey{}}, {dsq.OrderByKeyDescending{}}, {&dsq.OrderByKeyDescending{}, dsq.OrderByValue{}},
		{dsq.OrderByValue{}}, {dsq.OrderByValueDescending{}, dsq.OrderByKey{}},
		{dsq.OrderByFunction(func(a, b dsq.Entry) int { return cmp.Compare(len(a.Value), len(b.Value)) }), dsq.OrderByKeyDescending{}},
	}
	rounds := 3000
	if testing.Short() {
		rounds = 500
	}
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		d := open(t, index, changes)
		stored := fill(t, d, oddKeys)
		r := rand.New(rand.NewSource(7))
		pick := func(n int) bool { return r.Intn(n) == 0 }
		for i := 0; i < rounds && !t.Failed(); i++ {
			q := dsq.Query{Orders: orders[r.Intn(len(orders))], KeysOnly: pick(2), ReturnsSizes: pick(2)}
			if pick(2) {
				q.Prefix = prefixes[r.Intn(len(prefixes))]
			}
			for n := r.Intn(4); n > 0; n-- {
				key := oddKeys[r.Intn(len(oddKeys))]
				switch r.Intn(8) {
				case 0, 1, 2:
					q.Filters = append(q.Filters, dsq.FilterKeyCompare{Op: compare[r.Intn(len(compare))], Key: key})
				case 3:
					q.Filters = append(q.Filters, &dsq.FilterKeyCompare{Op: compare[r.Intn(len(compare))], Key: key})
				case 4:
					q.Filters = append(q.Filters, dsq.FilterKeyPrefix{Prefix: key})
				case 5:
					q.Filters = append(q.Filters, &dsq.FilterKeyPrefix{Prefix: key[:len(key)-1]}) // cuts characters, too
				case 6:
					q.Filters = append(q.Filters, dsq.FilterKeyCompare{Op: compare[r.Intn(len(compare))], Key: "/\xff\x00"})
				case 7:
					q.Filters = append(q.Filters, values[r.Intn(len(values))])
				}
			}
			if pick(2) {
				q.Offset = r.Intn(len(oddKeys) + 2)
			}
			if pick(2) {
				q.Limit = 1 + r.Intn(len(oddKeys))
			}
			checkNaive(t, d, q, stored)
		}
	})
}

// odd is a filter that only this test knows.
type odd struct{}

func (odd) Filter(e dsq.Entry) bool { return len(e.Value)%2 == 1 }

func checkNaive(t *testing.T, d *walrusds.Datastore, q dsq.Query, stored []dsq.Entry) {
	t.Helper()
	naive := q
	if len(q.Orders) == 0 { // ours come by key, where offset and limit would take others
		naive.Orders = []dsq.Order{dsq.OrderByKey{}}
	}
	expected, err := dsq.NaiveQueryApply(naive, dsq.ResultsWithEntries(naive, stored)).Rest()
	must(t, err)
	got := all(t, d, q)
	if len(got) != len(expected) {
		t.Errorf("%v: %d entries, expected %d", q, len(got), len(expected))
		return
	}
	for i, e := range expected {
		if q.KeysOnly {
			e.Value = nil
		}
		if !q.ReturnsSizes { // then a size may be given, or -1
			e.Size, got[i].Size = -1, -1
		}
		if !reflect.DeepEqual(got[i], e) {
			t.Errorf("%v: entry %d is %q, expected %q", q, i, got[i], e)
		}
	}
}

// TestPushdownReadsOnlyWhatIsWanted checks the index's work for a query: with a filter and an order
// by key, the engine asks it for as many rows as the query wants, not for the whole table.
func TestPushdownReadsOnlyWhatIsWanted(t *testing.T) {
	if os.Getenv("WALRUSDS_TEST_CITUS") != "" {
		t.Skip("the workers read the rows, and count them each in a database of its own")
	}
	const n = 20_000
	config, dir := spec(postgres, named(t, postgres)), t.TempDir()
	// using opens the datastore, and gives the rows that the database has read by the end of it: a
	// connection counts them up when it ends.
	using := func(f func(*walrusds.Datastore)) int {
		d, err := walrusds.Open(config, dir)
		must(t, err)
		f(d)
		must(t, d.Close())
		eventually(t, "all connections have ended", func() string {
			if n := count(t).connections; n > 0 {
				return fmt.Sprint(n, " are left")
			}
			return ""
		})
		return sql(t, fmt.Sprintf("SELECT coalesce(sum(idx_tup_fetch + seq_tup_read), 0) FROM pg_stat_user_tables WHERE relname = '%s'", config["table"]))
	}
	before := using(func(d *walrusds.Datastore) { bulk(t, d, n) })
	q := dsq.Query{
		Prefix: "/b", KeysOnly: true, Offset: 3, Limit: 5,
		Orders:  []dsq.Order{dsq.OrderByKeyDescending{}},
		Filters: []dsq.Filter{dsq.FilterKeyPrefix{Prefix: "/b/0"}, dsq.FilterKeyCompare{Op: dsq.LessThanOrEqual, Key: bulkKey(15_000)}, dsq.FilterKeyCompare{Op: dsq.NotEqual, Key: bulkKey(14_999)}},
	}
	const queries = 50
	read := using(func(d *walrusds.Datastore) {
		for i := 0; i < queries; i++ {
			got := all(t, d, q)
			if len(got) != 5 || got[0].Key != bulkKey(14_996) || got[4].Key != bulkKey(14_992) {
				t.Fatalf("%v", got)
			}
		}
	}) - before
	if read < queries || read > queries*20 {
		t.Errorf("%d rows were read for %d queries of 5 rows", read, queries)
	}
}

func TestSizesAndExpirations(t *testing.T) {
	onEachIndex(t, func(t *testing.T, index index) {
		ctx := context.Background()
		const epoch = 3600
		d := open(t, index, map[string]any{"epochs": 5, "epochDurationSeconds": epoch})
		start := time.Now()
		fill(t, d, []string{"/x/1", "/x/2"})
		must(t, d.Put(ctx, ds.NewKey("/x/3"), nil))
		for _, order := range [][]dsq.Order{nil, {dsq.OrderByKeyDescending{}}, {dsq.OrderByValue{}}} {
			for _, keysOnly := range []bool{false, true} {
				q := dsq.Query{Prefix: "/x", KeysOnly: keysOnly, ReturnsSizes: true, ReturnExpirations: true, Orders: order}
				entries := all(t, d, q)
				if len(entries) != 3 {
					t.Fatalf("%d entries", len(entries))
				}
				for _, e := range entries {
					size, err := d.GetSize(ctx, ds.RawKey(e.Key))
					must(t, err)
					if e.Size != size {
						t.Errorf("%s: size %d, expected %d", e.Key, e.Size, size)
					}
					// Five epochs, of which the present one may be nearly over.
					if in := e.Expiration.Sub(start); in < 3*epoch*time.Second || in > 6*epoch*time.Second {
						t.Errorf("%s ends in %v", e.Key, in)
					}
					if (e.Value == nil) != keysOnly {
						t.Errorf("%s: keys only is %v, value %q", e.Key, keysOnly, e.Value)
					}
				}
			}
		}
		for _, e := range all(t, d, dsq.Query{Prefix: "/x"}) {
			if !e.Expiration.IsZero() {
				t.Errorf("%s: an expiration that nobody asked for", e.Key)
			}
		}
		// Renewal is not set up: the metrics report no state and invent none.
		plain := open(t, index)
		fill(t, plain, []string{"/x/1"})
		for _, e := range all(t, plain, dsq.Query{ReturnExpirations: true}) {
			if !e.Expiration.IsZero() {
				t.Errorf("%s ends at %v", e.Key, e.Expiration)
			}
		}
	})
}

// More keys than any page, in both directions, by both ways to read results.
func TestManyKeys(t *testing.T) {
	const n = 12_345
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		d := open(t, index, changes)
		keys := make([]string, n)
		for i := range keys {
			keys[i] = fmt.Sprintf("/many/%05d", i)
		}
		entries := fill(t, d, keys)
		for _, descending := range []bool{false, true} {
			q := dsq.Query{Prefix: "/many", KeysOnly: true, ReturnsSizes: true}
			if descending {
				q.Orders = []dsq.Order{dsq.OrderByKeyDescending{}}
			}
			got := all(t, d, q)
			if len(got) != n {
				t.Fatalf("%d keys", len(got))
			}
			for i, e := range got {
				want := i
				if descending {
					want = n - 1 - i
				}
				if e.Key != keys[want] || e.Size != entries[want].Size {
					t.Fatalf("entry %d is %v", i, e)
				}
			}
		}
		r, err := d.Query(context.Background(), dsq.Query{Prefix: "/many"})
		must(t, err)
		i := 0
		for e := range r.Next() {
			must(t, e.Error)
			if e.Key != keys[i] || string(e.Value) != string(entries[i].Value) {
				t.Fatalf("entry %d is %v", i, e)
			}
			i++
		}
		if i != n {
			t.Errorf("%d entries with values", i)
		}
	})
}

// While a listing runs, other goroutines write and delete: an untouched key is listed exactly once,
// in order; a new key that appears has its right value; no call fails.
func TestListingWhileWritingAndDeleting(t *testing.T) {
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		d := open(t, index, changes)
		keys := make([]string, 6000)
		for i := range keys {
			keys[i] = fmt.Sprintf("/%c/%05d", "sv"[i%2], i) // stable, volatile
		}
		fill(t, d, keys)
		var writers sync.WaitGroup
		for w := 0; w < 4; w++ {
			writers.Add(1)
			go func(r *rand.Rand) {
				defer writers.Done()
				for ctx.Err() == nil {
					k := ds.RawKey(keys[2*r.Intn(len(keys)/2)+1])
					var err error
					if r.Intn(2) == 0 {
						err = d.Delete(ctx, k)
					} else {
						err = d.Put(ctx, k, []byte("new "+k.String()))
					}
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
						return
					}
				}
			}(rand.New(rand.NewSource(int64(w))))
		}
		for _, q := range []dsq.Query{
			{}, {KeysOnly: true}, {KeysOnly: true, Orders: []dsq.Order{dsq.OrderByKeyDescending{}}},
			{Orders: []dsq.Order{dsq.OrderByKeyDescending{}}}, {KeysOnly: true, Orders: []dsq.Order{dsq.OrderByFunction(dsq.OrderByKey{}.Compare)}},
		} {
			entries := all(t, d, q)
			stable := 0
			for i, e := range entries {
				if i > 0 && (entries[i-1].Key < e.Key) != (len(q.Orders) == 0 || !isDescending(q.Orders[0])) {
					t.Fatalf("%v: %s follows %s", q, e.Key, entries[i-1].Key)
				}
				if e.Key[1] == 's' {
					stable++
				}
			}
			if stable != len(keys)/2 {
				t.Errorf("%v: %d of %d keys that nobody touched", q, stable, len(keys)/2)
			}
		}
		stop()
		writers.Wait()
	})
}

func isDescending(o dsq.Order) bool {
	_, ok := o.(dsq.OrderByKeyDescending)
	return ok
}

// The garbage collector deletes what it lists while it lists it: every block goes.
func TestDeletingWhatIsListed(t *testing.T) {
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		ctx := context.Background()
		d := open(t, index, changes)
		keys := make([]string, 5000)
		for i := range keys {
			keys[i] = fmt.Sprintf("/%05d", i)
		}
		fill(t, d, keys)
		for _, q := range []dsq.Query{{KeysOnly: true, Limit: 2000}, {Orders: []dsq.Order{dsq.OrderByKeyDescending{}}}} {
			r, err := d.Query(ctx, q)
			must(t, err)
			for {
				e, ok := r.NextSync()
				if !ok {
					break
				}
				must(t, e.Error)
				must(t, d.Delete(ctx, ds.RawKey(e.Key)))
			}
			must(t, r.Close())
		}
		if left := all(t, d, dsq.Query{KeysOnly: true}); len(left) != 0 {
			t.Errorf("%d keys are left", len(left))
		}
	})
}

// Listings that are not read to their end release all resources: connections, goroutines, threads.
func TestEarlyCloseLeaksNothing(t *testing.T) {
	onEachIndex(t, func(t *testing.T, index index) {
		ctx := context.Background()
		d := open(t, index, named(t, index))
		keys := make([]string, 3000)
		for i := range keys {
			keys[i] = fmt.Sprintf("/%d/%05d", i%60, i)
		}
		fill(t, d, keys)
		queries := []dsq.Query{
			{}, {KeysOnly: true}, {Orders: []dsq.Order{dsq.OrderByKeyDescending{}}}, {Prefix: "/0", Orders: []dsq.Order{dsq.OrderByValue{}}},
			{KeysOnly: true, Filters: []dsq.Filter{odd{}}}, {Offset: 2990}, {Limit: 1},
		}
		round := func(i int) {
			cctx, cancel := context.WithCancel(ctx)
			defer cancel()
			r, err := d.Query(cctx, queries[i%len(queries)])
			must(t, err)
			switch i % 5 {
			case 0: // never read
			case 1:
				r.NextSync()
			case 2:
				<-r.Next()
			case 3: // the context ends in the middle
				r.NextSync()
				cancel()
				r.NextSync()
			case 4: // closed while a caller waits for the next entry
				done := make(chan struct{})
				go func() {
					defer close(done)
					r.NextSync()
				}()
				must(t, r.Close())
				<-done
			}
			must(t, r.Close())
			must(t, r.Close())
		}
		for i := 0; i < 35; i++ { // once each: the part kept for the next call is there
			round(i)
		}
		before := count(t)
		for i := 0; i < 350; i++ {
			round(i)
		}
		eventually(t, "queries leave nothing behind", func() string {
			now := count(t)
			if now.goroutines > before.goroutines+5 || now.connections > before.connections+1 || now.threads > before.threads+16 {
				return fmt.Sprintf("before %+v, now %+v", before, now)
			}
			return ""
		})
		// All of them at once, so that they compete for connections; again nothing stays.
		var wg sync.WaitGroup
		for i := 0; i < 100; i++ {
			wg.Add(1)
			go func() {
				defer wg.Done()
				round(i)
			}()
		}
		wg.Wait()
		eventually(t, "a crowd of queries leaves nothing behind", func() string {
			now := count(t)
			if now.goroutines > before.goroutines+5 || now.connections > 32 || now.threads > 400 {
				return fmt.Sprintf("before %+v, now %+v", before, now)
			}
			return ""
		})
		must(t, d.Close())
		eventually(t, "a closed datastore has no connection", func() string {
			if now := count(t); now.connections != 0 {
				return fmt.Sprintf("%+v", now)
			}
			return ""
		})
	})
}
