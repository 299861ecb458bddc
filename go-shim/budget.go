package walrusds

import (
	linked "container/list"
	"context"
	"sync"
)

// budget bounds the sum of what is under way. Who comes first is served first, so that something large
// is not overtaken for ever.
type budget struct {
	mu      sync.Mutex
	left    int
	total   int
	waiting linked.List // of *claim
}

type claim struct {
	size    int
	granted chan struct{}
}

func newBudget(total int) *budget { return &budget{left: total, total: total} }

// enter takes size out of the budget, waiting for as long as it must, and returns what to give back:
// what is larger than everything gets everything.
func (b *budget) enter(ctx context.Context, closing <-chan struct{}, size int) (int, error) {
	size = min(size, b.total)
	b.mu.Lock()
	if b.waiting.Len() == 0 && b.left >= size {
		b.left -= size
		b.mu.Unlock()
		return size, nil
	}
	c := &claim{size, make(chan struct{})}
	place := b.waiting.PushBack(c)
	b.mu.Unlock()

	var err error
	select {
	case <-c.granted:
		return size, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-closing:
		err = ErrClosed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-c.granted: // at the same moment
		b.left += size
	default:
		b.waiting.Remove(place)
	}
	b.grant()
	return 0, err
}

func (b *budget) leave(size int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += size
	b.grant()
}

// grant serves whoever is first for as long as that is possible; b.mu is held.
func (b *budget) grant() {
	for first := b.waiting.Front(); first != nil; first = b.waiting.Front() {
		c := first.Value.(*claim)
		if c.size > b.left {
			return
		}
		b.left -= c.size
		b.waiting.Remove(first)
		close(c.granted)
	}
}
