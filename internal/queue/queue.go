// Package queue keeps items in the order in which they are due.
//
// It has no clock and no lock: whoever owns a Queue brings the time and the
// mutex. It is made for a million hosts, most of which move to another time
// now and then.
package queue

import (
	"slices"
	"time"
)

// The queue is a heap in an array in which each entry has four children: half
// as deep as a binary heap, and siblings share a cache line. The times are in
// the array, so that comparing them touches no item.
const arity = 4

// A Queue holds items by time. The zero Queue is empty and ready.
type Queue[V any] struct {
	heap []entry[V] // no entry is due before its parent
}

type entry[V any] struct {
	at   int64 // Unix time in microseconds, which unlike nanoseconds hold every year
	item *Item[V]
}

// An Item is a value's place in a queue. The zero Item is in none; it is in at
// most one at a time. Make it a part of the value, and let Value lead back:
//
//	type host struct {
//		due queue.Item[*host]
//		...
//	}
type Item[V any] struct {
	Value V

	place int // in the heap, plus one; 0 if not queued
}

// Queued reports whether the item is in a queue.
func (it *Item[V]) Queued() bool { return it.place > 0 }

// Len returns the number of items.
func (q *Queue[V]) Len() int { return len(q.heap) }

// Set makes item due at the time at, which is kept to the microsecond. It puts
// the item into the queue or, if it is there, moves it.
func (q *Queue[V]) Set(item *Item[V], at time.Time) {
	e := entry[V]{at.UnixMicro(), item}
	if item.place == 0 {
		q.heap = append(q.heap, e)
		q.up(len(q.heap)-1, e)
		return
	}
	q.settle(item.place-1, e)
}

// Remove takes item out of the queue, if it is there.
func (q *Queue[V]) Remove(item *Item[V]) {
	if item.place == 0 {
		return
	}
	i, last := item.place-1, len(q.heap)-1
	e := q.heap[last]
	q.heap[last] = entry[V]{}
	q.heap = q.heap[:last]
	if i < last {
		q.settle(i, e)
	}
	item.place = 0
}

// Next returns the item that is due first and its time, and leaves it where it
// is. The item is nil if the queue is empty.
func (q *Queue[V]) Next() (*Item[V], time.Time) {
	if len(q.heap) == 0 {
		return nil, time.Time{}
	}
	return q.heap[0].item, time.UnixMicro(q.heap[0].at)
}

// Pop takes the item that is due first out of the queue and returns it, or nil
// if none is due at the time now.
func (q *Queue[V]) Pop(now time.Time) *Item[V] {
	if len(q.heap) == 0 || q.heap[0].at > now.UnixMicro() {
		return nil
	}
	item := q.heap[0].item
	q.Remove(item)
	return item
}

// settle puts e into the place i, whose entry is overwritten, and from there
// where it belongs.
func (q *Queue[V]) settle(i int, e entry[V]) {
	if i > 0 && e.at < q.heap[(i-1)/arity].at {
		q.up(i, e)
	} else {
		q.down(i, e)
	}
}

// up moves parents into the gap at i until e fits there.
func (q *Queue[V]) up(i int, e entry[V]) {
	for i > 0 {
		parent := (i - 1) / arity
		if q.heap[parent].at <= e.at {
			break
		}
		q.put(i, q.heap[parent])
		i = parent
	}
	q.put(i, e)
}

// down moves the earliest of the children into the gap at i until e fits there.
func (q *Queue[V]) down(i int, e entry[V]) {
	for {
		child := q.firstChild(i)
		if child < 0 || e.at <= q.heap[child].at {
			break
		}
		q.put(i, q.heap[child])
		i = child
	}
	q.put(i, e)
}

// firstChild returns the place of the earliest child of place i, -1 if i has none.
func (q *Queue[V]) firstChild(i int) int {
	first := -1
	from := arity*i + 1
	for c := from; c < min(from+arity, len(q.heap)); c++ {
		if first < 0 || q.heap[c].at < q.heap[first].at {
			first = c
		}
	}
	return first
}

func (q *Queue[V]) put(i int, e entry[V]) {
	q.heap[i] = e
	e.item.place = i + 1
}

// Times returns when the items are due, the earliest first.
func (q *Queue[V]) Times() []time.Time {
	micros, times := make([]int64, len(q.heap)), make([]time.Time, len(q.heap))
	for i, e := range q.heap {
		micros[i] = e.at
	}
	slices.Sort(micros)
	for i, at := range micros {
		times[i] = time.UnixMicro(at)
	}
	return times
}
