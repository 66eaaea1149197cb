package storetest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"example.com/letsencrypt"
)

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func store(t *testing.T, s letsencrypt.Storage, key string, value []byte) {
	t.Helper()
	if err := s.Store(within(t, patience), key, value); err != nil {
		t.Fatalf("Store(%q) = %v", key, err)
	}
}

// wantValue checks what Load returns.
func wantValue(t *testing.T, s letsencrypt.Storage, key string, want []byte) {
	t.Helper()
	got, err := s.Load(within(t, patience), key)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("Load(%q) = %d bytes, %v, want the %d that were stored; they begin %.20q, want %.20q",
			key, len(got), err, len(want), got, want)
	}
}

func wantMissing(t *testing.T, s letsencrypt.Storage, key string) {
	t.Helper()
	if got, err := s.Load(within(t, patience), key); !isMissing(err) {
		t.Errorf("Load(%q) = %.20q, %v, want an error that is fs.ErrNotExist", key, got, err)
	}
}

// remove deletes a key. That nothing is there may be an error, or not.
func remove(t *testing.T, s letsencrypt.Storage, key string) {
	t.Helper()
	if err := s.Delete(within(t, patience), key); err != nil && !isMissing(err) {
		t.Errorf("Delete(%q) = %v", key, err)
	}
}

// megabyte returns the size that values may have, of all there is in bytes.
func megabyte() []byte {
	value := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(value)
	return value
}

// testValues: what one client stores another loads, byte for byte, until it is
// overwritten or deleted.
func testValues(t *testing.T, s suite) {
	const key = "letsencrypt/values/example.com"
	a, b := s.open(t), s.open(t)
	wantMissing(t, a, key)
	remove(t, a, key)
	values := [][]byte{
		[]byte("one"), []byte("another, longer"), []byte("x"), {}, {0},
		[]byte("line\r\nline\n\n"), {0xff, 0xfe, 0, 0x80, '\n'}, megabyte(), []byte("short again"),
	}
	for _, value := range values {
		store(t, a, key, value)
		wantValue(t, a, key, value)
		wantValue(t, b, key, value)
	}
	store(t, a, key, nil)
	wantValue(t, b, key, nil)
	remove(t, b, key)
	wantMissing(t, a, key)
	wantMissing(t, b, key)
	remove(t, a, key)
}

// testKeys: all names that a Manager uses are names, and each is its own.
func testKeys(t *testing.T, s suite) {
	names := []string{
		"-", "0", "a", "b", "example.com", "www.example.com", "example.com.evil.example", "xn--bcher-kva.example",
		"192.0.2.1", "_dmarc.example.com", "a-b.c_d", "con.example", "nul", "lock", "tmp",
		"_" + strings.Repeat("abcdefgh234567", 4)[:52], strings.Repeat("a", 200), strings.Repeat("a", 199) + "b", "a" + strings.Repeat("b", 199), strings.Repeat("a.", 99) + "bc",
	}
	a, b := s.open(t), s.open(t)
	var keys []string
	for _, kind := range []string{"keys", "keys2"} {
		for _, name := range names {
			keys = append(keys, "letsencrypt/"+kind+"/"+name)
		}
	}
	for _, key := range keys {
		store(t, a, key, []byte(key))
	}
	for _, key := range keys {
		wantValue(t, b, key, []byte(key))
	}
	for i, key := range keys {
		remove(t, b, key)
		wantMissing(t, a, key)
		if i+1 < len(keys) {
			wantValue(t, a, keys[i+1], []byte(keys[i+1]))
		}
	}
}

// testIsolation: slices that went in or came out are the caller's to change.
func testIsolation(t *testing.T, s suite) {
	const key = "letsencrypt/isolation/example.com"
	a, b := s.open(t), s.open(t)
	value := []byte("value")
	store(t, a, key, value)
	clear(value)
	wantValue(t, a, key, []byte("value"))
	wantValue(t, b, key, []byte("value"))
	got, err := a.Load(within(t, patience), key)
	if err != nil {
		t.Fatalf("Load(%q) = %v", key, err)
	}
	clear(got)
	wantValue(t, a, key, []byte("value"))
	wantValue(t, b, key, []byte("value"))
}

// list returns the keys below a prefix, sorted and without a slash at the end.
// Where there are none that may be an error.
func list(t *testing.T, s letsencrypt.Storage, prefix string, recursive bool) []string {
	t.Helper()
	keys, err := s.List(within(t, patience), prefix, recursive)
	if err != nil && !isMissing(err) {
		t.Fatalf("List(%q, %v) = %v", prefix, recursive, err)
	}
	for i := range keys {
		keys[i] = strings.TrimSuffix(keys[i], "/")
	}
	slices.Sort(keys)
	return keys
}

func wantList(t *testing.T, s letsencrypt.Storage, prefix string, recursive bool, want ...string) {
	t.Helper()
	if got := list(t, s, prefix, recursive); !slices.Equal(got, want) {
		t.Errorf("List(%q, %v) = %.300q, want %.300q", prefix, recursive, got, want)
	}
}

// testList: List finds what is there, and not what was deleted. A recursive one
// may name what stands between the prefix and the keys.
func testList(t *testing.T, s suite) {
	a, b := s.open(t), s.open(t)
	wantList(t, a, "listed", true)
	keys := []string{"listed/one/a.example", "listed/one/b.example", "listed/two/a.example"}
	for _, key := range keys {
		store(t, a, key, []byte(key))
	}
	wantList(t, b, "listed/one", true, keys[0], keys[1])
	wantList(t, b, "listed/one", false, keys[0], keys[1])
	wantList(t, b, "listed", false, "listed/one", "listed/two")
	wantList(t, b, "listed/on", true)
	between := func(key string) bool { return path.Dir(key) == "listed" }
	if got := slices.DeleteFunc(list(t, b, "listed", true), between); !slices.Equal(got, keys) {
		t.Errorf(`List("listed", true) = %q, want %q`, got, keys)
	}
	remove(t, b, keys[1])
	wantList(t, a, "listed/one", true, keys[0])
}

// pattern returns a value that cannot be mixed with another of its kind without
// being found out: n says what its bytes are and how many.
func pattern(n byte) []byte { return bytes.Repeat([]byte{n}, 1+int(n)*4096) }

func isPattern(value []byte) bool {
	return len(value) > 0 && bytes.Equal(value, pattern(value[0]))
}

// testOverwrite: while several clients overwrite a key, whoever reads it gets
// one of the values whole.
func testOverwrite(t *testing.T, s suite) {
	const key, writers, rounds = "letsencrypt/overwrite/example.com", 4, 8
	store(t, s.open(t), key, pattern(0))
	ctx := within(t, patience)
	var writing, reading sync.WaitGroup
	done := make(chan struct{})
	for w := range writers {
		c := s.open(t)
		writing.Go(func() {
			for i := range rounds {
				if err := c.Store(ctx, key, pattern(byte(1+w+i*writers))); err != nil {
					t.Errorf("Store(%q) = %v", key, err)
				}
			}
		})
		reading.Go(func() { readWhole(ctx, t, c, key, done) })
	}
	writing.Wait()
	close(done)
	reading.Wait()
}

// readWhole reads a key until done, and once after it.
func readWhole(ctx context.Context, t *testing.T, c letsencrypt.Storage, key string, done chan struct{}) {
	for last := false; !last; {
		select {
		case <-done:
			last = true
		default:
		}
		if got, err := c.Load(ctx, key); err != nil || !isPattern(got) {
			t.Errorf("Load(%q) during Store = %d bytes, %v, want one of the values that were stored", key, len(got), err)
			return
		}
	}
}

// testCancel: an operation whose context has ended returns, done or not, and
// does no harm to those that come after it.
func testCancel(t *testing.T, s suite) {
	const key = "letsencrypt/cancel/example.com"
	c := s.open(t)
	store(t, c, key, pattern(1))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	returns := func(what string, op func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			op()
		}()
		if !closes(done, promptly) {
			t.Errorf("%s with a context that has ended does not return", what)
		}
	}
	returns("Load", func() { c.Load(ended, key) })
	returns("Store", func() { c.Store(ended, key, pattern(2)) })
	returns("List", func() { c.List(ended, "letsencrypt/cancel", true) })
	if got, err := c.Load(within(t, patience), key); err != nil || !isPattern(got) {
		t.Errorf("after all that: Load(%q) = %d bytes, %v, want a value that was stored", key, len(got), err)
	}
	returns("Delete", func() { c.Delete(ended, key) })
	store(t, c, key, pattern(3))
	wantValue(t, c, key, pattern(3))
}
