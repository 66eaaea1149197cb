package ca

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

func TestSecure(t *testing.T) {
	tests := []struct {
		url  string
		want bool
	}{
		{"https://ca.test/dir", true},
		{"http://ca.test/dir", false},
		{"http://localhost:14000/dir", true},
		{"http://127.0.0.1:14000/dir", true},
		{"http://127.1.2.3/dir", true},
		{"http://[::1]:14000/dir", true},
		{"http://192.0.2.1/dir", false},
		{"http://localhost.ca.test/dir", false},
		{"http://127.0.0.1.ca.test/dir", false},
		{"ftp://ca.test/dir", false},
		{"//ca.test/dir", false},
	}
	for _, test := range tests {
		u, err := url.Parse(test.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := secure(u); got != test.want {
			t.Errorf("secure(%s) = %v, want %v", test.url, got, test.want)
		}
	}
}

// clientOf returns a Client at https://ca.test/dir whose requests f answers.
func clientOf(t testing.TB, f roundTripper) *Client {
	return New("https://ca.test/dir", &http.Client{Transport: f}, newKey(t), "https://ca.test/account/1")
}

const directory = `{"newNonce":"https://ca.test/nonce","newOrder":"https://ca.test/order","newAccount":"https://ca.test/account","renewalInfo":"https://ca.test/ari"}`

func TestPlainHTTPRefused(t *testing.T) {
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		t.Errorf("%s was asked", r.URL)
		return reply(200, directory), nil
	})
	c := New("http://ca.test/dir", &http.Client{Transport: base}, nil, "")
	if _, err := c.Directory(t.Context()); err == nil || !strings.Contains(err.Error(), "HTTPS") {
		t.Errorf("Directory() = %v, want that it is no HTTPS", err)
	}
}

func TestRedirect(t *testing.T) {
	tests := []struct {
		to string
		ok bool
	}{
		{"https://other.test/dir", true},
		{"http://other.test/dir", false},
		{"http://localhost/dir", true},
	}
	for _, test := range tests {
		var asked []string
		c := clientOf(t, func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.URL.String())
			if r.URL.Host == "ca.test" {
				return reply(302, "", "Location: "+test.to), nil
			}
			return reply(200, directory), nil
		})
		_, err := c.Directory(t.Context())
		if (err == nil) != test.ok || (len(asked) == 2) != test.ok {
			t.Errorf("redirected to %s: %v, asked %q; want it followed: %v", test.to, err, asked, test.ok)
		}
	}
}

// The user's http.Client lends its transport and timeout and is left alone.
func TestHTTPClientLeftAlone(t *testing.T) {
	base := roundTripper(func(*http.Request) (*http.Response, error) { return reply(200, directory), nil })
	hc := &http.Client{Transport: base, Timeout: time.Minute}
	c := New("https://ca.test/dir", hc, nil, "")
	if _, err := c.Directory(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, same := hc.Transport.(roundTripper); !same || hc.Timeout != time.Minute || c.http.Timeout != time.Minute {
		t.Errorf("the http.Client was changed to %+v, ours is %+v", hc, c.http)
	}
}

func TestBodyCap(t *testing.T) {
	for _, n := range []int{maxBody, maxBody + 1} {
		body := directory + strings.Repeat(" ", n-len(directory))
		c := clientOf(t, func(*http.Request) (*http.Response, error) { return reply(200, body), nil })
		_, err := c.Directory(t.Context())
		if want := n <= maxBody; (err == nil) != want {
			t.Errorf("a directory of %d bytes: %v, want it read: %v", n, err, want)
		}
	}
}

// A proxy's page ends up in logs, so it is cut; the CA's own words are not.
func TestForeignErrorCut(t *testing.T) {
	tests := []struct {
		name, body string
		most       int
	}{
		{"page", "<html>" + strings.Repeat("x", 1<<16), maxForeignBody + 100},
		{"short page", "<html>no</html>", 100},
		{"problem", `{"type":"urn:ietf:params:acme:error:malformed","detail":"` + strings.Repeat("x", 1<<16) + `"}`, 1<<16 + 200},
	}
	for _, test := range tests {
		c := clientOf(t, func(*http.Request) (*http.Response, error) { return reply(500, test.body), nil })
		_, err := c.Directory(t.Context())
		e, ok := errors.AsType[*acme.Error](err)
		if !ok || len(err.Error()) > test.most || len(err.Error()) < test.most/2-50 {
			t.Fatalf("%s: error of %d bytes, want about %d", test.name, len(err.Error()), test.most)
		}
		if test.name == "short page" && e.Detail != test.body {
			t.Errorf("Detail = %q, want %q", e.Detail, test.body)
		}
	}
}

func TestDirectoryRefused(t *testing.T) {
	tests := []struct {
		status int
		body   string
		class  Class
		text   string
	}{
		{200, "<html>", Fault, "is no ACME directory"},
		{200, "{}", Fault, "lists no newOrder"},
		{200, `{"newOrder":"https://ca.test/o"}`, Fault, "lists no newOrder and newNonce"},
		{200, `{"newOrder":1}`, Fault, "is no ACME directory"},
		{204, "", Fault, "204"},
		{404, "nothing here", Fault, "nothing here"},
		{404, "", Fault, "Not Found"},
		{503, "", Fault, "Service Unavailable"},
	}
	for _, test := range tests {
		c := clientOf(t, func(*http.Request) (*http.Response, error) { return reply(test.status, test.body), nil })
		_, err := c.Directory(t.Context())
		f, ok := errors.AsType[*Failure](err)
		if !ok || f.Class != test.class || !strings.Contains(err.Error(), test.text) {
			t.Errorf("directory %d %q: %v, want %v: %q", test.status, test.body, err, test.class, test.text)
		}
	}
}

func TestDirectoryAge(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		for _, test := range []struct {
			after time.Duration
			want  string
		}{{0, ""}, {directoryAge - time.Second, ""}, {time.Second, "directory"}, {time.Hour, ""}} {
			time.Sleep(test.after)
			if _, err := w.client.Directory(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := w.asked(); got != test.want {
				t.Errorf("after another %v: the CA was asked for %q, want %q", test.after, got, test.want)
			}
		}
	})
}

// A reply's nonce serves the next request. One is asked for where there is
// none left, and only then.
func TestNonces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, ca: catest.New(t)}
		w.client = New(w.ca.Directory(), w.ca.Client(), newKey(t), "")
		if _, err := w.client.Register(t.Context(), nil, nil, false); err != nil {
			t.Fatal(err)
		}
		if got, want := w.asked(), "directory newNonce newAccount"; got != want {
			t.Errorf("a first account: the CA was asked for %s, want %s", got, want)
		}
		for range 3 {
			if err := w.client.Update(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := w.asked(), "account account account"; got != want {
			t.Errorf("three more requests: the CA was asked for %s, want %s", got, want)
		}
	})
}

// The newest nonce is the likeliest to be good still, and it goes first.
func TestNoncesLastInFirstOut(t *testing.T) {
	c := clientOf(t, nil)
	c.directory = &Directory{NewNonce: "https://ca.test/nonce"}
	req, err := http.NewRequest("POST", "https://ca.test/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxNonces + 3 {
		res := reply(200, "", fmt.Sprint("Replay-Nonce: ", i))
		c.learn(req, res)
		if res.Header.Get("Replay-Nonce") != "" {
			t.Fatal("the nonce is left in the reply")
		}
	}
	head, err := http.NewRequest("HEAD", c.directory.NewNonce, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := maxNonces + 2; i >= 3; i-- {
		res := c.known(head)
		if res == nil || res.Header.Get("Replay-Nonce") != fmt.Sprint(i) {
			t.Fatalf("after %d nonces: %v, want %d", maxNonces+2-i, res, i)
		}
	}
	if res := c.known(head); res != nil {
		t.Errorf("more than %d nonces were kept", maxNonces)
	}
}

// Refused nonces are tried again at once, with the nonce of the refusal.
func TestRefusedNonces(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Change(func(c *catest.Config) { c.NonceReject = func(n int) bool { return n%8 != 0 } })
		took := elapsed(func() { w.obtain(w.job("a.example.com")) })
		if took > time.Second {
			t.Errorf("took %v, want no waiting for nonces", took)
		}
		if n := strings.Count(w.asked(), "newNonce"); n != 0 {
			t.Errorf("asked for %d nonces, want 0: a refusal brings one", n)
		}
	})
}

func TestRefusedNoncesForEver(t *testing.T) {
	inWorld(t, func(c *catest.Config) {}, func(t *testing.T, w *world) {
		w.ca.Change(func(c *catest.Config) { c.NonceReject = func(int) bool { return true } })
		var err error
		took := elapsed(func() { err = w.client.Update(t.Context(), nil) })
		f, ok := errors.AsType[*Failure](err)
		if !ok || f.Class != Fault || !problemIs(err, "badNonce") {
			t.Errorf("got %v, want the CA's badNonce as a fault", err)
		}
		if n := w.ca.Count("account"); n != maxNonceTries+1 || took > time.Second {
			t.Errorf("%d requests in %v, want %d at once", n, took, maxNonceTries+1)
		}
	})
}

// Half of the nonces refused, as Pebble does: no order fails of it.
func TestHalfOfNoncesRefused(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Change(func(c *catest.Config) { c.NonceReject = catest.Percent(50, 1) })
		for range 10 {
			w.obtain(w.job("a.example.com"))
		}
	})
}

// After a night, all nonces are stale.
func TestStaleNonces(t *testing.T) {
	inWorld(t, func(c *catest.Config) { c.NonceLifetime = time.Hour }, func(t *testing.T, w *world) {
		for range 5 {
			w.obtain(w.job("a.example.com"))
		}
		time.Sleep(12 * time.Hour)
		if took := elapsed(func() { w.obtain(w.job("a.example.com")) }); took > time.Second {
			t.Errorf("took %v, want no waiting", took)
		}
	})
}

// A Retry-After is for the caller to wait, never for a request to sleep.
func TestNothingSleepsRetryAfter(t *testing.T) {
	responses := map[string]catest.Response{
		"429":       catest.Problem(429, "rateLimited", "slow down", "3600"),
		"503":       catest.HTML(503, "3600"),
		"bad nonce": catest.Problem(400, "badNonce", "again", "3600"),
	}
	for name, response := range responses {
		for _, endpoint := range []string{"account", "newNonce"} {
			inWorld(t, func(c *catest.Config) { c.Impolite = true }, func(t *testing.T, w *world) {
				w.client.nonces = nil
				w.ca.Fault(catest.On(endpoint, 0, response))
				var err error
				took := elapsed(func() { err = w.client.Update(t.Context(), nil) })
				if err == nil || took > time.Millisecond {
					t.Errorf("%s at %s: %v after %v, want an error at once", name, endpoint, err, took)
				}
			})
		}
	}
}

// Orders side by side share the nonces: there are about as many requests for
// one as there are requests at a time.
func TestManyOrders(t *testing.T) {
	const n = 32
	slow := func(c *catest.Config) {
		c.Latency, c.ValidationTakes, c.FinalizeTakes, c.Perspectives = 50*ms, time.Second, time.Second, 1
	}
	inWorld(t, slow, func(t *testing.T, w *world) {
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				j := w.job(fmt.Sprintf("h%d.example.com", i))
				j.Keep = func(string) error { return nil }
				if _, err := w.client.Obtain(t.Context(), j); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if got := len(w.ca.Issued("")); got != n {
			t.Errorf("%d certificates, want %d", got, n)
		}
		if got := w.ca.Count("newNonce"); got > n+1 {
			t.Errorf("asked for %d nonces, want at most %d", got, n+1)
		}
		if got := w.ca.Count("directory"); got != 1 {
			t.Errorf("read the directory %d times, want once", got)
		}
	})
}

// What one request was answered is not taken for the answer to the next.
func TestExchangeOfFailedRequest(t *testing.T) {
	c := clientOf(t, func(r *http.Request) (*http.Response, error) {
		switch r.URL.Path {
		case "/dir":
			return reply(200, directory), nil
		case "/nonce":
			return reply(200, "", "Replay-Nonce: x"), nil
		case "/account": // the lookup of a client without an account's URL
			return reply(200, "{}", "Location: https://ca.test/account/1", "Replay-Nonce: y"), nil
		}
		return nil, io.ErrUnexpectedEOF
	})
	c.kid = ""
	if ex, err := c.post(t.Context(), "https://ca.test/order/1", nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("post = %v, %v, want %v", ex, err, io.ErrUnexpectedEOF)
	}
}

// Neither is what was answered to the request for its nonce.
func TestExchangeOfNonce(t *testing.T) {
	c := clientOf(t, func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == "/dir" {
			return reply(200, directory), nil
		}
		return reply(200, "{}"), nil // without a nonce
	})
	if ex, err := c.post(t.Context(), "https://ca.test/order/1", nil); err == nil {
		t.Errorf("post without a nonce = %v, nil, want an error", ex)
	}
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().UTC()
		at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
		tests := []struct {
			value, date string
			want        time.Duration
		}{
			{"", "", 0},
			{"120", "", 2 * time.Minute},
			{"0", "", 0},
			{"-1", "", 0},
			{"-10000000000", "", 0},
			{"99999999", "", maxRetryAfter},
			{"99999999999999999999", "", maxRetryAfter},
			{"-99999999999999999999", "", 0},
			{"1.5", "", 0},
			{"soon", "", 0},
			{at(time.Minute), "", time.Minute},
			{at(-time.Minute), "", 0},
			{at(365 * 24 * time.Hour), "", maxRetryAfter},
			{at(time.Hour), at(time.Hour - time.Minute), time.Minute}, // the CA's clock is ahead
			{at(-time.Hour), at(-time.Hour - time.Minute), time.Minute},
			{at(time.Minute), "noon", time.Minute},
		}
		for _, test := range tests {
			h := http.Header{"Retry-After": {test.value}, "Date": {test.date}}
			if got := retryAfter(h); got != test.want {
				t.Errorf("retryAfter(%q, date %q) = %v, want %v", test.value, test.date, got, test.want)
			}
		}
	})
}

func TestLinks(t *testing.T) {
	tests := []struct{ links, want string }{
		{`<https://ca.test/1>;rel="alternate"`, "https://ca.test/1"},
		{`<https://ca.test/1>; rel=alternate`, "https://ca.test/1"},
		{`<https://ca.test/1>;rel="up"`, ""},
		{`<https://ca.test/dir>;rel="index", <https://ca.test/1>;title="x";rel="alternate"`, "https://ca.test/1"},
		{"<https://ca.test/1>;rel=\"alternate\"\n<https://ca.test/2>;rel=\"alternate\"", "https://ca.test/1 https://ca.test/2"},
		{`https://ca.test/1;rel="alternate"`, ""},
		{`<https://ca.test/1`, ""},
		{`https://ca.test/1>;rel="alternate"`, ""},
		{`<https://ca.test/1,2>;rel="alternate", <https://ca.test/3>;rel="up"`, "https://ca.test/1,2"},
		{`<https://ca.test/1>;rel="up",<https://ca.test/2>;rel="alternate",<https://ca.test/3>;rel="up"`, "https://ca.test/2"},
		{``, ""},
	}
	for _, test := range tests {
		h := http.Header{"Link": strings.Split(test.links, "\n")}
		if got := strings.Join(links(h, "alternate"), " "); got != test.want {
			t.Errorf("links(%s) = %q, want %q", test.links, got, test.want)
		}
	}
}
