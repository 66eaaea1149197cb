package ca

import (
	"testing"
)

// BenchmarkObtain is an order from beginning to end at a CA that takes no
// time, which the figures include: a look at the order waits for quietTime.
func BenchmarkObtain(b *testing.B) {
	w := newWorld(b, nil)
	b.ReportAllocs()
	for b.Loop() {
		w.obtain(w.job("a.example.com"))
	}
	b.ReportMetric(float64(len(w.requests()))/float64(b.N), "requests/op")
}
