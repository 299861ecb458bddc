package conformance

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sort"
	"testing"
	"time"

	dsq "github.com/ipfs/go-datastore/query"
)

// listing is what a process is to list: a datastore that is filled already.
type listing struct {
	Spec map[string]any
	Dir  string
	Rows int
}

// A listing of a million rows begins at once and takes no more memory than one of few. It is done
// by a process of its own, whose memory the filling has not touched.
func TestStreamOfAMillionRows(t *testing.T) {
	rows := 1_000_000
	if testing.Short() {
		rows = 30_000
	}
	onEachIndex(t, func(t *testing.T, index index) {
		l := listing{spec(index), t.TempDir(), rows}
		d := openSpec(t, l.Spec, l.Dir)
		start := time.Now()
		bulk(t, d, rows)
		t.Logf("%s: %d rows stored in %v", index, rows, time.Since(start).Round(time.Millisecond))
		must(t, d.Close())

		file := filepath.Join(l.Dir, "listing.json")
		asked, err := json.Marshal(l)
		must(t, err)
		must(t, os.WriteFile(file, asked, 0o600))
		child := exec.Command(os.Args[0], "-test.run=^TestListInAProcessOfItsOwn$", "-test.v")
		child.Env = append(os.Environ(), "WALRUSDS_TEST_LISTING="+file)
		out, err := child.CombinedOutput()
		if err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		t.Logf("%s\n%s", index, out)
	})
}

// The other half of the test above.
func TestListInAProcessOfItsOwn(t *testing.T) {
	file := os.Getenv("WALRUSDS_TEST_LISTING")
	if file == "" {
		t.Skip("run by TestStreamOfAMillionRows")
	}
	asked, err := os.ReadFile(file)
	must(t, err)
	var l listing
	must(t, json.Unmarshal(asked, &l))
	d := openSpec(t, l.Spec, l.Dir)

	// The first row.
	ctx := context.Background()
	descending := []dsq.Order{dsq.OrderByKeyDescending{}}
	middle := []dsq.Filter{dsq.FilterKeyCompare{Op: dsq.GreaterThan, Key: bulkKey(l.Rows / 2)}}
	for _, q := range []struct {
		what  string
		q     dsq.Query
		first int
	}{
		{"keys", dsq.Query{KeysOnly: true}, 0},
		{"keys and values", dsq.Query{}, 0},
		{"from the end", dsq.Query{KeysOnly: true, Orders: descending}, l.Rows - 1},
		{"from the middle", dsq.Query{KeysOnly: true, Filters: middle}, l.Rows/2 + 1},
		{"after half of them", dsq.Query{KeysOnly: true, Offset: l.Rows / 2}, l.Rows / 2},
	} {
		const times = 15
		var took []time.Duration
		for i := 0; i < times; i++ {
			start := time.Now()
			r, err := d.Query(ctx, q.q)
			must(t, err)
			e, ok := r.NextSync()
			took = append(took, time.Since(start))
			if !ok || e.Error != nil || e.Key != bulkKey(q.first) {
				t.Fatalf("%s: the first row is %v, %v", q.what, e, ok)
			}
			must(t, r.Close())
		}
		sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
		t.Logf("first of %d rows, %s: %v (median of %d), %v (slowest)", l.Rows, q.what, took[times/2].Round(10*time.Microsecond), times, took[times-1].Round(10*time.Microsecond))
		if took[times/2] > 20*time.Second { // 20 ms is the aim, on a machine that is not busy
			t.Errorf("%s: %v until the first row", q.what, took[times/2])
		}
	}

	// Memory growth, counted from the first row on, when the permanent buffers are there.
	if n := len(all(t, d, dsq.Query{KeysOnly: true, Limit: 10_000})); n != 10_000 {
		t.Fatalf("%d rows", n)
	}
	for _, q := range []dsq.Query{{KeysOnly: true}, {KeysOnly: true, Orders: descending}} {
		debug.FreeOSMemory()
		before := procStatus(t, "VmRSS:")
		most, n, start := before, 0, time.Now()
		r, err := d.Query(ctx, q)
		must(t, err)
		for {
			e, ok := r.NextSync()
			if !ok {
				break
			}
			must(t, e.Error)
			if n++; n%5_000 == 0 {
				most = max(most, procStatus(t, "VmRSS:"))
			}
		}
		must(t, r.Close())
		if n != l.Rows {
			t.Errorf("%d rows listed, %d are there", n, l.Rows)
		}
		t.Logf("%d rows listed in %v, memory %.1f MiB and at most %.1f MiB more", n, time.Since(start).Round(time.Millisecond), float64(before)/1024, float64(most-before)/1024)
		if most-before > 64<<10 {
			t.Errorf("memory grew by %d KiB", most-before)
		}
	}
}
