package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/catest"
)

// ask sends a request to a server as it stands, whatever it is, and returns
// the reply and its body.
func ask(t *testing.T, addr, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return res, string(body)
}

// fixed are the bodies that replies on the HTTP side may have.
var fixed = map[string]bool{
	"":                                       true,
	"404 page not found\n":                   true,
	"the Host header names no host\n":        true,
	"400 Bad Request":                        true, // net/http's own
	"400 Bad Request: malformed Host header": true,
	"400 Bad Request: missing required Host header": true,
}

func TestRedirect(t *testing.T) {
	m := &letsencrypt.Manager{
		HTTPAddr:  "127.0.0.1:8080",
		HTTPSAddr: "127.0.0.1:8443",
		Allow: func(_ context.Context, host string) error {
			t.Errorf("Allow is asked about %s", host)
			return nil
		},
	}
	defer shutdown(t, m)
	m.SetHosts([]string{"a.example.com", "*.w.example.com", "2001:db8::1", "192.0.2.1"})
	s := httptest.NewServer(m)
	defer s.Close()
	for _, tt := range []struct {
		line, host string
		status     int
		location   string
	}{
		{"GET /", "a.example.com", 302, "https://a.example.com/"},
		{"HEAD /", "a.example.com", 302, "https://a.example.com/"},
		{"POST /form", "a.example.com", 307, "https://a.example.com/form"},
		{"PUT /", "a.example.com", 307, "https://a.example.com/"},
		{"GET /", "x.w.example.com", 302, "https://x.w.example.com/"},
		{"GET /", "192.0.2.1", 302, "https://192.0.2.1/"},
		{"GET /", "[2001:db8::1]", 302, "https://[2001:db8::1]/"},
		{"GET /", "[2001:DB8:0::1]", 302, "https://[2001:db8::1]/"},
		{"GET /", "[2001:db8::1]:8080", 302, "https://[2001:db8::1]:8443/"},

		{"GET /", "A.Example.COM", 302, "https://a.example.com/"},
		{"GET /", "a.example.com.", 302, "https://a.example.com/"},
		{"GET /", "a.example.com:8080", 302, "https://a.example.com:8443/"},
		{"GET /", "a.example.com:80", 302, "https://a.example.com/"},
		{"GET /", "a.example.com:1234", 302, "https://a.example.com/"},

		{"GET /x%2fy?q=1&r=a+b", "a.example.com", 302, "https://a.example.com/x%2fy?q=1&r=a+b"},
		{"GET /?", "a.example.com", 302, "https://a.example.com/?"},
		{"GET /a/../b", "a.example.com", 302, "https://a.example.com/a/../b"},
		{"GET //evil.test/x", "a.example.com", 302, "https://a.example.com//evil.test/x"},
		{"GET /%0d%0aSet-Cookie:%20x=y", "a.example.com", 302, "https://a.example.com/%0d%0aSet-Cookie:%20x=y"},
		{"GET /?%0d%0aSet-Cookie:%20x=y", "a.example.com", 302, "https://a.example.com/?%0d%0aSet-Cookie:%20x=y"},
		{"GET /\r\n\tSet-Cookie: x=y", "a.example.com", 400, ""},
		{"GET /<script>", "a.example.com", 302, "https://a.example.com/%3Cscript%3E"},
		{"GET http://a.example.com/x", "evil.test", 302, "https://a.example.com/x"},
		{"GET http://a.example.com", "evil.test", 302, "https://a.example.com/"},
		{"GET http://evil.test/x", "a.example.com", 404, ""},
		{"CONNECT a.example.com:443", "a.example.com", 307, "https://a.example.com/"},

		{"GET /", "evil.test", 404, ""},
		{"GET /", "b.example.com", 404, ""},
		{"GET /", "x.y.w.example.com", 404, ""},
		{"GET /", "w.example.com", 404, ""},
		{"GET /", "192.0.2.2", 404, ""},
		{"GET /", "localhost", 404, ""},
		{"GET /", "", 404, ""},
		{"GET /", "a.example.com:", 302, "https://a.example.com/"},
		{"GET /", ":80", 404, ""},
		{"GET /", "a.example.com:80:80", 404, ""},
		{"GET /", "a.example.com/x", 400, ""},
		{"GET /", "a.example.com evil.test", 400, ""},
		{"GET /", "evil.test@a.example.com", 400, ""},
		{"GET /", "a.example.com%0d%0ax", 404, ""},
		{"GET /", "a.example.com\x00", 400, ""},
		{"GET /", "a.example.com\r\nHost: evil.test", 400, ""},
	} {
		res, body := ask(t, s.Listener.Addr().String(), tt.line+" HTTP/1.1\r\nHost: "+tt.host+"\r\nContent-Length: 0\r\n\r\n")
		if got := res.Header.Get("Location"); res.StatusCode != tt.status || got != tt.location {
			t.Errorf("%s for %q = %d to %q, want %d to %q", tt.line, tt.host, res.StatusCode, got, tt.status, tt.location)
		}
		if !fixed[body] {
			t.Errorf("%s for %q has the body %q", tt.line, tt.host, body)
		}
		if len(res.Header["Set-Cookie"]) > 0 {
			t.Errorf("%s for %q sets a header of the client's", tt.line, tt.host)
		}
	}
}

func TestRequestWithoutHost(t *testing.T) {
	var m letsencrypt.Manager
	defer shutdown(t, &m)
	s := httptest.NewServer(&m)
	defer s.Close()
	if res, _ := ask(t, s.Listener.Addr().String(), "GET / HTTP/1.0\r\n\r\n"); res.StatusCode != 404 {
		t.Errorf("a request without Host: %d, want 404", res.StatusCode)
	}
}

// TestRedirectKnowsTheHosts has a Manager in its several states of mind.
func TestRedirectKnowsTheHosts(t *testing.T) {
	allow := func(context.Context, string) error {
		t.Error("Allow is asked")
		return nil
	}
	for _, tt := range []struct {
		name  string
		allow func(context.Context, string) error
		hosts []string
		host  string
		want  int
	}{
		{"no list, plausible", nil, nil, "a.example.com", 302},
		{"no list, single label", nil, nil, "localhost", 404},
		{"no list, address", nil, nil, "192.0.2.1", 404},
		{"Allow, no list", allow, nil, "a.example.com", 302},
		{"Allow, no list, single label", allow, nil, "localhost", 404},
		{"empty list", nil, []string{}, "a.example.com", 404},
		{"listed single label", nil, []string{"localhost"}, "localhost", 302},
		{"Allow and list", allow, []string{"b.example.com"}, "a.example.com", 404},
	} {
		m := &letsencrypt.Manager{Allow: tt.allow}
		m.SetHosts(tt.hosts)
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest("GET", "http://"+tt.host+"/", nil))
		if w.Code != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, w.Code, tt.want)
		}
		shutdown(t, m)
	}
}

// TestRedirectOfAHeldHost asks for hosts that are not on the list, but served.
func TestRedirectOfAHeldHost(t *testing.T) {
	var m letsencrypt.Manager
	defer shutdown(t, &m)
	chain, key := pemPair(t, "held.example.com", time.Hour)
	if err := m.Unmarshal(rscState(t, "", nil, map[string][2]string{"held.example.com": {chain, key}})); err != nil {
		t.Fatal(err)
	}
	m.SetHosts([]string{})
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "http://held.example.com/", nil))
	if w.Code != 302 {
		t.Errorf("%d, want 302", w.Code)
	}
}

func TestRedirectHTTP(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(letsencrypt.RedirectHTTP))
	defer s.Close()
	for _, tt := range []struct {
		line, host string
		status     int
		location   string
	}{
		{"GET /x?y", "a.example.com", 302, "https://a.example.com/x?y"},
		{"POST /x?y", "a.example.com", 307, "https://a.example.com/x?y"},
		{"GET /", "a.example.com:8080", 302, "https://a.example.com/"},
		{"GET /", "localhost", 302, "https://localhost/"},
		{"GET /", "192.0.2.1", 302, "https://192.0.2.1/"},
		{"GET /", "[2001:db8::1]:80", 302, "https://[2001:db8::1]/"},
		{"GET //evil.test", "a.example.com", 302, "https://a.example.com//evil.test"},
		{"GET /", "", 400, ""},
		{"GET /", "a..b", 400, ""},
		{"GET /", "a_b.example.com", 400, ""},
		{"GET /", "evil.test@a.example.com", 400, ""},
		{"GET /", "a.example.com:80:80", 400, ""},
		{"GET /", strings.Repeat("a", 64) + ".example.com", 400, ""},
	} {
		res, body := ask(t, s.Listener.Addr().String(), tt.line+" HTTP/1.1\r\nHost: "+tt.host+"\r\nContent-Length: 0\r\n\r\n")
		if got := res.Header.Get("Location"); res.StatusCode != tt.status || got != tt.location {
			t.Errorf("%s for %q = %d to %q, want %d to %q", tt.line, tt.host, res.StatusCode, got, tt.status, tt.location)
		}
		if !fixed[body] {
			t.Errorf("%s for %q has the body %q", tt.line, tt.host, body)
		}
	}
}

// TestHTTPValidation asks as a CA does, and as others do, while a validation
// is pending.
func TestHTTPValidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		m := customer(ca)
		defer shutdown(t, m)
		fallback := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "fallback") })
		h := m.HTTPHandler(fallback)
		validated := 0
		ca.Change(func(c *catest.Config) {
			c.Challenges = []string{"http-01"}
			c.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				validated++
				checkValidation(t, h, r)
				h.ServeHTTP(w, r)
			})
		})
		serial(t, m, "a.example.com")
		if validated == 0 {
			t.Error("no validation came")
		}
	})
}

// checkValidation asks h variants of the pending validation that r is.
func checkValidation(t *testing.T, h http.Handler, r *http.Request) {
	t.Helper()
	token := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	const dir = "/.well-known/acme-challenge/"
	for _, tt := range []struct {
		method, host, path string
		answer             bool
	}{
		{"GET", "a.example.com", dir + token, true},
		{"GET", "A.Example.com.", dir + token, true},
		{"GET", "a.example.com:5002", dir + token, true},
		{"GET", "b.example.com", dir + token, false},
		{"GET", "", dir + token, false},
		{"GET", "a.example.com", dir + "x" + token, false},
		{"GET", "a.example.com", dir + token[1:], false},
		{"POST", "a.example.com", dir + "unknown", false},
		{"GET", "a.example.com", dir + token + "/", false},
		{"GET", "a.example.com", dir + "../acme-challenge/" + token, false},
		{"GET", "a.example.com", dir + token + "/../" + token, false},
		{"GET", "a.example.com", "/x/.." + dir + token, false},
		{"GET", "a.example.com", dir + "%2e%2e/" + token, false},
		{"GET", "a.example.com", "/" + dir + token, false},
		{"GET", "a.example.com", dir, false},
		{"GET", "a.example.com", strings.TrimSuffix(dir, "/"), false},
		{"GET", "a.example.com", strings.ToUpper(dir) + token, false},
		{"GET", "a.example.com", "/?" + dir + token, false},
	} {
		req := httptest.NewRequest(tt.method, "http://x"+tt.path, nil)
		req.Host = tt.host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if got := strings.HasPrefix(w.Body.String(), token+"."); got != tt.answer || !tt.answer && w.Body.String() != "fallback" {
			t.Errorf("%s %s for %q is answered with %q, want the key authorization: %v", tt.method, strings.ReplaceAll(tt.path, token, "TOKEN"), tt.host, w.Body, tt.answer)
		}
	}
}

// TestHTTPHandlerWithoutFallback gives unknown tokens what ServeHTTP does.
func TestHTTPHandlerWithoutFallback(t *testing.T) {
	var m letsencrypt.Manager
	defer shutdown(t, &m)
	m.SetHosts([]string{"a.example.com"})
	for host, want := range map[string]int{"a.example.com": 302, "b.example.com": 404} {
		w := httptest.NewRecorder()
		m.HTTPHandler(nil).ServeHTTP(w, httptest.NewRequest("GET", "http://"+host+"/.well-known/acme-challenge/unknown", nil))
		if w.Code != want {
			t.Errorf("an unknown token for %s: %d, want %d", host, w.Code, want)
		}
	}
}

func TestAskURL(t *testing.T) {
	var query atomic.Value
	status := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			t.Error("a redirect is followed")
		}
		query.Store(r.URL.RawQuery)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}))
	defer s.Close()
	const yes, no, undecided = "yes", "no", "undecided"
	for code, want := range map[int]string{
		200: yes, 204: yes, 299: yes,
		301: no, 302: no, 304: no, 307: no, 400: no, 403: no, 404: no,
		408: undecided, 429: undecided, 500: undecided, 502: undecided, 503: undecided,
	} {
		status = code
		err := letsencrypt.AskURL(s.URL+"/ask?key=1%262&domain=mine")(t.Context(), "a.example.com")
		if got := verdict(err); got != want {
			t.Errorf("%d: %s (%v), want %s", code, got, err, want)
		}
	}
	got, err := url.ParseQuery(query.Load().(string))
	if err != nil || got.Get("key") != "1&2" || len(got["domain"]) != 1 || got.Get("domain") != "a.example.com" {
		t.Errorf("query %q, %v, want the URL's own and domain=a.example.com", query.Load(), err)
	}
	status = 200
	letsencrypt.AskURL(s.URL)(t.Context(), "*.b&c=d.example.com")
	if got, err := url.ParseQuery(query.Load().(string)); err != nil || len(got) != 1 || got.Get("domain") != "*.b&c=d.example.com" {
		t.Errorf("query %q, %v, want one domain, escaped", query.Load(), err)
	}
}

// verdict returns what Allow's error means.
func verdict(err error) string {
	var undecided net.Error
	switch {
	case err == nil:
		return "yes"
	case errors.As(err, &undecided):
		return "undecided"
	case errors.Is(err, letsencrypt.ErrHostNotAllowed):
		return "no"
	}
	return fmt.Sprintf("something else: %v", err)
}

func TestAskURLThatIsDown(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	if got := verdict(letsencrypt.AskURL(s.URL)(t.Context(), "a.example.com")); got != "undecided" {
		t.Errorf("a service that is down says %s, want undecided", got)
	}
}

// TestAskURLThatIsSlow has a service that says nothing, until the context ends
// or, without that, for ten seconds.
func TestAskURLThatIsSlow(t *testing.T) {
	t.Parallel()
	leave := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-leave }))
	defer s.Close()
	defer close(leave)
	allow := letsencrypt.AskURL(s.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if got := verdict(allow(ctx, "a.example.com")); got != "undecided" {
		t.Errorf("a service that is slow says %s, want undecided", got)
	}
	start := time.Now()
	if got := verdict(allow(t.Context(), "a.example.com")); got != "undecided" {
		t.Errorf("a service that is slow says %s, want undecided", got)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("it is given %v, want ten seconds", took)
	}
}

// TestAskURLDecides has a Manager ask a web service, which knows one host.
func TestAskURLDecides(t *testing.T) {
	ca := catest.New(t)
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.FormValue("domain") != "a.example.com" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer s.Close()
	m := customer(ca)
	m.Allow = letsencrypt.AskURL(s.URL)
	defer shutdown(t, m)
	for range 3 {
		serial(t, m, "a.example.com")
		_, err := m.Cert("b.example.com")
		var failed *letsencrypt.HostError
		if !errors.Is(err, letsencrypt.ErrHostNotAllowed) || !errors.As(err, &failed) || failed.Host != "b.example.com" {
			t.Errorf("Cert = %v, want ErrHostNotAllowed for b.example.com", err)
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the service was asked %d times, want once a host", n)
	}
	if n := len(ca.Orders()); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}
