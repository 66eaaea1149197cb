//go:build unix

package dir

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestModes: nobody else may look into the files.
func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	s := newStorage(t, dir)
	mustLock(t, s, host)
	defer mustUnlock(t, s, host)
	if err := s.Store(t.Context(), "a/b", []byte("value")); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, fi.Mode(), want)
		}
		seen++
		return nil
	})
	if err != nil || seen != 7 {
		t.Errorf("%d files and folders, %v, want 7", seen, err)
	}
}

// TestSymlink: a link that leads out of the folder is not followed.
func TestSymlink(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	s := newStorage(t, dir)
	if err := os.WriteFile(filepath.Join(outside, "x.value"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"a": outside, "b.value": filepath.Join(outside, "x.value")} {
		if err := os.Symlink(to, filepath.Join(dir, "values", link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"a/x", "b"} {
		if got, err := s.Load(t.Context(), key); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load(%q) through a link = %q, %v, want an error that is not fs.ErrNotExist", key, got, err)
		}
	}
	if err := s.Store(t.Context(), "a/y", nil); err == nil {
		t.Error("Store through a link = nil, want an error")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside of the folder are %v, %v, want one file", entries, err)
	}
}

// TestHang: a share that hangs holds nobody up for longer than he waits, and is
// not asked by more and more goroutines. A pipe that nobody writes to stands for it.
func TestHang(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir)
	pipe := filepath.Join(dir, "values", "x.value")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range maxOps + 10 {
		wg.Go(func() {
			if _, err := s.Load(ctx, "x"); !errors.Is(err, context.Canceled) {
				t.Errorf("Load from a share that hangs = %v, want context.Canceled", err)
			}
		})
	}
	for start := time.Now(); len(s.ops) < maxOps && time.Since(start) < time.Minute; {
		<-time.After(time.Millisecond)
	}
	cancel()
	wg.Wait()
	if got := len(s.ops); got != maxOps {
		t.Errorf("%d operations are under way, want %d", got, maxOps)
	}
	for len(s.ops) > 0 { // who has not opened it yet hangs until the next time
		if f, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			f.Close()
		}
	}
	if err := s.Store(t.Context(), "y", nil); err != nil {
		t.Errorf("when the share is back: Store = %v", err)
	}
}

// The tests below run this test binary again, with these in its environment,
// as the members of a fleet with little patience.
const (
	roleVar = "DIR_TEST_ROLE"
	pathVar = "DIR_TEST_PATH"

	shortBeat = 20 * time.Millisecond
	shortDead = 300 * time.Millisecond
)

func hasty(t *testing.T, dir string) *Storage {
	s := newStorage(t, dir)
	s.beat, s.dead = shortBeat, shortDead
	return s
}

// TestMember is what another process does, and nothing in this one.
func TestMember(t *testing.T) {
	role := os.Getenv(roleVar)
	if role == "" {
		return
	}
	s := hasty(t, os.Getenv(pathVar))
	in := bufio.NewScanner(os.Stdin)
	switch role {
	case "hold": // until told
		mustLock(t, s, host)
		fmt.Println("held")
		in.Scan()
		fmt.Println(errors.Is(s.Unlock(t.Context(), host), ErrLockLost))
	case "work": // until the input ends
		ended := make(chan struct{})
		go func() {
			in.Scan()
			close(ended)
		}()
		for {
			work(t, s)
			select {
			case <-ended:
				return
			default:
			}
		}
	}
}

// work has the lock for a while, and says when it had it, when it was about to
// give it back and had done so, and whether it has had it all the time.
func work(t *testing.T, s *Storage) {
	mustLock(t, s, host)
	from := time.Now()
	<-time.After(rand.N(20 * time.Millisecond))
	to := time.Now()
	err := s.Unlock(t.Context(), host)
	if err != nil && !errors.Is(err, ErrLockLost) {
		t.Fatal(err)
	}
	fmt.Printf("worked %d %d %d %v\n", from.UnixNano(), to.UnixNano(), time.Now().UnixNano(), err == nil)
}

// A member is another process.
type member struct {
	*exec.Cmd
	stdin io.WriteCloser
	out   io.Reader
}

func start(t *testing.T, dir, role string) *member {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestMember$", "-test.count=1")
	cmd.Env = append(os.Environ(), roleVar+"="+role, pathVar+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &member{cmd, stdin, out}
}

func (m *member) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := m.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// TestStopped: a process that is stopped for long, and goes on, learns that the
// lock is another's.
func TestStopped(t *testing.T) {
	dir := t.TempDir()
	m := start(t, dir, "hold")
	lines := bufio.NewScanner(m.out)
	next := func() string {
		lines.Scan()
		return lines.Text()
	}
	if got := next(); got != "held" {
		t.Fatalf("the other process says %q", got)
	}
	m.signal(t, syscall.SIGSTOP)
	s := hasty(t, dir)
	mustLock(t, s, host)
	m.signal(t, syscall.SIGCONT)
	fmt.Fprintln(m.stdin, "go on")
	if got := next(); got != "true" {
		t.Errorf("its Unlock returns ErrLockLost: %s, want true", got)
	}
	mustUnlock(t, s, host)
}

// TestTakeover has members work under one lock while some are killed, stopped
// and continued at random, so that several others find at the same time that
// the holder is dead. Of those that are told that they have had the lock all the
// time, no two had it at once; and none loses it that was not stopped.
func TestTakeover(t *testing.T) {
	const members, actions, pace = 5, 40, 100 * time.Millisecond
	dir := t.TempDir()
	spans := make(chan span, 100_000) // more than there can be
	var running sync.WaitGroup
	begin := func() *member {
		m := start(t, dir, "work")
		running.Go(func() { m.spans(spans) })
		return m
	}
	var all []*member
	for range members {
		all = append(all, begin())
	}
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for range actions {
		<-tick.C
		i := rand.N(members)
		m := all[i]
		if rand.N(3) == 0 {
			m.signal(t, os.Kill)
			all[i] = begin()
			continue
		}
		m.signal(t, syscall.SIGSTOP)
		time.AfterFunc(shortDead+rand.N(4*shortDead), func() { m.Process.Signal(syscall.SIGCONT) })
	}
	for _, m := range all {
		m.stdin.Close()
	}
	running.Wait()
	close(spans)
	var kept, lost, robbed []span
	for sp := range spans {
		switch {
		case sp.kept:
			kept = append(kept, sp)
		case sp.back-sp.from < int64(shortDead):
			robbed = append(robbed, sp)
		default:
			lost = append(lost, sp)
		}
	}
	t.Logf("%d times under the lock, %d times lost", len(kept), len(lost))
	if len(kept) < actions {
		t.Errorf("%d times under the lock, want at least %d", len(kept), actions)
	}
	if len(robbed) > 1 { // one may have been stopped when it had the lock and did not know it
		t.Errorf("%d lost the lock although they were not stopped: %v", len(robbed), robbed)
	}
	checkApart(t, kept)
}

// A span is a time in which a member had the lock, in nanoseconds.
type span struct {
	from, to, back int64
	kept           bool
}

// spans passes on what the member says until it ends.
func (m *member) spans(to chan<- span) {
	for in := bufio.NewScanner(m.out); in.Scan(); {
		var sp span
		if _, err := fmt.Sscanf(in.Text(), "worked %d %d %d %t", &sp.from, &sp.to, &sp.back, &sp.kept); err == nil {
			to <- sp
		}
	}
}

func checkApart(t *testing.T, spans []span) {
	t.Helper()
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for i := range len(spans) - 1 {
		if a, b := spans[i], spans[i+1]; b.from < a.to {
			t.Errorf("two had the lock at once, and neither was told: %v and %v", a, b)
		}
	}
}
