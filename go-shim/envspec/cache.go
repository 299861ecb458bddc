package envspec

import (
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
)

// DefaultCachePath is the read cache of a node that names none and has its journal in the repo.
const DefaultCachePath = "walrusds-cache"

// CacheOff as the value of WALRUSDS_CACHE_PATH means a node without a read cache.
const CacheOff = "off"

const (
	// A read cache gets one part in so many of the space that is free beside a full journal,
	cacheShare = 4
	// at most so many bytes,
	cacheMost = 32 << 30
	// and it needs so many: a file of the journal takes at most a fourth of it.
	cacheLeast = 512 << 20
	// journalMaxBytes is the default of that key.
	journalMaxBytes = 4 << 30
)

// cache settles the read cache of a new repo: on, unless it is off or the disk has no room for it.
// Files of the journal become files of the cache only on one file system, so it lies in the repo,
// as the journal does, or beside a journal that lies elsewhere. free tells the bytes that are free
// where a path will be. (cli/src/verbs/init/cache.rs does the same.)
func cache(spec map[string]any, repo string, free func(path string) uint64) {
	if spec["cachePath"] == CacheOff {
		delete(spec, "cachePath")
		return
	}
	path, named := spec["cachePath"].(string)
	journal, _ := spec["journalPath"].(string)
	if !named {
		path = DefaultCachePath
		if journal != "" && journal != DefaultJournalPath {
			path = filepath.Clean(journal) + "-cache"
		}
	}
	if spec["cacheBytes"] == nil {
		full := uint64(0)
		if journal != "" {
			full = wholeNumber(spec["journalMaxBytes"], journalMaxBytes)
		}
		at := path
		if !filepath.IsAbs(at) {
			at = filepath.Join(repo, at)
		}
		bytes := cacheBytes(free(at), full)
		if bytes == 0 && !named {
			return
		}
		spec["cacheBytes"] = max(bytes, cacheLeast)
	}
	spec["cachePath"] = path
}

// cacheBytes returns the size of a cache where so many bytes are free and the journal may take some
// of them; 0 if there is no room for one.
func cacheBytes(free, journal uint64) int64 {
	if free <= journal {
		return 0
	}
	bytes := min((free-journal)/cacheShare, cacheMost)
	if bytes < cacheLeast {
		return 0
	}
	return int64(bytes >> 20 << 20)
}

func wholeNumber(value any, otherwise uint64) uint64 {
	switch n := value.(type) {
	case int64:
		return uint64(max(n, 0))
	case float64:
		return uint64(max(n, 0))
	case json.Number:
		if n, err := n.Int64(); err == nil {
			return uint64(max(n, 0))
		}
	}
	return otherwise
}

// freeAt returns the bytes that are free where a path is or will be; 0 if that cannot be told.
func freeAt(path string) uint64 {
	for {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			break
		}
		parent := filepath.Dir(path)
		if parent == path {
			return 0
		}
		path = parent
	}
	var stat syscall.Statfs_t
	if syscall.Statfs(path, &stat) != nil {
		return 0
	}
	return uint64(stat.Bavail) * uint64(stat.Bsize)
}
