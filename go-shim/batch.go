package walrusds

import (
	"context"
	"sync"

	ds "github.com/ipfs/go-datastore"
)

// batch gathers operations in the order they came in, one per key: the last one on a key wins, in
// the place of the first. The order matters, as blocks that are written together are read together.
//
// As with every go-datastore batch, a value handed to Put must not be changed until Commit has
// returned. Commit is one call into the engine and copies no value; afterwards the batch holds
// nothing and may be used anew, so that a second Commit does nothing. When Commit fails the
// operations stay, and Commit may be called again: they are idempotent.
type batch struct {
	d *Datastore

	mu  sync.Mutex
	ops []op
	at  map[ds.Key]int
}

type op struct {
	key    string
	value  []byte
	delete bool
}

var _ ds.Batch = (*batch)(nil)

// Batch starts a batch. It costs nothing until it is committed.
func (d *Datastore) Batch(ctx context.Context) (ds.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-d.closing:
		return nil, ErrClosed
	default:
		return &batch{d: d}, nil
	}
}

func (b *batch) Put(ctx context.Context, key ds.Key, value []byte) error {
	return b.add(ctx, key, op{key: key.String(), value: value})
}

func (b *batch) Delete(ctx context.Context, key ds.Key) error {
	return b.add(ctx, key, op{key: key.String(), delete: true})
}

func (b *batch) add(ctx context.Context, key ds.Key, o op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i, ok := b.at[key]; ok {
		b.ops[i] = o
		return nil
	}
	if b.at == nil {
		b.at = make(map[ds.Key]int)
	}
	b.at[key] = len(b.ops)
	b.ops = append(b.ops, o)
	return nil
}

// Commit applies the operations.
func (b *batch) Commit(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.d.begin(ctx, b.d.writes)
	if err != nil {
		return err
	}
	defer c.end()
	if len(b.ops) == 0 {
		return nil
	}
	if err := b.d.eng.commit(c.opts, b.ops); err != nil {
		return contextual(ctx, err)
	}
	b.ops, b.at = nil, nil
	return nil
}
