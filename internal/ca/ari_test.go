package ca

import (
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt/internal/catest"
)

// ariWorld is inWorld with renewal information; id is a certificate's.
func ariWorld(t *testing.T, window func(*x509.Certificate) catest.Window, f func(t *testing.T, w *world, id string)) {
	t.Helper()
	inWorld(t, func(c *catest.Config) { c.ARI = window }, func(t *testing.T, w *world) {
		id := catest.CertID(w.obtain(w.job("a.example.com")).Leaf)
		w.asked()
		f(t, w, id)
	})
}

func TestRenewalInfo(t *testing.T) {
	start := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	want := RenewalInfo{Start: start, End: start.Add(time.Hour), Explanation: "https://ca.test/why", Again: 2 * time.Hour}
	window := func(*x509.Certificate) catest.Window {
		return catest.Window{Start: want.Start, End: want.End, RetryAfter: want.Again, Explanation: want.Explanation}
	}
	ariWorld(t, window, func(t *testing.T, w *world, id string) {
		got, err := w.client.RenewalInfo(t.Context(), id)
		if err != nil || got != want {
			t.Errorf("RenewalInfo = %+v, %v, want %+v", got, err, want)
		}
		if asked := w.asked(); asked != "renewalInfo" {
			t.Errorf("the CA was asked for %s, want renewalInfo", asked)
		}
		time.Sleep(want.Again)
		// It takes no account.
		stranger := New(w.ca.Directory(), w.ca.Client(), nil, "")
		if got, err := stranger.RenewalInfo(t.Context(), id); err != nil || got != want {
			t.Errorf("without an account: RenewalInfo = %+v, %v, want %+v", got, err, want)
		}
	})
}

func TestRenewalInfoNotOffered(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		info, err := w.client.RenewalInfo(t.Context(), "a.b")
		if !errors.Is(err, ErrNoRenewalInfo) || info.Again != ariLatest {
			t.Errorf("RenewalInfo = %+v, %v, want %v, again in %v", info, err, ErrNoRenewalInfo, ariLatest)
		}
	})
}

func TestRenewalInfoFails(t *testing.T) {
	const good = `{"suggestedWindow":{"start":"2030-01-02T04:00:00Z","end":"2030-01-03T04:00:00Z"}}`
	tests := []struct {
		name   string
		status int
		body   string
		retry  string
		class  Class
		again  time.Duration
	}{
		{"unknown certificate", 404, `{"type":"urn:ietf:params:acme:error:malformed","detail":"no such certificate"}`, "", Policy, ariDefault},
		{"not found", 404, "", "", Fault, ariDefault},
		{"busy", 503, "", "7200", Fault, 2 * time.Hour},
		{"limited", 429, `{"type":"urn:ietf:params:acme:error:rateLimited"}`, "5", Limited, ariSoonest},
		{"html", 200, "<html>", "7200", Fault, 2 * time.Hour},
		{"no window", 200, "{}", "", Fault, ariDefault},
		{"null", 200, "null", "", Fault, ariDefault},
		{"no end", 200, `{"suggestedWindow":{"start":"2030-01-02T04:00:00Z"}}`, "", Fault, ariDefault},
		{"backwards", 200, strings.Replace(good, "2030-01-03", "2030-01-01", 1), "", Fault, ariDefault},
		{"no length", 200, strings.Replace(good, "2030-01-03", "2030-01-02", 1), "", Fault, ariDefault},
		{"no time", 200, strings.Replace(good, "2030-01-03T04:00:00Z", "tomorrow", 1), "", Fault, ariDefault},
	}
	for _, test := range tests {
		c := clientOf(t, func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/dir" {
				return reply(200, directory), nil
			}
			return reply(test.status, test.body, "Retry-After: "+test.retry), nil
		})
		info, err := c.RenewalInfo(t.Context(), "a.b")
		f, ok := errors.AsType[*Failure](err)
		if !ok || f.Class != test.class || info.Again != test.again {
			t.Errorf("%s: %v, again in %v; want %v, again in %v", test.name, err, info.Again, test.class, test.again)
		}
	}
}

func TestRenewalInfoDown(t *testing.T) {
	ariWorld(t, catest.SuggestedWindow, func(t *testing.T, w *world, id string) {
		w.ca.Fault(catest.Down)
		info, err := w.client.RenewalInfo(t.Context(), id)
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Network || info.Again != ariDefault {
			t.Errorf("%v, again in %v, want network, again in %v", err, info.Again, ariDefault)
		}
		time.Sleep(directoryAge)
		info, err = w.client.RenewalInfo(t.Context(), id)
		if f, ok := errors.AsType[*Failure](err); !ok || f.Step != "reading the directory" || info.Again != ariDefault {
			t.Errorf("a day later: %v, again in %v, want that of the directory, again in %v", err, info.Again, ariDefault)
		}
	})
}

// RFC 9773, section 4.1: a slash joins the URL and the identifier.
func TestRenewalInfoURL(t *testing.T) {
	for _, base := range []string{"https://ca.test/ari", "https://ca.test/ari/"} {
		var asked string
		c := clientOf(t, func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/dir" {
				return reply(200, strings.Replace(directory, "https://ca.test/ari", base, 1)), nil
			}
			asked = r.URL.String()
			return reply(404, ""), nil
		})
		c.RenewalInfo(t.Context(), "key.serial")
		if want := "https://ca.test/ari/key.serial"; asked != want {
			t.Errorf("with %s: asked for %s, want %s", base, asked, want)
		}
	}
}

func TestAgain(t *testing.T) {
	tests := []struct{ asked, want time.Duration }{
		{0, ariDefault},
		{time.Second, ariSoonest},
		{ariSoonest, ariSoonest},
		{7 * time.Hour, 7 * time.Hour},
		{48 * time.Hour, ariLatest},
	}
	for _, test := range tests {
		if got := again(test.asked); got != test.want {
			t.Errorf("again(%v) = %v, want %v", test.asked, got, test.want)
		}
	}
}
