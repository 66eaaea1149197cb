package event

import (
	"slices"
	"sync"
	"testing"
)

func TestEventsAreDeliveredInOrder(t *testing.T) {
	var got []int
	q := &Queue[int]{Max: 10, Deliver: func(e, _ int) { got = append(got, e) }}
	for i := range 5 {
		if !q.Add(i) {
			t.Fatalf("Add(%d) = false with no Drain running, want true", i)
		}
	}
	q.Drain()
	if want := []int{0, 1, 2, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
}

func TestEventsAddedWhileDeliveringAreDelivered(t *testing.T) {
	var got []int
	q := &Queue[int]{Max: 10}
	q.Deliver = func(e, _ int) {
		got = append(got, e)
		if e < 3 && q.Add(e+1) {
			t.Error("Add asks for a Drain while one is running")
		}
	}
	q.Add(0)
	q.Drain()
	if want := []int{0, 1, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
}

func TestTooManyEventsAreDroppedAndCounted(t *testing.T) {
	var got, lost int
	q := &Queue[int]{Max: 3, Deliver: func(_, dropped int) { got++; lost += dropped }}
	for i := range 10 {
		q.Add(i)
	}
	q.Drain()
	if got != 3 || lost != 7 {
		t.Errorf("delivered %d and counted %d dropped, want 3 and 7", got, lost)
	}
}

func TestOneDeliveryAtATime(t *testing.T) {
	var mu sync.Mutex
	got := 0
	q := &Queue[int]{Max: 10000, Deliver: func(int, int) {
		if !mu.TryLock() {
			t.Error("two deliveries at a time")
			return
		}
		got++
		mu.Unlock()
	}}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 100 {
				if q.Add(i) {
					q.Drain()
				}
			}
		})
	}
	wg.Wait()
	q.Drain()
	if got != 800 {
		t.Errorf("delivered %d, want 800", got)
	}
}
