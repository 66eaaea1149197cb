package dir

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestForeignFiles: what others put into the folder is no key.
func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir)
	if err := s.Store(t.Context(), "a/b", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".DS_Store", "README", "a/b.value~", "a/.b.value.swp", "B.value"} {
		if err := os.WriteFile(filepath.Join(dir, "values", filepath.FromSlash(name)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.List(t.Context(), "", true); !slices.Equal(got, []string{"a/b"}) || err != nil {
		t.Errorf(`List("", true) = %q, %v, want a/b`, got, err)
	}
}

// TestSlash: a prefix may have a slash at its end.
func TestSlash(t *testing.T) {
	s := newStorage(t, t.TempDir())
	if err := s.Store(t.Context(), "a/b", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := s.List(t.Context(), "a/", false); !slices.Equal(got, []string{"a/b"}) || err != nil {
		t.Errorf(`List("a/", false) = %q, %v, want a/b`, got, err)
	}
}

// TestTemp: Open removes what a crash has left, and nothing that may be in use.
func TestTemp(t *testing.T) {
	dir := t.TempDir()
	newStorage(t, dir)
	temp := filepath.Join(dir, "temp")
	old := time.Now().Add(-25 * time.Hour)
	for _, name := range []string{"oldfile", "newfile"} {
		if err := os.WriteFile(filepath.Join(temp, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"oldlock", "newlock"} {
		if err := os.MkdirAll(filepath.Join(temp, name, "token.0"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"oldfile", "oldlock"} {
		if err := os.Chtimes(filepath.Join(temp, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	newStorage(t, dir)
	entries, err := os.ReadDir(temp)
	if err != nil || len(entries) != 2 || entries[0].Name() != "newfile" || entries[1].Name() != "newlock" {
		t.Errorf("after Open temp/ has %v, %v, want newfile and newlock", entries, err)
	}
}

// TestFailedStore: a Store that fails leaves nothing behind.
func TestFailedStore(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir)
	for _, name := range []string{"x.value/in the way", "y"} {
		if err := os.MkdirAll(filepath.Join(dir, "values", filepath.FromSlash(name)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Store(t.Context(), "x", []byte("value")); err == nil {
		t.Error("Store where a folder is = nil, want an error")
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "temp")); err != nil || len(entries) > 0 {
		t.Errorf("temp/ has %v, %v, want nothing", entries, err)
	}
}
