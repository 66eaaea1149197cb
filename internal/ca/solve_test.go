package ca

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
)

type solver = func(context.Context, *Authorization, chan<- struct{}) (*Answer, error)

// slowly returns a Solve that does what solve does, after a time.
func slowly(wait time.Duration, solve solver) solver {
	return func(ctx context.Context, a *Authorization, arrived chan<- struct{}) (*Answer, error) {
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		return solve(ctx, a, arrived)
	}
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		rang := make(chan time.Time, 2)
		c.start(10*time.Second, func() { rang <- time.Now() })
		for range 2 {
			time.Sleep(4 * time.Second)
			if !c.stop() {
				t.Error("stop = false, want that it was running")
			}
			time.Sleep(time.Hour)
			c.resume()
		}
		began := time.Now()
		time.Sleep(time.Minute)
		if after := (<-rang).Sub(began); after != 2*time.Second || c.stop() {
			t.Errorf("of ten seconds it rings %v after the first eight, and may ring again; want 2s and not", after)
		}
	})
}

// The time that it takes to set an answer up is none of the CA's.
func TestSlowSolve(t *testing.T) {
	for _, wait := range []time.Duration{orderTimeout - time.Second, orderTimeout, 10 * time.Minute, time.Hour} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.ca.Change(func(c *catest.Config) { c.Latency = time.Second })
			j := w.job("a.example.com")
			j.Solve = slowly(wait, j.Solve)
			took := elapsed(func() { w.obtain(j) })
			if took < wait || took > wait+30*time.Second {
				t.Errorf("took %v, want little more than %v", took, wait)
			}
			if n := len(w.ca.Orders()); n != 1 {
				t.Errorf("%d orders, want 1", n)
			}
		})
	}
}

// The CA's own time is what it was, before and after.
func TestSlowSolveThenSlowCA(t *testing.T) {
	for name, slow := range map[string]func(*catest.Config){
		"validation": func(c *catest.Config) { c.ValidationTakes = time.Hour },
		"issuance":   func(c *catest.Config) { c.FinalizeTakes = time.Hour },
	} {
		inWorld(t, slow, func(t *testing.T, w *world) {
			w.ca.Change(func(c *catest.Config) { c.Latency = 5 * time.Second })
			const wait = 10 * time.Minute
			j := w.job("a.example.com")
			j.Solve = slowly(wait, w.solve("http-01", true))
			asking := false
			solve := j.Solve
			j.Solve = func(ctx context.Context, a *Authorization, arrived chan<- struct{}) (*Answer, error) {
				asking = true
				return solve(ctx, a, arrived)
			}
			var f *Failure
			took := elapsed(func() { f = w.refused(j) })
			// Afterwards the CA may be asked for its reasons.
			if most := wait + orderTimeout + 5*time.Second; took < wait+orderTimeout || took > most || !asking {
				t.Errorf("%s: took %v, want from %v to %v", name, took, wait+orderTimeout, most)
			}
			if !strings.Contains(f.Error(), "within 1m30s") {
				t.Errorf("%s: %v, want that it did not end within 1m30s", name, f)
			}
		})
	}
}

func TestCancelWhileSolving(t *testing.T) {
	heedless := func(w *world) solver {
		return func(_ context.Context, a *Authorization, arrived chan<- struct{}) (*Answer, error) {
			time.Sleep(20 * time.Minute)
			return w.solve("tls-alpn-01", true)(w.t.Context(), a, arrived)
		}
	}
	tests := []struct {
		name  string
		solve func(w *world) solver
		after time.Duration
	}{
		{"a Solve that heeds it", func(w *world) solver { return slowly(time.Hour, w.solve("tls-alpn-01", true)) }, 10 * time.Minute},
		{"a Solve that does not", heedless, 20 * time.Minute},
	}
	for _, test := range tests {
		inWorld(t, nil, func(t *testing.T, w *world) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(10*time.Minute, cancel)
			j := w.job("a.example.com")
			j.Solve = test.solve(w)
			var err error
			took := elapsed(func() { _, err = w.client.Obtain(ctx, j) })
			f, ok := errors.AsType[*Failure](err)
			if !ok || f.Class != Ours || !errors.Is(err, context.Canceled) || !f.Resumable() || took != test.after {
				t.Errorf("%s: %v after %v, want ours, canceled, resumable after %v", test.name, err, took, test.after)
			}
			if got := w.asked(); got != "newOrder authz" || w.answers.TLSALPN("a.example.com") != nil {
				t.Errorf("%s: the CA was asked for %s, and an answer stands: %v; want newOrder authz and false",
					test.name, got, w.answers.TLSALPN("a.example.com") != nil)
			}
		})
	}
}

// A record that a person must set holds the order up, and no more than that.
func TestUnset(t *testing.T) {
	unset := &Failure{Class: Unset, Step: "looking for the record", Err: errors.New("set it")}
	if unset.Class.String() != "unset" || !unset.Resumable() || unset.CAWide() {
		t.Errorf("class %q, resumable %v, of the whole CA %v, want unset, true, false", unset.Class, unset.Resumable(), unset.CAWide())
	}
	inWorld(t, nil, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		solve := j.Solve
		j.Solve = func(context.Context, *Authorization, chan<- struct{}) (*Answer, error) { return nil, unset }
		var f *Failure
		took := elapsed(func() { f = w.refused(j) })
		if f != unset || took != 0 {
			t.Errorf("Obtain = %v after %v, want %v at once", f, took, unset)
		}
		if got := w.asked(); got != "newOrder authz" {
			t.Errorf("the CA was asked for %s, want newOrder authz", got)
		}
		time.Sleep(24 * time.Hour)
		j.OrderURL, j.Solve = w.kept[0], solve
		w.obtain(j)
		if n := len(w.ca.Orders()); n != 1 {
			t.Errorf("%d orders, want 1", n)
		}
	})
}
