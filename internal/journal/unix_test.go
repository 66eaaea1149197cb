//go:build unix && !aix && !solaris

package journal

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "x", "y")
	name := filepath.Join(dir, "cache")
	mode := func(name string) fs.FileMode {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Mode().Perm()
	}
	l := openWith(t, name, Options{Warn: func(error) {}}, nil)
	put(t, l, rec("a", 1))
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	write(t, name, read(t, name)+"x\n")
	open2 := openWith(t, name, Options{Warn: func(error) {}}, nil)
	closeLog(t, open2)
	aside, _ := filepath.Glob(name + ".damaged-*")
	for _, n := range append(aside, name, name+".lock") {
		if m := mode(n); m != 0o600 {
			t.Errorf("%s has mode %o, want 600", n, m)
		}
	}
	for _, n := range []string{dir, filepath.Dir(dir)} {
		if m := mode(n); m != 0o700 {
			t.Errorf("%s has mode %o, want 700", n, m)
		}
	}
}

func TestWideModeIsWarnedOfAndKept(t *testing.T) {
	name := temp(t)
	write(t, name, header)
	if err := os.Chmod(name, 0o640); err != nil {
		t.Fatal(err)
	}
	var warned []error
	l := openWith(t, name, Options{Warn: func(err error) { warned = append(warned, err) }}, nil)
	if len(warned) != 1 || !strings.Contains(warned[0].Error(), "mode") {
		t.Errorf("Warn(%v), want one of the mode", warned)
	}
	put(t, l, rec("a", 1))
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(name)
	if err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode is %v, %v, want 640 as before", fi.Mode(), err)
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	name := temp(t)
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := new(Log).Open(name, Options{}); err == nil {
		t.Error("Open of a pipe succeeds")
	}
	if err := new(Log).Open("/dev/null", Options{}); err == nil {
		t.Error("Open of a device succeeds")
	}
	if _, err := os.Stat(name + ".lock"); err == nil {
		t.Error("Open of a pipe made a lock file")
	}
}

// TestFullDisk limits the size of a file, which takes a process of its own.
func TestFullDisk(t *testing.T) {
	const inChild = "JOURNAL_TEST_FULL"
	if os.Getenv(inChild) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$")
		cmd.Env = append(os.Environ(), inChild+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	name := temp(t)
	l := open(t, name)
	put(t, l, big("a", 1), big("b", 1))
	before := read(t, name)

	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	full := limit
	full.Cur = 4000 // in the midst of the next record
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full); err != nil {
		t.Fatal(err)
	}
	var seq uint64
	for i := range 3 {
		seq = l.Put(big("c", i))
		if err := l.Sync(seq); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("Sync on a full disk = %v, want EFBIG", err)
		}
		if got := read(t, name); got != before {
			t.Errorf("a failed Sync changes the file from %d to %d bytes", len(before), len(got))
		}
	}
	if err := l.Compact(); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("Compact on a full disk = %v, want EFBIG", err)
	}
	want(t, l, big("a", 1), big("b", 1), big("c", 2))

	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(seq); err != nil {
		t.Errorf("Sync with room again: %v", err)
	}
	wantFile(t, name, big("a", 1), big("b", 1), big("c", 2))
	wantNoTemps(t, name)
}
