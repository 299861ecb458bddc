package walrusds

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// budget bounds the sum of the sizes under way. It serves callers in the order of their arrival, so
// that a large one is not overtaken for ever.
type budget struct {
	left  *semaphore.Weighted
	total int64
}

func newBudget(total int64) *budget { return &budget{semaphore.NewWeighted(total), total} }

// enter takes size out of the budget, waits for it if necessary, and returns the amount to give to
// leave: a size larger than the whole budget gets the whole budget.
func (b *budget) enter(ctx context.Context, closing <-chan struct{}, size int) (int64, error) {
	n := min(int64(size), b.total)
	if b.left.TryAcquire(n) {
		return n, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-closing:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	}()
	if err := b.left.Acquire(ctx, n); err != nil {
		return 0, context.Cause(ctx)
	}
	return n, nil
}

func (b *budget) leave(n int64) { b.left.Release(n) }
