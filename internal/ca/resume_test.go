package ca

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt/internal/catest"
)

// interrupted runs a job until the CA is next asked for the endpoint, and
// returns the job that takes up its order.
func (w *world) interrupted(endpoint string) Job {
	w.t.Helper()
	j := w.job("a.example.com")
	ctx, crash := context.WithCancel(w.t.Context())
	w.ca.Fault(catest.On(endpoint, 1, func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
		crash()
		return nil, r.Context().Err()
	}))
	if _, err := w.client.Obtain(ctx, j); !errors.Is(err, context.Canceled) {
		w.t.Fatalf("Obtain, interrupted before %s: %v", endpoint, err)
	}
	w.ca.Fault(nil)
	w.asked()
	j.OrderURL = w.kept[len(w.kept)-1]
	return j
}

// An order is taken up wherever it stands, and nothing is done twice.
func TestResume(t *testing.T) {
	tests := []struct {
		state  string
		before string // what was about to be asked
		proven bool   // the host is validated already
		want   string // what is asked at first
	}{
		{"pending", "authz", false, "order authz challenge order"},
		{"pending, answered", "challenge", false, "order authz challenge order"},
		{"pending, validating", "order", false, "order authz order"},
		{"ready", "finalize", true, "order finalize order"},
		{"processing", "order", true, "order order"},
		{"valid", "certificate", true, "order certificate"},
	}
	slow := func(c *catest.Config) {
		c.ValidationTakes, c.FinalizeTakes, c.AuthzReuse = 10*time.Second, 10*time.Second, time.Hour
	}
	for _, test := range tests {
		t.Run(test.state, func(t *testing.T) {
			inWorld(t, slow, func(t *testing.T, w *world) {
				if test.proven {
					w.obtain(w.job("a.example.com"))
				}
				before := len(w.ca.Orders())
				j := w.interrupted(test.before)
				cert := w.obtain(j)
				if got := strings.TrimPrefix(w.asked(), "newNonce "); !strings.HasPrefix(got, test.want) || strings.Contains(got, "newOrder") {
					t.Errorf("the CA was asked for %s, want %s at first", got, test.want)
				}
				if orders, certs := len(w.ca.Orders())-before, len(w.ca.Issued(""))-before; orders != 1 || certs != 1 {
					t.Errorf("%d orders, %d certificates, want one of each", orders, certs)
				}
				if !w.ca.Issued("")[before].Equal(cert.Leaf) {
					t.Error("not the certificate that was issued")
				}
			})
		})
	}
}

// An order that was finalized before needs nobody's leave.
func TestResumeDoesNotAskAgain(t *testing.T) {
	tests := []struct {
		state  string
		before string // what was about to be asked
		asked  int
	}{
		{"ready", "finalize", 1},
		{"processing", "order", 0},
		{"valid", "certificate", 0},
	}
	slow := func(c *catest.Config) { c.FinalizeTakes, c.AuthzReuse = 10*time.Second, time.Hour }
	for _, test := range tests {
		inWorld(t, slow, func(t *testing.T, w *world) {
			w.obtain(w.job("a.example.com")) // so that the next order is ready at once
			j := w.interrupted(test.before)
			if orders := w.ca.Orders(); orders[1].Status != test.state {
				t.Fatalf("the order is %s, want %s", orders[1].Status, test.state)
			}
			asked := 0
			j.Finalizing = func(context.Context) error { asked++; return nil }
			w.obtain(j)
			if asked != test.asked {
				t.Errorf("%s: Finalizing was asked %d times, want %d", test.state, asked, test.asked)
			}
		})
	}
}

// An order that is of no use any more is made anew, and the new one kept.
func TestResumeUseless(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(t *testing.T, w *world)
	}{
		{"invalid", func(t *testing.T, w *world) { time.Sleep(8 * 24 * time.Hour) }},
		{"gone", func(t *testing.T, w *world) {
			w.ca.Fault(catest.On("order", 1, catest.Problem(404, "malformed", "no such order", "")))
		}},
		{"gone, without a word", func(t *testing.T, w *world) {
			w.ca.Fault(catest.On("order", 1, catest.HTML(404, "")))
		}},
		{"another account's", func(t *testing.T, w *world) {
			w.client = New(w.ca.Directory(), w.ca.Client(), newKey(t), "")
			if _, err := w.client.Register(t.Context(), nil, nil, false); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, nil, func(t *testing.T, w *world) {
				j := w.interrupted("challenge")
				test.spoil(t, w)
				w.obtain(j)
				if len(w.ca.Orders()) != 2 || len(w.kept) != 2 || w.kept[0] == w.kept[1] {
					t.Errorf("%d orders, kept %q, want two", len(w.ca.Orders()), w.kept)
				}
			})
		})
	}
}

// An order that can't be read for the moment is not given up for another.
func TestResumeLater(t *testing.T) {
	tests := []struct {
		name     string
		response catest.Response
		want     Class
	}{
		{"down", catest.Refuse, Network},
		{"503", catest.HTML(503, ""), Fault},
		{"429", catest.Problem(429, "rateLimited", "slow down", "60"), Limited},
		{"refused nonces", catest.Problem(400, "badNonce", "no", ""), Fault},
		{"unknown account", catest.Problem(400, "accountDoesNotExist", "who?", ""), NoAccount},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, nil, func(t *testing.T, w *world) {
				j := w.interrupted("challenge")
				w.ca.Fault(catest.On("order", 0, test.response))
				if f := w.refused(j); f.Class != test.want {
					t.Errorf("got %v: %v, want %v", f.Class, f, test.want)
				}
				if n := w.ca.Count("newOrder"); n != 1 {
					t.Errorf("%d orders, want 1", n)
				}
			})
		})
	}
}

func TestResumeAfterMoment(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		j := w.interrupted("challenge")
		w.ca.Fault(catest.On("order", 1, catest.HTML(503, "5")))
		if took := elapsed(func() { w.obtain(j) }); took < 5*time.Second || len(w.ca.Orders()) != 1 {
			t.Errorf("took %v, %d orders; want 5s, 1", took, len(w.ca.Orders()))
		}
	})
}

// An order that was finalized is about to be issued, whoever finalized it.
func TestResumeProcessingPace(t *testing.T) {
	slow := func(c *catest.Config) { c.FinalizeTakes, c.AuthzReuse = 8*time.Second, time.Hour }
	inWorld(t, slow, func(t *testing.T, w *world) {
		w.obtain(w.job("a.example.com"))
		j := w.interrupted("order")
		at := w.looks(j)
		for _, gap := range gaps(at) {
			if gap != pollSeen {
				t.Errorf("looked %v: %v apart, want %v", at, gap, pollSeen)
			}
		}
	})
}

// A certificate that was issued long ago and is expired is of no use.
func TestResumeExpired(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.Lifetime = time.Hour }, func(t *testing.T, w *world) {
		j := w.interrupted("certificate")
		time.Sleep(2 * time.Hour)
		if f := w.refused(j); f.Resumable() || !strings.Contains(f.Error(), "expired") {
			t.Errorf("got %v, resumable %v, want that it expired, for good", f, f.Resumable())
		}
	})
}
