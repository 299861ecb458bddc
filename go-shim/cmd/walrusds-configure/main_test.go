package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const config = `{
  "Identity": {"PeerID": "12D3", "PrivKey": "CA<&>ES"},
  "Addresses": {"Swarm": ["/ip4/0.0.0.0/tcp/4001"]},
  "Datastore": {
    "StorageMax": "10GB", "StorageGCWatermark": 90, "BloomFilterSize": 123456789012345678,
    "Spec": {"type": "mount", "mounts": [
      {"mountpoint": "/blocks", "type": "measure", "prefix": "walrusds.datastore", "child":
        {"type": "walrusds", "publisherURL": "http://p", "aggregatorURL": "http://a", "postgresURL": "postgres://u:old@h/db", "epochs": 5}},
      {"mountpoint": "/", "type": "levelds", "path": "datastore"}]}
  }
}`

func repo(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "config"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSettingsAreReplaced(t *testing.T) {
	dir := repo(t, config)
	t.Setenv("WALRUSDS_POSTGRES_URL", "postgres://u:new@h/db")
	t.Setenv("WALRUSDS_EPOCHS", "7")
	if err := run(dir, true, false); err != nil || read(t, dir) != config {
		t.Fatalf("-check: %v", err)
	}
	if err := run(dir, false, false); err != nil {
		t.Fatal(err)
	}
	got := read(t, dir)
	for _, want := range []string{`"postgres://u:new@h/db"`, `"epochs": 7`, `"CA<&>ES"`, "123456789012345678", `"levelds"`, `"/blocks"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") || !json.Valid([]byte(got)) {
		t.Error(got)
	}
	info, _ := os.Stat(filepath.Join(dir, "config"))
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if err := run(dir, false, false); err != nil || read(t, dir) != got {
		t.Errorf("a second run changed something: %v", err)
	}
}

func TestSameIdentityInOtherWordsIsNoChangeOfData(t *testing.T) {
	dir := repo(t, config)
	t.Setenv("WALRUSDS_PUBLISHER_URL", " http://p ,")
	t.Setenv("WALRUSDS_TABLE", "walrus_index")
	if err := run(dir, false, false); err != nil {
		t.Error(err)
	}
}

func TestOtherDataIsRefused(t *testing.T) {
	dir := repo(t, config)
	t.Setenv("WALRUSDS_TABLE", "other")
	t.Setenv("WALRUSDS_POSTGRES_URL", "postgres://u:hunter2@h/db")
	err := run(dir, false, false)
	if err == nil || !strings.Contains(err.Error(), `table is "walrus_index" in the repo and "other" in WALRUSDS_TABLE`) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
	if read(t, dir) != config {
		t.Error("changed all the same")
	}
}

func TestRepoWithoutWalrusds(t *testing.T) {
	dir := repo(t, `{"Datastore": {"Spec": {"type": "levelds", "path": "d"}}}`)
	if err := run(dir, false, false); err == nil || !strings.Contains(err.Error(), "no walrusds datastore") {
		t.Errorf("%v", err)
	}
	if err := run(t.TempDir(), false, false); err == nil {
		t.Error("no config, no error")
	}
	if err := run(repo(t, "{"), false, false); err == nil {
		t.Error("broken config, no error")
	}
}

func TestAJournalThatHoldsBlocksIsNotLeft(t *testing.T) {
	dir := repo(t, strings.Replace(config, `"epochs": 5`, `"epochs": 5, "journalPath": "j"`, 1))
	journal := filepath.Join(dir, "j")
	if err := os.Mkdir(journal, 0o700); err != nil {
		t.Fatal(err)
	}
	segment := filepath.Join(journal, "0000000000000001.segment")
	if err := os.WriteFile(segment, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WALRUSDS_JOURNAL_PATH", "off")
	before := read(t, dir)
	if err := run(dir, false, false); err == nil || !strings.Contains(err.Error(), journal) || read(t, dir) != before {
		t.Errorf("%v", err)
	}
	if err := os.Remove(segment); err != nil {
		t.Fatal(err)
	}
	if err := run(dir, false, false); err != nil || strings.Contains(read(t, dir), "journalPath") {
		t.Errorf("%v: %s", err, read(t, dir))
	}
}

// A node on a new and empty index would find none of its blocks, and renew none of their blobs.
func TestAnotherIndexIsRefusedUntilItIsWanted(t *testing.T) {
	sqlite := strings.Replace(config, `"postgresURL": "postgres://u:old@h/db"`, `"indexPath": "a.sqlite"`, 1)
	touch := func(names ...string) func(string) {
		return func(dir string) {
			for _, name := range names {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, c := range map[string]struct {
		config, variable, value string
		files                   func(string)
		refused                 []string
	}{
		"another file":           {sqlite, "INDEX_PATH", "b.sqlite", touch("a.sqlite"), []string{"a.sqlite", "b.sqlite", "-other-index"}},
		"another file, copied":   {sqlite, "INDEX_PATH", "b.sqlite", touch("a.sqlite", "b.sqlite"), nil},
		"another file, moved":    {sqlite, "INDEX_PATH", "b.sqlite", touch("b.sqlite"), nil},
		"never used":             {sqlite, "INDEX_PATH", "b.sqlite", touch(), nil},
		"the same file":          {sqlite, "INDEX_PATH", "./a.sqlite", touch("a.sqlite"), nil},
		"a database":             {sqlite, "POSTGRES_URL", "postgres://u:hunter2@h/db", touch("a.sqlite"), []string{"a.sqlite", `"db"`}},
		"a file":                 {config, "INDEX_PATH", "b.sqlite", touch(), []string{`"db"`, "b.sqlite"}},
		"a file, copied":         {config, "INDEX_PATH", "b.sqlite", touch("b.sqlite"), nil},
		"another database":       {config, "POSTGRES_URL", "postgres://u:hunter2@h/other", touch(), []string{`"db"`, `"other"`}},
		"another host and user":  {config, "POSTGRES_URL", "postgres://v:hunter2@i:5433/db?sslmode=require", touch(), nil},
		"keywords":               {config, "POSTGRES_URL", "host=i user=v password=hunter2 dbname=db", touch(), nil},
		"other keywords":         {config, "POSTGRES_URL", "host=i user=v password=hunter2 dbname=other", touch(), []string{`"db"`, `"other"`}},
		"a socket":               {config, "POSTGRES_URL", "postgres://v:hunter2@%2Frun%2Fpg/db", touch(), nil},
		"another one's socket":   {config, "POSTGRES_URL", "postgres://v:hunter2@%2Frun%2Fpg/other", touch(), []string{`"other"`}},
		"the name in parameters": {config, "POSTGRES_URL", "postgres://v:hunter2@i/?dbname=db", touch(), nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := repo(t, c.config)
			c.files(dir)
			t.Setenv("WALRUSDS_"+c.variable, c.value)
			if c.refused == nil {
				if err := run(dir, false, false); err != nil || !strings.Contains(read(t, dir), c.value) {
					t.Fatalf("%v: %s", err, read(t, dir))
				}
				return
			}
			for _, check := range []bool{true, false} {
				err := run(dir, check, false)
				if err == nil || read(t, dir) != c.config {
					t.Fatalf("%v: %s", err, read(t, dir))
				}
				for _, part := range c.refused {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("no %s in: %v", part, err)
					}
				}
				if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "old@") {
					t.Error(err)
				}
			}
			if err := run(dir, false, true); err != nil || !strings.Contains(read(t, dir), c.value) {
				t.Fatalf("%v: %s", err, read(t, dir))
			}
			// It is the index of the repo from now on.
			if err := run(dir, false, false); err != nil {
				t.Fatal(err)
			}
		})
	}
}
