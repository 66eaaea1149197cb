// Package dir keeps a fleet's state in a shared folder.
//
//	storage, err := dir.Open("/mnt/shared/letsencrypt")
//	if err != nil {
//		log.Fatal(err)
//	}
//	m := letsencrypt.Manager{Storage: storage}
//
// The members of the fleet are processes of one machine, or of several that
// have the folder mounted. What holds it must rename files and folders
// atomically, as local disks, NFS and SMB do; object storage dressed up as a
// file system mostly does not. An NFS client should be told by lookupcache=positive
// not to remember what is missing, or it misses for up to a minute what another
// member has stored.
//
// # What is in the folder
//
// Values, as they are, are in files below values/ that are named as their keys
// are, with ".value" at the end; what a file system may take for something else
// stands there as % and two digits. Keys are refused that [fs.ValidPath] refuses,
// and those with an element of which that makes more than 249 bytes. A lock that
// is held is a folder in locks/, and may be broken by removing that. What a crash
// left in temp/ goes after a day.
//
// Files hold private keys, and are for their owner alone: mode 0600. So all
// members run as one user.
package dir

// What Store has returned of has been synced: the file before it gets its name,
// and then the folders that have the name.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	valuesDir = "values"
	locksDir  = "locks"
	tempDir   = "temp"

	maxOps  = 64             // at the folder at once: those of a share that hangs each keep a thread
	tempAge = 24 * time.Hour // when what is in tempDir is nobody's any more, whatever the clocks say
)

// A Storage is a shared folder. It is a letsencrypt.Storage.
type Storage struct {
	path string
	beat time.Duration // how often a holder shows that it lives
	dead time.Duration // how long one that lives is never silent
	ops  chan struct{} // has an element for each operation under way

	mu    sync.Mutex       // guards the fields below and those of each lock
	locks map[string]*lock // by name: held through this Storage, or about to be
	held  int              // of them, those that are held
	stop  chan struct{}    // closed when none is: ends the goroutine that keeps them
}

// Open returns a Storage in a folder, which must be there: if it made the
// folder itself, a member that starts before the share is mounted would have a
// store of its own, and the CA would be asked again for all that the others have.
func Open(name string) (*Storage, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return nil, fmt.Errorf("dir: %w", err)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("dir: %w", err)
	}
	defer root.Close()
	for _, dir := range []string{valuesDir, locksDir, tempDir} {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("dir: %w", err)
		}
	}
	if err := syncDir(root, "."); err != nil {
		return nil, fmt.Errorf("dir: %w", err)
	}
	cleanTemp(root)
	return &Storage{
		path:  name,
		beat:  beatEvery,
		dead:  deadAfter,
		ops:   make(chan struct{}, maxOps),
		locks: make(map[string]*lock),
	}, nil
}

// cleanTemp removes what crashes have left. If it can't, that is in nobody's way.
func cleanTemp(root *os.Root) {
	entries, err := fs.ReadDir(root.FS(), tempDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > tempAge {
			root.RemoveAll(path.Join(tempDir, e.Name()))
		}
	}
}

// do has op work on the folder. A share that hangs holds nobody up for longer
// than ctx: then op goes on by itself, and if it succeeds at last it is undone.
func (s *Storage) do(ctx context.Context, op func(*os.Root) error, undo func(*os.Root)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.ops <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	done := make(chan error) // not buffered: what is not received was not done
	go func() {
		defer func() { <-s.ops }()
		root, err := os.OpenRoot(s.path)
		if err != nil {
			err = s.outage(err)
		} else {
			defer root.Close()
			if err = op(root); errors.Is(err, fs.ErrNotExist) && !isStore(root) {
				err = s.outage(err)
			}
		}
		select {
		case done <- err:
		case <-ctx.Done():
			if err == nil && undo != nil {
				undo(root)
			}
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// outage returns an error that is not fs.ErrNotExist: that the folder is
// missing, perhaps a share that is not mounted, does not tell what is in it.
func (s *Storage) outage(err error) error {
	return fmt.Errorf("the storage in %s is not there: %v", s.path, err)
}

// isStore reports whether root is a folder that Open has seen.
func isStore(root *os.Root) bool {
	for _, dir := range []string{valuesDir, locksDir, tempDir} {
		if _, err := root.Stat(dir); err != nil {
			return false
		}
	}
	return true
}

// wrap says what could not be done. The name is quoted: it may be anything.
func wrap(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("dir: %s %q: %w", verb, name, err)
}

// Load returns the value at key. Its error is fs.ErrNotExist if there is none,
// and not if the folder can't be reached.
func (s *Storage) Load(ctx context.Context, key string) ([]byte, error) {
	var value []byte
	name, err := valueName(key)
	if err == nil {
		err = s.do(ctx, func(root *os.Root) error {
			data, err := root.ReadFile(name)
			if errors.Is(err, syscall.ESTALE) { // replaced on another machine, after NFS had looked up the name
				data, err = root.ReadFile(name)
			}
			value = data
			return err
		}, nil)
	}
	if err != nil {
		return nil, wrap("loading", key, err)
	}
	return value, nil
}

// Store sets the value at key. When it returns nil, the value is on disk, or
// what the server of the share calls that. Whoever loads the key meanwhile
// gets the value that was there before, or the new one.
func (s *Storage) Store(ctx context.Context, key string, value []byte) error {
	name, err := valueName(key)
	if err == nil {
		value = bytes.Clone(value) // if ctx ends first it is read after we have returned
		err = s.do(ctx, func(root *os.Root) error { return store(ctx, root, name, value) }, nil)
	}
	return wrap("storing", key, err)
}

// store writes the value to a file of its own and gives that the name. If ctx
// ends before that it does not: what is stored later must not be overwritten
// with something old when a share that hung comes back.
func store(ctx context.Context, root *os.Root, name string, value []byte) error {
	temp := path.Join(tempDir, rand.Text())
	if err := writeFile(root, temp, value); err != nil {
		root.Remove(temp)
		return err
	}
	err := root.MkdirAll(path.Dir(name), 0o700)
	if err = cmp.Or(err, ctx.Err()); err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		root.Remove(temp)
		return err
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) { // any of them may be new
		if err := syncDir(root, dir); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(root *os.Root, name string, data []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return cmp.Or(err, f.Close())
}

// syncDir makes the names in dir durable, where that can be asked for: some
// file systems have no such notion, and Windows does not sync a folder.
func syncDir(root *os.Root, dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// Delete removes the value at key, if there is one.
func (s *Storage) Delete(ctx context.Context, key string) error {
	name, err := valueName(key)
	if err == nil {
		err = s.do(ctx, func(root *os.Root) error {
			err := root.Remove(name)
			if errors.Is(err, fs.ErrNotExist) && isStore(root) {
				return nil
			}
			if err != nil {
				return err
			}
			return syncDir(root, path.Dir(name))
		}, nil)
	}
	return wrap("deleting", key, err)
}

// List returns, sorted, the keys that begin with prefix and a slash, or all if
// prefix is empty. If it is not recursive, they are cut before the next slash.
// One slash at the end of prefix changes nothing.
func (s *Storage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	var keys []string
	prefix = strings.TrimSuffix(prefix, "/")
	folder, err := folderName(prefix)
	if err == nil {
		err = s.do(ctx, func(root *os.Root) error {
			found, err := keysBelow(ctx, root, prefix, folder, !recursive)
			slices.Sort(found)
			keys = slices.Compact(found)
			return err
		}, nil)
	}
	if err != nil {
		return nil, wrap("listing", prefix, err)
	}
	return keys, nil
}
