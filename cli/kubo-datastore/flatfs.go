package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	flatfs "github.com/ipfs/go-ds-flatfs"
)

type flatStore struct{ *flatfs.Datastore }

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
	opened, err := flatfs.Open(path, false)
	if err != nil {
		return nil, err
	}
	return flatStore{opened}, nil
}

func (s flatStore) stream(ctx context.Context, _ ds.Key, readers int, out *stream) error {
	return fetch(ctx, readers, out, func(ctx context.Context, found func(string) error) error {
		results, err := s.Query(ctx, query.Query{KeysOnly: true})
		if err != nil {
			return err
		}
		defer results.Close()
		for result := range results.Next() {
			if result.Error != nil {
				return result.Error
			}
			if err := found(result.Key); err != nil {
				return err
			}
		}
		return ctx.Err()
	}, func(ctx context.Context, key string) ([]byte, error) {
		return s.Get(ctx, ds.RawKey(key))
	})
}
