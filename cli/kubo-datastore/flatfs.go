package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	ds "github.com/ipfs/go-datastore"
	flatfs "github.com/ipfs/go-ds-flatfs"
)

// The files of blocks, and the letters of keys that go-ds-flatfs takes.
const (
	extension  = ".data"
	keyLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ+-_="
)

// A flatStore reads the files by itself: flatfs.Open removes the directory .temp, and with it the
// blocks that a daemon is writing, and writes a note of the size. A file of a block is complete as
// soon as it has its name.
type flatStore struct {
	path  string
	shard flatfs.ShardFunc
}

func openFlatfs(l leaf, _ options) (store, error) {
	path, err := l.path()
	if err != nil {
		return nil, err
	}
	found, err := flatfs.ReadShardFunc(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, flatfs.ErrShardingFileMissing) {
		return nil, fmt.Errorf("there is no file %s: it is no flatfs, or a damaged one", filepath.Join(path, flatfs.SHARDING_FN))
	} else if err != nil {
		return nil, err
	}
	if given, ok := l.spec["shardFunc"].(string); ok {
		expected, err := flatfs.ParseShardFunc(given)
		if err != nil {
			return nil, fmt.Errorf(`"shardFunc": %q found: %w`, given, err)
		}
		if expected.String() != found.String() {
			return nil, fmt.Errorf(`"shardFunc": %q found, %q expected, as the directory has it`, expected, found)
		}
	}
	return flatStore{path, found.Func()}, nil
}

// walk names the keys of all files of blocks, behind symbolic links, too. A directory that is
// removed meanwhile has none.
func (s flatStore) walk(ctx context.Context, found func(string) error) error {
	shards, err := os.ReadDir(s.path)
	if err != nil {
		return err
	}
	for _, shard := range shards {
		if strings.HasPrefix(shard.Name(), ".") {
			continue
		}
		path := filepath.Join(s.path, shard.Name())
		if info, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && !isLink(shard) {
			continue
		} else if err != nil {
			return err
		} else if !info.IsDir() {
			continue
		}
		if err := s.walkShard(ctx, path, found); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// walkShard names the keys of one directory. Its names are read in pieces: it may hold millions.
func (s flatStore) walkShard(ctx context.Context, path string, found func(string) error) error {
	dir, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer dir.Close()
	for ctx.Err() == nil {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			key, ok := strings.CutSuffix(name, extension)
			if !ok || strings.HasPrefix(name, ".") {
				continue
			}
			if err := found("/" + key); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// get reads a block from where flatfs looks for its key.
func (s flatStore) get(key string) ([]byte, error) {
	name := strings.TrimPrefix(key, "/")
	if name == "" || strings.Trim(name, keyLetters) != "" {
		return nil, fmt.Errorf("flatfs gives no key with other letters than %s: %w", keyLetters, ds.ErrNotFound)
	}
	path := filepath.Join(s.path, s.shard(name), name+extension)
	value, err := os.ReadFile(path)
	if !errors.Is(err, os.ErrNotExist) {
		return value, err
	}
	if info, linked := os.Lstat(path); linked == nil && info.Mode()&os.ModeSymlink != 0 {
		return nil, fmt.Errorf("%s is a symbolic link that leads to nothing", path)
	}
	return nil, ds.ErrNotFound
}

func (s flatStore) stream(ctx context.Context, _ ds.Key, readers int, out *stream) error {
	return fetch(ctx, readers, out, s.walk, func(_ context.Context, key string) ([]byte, error) {
		return s.get(key)
	})
}

func (flatStore) Close() error { return nil }

func isLink(entry os.DirEntry) bool { return entry.Type()&os.ModeSymlink != 0 }
