package walrusds

import (
	"context"
	"sync"
)

// queue receives the ends of calls that were started and hold no thread. One goroutine waits for
// all of them, in the engine, and tells each waiting caller.
type queue struct {
	id queueID

	mu    sync.Mutex
	tag   uint64
	calls map[uint64]*started
	idle  sync.Cond // no calls

	stopped chan struct{} // the goroutine has ended
}

// started is a call that a goroutine waits for.
type started struct {
	ended chan completion // has room for the one that comes
}

// completion is how a started call ended. The value is the engine's memory: its receiver takes or
// frees it.
type completion struct {
	value engineBuf
	found bool
	err   error
}

var spareStarted = sync.Pool{New: func() any { return &started{make(chan completion, 1)} }}

func newQueue() (*queue, error) {
	id, err := newQueueID()
	if err != nil {
		return nil, err
	}
	q := &queue{id: id, calls: make(map[uint64]*started), stopped: make(chan struct{})}
	q.idle.L = &q.mu
	go func() {
		defer close(q.stopped)
		id.receive(q.deliver)
	}()
	return q, nil
}

// deliver receives the end of a call.
func (q *queue) deliver(tag uint64, c completion) {
	if s := q.take(tag); s != nil {
		s.ended <- c
	} else {
		c.value.free()
	}
}

func (q *queue) add() (uint64, *started) {
	s := spareStarted.Get().(*started)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tag++
	q.calls[q.tag] = s
	return q.tag, s
}

// take returns nil if another goroutine has taken it.
func (q *queue) take(tag uint64) *started {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.calls[tag]
	delete(q.calls, tag)
	if len(q.calls) == 0 {
		q.idle.Broadcast()
	}
	return s
}

// run starts a call and waits for its end, or for the end of the context; then it cancels the call.
func (d *Datastore) run(ctx context.Context, start func(o callOptions, q queueID, tag uint64) (c completion, done bool, err error)) (completion, error) {
	if err := d.starts.enter(ctx, d.closing); err != nil {
		return completion{}, err
	}
	opts, err := d.options(ctx) // within the gate: a new token is a call into the engine as well
	if err != nil {
		d.starts.leave()
		return completion{}, err
	}
	q := d.queue
	tag, s := q.add()
	c, done, err := start(opts, q.id, tag)
	d.starts.leave()
	if done || err != nil { // no completion will come
		q.take(tag)
		spareStarted.Put(s)
		d.tokens.put(opts.token)
		return c, err
	}
	select {
	case c = <-s.ended:
		d.tokens.put(opts.token)
	case <-ctx.Done():
		d.starts <- struct{}{}
		opts.token.cancel()
		opts.token.free()
		d.starts.leave()
		if q.take(tag) != nil { // its completion is freed when it comes
			return completion{}, ctx.Err()
		}
		c = <-s.ended // it has ended at the same moment
	}
	spareStarted.Put(s)
	return c, c.err
}

// close waits for the calls that are under way, and ends the goroutine.
func (q *queue) close() {
	q.mu.Lock()
	for len(q.calls) > 0 {
		q.idle.Wait()
	}
	q.mu.Unlock()
	q.id.close()
	<-q.stopped
}
