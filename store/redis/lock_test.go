package redis

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt/internal/engine"
	"github.com/redis/go-redis/v9"
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
	client := newClient(t, engine.Redis(t).Addr)
	s := open(client)
	lockNow(t, s, "a")
	if err := client.Del(t.Context(), s.lockKey("a")).Err(); err != nil {
		t.Fatal(err)
	}
	// Another goroutine must not take it from under the first, whose Unlock
	// would release it.
	if err := s.Lock(within(t, 100*time.Millisecond), "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock before the Unlock that is due = %v, want %v", err, context.DeadlineExceeded)
	}
	unlockAs(t, s, "a", ErrLockLost)
	lockNow(t, s, "a")
	unlockAs(t, s, "a", nil)
}

// TestLockKept: a lock is in what the server writes to disk.
func TestLockKept(t *testing.T) {
	server := engine.Redis(t)
	s := open(newClient(t, server.Addr))
	lockNow(t, s, "a")
	server.Restart(t)
	unlockAs(t, s, "a", nil)
}

// A twice is a hook that has every command done twice, as the client does if
// the first answer was lost.
type twice struct{}

func (twice) DialHook(next redis.DialHook) redis.DialHook { return next }

func (twice) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (twice) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		next(ctx, cmd)
		return next(ctx, cmd)
	}
}

func TestLostAnswer(t *testing.T) {
	server := engine.Redis(t)
	client := newClient(t, server.Addr)
	client.AddHook(twice{})
	s := open(client)
	started := time.Now()
	lockNow(t, s, "a")
	if took := time.Since(started); took >= testTTL {
		t.Errorf("Lock took %v: it waited for itself", took)
	}
	unlockAs(t, s, "a", ErrLockLost) // for all that it knows
	lockNow(t, open(newClient(t, server.Addr)), "a")
}

// TestSilence: with a server that does not answer, every method returns when its
// context ends, and a lock is given back when the server is heard again.
func TestSilence(t *testing.T) {
	server := engine.Redis(t)
	relay := engine.NewRelay(t, server.Addr)
	s := open(newClient(t, relay.Addr))
	s.ttl = time.Minute // or the locks would expire while we wait for them
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
	server := engine.Redis(t)
	relay := engine.NewRelay(t, server.Addr)
	s, other := open(newClient(t, relay.Addr)), open(newClient(t, server.Addr))
	s.ttl = time.Second
	lockNow(t, s, "a")
	relay.Stall()
	lockNow(t, other, "a")
	relay.Resume()
	unlockAs(t, s, "a", ErrLockLost)
	unlockAs(t, other, "a", nil)
}

// TestNodes has clients that know more than one server: they must find that of
// a key, and ask all for a list.
func TestNodes(t *testing.T) {
	one, two := engine.Redis(t), engine.Redis(t, "--cluster-enabled", "yes")
	node := newClient(t, two.Addr)
	if err := node.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	for {
		info, err := node.ClusterInfo(within(t, patience)).Result()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(info, "cluster_state:ok") {
			break
		}
	}
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{two.Addr}})
	defer cluster.Close()
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"one": one.Addr, "two": engine.Redis(t).Addr}})
	defer ring.Close()
	for name, client := range map[string]redis.UniversalClient{"cluster": cluster, "ring": ring} {
		t.Run(name, func(t *testing.T) { testNode(t, open(client)) })
	}
}

func testNode(t *testing.T, s *Storage) {
	want := []string{"a*/1", "a*/2", "a*/3", "a*/4", "a*/5"}
	for _, key := range append(want, "ab/1", "a*", `a\*/1`) {
		if err := s.Store(t.Context(), key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range want {
		if got, err := s.Load(t.Context(), key); string(got) != key || err != nil {
			t.Errorf("Load(%q) = %q, %v", key, got, err)
		}
	}
	if got, err := s.List(t.Context(), "a*", true); !slices.Equal(got, want) || err != nil {
		t.Errorf("List = %q, %v, want %q", got, err, want)
	}
	for _, name := range want {
		lockNow(t, s, name)
	}
	for _, name := range want {
		unlockAs(t, s, name, nil)
	}
}
