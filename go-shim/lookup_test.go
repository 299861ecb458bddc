package walrusds

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeEngine stands in for the engine: it answers a key with its length when it is allowed to.
type fakeEngine struct {
	asks, keys, running, most atomic.Int64
	gate                      chan struct{} // one for each question, or closed
	fail                      error
}

func (a *fakeEngine) ask(ctx context.Context, batch []*lookup) error {
	a.asks.Add(1)
	a.keys.Add(int64(len(batch)))
	if n := a.running.Add(1); n > a.most.Load() {
		a.most.Store(n)
	}
	defer a.running.Add(-1)
	select {
	case <-a.gate:
	case <-ctx.Done():
		return ctx.Err()
	}
	if a.fail != nil {
		return a.fail
	}
	for _, l := range batch {
		if l.alone = l.key == "odd"; !l.alone {
			l.size, l.found = uint64(len(l.key)), true
		}
	}
	return nil
}

func (a *fakeEngine) askAlone(_ context.Context, l *lookup) error {
	l.size, l.found = uint64(len(l.key)), true
	return nil
}

// leading is the number of concurrent leaders in these tests.
const leading = 2

func newLookups() (*lookups, chan struct{}) {
	closing := make(chan struct{})
	return &lookups{closing: closing, most: leading}, closing
}

// idle fails unless no lookup leads and none waits.
func (l *lookups) idle(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leading != 0 || len(l.waiting) != 0 || l.gone != 0 {
		t.Errorf("%d lead, %d wait, of them %d gone", l.leading, len(l.waiting), l.gone)
	}
}

// patience is how long a test waits for an expected event: longer than a busy machine needs.
const patience = 2 * time.Minute

func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (l *lookups) waits(n int) func() bool {
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waiting)-l.gone == n
	}
}

// A lookup that comes while questions are under way travels with the next ones, and gets the answer
// to its own key.
func TestLookupsTravelTogether(t *testing.T) {
	a := &fakeEngine{gate: make(chan struct{})}
	l, _ := newLookups()
	const others = 1000
	var wg sync.WaitGroup
	get := func(i int) {
		defer wg.Done()
		key := fmt.Sprintf("%0*d", i+1, 0)
		if size, found, err := l.get(context.Background(), a, key); err != nil || !found || size != uint64(i+1) {
			t.Errorf("%d: %d, %v, %v", i, size, found, err)
		}
	}
	wg.Add(leading + others)
	for i := 0; i < leading; i++ {
		go get(i)
	}
	until(t, "leaders ask", func() bool { return a.running.Load() == leading })
	for i := 0; i < others; i++ {
		go get(i)
	}
	until(t, "the others wait", l.waits(others))
	close(a.gate)
	wg.Wait()
	if asks, most := a.asks.Load(), a.most.Load(); asks > leading+(others+maxLookups-1)/maxLookups+1 || most > leading {
		t.Errorf("%d questions for %d keys, %d at once", asks, a.keys.Load(), most)
	}
	l.idle(t)
}

// A leader that gives up does not end the lookups that travel with it; and a waiting lookup may
// leave.
func TestLookupsAreNotGivenUpTogether(t *testing.T) {
	a := &fakeEngine{gate: make(chan struct{})}
	l, _ := newLookups()
	first, cancelFirst := context.WithCancel(context.Background())
	next, cancelNext := context.WithCancel(context.Background())
	defer cancelFirst()
	defer cancelNext()
	results := make(chan error, 100)
	get := func(ctx context.Context) {
		_, _, err := l.get(ctx, a, "key")
		results <- err
	}
	for i := 0; i < leading; i++ {
		go get(first)
	}
	until(t, "leaders ask", func() bool { return a.running.Load() == leading })
	// These lookups lead next; they take the rest along.
	for i := 0; i < leading; i++ {
		go get(next)
		until(t, "they wait", l.waits(i+1))
	}
	const patient = 20
	for i := 0; i < patient; i++ {
		go get(context.Background())
	}
	until(t, "all wait", l.waits(leading+patient))
	hasty, leave := context.WithCancel(context.Background())
	go get(hasty)
	until(t, "one more waits", l.waits(leading+patient+1))
	leave()
	if err := <-results; err != context.Canceled {
		t.Error(err)
	}
	for _, cancel := range []func(){cancelFirst, cancelNext} {
		cancel()
		for i := 0; i < leading; i++ {
			if err := <-results; err != context.Canceled {
				t.Error(err)
			}
		}
		until(t, "somebody asks for all", func() bool { return a.running.Load() > 0 && a.keys.Load() >= 2*leading+patient })
	}
	close(a.gate)
	for i := 0; i < patient; i++ {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	l.idle(t)
}

func TestLookupsFailAndAreOdd(t *testing.T) {
	a := &fakeEngine{gate: make(chan struct{})}
	l, closing := newLookups()
	var wg sync.WaitGroup
	get := func(key string, want error) {
		defer wg.Done()
		size, found, err := l.get(context.Background(), a, key)
		if !errors.Is(err, want) || (err == nil) != (found && size == uint64(len(key))) {
			t.Errorf("%s: %d, %v, %v", key, size, found, err)
		}
	}
	round := func(want error) {
		wg.Add(leading + 4)
		for i := 0; i < leading; i++ {
			go get("first", want)
		}
		until(t, "leaders ask", func() bool { return a.running.Load() == leading })
		for _, key := range []string{"odd", "a", "bc", "odd"} {
			go get(key, want)
		}
		until(t, "the others wait", l.waits(4))
	}
	round(nil)
	close(a.gate)
	wg.Wait()

	a.gate, a.fail = make(chan struct{}), &Error{Code: CodeIndex}
	round(ErrIndex)
	close(a.gate)
	wg.Wait()
	l.idle(t)

	// Closing ends the waiting lookups with ErrClosed; the engine does so with the others.
	a.gate = make(chan struct{})
	a.fail = ErrClosed
	round(ErrClosed)
	close(closing)
	until(t, "nobody waits", l.waits(0))
	close(a.gate)
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leading != 0 {
		t.Errorf("%d lead", l.leading)
	}
}

// Many lookups come, ask, wait and leave: each that stays is answered, and none leads in the end.
func TestLookupsInAnyOrder(t *testing.T) {
	a := &fakeEngine{gate: make(chan struct{})}
	close(a.gate)
	l, _ := newLookups()
	var wg sync.WaitGroup
	for g := 0; g < 64; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewSource(int64(g)))
			for i := 0; i < 300; i++ {
				ctx, cancel := context.WithCancel(context.Background())
				if r.Intn(3) == 0 {
					ctx, cancel = context.WithTimeout(context.Background(), time.Duration(r.Intn(100))*time.Microsecond)
				}
				key := fmt.Sprintf("%0*d", r.Intn(50)+1, 0)
				size, found, err := l.get(ctx, a, key)
				switch {
				case err == nil && found && size == uint64(len(key)):
				case err != nil && errors.Is(err, ctx.Err()):
				default:
					t.Errorf("%d, %v, %v", size, found, err)
				}
				cancel()
			}
		}()
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leading != 0 {
		t.Errorf("%d lead", l.leading)
	}
}

// Lookups that leave before any answer give their places back.
func TestLookupsThatLeaveTakeNoRoom(t *testing.T) {
	a := &fakeEngine{gate: make(chan struct{})}
	l, _ := newLookups()
	var leaders sync.WaitGroup
	for i := 0; i < leading; i++ {
		leaders.Add(1)
		go func() {
			defer leaders.Done()
			l.get(context.Background(), a, "leads")
		}()
	}
	until(t, "leaders ask", func() bool { return a.running.Load() == leading })
	for i := 0; i < 20; i++ {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := 0; i < 100; i++ {
			wg.Add(1)
			go func() {
				defer wg.Done()
				l.get(ctx, a, "leaves")
			}()
		}
		until(t, "they wait", l.waits(100))
		cancel()
		wg.Wait()
		l.mu.Lock()
		if n := len(l.waiting); n > 130 {
			t.Errorf("%d places are taken", n)
		}
		l.mu.Unlock()
	}
	close(a.gate)
	leaders.Wait()
	l.idle(t)
}

func TestBudget(t *testing.T) {
	ctx, closing := context.Background(), make(chan struct{})
	b := newBudget(100)
	if n, err := b.enter(ctx, closing, 1000); n != 100 || err != nil { // larger than everything
		t.Fatal(n, err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := b.enter(short, closing, 1); err != context.DeadlineExceeded {
		t.Fatal(err)
	}
	b.leave(100)

	var wg sync.WaitGroup
	var inside atomic.Int64
	for g := 0; g < 32; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewSource(int64(g)))
			for i := 0; i < 200; i++ {
				ctx, cancel := context.WithTimeout(ctx, time.Duration(r.Intn(200))*time.Microsecond)
				n, err := b.enter(ctx, closing, r.Intn(60))
				if err == nil {
					if sum := inside.Add(n); sum > 100 {
						t.Errorf("%d inside", sum)
					}
					inside.Add(-n)
					b.leave(n)
				}
				cancel()
			}
		}()
	}
	wg.Wait()
	if n, err := b.enter(short, closing, 100); n != 100 || err != nil { // nothing was lost on the way
		t.Error(n, err)
	}
	close(closing)
	if _, err := b.enter(ctx, closing, 1); err != ErrClosed {
		t.Error(err)
	}
}
