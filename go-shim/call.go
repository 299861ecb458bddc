package walrusds

import (
	"context"
	"time"
)

// How many calls of each class may be inside the engine at once, and so how many operating system
// threads this datastore can occupy: 352 at the very most. Go's own limit is 10,000.
//
//   - lookups (Has, GetSize, Delete) wait for one round trip to the index; the engine pipelines them
//     on one connection, so that more of them at once would gain nothing;
//   - reads (Get) and writes (Put, Commit, Sync) wait for HTTP: as many as the engine's default
//     number of parallel uploads (100), with room for those waiting on the index;
//   - queries (opening, a page, DiskUsage) hold a database connection each while they run (32 by
//     default). An open query that nobody reads does not count.
const (
	gateLookups = 64
	gateReads   = 128
	gateWrites  = 128
	gateQueries = 32
)

type gate chan struct{}

// call is one passage into the engine: the gate it holds and how it ends early.
type call struct {
	gate  gate
	token cancelToken
	stop  func() bool
	opts  callOptions
}

// begin admits a call, or says why it must not start. A nil error obliges to call end.
func (d *Datastore) begin(ctx context.Context, g gate) (call, error) {
	if err := ctx.Err(); err != nil {
		return call{}, err
	}
	select {
	case <-d.closing:
		return call{}, ErrClosed
	default:
	}
	select {
	case g <- struct{}{}:
	default:
		select {
		case g <- struct{}{}:
		case <-ctx.Done():
			return call{}, ctx.Err()
		case <-d.closing:
			return call{}, ErrClosed
		}
	}
	c := call{gate: g}
	if err := c.watch(ctx); err != nil {
		<-g
		return call{}, err
	}
	return c, nil
}

// watch hands the context over to the engine: its deadline as a timeout, its end as a cancel token.
func (c *call) watch(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if left <= 0 {
			return context.DeadlineExceeded
		}
		c.opts.timeoutMS = uint64((left + time.Millisecond - 1) / time.Millisecond)
	}
	if ctx.Done() == nil {
		return nil
	}
	token, err := newCancelToken()
	if err != nil {
		return err
	}
	c.token, c.opts.token = token, token
	c.stop = context.AfterFunc(ctx, token.cancel)
	return nil
}

// end releases what begin took. A cancel that is just under way may reach the engine after the
// token is freed: tokens are numbers that are not used twice, so this does nothing.
func (c *call) end() {
	if c.stop != nil {
		c.stop()
		c.token.free()
	}
	if c.gate != nil {
		<-c.gate
	}
}
