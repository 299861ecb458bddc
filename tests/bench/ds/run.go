package main

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	walrusds "github.com/walrusds/walrusds/go-shim"
)

// run is the measurements of one datastore.
type run struct {
	options
	index string
	d     *walrusds.Datastore
	ctx   context.Context
}

const (
	known      = 10_000 // keys that lookups hit
	smallValue = 4 << 10
	blockValue = 256 << 10
)

var encoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// key is a key of a family whose members look like block keys and have their length. The keys name
// a hash function that the datastore does not verify, so any value fits any key.
func key(family byte, n uint64) ds.Key {
	raw := [34]byte{0x55, 0x20, family}
	for i := 3; i < 27; i += 8 { // spread like a hash
		n ^= n >> 31
		n *= 0x9E3779B97F4A7C15
		n ^= n >> 29
		binary.LittleEndian.PutUint64(raw[i:], n)
	}
	return keyOf(raw)
}

func keyOf(multihash [34]byte) ds.Key {
	var text [56]byte
	text[0] = '/'
	encoding.Encode(text[1:], multihash[:])
	return ds.RawKey(string(text[:]))
}

// block is a value with the key that its hash makes, as blocks have it.
func block(n uint64) (ds.Key, []byte) {
	v := value(blockValue, n)
	hash := sha256.Sum256(v)
	raw := [34]byte{0x12, 0x20}
	copy(raw[2:], hash[:])
	return keyOf(raw), v
}

func value(size int, n uint64) []byte {
	v := make([]byte, size)
	for i := 0; i+8 <= size; i += 512 {
		binary.LittleEndian.PutUint64(v[i:], n+uint64(i))
	}
	return v
}

// everything measures all calls. settle moves the written blocks from the journal into the index.
func (b *run) everything(settle func() error) error {
	if err := b.fill('k', known, 1); err != nil {
		return err
	}
	blocks := make([]ds.Key, 64)
	batch, err := b.d.Batch(b.ctx)
	if err != nil {
		return err
	}
	for i := range blocks {
		var v []byte
		blocks[i], v = block(uint64(i))
		if err := batch.Put(b.ctx, blocks[i], v); err != nil {
			return err
		}
	}
	if err := batch.Commit(b.ctx); err != nil {
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	var missing, written atomic.Uint64
	written.Store(1 << 32)
	singles := []struct {
		name string
		call func(n uint64) error
	}{
		{"Has, unknown", func(uint64) error {
			return b.has(key('m', missing.Add(1)), false)
		}},
		{"Has, known", func(n uint64) error {
			return b.has(key('k', n%known), true)
		}},
		{"GetSize, known", func(n uint64) error {
			size, err := b.d.GetSize(b.ctx, key('k', n%known))
			if err == nil && size != 1 {
				err = fmt.Errorf("size %d", size)
			}
			return err
		}},
		{"Get, 1 byte", func(n uint64) error {
			return b.get(key('k', n%known), 1)
		}},
		{"Get, 256 KiB", func(n uint64) error {
			return b.get(blocks[n%uint64(len(blocks))], blockValue)
		}},
		{"Put, 4 KiB", func(uint64) error {
			n := written.Add(1)
			return b.d.Put(b.ctx, key('p', n), value(smallValue, n))
		}},
		{"Commit, 16 × 256 KiB", func(uint64) error {
			batch, err := b.d.Batch(b.ctx)
			if err != nil {
				return err
			}
			for range [16]struct{}{} {
				n := written.Add(1)
				if err := batch.Put(b.ctx, key('c', n), value(blockValue, n)); err != nil {
					return err
				}
			}
			return batch.Commit(b.ctx)
		}},
	}
	for _, s := range singles {
		for _, goroutines := range b.counts {
			if err := b.measure(s.name, goroutines, 0, s.call); err != nil {
				return fmt.Errorf("%s with %d goroutines: %w", s.name, goroutines, err)
			}
		}
	}
	for i, goroutines := range b.counts {
		name := fmt.Sprintf("Delete, %d keys", b.deletes)
		if !b.only.MatchString(name) {
			continue
		}
		family := byte('0' + i)
		if err := b.fill(family, b.deletes, 1); err != nil {
			return err
		}
		if err := settle(); err != nil {
			return err
		}
		err := b.measure(name, goroutines, b.deletes, func(n uint64) error {
			return b.d.Delete(b.ctx, key(family, n))
		})
		if err != nil {
			return fmt.Errorf("%s with %d goroutines: %w", name, goroutines, err)
		}
	}
	return b.query(settle)
}

// fill stores n values under keys of a family, in few uploads.
func (b *run) fill(family byte, n, size int) error {
	each := min(n, 50_000, max(1, (64<<20)/size))
	for from := 0; from < n; from += each {
		batch, err := b.d.Batch(b.ctx)
		if err != nil {
			return err
		}
		for i := from; i < min(from+each, n); i++ {
			if err := batch.Put(b.ctx, key(family, uint64(i)), value(size, uint64(i))); err != nil {
				return err
			}
		}
		if err := batch.Commit(b.ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *run) has(k ds.Key, want bool) error {
	has, err := b.d.Has(b.ctx, k)
	if err == nil && has != want {
		err = fmt.Errorf("Has says %v", has)
	}
	return err
}

func (b *run) get(k ds.Key, size int) error {
	v, err := b.d.Get(b.ctx, k)
	if err == nil && len(v) != size {
		err = fmt.Errorf("%d bytes", len(v))
	}
	return err
}

// measure makes calls from several goroutines: total of them, each with a number of its own, or as
// many as fit into the duration.
func (b *run) measure(name string, goroutines, total int, call func(n uint64) error) error {
	if !b.only.MatchString(name) {
		return nil
	}
	// A context that can end, as Kubo's can.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer func(before context.Context) { b.ctx = before }(b.ctx)
	b.ctx = ctx
	took := make([][]time.Duration, goroutines)
	errs := make([]error, goroutines)
	var next atomic.Uint64
	cpu := cpuTime()
	start := time.Now()
	end := start.Add(b.duration)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Add(1)
		go func() {
			defer wg.Done()
			before := time.Now()
			for total > 0 || before.Before(end) {
				n := next.Add(1) - 1
				if total > 0 && n >= uint64(total) {
					return
				}
				if errs[g] = call(n); errs[g] != nil {
					return
				}
				now := time.Now()
				if len(took[g]) < 1<<20 {
					took[g] = append(took[g], now.Sub(before))
				}
				before = now
			}
		}()
	}
	threads := make(chan int, 1)
	stop := make(chan struct{})
	go func() { threads <- mostThreads(stop) }()
	wg.Wait()
	elapsed := time.Since(start)
	cpu = cpuTime() - cpu
	close(stop)
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	calls := next.Load()
	if total > 0 {
		calls = uint64(total)
	}
	row{
		Index: b.index, Call: name, Goroutines: goroutines,
		Rate: float64(calls) / elapsed.Seconds(), CPU: float64(cpu) / 1e3 / float64(calls),
		P50: float64(all[len(all)/2]) / 1e3, P99: float64(all[len(all)*99/100]) / 1e3,
		Threads: <-threads,
	}.print(b.json)
	return nil
}

// query lists all rows, keys only, on Postgres both right after they were written and vacuumed, as
// the server does by itself within minutes: until then it must look at each row to know whether it
// is there.
func (b *run) query(settle func() error) error {
	what := fmt.Sprintf("keys, %d rows: first row, last row", b.rows)
	name := "Query, " + what
	if !b.only.MatchString(name) {
		return nil
	}
	if err := b.fill('q', b.rows, 1); err != nil {
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	if b.index == "postgres" {
		if err := b.list("Query just after writing, " + what); err != nil {
			return err
		}
		vacuum := exec.Command("psql", "-qX", "-v", "ON_ERROR_STOP=1", "-c", "VACUUM (ANALYZE)", b.postgres)
		if out, err := vacuum.CombinedOutput(); err != nil {
			return fmt.Errorf("psql VACUUM: %w: %s", err, out)
		}
	}
	return b.list(name)
}

// list measures one listing; the first row is what p50 tells, the last what p99 does.
func (b *run) list(name string) error {
	cpu := cpuTime()
	start := time.Now()
	results, err := b.d.Query(b.ctx, dsq.Query{KeysOnly: true})
	if err != nil {
		return err
	}
	defer results.Close()
	var first time.Duration
	n := 0
	for {
		r, ok := results.NextSync()
		if !ok {
			break
		}
		if r.Error != nil {
			return r.Error
		}
		if n++; n == 1 {
			first = time.Since(start)
		}
	}
	elapsed := time.Since(start)
	if n < b.rows {
		return fmt.Errorf("%s: %d rows came", name, n)
	}
	row{
		Index: b.index, Call: name, Goroutines: 1, Rate: float64(n) / elapsed.Seconds(),
		CPU: float64(cpuTime()-cpu) / 1e3 / float64(n),
		P50: float64(first) / 1e3, P99: float64(elapsed) / 1e3, Threads: threadsNow(),
	}.print(b.json)
	return nil
}

// cpuTime is what this process has used, the engine's threads included, the servers not.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// mostThreads looks every 10 ms at how many threads the process has.
func mostThreads(stop <-chan struct{}) int {
	most := threadsNow()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			most = max(most, threadsNow())
		case <-stop:
			return most
		}
	}
}

func threadsNow() int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(status), "\nThreads:")
	line, _, _ := strings.Cut(after, "\n")
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return 0
	}
	return n
}
