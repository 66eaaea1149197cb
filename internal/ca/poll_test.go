package ca

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"example.com/letsencrypt/internal/catest"
)

// looks runs a job and returns when the order was looked at, from the
// acceptance of the challenge on, or from the beginning if there is none.
func (w *world) looks(j Job) []time.Duration {
	w.t.Helper()
	w.requests()
	w.obtain(j)
	requests := w.requests()
	start := requests[0].Time
	var at []time.Duration
	for _, r := range requests {
		switch r.Endpoint {
		case "challenge":
			start = r.Time
		case "order":
			at = append(at, r.Time.Sub(start))
		}
	}
	return at
}

// gaps returns the times between looks.
func gaps(at []time.Duration) []time.Duration {
	var g []time.Duration
	for i := 1; i < len(at); i++ {
		g = append(g, at[i]-at[i-1])
	}
	return g
}

const ms = time.Millisecond

// The validation is decided when its last connection has come, so that is
// when to look.
func TestLookAfterLastArrival(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.ValidationTakes = 3 * time.Second }, func(t *testing.T, w *world) {
		at := w.looks(w.job("a.example.com")) // arrivals after 1, 2 and 3 s
		if last := at[len(at)-1]; last != 3*time.Second+quietTime {
			t.Errorf("looked %v, want the last %v after the last arrival", at, quietTime)
		}
	})
}

// An arrival before the order is first looked at is not forgotten.
func TestLookAfterEarlyArrival(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		if at := w.looks(w.job("a.example.com")); !slices.Equal(at, []time.Duration{quietTime}) {
			t.Errorf("looked %v, want once, after %v", at, quietTime)
		}
	})
}

func TestLookEverMoreSeldom(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.ValidationTakes = 5 * time.Second }, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		j.Solve = w.solveWith(func(arrived chan<- struct{}) { arrived <- struct{}{} })
		at := w.looks(j)
		want := []time.Duration{60 * ms, 120 * ms, 240 * ms, 480 * ms, 960 * ms, pollSeen, pollSeen, pollSeen, pollSeen}
		if at[0] != quietTime || !slices.Equal(gaps(at), want[:len(at)-1]) || len(at) < 8 {
			t.Errorf("first looked after %v, then after %v, want %v, then %v", at[0], gaps(at), quietTime, want)
		}
	})
}

func TestLookWithoutSignal(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.ValidationTakes = 21 * time.Second }, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		j.Solve = w.solve("tls-alpn-01", false)
		at := w.looks(j)
		want := []time.Duration{2 * time.Second, 4 * time.Second, pollMost, pollMost, pollMost}
		if at[0] != pollFirst || !slices.Equal(gaps(at), want) {
			t.Errorf("first looked after %v, then after %v, want %v, then %v", at[0], gaps(at), pollFirst, want)
		}
	})
}

func TestLookAtIssuance(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.FinalizeTakes = 3 * time.Second }, func(t *testing.T, w *world) {
		at := w.looks(w.job("a.example.com"))
		want := []time.Duration{30 * ms, 60 * ms, 120 * ms, 240 * ms, 480 * ms, 960 * ms, pollSeen, pollSeen}
		if !slices.Equal(gaps(at), want[:len(at)-1]) || len(at) < 8 {
			t.Errorf("looked %v, then after %v, want %v", at[0], gaps(at), want)
		}
	})
}

// catest fails the test when a Retry-After is not honoured; here is how much
// later than asked we come.
func TestLookRetryAfter(t *testing.T) {
	const asked = 3 * time.Second
	asDate := catest.Edit(func(res *http.Response, body []byte) []byte {
		if res.Header.Get("Retry-After") != "" {
			res.Header.Set("Retry-After", time.Now().Add(asked).UTC().Format(http.TimeFormat))
		}
		return body
	})
	for name, script := range map[string]catest.Script{"seconds": nil, "date": catest.On("order", 0, asDate)} {
		t.Run(name, func(t *testing.T) {
			slow := func(c *catest.Config) { c.ValidationTakes, c.RetryAfter = 12*time.Second, asked }
			inWorld(t, slow, func(t *testing.T, w *world) {
				w.ca.Fault(script)
				at := w.looks(w.job("a.example.com"))
				for _, gap := range gaps(at) {
					if gap < asked-time.Second || gap > asked+quietTime {
						t.Errorf("looked %v: %v apart, want %v", at, gap, asked)
					}
				}
				if len(at) < 3 {
					t.Errorf("looked %v, want several times", at)
				}
			})
		})
	}
}

// Whoever knows the host can make connections that look like validations.
// They neither put the look at the order off nor make us ask all the time.
func TestLookUnderFlood(t *testing.T) {
	for _, every := range []time.Duration{quietTime / 3, quietTime * 4 / 3} {
		inWorld(t, func(c *catest.Config) { c.ValidationTakes = 10 * time.Second }, func(t *testing.T, w *world) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			j := w.job("a.example.com")
			j.Solve = w.solveWith(func(arrived chan<- struct{}) {
				go func() {
					for sleep(ctx, every) == nil {
						select {
						case arrived <- struct{}{}:
						default:
						}
					}
				}()
			})
			at := w.looks(j)
			if last := at[len(at)-1]; last > 10*time.Second+pollSeen || len(at) > maxArrivals+20 {
				t.Errorf("an arrival every %v: %d looks, the last after %v, want at most %d, the last after 11s", every, len(at), last, maxArrivals+20)
			}
		})
	}
}

// solveWith is solve for tls-alpn-01, with f in place of the validations as
// the source of arrivals.
func (w *world) solveWith(f func(arrived chan<- struct{})) func(context.Context, *Authorization, chan<- struct{}) (*Answer, error) {
	solve := w.solve("tls-alpn-01", false)
	return func(ctx context.Context, a *Authorization, arrived chan<- struct{}) (*Answer, error) {
		f(arrived)
		return solve(ctx, a, nil)
	}
}
