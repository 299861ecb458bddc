package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/dgraph-io/badger"
	ds "github.com/ipfs/go-datastore"
	badgerds "github.com/ipfs/go-ds-badger"
)

type badgerStore struct{ db *badger.DB }

// openBadger opens Badger 1 with the options of go-ds-badger. It opens the database itself, because
// the only sign of a table that is damaged and therefore left out is a line of the log.
func openBadger(l leaf, o options) (store, error) {
	path, err := l.path()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(path, badger.ManifestFilename)); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no file %s in this directory: it is no Badger 1 database, or a damaged one", badger.ManifestFilename)
	}
	var told badgerLog
	opts := badgerds.DefaultOptions.Options.WithLogger(&told).WithReadOnly(!o.recover)
	opts.Dir, opts.ValueDir = path, path
	db, err := badger.Open(opts)
	switch why := told.first(); {
	case why != "":
		if err == nil {
			_ = db.Close()
		}
		return nil, fmt.Errorf("it is damaged, and blocks would be missing: %s", why)
	case says(err, badger.ErrReplayNeeded.Error()), says(err, badger.ErrTruncateNeeded.Error()):
		return nil, needsRecovery(err)
	case says(err, "Cannot acquire directory lock"):
		return nil, inUse(err)
	case says(err, "manifest has unsupported version"):
		return nil, fmt.Errorf("Kubo's Badger 1 does not read this version: %w", err)
	case err != nil:
		return nil, err
	}
	return badgerStore{db}, nil
}

func (s badgerStore) Close() error { return s.db.Close() }

func (s badgerStore) stream(ctx context.Context, prefix ds.Key, readers int, out *stream) error {
	return fetch(ctx, readers, out, func(ctx context.Context, found func(string) error) error {
		return s.db.View(func(txn *badger.Txn) error {
			opts := badger.DefaultIteratorOptions
			opts.PrefetchValues = false
			opts.Prefix = []byte(within(prefix))
			entries := txn.NewIterator(opts)
			defer entries.Close()
			for entries.Rewind(); entries.Valid(); entries.Next() {
				if err := found(string(entries.Item().Key())); err != nil {
					return err
				}
			}
			return nil
		})
	}, func(_ context.Context, key string) (value []byte, err error) {
		err = s.db.View(func(txn *badger.Txn) error {
			item, err := txn.Get([]byte(key))
			if errors.Is(err, badger.ErrKeyNotFound) {
				return ds.ErrNotFound
			} else if err != nil {
				return err
			}
			value, err = item.ValueCopy(nil)
			return err
		})
		return value, err
	})
}

// badgerLog keeps the first error that Badger logs.
type badgerLog struct {
	mutex sync.Mutex
	line  string
}

func (l *badgerLog) Errorf(format string, args ...any) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.line == "" {
		l.line = strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	}
}

func (l *badgerLog) first() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.line
}

func (*badgerLog) Warningf(string, ...any) {}
func (*badgerLog) Infof(string, ...any)    {}
func (*badgerLog) Debugf(string, ...any)   {}
