package main

import (
	"slices"
	"testing"
)

// TestFiguresInMemory sees that every figure comes out, whatever its value.
func TestFiguresInMemory(t *testing.T) {
	for _, f := range slices.Concat(lookups, heaps, refusals) {
		t.Run(f.name, func(t *testing.T) {
			n := min(f.sizes[0], 200)
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
	unload()
}
