package walrusds

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// The constants limit how many calls may be inside the engine at once, and how many of them hold an
// operating system thread while they wait: 35 at the very most, for any number of calling
// goroutines. All other goroutines wait in Go, which costs no thread.
//
//   - lookups (Has, GetSize) that memory does not answer travel together, in 1 or 2 questions at a
//     time (leadLookups, lookup.go);
//   - reads and writes hold a thread only while few do (direct). Those beyond are started, and wait
//     for a channel (queue.go). Starting and cancelling are short, but Go gives each C call a
//     thread that lasts, so few do so at once (startCalls). What bounds the calls is memory: values
//     that are read are as many as gateReads (the engine bounds the bytes of those that are on
//     their way to it), those that are written take at most writeBytes;
//   - queries (a page, DiskUsage) and Sync hold a thread each while they run. An open query without
//     a reader does not count.
const (
	directCalls = 8
	startCalls  = 4
	gateReads   = 512
	writeBytes  = 256 << 20
	gateQueries = 16
	gateSyncs   = 4
)

// leadLookups is how many questions may be under way. While a goroutine waits inside the engine,
// the processor that Go has given it is free again only when Go's monitor comes by and notices,
// which takes up to 10 ms. One processor is left out, so that the goroutines that wait for the
// answer can run meanwhile.
func leadLookups() int {
	return max(1, min(2, runtime.GOMAXPROCS(0)-1))
}

type gate chan struct{}

// enter waits for a place.
func (g gate) enter(ctx context.Context, closing <-chan struct{}) error {
	select {
	case g <- struct{}{}:
		return nil
	default:
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-closing:
		return ErrClosed
	}
}

func (g gate) tryEnter() bool {
	select {
	case g <- struct{}{}:
		return true
	default:
		return false
	}
}

func (g gate) leave() { <-g }

// usable returns the reason why no call may start, or nil.
func (d *Datastore) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-d.closing:
		return ErrClosed
	default:
		return nil
	}
}

// call is one passage into the engine that holds its thread: the gate it holds and how it ends
// early.
type call struct {
	d     *Datastore
	gate  gate
	token cancelToken
	stop  func() bool
	opts  callOptions
}

// begin admits a call, or returns the reason why it must not start. After a nil error the caller
// must call end.
func (d *Datastore) begin(ctx context.Context, g gate) (call, error) {
	if err := d.usable(ctx); err != nil {
		return call{}, err
	}
	if err := g.enter(ctx, d.closing); err != nil {
		return call{}, err
	}
	c, err := d.watch(ctx)
	if err != nil {
		g.leave()
		return call{}, err
	}
	c.gate = g
	return c, nil
}

// watch hands the context over to the engine: its deadline as a timeout, its end as a cancel token.
// After a nil error the caller must call end.
func (d *Datastore) watch(ctx context.Context) (call, error) {
	opts, err := d.options(ctx)
	if err != nil {
		return call{}, err
	}
	c := call{d: d, token: opts.token, opts: opts}
	if c.token != 0 {
		c.stop = context.AfterFunc(ctx, c.token.cancel)
	}
	return c, nil
}

// options converts the context to the engine's form; its token, if there is one, comes from
// d.tokens.
func (d *Datastore) options(ctx context.Context) (callOptions, error) {
	opts := callOptions{trace: joined(ctx)}
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if left <= 0 {
			return opts, context.DeadlineExceeded
		}
		opts.timeoutMS = uint64((left + time.Millisecond - 1) / time.Millisecond)
	}
	if ctx.Done() == nil {
		return opts, nil
	}
	var err error
	opts.token, err = d.tokens.get()
	return opts, err
}

// end releases what begin took. A cancel that is just under way may reach the engine after the
// token is freed: tokens are numbers that are not used twice, so this does nothing.
func (c *call) end() {
	if c.stop != nil {
		if c.stop() {
			c.d.tokens.put(c.token)
		} else {
			c.token.free()
		}
	}
	if c.gate != nil {
		c.gate.leave()
	}
}

// tokens keeps cancel tokens that were not used, so that most calls need not make one.
type tokens struct {
	mu     sync.Mutex
	spare  []cancelToken
	closed bool
}

const spareTokens = 256

func (t *tokens) get() (cancelToken, error) {
	t.mu.Lock()
	if n := len(t.spare); n > 0 {
		token := t.spare[n-1]
		t.spare = t.spare[:n-1]
		t.mu.Unlock()
		return token, nil
	}
	t.mu.Unlock()
	return newCancelToken()
}

// put takes back a token that was not cancelled and will not be.
func (t *tokens) put(token cancelToken) {
	if token == 0 {
		return
	}
	t.mu.Lock()
	keep := !t.closed && len(t.spare) < spareTokens
	if keep {
		t.spare = append(t.spare, token)
	}
	t.mu.Unlock()
	if !keep {
		token.free()
	}
}

func (t *tokens) close() {
	t.mu.Lock()
	spare := t.spare
	t.spare, t.closed = nil, true
	t.mu.Unlock()
	for _, token := range spare {
		token.free()
	}
}
