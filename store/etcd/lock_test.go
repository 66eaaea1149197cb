package etcd

import (
	"context"
	"errors"
	"testing"
	"time"

	"example.com/letsencrypt/internal/engine"
)

const patience = 30 * time.Second

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func lockNow(t *testing.T, s *Storage, name string) {
	t.Helper()
	if err := s.Lock(within(t, patience), name); err != nil {
		t.Fatalf("Lock(%q) = %v", name, err)
	}
}

func unlockAs(t *testing.T, s *Storage, name string, want error) {
	t.Helper()
	if err := s.Unlock(within(t, patience), name); !errors.Is(err, want) {
		t.Errorf("Unlock(%q) = %v, want %v", name, err, want)
	}
}

func TestLockLost(t *testing.T) {
	client := newClient(t, engine.Etcd(t).Addr)
	s := open(client)
	lockNow(t, s, "a")
	steal(t, client, "a")
	// Another goroutine must not take it from under the first, whose Unlock
	// would release it.
	if err := s.Lock(within(t, 100*time.Millisecond), "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock before the Unlock that is due = %v, want %v", err, context.DeadlineExceeded)
	}
	unlockAs(t, s, "a", ErrLockLost)
	lockNow(t, s, "a")
	if _, err := client.Revoke(t.Context(), s.locks["a"].session.Lease()); err != nil {
		t.Fatal(err)
	}
	unlockAs(t, s, "a", ErrLockLost)
	lockNow(t, s, "a")
	unlockAs(t, s, "a", nil)
}

// TestLockNames: a lock is apart from those whose names it is the beginning of.
func TestLockNames(t *testing.T) {
	s := open(newClient(t, engine.Etcd(t).Addr))
	names := []string{"a/b/c", "a/b", "a/", "a", "", "a%2Fb"}
	for _, name := range names {
		lockNow(t, s, name)
	}
	for _, name := range names {
		unlockAs(t, s, name, nil)
	}
}

// TestLockKept: a lease outlives a restart of the server.
func TestLockKept(t *testing.T) {
	server := engine.Etcd(t)
	s := open(newClient(t, server.Addr))
	lockNow(t, s, "a")
	server.Restart(t)
	unlockAs(t, s, "a", nil)
}

// TestLeases: no lease is left when no lock is.
func TestLeases(t *testing.T) {
	client := newClient(t, engine.Etcd(t).Addr)
	s := open(client)
	lockNow(t, s, "a")
	for range 3 {
		if err := s.Lock(within(t, 50*time.Millisecond), "a"); err == nil {
			t.Fatal("Lock of what is locked = nil")
		}
		if err := open(client).Lock(within(t, 50*time.Millisecond), "a"); err == nil {
			t.Fatal("Lock of what another has locked = nil")
		}
	}
	unlockAs(t, s, "a", nil)
	for deadline := time.Now().Add(testTTL / 2); ; { // sooner than they expire
		resp, err := client.Leases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Leases) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d leases are left", len(resp.Leases))
		}
	}
}

// TestSilence: with a server that does not answer, every method returns when its
// context ends, and a lock is given back when the server is heard again.
func TestSilence(t *testing.T) {
	server := engine.Etcd(t)
	relay := engine.NewRelay(t, server.Addr)
	s := open(newClient(t, relay.Addr))
	s.ttl = 60 // or the locks would expire while we wait for them
	lockNow(t, s, "held")
	relay.Stall()
	ops := map[string]func(ctx context.Context) error{
		"Load":   func(ctx context.Context) error { _, err := s.Load(ctx, "key"); return err },
		"List":   func(ctx context.Context) error { _, err := s.List(ctx, "key", true); return err },
		"Store":  func(ctx context.Context) error { return s.Store(ctx, "key", nil) },
		"Delete": func(ctx context.Context) error { return s.Delete(ctx, "key") },
		"Lock":   func(ctx context.Context) error { return s.Lock(ctx, "free") },
		"Unlock": func(ctx context.Context) error { return s.Unlock(ctx, "held") },
	}
	for name, op := range ops {
		started := time.Now()
		if err := op(within(t, 100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s = %v, want %v", name, err, context.DeadlineExceeded)
		}
		if took := time.Since(started); took > 2*time.Second {
			t.Errorf("%s took %v after its context had ended", name, took)
		}
	}
	relay.Resume()
	direct := open(newClient(t, server.Addr))
	for _, name := range []string{"held", "free"} {
		lockNow(t, direct, name)
		unlockAs(t, direct, name, nil)
	}
}

// TestExpiry: who is cut off for longer than a lock lasts has lost it.
func TestExpiry(t *testing.T) {
	server := engine.Etcd(t)
	relay := engine.NewRelay(t, server.Addr)
	s, other := open(newClient(t, relay.Addr)), open(newClient(t, server.Addr))
	lockNow(t, s, "a")
	relay.Stall()
	lockNow(t, other, "a")
	relay.Resume()
	unlockAs(t, s, "a", ErrLockLost)
	unlockAs(t, other, "a", nil)
}
