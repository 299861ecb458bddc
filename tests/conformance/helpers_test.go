package conformance

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	walrusds "github.com/walrusds/walrusds/go-shim"
)

// bulkKey is the key of a row that bulk has made.
func bulkKey(i int) string { return fmt.Sprintf("/b/%07d", i) }

// bulk stores n tiny values, a few uploads for all of them.
func bulk(t testing.TB, d *walrusds.Datastore, n int) {
	t.Helper()
	const each = 100_000
	ctx := context.Background()
	for from := 0; from < n; from += each {
		b, err := d.Batch(ctx)
		must(t, err)
		for i := from; i < min(from+each, n); i++ {
			must(t, b.Put(ctx, ds.RawKey(bulkKey(i)), []byte{byte(i)}))
		}
		must(t, b.Commit(ctx))
	}
}

// sql asks Postgres for one number.
func sql(t testing.TB, query string) int {
	t.Helper()
	out, err := exec.Command("psql", "-qAtX", postgresURL, "-c", query).CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v: %s", err, out)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	must(t, err)
	return n
}

// applicationName distinguishes the connections of a test from others.
func applicationName(t testing.TB) string {
	return strings.ReplaceAll(fmt.Sprintf("%s-%d", t.Name(), os.Getpid()), "/", "-")
}

// named makes the connections of this test recognisable.
func named(t testing.TB, i index) map[string]any {
	if i != postgres {
		return nil
	}
	return map[string]any{"postgresURL": postgresURL + "&application_name=" + applicationName(t)}
}

// held is the resources that a process can leak.
type held struct{ goroutines, threads, connections int }

func count(t testing.TB) held {
	return held{
		goroutines:  runtime.NumGoroutine(),
		threads:     procStatus(t, "Threads:"),
		connections: sql(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name = '"+applicationName(t)+"'"),
	}
}

// procStatus is a number of /proc/self/status: threads, or kilobytes.
func procStatus(t testing.TB, field string) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for _, line := range strings.Split(string(status), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			n, err := strconv.Atoi(f[1])
			must(t, err)
			return n
		}
	}
	t.Fatalf("no %s in /proc/self/status", field)
	return 0
}

// eventually waits until there are no complaints.
func eventually(t testing.TB, what string, complaint func() string) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		last := complaint()
		if last == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so: %s", what, last)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// turnstile is an aggregator that holds every read until it is opened.
type turnstile struct {
	url     string
	waiting atomic.Int64
	opened  chan struct{}
}

func newTurnstile(t testing.TB) *turnstile {
	target, err := url.Parse(walrusURL)
	must(t, err)
	ts := &turnstile{opened: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ts.waiting.Add(1)
		defer ts.waiting.Add(-1)
		select {
		case <-ts.opened:
			proxy.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	ts.url = server.URL
	return ts
}

// equal compares what was read with what was written.
func equal(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: other bytes: %d, expected %d", what, len(got), len(want))
	}
}
