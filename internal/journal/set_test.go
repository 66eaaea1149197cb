package journal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// checkSet compares a set with a map, and looks whether every key is found and
// no place is lost.
func checkSet(t *testing.T, s *set, want map[string]Record) {
	t.Helper()
	got := make(map[string]Record)
	n := 0
	for r := range s.all() {
		got[r.Key()] = r
		n++
	}
	if !maps.Equal(got, want) || n != len(want) {
		t.Fatalf("all() gives %d records of %d keys, want %d", n, len(got), len(want))
	}
	for key, r := range want {
		if got := s.get([]byte(key)); got != r {
			t.Fatalf("get(%s) = %q, want %q", key, got, r)
		}
	}
	used := 0
	for _, sh := range s.shards {
		used += sh.used
		if 6*sh.used > 5*len(sh.slots) {
			t.Fatalf("%d of %d slots are used", sh.used, len(sh.slots))
		}
	}
	if used != len(want) || s.places != len(want)+len(s.holes) {
		t.Fatalf("%d slots used, %d places, %d holes, want %d records", used, s.places, len(s.holes), len(want))
	}
}

func TestSetModel(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		keys := 1 + rnd.IntN(3000)
		grow := 1 + rnd.IntN(4) // puts for each removal, so that some shrink again
		s, m := new(set), make(map[string]Record)
		for i := range 10_000 {
			r := rec(fmt.Sprint(rnd.IntN(keys)), i)
			key := r.Key()
			old := m[key]
			var got Record
			if rnd.IntN(grow+1) == 0 {
				got = s.remove([]byte(key))
				delete(m, key)
			} else {
				got = s.put(key, r)
				m[key] = r
			}
			if got != old {
				t.Fatalf("seed %d: step %d gives back %q, want %q", seed, i, got, old)
			}
			if i%1000 == 0 {
				checkSet(t, s, m)
			}
		}
		checkSet(t, s, m)
		for key := range m {
			s.remove([]byte(key))
		}
		checkSet(t, s, nil)
	}
}

func TestSetKeepsPlaces(t *testing.T) {
	var s set
	var want []Record
	for i := range 2 * blockSize {
		s.put(rec(fmt.Sprint(i), 0).Key(), rec(fmt.Sprint(i), 0))
		want = append(want, rec(fmt.Sprint(i), i))
	}
	for i, r := range slices.Backward(want) {
		if old := s.put(r.Key(), r); old != rec(fmt.Sprint(i), 0) {
			t.Fatalf("put(%q) = %q", r, old)
		}
	}
	s.remove([]byte(want[7].Key()))
	want[7] = rec("new", 0)
	s.put(want[7].Key(), want[7])
	if got := slices.Collect(s.all()); !slices.Equal(got, want) {
		t.Errorf("all() is not in the order of the first puts, the new one in the removed one's place")
	}
}

// Keys of one hash are told apart, also when one of them is removed.
func TestSetSameHash(t *testing.T) {
	sh := shard{slots: make([]slot, 8)}
	// A run around the end: its homes are 6, 6, 7, 6, 0.
	homes := []int{6, 6, 7, 6, 0}
	for free := range homes {
		clear(sh.slots)
		sh.used = len(homes)
		for i, home := range homes {
			sh.slots[(6+i)%8] = slot{uint32(home<<29 | 1<<28), uint32(i + 1)}
		}
		sh.clear((6 + free) % 8)
		for i, home := range homes {
			if i == free {
				continue
			}
			at := home
			for sh.slots[at].place != 0 && sh.slots[at].place != uint32(i+1) {
				at = sh.next(at)
			}
			if sh.slots[at].place == 0 {
				t.Errorf("slot %d of the run cleared: %d is not found", free, i)
			}
		}
	}
}

func TestReserve(t *testing.T) {
	const n = 20_000
	var s set
	s.reserve(n)
	slots := 0
	for _, sh := range s.shards {
		slots += len(sh.slots)
	}
	m := make(map[string]Record)
	for i := range n {
		r := rec(fmt.Sprint(i), 0)
		s.put(r.Key(), r)
		m[r.Key()] = r
	}
	checkSet(t, &s, m)
	for _, sh := range s.shards {
		slots -= len(sh.slots)
	}
	if -slots > n/10 {
		t.Errorf("a set with room for %d records grew by %d slots", n, -slots)
	}
}

func TestSortRecords(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 3))
	for n := range 300 {
		var rs []Record
		for range n {
			name := strings.Repeat("a", rnd.IntN(40)) + fmt.Sprint("~", rnd.IntN(20))
			rs = append(rs, Format([]string{"a", "ab", "host"}[rnd.IntN(3)], name, nil, fmt.Append(nil, rnd.IntN(3))))
		}
		want := slices.Sorted(slices.Values(rs))
		if sortRecords(rs); !slices.Equal(rs, want) {
			t.Fatalf("sortRecords of %d records gives %q, want %q", n, rs, want)
		}
	}
}

func TestSortedTakesWhatIsInOrder(t *testing.T) {
	var in []Record
	for i := range 1000 {
		in = append(in, rec(fmt.Sprintf("%04d", i), 0))
	}
	for _, moved := range []int{0, 1, 10, 900} {
		rs := slices.Clone(in)
		for range moved {
			i, j := rand.IntN(len(rs)), rand.IntN(len(rs))
			rs[i], rs[j] = rs[j], rs[i]
		}
		if got := sorted(rs); !slices.Equal(got, in) {
			t.Errorf("sorted, %d records swapped, gives %d records not in order", moved, len(got))
		}
	}
}

// cleaned returns a channel that is closed when the memory of s is free.
func cleaned(s string) <-chan struct{} {
	c := make(chan struct{})
	runtime.AddCleanup(&bytesOf(s)[0], func(c chan struct{}) { close(c) }, c)
	return c
}

func isFree(c <-chan struct{}) bool {
	for range 10 {
		runtime.GC()
		select {
		case <-c:
			return true
		case <-time.After(20 * time.Millisecond):
		}
	}
	return false
}

const sharers = 2000 // of 1.5 kB: more than release looks away from

// fillText returns a log with the records of a text, and when that is freed.
func fillText(t *testing.T) (*Log, <-chan struct{}) {
	var b strings.Builder
	b.WriteString(header)
	for i := range sharers {
		b.WriteString(string(big(fmt.Sprint(i), i)) + "\n")
	}
	rs, _, err := Split(b.String())
	if err != nil {
		t.Fatal(err)
	}
	l := new(Log)
	l.Put(rs...)
	return l, cleaned(b.String())
}

// churnMost replaces three of four records of a log twice: as much is dead then
// as lives, and none of the rest was touched.
func churnMost(t *testing.T, l *Log, free <-chan struct{}) {
	t.Helper()
	for i := range sharers * 3 / 4 {
		l.Put(big(fmt.Sprint(i), i+1))
	}
	l.Sync(0)
	if isFree(free) {
		t.Fatal("what was read is free while records in it live: this test tests nothing")
	}
	for i := range sharers * 3 / 4 {
		l.Put(big(fmt.Sprint(i), i+2))
	}
	text := l.Text()
	if err := l.Sync(l.Put()); err != nil {
		t.Fatal(err)
	}
	tidied(l)
	if !isFree(free) {
		t.Error("what was read is still in memory")
	}
	if l.Text() != text {
		t.Error("Text has changed")
	}
}

func TestTextIsLetGoOf(t *testing.T) {
	l, free := fillText(t)
	churnMost(t, l, free)
}

func TestFileIsLetGoOf(t *testing.T) {
	name := temp(t)
	l, _ := fillText(t)
	write(t, name, l.Text())
	l = open(t, name)
	r, ok := l.Get("host", fmt.Sprint(sharers-1))
	if !ok {
		t.Fatal("the last record is missing")
	}
	// A cleanup waits for the whole buffer, wherever in it the record stands.
	churnMost(t, l, cleaned(string(r)))
}

// What was read and not adopted holds on to no more than what was.
func TestPassedOverIsLetGoOf(t *testing.T) {
	name := temp(t)
	from, _ := fillText(t)
	write(t, name, from.Text())
	l := new(Log)
	apply := func(rs []Record) {
		for _, r := range rs {
			if r.Name() == "7" {
				l.Adopt(r)
			}
		}
	}
	if err := l.Open(name, Options{Apply: apply}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := heap()
	if err := l.Sync(0); err != nil {
		t.Fatal(err)
	}
	if got := before - min(before, heap()); got < readBuffer/2 {
		t.Errorf("Sync freed %d bytes, want the buffer of the one record adopted", got)
	}
	want(t, l, big("7", 7))
}

func TestReleaseBesidePuts(t *testing.T) {
	var l Log
	const n = 3 * blockSize
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			for at := 0; l.cloneBlock(at); at += blockSize {
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for round := range 100 {
		for i := range n {
			l.Put(rec(fmt.Sprint(i), round))
		}
		for i := range n {
			if r, _ := l.Get("host", fmt.Sprint(i)); r != rec(fmt.Sprint(i), round) {
				t.Errorf("round %d: record %d = %q, want the last put", round, i, r)
			}
		}
	}
	close(stop)
	wg.Wait()
}

func TestMemoryPerLoadedRecord(t *testing.T) {
	const n = 100_000
	name := temp(t)
	write(t, name, func() string {
		var l Log
		for i := range n {
			l.Put(Format("host", fmt.Sprint("host-", i, ".example.com"), nil, []byte(`"`+strings.Repeat("x", 300)+`"`)))
		}
		return l.Text()
	}())
	before := heap()
	l := open(t, name)
	per := float64(int64(heap()-before)-l.bytes) / n
	t.Logf("%.1f bytes a record besides its line", per)
	if per > 30 {
		t.Errorf("%.1f bytes a record besides its line, want at most 30", per)
	}
	runtime.KeepAlive(l)
}
