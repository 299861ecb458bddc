package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sort"
	"sync"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	walrusds "github.com/walrusds/walrusds/go-shim"
)

// Ten thousand goroutines in Get at once occupy a bounded number of threads, do not stand in the
// way of other calls, and all end soon after they are canceled. Afterwards all of them get their
// values.
func TestCrowdInGet(t *testing.T) {
	onEachIndex(t, func(t *testing.T, index index) {
		aggregator := newTurnstile(t)
		// Without memory for blocks no two gets share a request.
		d := open(t, index, map[string]any{"aggregatorURL": aggregator.url, "requestTimeoutSeconds": 300, "blobCacheBytes": -1})
		keys := make([]string, 100)
		for i := range keys {
			keys[i] = fmt.Sprintf("/%d", i)
		}
		stored := fill(t, d, keys)

		before := procStatus(t, "Threads:")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		type end struct {
			at  time.Time
			err error
		}
		ends := make(chan end, crowd)
		for i := 0; i < crowd; i++ {
			go func() {
				_, err := d.Get(ctx, ds.RawKey(stored[i%len(stored)].Key))
				ends <- end{time.Now(), err}
			}()
		}
		eventually(t, "many wait for the aggregator", func() string {
			if n := aggregator.waiting.Load(); n < 100 {
				return fmt.Sprintf("%d requests", n)
			}
			return ""
		})
		// A few in Get, the engine's own, and what Go takes besides: 10,000 cost no more than 10.
		threads := procStatus(t, "Threads:")
		if threads > before+30 {
			t.Errorf("%d threads for %d goroutines, %d before", threads, crowd, before)
		}
		for _, e := range stored[:10] { // other calls get through
			has, err := d.Has(ctx, ds.RawKey(e.Key))
			if err != nil || !has {
				t.Fatalf("Has: %v, %v", has, err)
			}
		}
		if n := len(all(t, d, dsq.Query{KeysOnly: true})); n != len(stored) {
			t.Errorf("%d keys listed", n)
		}
		if len(ends) > 0 {
			t.Errorf("%d of %d have ended, nothing was delivered yet: %v", len(ends), crowd, (<-ends).err)
		}

		start := time.Now()
		cancel()
		took := make([]time.Duration, 0, crowd)
		for i := 0; i < crowd; i++ {
			e := <-ends
			if !errors.Is(e.err, context.Canceled) {
				t.Fatalf("Get: %v", e.err)
			}
			took = append(took, e.at.Sub(start))
		}
		sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
		t.Logf("%s: %d goroutines in Get: the process has %d threads; canceled after %v (half), %v (all)", index, crowd, threads, took[crowd/2], took[crowd-1])
		if last := took[crowd-1]; last > time.Minute { // 100 ms is the aim, on a machine that is not busy
			t.Errorf("the last was back after %v", last)
		}

		close(aggregator.opened)
		var wg sync.WaitGroup
		for i := 0; i < crowd; i++ {
			wg.Add(1)
			go func() {
				defer wg.Done()
				e := stored[i%len(stored)]
				v, err := d.Get(context.Background(), ds.RawKey(e.Key))
				if err != nil {
					t.Errorf("%s: %v", e.Key, err)
					return
				}
				equal(t, e.Key, v, e.Value)
			}()
		}
		wg.Wait()
	})
}

// owner is one goroutine with keys that it alone writes, and the values it expects of them.
type owner struct {
	id    int
	d     *walrusds.Datastore
	r     *rand.Rand
	known map[string]state
}

// state is the possible values of a key: the value that was acknowledged last ("" = none), and one
// whose fate is not known, because writing it failed.
type state struct {
	value   string
	perhaps []string
}

// acceptable tells whether a call may end like this while the datastore is being closed.
func acceptable(err error) bool {
	return err == nil || errors.Is(err, walrusds.ErrClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// step does one operation, and records the certain part of its result. It returns false when the
// datastore is closed.
func (o *owner) step(t *testing.T, n int) bool {
	ctx := context.Background()
	if o.r.Intn(4) == 0 { // some do not wait long
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(o.r.Intn(20))*time.Millisecond)
		defer cancel()
	}
	key := func() string { return fmt.Sprintf("/%d/%d", o.id, o.r.Intn(8)) }
	wrote := func(k, value string, err error) {
		s := o.known[k]
		if err == nil {
			s = state{value: value}
		} else {
			s.perhaps = append(s.perhaps, value)
		}
		o.known[k] = s
	}
	value := fmt.Sprintf("%d of %d", n, o.id)
	var err error
	switch k := key(); o.r.Intn(9) {
	case 0, 1:
		err = o.d.Put(ctx, ds.RawKey(k), []byte(value))
		wrote(k, value, err)
	case 2:
		err = o.d.Delete(ctx, ds.RawKey(k))
		wrote(k, "", err)
	case 3:
		var b ds.Batch
		if b, err = o.d.Batch(ctx); err != nil {
			break
		}
		last := map[string]string{}
		for i := 0; i < 4 && err == nil; i++ {
			k := key()
			if o.r.Intn(3) == 0 {
				last[k], err = "", b.Delete(ctx, ds.RawKey(k))
			} else {
				last[k] = fmt.Sprintf("%s, %d", value, i)
				err = b.Put(ctx, ds.RawKey(k), []byte(last[k]))
			}
		}
		if err != nil {
			break
		}
		err = b.Commit(ctx)
		for k, value := range last {
			wrote(k, value, err)
		}
	case 4:
		var v []byte
		v, err = o.d.Get(ctx, ds.RawKey(k))
		o.check(t, k, v, err)
	case 5:
		_, err = o.d.Has(ctx, ds.RawKey(k))
	case 6:
		if _, err = o.d.GetSize(ctx, ds.RawKey(k)); err == ds.ErrNotFound {
			err = nil
		}
	case 7:
		var r dsq.Results
		if r, err = o.d.Query(ctx, dsq.Query{KeysOnly: o.r.Intn(2) == 0}); err != nil {
			break
		}
		for i := 0; err == nil && i < 30; i++ {
			e, ok := r.NextSync()
			if !ok {
				break
			}
			err = e.Error
		}
		must(t, r.Close())
	case 8:
		err = o.d.Sync(ctx, ds.NewKey("/"))
	}
	if err == ds.ErrNotFound {
		err = nil
	}
	if !acceptable(err) {
		t.Errorf("while closing: %v", err)
	}
	return !errors.Is(err, walrusds.ErrClosed)
}

// check compares a read value with the expected one; it ignores an error, which the caller handles.
func (o *owner) check(t *testing.T, k string, v []byte, err error) {
	if err != nil && err != ds.ErrNotFound {
		return
	}
	got, s := string(v), o.known[k]
	if got == s.value {
		return
	}
	for _, p := range s.perhaps {
		if got == p {
			return
		}
	}
	t.Errorf("%s holds %q, acknowledged was %q, perhaps one of %q", k, got, s.value, s.perhaps)
}

// Close, in the middle of everything: each call succeeds or reports that the datastore is closed,
// and the acknowledged writes are there after reopening. Closed datastores leave no resources
// behind.
func TestCloseRacesWithEverything(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	onEachStore(t, func(t *testing.T, index index, changes map[string]any) {
		ctx := context.Background()
		s, dir := spec(index, named(t, index), changes), t.TempDir()
		owners := make([]*owner, 24)
		for i := range owners {
			owners[i] = &owner{id: i, r: rand.New(rand.NewSource(int64(i))), known: map[string]state{}}
		}
		r := rand.New(rand.NewSource(3))
		var before held
		for round := 0; round < rounds; round++ {
			d, err := walrusds.Open(s, dir)
			must(t, err)
			for _, o := range owners { // the state that the last round left
				for k := range o.known {
					v, err := d.Get(ctx, ds.RawKey(k))
					if err != nil && err != ds.ErrNotFound {
						t.Fatalf("%s after opening again: %v", k, err)
					}
					o.check(t, k, v, err)
					o.known[k] = state{value: string(v)}
				}
				o.d = d
			}
			var wg sync.WaitGroup
			for _, o := range owners {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for n := 0; o.step(t, round<<16|n); n++ {
					}
				}()
			}
			time.Sleep(time.Duration(r.Intn(150)) * time.Millisecond)
			for i := 0; i < 2; i++ { // both return when it is done
				wg.Add(1)
				go func() {
					defer wg.Done()
					if err := d.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
				}()
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			if round == rounds/2 {
				before = count(t)
			}
		}
		eventually(t, "closed datastores leave nothing behind", func() string {
			now := count(t)
			if now.goroutines > before.goroutines+5 || now.threads > before.threads+32 || now.connections != 0 {
				return fmt.Sprintf("half way %+v, at the end %+v", before, now)
			}
			return ""
		})
	})
}
