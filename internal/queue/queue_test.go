package queue

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var epoch = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return epoch.Add(time.Duration(seconds) * time.Second) }

// A host is used the way the package doc says.
type host struct {
	due  Item[*host]
	name string
}

func newHost(name string) *host {
	h := &host{name: name}
	h.due.Value = h
	return h
}

func TestZeroQueue(t *testing.T) {
	var q Queue[int]
	if item, when := q.Next(); item != nil || !when.IsZero() {
		t.Errorf("Next() = %v, %v, want nil and the zero time", item, when)
	}
	if item := q.Pop(at(0)); item != nil {
		t.Errorf("Pop(0) = %v, want nil", item)
	}
	var item Item[int]
	q.Remove(&item)
	if n := q.Len(); n != 0 || item.Queued() {
		t.Errorf("Len() = %d, Queued() = %v, want 0, false", n, item.Queued())
	}
}

func TestPopInOrder(t *testing.T) {
	var q Queue[*host]
	for _, s := range rand.Perm(1000) {
		q.Set(&newHost(fmt.Sprint(s)).due, at(s))
	}
	for s := range 1000 {
		if item := q.Pop(at(s).Add(-time.Second)); item != nil {
			t.Fatalf("Pop(%d) = host %s before it is due", s-1, item.Value.name)
		}
		item := q.Pop(at(s))
		if item == nil || item.Value.name != fmt.Sprint(s) || item.Queued() {
			t.Fatalf("Pop(%d) = %v, want host %d, no longer queued", s, item, s)
		}
	}
	if q.Len() != 0 {
		t.Errorf("Len() = %d, want 0", q.Len())
	}
}

func TestSetMoves(t *testing.T) {
	var q Queue[*host]
	a, b := newHost("a"), newHost("b")
	q.Set(&a.due, at(1))
	q.Set(&b.due, at(2))
	q.Set(&a.due, at(3))
	if item, when := q.Next(); item.Value != b || !when.Equal(at(2)) || q.Len() != 2 {
		t.Errorf("a moved behind b: Next() = %s at %v of %d, want b at %v of 2", item.Value.name, when, q.Len(), at(2))
	}
	q.Set(&a.due, at(1))
	if item, when := q.Next(); item.Value != a || !when.Equal(at(1)) || q.Len() != 2 {
		t.Errorf("a moved before b: Next() = %s at %v of %d, want a at %v of 2", item.Value.name, when, q.Len(), at(1))
	}
}

// TestFarTimes: whatever time a certificate may bear has its place.
func TestFarTimes(t *testing.T) {
	times := []time.Time{
		{},
		time.Date(1601, 1, 1, 0, 0, 0, 0, time.UTC),
		epoch,
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	var q Queue[time.Time]
	for _, i := range rand.Perm(len(times)) {
		q.Set(&Item[time.Time]{Value: times[i]}, times[i])
	}
	for _, want := range times {
		_, when := q.Next()
		if item := q.Pop(want); item == nil || !item.Value.Equal(want) || !when.Equal(want) {
			t.Errorf("Pop(%v) = %v, whose time is %v", want, item, when)
		}
	}
}

// TestModel takes random steps on queues of small and large sizes and compares
// each outcome with a plain list that is searched from end to end.
func TestModel(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 20, 200} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			m := model{hosts: make([]*host, n), at: make(map[*host]int)}
			for i := range m.hosts {
				m.hosts[i] = newHost(fmt.Sprint(i))
			}
			for range 2000 {
				m.step(t)
				m.check(t)
			}
		})
	}
}

// A model is a queue and the same as a map of the hosts in it to their times.
type model struct {
	q     Queue[*host]
	hosts []*host
	at    map[*host]int
}

func (m *model) step(t *testing.T) {
	h := m.hosts[rand.IntN(len(m.hosts))]
	s := rand.IntN(2 * len(m.hosts))
	switch rand.IntN(4) {
	case 0:
		m.q.Remove(&h.due)
		delete(m.at, h)
	case 1:
		m.pop(t, s)
	default:
		m.q.Set(&h.due, at(s))
		m.at[h] = s
	}
}

func (m *model) pop(t *testing.T, now int) {
	first, ok := m.first()
	item := m.q.Pop(at(now))
	if due := ok && first <= now; due != (item != nil) {
		t.Fatalf("Pop(%d) = %v, but the first is due at %d", now, item, first)
	}
	if item == nil {
		return
	}
	if got := m.at[item.Value]; got != first {
		t.Fatalf("Pop(%d) = the host due at %d, want one due at %d", now, got, first)
	}
	delete(m.at, item.Value)
}

func (m *model) first() (s int, ok bool) {
	for _, at := range m.at {
		if !ok || at < s {
			s, ok = at, true
		}
	}
	return s, ok
}

func (m *model) check(t *testing.T) {
	if got := m.q.Len(); got != len(m.at) {
		t.Fatalf("Len() = %d, want %d", got, len(m.at))
	}
	if first, ok := m.first(); ok {
		if item, when := m.q.Next(); m.at[item.Value] != first || !when.Equal(at(first)) {
			t.Fatalf("Next() = the host due at %d, at %v, want %v", m.at[item.Value], when, at(first))
		}
	}
	if got, want := m.q.Times(), m.times(); !slices.EqualFunc(got, want, time.Time.Equal) {
		t.Fatalf("Times() = %v, want %v", got, want)
	}
	for _, h := range m.hosts {
		if _, want := m.at[h]; h.due.Queued() != want {
			t.Fatalf("host %s: Queued() = %v, want %v", h.name, h.due.Queued(), want)
		}
	}
}

func (m *model) times() []time.Time {
	var times []time.Time
	for _, s := range slices.Sorted(maps.Values(m.at)) {
		times = append(times, at(s))
	}
	return times
}

// TestRemovedIsForgotten: the array behind the heap must not keep what was in it.
func TestRemovedIsForgotten(t *testing.T) {
	var q Queue[*host]
	for s := range 100 {
		q.Set(&newHost("").due, at(s))
	}
	for q.Pop(at(100)) != nil {
	}
	kept := func(e entry[*host]) bool { return e.item != nil }
	if slices.ContainsFunc(q.heap[:cap(q.heap)], kept) {
		t.Error("an empty queue keeps items from the collector")
	}
}

const million = 1_000_000

// fullQueue returns a queue of a million hosts due within 60 days, and them.
func fullQueue() (*Queue[*host], []*host) {
	q := new(Queue[*host])
	hosts := make([]*host, million)
	for i := range hosts {
		hosts[i] = newHost("")
		q.Set(&hosts[i].due, anyTime())
	}
	return q, hosts
}

func anyTime() time.Time { return at(rand.IntN(60 * 24 * 3600)) }

// BenchmarkFill puts a million hosts into a queue.
func BenchmarkFill(b *testing.B) {
	for b.Loop() {
		fullQueue()
	}
}

// BenchmarkRenew pops the first of a million hosts and sets it to a later time.
func BenchmarkRenew(b *testing.B) {
	q, _ := fullQueue()
	b.ReportAllocs()
	for b.Loop() {
		item, when := q.Next()
		q.Pop(when)
		q.Set(item, when.Add(60*24*time.Hour))
	}
}

// BenchmarkMove moves any of a million hosts to any time.
func BenchmarkMove(b *testing.B) {
	q, hosts := fullQueue()
	b.ReportAllocs()
	for b.Loop() {
		q.Set(&hosts[rand.IntN(million)].due, anyTime())
	}
}
