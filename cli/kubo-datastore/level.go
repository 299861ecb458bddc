package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	ds "github.com/ipfs/go-datastore"
	leveldb "github.com/ipfs/go-ds-leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

type levelStore struct{ *leveldb.Datastore }

func openLevel(l leaf, o options) (store, error) {
	path, err := l.path()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(path, "CURRENT")); errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("there is no file CURRENT in this directory: it is no LevelDB, or a damaged one")
	}
	opened, err := leveldb.NewDatastore(path, &leveldb.Options{
		ReadOnly:       !o.recover,
		ErrorIfMissing: true,
	})
	switch {
	case anyOf(err, syscall.EAGAIN, syscall.EWOULDBLOCK):
		return nil, inUse(err)
	case err != nil:
		return nil, err
	}
	return levelStore{opened}, nil
}

// stream goes through the tables once: a key and its block lie side by side. (The library's own
// queries end without an error at a table that is damaged.)
func (s levelStore) stream(ctx context.Context, prefix ds.Key, _ int, out *stream) error {
	entries := s.DB.NewIterator(util.BytesPrefix([]byte(within(prefix))), nil)
	defer entries.Release()
	for entries.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := out.block(string(entries.Key()), entries.Value()); err != nil {
			return err
		}
	}
	return entries.Error()
}
