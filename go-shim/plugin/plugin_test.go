package plugin

import (
	"reflect"
	"testing"

	"github.com/ipfs/kubo/config"
	"github.com/ipfs/kubo/plugin"
)

func TestPlugin(t *testing.T) {
	if len(Plugins) != 1 {
		t.Fatal("not one plugin")
	}
	p := Plugins[0].(plugin.PluginDatastore)
	if p.Name() != "walrus-datastore-plugin" || p.DatastoreTypeName() != "walrusds" {
		t.Error(p.Name(), p.DatastoreTypeName())
	}
	params := map[string]any{
		"type": "walrusds", "mountpoint": "/blocks", "publisherURL": "http://p/, http://q", "aggregatorURL": "http://a",
		"postgresURL": "postgres://u:hunter2@h/db",
	}
	c, err := p.DatastoreConfigParser()(params)
	if err != nil {
		t.Fatal(err)
	}
	spec := c.DiskSpec()
	if got, want := spec.String(), `{"aggregatorURL":"http://a","publisherURL":"http://p/,http://q","table":"walrus_index"}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	spec["mountpoint"] = "/blocks" // as Kubo does
	if len(c.DiskSpec()) != 3 {
		t.Error("the map is shared")
	}
	if _, err := p.DatastoreConfigParser()(map[string]any{"type": "walrusds"}); err == nil {
		t.Error("an empty specification is accepted")
	}
}

func TestProfile(t *testing.T) {
	if err := Plugins[0].Init(nil); err != nil {
		t.Fatal(err)
	}
	profile := config.Profiles[Profile]
	if !profile.InitOnly {
		t.Error("may be applied to a repo that exists")
	}
	t.Setenv("WALRUSDS_PUBLISHER_URL", "http://p")
	t.Setenv("WALRUSDS_AGGREGATOR_URL", "http://a")
	t.Setenv("WALRUSDS_CACHE_BYTES", "1000000000") // else what the disk has room for
	for _, before := range []map[string]any{
		config.DefaultDatastoreConfig().Spec,
		{"type": "badgerds", "path": "badgerds"},
		nil,
	} {
		c := &config.Config{}
		c.Datastore.Spec = before
		if err := profile.Transform(c); err != nil {
			t.Fatal(err)
		}
		mounts := c.Datastore.Spec["mounts"].([]any)
		blocks, root := mounts[0].(map[string]any), mounts[1].(map[string]any)
		want := map[string]any{
			"mountpoint": "/blocks", "type": "measure", "prefix": "walrusds.datastore",
			"child": map[string]any{"type": "walrusds", "publisherURL": "http://p", "aggregatorURL": "http://a", "indexPath": "walrusds-index.sqlite",
				"journalPath": "walrusds-journal", "drainPartialPacks": false,
				"cachePath": "walrusds-cache", "cacheBytes": int64(1000000000),
				"network": "mainnet", "epochs": int64(26), "renewIntervalSeconds": int64(3600), "keepDeletedSeconds": int64(604800)},
		}
		if !reflect.DeepEqual(blocks, want) || root["mountpoint"] != "/" || len(mounts) != 2 {
			t.Errorf("%v", mounts)
		}
	}
	t.Setenv("WALRUSDS_PUBLISHER_URL", "")
	c := &config.Config{}
	if err := profile.Transform(c); err == nil || c.Datastore.Spec != nil {
		t.Errorf("%v, %v", err, c.Datastore.Spec)
	}
}

func TestTheRepoIsThatOfTheCommand(t *testing.T) {
	t.Setenv("IPFS_PATH", "/usual")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"init", "--profile=walrusds"}, "/usual"},
		{[]string{"--repo-dir=/other", "init"}, "/other"},
		{[]string{"init", "--repo-dir", "/other"}, "/other"},
		{[]string{"init", "--", "--repo-dir=/no"}, "/usual"},
	} {
		if got := repoPath(c.args); got != c.want {
			t.Errorf("%v: %s", c.args, got)
		}
	}
}
