//go:build unix && !aix && !solaris

package e2e

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/catest"
)

// alone reports whether the test runs in a process of its own. If not it runs
// it in one, and fails if it fails there.
func alone(t *testing.T) bool {
	t.Helper()
	const env = "E2E_ALONE"
	if os.Getenv(env) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), env+"="+t.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a process of its own: %v\n%s", err, out)
	}
	return false
}

// fill leaves no room in the file, nor in any other that this process writes,
// until the function that it returns is called.
func fill(t *testing.T, file string) (empty func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	full := was
	set(&full.Cur, fi.Size()+10) // in the midst of the next record
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
			t.Error(err)
		}
	}
}

// set sets a limit, which is an int64 on FreeBSD and a uint64 elsewhere.
func set[T int64 | uint64](limit *T, n int64) { *limit = T(n) }

// checkUnwritable checks that an error says that the file can't be written.
func checkUnwritable(t *testing.T, what string, err error, file string) {
	t.Helper()
	if !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), file) {
		t.Errorf("%s: %v, want EFBIG and the file's name", what, err)
	}
}

// TestFullDiskStopsOrders has no room for the state, and then has: nothing is
// ordered that could not be kept, what is held is served, and with room all
// goes on by itself.
func TestFullDiskStopsOrders(t *testing.T) {
	if !alone(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		file := filepath.Join(t.TempDir(), "cache")
		m := customer(ca)
		told := overhear(t, m)
		if err := m.CacheFile(file); err != nil {
			t.Fatal(err)
		}
		defer shutdown(t, m)
		m.SetHosts([]string{"a.example.com", "b.example.com"})
		held := serial(t, m, "a.example.com")
		time.Sleep(time.Minute) // until all of that is written

		empty := fill(t, file)
		_, err := m.Cert("b.example.com")
		var failed *letsencrypt.HostError
		if !errors.As(err, &failed) || failed.Host != "b.example.com" {
			t.Errorf("Cert = %v, want a HostError for b.example.com", err)
		}
		checkUnwritable(t, "Cert", err, file)
		checkUnwritable(t, "Status", m.Status("b.example.com")[0].Err, file)
		synctest.Wait()
		if es := told.of(letsencrypt.EventState, ""); len(es) != 1 {
			t.Errorf("%d events say that the state can't be written, want 1", len(es))
		} else {
			checkUnwritable(t, "Event", es[0].Err, file)
		}
		if !strings.Contains(told.log.String(), syscall.EFBIG.Error()) {
			t.Errorf("the log does not say why: %s", told.log.String())
		}
		time.Sleep(48 * time.Hour)
		if n := len(ca.Orders()); n != 1 {
			t.Errorf("%d orders while the disk was full, want none beside the first", n)
		}
		if got := serial(t, m, "a.example.com"); got != held {
			t.Errorf("certificate %s is served, want %s", got, held)
		}

		empty()
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if !has(t, read(t, file), "cert b.example.com") {
			t.Error("with room again the certificate is not obtained")
		}
		if es := told.of(letsencrypt.EventState, ""); len(es) != 2 || es[1].Err != nil {
			t.Errorf("events %v, want a second without error", es)
		}
	})
}

// TestCertificateThatCantBeWrittenIsServed fills the disk between the order
// and the certificate.
func TestCertificateThatCantBeWrittenIsServed(t *testing.T) {
	if !alone(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		file := filepath.Join(t.TempDir(), "cache")
		m := customer(ca)
		told := overhear(t, m)
		if err := m.CacheFile(file); err != nil {
			t.Fatal(err)
		}
		empty := func() {}
		ca.Fault(catest.On("certificate", 1, func(_ *http.Request, serve func() *http.Response) (*http.Response, error) {
			empty = fill(t, file)
			return serve(), nil
		}))
		want := serial(t, m, "a.example.com")
		synctest.Wait()
		if es := told.of(letsencrypt.EventState, ""); len(es) != 1 {
			t.Errorf("events %v, want one that the state can't be written", es)
		} else {
			checkUnwritable(t, "Event", es[0].Err, file)
		}
		if has(t, read(t, file), "cert a.example.com") {
			t.Fatal("the certificate was written: the disk is not full")
		}
		for range 10 {
			time.Sleep(24 * time.Hour)
			if got := serial(t, m, "a.example.com"); got != want {
				t.Fatalf("certificate %s is served, want %s", got, want)
			}
		}

		empty()
		time.Sleep(time.Hour)
		synctest.Wait()
		if !has(t, read(t, file), "cert a.example.com") {
			t.Error("with room again the certificate is not written")
		}
		shutdown(t, m)
		m = cached(t, ca, file)
		if got := serial(t, m, "a.example.com"); got != want {
			t.Errorf("after a restart certificate %s is served, want %s", got, want)
		}
		shutdown(t, m)
		if n := len(ca.Orders()); n != 1 {
			t.Errorf("%d orders, want 1", n)
		}
	})
}

// TestCacheFileModes looks at what CacheFile makes.
func TestCacheFileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing", "too")
	file := filepath.Join(dir, "cache")
	var m letsencrypt.Manager
	if err := m.CacheFile(file); err != nil {
		t.Fatal(err)
	}
	m.SetHosts([]string{"a.example.com"})
	shutdown(t, &m)
	for name, want := range map[string]fs.FileMode{file: 0o600, dir: 0o700, filepath.Dir(dir): 0o700} {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != want {
			t.Errorf("mode of %s is %o, want %o", name, got, want)
		}
	}
}

// TestReadOnlyFolder has a folder in which nothing may be made. Root may make
// files there all the same, and has to become somebody else.
func TestReadOnlyFolder(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		const nobody = 65534
		if err := syscall.Seteuid(nobody); err != nil {
			t.Fatal(err)
		}
		defer syscall.Seteuid(0) // for the folder to be removed
	}
	for _, file := range []string{filepath.Join(dir, "cache"), filepath.Join(dir, "sub", "cache")} {
		var m letsencrypt.Manager
		if err := m.CacheFile(file); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) {
			t.Errorf("CacheFile(%q) = %v, want ErrPermission with the folder's name", file, err)
		}
		shutdown(t, &m)
	}
}
