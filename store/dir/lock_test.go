package dir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

const host = "example.com"

func newStorage(t *testing.T, name string) *Storage {
	t.Helper()
	s, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { settle(s) })
	return s
}

// settle waits until nothing is under way any more, also what nobody waits for:
// a Store that was abandoned makes files for a while, in a folder that is to be
// removed.
func settle(s *Storage) {
	for range cap(s.ops) {
		s.ops <- struct{}{}
	}
	for range cap(s.ops) {
		<-s.ops
	}
}

func mustLock(t *testing.T, s *Storage, name string) {
	t.Helper()
	if err := s.Lock(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

func mustUnlock(t *testing.T, s *Storage, name string) {
	t.Helper()
	if err := s.Unlock(t.Context(), name); err != nil {
		t.Error(err)
	}
}

// dieWith takes a lock that nobody keeps, as a process has that was killed.
func dieWith(t *testing.T, s *Storage, name string) {
	t.Helper()
	folder, err := lockName(name)
	if err != nil {
		t.Fatal(err)
	}
	err = s.do(t.Context(), func(root *os.Root) error {
		_, err := take(root, &lock{folder: folder, token: "dead"})
		return err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// TestLivingHolder: nobody takes a lock from one that lives, however long it
// has it.
func TestLivingHolder(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, b := newStorage(t, dir), newStorage(t, dir)
		mustLock(t, a, host)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := b.Lock(ctx, host); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock of what another has = %v, want context.DeadlineExceeded", err)
		}
		mustUnlock(t, a, host)
		mustLock(t, b, host)
		mustUnlock(t, b, host)
	})
}

// TestDeadHolder: who waits gets the lock of a dead one when that has been
// silent for long enough, and no sooner.
func TestDeadHolder(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, b := newStorage(t, dir), newStorage(t, dir)
		dieWith(t, a, host)
		start := time.Now()
		mustLock(t, b, host)
		if took := time.Since(start); took < deadAfter || took > 20*time.Second {
			t.Errorf("the lock of a dead holder took %v, want %v and a little", took, deadAfter)
		}
		mustUnlock(t, b, host)
	})
}

// TestBlindWaiter: a time in which a waiter did not look, because it was stopped
// itself, says nothing about the holder.
func TestBlindWaiter(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newStorage(t, dir)
		dieWith(t, s, host)
		locked := make(chan time.Time)
		go func() {
			mustLock(t, s, host)
			locked <- time.Now()
		}()
		time.Sleep(deadAfter / 3) // it has begun to look
		for range cap(s.ops) {
			s.ops <- struct{}{}
		}
		time.Sleep(time.Hour)
		sees := time.Now()
		for range cap(s.ops) {
			<-s.ops
		}
		if took := (<-locked).Sub(sees); took < deadAfter/2 {
			t.Errorf("after an hour without a look a waiter takes the lock within %v, want it to watch for %v", took, deadAfter/2)
		}
		mustUnlock(t, s, host)
	})
}

// TestKeeper: one goroutine keeps all locks, and none runs when none is held:
// the bubble would not end.
func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, b := newStorage(t, dir), newStorage(t, dir)
		names := []string{"a", "b", "c"}
		for range 3 {
			for _, name := range names {
				mustLock(t, a, name)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*deadAfter)
			for _, name := range names[1:] {
				mustUnlock(t, a, name)
				mustLock(t, a, name)
			}
			if err := b.Lock(ctx, "c"); err == nil {
				t.Error("Lock of what another has = nil, want an error")
			}
			cancel()
			for _, name := range names {
				mustUnlock(t, a, name)
			}
		}
	})
}

// TestLostLock: a lock that was broken is an error of Unlock, and until Unlock
// no other goroutine of the same process takes it: two would then have one that
// Unlock can't tell apart.
func TestLostLock(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir)
	mustLock(t, s, host)
	if err := os.RemoveAll(filepath.Join(dir, "locks", host+".lock")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Lock(ctx, host); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock before Unlock = %v, want context.DeadlineExceeded", err)
	}
	if err := s.Unlock(t.Context(), host); !errors.Is(err, ErrLockLost) {
		t.Errorf("Unlock of a broken lock = %v, want ErrLockLost", err)
	}
	mustLock(t, s, host)
	mustUnlock(t, s, host)
}

// TestUnlockEnded: a context that has ended keeps nobody from giving a lock back.
func TestUnlockEnded(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir)
	mustLock(t, s, host)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Unlock(ctx, host); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "locks")); err != nil || len(entries) > 0 {
		t.Errorf("after Unlock locks/ has %v, %v, want nothing", entries, err)
	}
}

// TestInterruptedBeat: the rename of a beat may be done although it fails, or
// be under way when the lock is given back.
func TestInterruptedBeat(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir)
	beat := func() {
		t.Helper()
		l := s.locks[host]
		if err := os.Rename(filepath.Join(dir, l.file(l.beats)), filepath.Join(dir, l.file(l.beats+1))); err != nil {
			t.Fatal(err)
		}
	}
	mustLock(t, s, host)
	beat()
	s.beatAll()
	s.beatAll()
	if got := s.locks[host].beats; got != 2 {
		t.Errorf("after a beat that failed when it was done, and another, the number is %d, want 2", got)
	}
	beat()
	mustUnlock(t, s, host)
}

// TestAbandoned: what is done when nobody waits for it any more is undone.
func TestAbandoned(t *testing.T) {
	s := newStorage(t, t.TempDir())
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		undone := make(chan bool, 1)
		err := s.do(ctx, func(*os.Root) error {
			cancel()
			return nil
		}, func(*os.Root) { undone <- true })
		settle(s)
		if got := len(undone) == 1; got != (err != nil) {
			t.Fatalf("do = %v, undone: %v, want it undone if and only if it is said not to be done", err, got)
		}
	}
}

// TestAbandonedStore: one that comes too late does not overwrite what was stored
// since.
func TestAbandonedStore(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir)
	if err := s.Store(t.Context(), "x", []byte("new")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.do(t.Context(), func(root *os.Root) error { return store(ctx, root, "values/x.value", []byte("old")) }, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("store = %v, want context.Canceled", err)
	}
	if got, err := s.Load(t.Context(), "x"); string(got) != "new" || err != nil {
		t.Errorf("Load = %q, %v, want the new value", got, err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "temp")); err != nil || len(entries) > 0 {
		t.Errorf("temp/ has %v, %v, want nothing", entries, err)
	}
}

// TestAbandonedValue: the value is the caller's again when Store returns, also
// when it goes on by itself. The race detector sees it if not.
func TestAbandonedValue(t *testing.T) {
	s := newStorage(t, t.TempDir())
	value := make([]byte, 1<<20)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		s.Store(ctx, "x", value)
		clear(value)
	}
}

// TestOutage: a folder that is not there, or empty because its share is not
// mounted, is an outage: nothing is missing and no lock lost. When it is back all
// goes on.
func TestOutage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "share")
	away := dir + " is away"
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	check(os.Mkdir(dir, 0o700))
	s := newStorage(t, dir)
	check(s.Store(t.Context(), "x", []byte("value")))
	for _, empty := range []bool{false, true} {
		mustLock(t, s, host)
		check(os.Rename(dir, away))
		if empty {
			check(os.Mkdir(dir, 0o700))
		}
		_, loading := s.Load(t.Context(), "x")
		_, listing := s.List(t.Context(), "", true)
		for what, err := range map[string]error{
			"Load":   loading,
			"List":   listing,
			"Store":  s.Store(t.Context(), "x", []byte("lost")),
			"Delete": s.Delete(t.Context(), "x"),
			"Lock":   s.Lock(t.Context(), "another"),
			"Unlock": s.Unlock(t.Context(), host),
		} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrLockLost) {
				t.Errorf("%s during the outage = %v, want an error that is neither fs.ErrNotExist nor ErrLockLost", what, err)
			}
		}
		if empty {
			check(os.Remove(dir)) // nothing was made in it
		}
		check(os.Rename(away, dir))
		if got, err := s.Load(t.Context(), "x"); string(got) != "value" || err != nil {
			t.Errorf("Load after the outage = %q, %v, want the value", got, err)
		}
		mustLock(t, s, "another")
		mustUnlock(t, s, "another")
		check(os.RemoveAll(filepath.Join(dir, "locks", host+".lock"))) // it would take 15 seconds
	}
}

func TestOpenMissing(t *testing.T) {
	name := filepath.Join(t.TempDir(), "missing")
	if _, err := Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of what is not there = %v, want fs.ErrNotExist", err)
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("Open made the folder")
	}
}
