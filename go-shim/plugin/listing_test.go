package plugin

import (
	"context"
	"testing"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/mount"
	"github.com/ipfs/go-datastore/namespace"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/ipfs/kubo/plugin"
)

// A row that some other program wrote must not end the process when Kubo lists its blocks.
func TestListingsLeaveOutKeysThatKuboCannotHave(t *testing.T) {
	params := map[string]any{
		"type": "walrusds", "publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1",
		"indexPath": "index.sqlite", "journalPath": "journal", "drainPartialPacks": false,
	}
	config, err := Plugins[0].(plugin.PluginDatastore).DatastoreConfigParser()(params)
	if err != nil {
		t.Fatal(err)
	}
	d, err := config.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	keys := []ds.Key{{}, ds.NewKey("/"), ds.RawKey("//x"), ds.RawKey("/a/.."), ds.RawKey("/a/./b"), ds.NewKey("/CIQA"), ds.NewKey("/a b!")}
	for _, key := range keys {
		if err := d.Put(ctx, key, []byte("v")); err != nil {
			t.Fatalf("%q: %v", key, err)
		}
	}
	below := mount.New([]mount.Mount{{Prefix: ds.NewKey("/blocks"), Datastore: d}})
	blocks := namespace.Wrap(below, ds.NewKey("/blocks"))
	results, err := blocks.Query(ctx, dsq.Query{KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := results.Rest()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]bool)
	for _, e := range entries {
		got[e.Key] = true
	}
	if len(got) != 2 || !got["/CIQA"] || !got["/a b!"] {
		t.Errorf("%v", got)
	}
	// What Kubo asks of the datastore beyond the listing is still there.
	if _, ok := d.(ds.PersistentDatastore); !ok {
		t.Error("no disk usage")
	}
	if _, ok := d.(ds.GCDatastore); !ok {
		t.Error("no collection of garbage")
	}
}
