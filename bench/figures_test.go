package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/time/rate"
)

// TestFigures sees that every figure comes out, whatever its value.
func TestFigures(t *testing.T) {
	for _, f := range figures {
		t.Run(f.name, func(t *testing.T) {
			var all []result
			if err := f.measureAll(func(res result) error { all = append(all, res); return nil }, 100, true); err != nil {
				t.Fatal(err)
			}
			for _, res := range all {
				if res.Values[ours] <= 0 {
					t.Errorf("%s of %d: ours = %v, want more than 0", f.name, res.N, res.Values[ours])
				}
			}
		})
	}
	unload()
}

// TestResultThatCannotBePrinted: JSON has no ratio to nothing.
func TestResultThatCannotBePrinted(t *testing.T) {
	f := &figure{
		name: "nothing",
		met:  func(values) bool { return true },
		run:  func(*run) (values, error) { return values{floor: 0, ours: 1}, nil },
	}
	if err := f.measureAll(printJSON, 100, true); err == nil {
		t.Error("measureAll = nil, want why there is no result")
	}
}

func TestCheckLines(t *testing.T) {
	text := state(3)
	if err := checkLines([]byte(text)); err != nil {
		t.Errorf("checkLines of a state = %v, want no error", err)
	}
	for _, damaged := range []string{
		strings.Replace(text, "h0000001", "h0000009", 1),
		strings.Replace(text, `"leaf":"`, `"laef":"`, 1),
		text + "short\n",
	} {
		if checkLines([]byte(damaged)) == nil {
			t.Errorf("checkLines of a damaged state = nil, want an error")
		}
	}
}

// TestYearNotices sees that a year with another limit than it is checked against
// does not come out well.
func TestYearNotices(t *testing.T) {
	tests := []struct {
		limit            rate.Limit
		tooFast, expired bool
	}{
		{yearLimit, false, false},
		{rate.Inf, true, false},
		{1e-4, false, true},
	}
	for _, test := range tests {
		y := newYear(1000, true)
		y.limiter.SetLimitAt(y.now, test.limit)
		y.run(&run{figure: new(figure)}, 30*day)
		if y.tooFast > 0 != test.tooFast || y.expired > 0 != test.expired {
			t.Errorf("a month at %v a second: %d orders past the limits, %d certificates expired, want %t and %t", test.limit, y.tooFast, y.expired, test.tooFast, test.expired)
		}
		if y.polled < 1000*4*30/4 {
			t.Errorf("a month at %v a second: %d questions for renewal information, want about four a day for each of 1000 hosts", test.limit, y.polled)
		}
	}
}

func TestFollow(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	write := func(name string, size int) {
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(name, 100)
	f := newFollower()
	defer f.close()
	close(f.done)
	look := func() {
		if err := f.look(name); err != nil {
			t.Fatal(err)
		}
	}
	look()
	look()
	write(name+".new", 30)
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
	look()
	if n, err := f.written(); n != 130 || err != nil {
		t.Errorf("written = %d, %v, want 130 of two files", n, err)
	}
}
