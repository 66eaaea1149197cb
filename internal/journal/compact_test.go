package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// big returns a record of about 1.5 kB.
func big(name string, value int) Record {
	return Format("host", name, []int64{int64(value)}, []byte(`"`+strings.Repeat("x", 1450)+`"`))
}

func TestCompactLeavesNothingDead(t *testing.T) {
	name := temp(t)
	l := open(t, name)
	put(t, l, rec("a", 1), rec("b", 1), rec("c", 1))
	put(t, l, rec("a", 2), Delete("host", "b"))
	l.Put(rec("secret", 1)) // queued, never wanted in the file
	l.Put(rec("secret", 2))
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	wantFile(t, name, rec("a", 2), rec("c", 1), rec("secret", 2))
	got := read(t, name)
	if want := len(header + lines(rec("a", 2), rec("c", 1), rec("secret", 2))); len(got) != want {
		t.Errorf("file = %q, want the %d bytes that live", got, want)
	}
	if strings.Contains(got, string(rec("secret", 1))) {
		t.Error("the file has a record that was replaced before Compact")
	}
	if l.durable != l.seq || len(l.queue) != 0 {
		t.Errorf("%d records of %d are durable, %d queued", l.durable, l.seq, len(l.queue))
	}
	put(t, l, rec("a", 3))
	wantFile(t, name, rec("a", 3), rec("c", 1), rec("secret", 2))
	wantNoTemps(t, name)
}

func TestSyncCompactsWhenHalfIsDead(t *testing.T) {
	name := temp(t)
	l := open(t, name)
	var before int64
	for i := range 500 {
		put(t, l, big(fmt.Sprint(i%10), i))
		tidied(l)
		size := int64(len(read(t, name)))
		if size < before {
			if full := before + int64(len(big("0", i))) + 1; full <= minCompact {
				t.Errorf("compacted a file of %d bytes", full)
			}
			if live := int64(len(l.Text())); size != live {
				t.Errorf("compacted to %d bytes, of which %d live", size, live)
			}
		}
		if size > minCompact+2*1500 {
			t.Fatalf("file has %d bytes, of which %d live", size, len(l.Text()))
		}
		before = size
	}
	want(t, open(t, name), state2(l)...)
}

// tidied returns when a rewriting that a Sync began has ended.
func tidied(l *Log) {
	l.takeSlot(true)
	l.freeSlot()
}

func state2(l *Log) (rs []Record) {
	for r := range l.All() {
		rs = append(rs, r)
	}
	return rs
}

func TestLiveFileIsNotCompacted(t *testing.T) {
	name := temp(t)
	steps := 0
	l := openWith(t, name, Options{}, func(s string) error {
		if s == "rename" {
			steps++
		}
		return nil
	})
	steps = 0
	var rs []Record
	for i := range 100 {
		rs = append(rs, big(fmt.Sprint(i), 0))
	}
	put(t, l, rs...)
	put(t, l, rs[:90]...)
	tidied(l)
	if steps != 0 {
		t.Error("a file that is mostly alive was rewritten")
	}
	put(t, l, rs[:30]...)
	tidied(l)
	if steps != 1 {
		t.Errorf("a file that is mostly dead was rewritten %d times, want once", steps)
	}
}

// slowCopy opens a log whose compaction stops before the given step until
// release is called.
func slowCopy(t *testing.T, name, step string) (l *Log, reached <-chan struct{}, release func()) {
	at, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var on bool
	l = openWith(t, name, Options{}, func(s string) error {
		if on && s == step {
			once.Do(func() { close(at); <-free })
		}
		return nil
	})
	on = true
	return l, at, sync.OnceFunc(func() { close(free) })
}

func TestEverythingGoesOnDuringACompaction(t *testing.T) {
	for _, step := range []string{"copy", "fsync copy"} {
		t.Run(step, func(t *testing.T) {
			name := temp(t)
			l, reached, release := slowCopy(t, name, step)
			other := open(t, name)
			put(t, l, rec("a", 1), rec("b", 1), rec("c", 1))
			put(t, l, rec("a", 2))
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := l.Compact(); err != nil {
					t.Error(err)
				}
			})
			<-reached
			put(t, l, rec("d", 0))
			put(t, l, rec("a", 3), Delete("host", "b"), rec("d", 1))
			put(t, other, rec("e", 1), Delete("host", "c"))
			seq := l.Put(rec("f", 1)) // queued, written by the compaction
			release()
			wg.Wait()
			all := []Record{rec("a", 3), rec("d", 1), rec("e", 1), rec("f", 1)}
			want(t, l, all...)
			wantFile(t, name, all...)
			if strings.Contains(read(t, name), string(rec("d", 0))) {
				t.Error("the new file has a record that was replaced before it was made")
			}
			if l.durable < seq {
				t.Errorf("record %d is in the file, but only %d are durable", seq, l.durable)
			}
			put(t, other, rec("g", 1))
			all = append(all, rec("g", 1))
			want(t, other, all...)
			wantFile(t, name, all...)
		})
	}
}

func TestCompactWaitsForTheOneUnderWay(t *testing.T) {
	name := temp(t)
	synctest.Test(t, func(t *testing.T) {
		copies, slow := 0, false
		l := openWith(t, name, Options{}, func(s string) error {
			if slow && s == "copy" {
				copies++
				time.Sleep(time.Second)
			}
			return nil
		})
		put(t, l, rec("secret", 1))
		slow = true
		var wg sync.WaitGroup
		compact := func() {
			if err := l.Compact(); err != nil {
				t.Error(err)
			}
		}
		wg.Go(compact)
		synctest.Wait() // the first has copied the secret
		l.Put(rec("secret", 2))
		compact()
		wg.Wait()
		if copies != 2 {
			t.Errorf("two calls of Compact made %d copies", copies)
		}
		if strings.Contains(read(t, name), string(rec("secret", 1))) {
			t.Error("the file has a record that was replaced before Compact")
		}
		closeLog(t, l)
	})
}

func TestCloseEndsACompaction(t *testing.T) {
	name := temp(t)
	l, reached, release := slowCopy(t, name, "fsync copy")
	defer release()
	put(t, l, rec("a", 1))
	var wg sync.WaitGroup
	wg.Go(func() { l.Compact() })
	<-reached
	wg.Go(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	release()
	wg.Wait()
	wantFile(t, name, rec("a", 1))
	wantNoTemps(t, name)

	// One that begins after Close told it to stop copies one batch at most.
	l2 := open(t, name)
	l2.closing.Store(true)
	if err := l2.Compact(); !errors.Is(err, errClosing) {
		t.Errorf("Compact while closing = %v, want %v", err, errClosing)
	}
	l2.closing.Store(false)
	wantNoTemps(t, name)
}

func TestFailedCompaction(t *testing.T) {
	for _, step := range []string{"temp", "copy", "fsync copy", "write rest", "fsync rest", "rename", "syncdir"} {
		t.Run(step, func(t *testing.T) {
			name := temp(t)
			broken := ""
			l := openWith(t, name, Options{}, func(s string) error { return failAt(broken)(s) })
			put(t, l, rec("a", 1), rec("b", 1))
			put(t, l, rec("a", 2))
			seq := l.Put(rec("c", 1))
			old := read(t, name)
			broken = step
			if err := l.Compact(); !errors.Is(err, errInjected) {
				t.Errorf("Compact = %v, want the failure", err)
			}
			if got := read(t, name); step != "syncdir" && got != old {
				t.Errorf("file = %q, want the old one %q", got, old)
			}
			wantNoTemps(t, name)
			if l.durable >= seq {
				t.Error("what was queued counts as durable")
			}
			broken = ""
			put(t, l, rec("d", 1))
			wantFile(t, name, rec("a", 2), rec("b", 1), rec("c", 1), rec("d", 1))
			if err := l.Compact(); err != nil {
				t.Error(err)
			}
			wantFile(t, name, rec("a", 2), rec("b", 1), rec("c", 1), rec("d", 1))
		})
	}
}

// A compaction that fails must neither fail the Sync that it comes with nor be
// tried again at each.
func TestFailingCompactionIsPutOff(t *testing.T) {
	name := temp(t)
	tries, warned := 0, 0
	failing := true
	l := openWith(t, name, Options{Warn: func(error) { warned++ }}, func(s string) error {
		if failing && s == "fsync copy" {
			tries++
			return errInjected
		}
		return nil
	})
	for i := range 400 { // 600 kB, of 64 kB and up
		put(t, l, big("a", i))
		tidied(l)
	}
	if tries < 2 || tries > 8 || warned != tries {
		t.Errorf("%d tries and %d warnings while the file grew tenfold", tries, warned)
	}
	failing = false
	for i := range 400 {
		put(t, l, big("a", i))
		tidied(l)
	}
	if size := len(read(t, name)); size > minCompact+2000 {
		t.Errorf("file has %d bytes after compactions work again", size)
	}
}

// A rename that may not last must not be built upon.
func TestFolderIsSyncedAfterAFailedCompaction(t *testing.T) {
	var steps []string
	broken := ""
	l := openWith(t, temp(t), Options{}, func(s string) error {
		steps = append(steps, s)
		return failAt(broken)(s)
	})
	broken = "syncdir"
	if err := l.Compact(); !errors.Is(err, errInjected) {
		t.Errorf("Compact = %v, want the failure", err)
	}
	broken, steps = "", nil
	put(t, l, rec("a", 1))
	if !slices.Contains(steps, "syncdir") {
		t.Errorf("Sync after a folder that could not be synced did %q, want a syncdir", steps)
	}
}

// Compact may find a file that Open then fails to read.
func TestCompactDuringAnOpenThatFails(t *testing.T) {
	name := temp(t)
	write(t, name, "{}")
	importing, copied := make(chan struct{}), make(chan struct{})
	refused := errors.New("no")
	fl := &file{name: name, fail: func(s string) error {
		if s == "fsync copy" {
			close(copied)
		}
		return nil
	}}
	fl.opts.Import = func([]byte) ([]Record, error) {
		close(importing)
		<-copied
		return nil, refused
	}
	l := new(Log)
	l.Put(rec("a", 1))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.openFile(fl); !errors.Is(err, refused) {
			t.Errorf("Open = %v, want %v", err, refused)
		}
	})
	<-importing
	if err := l.Compact(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if got := read(t, name); got != "{}" {
		t.Errorf("file = %q, want it untouched", got)
	}
	wantNoTemps(t, name)
}

func TestOpenRemovesWhatCrashedRewritesLeft(t *testing.T) {
	name := temp(t)
	mine := name + ".12345" + tempSuffix
	others := []string{name + ".x" + tempSuffix, name + ".12345", name + "2.12345" + tempSuffix, name + ".damaged-1"}
	for _, n := range append(others, mine) {
		write(t, n, "x")
	}
	open(t, name)
	if _, err := os.Stat(mine); err == nil {
		t.Errorf("%s is left", mine)
	}
	for _, n := range others {
		if _, err := os.Stat(n); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenByAnotherDuringACompaction(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be removed here")
	}
	name := temp(t)
	l, reached, release := slowCopy(t, name, "fsync copy")
	defer release()
	put(t, l, rec("a", 1))
	put(t, l, rec("a", 2))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Compact(); err != nil {
			t.Errorf("Compact whose copy another Open removed: %v", err)
		}
	})
	<-reached
	other := open(t, name)
	wantNoTemps(t, name)
	put(t, other, rec("b", 1))
	release()
	wg.Wait()
	if got := read(t, name); len(got) != len(header+lines(rec("a", 2), rec("b", 1))) {
		t.Errorf("compacted file = %q", got)
	}
	put(t, other, rec("b", 2))
	put(t, l, rec("a", 3))
	wantFile(t, name, rec("a", 3), rec("b", 2))
	wantNoTemps(t, name)
}

func TestCompactAfterTheFolderVanished(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sub")
	name := filepath.Join(dir, "cache")
	l := open(t, name)
	put(t, l, rec("a", 1))
	if err := os.RemoveAll(dir); err != nil {
		t.Skipf("an open file cannot be removed here: %v", err)
	}
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	wantFile(t, name, rec("a", 1))
	wantNoTemps(t, name)
}

func TestRewriteFollowsSymbolicLinks(t *testing.T) {
	dir := t.TempDir()
	target, link, link2 := filepath.Join(dir, "data", "cache"), filepath.Join(dir, "link"), filepath.Join(dir, "link2")
	if err := errors.Join(os.Symlink(filepath.Join("data", "cache"), link), os.Symlink(link, link2)); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	l := open(t, link2) // dangling: neither file nor folder is there
	put(t, l, rec("a", 1))
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	direct := open(t, target)
	put(t, direct, rec("b", 1))
	put(t, l, rec("c", 1))
	wantFile(t, target, rec("a", 1), rec("b", 1), rec("c", 1))
	for _, n := range []string{link, link2} {
		if fi, err := os.Lstat(n); err != nil || fi.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s is no symbolic link any more: %v", n, err)
		}
	}
	// A link in a linked folder: ".." starts where the folder really is.
	other := filepath.Join(dir, "linked")
	if err := errors.Join(os.Symlink(filepath.Join(dir, "data"), other), os.Symlink("../up", filepath.Join(dir, "data", "l"))); err != nil {
		t.Fatal(err)
	}
	if got, err := resolve(filepath.Join(other, "l")); filepath.Base(got) != "up" || filepath.Base(filepath.Dir(got)) != filepath.Base(dir) || err != nil {
		t.Errorf("resolve(linked/l) = %s, %v, want %s", got, err, filepath.Join(dir, "up"))
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	if err := new(Log).Open(filepath.Join(dir, "loop"), Options{}); err == nil {
		t.Error("Open of a link to itself succeeds")
	}
}

// A Sync that finds a file to be rewritten while Close closes it leaves it alone.
func TestNoCompactionAfterClose(t *testing.T) {
	for range 100 {
		var l Log
		var closed, late atomic.Bool
		name := filepath.Join(t.TempDir(), "state")
		fl := &file{name: name, fail: func(step string) error {
			if closed.Load() && step == "temp" {
				late.Store(true)
			}
			return nil
		}}
		if err := l.openFile(fl); err != nil {
			t.Fatal(err)
		}
		big := []byte(`"` + strings.Repeat("x", 100<<10) + `"`)
		l.Sync(l.Put(Format("a", "a", nil, big)))
		seq := l.Put(Delete("a", "a"), Format("a", "b", nil, []byte("1")))
		var wg sync.WaitGroup
		wg.Go(func() { l.Sync(seq) })
		wg.Go(func() {
			for isWaiting(&l, seq) {
				runtime.Gosched()
			}
			l.Close()
			closed.Store(true)
		})
		wg.Wait()
		tidied(&l)
		if late.Load() {
			t.Fatal("a file is rewritten after Close returned")
		}
	}
}

func isWaiting(l *Log, seq uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file != nil && l.durable < seq
}
