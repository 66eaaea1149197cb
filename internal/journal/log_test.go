package journal

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// rec returns a small record of kind host.
func rec(name string, value int) Record {
	return Format("host", name, nil, fmt.Append(nil, value))
}

// state returns what a log holds, by key.
func state(l *Log) map[string]Record {
	m := make(map[string]Record)
	for r := range l.All() {
		m[r.Key()] = r
	}
	return m
}

// want compares what a log holds, through each way of looking at it, with rs.
func want(t *testing.T, l *Log, rs ...Record) {
	t.Helper()
	slices.SortFunc(rs, func(a, b Record) int { return strings.Compare(a.Key(), b.Key()) })
	for _, r := range rs {
		if got, ok := l.Get(r.Kind(), r.Name()); got != r || !ok {
			t.Errorf("Get(%s) = %q, %v, want %q", r.Key(), got, ok, r)
		}
	}
	all := make(map[string]Record)
	for _, r := range rs {
		all[r.Key()] = r
	}
	if got := state(l); !maps.Equal(got, all) {
		t.Errorf("All() = %q, want %q", slices.Sorted(maps.Values(got)), rs)
	}
	got, damaged, err := Split(l.Text())
	if !slices.Equal(got, rs) || damaged != 0 || err != nil {
		t.Errorf("Split(Text()) = %q, %d, %v, want %q", got, damaged, err, rs)
	}
	var size int64
	for _, r := range rs {
		size += int64(len(r)) + 1
	}
	if l.bytes != size {
		t.Errorf("bytes = %d, want %d", l.bytes, size)
	}
}

func TestZeroLog(t *testing.T) {
	var l Log
	want(t, &l)
	if r, ok := l.Get("host", "a"); r != "" || ok {
		t.Errorf("Get of an empty log = %q, %v", r, ok)
	}
	if err := l.Sync(l.Put(rec("a", 1))); err != nil {
		t.Errorf("Sync without a file: %v", err)
	}
	if err := l.Compact(); err != nil {
		t.Errorf("Compact without a file: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close without a file: %v", err)
	}
	want(t, &l, rec("a", 1))
}

func TestPutReplacesAndDeletes(t *testing.T) {
	var l Log
	l.Put(rec("a", 1), rec("b", 1), rec("a", 2))
	want(t, &l, rec("a", 2), rec("b", 1))
	l.Put(Delete("host", "b"), Delete("host", "none"))
	want(t, &l, rec("a", 2))
	l.Put(Delete("host", "a"), rec("a", 3))
	want(t, &l, rec("a", 3))
	l.Put(Format("order", "a", nil, []byte("1")))
	want(t, &l, rec("a", 3), Format("order", "a", nil, []byte("1")))
}

func TestTextIsSortedByKey(t *testing.T) {
	var l Log
	names := []string{"a", "a!", "a.b", "a0", "ab", "b", "~"}
	for _, name := range slices.Backward(names) {
		l.Put(rec(name, 1), Format("z", name, nil, []byte("1")), Format("hos", name, nil, []byte("1")))
	}
	rs, _, _ := Split(l.Text())
	if !slices.IsSortedFunc(rs, func(a, b Record) int { return strings.Compare(a.Key(), b.Key()) }) {
		t.Errorf("Text() is in the order %q", rs)
	}
	if first, second := l.Text(), l.Text(); len(rs) != 3*len(names) || first != second {
		t.Errorf("Text() has %d records or differs from Text()", len(rs))
	}
}

func TestGetDoesNotAllocate(t *testing.T) {
	var l Log
	url := "https://ca.example/" + strings.Repeat("x", 200)
	l.Put(Format("order", url, nil, []byte("1")))
	if n := testing.AllocsPerRun(100, func() { l.Get("order", url); l.Get("order", "none") }); n != 0 {
		t.Errorf("Get allocates %v times", n)
	}
}

func TestAllMayBeLeftAndMayUseTheLog(t *testing.T) {
	var l Log
	for i := range 3 * blockSize {
		l.Put(rec(fmt.Sprint(i), i))
	}
	for _, after := range []int{1, blockSize, blockSize + 1, 2*blockSize + 1, 3 * blockSize} {
		n := 0
		for r := range l.All() {
			l.Put(r)
			if n++; n == after {
				break
			}
		}
		if n != after {
			t.Errorf("All() gave %d records, want %d", n, after)
		}
	}
}

func TestAllGivesWhatStaysOnce(t *testing.T) {
	var l Log
	const n = 20 * blockSize
	for i := range n {
		l.Put(rec(fmt.Sprint("stays", i), 0))
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			l.Put(rec(fmt.Sprint("stays", i%n), i), rec(fmt.Sprint("new", i), i), Delete("host", fmt.Sprint("new", i/2)))
		}
	})
	for range 5 {
		seen := make(map[string]int)
		for r := range l.All() {
			seen[r.Name()]++
		}
		for i := range n {
			if name := fmt.Sprint("stays", i); seen[name] != 1 {
				t.Fatalf("All() gave %s %d times", name, seen[name])
			}
		}
	}
	close(stop)
	wg.Wait()
}

// TestTextIsOneMoment moves a number from one record to the next, in one Put
// each, so that every moment has the same sum.
func TestTextIsOneMoment(t *testing.T) {
	var l Log
	const n = 5 * blockSize
	for i := range n {
		l.Put(rec(fmt.Sprint(i), 0))
	}
	l.Put(rec("0", 1))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if i%3 == 0 {
				l.Put(Delete("host", fmt.Sprint(i%n)), rec(fmt.Sprint((i+1)%n), 1))
			} else {
				l.Put(rec(fmt.Sprint(i%n), 0), rec(fmt.Sprint((i+1)%n), 1))
			}
		}
	})
	for range 200 {
		rs, _, err := Split(l.Text())
		if err != nil {
			t.Fatal(err)
		}
		ones := 0
		for _, r := range rs {
			if r.JSON() == "1" {
				ones++
			}
		}
		if ones != 1 {
			t.Fatalf("Text() has %d ones among %d records, want 1 at any moment", ones, len(rs))
		}
	}
	close(stop)
	wg.Wait()
	if len(l.views) != 0 {
		t.Errorf("%d views are left over", len(l.views))
	}
}

func TestMemoryPerRecord(t *testing.T) {
	const n, size = 50_000, 40
	value := []byte(`"` + strings.Repeat("x", size) + `"`)
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint("host-", 1_000_000+i, ".example.com")
	}
	var lineSize int
	var l Log
	before := heap()
	for round := range 3 { // replaced lines must not stay alive as map keys
		for i := range n {
			r := Format("host", names[i], []int64{int64(round)}, value)
			lineSize = len(r)
			l.Put(r)
		}
	}
	per := int(heap()-before) / n
	t.Logf("%d bytes a record, of which its line has %d", per, lineSize)
	// The allocator rounds a line of this size up by 15 bytes at most.
	if per > lineSize+15+75 {
		t.Errorf("%d bytes a record, want at most 75 above the %d of its line", per, lineSize)
	}
	runtime.KeepAlive(&l)
	runtime.KeepAlive(names)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
