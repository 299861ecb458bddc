package walrusds

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// maxLookups is how many keys one question to the index holds.
const maxLookups = 512

// lookups lets Has and GetSize of many goroutines travel together. Nothing waits for a timer: while
// fewer than most questions are under way, a goroutine asks at once, on its own thread; a goroutine
// that comes meanwhile waits for a channel, and when a question is answered, the first of the
// waiting goroutines asks for all of them.
type lookups struct {
	closing <-chan struct{}
	most    int

	mu      sync.Mutex
	leading int       // goroutines that ask, or were told to
	waiting []*lookup // empty while fewer than most lead
	gone    int       // the number of abandoned lookups in waiting
}

// asker is the Datastore. (lookups holds no pointer to it: a cycle would keep a forgotten one
// alive.)
type asker interface {
	// ask fills in the results of a batch, with one question to the engine.
	ask(ctx context.Context, batch []*lookup) error
	askAlone(ctx context.Context, l *lookup) error
}

// lookup is one key whose size a goroutine waits for.
type lookup struct {
	key   string
	state lookupState // under lookups.mu

	wake chan bool // true: the goroutine must lead; false: answered

	// Used by the leading goroutine only, until wake is sent.
	size  uint64
	found bool
	alone bool // its row is odd: it is asked for alone, which yields the exact error
	err   error
}

type lookupState uint8

const (
	lookupWaits lookupState = iota
	lookupLeads             // its goroutine shall ask
	lookupAsked             // on its way to the index
	lookupGone              // abandoned: no goroutine waits for it
)

var spareLookups = sync.Pool{New: func() any { return &lookup{wake: make(chan bool, 1)} }}

// get returns the size of the value of key, and whether it is there.
func (l *lookups) get(ctx context.Context, by asker, key string) (uint64, bool, error) {
	me := spareLookups.Get().(*lookup)
	*me = lookup{key: key, wake: me.wake}

	l.mu.Lock()
	leads := l.leading < l.most
	if leads {
		l.leading++
		me.state = lookupLeads
	} else {
		l.waiting = append(l.waiting, me)
	}
	l.mu.Unlock()

	if !leads {
		select {
		case leads = <-me.wake:
		case <-ctx.Done():
			l.abandon(me) // another goroutine may still hold it: it is not used again
			return 0, false, ctx.Err()
		case <-l.closing:
			l.abandon(me)
			return 0, false, ErrClosed
		}
	}
	if leads {
		l.lead(ctx, by, me)
	}
	if me.alone {
		me.err = by.askAlone(ctx, me)
	}
	size, found, err := me.size, me.found, me.err
	spareLookups.Put(me)
	return size, found, err
}

// lead asks the engine for me and for all waiting lookups.
func (l *lookups) lead(ctx context.Context, by asker, me *lookup) {
	batch := append(make([]*lookup, 0, 1), me)
	l.mu.Lock()
	me.state = lookupAsked
	for len(batch) < maxLookups {
		next := l.first()
		if next == nil {
			break
		}
		next.state = lookupAsked
		batch = append(batch, next)
	}
	l.mu.Unlock()

	err := by.ask(ctx, batch)
	// The end of the leader's own context does not concern the others: they ask again.
	again := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)

	l.mu.Lock()
	if again {
		waiting := make([]*lookup, 0, len(batch)+len(l.waiting))
		for _, other := range batch[1:] {
			if other.state == lookupAsked {
				other.state = lookupWaits
				waiting = append(waiting, other)
			}
		}
		l.waiting = append(waiting, l.waiting...)
	}
	l.pass()
	l.mu.Unlock()

	if err != nil {
		me.err = err
	}
	if again {
		return
	}
	for _, other := range batch[1:] {
		if err != nil {
			other.err = err
		}
		other.wake <- false
	}
}

// first takes the first waiting lookup out of the queue; l.mu is held.
func (l *lookups) first() *lookup {
	for i, next := range l.waiting {
		if next.state == lookupWaits {
			l.waiting = l.waiting[i+1:]
			return next
		}
		l.gone--
	}
	l.waiting = nil
	return nil
}

// pass hands the right to ask on, to the first waiting lookup; l.mu is held.
func (l *lookups) pass() {
	next := l.first()
	if next == nil {
		l.leading--
		return
	}
	next.state = lookupLeads
	next.wake <- true
}

// abandon takes back a lookup whose goroutine stops waiting.
func (l *lookups) abandon(me *lookup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := me.state
	me.state = lookupGone
	switch before {
	case lookupLeads:
		l.pass()
	case lookupWaits:
		// Abandoned lookups are removed before they outnumber the others.
		if l.gone++; l.gone > 64 && l.gone > len(l.waiting)/2 {
			l.waiting = slices.DeleteFunc(l.waiting, func(w *lookup) bool { return w.state == lookupGone })
			l.gone = 0
		}
	}
}
