package postgres

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt/internal/engine"
	"github.com/jackc/pgx/v5/pgxpool"
)

const testPatience = 30 * time.Second

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func lockNow(t *testing.T, s *Storage, name string) {
	t.Helper()
	if err := s.Lock(within(t, testPatience), name); err != nil {
		t.Fatalf("Lock(%q) = %v", name, err)
	}
}

func unlockAs(t *testing.T, s *Storage, name string, want error) {
	t.Helper()
	if err := s.Unlock(within(t, testPatience), name); !errors.Is(err, want) {
		t.Errorf("Unlock(%q) = %v, want %v", name, err, want)
	}
}

func TestLockLost(t *testing.T) {
	server := engine.Postgres(t)
	s := New(newPool(t, server.Addr))
	lockNow(t, s, "a")
	lockNow(t, s, "b")
	terminate(t, newPool(t, server.Addr), "a") // b goes with it
	// Another goroutine must not take it from under the first, whose Unlock
	// would release it.
	if err := s.Lock(within(t, 100*time.Millisecond), "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock before the Unlock that is due = %v, want %v", err, context.DeadlineExceeded)
	}
	lockNow(t, s, "c") // over a new connection
	unlockAs(t, s, "a", ErrLockLost)
	lockNow(t, s, "a")
	unlockAs(t, s, "b", ErrLockLost)
	unlockAs(t, s, "a", nil)
	unlockAs(t, s, "c", nil)
}

// TestManyLocks: locks take no connections from Load and Store, one in all from
// the server, and that only while there are any.
func TestManyLocks(t *testing.T) {
	addr := engine.Postgres(t).Addr
	pool, err := pgxpool.New(t.Context(), "postgres://postgres@"+addr+"/postgres?pool_max_conns=1")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s, watcher := New(pool), newPool(t, addr)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			name := strconv.Itoa(i)
			if err := s.Lock(within(t, testPatience), name); err != nil {
				t.Errorf("Lock(%q) = %v", name, err)
			}
			if err := s.Store(within(t, testPatience), name, nil); err != nil {
				t.Errorf("Store(%q) while locks are held = %v", name, err)
			}
		})
	}
	wg.Wait()
	before := clients(t, watcher)
	if before > 3 {
		t.Errorf("with 100 locks there are %d connections, want the pool's, one for locks and this", before)
	}
	defer runtime.KeepAlive(s.session) // the garbage collector closes connections, too
	for i := range 100 {
		unlockAs(t, s, strconv.Itoa(i), nil)
	}
	for deadline := time.Now().Add(testPatience); clients(t, watcher) >= before; {
		if time.Now().After(deadline) {
			t.Fatal("the connection for locks stays when none is held")
		}
	}
}

func clients(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	const query = `SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'`
	if err := pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLockGivenUp: who gives up waiting takes no lock from others of its process,
// whose connection it waits at.
func TestLockGivenUp(t *testing.T) {
	addr := engine.Postgres(t).Addr
	a, b := New(newPool(t, addr)), New(newPool(t, addr))
	lockNow(t, a, "a")
	lockNow(t, b, "b")
	for i := range 40 {
		err := a.Lock(within(t, time.Duration(i)*50*time.Microsecond), "b")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Lock of what another holds = %v, want %v", err, context.DeadlineExceeded)
		}
	}
	unlockAs(t, a, "a", nil)
	unlockAs(t, b, "b", nil)
}

// TestSilence: with a server that does not answer, every method returns when its
// context ends, and a lock is given back when the server is heard again.
func TestSilence(t *testing.T) {
	server := engine.Postgres(t)
	relay := engine.NewRelay(t, server.Addr)
	s := New(newPool(t, relay.Addr))
	lockNow(t, s, "held")
	lockNow(t, s, "kept") // and with it the connection
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
	direct := New(newPool(t, server.Addr))
	for _, name := range []string{"held", "free"} {
		lockNow(t, direct, name)
		unlockAs(t, direct, name, nil)
	}
	unlockAs(t, s, "kept", nil)
}

// TestFirstUse: of processes that come upon an empty database all at once none
// fails. What is not there is not there, table or not.
func TestFirstUse(t *testing.T) {
	addr := engine.Postgres(t).Addr
	var members []*Storage
	for range 8 {
		members = append(members, New(newPool(t, addr)))
	}
	for range 20 {
		var wg sync.WaitGroup
		for _, s := range members {
			wg.Go(func() {
				if _, err := s.Load(within(t, testPatience), "none"); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("Load = %v, want %v", err, fs.ErrNotExist)
				}
			})
		}
		wg.Wait()
		if _, err := members[0].pool.Exec(t.Context(), `DROP TABLE letsencrypt`); err != nil {
			t.Fatal(err)
		}
	}
	if keys, err := members[0].List(t.Context(), "", true); len(keys) != 0 || err != nil {
		t.Errorf("List = %q, %v, want none", keys, err)
	}
	if err := members[1].Store(t.Context(), "key", nil); err != nil {
		t.Errorf("Store = %v", err)
	}
}

// TestRefused: what can't be a key is said to be none, not to be absent.
func TestRefused(t *testing.T) {
	s := New(newPool(t, engine.Postgres(t).Addr))
	longest := strings.Repeat("\u00fc", 1024)
	if err := s.Store(t.Context(), longest, nil); err != nil {
		t.Errorf("Store of a key of %d bytes = %v", len(longest), err)
	}
	for _, key := range []string{longest + "x", "a\x00b", "\xff"} {
		_, loading := s.Load(t.Context(), key)
		_, listing := s.List(t.Context(), key, true)
		errs := map[string]error{
			"Load": loading, "List": listing, "Store": s.Store(t.Context(), key, nil), "Delete": s.Delete(t.Context(), key),
		}
		for op, err := range errs {
			if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "postgres: "+strings.ToLower(op)+" "+strconv.Quote(key)+": a key m") {
				t.Errorf("%s(%.20q) = %.100v, want an error that names the key and says what a key is", op, key, err)
			}
		}
	}
}

// TestUnavailable: that there is no server is not that there is no value.
func TestUnavailable(t *testing.T) {
	server := engine.Postgres(t)
	s := New(newPool(t, server.Addr))
	server.Kill(t)
	if _, err := s.Load(within(t, testPatience), "key"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load without a server = %v, want another error", err)
	}
	if err := s.Lock(within(t, testPatience), "name"); err == nil {
		t.Error("Lock without a server = nil")
	}
	server.Restart(t)
	lockNow(t, s, "name")
	server.Restart(t) // also at a moment when the pool has only dead connections
	unlockAs(t, s, "name", ErrLockLost)
	lockNow(t, s, "name")
	unlockAs(t, s, "name", nil)
}

// TestKeepalives: the server looks after who holds locks.
func TestKeepalives(t *testing.T) {
	s := New(newPool(t, engine.Postgres(t).Addr))
	lockNow(t, s, "a")
	var idle string
	if err := s.session.conn.QueryRow(t.Context(), `SHOW tcp_keepalives_idle`).Scan(&idle); idle != "5" || err != nil {
		t.Errorf("tcp_keepalives_idle = %q, %v, want 5", idle, err)
	}
	unlockAs(t, s, "a", nil)
}
