package main

import (
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// files of a datastore whose names end so, in order.
func files(t *testing.T, repo, suffix string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(repo, "store", "*"+suffix))
	check(t, err)
	if len(found) == 0 {
		t.Fatalf("no file *%s", suffix)
	}
	sort.Strings(found)
	return found
}

// flip changes a byte in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	check(t, err)
	data[len(data)/2] ^= 0x40
	check(t, os.WriteFile(path, data, 0o600))
}

// A damaged table must not look like one that ends earlier.
func TestADamagedTableIsAnError(t *testing.T) {
	small := blocks()
	for key, value := range small {
		if len(value) > 3000 {
			delete(small, key) // Pebble looks for the bit that has changed, which takes long in these
		}
	}
	for _, c := range []struct {
		kind                     kind
		suffix, damaged, missing string
	}{
		{kinds[1], ".ldb", "corrupt", "no such file"},
		{kinds[2], ".sst", "it is damaged, and blocks would be missing: CHECKSUM_MISMATCH", "does not exist"},
		{kinds[3], ".sst", "checksum mismatch", "does not exist"},
	} {
		makeTables := func() (repo, table string) {
			repo = makeRepo(t, c.kind, small)
			// What is in a log comes into tables when the datastore is opened to write.
			check(t, c.kind.make(t, filepath.Join(repo, "store")).Close())
			return repo, files(t, repo, c.suffix)[0]
		}
		t.Run(c.kind.name, func(t *testing.T) {
			repo, table := makeTables()
			flip(t, table)
			r := runWith(t, "", "--repo", repo)
			if r.code != exitError || !strings.Contains(r.stderr, c.damaged) {
				t.Errorf("%d %s", r.code, r.stderr)
			}
		})
		t.Run(c.kind.name+", a missing table", func(t *testing.T) {
			repo, table := makeTables()
			check(t, os.Remove(table))
			r := runWith(t, "", "--repo", repo)
			if r.code != exitError || !strings.Contains(r.stderr, c.missing) {
				t.Errorf("%d %s", r.code, r.stderr)
			}
		})
	}
}

func TestABlockThatCannotBeReadIsNamedAndTheOthersAreRead(t *testing.T) {
	all := blocks()
	repo := makeRepo(t, kinds[0], all)
	var lost string
	for key := range all {
		lost = key
		break
	}
	// A directory where the file of a block should be.
	name := strings.TrimPrefix(lost, "/")
	file := filepath.Join(repo, "store", name[len(name)-3:len(name)-1], name+".data")
	check(t, os.Remove(file))
	check(t, os.Mkdir(file, 0o755))
	r := runWith(t, "", "--repo", repo)
	if r.code != exitUnreadable || !strings.Contains(r.stderr, lost+": it cannot be read") ||
		!strings.Contains(r.stderr, "1 blocks cannot be read; the other 399 were") {
		t.Errorf("%d %s", r.code, r.stderr)
	}
	delete(all, lost)
	same(t, r.blocks, all)
}

func TestABadgerThatWasNotClosedNeedsRecovery(t *testing.T) {
	all := blocks()
	repo := makeRepo(t, kinds[2], all)
	// A crash leaves an unfinished write at the end of the newest value log.
	logs := files(t, repo, ".vlog")
	log, err := os.OpenFile(logs[len(logs)-1], os.O_WRONLY|os.O_APPEND, 0)
	check(t, err)
	_, err = log.Write(make([]byte, 1000))
	check(t, err)
	check(t, log.Close())
	r := runWith(t, "", "--repo", repo)
	if r.code != exitError || !strings.Contains(r.stderr, "ipfs repo stat") || !strings.Contains(r.stderr, "--recover") {
		t.Fatalf("%d %s", r.code, r.stderr)
	}
	r = runWith(t, "", "--repo", repo, "--recover")
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	same(t, r.blocks, all)
	same(t, runWith(t, "", "--repo", repo).blocks, all)
}
