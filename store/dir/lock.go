package dir

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A lock that is held is a folder with one empty file in it. The file's name is
// a token that its holder made up and a number that it raises every few
// seconds, by renaming the file. It takes three steps that file systems promise
// to do wholly or not at all, and at one time for all who look:
//
//   - To take a lock is to rename a folder, made elsewhere with its file, to
//     where the lock's is. That fails while there is a folder that is not empty.
//   - To give it back, or to break it, is to remove the file by its name. The
//     holder learns so whether it held the lock all the time. Who breaks a lock
//     names token and number as it saw them, so that it takes nothing from a
//     holder that has shown since that it lives, and nothing from the next one.
//   - To remove the folder is of no account: that fails unless it is empty.
//
// Nobody compares clocks. Who waits for a lock watches the name, and breaks the
// lock when it has watched for deadAfter and the name has stayed the same. Nor
// does it matter that an NFS client lists what was there some seconds ago: the
// steps are the server's.

const (
	beatEvery  = 3 * time.Second
	deadAfter  = 15 * time.Second
	unlockTime = 10 * time.Second // for the folder to answer

	firstLook = 10 * time.Millisecond // after so long a waiter looks again, and then less and less often
	looks     = 30                    // in deadAfter, at least
)

// ErrLockLost is what Unlock returns if the lock was no longer the caller's:
// its process or the folder had stood still for so long that another member
// took it for dead, or somebody removed the lock by hand.
var ErrLockLost = errors.New("the lock was lost")

var errNotLocked = errors.New("it is not locked by this Storage")

// A lock is one that is held through a Storage or that it tries to take. There
// is one of a name at a time: a second is in nobody's way, but Unlock could not
// tell which of them it is given back.
type lock struct {
	folder, token string
	gone          chan struct{} // closed when it is no longer in Storage.locks

	// Guarded by Storage.mu.
	held  bool
	beats int // the number in the file's name, or that less one: see file
}

func (l *lock) file(beats int) string {
	return path.Join(l.folder, l.token+"."+strconv.Itoa(beats))
}

// Lock waits until the lock is the caller's, or ctx ends. If its holder is dead
// that takes up to 20 seconds; a ctx that ends before gets it never.
func (s *Storage) Lock(ctx context.Context, name string) error {
	folder, err := lockName(name)
	if err != nil {
		return wrap("locking", name, err)
	}
	l := &lock{folder: folder, token: strings.ToLower(rand.Text()), gone: make(chan struct{})}
	if err := s.claim(ctx, name, l); err != nil {
		return wrap("locking", name, err)
	}
	if err := s.acquire(ctx, l); err != nil {
		s.drop(name, l)
		return wrap("locking", name, err)
	}
	s.hold(l)
	return nil
}

// claim makes l the one lock of that name in this process.
func (s *Storage) claim(ctx context.Context, name string, l *lock) error {
	for {
		s.mu.Lock()
		other := s.locks[name]
		if other == nil {
			s.locks[name] = l
		}
		s.mu.Unlock()
		if other == nil {
			return nil
		}
		select {
		case <-other.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Storage) drop(name string, l *lock) {
	s.mu.Lock()
	delete(s.locks, name)
	s.mu.Unlock()
	close(l.gone)
}

// acquire takes a lock as soon as it is free, or its holder dead.
func (s *Storage) acquire(ctx context.Context, l *lock) error {
	var seen string          // the file of who holds it
	var silent time.Duration // how long we have watched it and it stayed the same
	most := s.dead / looks
	last := time.Now()
	for wait := firstLook; ; wait = min(wait*3/2, most) {
		var file string
		err := s.do(ctx, func(root *os.Root) (err error) {
			if silent >= s.dead {
				root.Remove(path.Join(l.folder, seen)) // or it lives after all, or another was first
			}
			file, err = take(root, l)
			return err
		}, func(root *os.Root) { release(root, l, 0) })
		if err != nil || file == "" {
			return err
		}
		now := time.Now()
		if file != seen {
			seen, silent = file, 0
		} else {
			// When we stood still ourselves, perhaps because the whole machine
			// did, we know nothing about the holder.
			silent += min(now.Sub(last), 2*most)
		}
		last = now
		select {
		case <-time.After(wait/2 + mathrand.N(wait/2)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take takes a lock if it is free, or else returns the name of its holder's file.
func take(root *os.Root, l *lock) (file string, err error) {
	entries, err := fs.ReadDir(root.FS(), l.folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if len(entries) > 0 {
		return entries[0].Name(), nil
	}
	temp := path.Join(tempDir, l.token)
	if err := root.Mkdir(temp, 0o700); err != nil {
		return "", err
	}
	defer root.RemoveAll(temp)
	if err := root.WriteFile(path.Join(temp, path.Base(l.file(0))), nil, 0o600); err != nil {
		return "", err
	}
	root.Remove(l.folder) // an empty one, which os.Root does not replace
	err = root.Rename(temp, l.folder)
	if err != nil && exists(root, l.file(0)) { // an NFS server did it, and was asked again
		return "", nil
	}
	if isTaken(err) {
		return "another was first", nil
	}
	return "", err
}

// isTaken reports whether a folder could not get a name because another has it.
// Windows says that this is not permitted, also when the other is being removed.
func isTaken(err error) bool {
	return errors.Is(err, fs.ErrExist) || runtime.GOOS == "windows" && errors.Is(err, fs.ErrPermission)
}

func exists(root *os.Root, name string) bool {
	_, err := root.Lstat(name)
	return err == nil
}

// hold begins to keep a lock that was taken.
func (s *Storage) hold(l *lock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.held = true
	if s.held++; s.held == 1 {
		s.stop = make(chan struct{})
		go s.keep(s.stop)
	}
}

// keep shows that the holder lives, for all locks that are held, until stop.
func (s *Storage) keep(stop chan struct{}) {
	tick := time.NewTicker(s.beat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.beatAll()
		case <-stop:
			return
		}
	}
}

// beatAll raises the number of each lock that is held. What fails is tried again
// at the next tick, which may find that it was done; one that is lost stays lost.
func (s *Storage) beatAll() {
	beats := make(map[*lock]int)
	s.mu.Lock()
	for _, l := range s.locks {
		if l.held {
			beats[l] = l.beats
		}
	}
	s.mu.Unlock()
	root, err := os.OpenRoot(s.path)
	if err != nil {
		return
	}
	defer root.Close()
	for l, n := range beats {
		if err := root.Rename(l.file(n), l.file(n+1)); err == nil || exists(root, l.file(n+1)) {
			s.mu.Lock()
			l.beats = n + 1
			s.mu.Unlock()
		}
	}
}

// Unlock gives a lock back, also if ctx has ended. If it returns an error the
// lock is no longer held either: at the latest when other members have not
// heard of it for 15 seconds. An error that is ErrLockLost says that it was not
// held all the time since Lock.
func (s *Storage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	l := s.locks[name]
	if l == nil || !l.held {
		s.mu.Unlock()
		return wrap("unlocking", name, errNotLocked)
	}
	l.held = false
	if s.held--; s.held == 0 {
		close(s.stop)
	}
	beats := l.beats
	s.mu.Unlock()
	defer s.drop(name, l)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTime)
	defer cancel()
	return wrap("unlocking", name, s.do(ctx, func(root *os.Root) error { return release(root, l, beats) }, nil))
}

// release removes the file of a lock's holder, if it is there.
func release(root *os.Root, l *lock, beats int) error {
	for _, n := range []int{beats, beats + 1} { // the last beat may be under way, or have been done and failed
		err := root.Remove(l.file(n))
		if err == nil {
			root.Remove(l.folder) // unless another has it already
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if !isStore(root) {
		return fs.ErrNotExist
	}
	return ErrLockLost
}
