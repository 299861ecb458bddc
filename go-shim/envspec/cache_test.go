package envspec

import (
	"path/filepath"
	"testing"
)

func TestTheCacheFitsTheDisk(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		free, journal uint64
		want          int64
	}{
		{0, 0, 0},
		{4 * gib, 4 * gib, 0},
		{6*gib - 4, 4 * gib, 0},
		{6 * gib, 4 * gib, gib / 2},
		{44*gib + 5, 4 * gib, 10 * gib},
		{2 * gib, 0, gib / 2},
		{1000 * gib, 4 * gib, 32 * gib},
	} {
		if got := cacheBytes(c.free, c.journal); got != c.want {
			t.Errorf("%d free, %d for the journal: %d, want %d", c.free, c.journal, got, c.want)
		}
	}
}

func TestTheCacheIsOnUnlessItIsOff(t *testing.T) {
	const gib = int64(1 << 30)
	for _, c := range []struct {
		env         []string
		free        uint64
		path, bytes any
		at          string // where the free space is looked up
	}{
		{nil, 44 << 30, DefaultCachePath, 10 * gib, "/repo/walrusds-cache"},
		{nil, 5 << 30, nil, nil, "/repo/walrusds-cache"},
		{[]string{"WALRUSDS_CACHE_PATH=off"}, 44 << 30, nil, nil, ""},
		{[]string{"WALRUSDS_CACHE_PATH=/big/c"}, 44 << 30, "/big/c", 10 * gib, "/big/c"},
		{[]string{"WALRUSDS_CACHE_PATH=c"}, 1 << 30, "c", gib / 2, "/repo/c"},
		{[]string{"WALRUSDS_CACHE_BYTES=7"}, 1 << 30, DefaultCachePath, int64(7), ""},
		{[]string{"WALRUSDS_JOURNAL_PATH=off"}, 40 << 30, DefaultCachePath, 10 * gib, "/repo/walrusds-cache"},
		{[]string{"WALRUSDS_JOURNAL_MAX_BYTES=1073741824"}, 41 << 30, DefaultCachePath, 10 * gib, "/repo/walrusds-cache"},
		// On the file system of the journal, so that its files can move over.
		{[]string{"WALRUSDS_JOURNAL_PATH=/fast/journal/"}, 44 << 30, "/fast/journal-cache", 10 * gib, "/fast/journal-cache"},
	} {
		v, err := Parse(append(c.env, urls...))
		if err != nil {
			t.Fatal(err)
		}
		var at string
		spec, err := v.newSpec("/repo", func(path string) uint64 {
			at = path
			return c.free
		})
		if err != nil || spec["cachePath"] != c.path || spec["cacheBytes"] != c.bytes || at != c.at {
			t.Errorf("%v: %v, %v, looked at %q", c.env, spec, err, at)
		}
	}
	old := map[string]any{"type": "walrusds", "publisherURL": "http://p", "aggregatorURL": "http://a", "indexPath": "i", "cachePath": "c"}
	v, err := Parse([]string{"WALRUSDS_CACHE_PATH=off"})
	if err != nil {
		t.Fatal(err)
	}
	if spec, err := v.Update(old); err != nil || spec["cachePath"] != nil {
		t.Errorf("%v, %v", spec, err)
	}
	delete(old, "cachePath")
	v, _ = Parse(nil)
	if spec, err := v.Update(old); err != nil || spec["cachePath"] != nil {
		t.Errorf("an existing repo got a cache unasked: %v, %v", spec, err)
	}
}

func TestFreeSpaceIsThatOfTheNearestDirectory(t *testing.T) {
	dir := t.TempDir()
	if freeAt(dir) == 0 {
		t.Skip("the disk of the tests is full")
	}
	if freeAt(filepath.Join(dir, "not", "there", "yet")) == 0 {
		t.Error("nothing is free where a directory will be made")
	}
}
