package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	ds "github.com/ipfs/go-datastore"
	pebbleds "github.com/ipfs/go-ds-pebble"
)

type pebbleStore struct{ db *pebble.DB }

func openPebble(l leaf, o options) (store, error) {
	path, err := l.path()
	if err != nil {
		return nil, err
	}
	switch is, err := pebble.Peek(path, vfs.Default); {
	case err != nil:
		return nil, err
	case !is.Exists:
		return nil, errors.New("there is no Pebble database in this directory")
	}
	// With ReadOnly the format on disk stays as old as it is.
	given := &pebble.Options{ReadOnly: !o.recover, ErrorIfNotExists: true, Logger: quiet{}}
	// Reads of a damaged table fail; by default they would end the program.
	given.EventListener = &pebble.EventListener{DataCorruption: func(pebble.DataCorruptionInfo) {}}
	opened, err := pebbleds.NewDatastore(path, pebbleds.WithPebbleOpts(given))
	switch {
	case anyOf(err, syscall.EAGAIN, syscall.EWOULDBLOCK, syscall.EACCES) || says(err, "lock held"):
		return nil, inUse(err)
	case err != nil:
		return nil, err
	}
	return pebbleStore{opened.DB}, nil
}

func (s pebbleStore) Close() error { return s.db.Close() }

// stream goes through the tables once: a key and its block lie side by side. (The library's own
// queries end without an error at a table that is damaged.)
func (s pebbleStore) stream(ctx context.Context, prefix ds.Key, _ int, out *stream) (err error) {
	first := []byte(within(prefix))
	end := append([]byte(nil), first...)
	end[len(end)-1]++ // the next byte after "/"
	entries, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: first, UpperBound: end})
	if err != nil {
		return err
	}
	defer func() {
		if closed := entries.Close(); closed != nil && err == nil {
			err = closed
		}
	}()
	for ok := entries.First(); ok; ok = entries.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		value, err := entries.ValueAndErr()
		if err != nil {
			return fmt.Errorf("%s: %w", entries.Key(), err)
		}
		if err := out.block(string(entries.Key()), value); err != nil {
			return err
		}
	}
	return entries.Error()
}

// quiet leaves out what Pebble tells about its work. A fatal line ends the program.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "error: %s: %s\n", filepath.Base(os.Args[0]), fmt.Sprintf(format, args...))
	os.Exit(exitError)
}
