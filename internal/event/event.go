// Package event hands events to their reader in order, in a goroutine of its
// own that lives only while there are any.
package event

import "sync"

// A Queue holds the events that are not handed over yet. Its zero value is
// ready, but for Deliver and Max.
type Queue[E any] struct {
	Deliver func(e E, dropped int) // called with one event at a time; dropped counts those lost before it
	Max     int                    // events held; more are dropped

	mu      sync.Mutex // guards the fields below
	events  []E
	dropped int
	busy    bool // Drain is running
}

// Add adds an event, and reports whether somebody is to call Drain for it. It
// calls nobody itself, so that it may be called with locks held.
func (q *Queue[E]) Add(e E) (idle bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.events) >= q.Max {
		q.dropped++
		return !q.busy
	}
	q.events = append(q.events, e)
	return !q.busy
}

// Drain delivers the events until there are none left. It returns at once if
// another Drain is at it.
func (q *Queue[E]) Drain() {
	// No deferred unlocking: a Deliver that panics holds nothing.
	q.mu.Lock()
	if q.busy {
		q.mu.Unlock()
		return
	}
	q.busy = true
	for len(q.events) > 0 {
		e, dropped := q.events[0], q.dropped
		q.events, q.dropped = q.events[1:], 0
		q.mu.Unlock()
		q.Deliver(e, dropped)
		q.mu.Lock()
	}
	q.busy = false
	q.mu.Unlock()
}
