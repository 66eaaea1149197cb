package sealed

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/store/dir"
	"example.com/letsencrypt/store/storetest"
)

var (
	oldKey  = bytes.Repeat([]byte{1}, 32)
	nextKey = bytes.Repeat([]byte{2}, 32)
)

var engine = storetest.Engine{
	Start: func(tb testing.TB) string { return tb.TempDir() },
	Open: func(tb testing.TB, addr string) letsencrypt.Storage {
		inner, err := dir.Open(addr)
		if err != nil {
			tb.Fatal(err)
		}
		return open(tb, inner, oldKey)
	},
	CrashTTL: 25 * time.Second,
}

func TestRequired(t *testing.T) {
	t.Parallel()
	storetest.Required(t, engine)
}

func TestStrict(t *testing.T) {
	t.Parallel()
	storetest.Strict(t, engine)
}

func open(tb testing.TB, inner letsencrypt.Storage, keys ...[]byte) letsencrypt.Storage {
	tb.Helper()
	s, err := New(inner, keys...)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// A memory keeps values as they come.
type memory struct {
	letsencrypt.Storage
	values map[string][]byte
}

func newMemory() memory { return memory{values: make(map[string][]byte)} }

func (m memory) Store(_ context.Context, key string, value []byte) error {
	m.values[key] = value
	return nil
}

func (m memory) Load(_ context.Context, key string) ([]byte, error) {
	value, ok := m.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return value, nil
}

func store(t *testing.T, s letsencrypt.Storage, key, value string) {
	t.Helper()
	if err := s.Store(t.Context(), key, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func wantValue(t *testing.T, s letsencrypt.Storage, key, want string) {
	t.Helper()
	if got, err := s.Load(t.Context(), key); string(got) != want || err != nil {
		t.Errorf("Load(%q) = %q, %v, want %q", key, got, err, want)
	}
}

// wantRefused checks that Load returns an error with some text, which names the
// key and is not that there is none.
func wantRefused(t *testing.T, s letsencrypt.Storage, key, text string) {
	t.Helper()
	got, err := s.Load(t.Context(), key)
	if got != nil || err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), text) {
		t.Errorf("Load(%q) = %q, %v, want an error that names it and has %q", key, got, err, text)
	}
}

// TestSecret: the inner storage sees neither a value nor that two are the same.
func TestSecret(t *testing.T) {
	const secret = "a secret that is long enough to be looked for"
	m := newMemory()
	s := open(t, m, oldKey)
	for _, key := range []string{"a", "b"} {
		store(t, s, key, secret)
		wantValue(t, s, key, secret)
	}
	first := m.values["a"]
	store(t, s, "a", secret)
	for _, data := range [][]byte{first, m.values["a"], m.values["b"]} {
		if len(data) != headerSize+12+len(secret)+16 || bytes.Contains(data, []byte(secret[:4])) {
			t.Errorf("stored for %q: %q", secret, data)
		}
	}
	if tail := func(key string) []byte { return m.values[key][headerSize:] }; bytes.Equal(first[headerSize:], tail("a")) || bytes.Equal(tail("a"), tail("b")) {
		t.Error("two seals of one value are the same")
	}
}

func TestMissing(t *testing.T) {
	if _, err := open(t, newMemory(), oldKey).Load(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of what is not there = %v, want fs.ErrNotExist", err)
	}
}

// TestTampered: no bit of what is stored can be changed, no end be cut off or
// added, and no value be moved to another key.
func TestTampered(t *testing.T) {
	const key = "letsencrypt/cert/example.com"
	m := newMemory()
	s := open(t, m, oldKey, nextKey)
	store(t, s, key, "value")
	data := m.values[key]
	for i := range data {
		for bit := range 8 {
			m.values[key] = bytes.Clone(data)
			m.values[key][i] ^= 1 << bit
			wantRefused(t, s, key, "sealed")
		}
		m.values[key] = data[:i]
		wantRefused(t, s, key, "sealed")
	}
	m.values[key] = append(bytes.Clone(data), 0)
	wantRefused(t, s, key, "not as it was sealed")
	m.values["letsencrypt/cert/example.org"] = data
	wantRefused(t, s, "letsencrypt/cert/example.org", "not as it was sealed")
	m.values[key] = data
	wantValue(t, s, key, "value")
}

// TestNotSealed: what was stored without a key is not let through.
func TestNotSealed(t *testing.T) {
	m := newMemory()
	s := open(t, m, oldKey)
	for _, value := range []string{"", "plain", "{}", "\x01", "\x02" + strings.Repeat("x", 100)} {
		m.values["the key"] = []byte(value)
		wantRefused(t, s, "the key", "it is not sealed")
	}
}

// TestRotation: all keys open, the first seals.
func TestRotation(t *testing.T) {
	m := newMemory()
	before, during, after := open(t, m, oldKey), open(t, m, oldKey, nextKey), open(t, m, nextKey, oldKey)
	done := open(t, m, nextKey)
	store(t, before, "the key", "1")
	wantValue(t, during, "the key", "1")
	wantValue(t, after, "the key", "1")
	wantRefused(t, done, "the key", "a key that was not given")
	store(t, during, "the key", "2")
	wantValue(t, before, "the key", "2")
	store(t, after, "the key", "3")
	wantRefused(t, before, "the key", "a key that was not given")
	wantValue(t, during, "the key", "3")
	wantValue(t, done, "the key", "3")
}

func TestNew(t *testing.T) {
	tests := []struct {
		name string
		keys [][]byte
		ok   bool
	}{
		{"none", nil, false},
		{"nil", [][]byte{nil}, false},
		{"AES-128", [][]byte{oldKey[:16]}, false},
		{"long", [][]byte{append(oldKey[:32:32], 0)}, false},
		{"bad second", [][]byte{oldKey, {1}}, false},
		{"one", [][]byte{oldKey}, true},
		{"two", [][]byte{oldKey, nextKey}, true},
		{"twice", [][]byte{oldKey, oldKey}, true},
	}
	for _, tt := range tests {
		if _, err := New(newMemory(), tt.keys...); (err == nil) != tt.ok {
			t.Errorf("New with keys %s = %v, want it to work: %v", tt.name, err, tt.ok)
		}
	}
}

// TestKeyCopied: what the caller does to a key later changes nothing.
func TestKeyCopied(t *testing.T) {
	m := newMemory()
	key := bytes.Clone(oldKey)
	s := open(t, m, key)
	clear(key)
	store(t, s, "a", "value")
	wantValue(t, open(t, m, oldKey), "a", "value")
}

// goldenKey has at it what a release has sealed with oldKey: "value".
const (
	goldenKey  = "letsencrypt/cert/example.com"
	goldenData = "018fabd5327a2422b9a99b6c738606fa7ed7f75b3575eda590f195d7b73d7b00c9759ab6b70354f3dba4"
)

// TestFormat: what one release has sealed every other opens.
func TestFormat(t *testing.T) {
	data, err := hex.DecodeString(goldenData)
	if err != nil {
		t.Fatal(err)
	}
	wantValue(t, open(t, memory{values: map[string][]byte{goldenKey: data}}, oldKey), goldenKey, "value")
}

// FuzzOpen: of all data at all keys, what was sealed opens where it was.
func FuzzOpen(f *testing.F) {
	golden, err := hex.DecodeString(goldenData)
	if err != nil {
		f.Fatal(err)
	}
	s, err := New(newMemory(), oldKey, nextKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(goldenKey, golden)
	f.Add("a", golden)
	f.Add(goldenKey, golden[:len(golden)-1])
	f.Add(goldenKey, golden[:headerSize])
	f.Add("", []byte("plain"))
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		got, err := s.(*storage).open(key, data)
		want := key == goldenKey && bytes.Equal(data, golden)
		if (err == nil) != want || want && string(got) != "value" {
			t.Errorf("open(%q, %x) = %q, %v, want it to open: %v", key, data, got, err, want)
		}
	})
}
