package storetest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/store/storetest"
)

// faultVar names what is wrong with the storage that TestFake tests.
const faultVar = "STORETEST_FAULT"

const (
	fakeTTL  = 1500 * time.Millisecond // of a lock that is not renewed
	crashTTL = 5 * time.Second
)

// A fake is a storage in a folder, good enough for a test and, if it is told
// to, bad in one way.
type fake struct {
	dir, fault string

	mu     sync.Mutex
	tokens map[string]string             // of the locks that are held
	stops  map[string]context.CancelFunc // end their renewal
}

func newFake(dir, fault string) *fake {
	return &fake{dir: dir, fault: fault, tokens: make(map[string]string), stops: make(map[string]context.CancelFunc)}
}

var engine = storetest.Engine{
	Start: func(tb testing.TB) string { return tb.TempDir() },
	Open:  func(tb testing.TB, addr string) letsencrypt.Storage { return newFake(addr, os.Getenv(faultVar)) },
	Steal: func(tb testing.TB, addr, lock string) {
		if err := os.Remove(fileName(addr, lock, ".lock")); err != nil {
			tb.Fatal(err)
		}
	},
	Restart: func(tb testing.TB, addr string) {
		if os.Getenv(faultVar) != "forgets" {
			return
		}
		if err := os.Remove(fileName(addr, "letsencrypt/restart/19.example", ".value")); err != nil {
			tb.Fatal(err)
		}
	},
	CrashTTL: crashTTL,
}

// TestFake: a storage without a fault passes.
func TestFake(t *testing.T) {
	storetest.Required(t, engine)
	storetest.Strict(t, engine)
}

// TestFaults: one with a fault does not.
func TestFaults(t *testing.T) {
	if os.Getenv(faultVar) != "" {
		return
	}
	tests := []struct{ fault, fails string }{
		{"missing is empty", "Required/Values"},
		{"leaves a tail", "Required/Values"},
		{"trims", "Required/Values"},
		{"deletes nothing", "Required/Values"},
		{"short names", "Required/Keys"},
		{"keeps slices", "Required/Isolation"},
		{"lists the deleted", "Required/List"},
		{"lists any prefix", "Required/List"},
		{"lists nothing", "Required/List"},
		{"writes in place", "Required/Overwrite"},
		{"removes first", "Required/Overwrite"},
		{"hangs", "Required/Cancel"},
		{"locks nothing", "Required/Exclusion"},
		{"one lock", "Required/Independence"},
		{"locks nothing", "Required/LockCancel"},
		{"does not wait", "Required/LockCancel"},
		{"deaf", "Required/LockCancel"},
		{"locks later", "Required/LockCancel"},
		{"locks by context", "Required/LockOutlivesContext"},
		{"never expires", "Required/Crash"},
		{"locks nothing", "Required/Crash"},
		{"nameless errors", "Strict/HostileKeys"},
		{"folds case", "Strict/HostileKeys"},
		{"lists folders", "Strict/HostileKeys"},
		{"nameless errors", "Strict/HostileLocks"},
		{"folds case", "Strict/HostileLocks"},
		{"lists folders", "Strict/ListExactly"},
		{"ignores contexts", "Strict/EndedContext"},
		{"unlocks anything", "Strict/UnlockUnheld"},
		{"silent loss", "Strict/LostLock"},
		{"unlocks anything", "Strict/LostLock"},
		{"never renews", "Strict/LongHold"},
		{"slow handover", "Strict/LongHold"},
		{"locks nothing", "Strict/DeathStored"},
		{"never expires", "Strict/DeathLocked"},
		{"forgets", "Strict/Restart"},
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, tt := range tests { // most of it is waiting
		wg.Go(func() { t.Run(tt.fault, func(t *testing.T) { testFault(t, tt.fault, tt.fails) }) })
	}
}

func testFault(t *testing.T, fault, fails string) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestFake$/^"+strings.ReplaceAll(fails, "/", "$/^")+"$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), faultVar+"="+fault)
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("--- FAIL: TestFake/"+fails)) {
		t.Errorf("a storage that %s: %v, want %s to fail\n%s", fault, err, fails, out)
	}
}

// is reports whether the fake has the fault.
func (f *fake) is(fault string) bool { return f.fault == fault }

// ended returns the error of an operation whose context has ended.
func (f *fake) ended(ctx context.Context) error {
	if f.is("ignores contexts") {
		return nil
	}
	if f.is("hangs") && ctx.Err() != nil {
		select {}
	}
	return ctx.Err()
}

// file returns the name of the file for a key or a lock.
func (f *fake) file(name, suffix string) (string, error) {
	switch {
	case f.is("short names"):
		name = name[:min(len(name), 100)]
	case f.is("folds case"):
		name = strings.ToLower(name)
	case f.is("nameless errors") && name == "CON":
		return "", errors.New("the name is reserved")
	}
	return fileName(f.dir, name, suffix), nil
}

func fileName(dir, name, suffix string) string {
	return filepath.Join(dir, fmt.Sprintf("%x%s", sha256.Sum256([]byte(name)), suffix))
}

// prepare returns the name of a file for an operation on it.
func (f *fake) prepare(ctx context.Context, name, suffix string) (string, error) {
	file, err := f.file(name, suffix)
	return file, errors.Join(err, f.ended(ctx))
}

// A record is what is in the file of a value.
type record struct {
	Key   string
	Value []byte
}

func read(file string) (record, error) {
	var r record
	data, err := os.ReadFile(file)
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(data)).Decode(&r)
	}
	return r, err
}

func (f *fake) Load(ctx context.Context, key string) ([]byte, error) {
	file, err := f.prepare(ctx, key, ".value")
	if err != nil {
		return nil, err
	}
	if value, ok := kept.Load(file); ok && f.is("keeps slices") {
		return value.([]byte), nil
	}
	r, err := read(file)
	if f.is("missing is empty") && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return r.Value, err
}

var kept sync.Map // file to slice

func (f *fake) Store(ctx context.Context, key string, value []byte) error {
	file, err := f.prepare(ctx, key, ".value")
	if err != nil {
		return err
	}
	switch {
	case f.is("keeps slices"):
		kept.Store(file, value)
	case f.is("trims"):
		value = bytes.TrimSpace(value)
	case f.is("leaves a tail"):
		if old, err := read(file); err == nil && len(old.Value) > len(value) {
			value = append(slices.Clip(value), old.Value[len(value):]...)
		}
	case f.is("removes first"):
		os.Remove(file)
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(record{key, value}); err != nil {
		return err
	}
	if f.is("writes in place") {
		return os.WriteFile(file, buf.Bytes(), 0o600)
	}
	temp := filepath.Join(f.dir, rand.Text())
	return errors.Join(os.WriteFile(temp, buf.Bytes(), 0o600), os.Rename(temp, file))
}

func (f *fake) Delete(ctx context.Context, key string) error {
	file, err := f.prepare(ctx, key, ".value")
	if err != nil || f.is("deletes nothing") {
		return err
	}
	if f.is("lists the deleted") {
		return os.Rename(file, file+".deleted")
	}
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f *fake) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(f.dir, "*.value*"))
	if err = errors.Join(err, f.ended(ctx)); err != nil || f.is("lists nothing") {
		return nil, err
	}
	if prefix != "" && !f.is("lists any prefix") {
		prefix += "/"
	}
	var keys []string
	for _, file := range files {
		r, err := read(file)
		rest, ok := strings.CutPrefix(r.Key, prefix)
		if err != nil || !ok {
			continue // overwritten meanwhile
		}
		next, below, _ := strings.Cut(rest, "/")
		if below != "" && f.is("lists folders") || !recursive {
			keys = append(keys, prefix+next)
		}
		if recursive {
			keys = append(keys, r.Key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

func (f *fake) Lock(ctx context.Context, name string) error {
	if f.is("one lock") {
		name = "the one"
	}
	file, err := f.prepare(ctx, name, ".lock")
	if err != nil || f.is("locks nothing") {
		return err
	}
	err = f.wait(ctx, file)
	if err != nil && f.is("locks later") {
		other := newFake(f.dir, "")
		go other.wait(context.Background(), file)
	}
	return err
}

// wait takes a lock: it is a file with a token in it, whose time is renewed.
func (f *fake) wait(ctx context.Context, file string) error {
	token := rand.Text()
	for {
		lock, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			_, err = lock.WriteString(token)
			f.keep(ctx, file, token)
			return errors.Join(err, lock.Close())
		}
		if !errors.Is(err, fs.ErrExist) || f.is("does not wait") {
			return err
		}
		fi, err := os.Stat(file)
		if err == nil && time.Since(fi.ModTime()) > fakeTTL && !f.is("never expires") {
			os.Remove(file)
		}
		pause := 5 * time.Millisecond
		if f.is("slow handover") {
			pause = 20 * time.Second
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if !f.is("deaf") {
				return ctx.Err()
			}
		}
	}
}

// keep renews a lock until it is given back.
func (f *fake) keep(ctx context.Context, file, token string) {
	renewal, stop := context.WithCancel(context.Background())
	f.mu.Lock()
	f.tokens[file], f.stops[file] = token, stop
	f.mu.Unlock()
	if f.is("locks by context") {
		context.AfterFunc(ctx, func() { os.Remove(file) })
	}
	if f.is("never renews") {
		return
	}
	go func() {
		for renewal.Err() == nil {
			now := time.Now()
			os.Chtimes(file, now, now)
			select {
			case <-time.After(fakeTTL / 10):
			case <-renewal.Done():
			}
		}
	}()
}

func (f *fake) Unlock(ctx context.Context, name string) error {
	if f.is("one lock") {
		name = "the one"
	}
	file, err := f.prepare(ctx, name, ".lock")
	if err != nil || f.is("locks nothing") {
		return err
	}
	f.mu.Lock()
	token, stop := f.tokens[file], f.stops[file]
	delete(f.tokens, file)
	f.mu.Unlock()
	if stop != nil {
		stop()
	}
	data, err := os.ReadFile(file)
	switch {
	case f.is("unlocks anything"):
	case f.is("silent loss") && (err != nil || string(data) != token):
		return nil
	case err != nil:
		return err
	case string(data) != token:
		return errors.New("the lock is another's")
	}
	return os.Remove(file)
}
