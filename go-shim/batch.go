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
	if err := d.usable(ctx); err != nil {
		return nil, err
	}
	return &batch{d: d}, nil
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
	if err := b.d.write(ctx, b.ops); err != nil {
		return err
	}
	b.ops, b.at = nil, nil
	return nil
}

// opBytes is what an operation takes beside its key and value.
const opBytes = 128

// write applies operations in one call. The engine copies their values before it waits for
// anything, so that they are the caller's again on return, with or without an error.
func (d *Datastore) write(ctx context.Context, ops []op) (err error) {
	if err := d.usable(ctx); err != nil || len(ops) == 0 {
		return err
	}
	size := 0
	for i := range ops {
		size += opBytes + len(ops[i].key) + len(ops[i].value)
	}
	ctx, span := startSpan(ctx, operation(ops))
	if span != nil {
		defer func() { endSpan(span, err, opsOf(len(ops)), bytesOf(size)) }()
	}
	taken, err := d.writes.enter(ctx, d.closing, size)
	if err != nil {
		return err
	}
	defer d.writes.leave(taken)

	if !d.direct.tryEnter() {
		_, err = d.run(ctx, func(o callOptions, q queueID, tag uint64) (completion, bool, error) {
			done, err := d.eng.commitStart(o, ops, q, tag)
			return completion{}, done, err
		})
		return contextual(ctx, err)
	}
	defer d.direct.leave()
	c, err := d.watch(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	switch {
	case len(ops) > 1:
		err = d.eng.commit(c.opts, ops)
	case ops[0].delete:
		err = d.eng.delete(c.opts, ops[0].key)
	default:
		err = d.eng.put(c.opts, ops[0].key, ops[0].value)
	}
	return contextual(ctx, err)
}
