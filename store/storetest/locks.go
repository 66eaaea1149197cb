package storetest

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/letsencrypt"
)

func closes(done <-chan struct{}, d time.Duration) bool {
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

func lock(t *testing.T, s letsencrypt.Storage, name string, d time.Duration) {
	t.Helper()
	if err := tryLock(t, s, name, d); err != nil {
		t.Fatalf("Lock(%q) = %v", name, err)
	}
}

// tryLock returns what Lock returns if it is given d. One that does not notice the
// end of its context must not keep the test from saying so.
func tryLock(t *testing.T, s letsencrypt.Storage, name string, d time.Duration) (err error) {
	t.Helper()
	done := make(chan struct{})
	ctx := within(t, d)
	go func() {
		defer close(done)
		err = s.Lock(ctx, name)
	}()
	if !closes(done, d+promptly) {
		t.Fatalf("Lock(%q) does not return when its context ends", name)
	}
	return err
}

func unlock(t *testing.T, s letsencrypt.Storage, name string) {
	t.Helper()
	if err := s.Unlock(within(t, patience), name); err != nil {
		t.Errorf("Unlock(%q) = %v", name, err)
	}
}

// wantHeld checks that a lock can't be had.
func wantHeld(t *testing.T, s letsencrypt.Storage, name string) {
	t.Helper()
	if err := tryLock(t, s, name, moment); err == nil {
		t.Fatalf("Lock(%q) while another holds it = nil, want an error when the context ends", name)
	}
}

// testExclusion: of all that ask for a lock one at a time has it.
func testExclusion(t *testing.T, s suite) {
	const name, clients, each, rounds = "exclusion.example", 3, 3, 3
	ctx := within(t, 2*patience)
	var inside atomic.Int32
	var wg sync.WaitGroup
	for range clients {
		c := s.open(t)
		for range each {
			wg.Go(func() {
				for range rounds {
					countAlone(ctx, t, c, name, &inside)
				}
			})
		}
	}
	wg.Wait()
	if got, err := number(ctx, s.open(t), name); err != nil || got != clients*each*rounds {
		t.Errorf("a counter under a lock is at %d (%v), want %d", got, err, clients*each*rounds)
	}
}

func countAlone(ctx context.Context, t *testing.T, c letsencrypt.Storage, name string, inside *atomic.Int32) {
	if err := c.Lock(ctx, name); err != nil {
		t.Errorf("Lock(%q) = %v", name, err)
		return
	}
	if n := inside.Add(1); n != 1 {
		t.Errorf("%d hold the lock", n)
	}
	if _, err := add(ctx, c, name); err != nil {
		t.Error(err)
	}
	inside.Add(-1)
	if err := c.Unlock(ctx, name); err != nil {
		t.Errorf("Unlock(%q) = %v", name, err)
	}
}

// testIndependence: who waits for one lock holds up nobody at another.
func testIndependence(t *testing.T, s suite) {
	const one, other = "one.example", "other.example"
	a, b := s.open(t), s.open(t)
	lock(t, a, one, patience)
	waiting := make(chan error, 1)
	go func() { waiting <- b.Lock(within(t, 2*patience), one) }()
	lock(t, a, other, patience)
	unlock(t, a, other)
	lock(t, b, other, patience)
	unlock(t, b, other)
	unlock(t, a, one)
	if err := <-waiting; err != nil {
		t.Fatalf("Lock(%q) = %v", one, err)
	}
	unlock(t, b, one)
}

// testLockCancel: who waits for a lock and gives up returns at once, and leaves
// nothing behind that is in anybody's way.
func testLockCancel(t *testing.T, s suite) {
	const name = "cancel.example"
	a, b := s.open(t), s.open(t)
	lock(t, a, name, patience)
	for _, c := range []letsencrypt.Storage{a, b} { // the holder itself is one, too
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		var err error
		go func() {
			defer close(done)
			err = c.Lock(ctx, name)
		}()
		if closes(done, moment) {
			t.Errorf("Lock(%q) while another holds it = %v, want it to wait", name, err)
		}
		cancel()
		if !closes(done, promptly) {
			t.Fatalf("Lock(%q) does not return when its context ends", name)
		}
		if err == nil {
			t.Fatalf("Lock(%q) while another holds it = nil, want an error when the context ends", name)
		}
	}
	unlock(t, a, name)
	<-time.After(promptly / 2) // who did not give up after all would have it now
	for _, c := range []letsencrypt.Storage{b, a} {
		lock(t, c, name, promptly)
		unlock(t, c, name)
	}
}

// testLockOutlivesContext: a lock is held until Unlock, not until the context
// of Lock ends, and given back under a context of its own.
func testLockOutlivesContext(t *testing.T, s suite) {
	const name = "context.example"
	a, b := s.open(t), s.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	if err := a.Lock(ctx, name); err != nil {
		t.Fatalf("Lock(%q) = %v", name, err)
	}
	cancel()
	wantHeld(t, b, name)
	unlock(t, a, name)
	lock(t, b, name, promptly)
	unlock(t, b, name)
}

// testCrash: a process that is killed takes its lock with it. Nobody else in
// this process has had that lock before: some storages go on refreshing a lock
// for a while after they gave it back, even if it is somebody else's now.
func testCrash(t *testing.T, s suite) {
	const name = "crash.example"
	p := s.start(t, "hold", name)
	if line := p.says(t, patience); line != "held" {
		t.Fatalf("the other process says %q, want held", line)
	}
	c := s.open(t)
	wantHeld(t, c, name)
	p.kill()
	lock(t, c, name, s.CrashTTL)
	unlock(t, c, name)
}
