package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"

	ds "github.com/ipfs/go-datastore"
)

// A store is an open datastore.
type store interface {
	// stream writes all blocks below prefix to out. A block that cannot be read is noted there, and
	// is no error; an error is whatever leaves it open which blocks there are.
	stream(ctx context.Context, prefix ds.Key, readers int, out *stream) error
	Close() error
}

// stores has what opens each type of datastore. A store is opened without changing what is on disk,
// unless the options ask for its recovery.
var stores = map[string]func(leaf, options) (store, error){
	"flatfs":   openFlatfs,
	"levelds":  openLevel,
	"badgerds": openBadger,
	"pebbleds": openPebble,
	"s3ds":     openS3,
}

// known names the types that can be read.
func known() string {
	var names []string
	for name := range stores {
		names = append(names, name)
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}

// elsewhere says how the blocks of other types are read.
var elsewhere = map[string]string{
	"walrusds": "walrusds import reads it by itself, from the table of its index",
	"mem":      "it keeps blocks in the memory of the daemon only",
}

func open(l leaf, o options) (store, error) {
	opener, ok := stores[l.kind]
	if ok {
		return opener(l, o)
	}
	if how, ok := elsewhere[l.kind]; ok {
		return nil, fmt.Errorf("this type is not read here: %s", how)
	}
	return nil, fmt.Errorf("this type is not known here; known are %s", known())
}

// needsRecovery is the error of a datastore that was not closed as it should be.
func needsRecovery(err error) error {
	return fmt.Errorf("it was not closed properly, and cannot be read without mending it: start and end the node once (ipfs repo stat will do), or give --recover, which opens it as Kubo does: %w", err)
}

// inUse is the error of a datastore that another program has open.
func inUse(err error) error {
	return lockedError("another program has it open: end that first: " + err.Error())
}

// anyOf tells whether an error is one of these.
func anyOf(err error, kinds ...error) bool {
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// says tells whether an error has this text: some libraries wrap errors so that nothing else tells.
func says(err error, text string) bool {
	return err != nil && strings.Contains(err.Error(), text)
}

// within is the first bytes that all keys below prefix have.
func within(prefix ds.Key) string {
	if prefix == ds.NewKey("/") {
		return "/"
	}
	return prefix.String() + "/"
}
