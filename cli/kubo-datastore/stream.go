package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
)

const magic = "WDSBLK1\n"

// endOfStream stands where the length of a key would.
const endOfStream = math.MaxUint32

// named is how many blocks that cannot be read are named; all are counted.
const named = 20

// An unreadableError says that the datastore knows blocks that it cannot give.
type unreadableError struct{ blocks, read uint64 }

func (e unreadableError) Error() string {
	return fmt.Sprintf("%d blocks cannot be read; the other %d were", e.blocks, e.read)
}

// A stream writes the blocks. Its methods may be called by several goroutines.
type stream struct {
	mutex  sync.Mutex
	out    *bufio.Writer
	stderr io.Writer
	prefix string
	// changing: others may remove blocks meanwhile.
	changing   bool
	count      uint64
	unreadable uint64
}

func newStream(out *bufio.Writer, stderr io.Writer, prefix ds.Key, changing bool) *stream {
	s := &stream{out: out, stderr: stderr, changing: changing}
	if prefix != ds.NewKey("/") {
		s.prefix = prefix.String()
	}
	return s
}

func (s *stream) begin() error {
	_, err := s.out.WriteString(magic)
	return err
}

// block writes a block. The value may be used again afterwards.
func (s *stream) block(key string, value []byte) error {
	name, ok := strings.CutPrefix(key, s.prefix)
	if !ok || !strings.HasPrefix(name, "/") {
		return fmt.Errorf("the datastore lists the key %q, which is not below %q", key, s.prefix)
	}
	if uint64(len(name)) >= endOfStream || uint64(len(value)) > math.MaxUint32 {
		return fmt.Errorf("%s: a block of %d bytes found, less than 4 GiB expected", key, len(value))
	}
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:4], uint32(len(name)))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(value)))
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, part := range [][]byte{head[:], []byte(name), value} {
		if _, err := s.out.Write(part); err != nil {
			return writing(err)
		}
	}
	s.count++
	return nil
}

// failed notes a block that cannot be read, and the stream goes on.
func (s *stream) failed(key string, err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.changing && errors.Is(err, ds.ErrNotFound) {
		return
	}
	s.unreadable++
	if s.unreadable <= named {
		fmt.Fprintf(s.stderr, "%s: it cannot be read: %v\n", key, err)
	}
}

func (s *stream) flush() error {
	return writing(s.out.Flush())
}

// end writes the end of the stream, unless blocks are missing in it.
func (s *stream) end() error {
	if s.unreadable > 0 {
		if err := s.flush(); err != nil {
			return err
		}
		return unreadableError{s.unreadable, s.count}
	}
	var end [12]byte
	binary.LittleEndian.PutUint32(end[:4], endOfStream)
	binary.LittleEndian.PutUint64(end[4:], s.count)
	if _, err := s.out.Write(end[:]); err != nil {
		return writing(err)
	}
	return s.flush()
}

func writing(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("standard output: %w", err)
}

// fetch lists keys, and has several goroutines get their values and write them. It holds one value
// for each reader in memory.
func fetch(
	ctx context.Context,
	readers int,
	out *stream,
	list func(ctx context.Context, found func(key string) error) error,
	get func(ctx context.Context, key string) ([]byte, error),
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	keys := make(chan string, readers)
	var group sync.WaitGroup
	for range readers {
		group.Add(1)
		go func() {
			defer group.Done()
			for key := range keys {
				value, err := get(ctx, key)
				switch {
				case ctx.Err() != nil:
					return
				case err != nil:
					out.failed(key, err)
				default:
					if err := out.block(key, value); err != nil {
						cancel(err)
						return
					}
				}
			}
		}()
	}
	err := list(ctx, func(key string) error {
		select {
		case keys <- key:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(keys)
	group.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
