package ca

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
)

// A wiretap notes what is sent to a CA: the path, and the payload of what is
// signed.
type wiretap struct {
	base http.RoundTripper

	mu   sync.Mutex // guards sent
	sent []string
}

func (w *wiretap) RoundTrip(r *http.Request) (*http.Response, error) {
	line := r.URL.Path
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		var jws struct{ Payload string }
		if err := json.Unmarshal(body, &jws); err != nil {
			return nil, err
		}
		payload, err := base64.RawURLEncoding.DecodeString(jws.Payload)
		if err != nil {
			return nil, err
		}
		line += " " + string(payload)
	}
	w.mu.Lock()
	w.sent = append(w.sent, line)
	w.mu.Unlock()
	return w.base.RoundTrip(r)
}

// tap puts a wiretap on an Account that is not in use yet.
func tap(a *Account) *wiretap {
	w := &wiretap{base: a.HTTP.Transport}
	a.HTTP = &http.Client{Transport: w}
	return w
}

// termsChanged is the refusal of RFC 8555, section 7.3.3.
func termsChanged(instance string, headers ...string) catest.Response {
	return func(*http.Request, func() *http.Response) (*http.Response, error) {
		body := `{"type":"urn:ietf:params:acme:error:userActionRequired","detail":"Terms of service have changed"`
		if instance != "" {
			body += `,"instance":"` + instance + `"`
		}
		return reply(http.StatusForbidden, body+"}", append(headers, "Content-Type: application/problem+json")...), nil
	}
}

// The person's way to the terms is the Link, if there is one.
func TestTermsAction(t *testing.T) {
	const link = `Link: <https://ca.test/terms/v2,en>;rel="terms-of-service"`
	tests := []struct {
		response catest.Response
		want     string
	}{
		{termsChanged("https://ca.test/agree", link), "https://ca.test/terms/v2,en"},
		{termsChanged("", link), "https://ca.test/terms/v2,en"},
		{termsChanged("https://ca.test/agree"), "https://ca.test/agree"},
		{termsChanged("https://ca.test/agree", `Link: <https://ca.test/dir>;rel="index"`), "https://ca.test/agree"},
		{termsChanged("", `Link: <https://ca.test/dir>;rel="index", <https://ca.test/terms>;rel="terms-of-service"`), "https://ca.test/terms"},
		{termsChanged(""), ""},
	}
	for _, test := range tests {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.ca.Fault(catest.On("newOrder", 0, test.response))
			if f := w.refused(w.job("a.example.com")); f.Class != Terms || f.Action != test.want {
				t.Errorf("%v: class %v, action %q, want terms, %q", f, f.Class, f.Action, test.want)
			}
		})
	}
}

// An order that waits for a person's agreement is neither slept over, whatever
// Retry-After says, nor given up.
func TestTermsChangedInOrder(t *testing.T) {
	slow := func(c *catest.Config) { c.FinalizeTakes = quietTime / 2 }
	asked := strings.Fields(sevenRequests)
	for i, endpoint := range asked {
		if slices.Index(asked, endpoint) < i {
			continue // the second look at the order
		}
		t.Run(endpoint, func(t *testing.T) {
			inWorld(t, slow, func(t *testing.T, w *world) {
				w.ca.Fault(catest.On(endpoint, 1, termsChanged("", "Retry-After: 5")))
				j := w.job("a.example.com")
				var f *Failure
				took := elapsed(func() { f = w.refused(j) })
				if f.Class != Terms || !f.Resumable() || !f.CAWide() {
					t.Errorf("%v: class %v, resumable %v, of the whole CA %v, want terms, true, true", f, f.Class, f.Resumable(), f.CAWide())
				}
				if got, want := w.asked(), strings.Join(asked[:i+1], " "); got != want || took > time.Second {
					t.Errorf("the CA was asked for %s in %v, want %s at once", got, took, want)
				}
				time.Sleep(5 * time.Second) // catest is strict about Retry-After
				if len(w.kept) > 0 {
					j.OrderURL = w.kept[0]
				}
				w.obtain(j)
				if n := len(w.ca.Orders()); n != 1 {
					t.Errorf("%d orders, want the one to be taken up again", n)
				}
			})
		})
	}
}

func TestTermsChangedInResume(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		j := w.interrupted("challenge")
		w.ca.Fault(catest.On("order", 1, termsChanged("")))
		f, asked := w.refused(j), strings.TrimPrefix(w.asked(), "newNonce ")
		if f.Class != Terms || asked != "order" {
			t.Errorf("got %v: %v after asking for %s, want terms after order", f.Class, f, asked)
		}
		w.obtain(j)
		if n := len(w.ca.Orders()); n != 1 {
			t.Errorf("%d orders, want 1", n)
		}
	})
}

// Many orders fail for new terms at once: a person is asked once, and the CA
// told once, in the words of RFC 8555, section 7.3.3. Terms that change again
// are put to the person again.
func TestAgreeOnce(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		wire := tap(a)
		c := mustClient(t, a)
		kid, err := url.Parse(c.KID())
		if err != nil {
			t.Fatal(err)
		}
		ca.Latency = time.Second
		for round := range 2 {
			wire.sent = nil
			since := time.Now()
			var asked []string
			ask := func(url string) error {
				time.Sleep(time.Minute) // it is long
				asked = append(asked, url)
				return nil
			}
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() {
					if err := a.Agree(t.Context(), c, "https://ca.test/terms", since, ask); err != nil {
						t.Errorf("Agree = %v", err)
					}
				})
			}
			all.Wait()
			if want := []string{"https://ca.test/terms"}; !slices.Equal(asked, want) {
				t.Errorf("round %d: asked for %q, want %q", round, asked, want)
			}
			if want := []string{kid.Path + ` {"termsOfServiceAgreed":true}`}; !slices.Equal(wire.sent, want) {
				t.Errorf("round %d: the CA was sent %q, want %q", round, wire.sent, want)
			}
		}
		if got := ca.Accounts()[0]; got.Status != "valid" || !slices.Equal(got.Contact, []string{"mailto:a@example.com"}) {
			t.Errorf("the account is %+v, want it as it was", got)
		}
	})
}

// The terms that are asked about are those the CA named or, if it named none,
// those its directory has now.
func TestAgreeURL(t *testing.T) {
	tests := []struct{ named, want string }{
		{"https://ca.test/named", "https://ca.test/named"},
		{"", "https://ca.test/new"},
	}
	for _, test := range tests {
		inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
			ca.Terms = "https://ca.test/old"
			c := mustClient(t, a) // which has read the directory
			ca.Change(func(c *catest.Config) { c.Terms = "https://ca.test/new" })
			var got string
			if err := a.Agree(t.Context(), c, test.named, time.Now(), func(url string) error { got = url; return nil }); err != nil || got != test.want {
				t.Errorf("Agree(%q) asks about %q, %v, want %q", test.named, got, err, test.want)
			}
		})
	}
}

// Nobody is asked about terms that can't be named.
func TestAgreeDirectoryDown(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		c := mustClient(t, a)
		ca.Fault(catest.On("directory", 0, catest.Refuse))
		err := a.Agree(t.Context(), c, "", time.Now(), func(url string) error {
			t.Errorf("asked about %q", url)
			return nil
		})
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Network {
			t.Errorf("Agree = %v, want a network error", err)
		}
	})
}

// A refusal is everybody's whose order it was about, and the CA hears nothing
// of it. A later order is a new question.
func TestAgreeRefused(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		c := mustClient(t, a)
		before := ca.Count("")
		since, asked, no := time.Now(), 0, errors.New("no")
		ask := func(string) error {
			time.Sleep(time.Minute)
			asked++
			return no
		}
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				err := a.Agree(t.Context(), c, "https://ca.test/terms", since, ask)
				f, ok := errors.AsType[*Failure](err)
				if !ok || f.Class != Terms || f.Action != "https://ca.test/terms" || !errors.Is(err, no) || !strings.Contains(err.Error(), "terms of service") {
					t.Errorf("Agree = %v, want a failure of terms: no", err)
				}
			})
		}
		all.Wait()
		if n := ca.Count("") - before; asked != 1 || n != 0 {
			t.Errorf("asked %d times, and the CA %d times, want 1 and 0", asked, n)
		}
		if err := a.Agree(t.Context(), c, "https://ca.test/terms", time.Now(), func(string) error { return nil }); err != nil {
			t.Errorf("Agree later = %v", err)
		}
	})
}

// A CA that can't be told makes no person answer once for each order.
func TestAgreeNotTold(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		c := mustClient(t, a)
		ca.Latency = time.Second
		ca.Fault(catest.On("account", 0, catest.Problem(500, "serverInternal", "oops", "")))
		since, asked := time.Now(), 0
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				err := a.Agree(t.Context(), c, "https://ca.test/terms", since, func(string) error { asked++; return nil })
				if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Fault || !strings.Contains(err.Error(), "oops") {
					t.Errorf("Agree = %v, want the CA's fault in its words", err)
				}
			})
		}
		all.Wait()
		if asked != 1 || ca.Count("account") != 1 {
			t.Errorf("asked %d times, and told the CA %d times, want once", asked, ca.Count("account"))
		}
	})
}

// Whoever leaves while others wait takes only its own order along.
func TestAgreeCancelled(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		c := mustClient(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		since := time.Now()
		var all sync.WaitGroup
		all.Go(func() {
			err := a.Agree(ctx, c, "https://ca.test/terms", since, func(string) error {
				time.Sleep(time.Minute)
				cancel()
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Agree, cancelled meanwhile = %v", err)
			}
		})
		synctest.Wait()
		all.Go(func() {
			if err := a.Agree(t.Context(), c, "https://ca.test/terms", since, func(string) error { return nil }); err != nil {
				t.Errorf("Agree after one who left = %v, want nil", err)
			}
		})
		short, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		var err error
		took := elapsed(func() {
			err = a.Agree(short, c, "", since, func(string) error { t.Error("asked in vain"); return nil })
		})
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Ours || took != time.Second {
			t.Errorf("one who waits a second: %v after %v, want ours after 1s", err, took)
		}
		all.Wait()
		if n := ca.Count("account"); n != 1 {
			t.Errorf("the CA was told %d times, want 1", n)
		}
	})
}
