package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// open opens a log whose trouble fails the test.
func open(t *testing.T, name string) *Log {
	t.Helper()
	return openWith(t, name, Options{}, nil)
}

func openWith(t *testing.T, name string, o Options, fail func(string) error) *Log {
	t.Helper()
	if o.Warn == nil {
		o.Warn = func(err error) { t.Errorf("Warn(%v)", err) }
	}
	l := new(Log)
	if err := l.openFile(&file{name: name, opts: o, fail: fail}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func put(t *testing.T, l *Log, rs ...Record) {
	t.Helper()
	if err := l.Sync(l.Put(rs...)); err != nil {
		t.Fatal(err)
	}
}

func closeLog(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lines returns the records as they stand in a file.
func lines(rs ...Record) string {
	var b strings.Builder
	for _, r := range rs {
		b.WriteString(string(r) + "\n")
	}
	return b.String()
}

// wantFile checks what another process would find in the file.
func wantFile(t *testing.T, name string, rs ...Record) {
	t.Helper()
	rs2, damaged, err := Split(read(t, name))
	if damaged != 0 || err != nil {
		t.Fatalf("%s: %d damaged, %v", name, damaged, err)
	}
	var l Log
	l.Put(rs2...)
	want(t, &l, rs...)
}

func temp(t *testing.T) string { return filepath.Join(t.TempDir(), "cache") }

func TestFileIsAppended(t *testing.T) {
	name := temp(t)
	l := open(t, name)
	if got := read(t, name); got != header {
		t.Errorf("new file = %q, want %q", got, header)
	}
	put(t, l, rec("a", 1), rec("b", 1))
	put(t, l, rec("a", 2), Delete("host", "b"))
	closeLog(t, l)
	if got, want := read(t, name), header+lines(rec("a", 1), rec("b", 1), rec("a", 2), Delete("host", "b")); got != want {
		t.Errorf("file = %q, want %q", got, want)
	}
	want(t, open(t, name), rec("a", 2))
}

func TestCloseWritesWhatIsQueued(t *testing.T) {
	name := temp(t)
	l := open(t, name)
	l.Put(rec("a", 1))
	closeLog(t, l)
	wantFile(t, name, rec("a", 1))
	seq := l.Put(rec("b", 1))
	if err := l.Sync(seq); err != nil {
		t.Errorf("Sync of a closed log: %v", err)
	}
	closeLog(t, l)
	wantFile(t, name, rec("a", 1))
	want(t, l, rec("a", 1), rec("b", 1))
}

func TestOpenWritesWhatTheFileLacks(t *testing.T) {
	name := temp(t)
	l := open(t, name)
	put(t, l, rec("same", 1), rec("file", 1), rec("both", 1))
	closeLog(t, l)
	old := read(t, name)

	l = new(Log)
	l.Put(rec("memory", 2), rec("both", 2), rec("same", 1))
	apply := func(rs []Record) {
		for _, r := range rs {
			if r.Name() != "both" {
				l.Adopt(r)
			}
		}
	}
	if err := l.Open(name, Options{Apply: apply}); err != nil {
		t.Fatal(err)
	}
	all := []Record{rec("same", 1), rec("file", 1), rec("both", 2), rec("memory", 2)}
	want(t, l, all...)
	wantFile(t, name, all...)
	if got, want := len(read(t, name)), len(old+lines(rec("both", 2), rec("memory", 2))); got != want {
		t.Errorf("file has %d bytes, want %d: the two that it lacks appended", got, want)
	}

	// The same once more, with numbers that were synced before.
	closeLog(t, l)
	write(t, name, old)
	if err := l.Open(name, Options{Apply: apply}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, name, all...)
	closeLog(t, l)
}

func TestOpenWhileOpen(t *testing.T) {
	name := temp(t)
	l := open(t, name)
	other := temp(t)
	if err := l.Open(other, Options{}); err == nil {
		t.Error("second Open succeeds")
	}
	put(t, l, rec("a", 1))
	wantFile(t, name, rec("a", 1))
	if _, err := os.Stat(other); err == nil {
		t.Error("second Open made a file")
	}
}

func TestOpenFolder(t *testing.T) {
	name := t.TempDir()
	l := new(Log)
	if err := l.Open(name, Options{}); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("Open(folder) = %v", err)
	}
	if _, err := os.Stat(name + ".lock"); err == nil {
		t.Error("Open(folder) made a lock file")
	}
	put(t, l, rec("a", 1)) // in memory
}

func TestOpenBelowAFile(t *testing.T) {
	name := temp(t)
	write(t, name, "x")
	if err := new(Log).Open(filepath.Join(name, "cache"), Options{}); err == nil {
		t.Error("Open below a file succeeds")
	}
}

func TestOpenRefusesNewerVersion(t *testing.T) {
	for _, text := range []string{"letsencrypt 2\nhost a\n", "letsencrypt 2"} {
		name := temp(t)
		write(t, name, text)
		l := new(Log)
		l.Put(rec("a", 1))
		imports := func([]byte) ([]Record, error) { t.Error("Import is called"); return nil, nil }
		if err := l.Open(name, Options{Import: imports}); !errors.Is(err, ErrVersion) {
			t.Errorf("Open(%q) = %v, want ErrVersion", text, err)
		}
		put(t, l, rec("b", 1)) // in memory
		if got := read(t, name); got != text {
			t.Errorf("Open(%q) made it %q", text, got)
		}
	}
}

func TestOpenRefusesOthersFiles(t *testing.T) {
	const text = `{"Accounts": "of another program"}`
	name := temp(t)
	write(t, name, text)
	refused := errors.New("no")
	for _, imports := range []func([]byte) ([]Record, error){
		nil,
		func([]byte) ([]Record, error) { return nil, refused },
	} {
		err := new(Log).Open(name, Options{Import: imports})
		if imports == nil && !errors.Is(err, ErrFormat) || imports != nil && !errors.Is(err, refused) {
			t.Errorf("Open = %v", err)
		}
		if got := read(t, name); got != text {
			t.Errorf("file = %q, want it untouched", got)
		}
	}
}

func TestOpenImports(t *testing.T) {
	name := temp(t)
	write(t, name, "{}")
	imports := func(data []byte) ([]Record, error) {
		if string(data) != "{}" {
			t.Errorf("Import(%q)", data)
		}
		return []Record{rec("a", 1), rec("b", 1), rec("a", 2)}, nil
	}
	l := openWith(t, name, Options{Import: imports}, nil)
	put(t, l, rec("c", 1))
	want(t, l, rec("a", 2), rec("b", 1), rec("c", 1))
	wantFile(t, name, rec("a", 2), rec("b", 1), rec("c", 1))
}

func TestImportedFileStaysIfItCannotBeRewritten(t *testing.T) {
	for _, step := range []string{"temp", "copy", "write rest", "fsync rest", "rename"} {
		name := temp(t)
		write(t, name, "{}")
		fl := &file{name: name, fail: failAt(step)}
		fl.opts.Import = func([]byte) ([]Record, error) { return []Record{rec("a", 1)}, nil }
		if err := new(Log).openFile(fl); !errors.Is(err, errInjected) {
			t.Errorf("Open with a failing %s = %v", step, err)
		}
		if got := read(t, name); got != "{}" {
			t.Errorf("Open with a failing %s leaves %q", step, got)
		}
		wantNoTemps(t, name)
	}
}

var errInjected = errors.New("injected")

func failAt(steps ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(steps, s) {
			return errInjected
		}
		return nil
	}
}

func wantNoTemps(t *testing.T, name string) {
	t.Helper()
	found, err := filepath.Glob(name + ".*" + tempSuffix)
	if len(found) > 0 || err != nil {
		t.Errorf("left over: %q, %v", found, err)
	}
}

func TestBlankFileIsNew(t *testing.T) {
	for n := range len(header) {
		name := temp(t)
		write(t, name, header[:n])
		l := open(t, name)
		put(t, l, rec("a", 1))
		if got, want := read(t, name), header+lines(rec("a", 1)); got != want {
			t.Errorf("header torn at %d: file = %q, want %q", n, got, want)
		}
	}
}

// six is a file with something of everything.
var six = []Record{
	rec("a", 1),
	Format("order", "https://ca.example/1", []int64{1, -2}, []byte(`{"k":[1,2]}`)),
	rec("b", 1),
	rec("a", 2),
	Format("later", "x", nil, []byte(`"kept"`)),
	Delete("host", "b"),
}

func TestTornAtEveryByte(t *testing.T) {
	whole := header + lines(six...)
	for n := len(header); n < len(whole); n++ {
		name := temp(t)
		write(t, name, whole[:n])
		var before []Record
		rest := n - len(header)
		for _, r := range six {
			// A line that lacks only its newline is all there.
			if rest -= len(r) + 1; rest >= -1 {
				before = append(before, r)
			}
		}
		live := func(rs ...Record) []Record {
			var l Log
			l.Put(rs...)
			return slices.Collect(l.All())
		}
		l := open(t, name)
		want(t, l, live(before...)...)
		put(t, l, rec("next", 1))
		before = append(before, rec("next", 1))
		want(t, l, live(before...)...)
		wantFile(t, name, live(before...)...)
		if t.Failed() {
			t.Fatalf("torn at byte %d", n)
		}
	}
}

func TestDamagedAtEveryByte(t *testing.T) {
	whole := header + lines(six...)
	dir := t.TempDir()
	for n := len(header); n < len(whole)-1; n++ {
		c := []byte{whole[n] ^ 1, '\n', 0}[n%3]
		if c == whole[n] {
			c = ' '
		}
		name := filepath.Join(dir, fmt.Sprint(n))
		damaged := whole[:n] + string(c) + whole[n+1:]
		write(t, name, damaged)
		testDamaged(t, name, damaged)
		if t.Failed() {
			t.Fatalf("byte %d changed from %q to %q", n, whole[n], c)
		}
	}
}

func testDamaged(t *testing.T, name, damaged string) {
	var warned []error
	l := openWith(t, name, Options{Warn: func(err error) { warned = append(warned, err) }}, nil)
	defer l.Close()
	var intact Log
	for line := range strings.Lines(damaged[len(header):]) {
		if r, err := Parse(strings.TrimSuffix(line, "\n")); err == nil {
			intact.Put(r)
		}
	}
	live := slices.Collect(intact.All())
	want(t, l, live...)
	wantFile(t, name, live...)
	copies, _ := filepath.Glob(name + ".damaged-*")
	if len(copies) != 1 || read(t, copies[0]) != damaged {
		t.Errorf("kept aside: %q, want one copy of the file", copies)
	}
	if len(warned) != 1 || !strings.Contains(warned[0].Error(), "damaged") {
		t.Errorf("Warn(%v), want one of the damage", warned)
	}
	put(t, l, rec("next", 1))
	wantFile(t, name, append(live, rec("next", 1))...)
}

func TestDamagedLastLine(t *testing.T) {
	name := temp(t)
	damaged := header + lines(six...) + "torn, then finished\n"
	write(t, name, damaged)
	testDamaged(t, name, damaged)
}

func TestDamageThatCannotBeKeptAside(t *testing.T) {
	for _, step := range []string{"aside", "temp", "copy", "fsync rest", "rename"} {
		name := temp(t)
		damaged := header + lines(rec("a", 1)) + "x\n" + lines(rec("b", 1))
		write(t, name, damaged)
		warned := 0
		l := openWith(t, name, Options{Warn: func(error) { warned++ }}, failAt(step))
		put(t, l, rec("c", 1))
		want(t, l, rec("a", 1), rec("b", 1), rec("c", 1))
		if got := read(t, name); got != damaged+lines(rec("c", 1)) {
			t.Errorf("failing %s: file = %q, want it as it was and c", step, got)
		}
		if warned == 0 {
			t.Errorf("failing %s: nobody is warned", step)
		}
	}
}

func TestDamagedCopiesKeepApart(t *testing.T) {
	name := temp(t)
	for range 3 {
		write(t, name, header+"x\n")
		l := openWith(t, name, Options{Warn: func(error) {}}, nil)
		closeLog(t, l)
	}
	if copies, _ := filepath.Glob(name + ".damaged-*"); len(copies) != 3 {
		t.Errorf("three damaged files are kept aside as %q", copies)
	}
}

func TestApplySeesTheFileInOrder(t *testing.T) {
	name := temp(t)
	var all []Record
	for i := range 2*applyBatch + 10 {
		all = append(all, rec(fmt.Sprintf("h%05d", i), 1))
	}
	all = append(all, rec("h00003", 2), Delete("host", "h00004"), rec("h00005", 2), rec("h00005", 3))
	write(t, name, header+lines(all...))
	l := new(Log)
	var got []Record
	apply := func(rs []Record) {
		if len(rs) == 0 || len(rs) > applyBatch {
			t.Errorf("Apply of %d records", len(rs))
		}
		got = append(got, rs...)
		l.Adopt(rs...)
	}
	if err := l.Open(name, Options{Apply: apply}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !slices.Equal(got, latest(all)) {
		t.Errorf("Apply got %d records that are not the latest %d in the file's order", len(got), len(latest(all)))
	}
	if _, ok := l.Get("host", "h00004"); ok || len(state(l)) != 2*applyBatch+9 {
		t.Errorf("%d records, deleted one there: %v", len(state(l)), ok)
	}
}

func TestApplyMayPut(t *testing.T) {
	name := temp(t)
	write(t, name, header+lines(rec("a", 1), rec("b", 1)))
	l := new(Log)
	apply := func(rs []Record) {
		for _, r := range rs {
			if r.Name() == "a" {
				l.Put(rec("a", 2))
				l.Adopt(r) // comes too late: the one put follows it in the file
			} else {
				l.Adopt(r)
			}
		}
	}
	if err := l.Open(name, Options{Apply: apply}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want(t, l, rec("a", 2), rec("b", 1))
	if got, want := read(t, name), header+lines(rec("a", 1), rec("b", 1), rec("a", 2)); got != want {
		t.Errorf("file = %q, want %q", got, want)
	}
}

func TestTwoLogsShareAFile(t *testing.T) {
	name := temp(t)
	a, b := open(t, name), open(t, name)
	put(t, a, rec("a", 1), rec("both", 1))
	put(t, b, rec("b", 1))
	want(t, b, rec("a", 1), rec("both", 1), rec("b", 1))

	// Ours was put last and is written last.
	put(t, a, rec("both", 2))
	put(t, b, rec("both", 3))
	want(t, b, rec("a", 1), rec("both", 3), rec("b", 1))
	put(t, a, Delete("host", "b"))
	want(t, a, rec("a", 1), rec("both", 3))
	put(t, b, rec("c", 1))
	all := []Record{rec("a", 1), rec("both", 3), rec("c", 1)}
	want(t, b, all...)
	wantFile(t, name, all...)
}

func TestApplyOfWhatOthersWrote(t *testing.T) {
	name := temp(t)
	a := open(t, name)
	put(t, a, rec("a", 1))
	var got []Record
	b := new(Log)
	apply := func(rs []Record) { got = append(got, rs...); b.Adopt(rs...) }
	if err := b.Open(name, Options{Apply: apply}); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got = nil
	put(t, a, rec("x", 1), rec("y", 1), rec("x", 2), Delete("host", "y"))
	put(t, b, rec("b", 1))
	put(t, b, rec("b", 2))
	if want := []Record{rec("x", 2)}; !slices.Equal(got, want) {
		t.Errorf("Apply got %q, want %q", got, want)
	}
}

func TestCompactionByAnotherLog(t *testing.T) {
	name := temp(t)
	a, b := open(t, name), open(t, name)
	put(t, a, rec("stays", 1), rec("goes", 1), rec("changes", 1))
	put(t, b, rec("b", 1))
	put(t, a, Delete("host", "goes"), rec("changes", 2))
	if err := a.Compact(); err != nil {
		t.Fatal(err)
	}
	put(t, a, rec("after", 1))
	put(t, b, rec("b", 2))
	all := []Record{rec("stays", 1), rec("changes", 2), rec("b", 2), rec("after", 1)}
	want(t, b, all...)
	wantFile(t, name, all...)
	if err := b.Compact(); err != nil {
		t.Fatal(err)
	}
	put(t, a, rec("again", 1))
	all = append(all, rec("again", 1))
	want(t, a, all...)
	wantFile(t, name, all...)
}

func TestFileVanishes(t *testing.T) {
	for _, all := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "sub", "dir")
		name := filepath.Join(dir, "cache")
		a, b := open(t, name), open(t, name)
		put(t, a, rec("a", 1))
		put(t, b, rec("b", 1)) // in the old file only, and never seen by a
		remove := func() error { return os.Remove(name) }
		if all {
			remove = func() error { return os.RemoveAll(filepath.Dir(dir)) }
		}
		if err := remove(); err != nil {
			t.Skipf("an open file cannot be removed here: %v", err)
		}
		put(t, a, rec("a", 2))
		want(t, a, rec("a", 2), rec("b", 1))
		wantFile(t, name, rec("a", 2), rec("b", 1))
		put(t, b, rec("c", 1))
		wantFile(t, name, rec("a", 2), rec("b", 1), rec("c", 1))
	}
}

func TestFileIsReplacedByAnother(t *testing.T) {
	name := temp(t)
	l := open(t, name)
	put(t, l, rec("a", 1), rec("b", 1))
	other := name + ".other"
	write(t, other, header+lines(rec("b", 2), rec("c", 2)))
	if err := os.Rename(other, name); err != nil {
		t.Skipf("an open file cannot be replaced here: %v", err)
	}
	put(t, l, rec("d", 1))
	all := []Record{rec("a", 1), rec("b", 2), rec("c", 2), rec("d", 1)}
	want(t, l, all...)
	wantFile(t, name, all...)

	write(t, name, header+lines(rec("e", 3))) // the same file, cut and filled anew
	put(t, l, rec("d", 2))
	all = []Record{rec("a", 1), rec("b", 2), rec("c", 2), rec("d", 2), rec("e", 3)}
	want(t, l, all...)
	wantFile(t, name, all...)
}

func TestMissingNewlineIsAddedOnce(t *testing.T) {
	name := temp(t)
	write(t, name, strings.TrimSuffix(header+lines(rec("a", 1)), "\n"))
	l, other := open(t, name), open(t, name)
	put(t, other, rec("b", 1))
	put(t, l, rec("c", 1))
	put(t, l, rec("d", 1))
	if got, want := read(t, name), header+lines(rec("a", 1), rec("b", 1), rec("c", 1), rec("d", 1)); got != want {
		t.Errorf("file = %q, want %q", got, want)
	}
	closeLog(t, l)
	write(t, name, strings.TrimSuffix(header+lines(rec("a", 1)), "\n"))
	l = open(t, name)
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	put(t, l, rec("a", 2))
	if got, want := read(t, name), header+lines(rec("a", 1), rec("a", 2)); got != want {
		t.Errorf("after Compact, file = %q, want %q", got, want)
	}
}

// A record of ours stands in the way of another's only until it is written,
// even if by then more is queued.
func TestAdoptAfterWriting(t *testing.T) {
	name := temp(t)
	var l *Log
	duringSync := func() {}
	l = openWith(t, name, Options{}, func(s string) error {
		if s == "fsync" {
			duringSync()
		}
		return nil
	})
	other := open(t, name)
	duringSync = func() { l.Put(rec("b", 1)) }
	put(t, l, rec("a", 1))
	duringSync = func() {}
	put(t, other, rec("a", 2))
	put(t, l, rec("c", 1))
	want(t, l, rec("a", 2), rec("b", 1), rec("c", 1))
	wantFile(t, name, rec("a", 2), rec("b", 1), rec("c", 1))
}

func TestHandleGoesBad(t *testing.T) {
	name := temp(t)
	l, other := open(t, name), open(t, name)
	put(t, l, rec("a", 1))
	put(t, other, rec("b", 1))
	l.file.f.Close()
	put(t, l, rec("c", 1))
	want(t, l, rec("a", 1), rec("b", 1), rec("c", 1))
	wantFile(t, name, rec("a", 1), rec("b", 1), rec("c", 1))
}

func TestFileIsReplacedByANewerVersion(t *testing.T) {
	name := temp(t)
	l := open(t, name)
	put(t, l, rec("a", 1))
	const newer = "letsencrypt 2\n"
	write(t, name, newer)
	seq := l.Put(rec("b", 1))
	if err := l.Sync(seq); !errors.Is(err, ErrVersion) {
		t.Errorf("Sync = %v, want ErrVersion", err)
	}
	if got := read(t, name); got != newer {
		t.Errorf("file = %q, want it untouched", got)
	}
	write(t, name, "")
	if err := l.Sync(seq); err != nil {
		t.Error(err)
	}
	wantFile(t, name, rec("a", 1), rec("b", 1))
}

// Whoever recovers a panic of Apply's must not be left with a log that hangs.
func TestPanicInApply(t *testing.T) {
	name := temp(t)
	var l Log
	armed := false
	apply := func(rs []Record) {
		if armed {
			armed = false
			panic("boom")
		}
		l.Adopt(rs...)
	}
	if err := l.Open(name, Options{Apply: apply}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other := open(t, name)
	put(t, other, rec("a", 1))
	armed = true
	seq := l.Put(rec("b", 1))
	func() {
		defer func() {
			if recover() == nil {
				t.Error("Sync does not panic")
			}
		}()
		l.Sync(seq)
	}()
	if err := l.Sync(seq); err != nil {
		t.Error(err)
	}
	wantFile(t, name, rec("a", 1), rec("b", 1))
}

// What is durable in one file is not yet so in the next.
func TestSyncOfAnotherFile(t *testing.T) {
	l := open(t, temp(t))
	seq := l.Put(rec("a", 1))
	if err := l.Sync(seq); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	name := temp(t)
	write(t, name, header)
	broken := true
	fl := &file{name: name, fail: func(s string) error {
		if broken && s == "write" {
			return errInjected
		}
		return nil
	}}
	if err := l.openFile(fl); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(seq); !errors.Is(err, errInjected) {
		t.Errorf("Sync = %v, want the failure", err)
	}
	broken = false
	if err := l.Sync(seq); err != nil {
		t.Error(err)
	}
	wantFile(t, name, rec("a", 1))
}

// Somebody removes the lock file while we wait for the lock on it: others
// then lock a new one.
func TestLockFileVanishes(t *testing.T) {
	name := temp(t)
	locks, armed := 0, false
	l := openWith(t, name, Options{}, func(s string) error {
		if s == "lock" {
			if locks++; armed {
				armed = false
				return os.Remove(name + ".lock")
			}
		}
		return nil
	})
	locks, armed = 0, true
	put(t, l, rec("a", 1))
	if locks != 2 {
		t.Errorf("%d locks were taken, want the one that was removed and a new one", locks)
	}
	if _, err := os.Stat(name + ".lock"); err != nil {
		t.Error(err)
	}
}

func TestFailedWrite(t *testing.T) {
	for _, step := range []string{"write", "fsync", "truncate+write", "truncate+fsync"} {
		t.Run(step, func(t *testing.T) {
			name := temp(t)
			var broken []string
			l := openWith(t, name, Options{}, func(s string) error { return failAt(broken...)(s) })
			put(t, l, rec("a", 1))
			broken = strings.Split(step, "+")
			seq := l.Put(rec("a", 2), rec("b", 1))
			for range 3 {
				if err := l.Sync(seq); !errors.Is(err, errInjected) {
					t.Errorf("Sync = %v, want the failure", err)
				}
			}
			if len(broken) == 1 {
				wantFile(t, name, rec("a", 1))
			}
			want(t, l, rec("a", 2), rec("b", 1))
			broken = nil
			if err := l.Sync(seq); err != nil {
				t.Errorf("Sync of a mended file: %v", err)
			}
			wantFile(t, name, rec("a", 2), rec("b", 1))
			want(t, open(t, name), rec("a", 2), rec("b", 1))
		})
	}
}

// A write that failed in the middle of a line, on a file that cannot be cut,
// is finished with a newline; what follows must be whole.
func TestTornWriteThatCannotBeCut(t *testing.T) {
	name := temp(t)
	uncut := false
	l := openWith(t, name, Options{}, func(s string) error {
		if uncut && s == "truncate" {
			return errInjected
		}
		return nil
	})
	put(t, l, rec("a", 1))
	uncut = true
	torn := read(t, name) + string(rec("b", 1))[:10]
	write(t, name, torn)
	put(t, l, rec("c", 1))
	if got, want := read(t, name), torn+"\n"+lines(rec("c", 1)); got != want {
		t.Errorf("file = %q, want %q", got, want)
	}
}

func TestNewFileIsListedBeforeAnythingIsDurable(t *testing.T) {
	var steps []string
	broken := ""
	name := temp(t)
	l := openWith(t, name, Options{Warn: func(error) {}}, func(s string) error {
		steps = append(steps, s)
		return failAt(broken)(s)
	})
	if !slices.Contains(steps, "syncdir") {
		t.Errorf("Open of a new file did %q, want a syncdir", steps)
	}
	closeLog(t, l)

	write(t, name, header) // as another process may just have made it
	broken = "syncdir"
	l = openWith(t, name, Options{Warn: func(error) {}}, func(s string) error { return failAt(broken)(s) })
	seq := l.Put(rec("a", 1))
	if err := l.Sync(seq); !errors.Is(err, errInjected) {
		t.Errorf("Sync with a folder that cannot be synced = %v", err)
	}
	broken = ""
	if err := l.Sync(seq); err != nil {
		t.Error(err)
	}
	steps = nil
	put(t, l, rec("a", 2))
	if slices.Contains(steps, "syncdir") {
		t.Errorf("a later Sync did %q, want no syncdir", steps)
	}
	wantFile(t, name, rec("a", 2))
}

func TestQueueStaysBoundedWhileNothingCanBeWritten(t *testing.T) {
	broken := false
	l := openWith(t, temp(t), Options{}, func(s string) error {
		if broken && s == "write" {
			return errInjected
		}
		return nil
	})
	broken = true
	for i := range 100 {
		if err := l.Sync(l.Put(rec("a", i), Delete("host", "b"), rec("c", i))); err == nil {
			t.Fatal("Sync succeeds")
		}
		if len(l.queue) > 3 {
			t.Fatalf("%d records are queued, of 3 keys", len(l.queue))
		}
	}
	if l.Close() == nil {
		t.Error("Close succeeds, with records unwritten")
	}
	want(t, l, rec("a", 99), rec("c", 99))
	if err := l.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func TestOpenOfAFileThatCannotBeWritten(t *testing.T) {
	name := temp(t)
	write(t, name, header+lines(rec("a", 1)))
	var warned []error
	broken := true
	l := new(Log)
	l.Put(rec("b", 1))
	fl := &file{name: name, fail: func(s string) error {
		if broken && s == "write" {
			return errInjected
		}
		return nil
	}}
	fl.opts.Warn = func(err error) { warned = append(warned, err) }
	if err := l.openFile(fl); err != nil {
		t.Fatal(err)
	}
	want(t, l, rec("a", 1), rec("b", 1))
	if len(warned) != 1 || !errors.Is(warned[0], errInjected) {
		t.Errorf("Warn(%v), want the failure", warned)
	}
	broken = false
	if err := l.Sync(l.Put()); err != nil {
		t.Error(err)
	}
	wantFile(t, name, rec("a", 1), rec("b", 1))
	closeLog(t, l)
}

func TestGroupCommit(t *testing.T) {
	var syncs int
	l := openWith(t, temp(t), Options{}, func(s string) error {
		if s == "fsync" {
			syncs++ // one leader at a time: the race detector would tell
		}
		return nil
	})
	const goroutines, each = 50, 20
	syncs = 0
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				if err := l.Sync(l.Put(rec(fmt.Sprint(g, ".", i), i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if syncs == 0 || syncs > goroutines*each/2 {
		t.Errorf("%d fsyncs for %d records, want far fewer", syncs, goroutines*each)
	}
	t.Logf("%d fsyncs for %d records", syncs, goroutines*each)
}

// While the disk is slow one leader waits for it, everybody else for the
// leader on a channel, and nobody who only wants the memory waits at all.
func TestSlowDisk(t *testing.T) {
	name := temp(t)
	synctest.Test(t, func(t *testing.T) {
		var slow bool
		syncs := 0
		l := openWith(t, name, Options{}, func(s string) error {
			if slow && s == "fsync" {
				syncs++
				time.Sleep(time.Second)
			}
			return nil
		})
		slow = true
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if err := l.Sync(l.Put(rec(fmt.Sprint(i), i))); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		l.Put(rec("x", 1))
		if _, ok := l.Get("host", "x"); !ok || len(state(l)) != 11 || len(l.Text()) == 0 {
			t.Error("memory lacks what was put while the disk is slow")
		}
		if since := time.Since(start); since != 0 {
			t.Errorf("Put, Get, All and Text took %v", since)
		}
		wg.Wait()
		if since := time.Since(start); since != 2*time.Second || syncs != 2 {
			t.Errorf("10 records took %v and %d fsyncs, want 2s: the first, then all others", since, syncs)
		}
		closeLog(t, l)
	})
}

func TestFollowersLearnOfTheFailure(t *testing.T) {
	name := temp(t)
	synctest.Test(t, func(t *testing.T) {
		failing := false
		l := openWith(t, name, Options{}, func(s string) error {
			if failing && s == "fsync" {
				time.Sleep(time.Second)
				return errInjected
			}
			return nil
		})
		failing = true
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if err := l.Sync(l.Put(rec(fmt.Sprint(i), i))); !errors.Is(err, errInjected) {
					t.Errorf("Sync = %v, want the failure", err)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		if since := time.Since(start); since != 2*time.Second {
			t.Errorf("all had failed after %v, want 2s: the first, then all others at once", since)
		}
		failing = false
		closeLog(t, l)
	})
	if n := bytes.Count([]byte(read(t, name)), []byte("\n")); n != 11 {
		t.Errorf("file has %d lines, want 11", n)
	}
}

func TestCloseIsSafeWithConcurrentUse(t *testing.T) {
	name := temp(t)
	l := new(Log)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				if err := l.Sync(l.Put(rec(fmt.Sprint(g), i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ours := Options{Apply: func([]Record) {}} // what is in memory wins
	for range 20 {
		if err := l.Open(name, ours); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if err := l.Open(name, ours); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	wantFile(t, name, rec("0", 199), rec("1", 199), rec("2", 199), rec("3", 199))
}
