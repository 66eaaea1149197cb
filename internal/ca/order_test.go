package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt/internal/catest"
	"example.com/letsencrypt/internal/certs"
	"golang.org/x/crypto/acme"
)

// sevenRequests are the least that a certificate costs (RFC 8555) at a CA that
// needs a moment to issue it.
const sevenRequests = "newOrder authz challenge order finalize order certificate"

func TestObtainRequests(t *testing.T) {
	tests := []struct{ typ, host string }{
		{"tls-alpn-01", "a.example.com"},
		{"tls-alpn-01", "192.0.2.7"},
		{"tls-alpn-01", "2001:db8::1"},
		{"http-01", "a.example.com"},
		{"http-01", "192.0.2.7"},
		{"http-01", "2001:db8::1"},
	}
	for _, test := range tests {
		t.Run(test.typ+" "+test.host, func(t *testing.T) {
			takes := func(c *catest.Config) { c.FinalizeTakes = quietTime / 2 }
			inWorld(t, takes, func(t *testing.T, w *world) {
				j := w.job(test.host)
				j.Solve = w.solve(test.typ, true)
				cert := w.obtain(j)
				if got := w.asked(); got != sevenRequests {
					t.Errorf("the CA was asked for %s, want %s", got, sevenRequests)
				}
				if cert.Challenge != test.typ {
					t.Errorf("Challenge = %q, want %q", cert.Challenge, test.typ)
				}
				if got := certs.Names(cert.Leaf); !slices.Equal(got, []string{test.host}) {
					t.Errorf("the certificate is for %q, want %q", got, test.host)
				}
			})
		})
	}
}

// Right before an order is finalized, and each time that it is, Finalizing is
// asked.
func TestFinalizing(t *testing.T) {
	tests := []struct {
		name   string
		faulty catest.Response // the first reply to finalize
		want   string
	}{
		{"all is well", nil, "newOrder authz challenge order ASKED finalize order certificate"},
		{"finalize fails", catest.Problem(503, "serverInternal", "busy", ""), "newOrder authz challenge order ASKED finalize order ASKED finalize order certificate"},
		{"its reply is lost", catest.LoseReply, "newOrder authz challenge order ASKED finalize newNonce order certificate"},
	}
	for _, test := range tests {
		takes := func(c *catest.Config) { c.FinalizeTakes = quietTime / 2 }
		inWorld(t, takes, func(t *testing.T, w *world) {
			w.ca.Fault(catest.On("finalize", 1, test.faulty))
			var got []string
			j := w.job("a.example.com")
			j.Finalizing = func(context.Context) error {
				got = append(got, w.asked(), "ASKED")
				return nil
			}
			w.obtain(j)
			if got := strings.Join(append(got, w.asked()), " "); got != test.want {
				t.Errorf("%s: %s, want %s", test.name, got, test.want)
			}
		})
	}
}

// With an error the job ends at once, the order is left as it is, and whose
// error it is can be told.
func TestFinalizingRefuses(t *testing.T) {
	no := errors.New("no")
	for _, err := range []error{no, fmt.Errorf("no: %w", &Failure{Class: Network, Step: "dialing", Err: no})} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			asked := 0
			j := w.job("a.example.com")
			j.Finalizing = func(context.Context) error { asked++; return err }
			f := w.refused(j)
			if f.Class != Ours || !errors.Is(f, no) || asked != 1 {
				t.Errorf("Finalizing = %v: got %v: %v, asked %d times; want ours: no, asked once", err, f.Class, f, asked)
			}
			if got, want := w.asked(), "newOrder authz challenge order"; got != want {
				t.Errorf("the CA was asked for %s, want %s", got, want)
			}
			if w.answers.TLSALPN("a.example.com") != nil {
				t.Error("the answer stands after Obtain")
			}
			if orders := w.ca.Orders(); len(orders) != 1 || orders[0].Status != acme.StatusReady {
				t.Errorf("orders %v, want the one, ready", orders)
			}
			j.OrderURL, j.Finalizing = w.kept[0], nil
			w.obtain(j)
		})
	}
}

// Finalizing ends with the attempt: its context does.
func TestFinalizingIsBounded(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		j.Finalizing = func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
		var f *Failure
		if took := elapsed(func() { f = w.refused(j) }); took > orderTimeout || f.Class != Ours {
			t.Errorf("got %v: %v after %v, want ours within %v", f.Class, f, took, orderTimeout)
		}
	})
}

// Whatever the outcome, no answer is left standing.
func TestObtainRemovesAnswers(t *testing.T) {
	for _, good := range []bool{true, false} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			if !good {
				w.ca.Change(func(c *catest.Config) { c.TLS = nil })
			}
			w.client.Obtain(t.Context(), w.job("a.example.com"))
			if w.answers.TLSALPN("a.example.com") != nil {
				t.Errorf("good = %v: the answer stands after Obtain", good)
			}
		})
	}
}

func TestMustStaple(t *testing.T) {
	for _, want := range []bool{true, false} {
		der, err := newCSR("a.example.com", newKey(t), want)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		if got := certs.MustStaple(&x509.Certificate{Extensions: csr.Extensions}); got != want {
			t.Errorf("newCSR(..., %v) asks for OCSP must-staple: %v", want, got)
		}
	}
}

// A CA that does not say what it has against the request may have that: the
// error tells what is special about it.
func TestMustStapleRefused(t *testing.T) {
	for _, staple := range []bool{true, false} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.ca.Fault(catest.On("finalize", 0, catest.Problem(403, "badCSR", "no such extension", "")))
			j := w.job("a.example.com")
			j.MustStaple = staple
			f := w.refused(j)
			if e, ok := errors.AsType[*acme.Error](f); !ok || f.Class != Policy || !strings.Contains(f.Error(), e.Detail) {
				t.Errorf("must-staple %v: got %v: %v, want policy in the CA's words", staple, f.Class, f)
			}
			if got := strings.Contains(f.Error(), "must-staple"); got != staple {
				t.Errorf("must-staple %v: %v tells of it: %v", staple, f, got)
			}
		})
	}
}

func TestProfile(t *testing.T) {
	profiles := func(c *catest.Config) {
		c.Profiles = map[string]time.Duration{"classic": 90 * 24 * time.Hour, "short": 6 * 24 * time.Hour}
	}
	inWorld(t, profiles, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		j.Profile = "short"
		cert := w.obtain(j)
		if life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore).Round(time.Hour); cert.Profile != "short" || life != 6*24*time.Hour {
			t.Errorf("got profile %q and a life of %v, want short and 144h", cert.Profile, life)
		}
	})
}

// A CA need not repeat the profile in the order.
func TestProfileNotRepeated(t *testing.T) {
	profiles := func(c *catest.Config) { c.Profiles = map[string]time.Duration{"short": 6 * 24 * time.Hour} }
	inWorld(t, profiles, func(t *testing.T, w *world) {
		w.ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			switch endpoint {
			case "newOrder", "order", "finalize":
				return set("profile", "")
			}
			return nil
		})
		j := w.job("a.example.com")
		j.Profile = "short"
		if cert := w.obtain(j); cert.Profile != "short" {
			t.Errorf("profile %q, want short", cert.Profile)
		}
	})
}

// A profile that the CA does not list is not asked for, and the error tells
// which there are. The directory is read again first: it may be new.
func TestUnknownProfile(t *testing.T) {
	profiles := func(c *catest.Config) {
		c.Profiles = map[string]time.Duration{"b": time.Hour, "a": time.Hour}
	}
	inWorld(t, profiles, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		j.Profile = "new"
		f := w.refused(j)
		if f.Class != Policy || !strings.Contains(f.Error(), `no profile "new"; it lists a, b`) {
			t.Errorf("got %v: %v, want a policy error that lists a, b", f.Class, f)
		}
		if got := w.asked(); got != "directory" {
			t.Errorf("the CA was asked for %s, want directory", got)
		}

		w.ca.Change(func(c *catest.Config) { c.Profiles = map[string]time.Duration{"new": 24 * time.Hour} })
		if cert := w.obtain(j); cert.Profile != "new" {
			t.Errorf("profile %q, want new", cert.Profile)
		}
		w.asked()

		w.ca.Change(func(c *catest.Config) { c.Profiles = nil })
		if f = w.refused(j); !problemIs(f, "invalidProfile") {
			t.Errorf("got %v, want the CA's invalidProfile", f)
		}
		if f = w.refused(j); !strings.HasSuffix(f.Error(), "it lists none") {
			t.Errorf("got %v, want that there are none", f)
		}
		if got := w.asked(); got != "newOrder directory directory" {
			t.Errorf("the CA was asked for %s, want newOrder once", got)
		}
	})
}

// A CA that has moved answers 404 where its directory once pointed.
func TestDirectoryReadAfter404(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Fault(catest.On("newOrder", 1, catest.HTML(404, "")))
		w.refused(w.job("a.example.com"))
		w.obtain(w.job("a.example.com"))
		if got := w.asked(); !strings.HasPrefix(got, "newOrder directory ") {
			t.Errorf("the CA was asked for %s, want the directory after newOrder", got)
		}
	})
}

func TestPreferredChain(t *testing.T) {
	alternates := func(c *catest.Config) { c.Alternates = true }
	inWorld(t, alternates, func(t *testing.T, w *world) {
		top := func(chain string) string {
			j := w.job("a.example.com")
			j.Chain = chain
			return certs.TopIssuer(w.obtain(j).Chain)
		}
		first := top("")
		w.asked()
		var other string
		for _, root := range rootNames(t, w) {
			if root != first {
				other = root
			}
		}
		w.asked()
		if got := top(other); got != other {
			t.Errorf("chain up to %q, want %q", got, other)
		}
		if got := w.asked(); !strings.HasSuffix(got, " certificate certificate") {
			t.Errorf("the CA was asked for %s, want both chains", got)
		}
		if got := top(first); got != first {
			t.Errorf("chain up to %q, want %q", got, first)
		}
		if got := w.asked(); strings.HasSuffix(got, " certificate certificate") {
			t.Errorf("the CA was asked for %s, want no more chains than needed", got)
		}
		if got := top("No Such Root"); got != first {
			t.Errorf("chain up to %q, want the CA's choice, %q", got, first)
		}
	})
}

// rootNames returns the names of the roots of all chains that the CA offers.
func rootNames(t *testing.T, w *world) []string {
	t.Helper()
	var names []string
	w.ca.Fault(catest.On("certificate", 0, catest.Edit(func(res *http.Response, body []byte) []byte {
		names = append(names, certs.TopIssuer(pemChain(body)))
		return body
	})))
	j := w.job("a.example.com")
	j.Chain = "none of them"
	w.obtain(j)
	w.ca.Fault(nil)
	if len(names) != 2 {
		t.Fatalf("chains up to %q, want two", names)
	}
	return names
}

// A chain of the user's choice that can't be had costs no certificate.
func TestPreferredChainAway(t *testing.T) {
	for _, response := range []catest.Response{catest.Problem(404, "malformed", "gone", ""), catest.HTML(503, ""), catest.Drop} {
		inWorld(t, func(c *catest.Config) { c.Alternates = true }, func(t *testing.T, w *world) {
			w.ca.Fault(func(endpoint string, n int, r *http.Request) catest.Response {
				if endpoint == "certificate" && n%2 == 0 {
					return response
				}
				return nil
			})
			j := w.job("a.example.com")
			j.Chain = "Another Root"
			w.obtain(j)
		})
	}
}

func TestBadCertificate(t *testing.T) {
	for _, flaw := range []catest.Flaw{catest.OtherKey, catest.OtherName, catest.Expired, catest.NotYetValid, catest.Garbage} {
		t.Run(string(flaw), func(t *testing.T) {
			inWorld(t, func(c *catest.Config) { c.Flaw = flaw }, func(t *testing.T, w *world) {
				f := w.refused(w.job("a.example.com"))
				if f.Class != Fault || f.Resumable() {
					t.Errorf("%v: class %v, resumable %v, want a fault for good", f, f.Class, f.Resumable())
				}
				if !strings.Contains(f.Error(), "a.example.com") {
					t.Errorf("%v does not name the host", f)
				}
				if n := w.ca.Count("certificate"); n != 1 {
					t.Errorf("downloaded %d times, want 1", n)
				}
			})
		})
	}
}

// What is no chain at all may be the mishap of a moment.
func TestNoChain(t *testing.T) {
	for _, flaw := range []catest.Flaw{catest.EmptyChain, catest.LongChain} {
		t.Run(string(flaw), func(t *testing.T) {
			inWorld(t, func(c *catest.Config) { c.Flaw = flaw }, func(t *testing.T, w *world) {
				f := w.refused(w.job("a.example.com"))
				if f.Class != Fault || !f.Resumable() {
					t.Errorf("%v: class %v, resumable %v, want a fault that may pass", f, f.Class, f.Resumable())
				}
				if n := w.ca.Count("certificate"); n != retries+1 {
					t.Errorf("downloaded %d times, want %d", n, retries+1)
				}
				w.ca.Change(func(c *catest.Config) { c.Flaw = "" })
				j := w.job("a.example.com")
				j.OrderURL = w.kept[0]
				if f := w.refused(j); f.Resumable() {
					t.Errorf("a certificate for another key: %v, want that to be final", f)
				}
			})
		})
	}
}

// The order is nowhere used before its URL is durable.
func TestKeepFails(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		full := errors.New("disk full")
		j := w.job("a.example.com")
		j.Keep = func(string) error { return full }
		f := w.refused(j)
		if f.Class != Ours || !errors.Is(f, full) {
			t.Errorf("got %v: %v, want ours: disk full", f.Class, f)
		}
		if got := w.asked(); got != "newOrder" {
			t.Errorf("the CA was asked for %s, want newOrder alone", got)
		}
	})
}

func TestKeepGetsURL(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.obtain(w.job("a.example.com"))
		if orders := w.ca.Orders(); len(orders) != 1 || !slices.Equal(w.kept, []string{orders[0].URL}) {
			t.Errorf("kept %q of %d orders, want the order's URL", w.kept, len(orders))
		}
	})
}

func TestSolveFails(t *testing.T) {
	policy := &Failure{Class: Policy, Step: "choosing", Err: errors.New("nothing fits")}
	tests := []struct {
		err  error
		want Class
	}{
		{errors.New("no room for the answer"), Ours},
		{policy, Policy},
	}
	for _, test := range tests {
		inWorld(t, nil, func(t *testing.T, w *world) {
			j := w.job("a.example.com")
			j.Solve = func(context.Context, *Authorization, chan<- struct{}) (*Answer, error) { return nil, test.err }
			f := w.refused(j)
			if f.Class != test.want || !errors.Is(f, test.err) {
				t.Errorf("got %v: %v, want %v: %v", f.Class, f, test.want, test.err)
			}
			if got := w.asked(); got != "newOrder authz" {
				t.Errorf("the CA was asked for %s, want newOrder authz", got)
			}
		})
	}
}

// Tokens end up in paths and file names.
func TestBadToken(t *testing.T) {
	for _, token := range []string{"../../etc/passwd", "a b", "a%2f", "ä", "a=", strings.Repeat("a", 257)} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.ca.Fault(catest.On("authz", 0, edit("challenges", func(any) any {
				return []any{map[string]any{"type": "http-01", "url": "https://ca.test/challenge/1", "token": token}}
			})))
			f := w.refused(w.job("a.example.com"))
			if f.Class != Fault || !strings.Contains(f.Error(), "base64url") {
				t.Errorf("token %q: got %v: %v, want a fault", token, f.Class, f)
			}
			if n := w.ca.Count("challenge"); n != 0 {
				t.Errorf("token %q: the challenge was accepted", token)
			}
		})
	}
}

// edit is the response in which a member of the CA's JSON is replaced.
func edit(member string, f func(any) any) catest.Response {
	return catest.Edit(func(res *http.Response, body []byte) []byte {
		var doc map[string]any
		if json.Unmarshal(body, &doc) != nil {
			return body
		}
		doc[member] = f(doc[member])
		body, err := json.Marshal(doc)
		if err != nil {
			panic(err)
		}
		return body
	})
}

// set is the response in which a member of the CA's JSON has another value.
func set(member string, value any) catest.Response {
	return edit(member, func(any) any { return value })
}

func TestReplaces(t *testing.T) {
	ari := func(c *catest.Config) { c.ARI = catest.SuggestedWindow }
	inWorld(t, ari, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		id, err := certs.ID(w.obtain(j).Leaf)
		if err != nil {
			t.Fatal(err)
		}
		w.asked()
		refusals := []*catest.Error{
			nil,
			{Status: 409, Type: "alreadyReplaced", Detail: "no"},
			{Status: 404, Type: "malformed", Detail: "no"},
			{Status: 403, Type: "unauthorized", Detail: "no"},
			{Status: 500, Type: "serverInternal", Detail: "no"},
		}
		for _, refusal := range refusals {
			w.ca.Change(func(c *catest.Config) { c.RefuseReplaces = func(string) *catest.Error { return refusal } })
			j := w.job("a.example.com")
			j.Replaces = id
			took := elapsed(func() { w.obtain(j) })
			orders := w.ca.Orders()
			got, want := orders[len(orders)-1].Replaces, ""
			if refusal == nil {
				want = id
			}
			if got != want {
				t.Errorf("refusal %v: the order replaces %q, want %q", refusal, got, want)
			}
			if took > time.Second {
				t.Errorf("refusal %v: took %v, want the second order at once", refusal, took)
			}
			id = mustID(t, w.ca.Issued("a.example.com"))
		}
	})
}

func mustID(t *testing.T, issued []*x509.Certificate) string {
	t.Helper()
	id, err := certs.ID(issued[len(issued)-1])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A limit, a CA that is away and what is wrong with our account have nothing to
// do with "replaces".
func TestReplacesNotRefused(t *testing.T) {
	for _, e := range []catest.Error{
		{Status: 429, Type: "rateLimited", RetryAfter: "3600"},
		{Status: 403, Type: "rateLimited"},
		{Status: 429},
		{Status: 503},
		{Status: 503, Type: "serverInternal", RetryAfter: "3600"},
		{Status: 403, Type: "userActionRequired"},
		{Status: 400, Type: "accountDoesNotExist"},
	} {
		inWorld(t, func(c *catest.Config) { c.ARI = catest.SuggestedWindow }, func(t *testing.T, w *world) {
			w.ca.Change(func(c *catest.Config) { c.RefuseReplaces = func(string) *catest.Error { return &e } })
			j := w.job("a.example.com")
			j.Replaces = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
			w.refused(j)
			if got := w.asked(); got != "newOrder" {
				t.Errorf("%d %s: the CA was asked for %s, want newOrder once", e.Status, e.Type, got)
			}
		})
	}
}

// "replaces" is not sent to a CA without renewal information: catest would
// fail the test.
func TestReplacesNotOffered(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		j.Replaces = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
		w.obtain(j)
	})
}

func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{maxSkew + time.Hour, -maxSkew - time.Hour} {
		inWorld(t, func(c *catest.Config) { c.Skew = skew }, func(t *testing.T, w *world) {
			f := w.refused(w.job("a.example.com"))
			if f.Class != Ours || !strings.Contains(f.Error(), "clock") {
				t.Errorf("skew %v: got %v: %v, want ours, about the clock", skew, f.Class, f)
			}
			if n := w.ca.Count("newOrder"); n != 0 {
				t.Errorf("skew %v: an order was made", skew)
			}
			// The clock is set right.
			w.ca.Change(func(c *catest.Config) { c.Skew = 0 })
			w.obtain(w.job("a.example.com"))
		})
	}
	inWorld(t, func(c *catest.Config) { c.Skew = maxSkew - time.Minute }, func(t *testing.T, w *world) {
		w.obtain(w.job("a.example.com"))
	})
}

// A validation that fails ends with the CA's own words.
func TestValidationFails(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Change(func(c *catest.Config) { c.TLS = nil })
		f := w.refused(w.job("a.example.com"))
		v, ok := errors.AsType[*ValidationError](f)
		if !ok || v.Challenge != "tls-alpn-01" || v.Arrived {
			t.Fatalf("got %v, want a ValidationError of tls-alpn-01 that never arrived", f)
		}
		e, ok := errors.AsType[*acme.Error](f)
		if !ok || e.ProblemType != "urn:ietf:params:acme:error:connection" || !strings.Contains(f.Error(), e.Detail) || !strings.Contains(e.Detail, "refused") {
			t.Errorf("got %v, want the CA's words", f)
		}
		if f.Class != Validation || f.Resumable() || f.CAWide() {
			t.Errorf("class %v, resumable %v, of the whole CA %v, want validation, false, false", f.Class, f.Resumable(), f.CAWide())
		}
	})
}

func TestValidationArrivedAndFailed(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		j := w.job("a.example.com")
		solve := j.Solve
		j.Solve = func(ctx context.Context, a *Authorization, arrived chan<- struct{}) (*Answer, error) {
			ans, err := solve(ctx, a, nil)
			arrived <- struct{}{}
			ans.Remove() // so that the CA is sent away
			return ans, err
		}
		f := w.refused(j)
		if v, ok := errors.AsType[*ValidationError](f); !ok || !v.Arrived {
			t.Errorf("got %v, want a ValidationError that arrived", f)
		}
	})
}

// Some CAs leave a challenge that failed pending. Our own time limit ends
// that, and the CA's words are kept.
func TestChallengeLeftPending(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.LeavePending = true }, func(t *testing.T, w *world) {
		w.ca.Change(func(c *catest.Config) { c.TLS = nil })
		var f *Failure
		took := elapsed(func() { f = w.refused(w.job("a.example.com")) })
		if took != orderTimeout {
			t.Errorf("took %v, want %v", took, orderTimeout)
		}
		if e, ok := errors.AsType[*acme.Error](f); !ok || f.Class != Validation || !strings.Contains(e.Detail, "refused") {
			t.Errorf("got %v: %v, want the CA's own words", f.Class, f)
		}
	})
}

// A validation that takes for ever has no words of the CA's.
func TestChallengeForgotten(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.ValidationTakes = time.Hour }, func(t *testing.T, w *world) {
		f := w.refused(w.job("a.example.com"))
		if v, ok := errors.AsType[*ValidationError](f); !ok || v.Challenge != "tls-alpn-01" || f.Class != Validation || !strings.Contains(f.Error(), "within 1m30s") {
			t.Errorf("got %v: %v, want a validation that did not end within 1m30s", f.Class, f)
		}
	})
}

// A CA that takes for ever to issue is at fault, not the host.
func TestIssuanceForgotten(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.FinalizeTakes = time.Hour }, func(t *testing.T, w *world) {
		var f *Failure
		took := elapsed(func() { f = w.refused(w.job("a.example.com")) })
		if took != orderTimeout || !f.CAWide() || !f.Resumable() {
			t.Errorf("took %v: %v: %v, resumable %v, want %v, the CA's fault, resumable", took, f.Class, f, f.Resumable(), orderTimeout)
		}
		if strings.Count(f.Error(), "within") != 1 {
			t.Errorf("%v says it twice", f)
		}
	})
}

func TestCancel(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.ValidationTakes = time.Hour }, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Second, cancel)
		var err error
		took := elapsed(func() { _, err = w.client.Obtain(ctx, w.job("a.example.com")) })
		f, ok := errors.AsType[*Failure](err)
		if took != 10*time.Second || !ok || f.Class != Ours || !errors.Is(err, context.Canceled) || !f.Resumable() {
			t.Errorf("took %v: %v, want 10s, ours, canceled, resumable", took, err)
		}
	})
}

// The order's own error counts where no challenge has one.
func TestIssuanceFails(t *testing.T) {
	tests := []struct {
		e    catest.Error
		want Class
	}{
		{catest.Error{Status: 403, Type: "caa", Detail: "CAA forbids"}, Validation},
		{catest.Error{Status: 429, Type: "rateLimited", Detail: "too many"}, Limited},
		{catest.Error{Status: 500, Type: "serverInternal", Detail: "sorry"}, Fault},
		{catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: "no"}, Policy},
	}
	for _, test := range tests {
		inWorld(t, func(c *catest.Config) { c.FailIssuance = func([]string) *catest.Error { return &test.e } }, func(t *testing.T, w *world) {
			f := w.refused(w.job("a.example.com"))
			if f.Class != test.want || !strings.Contains(f.Error(), test.e.Detail) {
				t.Errorf("%s: got %v: %v, want %v and the CA's words", test.e.Type, f.Class, f, test.want)
			}
			if _, ok := errors.AsType[*acme.Error](f); !ok {
				t.Errorf("%s: %v holds no *acme.Error", test.e.Type, f)
			}
			if o, ok := errors.AsType[*acme.OrderError](f); !ok || o.OrderURL != w.kept[0] {
				t.Errorf("%s: %v holds no *acme.OrderError of the order", test.e.Type, f)
			}
		})
	}
}

// An order that became invalid and does not say why.
func TestInvalidWithoutError(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Fault(catest.On("order", 1, set("status", "invalid")))
		if f := w.refused(w.job("a.example.com")); f.Class != Validation || !strings.Contains(f.Error(), "invalid") {
			t.Errorf("got %v: %v, want validation", f.Class, f)
		}
	})
}

func TestUnknownStatus(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Fault(catest.On("newOrder", 1, set("status", "bored")))
		if f := w.refused(w.job("a.example.com")); f.Class != Fault || !strings.Contains(f.Error(), `"bored"`) {
			t.Errorf("got %v: %v, want a fault that names the status", f.Class, f)
		}
	})
}

// A CA that says 200 to finalize and does nothing is not asked in a loop.
func TestFinalizeWithoutEffect(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		var ready []byte
		w.ca.Fault(func(endpoint string, n int, r *http.Request) catest.Response {
			switch endpoint {
			case "order":
				return catest.Edit(func(_ *http.Response, body []byte) []byte { ready = body; return body })
			case "finalize":
				return func(*http.Request, func() *http.Response) (*http.Response, error) {
					return reply(http.StatusOK, string(ready)), nil
				}
			}
			return nil
		})
		if f := w.refused(w.job("a.example.com")); f.Class != Fault {
			t.Errorf("got %v: %v, want a fault", f.Class, f)
		}
		if n := w.ca.Count("finalize"); n != retries+1 {
			t.Errorf("finalized %d times, want %d", n, retries+1)
		}
	})
}

func TestNoOrderURL(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Fault(catest.On("newOrder", 1, catest.Edit(func(res *http.Response, body []byte) []byte {
			res.Header.Del("Location")
			return body
		})))
		if f := w.refused(w.job("a.example.com")); f.Class != Fault || !strings.Contains(f.Error(), "no URL") {
			t.Errorf("got %v: %v, want a fault", f.Class, f)
		}
		if len(w.kept) != 0 {
			t.Errorf("kept %q", w.kept)
		}
	})
}

func TestValidAuthorization(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.AuthzReuse = time.Hour }, func(t *testing.T, w *world) {
		w.obtain(w.job("a.example.com"))
		w.asked()
		cert := w.obtain(w.job("a.example.com"))
		if got, want := w.asked(), "newOrder finalize certificate"; got != want {
			t.Errorf("the CA was asked for %s, want %s", got, want)
		}
		if cert.Challenge != "" {
			t.Errorf("Challenge = %q, want none", cert.Challenge)
		}
	})
}

func ExampleFailure() {
	f := &Failure{Class: Limited, Step: "making the order", Err: errors.New("too many certificates")}
	fmt.Println(f.Class, "-", f)
	// Output: limit - making the order: too many certificates
}
