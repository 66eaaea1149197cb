package dir_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/store/dir"
	"example.com/letsencrypt/store/storetest"
)

var _ letsencrypt.Storage = (*dir.Storage)(nil)

func open(tb testing.TB, name string) *dir.Storage {
	tb.Helper()
	s, err := dir.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

var engine = storetest.Engine{
	Start: func(tb testing.TB) string { return tb.TempDir() },
	Open:  func(tb testing.TB, addr string) letsencrypt.Storage { return open(tb, addr) },
	Steal: func(tb testing.TB, addr, lock string) {
		if err := os.RemoveAll(filepath.Join(addr, "locks", lock+".lock")); err != nil {
			tb.Fatal(err)
		}
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
