package walrusds

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	logging "github.com/ipfs/go-log/v2"
)

// The tests run against a local Walrus: one that runs already (WALRUSDS_TEST_WALRUS_URL), or the
// devnet program of this repository (WALRUSDS_TEST_DEVNET, or target/release/walrus-devnet), which
// they start themselves. The index is SQLite in a temporary directory unless
// WALRUSDS_TEST_POSTGRES_URL is set.
var walrusURL string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		stop, err := startWalrus()
		if err != nil {
			fmt.Fprintln(os.Stderr, "walrusds tests:", err)
			return 1
		}
		defer stop()
		return m.Run()
	}())
}

func startWalrus() (func(), error) {
	if walrusURL = os.Getenv("WALRUSDS_TEST_WALRUS_URL"); walrusURL != "" {
		return func() {}, nil
	}
	program := os.Getenv("WALRUSDS_TEST_DEVNET")
	if program == "" {
		program = "../target/release/walrus-devnet"
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("no Walrus to test with: build the devnet (make build), or set WALRUSDS_TEST_WALRUS_URL (%w)", err)
	}
	return runDevnet(program)
}

var tables struct {
	sync.Mutex
	n int
}

// spec describes a datastore of its own for each test.
func spec(t testing.TB) map[string]any {
	tables.Lock()
	tables.n++
	s := map[string]any{
		"publisherURL":  walrusURL,
		"aggregatorURL": walrusURL,
		"table":         fmt.Sprintf("shim_%d_%d", os.Getpid(), tables.n),
	}
	tables.Unlock()
	if url := os.Getenv("WALRUSDS_TEST_POSTGRES_URL"); url != "" {
		s["postgresURL"] = url
	} else {
		s["indexPath"] = "index.sqlite"
	}
	return s
}

func open(t testing.TB) *Datastore {
	t.Helper()
	d, err := Open(spec(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func key(format string, args ...any) ds.Key { return ds.RawKey(fmt.Sprintf(format, args...)) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoundTrip(t *testing.T) {
	d, ctx := open(t), context.Background()
	for _, size := range []int{0, 1, 1000, 1 << 20, 2 << 20} {
		k, want := key("/size/%d", size), random(size)
		must(t, d.Put(ctx, k, want))
		got, err := d.Get(ctx, k)
		must(t, err)
		if got == nil || !bytes.Equal(got, want) {
			t.Fatalf("size %d: other bytes came back", size)
		}
		n, err := d.GetSize(ctx, k)
		must(t, err)
		if n != size {
			t.Fatalf("GetSize = %d, want %d", n, size)
		}
		has, err := d.Has(ctx, k)
		must(t, err)
		if !has {
			t.Fatal("Has = false")
		}
		for i := range got { // the copy belongs to the caller
			got[i] = 0
		}
		again, err := d.Get(ctx, k)
		must(t, err)
		if !bytes.Equal(again, want) {
			t.Fatal("a caller's change reached the datastore")
		}
		must(t, d.Delete(ctx, k))
		must(t, d.Delete(ctx, k))
		if has, err := d.Has(ctx, k); has || err != nil {
			t.Fatalf("after Delete: Has = %v, %v", has, err)
		}
	}
	must(t, d.Put(ctx, key("/nil"), nil))
	if v, err := d.Get(ctx, key("/nil")); err != nil || v == nil || len(v) != 0 {
		t.Fatalf("nil value came back as %v, %v", v, err)
	}
	must(t, d.Put(ctx, key("/over"), []byte("old")))
	must(t, d.Put(ctx, key("/over"), []byte("new")))
	if v, err := d.Get(ctx, key("/over")); err != nil || string(v) != "new" {
		t.Fatalf("overwritten value: %q, %v", v, err)
	}
	must(t, d.Sync(ctx, ds.NewKey("/")))
	usage, err := d.DiskUsage(ctx)
	must(t, err)
	if usage == 0 {
		t.Error("DiskUsage = 0")
	}
	must(t, d.CollectGarbage(ctx))
	if m, err := d.Metrics(); err != nil || len(m) == 0 {
		t.Errorf("Metrics: %q, %v", m, err)
	}
}

// The engine reads a long block from a local file straight into Go's memory. A damaged file costs
// another look: a block that is nowhere else is an error, one that is on Walrus comes from there.
func TestDamagedFilesGiveNoWrongBytes(t *testing.T) {
	refusing := newRefusingPublisher(t)
	ctx := context.Background()
	for _, uploaded := range []bool{false, true} {
		s, repo := spec(t), t.TempDir()
		s["journalPath"], s["cachePath"] = "journal", "cache"
		s["packIdleFlushSeconds"] = 1
		if !uploaded {
			s["publisherURL"], s["drainTimeoutSeconds"] = refusing, 0
		}
		d, err := Open(s, repo)
		must(t, err)
		value := random(1 << 20)
		digest := sha256.Sum256(value)
		name := append([]byte{0x12, 32}, digest[:]...)
		k := ds.RawKey("/blocks/" + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(name))
		must(t, d.Put(ctx, k, value))
		if uploaded {
			until(t, "the block is on Walrus", func() bool { return counter(t, d, "packs_stored") > 0 })
		}
		for range 2 {
			if got, err := d.Get(ctx, k); err != nil || !bytes.Equal(got, value) {
				t.Fatalf("uploaded %v: %d bytes, %v", uploaded, len(got), err)
			}
		}
		// The file may be on its way from the journal to the cache.
		until(t, "a file holds the block", func() bool { return damage(t, repo, value) > 0 })
		if uploaded {
			// Until its row is written, the damage is an error.
			until(t, "the block comes from Walrus", func() bool {
				got, err := d.Get(ctx, k)
				if err == nil && !bytes.Equal(got, value) {
					t.Fatalf("%d bytes, not those that were put", len(got))
				}
				return err == nil
			})
		} else if got, err := d.Get(ctx, k); !errors.Is(err, ErrCorrupt) {
			t.Errorf("nowhere else: %d bytes, %v", len(got), err)
		}
		d.Close()
	}
}

// damage changes a byte of value in each file below dir that holds it, and counts them.
func damage(t *testing.T, dir string, value []byte) (files int) {
	must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil // it was removed meanwhile
		}
		content, _ := os.ReadFile(path)
		at := bytes.Index(content, value)
		if at < 0 {
			return nil
		}
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil
		}
		defer file.Close()
		files++
		_, err = file.WriteAt([]byte{^value[1000]}, int64(at)+1000)
		return err
	}))
	return files
}

func TestNotFoundIsTheSentinelItself(t *testing.T) {
	d, ctx := open(t), context.Background()
	if _, err := d.Get(ctx, key("/nothing")); err != ds.ErrNotFound {
		t.Errorf("Get: %v", err)
	}
	if n, err := d.GetSize(ctx, key("/nothing")); err != ds.ErrNotFound || n != -1 {
		t.Errorf("GetSize: %d, %v", n, err)
	}
	if has, err := d.Has(ctx, key("/nothing")); has || err != nil {
		t.Errorf("Has: %v, %v", has, err)
	}
}

func TestKeyThatIsNotUTF8(t *testing.T) {
	d, ctx := open(t), context.Background()
	bad := ds.RawKey("/\xff\xfe")
	if err := d.Put(ctx, bad, []byte("x")); !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("Put: %v", err)
	}
	var e *Error
	if _, err := d.Get(ctx, bad); err == nil || err != ds.ErrNotFound && !errors.As(err, &e) {
		t.Errorf("Get: %v", err)
	}
}

func TestReopen(t *testing.T) {
	ctx, s, dir := context.Background(), spec(t), t.TempDir()
	for i := 0; i < 3; i++ {
		d, err := Open(s, dir)
		must(t, err)
		if i > 0 {
			v, err := d.Get(ctx, key("/stays"))
			must(t, err)
			if string(v) != fmt.Sprint(i-1) {
				t.Fatalf("opened again: %q", v)
			}
		}
		must(t, d.Put(ctx, key("/stays"), []byte(fmt.Sprint(i))))
		must(t, d.Close())
	}
}

func TestSpec(t *testing.T) {
	s := spec(t)
	s["type"], s["mountpoint"] = TypeName, "/blocks"
	disk, err := DiskSpec(s)
	must(t, err)
	if len(disk) != 3 || disk["publisherURL"] != walrusURL || disk["aggregatorURL"] != walrusURL || disk["table"] != s["table"] {
		t.Errorf("DiskSpec = %v", disk)
	}
	delete(s, "publisherURL")
	s["postgresURL"] = "postgres://u:hunter2@host/db"
	for name, f := range map[string]func() error{
		"DiskSpec": func() error { _, err := DiskSpec(s); return err },
		"Open":     func() error { _, err := Open(s, t.TempDir()); return err },
	} {
		err := f()
		if !errors.Is(err, ErrConfig) && !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), "hunter2") || !strings.HasPrefix(err.Error(), "walrusds: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DiskSpec(map[string]any{"f": func() {}}); !errors.Is(err, ErrConfig) {
		t.Errorf("a value that is no JSON: %v", err)
	}
	keys, err := ConfigKeys()
	must(t, err)
	secret := map[string]bool{}
	for _, k := range keys {
		secret[k.Key] = k.Secret
	}
	if _, ok := secret["publisherURL"]; !ok || !secret["postgresURL"] {
		t.Errorf("ConfigKeys = %v", keys)
	}
}

func TestBatch(t *testing.T) {
	d, ctx := open(t), context.Background()
	must(t, d.Put(ctx, key("/b/gone"), []byte("x")))
	b, err := d.Batch(ctx)
	must(t, err)
	must(t, b.Put(ctx, key("/b/twice"), []byte("first")))
	must(t, b.Put(ctx, key("/b/empty"), nil))
	must(t, b.Put(ctx, key("/b/deleted"), []byte("x")))
	must(t, b.Delete(ctx, key("/b/deleted")))
	must(t, b.Delete(ctx, key("/b/revived")))
	must(t, b.Put(ctx, key("/b/revived"), []byte("y")))
	must(t, b.Delete(ctx, key("/b/gone")))
	must(t, b.Put(ctx, key("/b/twice"), []byte("second")))
	big := random(1 << 20)
	must(t, b.Put(ctx, key("/b/big"), big))
	if has, _ := d.Has(ctx, key("/b/twice")); has {
		t.Error("visible before Commit")
	}
	must(t, b.Commit(ctx))
	for i := range big { // no longer the batch's
		big[i] = 0
	}
	for k, want := range map[string]string{"/b/twice": "second", "/b/empty": "", "/b/revived": "y", "/b/big": string(random(1 << 20))} {
		if v, err := d.Get(ctx, key("%s", k)); err != nil || string(v) != want {
			t.Errorf("%s: %d bytes, %v", k, len(v), err)
		}
	}
	for _, k := range []string{"/b/deleted", "/b/gone"} {
		if has, err := d.Has(ctx, key("%s", k)); has || err != nil {
			t.Errorf("%s: Has = %v, %v", k, has, err)
		}
	}
	// Committed, the batch is empty: nothing is written a second time.
	must(t, d.Delete(ctx, key("/b/twice")))
	must(t, b.Commit(ctx))
	if has, _ := d.Has(ctx, key("/b/twice")); has {
		t.Error("a second Commit wrote again")
	}
	must(t, b.Put(ctx, key("/b/later"), []byte("z")))
	must(t, b.Commit(ctx))
	if v, err := d.Get(ctx, key("/b/later")); err != nil || string(v) != "z" {
		t.Errorf("a batch used anew: %q, %v", v, err)
	}
}

func TestBatchAfterAnErrorCanBeRetried(t *testing.T) {
	d, ctx := open(t), context.Background()
	b, err := d.Batch(ctx)
	must(t, err)
	for i := 0; i < 50; i++ {
		must(t, b.Put(ctx, key("/retry/%d", i), random(1000+i)))
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Commit(canceled); err != context.Canceled {
		t.Fatalf("Commit: %v", err)
	}
	must(t, b.Commit(ctx))
	for i := 0; i < 50; i++ {
		if v, err := d.Get(ctx, key("/retry/%d", i)); err != nil || !bytes.Equal(v, random(1000+i)) {
			t.Fatalf("%d: %v", i, err)
		}
	}
}

func TestDoneContextReturnsAtOnce(t *testing.T) {
	d := open(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancel2 := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel2()
	for _, c := range []context.Context{ctx, late} {
		for name, f := range map[string]func() error{
			"Get":       func() error { _, err := d.Get(c, key("/k")); return err },
			"Has":       func() error { _, err := d.Has(c, key("/k")); return err },
			"GetSize":   func() error { _, err := d.GetSize(c, key("/k")); return err },
			"Put":       func() error { return d.Put(c, key("/k"), nil) },
			"Delete":    func() error { return d.Delete(c, key("/k")) },
			"Sync":      func() error { return d.Sync(c, key("/")) },
			"Batch":     func() error { _, err := d.Batch(c); return err },
			"Query":     func() error { _, err := d.Query(c, dsq.Query{}); return err },
			"DiskUsage": func() error { _, err := d.DiskUsage(c); return err },
		} {
			if err := f(); err != c.Err() {
				t.Errorf("%s: %v, want %v", name, err, c.Err())
			}
		}
	}
}

// Thousands of goroutines whose writes cannot finish occupy a bounded number of threads, end
// promptly when they are canceled, and leave the datastore usable.
func TestCancelAndBoundedThreads(t *testing.T) {
	silent := newSilentServer(t)
	s := spec(t)
	s["publisherURL"] = silent
	d, err := Open(s, t.TempDir())
	must(t, err)
	defer d.Close()

	before := threads(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	errs := make(chan error, 3000)
	for i := 0; i < cap(errs); i++ {
		go func() { errs <- d.Put(ctx, key("/stuck/%d", i), []byte{byte(i), byte(i >> 8)}) }()
	}
	until(t, "every Put has begun", func() bool { return counter(t, d, "commits") >= cap(errs) })
	// The threads of calls, and those that Go adds.
	if n := threads(t) - before; n > directCalls+16 {
		t.Errorf("%d threads more than before; now there are %v", n, threadNames(t))
	}
	cancel()
	for i := 0; i < cap(errs); i++ {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Fatalf("Put: %v", err)
		}
	}

	short, cancel2 := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel2()
	start := time.Now()
	if err := d.Put(short, key("/stuck/late"), []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Put: %v", err)
	}
	if took := time.Since(start); took < 150*time.Millisecond || took > patience {
		t.Errorf("a deadline of 200 ms ended after %v", took)
	}
	if has, err := d.Has(context.Background(), key("/stuck/late")); has || err != nil {
		t.Errorf("Has after all this: %v, %v", has, err)
	}
}

// counter is one of the engine's counters.
func counter(t *testing.T, d *Datastore, name string) int {
	t.Helper()
	text, err := d.Metrics()
	must(t, err)
	all := map[string]int{}
	must(t, json.Unmarshal(text, &all))
	n, known := all[name]
	if !known {
		t.Fatalf("there is no counter %q in %s", name, text)
	}
	return n
}

func threads(t *testing.T) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("counts threads in /proc")
	}
	entries, err := os.ReadDir("/proc/self/task")
	must(t, err)
	return len(entries)
}

// threadNames counts threads by their names.
func threadNames(t *testing.T) map[string]int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/comm")
	must(t, err)
	names := make(map[string]int)
	for _, task := range tasks {
		if name, err := os.ReadFile(task); err == nil { // it may have ended
			names[strings.TrimSpace(string(name))]++
		}
	}
	return names
}

func fill(t testing.TB, d *Datastore, n int) []string {
	t.Helper()
	ctx := context.Background()
	b, err := d.Batch(ctx)
	must(t, err)
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("/q/%04d", i)
		must(t, b.Put(ctx, key("%s", keys[i]), []byte(fmt.Sprintf("value %d", i))))
	}
	for _, k := range []string{"/q", "/qq/1", "/q_/1", "/Q/1"} {
		must(t, b.Put(ctx, key("%s", k), []byte("other")))
	}
	must(t, b.Commit(ctx))
	return keys
}

func list(t testing.TB, d *Datastore, q dsq.Query) []dsq.Entry {
	t.Helper()
	r, err := d.Query(context.Background(), q)
	must(t, err)
	es, err := r.Rest()
	must(t, err)
	must(t, r.Close())
	return es
}

func names(es []dsq.Entry) string {
	var out []string
	for _, e := range es {
		out = append(out, e.Key)
	}
	return strings.Join(out, " ")
}

func TestQuery(t *testing.T) {
	d := open(t)
	keys := fill(t, d, 300)
	all := strings.Join(keys, " ")
	for _, prefix := range []string{"/q", "q", "/q/", "//q/."} {
		if got := names(list(t, d, dsq.Query{Prefix: prefix, KeysOnly: true})); got != all {
			t.Errorf("prefix %q: %.200s", prefix, got)
		}
	}
	for _, prefix := range []string{"", "/"} {
		if n := len(list(t, d, dsq.Query{Prefix: prefix, KeysOnly: true})); n != 304 {
			t.Errorf("prefix %q: %d keys", prefix, n)
		}
	}
	es := list(t, d, dsq.Query{Prefix: "/q", Offset: 10, Limit: 5})
	if names(es) != strings.Join(keys[10:15], " ") || string(es[2].Value) != "value 12" || es[2].Size != 8 {
		t.Errorf("offset and limit: %v", es)
	}
	for _, e := range list(t, d, dsq.Query{Prefix: "/q", KeysOnly: true, ReturnsSizes: true, Limit: 3}) {
		if e.Value != nil || e.Size != 7 || !e.Expiration.IsZero() {
			t.Errorf("keys only: %v", e)
		}
	}
	es = list(t, d, dsq.Query{Prefix: "/q", Orders: []dsq.Order{dsq.OrderByKey{}, dsq.OrderByValue{}}, Offset: 298, KeysOnly: true})
	if names(es) != "/q/0298 /q/0299" {
		t.Errorf("by key: %v", names(es))
	}
	es = list(t, d, dsq.Query{Prefix: "/q", Orders: []dsq.Order{dsq.OrderByKeyDescending{}}, Limit: 2, KeysOnly: true})
	if names(es) != "/q/0299 /q/0298" {
		t.Errorf("descending: %v", names(es))
	}
	es = list(t, d, dsq.Query{Prefix: "/q", Filters: []dsq.Filter{dsq.FilterKeyCompare{Op: dsq.GreaterThan, Key: "/q/0100"}}, Offset: 1, Limit: 2, KeysOnly: true})
	if names(es) != "/q/0102 /q/0103" {
		t.Errorf("filter: %v", names(es))
	}
	es = list(t, d, dsq.Query{Prefix: "/q", Filters: []dsq.Filter{dsq.FilterValueCompare{Op: dsq.Equal, Value: []byte("value 7")}}, KeysOnly: true})
	if names(es) != "/q/0007" || es[0].Value != nil {
		t.Errorf("filter by value, keys only: %v", es)
	}
}

func TestQueryCloseEarlyAndDeleteMeanwhile(t *testing.T) {
	d, ctx := open(t), context.Background()
	fill(t, d, 300)
	for i := 0; i < 200; i++ { // more than any pool of connections
		r, err := d.Query(ctx, dsq.Query{Prefix: "/q"})
		must(t, err)
		if _, ok := r.NextSync(); !ok {
			t.Fatal("nothing")
		}
		must(t, r.Close())
		must(t, r.Close())
	}
	r, err := d.Query(ctx, dsq.Query{Prefix: "/q", KeysOnly: true})
	must(t, err)
	n := 0
	for {
		e, ok := r.NextSync()
		if !ok {
			break
		}
		must(t, e.Error)
		must(t, d.Delete(ctx, ds.RawKey(e.Key)))
		n++
	}
	if n != 300 {
		t.Errorf("%d keys while deleting", n)
	}
	if left := list(t, d, dsq.Query{Prefix: "/q", KeysOnly: true}); len(left) != 0 {
		t.Errorf("%d keys left", len(left))
	}

	// The channel of Next, closed before its end, and a context that ends in the middle.
	fill(t, d, 300)
	r, err = d.Query(ctx, dsq.Query{Prefix: "/q", KeysOnly: true})
	must(t, err)
	<-r.Next()
	must(t, r.Close())
	cctx, cancel := context.WithCancel(ctx)
	r, err = d.Query(cctx, dsq.Query{Prefix: "/q"})
	must(t, err)
	r.NextSync()
	cancel()
	var last error
	for {
		e, ok := r.NextSync()
		if !ok {
			break
		}
		last = e.Error
	}
	if last != nil && !errors.Is(last, context.Canceled) {
		t.Errorf("canceled query: %v", last)
	}
	must(t, r.Close())
}

func TestClose(t *testing.T) {
	ctx := context.Background()
	d, err := Open(spec(t), t.TempDir())
	must(t, err)
	fill(t, d, 300)
	q, err := d.Query(ctx, dsq.Query{Prefix: "/q"})
	must(t, err)
	b, err := d.Batch(ctx)
	must(t, err)
	must(t, b.Put(ctx, key("/x"), nil))

	var wg sync.WaitGroup
	for i := 0; i < 64; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				_, err := d.Get(ctx, key("/q/%04d", rand.Intn(300)))
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil {
					t.Errorf("Get while closing: %v", err)
					return
				}
			}
		}()
	}
	until(t, "gets run", func() bool { return counter(t, d, "gets") >= 64 })
	for i := 0; i < 4; i++ {
		wg.Add(1)
		go func() { defer wg.Done(); must(t, d.Close()) }()
	}
	wg.Wait()
	must(t, d.Close())
	for name, f := range map[string]func() error{
		"Get":            func() error { _, err := d.Get(ctx, key("/k")); return err },
		"Has":            func() error { _, err := d.Has(ctx, key("/k")); return err },
		"GetSize":        func() error { _, err := d.GetSize(ctx, key("/k")); return err },
		"Put":            func() error { return d.Put(ctx, key("/k"), nil) },
		"Delete":         func() error { return d.Delete(ctx, key("/k")) },
		"Sync":           func() error { return d.Sync(ctx, key("/")) },
		"Batch":          func() error { _, err := d.Batch(ctx); return err },
		"Commit":         func() error { return b.Commit(ctx) },
		"Query":          func() error { _, err := d.Query(ctx, dsq.Query{}); return err },
		"DiskUsage":      func() error { _, err := d.DiskUsage(ctx); return err },
		"CollectGarbage": func() error { return d.CollectGarbage(ctx) },
		"Metrics":        func() error { _, err := d.Metrics(); return err },
	} {
		if err := f(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	for { // entries that were read already may still come; then ErrClosed
		r, ok := q.NextSync()
		if !ok {
			t.Error("the query of a closed datastore ended like a complete one")
			break
		}
		if r.Error != nil {
			if !errors.Is(r.Error, ErrClosed) {
				t.Errorf("query after Close: %v", r.Error)
			}
			break
		}
	}
	must(t, q.Close())
}

func TestManyGoroutines(t *testing.T) {
	d, ctx := open(t), context.Background()
	var wg sync.WaitGroup
	for g := 0; g < 200; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			k, v := key("/many/%d", g), random(g*10)
			if err := d.Put(ctx, k, v); err != nil {
				t.Error(err)
				return
			}
			for i := 0; i < 5; i++ {
				if got, err := d.Get(ctx, k); err != nil || !bytes.Equal(got, v) {
					t.Errorf("%s: %v", k, err)
				}
				if has, err := d.Has(ctx, k); !has || err != nil {
					t.Errorf("%s: %v, %v", k, has, err)
				}
			}
		}()
	}
	wg.Wait()
}

func TestErrors(t *testing.T) {
	e := &Error{Code: CodeWalrus, Message: "PUT failed", Retryable: true}
	wrapped := fmt.Errorf("adding: %w", e)
	if !errors.Is(wrapped, ErrWalrus) || errors.Is(wrapped, ErrIndex) || errors.Is(wrapped, ds.ErrNotFound) {
		t.Error("errors.Is")
	}
	if e.Error() != "walrusds: PUT failed" || ErrClosed.Error() != "walrusds: the datastore is closed" || Code(99).String() != "error code 99" {
		t.Error("texts")
	}
	if !errors.Is(&Error{Code: CodeCanceled}, context.Canceled) || !errors.Is(&Error{Code: CodeDeadline}, context.DeadlineExceeded) {
		t.Error("contexts")
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := contextual(ctx, &Error{Code: CodeCanceled}); err == context.Canceled {
		t.Error("not canceled yet")
	}
	cancel()
	if err := contextual(ctx, fmt.Errorf("x: %w", &Error{Code: CodeCanceled})); err != context.Canceled {
		t.Error(err)
	}
	if contextual(ctx, nil) != nil {
		t.Error("nil")
	}
}

func TestForgottenDatastoreIsNoticed(t *testing.T) {
	d, err := Open(spec(t), t.TempDir())
	must(t, err)
	eng, queue := d.eng, d.queue
	noticed := make(chan struct{})
	runtime.SetFinalizer(d, nil)
	runtime.SetFinalizer(d, func(*Datastore) { close(noticed) })
	d = nil
	until(t, "the collector takes a Datastore that only our own could keep alive", func() bool {
		runtime.GC()
		select {
		case <-noticed:
			return true
		default:
			return false
		}
	})
	metrics.remove(eng)
	eng.logs.stop()
	must(t, eng.close())
	queue.close()
}

func BenchmarkGetCached(b *testing.B) {
	d, ctx := open(b), context.Background()
	must(b, d.Put(ctx, key("/bench"), random(256<<10)))
	b.SetBytes(256 << 10)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if _, err := d.Get(ctx, key("/bench")); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHasWithContext(b *testing.B) {
	d := open(b)
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	must(b, d.Put(ctx, key("/bench"), nil))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if _, err := d.Has(ctx, key("/bench")); err != nil {
			b.Fatal(err)
		}
	}
}

// The log lines of a close arrive: blocks that stay behind because the publisher refuses them.
func TestLastWordsArrive(t *testing.T) {
	refusing := newRefusingPublisher(t)
	s := spec(t)
	s["publisherURL"] = refusing
	s["journalPath"] = "j"
	s["drainTimeoutSeconds"] = 30
	pipe := logging.NewPipeReader(logging.PipeFormat(logging.PlaintextOutput))
	defer pipe.Close()
	lines := make(chan string, 1000)
	go func() {
		for scanner := bufio.NewScanner(pipe); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	d, err := Open(s, t.TempDir())
	must(t, err)
	must(t, d.Put(context.Background(), key("/stays"), []byte("x")))
	must(t, d.Close())
	until(t, "closing says why the block stays", func() bool {
		select {
		case line := <-lines:
			return strings.Contains(line, "before the end") && strings.Contains(line, "402") &&
				strings.Contains(line, fmt.Sprintf(`"table": %q`, s["table"]))
		default:
			return false
		}
	})
}
