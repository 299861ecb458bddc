// Package conformance holds walrusds to the contract of go-datastore: the suite of that project
// itself, and tests of our own on top, through the Go shim, on a local Walrus, on both kinds of
// index.
//
// `make conformance` builds what is needed and starts the servers. Each test runs with the lowest
// and the newest go-datastore that Kubo uses (go.mod and datastore_v0.9.mod).
package conformance

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	walrusds "github.com/walrusds/walrusds/go-shim"
)

var (
	walrusURL   = os.Getenv("WALRUSDS_TEST_WALRUS_URL")
	postgresURL = os.Getenv("WALRUSDS_TEST_POSTGRES_URL")
)

func TestMain(m *testing.M) {
	if walrusURL == "" || postgresURL == "" {
		fmt.Fprintln(os.Stderr, "set WALRUSDS_TEST_WALRUS_URL and WALRUSDS_TEST_POSTGRES_URL, or run `make conformance`")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// index is one of the two kinds of index a datastore can have.
type index string

const (
	sqlite   index = "sqlite"
	postgres index = "postgres"
)

// onEachIndex runs a test on both.
func onEachIndex(t *testing.T, test func(*testing.T, index)) {
	for _, index := range []index{sqlite, postgres} {
		t.Run(string(index), func(t *testing.T) { test(t, index) })
	}
}

// journalled makes a datastore write to a journal, and what is in it travel soon: in the middle of
// a test some values are in the journal, and some on Walrus or in the read cache. Close leaves the
// rest to the next open.
var journalled = map[string]any{
	"journalPath": "journal", "cachePath": "cache", "packIdleFlushSeconds": 1, "packMaxAgeSeconds": 1, "drainTimeoutSeconds": 0,
}

// onEachStore runs a test on both kinds of index, without a write journal and with one: the test
// adds changes to the datastore's description.
func onEachStore(t *testing.T, test func(t *testing.T, index index, changes map[string]any)) {
	for _, index := range []index{sqlite, postgres} {
		t.Run(string(index), func(t *testing.T) { test(t, index, nil) })
		t.Run(string(index)+"_journal", func(t *testing.T) { test(t, index, journalled) })
	}
}

var tables atomic.Int64

// spec describes a new, empty datastore; changes are keys to add to it.
func spec(i index, changes ...map[string]any) map[string]any {
	s := map[string]any{
		"publisherURL":  walrusURL,
		"aggregatorURL": walrusURL,
		"table":         fmt.Sprintf("conformance_%d_%d", os.Getpid(), tables.Add(1)),
	}
	if i == postgres {
		s["postgresURL"] = postgresURL
	} else {
		s["indexPath"] = "index.sqlite"
	}
	for _, c := range changes {
		for k, v := range c {
			s[k] = v
		}
	}
	return s
}

// open opens a new, empty datastore, to be closed at the end of the test.
func open(t testing.TB, i index, changes ...map[string]any) *walrusds.Datastore {
	t.Helper()
	return openSpec(t, spec(i, changes...), t.TempDir())
}

func openSpec(t testing.TB, s map[string]any, dir string) *walrusds.Datastore {
	t.Helper()
	d, err := walrusds.Open(s, dir)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
