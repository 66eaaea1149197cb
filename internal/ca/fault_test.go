package ca

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt/internal/catest"
)

var passing = map[string]catest.Response{
	"dropped":         catest.Drop,
	"reply lost":      catest.LoseReply,
	"truncated":       catest.Truncate,
	"hangs":           catest.Hang,
	"429 of a proxy":  catest.HTML(429, "2"),
	"503":             catest.HTML(503, "2"),
	"503, long ago":   catest.HTML(503, "Sun, 06 Nov 1994 08:49:37 GMT"),
	"500 with reason": catest.Problem(500, "serverInternal", "oops", ""),
	"empty":           catest.Edit(func(*http.Response, []byte) []byte { return nil }),
	"html":            catest.HTML(200, ""),
}

// A fault that passes costs no second order, whether the CA acted on the
// request or not.
func TestSurvive(t *testing.T) {
	for _, endpoint := range []string{"authz", "challenge", "order", "finalize", "certificate"} {
		for name, response := range passing {
			if endpoint == "challenge" && (name == "empty" || name == "html") {
				continue // of this reply the status alone is of interest
			}
			t.Run(endpoint+" "+name, func(t *testing.T) {
				slow := func(c *catest.Config) { c.ValidationTakes, c.FinalizeTakes, c.Perspectives = 100*ms, 100*ms, 1 }
				inWorld(t, slow, func(t *testing.T, w *world) {
					w.ca.Fault(catest.On(endpoint, 1, response))
					took := elapsed(func() { w.obtain(w.job("a.example.com")) })
					if len(w.ca.Orders()) != 1 || len(w.ca.Issued("")) != 1 {
						t.Errorf("%d orders, %d certificates, want one of each", len(w.ca.Orders()), len(w.ca.Issued("")))
					}
					if most := 5 * time.Second; took > most && name != "hangs" {
						t.Errorf("took %v, want at most %v", took, most)
					}
				})
			})
		}
	}
}

func TestSurviveNewOrder(t *testing.T) {
	tests := []struct {
		name     string
		response catest.Response
		orders   int // a lost reply can't but cost one
	}{
		{"dropped", catest.Drop, 1},
		{"503", catest.HTML(503, "2"), 1},
		{"reply lost", catest.LoseReply, 2},
		{"truncated", catest.Truncate, 2},
	}
	for _, test := range tests {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.ca.Fault(catest.On("newOrder", 1, test.response))
			w.obtain(w.job("a.example.com"))
			if got := len(w.ca.Orders()); got != test.orders {
				t.Errorf("newOrder %s: %d orders, want %d", test.name, got, test.orders)
			}
		})
	}
}

func TestSurviveNewNonce(t *testing.T) {
	for _, name := range []string{"dropped", "reply lost", "hangs", "429 of a proxy", "503"} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.client.nonces = nil
			w.ca.Fault(catest.On("newNonce", 1, passing[name]))
			if _, err := w.client.Obtain(t.Context(), w.job("a.example.com")); err != nil {
				t.Errorf("newNonce %s: %v", name, err)
			}
		})
	}
}

// Every request has its reply lost once.
func TestSurviveAll(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.ValidationTakes, c.FinalizeTakes = 100*ms, 100*ms }, func(t *testing.T, w *world) {
		w.ca.Fault(func(endpoint string, n int, _ *http.Request) catest.Response {
			if n == 1 && endpoint != "newOrder" && endpoint != "newNonce" {
				return catest.LoseReply
			}
			return nil
		})
		w.obtain(w.job("a.example.com"))
		if len(w.ca.Orders()) != 1 || len(w.ca.Issued("")) != 1 {
			t.Errorf("%d orders, %d certificates, want one of each", len(w.ca.Orders()), len(w.ca.Issued("")))
		}
	})
}

// A fault that stays ends the attempt soon, and leaves the order to be taken up.
func TestFaultThatStays(t *testing.T) {
	for _, endpoint := range []string{"authz", "challenge", "order", "finalize", "certificate"} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.ca.Fault(catest.On(endpoint, 0, catest.HTML(503, "")))
			f := w.refused(w.job("a.example.com"))
			if f.Class != Fault || !f.Resumable() || !f.CAWide() {
				t.Errorf("%s: got %v: %v, resumable %v, want a fault to resume after", endpoint, f.Class, f, f.Resumable())
			}
			if n := w.ca.Count(endpoint); n > retries+1 {
				t.Errorf("%s asked %d times, want at most %d", endpoint, n, retries+1)
			}
			w.ca.Fault(nil)
			if endpoint == "certificate" {
				return // its key is gone with the job
			}
			j := w.job("a.example.com")
			j.OrderURL = w.kept[0]
			w.obtain(j)
			if len(w.ca.Orders()) != 1 {
				t.Errorf("%s: %d orders, want 1", endpoint, len(w.ca.Orders()))
			}
		})
	}
}

// A CA that says when to come again is not waited for, beyond a few seconds.
func TestLongRetryAfter(t *testing.T) {
	for _, endpoint := range []string{"newOrder", "authz", "finalize", "certificate"} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.ca.Fault(catest.On(endpoint, 1, catest.HTML(503, "3600")))
			var f *Failure
			took := elapsed(func() { f = w.refused(w.job("a.example.com")) })
			if f.Retry != time.Hour || took > pollFirst {
				t.Errorf("%s: took %v, Retry = %v; want at once, 1h", endpoint, took, f.Retry)
			}
		})
	}
}

// A CA that hangs in the middle of an order is to blame for it, not the host.
func TestHang(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			if endpoint == "order" || endpoint == "authz" && w.ca.Count("order") > 0 {
				return catest.Hang
			}
			return nil
		})
		var f *Failure
		took := elapsed(func() { f = w.refused(w.job("a.example.com")) })
		if f.Class != Network || !f.Resumable() {
			t.Errorf("got %v: %v, want network", f.Class, f)
		}
		if most := orderTimeout + requestTimeout; took > most {
			t.Errorf("took %v, want at most %v", took, most)
		}
	})
}

// The bounds are bounds: a CA that never ends its replies costs no memory.
func TestEndlessReply(t *testing.T) {
	for _, endpoint := range []string{"newOrder", "order", "certificate"} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.ca.Fault(catest.On(endpoint, 0, catest.Endless))
			f := w.refused(w.job("a.example.com"))
			if f.Class != Network || !strings.Contains(f.Error(), "longer than") {
				t.Errorf("%s: got %v: %v, want that it is too long", endpoint, f.Class, f)
			}
		})
	}
}

// Of a CA's several machines, one may not know yet that the order is ready.
func TestOrderNotReady(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Fault(catest.On("finalize", 1, catest.Problem(403, "orderNotReady", "order is pending", "")))
		w.obtain(w.job("a.example.com"))
		if n := len(w.ca.Orders()); n != 1 {
			t.Errorf("%d orders, want 1", n)
		}
	})
}
