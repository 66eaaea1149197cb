package main

import (
	"slices"
	"testing"
)

// TestFiguresOnDisk is TestFiguresInMemory for what needs a disk, a CA or the go
// command.
func TestFiguresOnDisk(t *testing.T) {
	for _, f := range slices.Concat(states, orders, builds) {
		t.Run(f.name, func(t *testing.T) {
			n := f.upTo(100)[0]
			r := &run{figure: f, n: n, quick: true}
			v, err := f.run(r)
			if err != nil {
				t.Fatalf("%s of %d: %v", f.name, n, err)
			}
			if v[ours] <= 0 {
				t.Errorf("%s of %d: ours = %v, want more than 0", f.name, n, v[ours])
			}
			f.met(v) // it may be false, so early
		})
	}
}
