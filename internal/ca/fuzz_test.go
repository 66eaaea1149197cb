package ca

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{"", "120", "-1", "99999999999999999999", "-10000000000", "Fri, 31 Dec 2030 23:59:59 GMT", "Sun Nov  6 08:49:37 1994"} {
		f.Add(v, "")
		f.Add(v, "Fri, 31 Dec 2030 23:59:00 GMT")
	}
	f.Fuzz(func(t *testing.T, value, date string) {
		h := http.Header{"Retry-After": {value}, "Date": {date}}
		if got := retryAfter(h); got < 0 || got > maxRetryAfter {
			t.Errorf("retryAfter(%q, date %q) = %v, want from 0 to %v", value, date, got, maxRetryAfter)
		}
	})
}

func FuzzLinks(f *testing.F) {
	f.Add(`<https://ca.test/1>;rel="alternate"`)
	f.Add(`<https://ca.test/dir>;rel="index", <https://ca.test/1>;title="x";rel=alternate`)
	f.Add(`<<>>,;rel=alternate`)
	f.Fuzz(func(t *testing.T, v string) {
		for _, u := range links(http.Header{"Link": {v}}, "alternate") {
			if !strings.Contains(v, "<"+u+">") && !strings.HasSuffix(v, "<"+u) {
				t.Errorf("links(%q) has %q, which is no target in it", v, u)
			}
		}
	})
}

// What link and isToken are defined by. The package regexp is too large for
// every program that serves HTTPS.
var (
	linkPattern  = regexp.MustCompile(`https://[^\s"'<>]+[^\s"'<>.,;)]`)
	tokenPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,256}$`)
)

func FuzzLink(f *testing.F) {
	f.Add("Please visit: https://portal.test/unpause?jwt=a.b-c_d.")
	f.Add("<https://x> 'https://.,;)' https://\v\"https://é\thttps://\xff.https://;)\fhttps://ab,cd)")
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := link(s), linkPattern.FindString(s); got != want {
			t.Errorf("link(%q) = %q, want %q", s, got, want)
		}
	})
}

func FuzzIsToken(f *testing.F) {
	for _, s := range []string{"", "abc-_1", "a.b", ".a", "a\n", "é", "\xff", "a\x00", "/@[`{:"} {
		f.Add(s, uint8(0))
	}
	f.Add("a", uint8(255))
	f.Add("aa", uint8(255))
	f.Fuzz(func(t *testing.T, s string, more uint8) {
		s += strings.Repeat("x", int(more))
		if got, want := isToken(s), tokenPattern.MatchString(s); got != want {
			t.Errorf("isToken(%q) = %v, want %v", s, got, want)
		}
	})
}

// Whatever a CA says of a window, what we make of it is a window.
func FuzzRenewalInfo(f *testing.F) {
	f.Add(200, `{"suggestedWindow":{"start":"2030-01-02T04:00:00Z","end":"2030-01-03T04:00:00Z"},"explanationURL":"https://ca.test"}`, "21600")
	f.Add(200, `{"suggestedWindow":{"start":"2030-01-02T04:00:00Z"}}`, "")
	f.Add(200, `null`, "-1")
	f.Add(404, `{"type":"urn:ietf:params:acme:error:malformed"}`, "x")
	f.Fuzz(func(t *testing.T, status int, body, retry string) {
		if status < 200 || status > 599 || status/100 == 3 {
			return // no final status
		}
		c := clientOf(t, func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/dir" {
				return reply(200, directory), nil
			}
			return reply(status, body, "Retry-After: "+retry), nil
		})
		info, err := c.RenewalInfo(t.Context(), "a.b")
		if err == nil && (status != 200 || !info.Start.Before(info.End)) {
			t.Errorf("RenewalInfo = %+v, want a window", info)
		}
		if info.Again < ariSoonest || info.Again > ariLatest {
			t.Errorf("%q, Retry-After %q: again in %v, want from %v to %v", body, retry, info.Again, ariSoonest, ariLatest)
		}
	})
}

// No token gets past that means anything to a path, and none costs a panic.
func FuzzAuthorization(f *testing.F) {
	f.Add(`{"status":"pending","identifier":{"type":"dns","value":"a.example.com"},"challenges":[{"type":"http-01","url":"https://ca.test/1","token":"abc-_1"}]}`)
	f.Add(`{"challenges":[{"token":"../x"}]}`)
	f.Add(`{"challenges":[{"token":"a\n"},{"error":{"type":"x:y","status":400}}]}`)
	f.Add(`{"challenges":null}`)
	f.Fuzz(func(t *testing.T, body string) {
		c := clientOf(t, func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/dir" {
				return reply(200, directory), nil
			}
			return reply(200, body, "Replay-Nonce: x"), nil
		})
		r := &run{Client: c}
		a, err := r.authorization(t.Context(), "https://ca.test/authz/1")
		if err != nil {
			return
		}
		for _, ch := range a.Challenges {
			if ch.Token != url.PathEscape(ch.Token) || strings.Contains(ch.Token, ".") || ch.Status == "" {
				t.Errorf("authorization(%q) has %+v", body, ch)
			}
		}
		if err := r.challengeError(a); err != nil && err.Error() == "" {
			t.Errorf("authorization(%q) has an error without words", body)
		}
	})
}

// Whatever a CA calls an error is classed, and its words are kept.
func FuzzProblem(f *testing.F) {
	f.Add(400, `{"type":"urn:ietf:params:acme:error:malformed","detail":"no"}`, "")
	f.Add(429, `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"see https://ca.test/."}`, "")
	f.Add(503, `<html>`, "60")
	f.Add(400, `{"type":":","subproblems":[{}]}`, "")
	f.Add(403, `{"type":"urn:ietf:params:acme:error:userActionRequired","instance":"https://ca.test/agree"}`, "")
	f.Fuzz(func(t *testing.T, status int, body, retry string) {
		ex := &exchange{status: status, header: http.Header{"Retry-After": {retry}}, body: []byte(body)}
		got := fail("asking", ex.problem()).(*Failure)
		if got.Error() == "" || got.Class < Ours || got.Class > Unset || got.Retry < 0 {
			t.Errorf("%d %q: %+v", status, body, got)
		}
		if got.Class != Terms && ((got.Class == Paused) != (got.Action != "") || !strings.HasPrefix(got.Action+"https://", "https://")) {
			t.Errorf("%d %q: class %v with action %q", status, body, got.Class, got.Action)
		}
		parseProblem([]byte(body))
	})
}

// Whatever a CA answers, Obtain ends in time, with a *Failure.
func FuzzObtain(f *testing.F) {
	const good = `{"status":"pending","authorizations":["https://ca.test/a"],"finalize":"https://ca.test/f"}`
	f.Add(good, `{"status":"pending","challenges":[{"type":"http-01","url":"https://ca.test/c","token":"abc"}]}`)
	f.Add(strings.Replace(good, "pending", "ready", 1), "{}")
	f.Add(strings.Replace(good, "pending", "processing", 1), "{}")
	f.Add(`{"status":"valid","certificate":"https://ca.test/o"}`, "{}")
	f.Add(`{"status":"invalid","authorizations":["https://ca.test/a"],"error":{"type":"x"}}`, "{}")
	f.Add(`{"status":"pending","authorizations":["","http://x/","://"]}`, "{}")
	key := newKey(f)
	f.Fuzz(func(t *testing.T, order, authz string) {
		synctest.Test(t, func(t *testing.T) {
			c := New("https://ca.test/dir", &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				switch r.URL.Path {
				case "/dir":
					return reply(200, directory), nil
				case "/a":
					return reply(200, authz, "Replay-Nonce: x"), nil
				}
				return reply(200, order, "Replay-Nonce: x", "Location: https://ca.test/o"), nil
			})}, key, "https://ca.test/account/1")
			w := &world{t: t, client: c}
			j := Job{Host: "a.example.com", Key: key, Keep: func(string) error { return nil }, Solve: w.solve("http-01", true)}
			var err error
			took := elapsed(func() { _, err = c.Obtain(t.Context(), j) })
			if _, ok := err.(*Failure); !ok || took > orderTimeout+requestTimeout+time.Second {
				t.Errorf("Obtain = %v after %v, want a *Failure in time", err, took)
			}
		})
	})
}
