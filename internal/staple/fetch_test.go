package staple

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ocsp"
)

// A scene is a CA and a certificate of its own.
type scene struct {
	ca   *party
	leaf *x509.Certificate
	good []byte // a response about leaf
}

func newScene(tb testing.TB) *scene {
	tb.Helper()
	ca := newCA(tb, nil, "ca")
	leaf := newLeaf(tb, ca, 7).cert
	return &scene{ca, leaf, reply{about: leaf.SerialNumber, issuer: ca}.der(tb)}
}

// fetch asks the responders at the URLs about the scene's certificate.
func (s *scene) fetch(ctx context.Context, client *http.Client, urls ...string) (*Response, error) {
	leaf := *s.leaf
	leaf.OCSPServer = urls
	return Fetch(ctx, client, &leaf, s.ca.cert)
}

// A responder is a web server that notes the requests it gets.
type responder struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string // method and URI
}

func newResponder(t *testing.T, h http.HandlerFunc) *responder {
	t.Helper()
	r := new(responder)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.seen = append(r.seen, req.Method+" "+req.RequestURI)
		r.mu.Unlock()
		h(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *responder) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

// methods returns those of the requests seen, in order.
func (r *responder) methods() string {
	var methods []string
	for _, req := range r.requests() {
		method, _, _ := strings.Cut(req, " ")
		methods = append(methods, method)
	}
	return strings.Join(methods, " ")
}

func says(body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) { w.Write(body) }
}

func TestFetch(t *testing.T) {
	s := newScene(t)
	srv := newResponder(t, says(s.good))
	for _, client := range []*http.Client{nil, srv.Client()} {
		r, err := s.fetch(t.Context(), client, srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Fresh(time.Now()) {
			t.Errorf("Fetch = %+v, want a fresh response", r)
		}
	}
	if got := srv.methods(); got != "GET GET" {
		t.Errorf("requests by %q, want one GET for each response", got)
	}
}

// TestFetchURL: the request is in the URL as RFC 6960 says, with nothing in it
// that a server could take for something else.
func TestFetchURL(t *testing.T) {
	s := newScene(t)
	srv := newResponder(t, says(s.good))
	leaf := *s.leaf
	for serial := range int64(50) {
		leaf.SerialNumber = big.NewInt(1<<40 + serial*12345677)
		der, err := ocsp.CreateRequest(&leaf, s.ca.cert, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := "/a%2Fb/" + url.QueryEscape(base64.StdEncoding.EncodeToString(der)) + "?q=1"
		leaf.OCSPServer = []string{srv.URL + "/a%2Fb/?q=1"}
		if serial%2 == 0 {
			leaf.OCSPServer[0] = srv.URL + "/a%2Fb?q=1"
		}
		Fetch(t.Context(), nil, &leaf, s.ca.cert) // fails: the answer is about another certificate
		seen := srv.requests()
		if get, post := seen[len(seen)-2], seen[len(seen)-1]; get != "GET "+want || !strings.HasPrefix(post, "POST /a%2Fb") {
			t.Fatalf("requests %s and %s, want GET %s and a POST", get, post, want)
		}
	}
}

func TestFetchPost(t *testing.T) {
	s := newScene(t)
	stale := reply{about: s.leaf.SerialNumber, issuer: s.ca, next: -time.Minute}.der(t)
	answers := map[string]http.HandlerFunc{
		"refused": func(w http.ResponseWriter, req *http.Request) {
			http.Error(w, "by POST only", http.StatusMethodNotAllowed)
		},
		"garbage":   says([]byte("<html>hello</html>")),
		"stale":     says(stale),
		"try later": says(ocsp.TryLaterErrorResponse),
		"cut short": func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Length", "99")
			w.Write([]byte{1})
		},
		"empty body": says(nil),
	}
	for name, get := range answers {
		var body []byte
		var header http.Header
		srv := newResponder(t, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == "GET" {
				get(w, req)
				return
			}
			body, _ = io.ReadAll(req.Body)
			header = req.Header
			w.Write(s.good)
		})
		if _, err := s.fetch(t.Context(), nil, srv.URL); err != nil {
			t.Errorf("%s: Fetch = %v, want what POST brought", name, err)
		}
		if got := srv.methods(); got != "GET POST" {
			t.Errorf("%s: requests by %q, want GET POST", name, got)
		}
		if req, err := ocsp.ParseRequest(body); err != nil || req.SerialNumber.Cmp(s.leaf.SerialNumber) != 0 {
			t.Errorf("%s: POST sent %x, want a request for %d", name, body, s.leaf.SerialNumber)
		}
		if got := header.Get("Content-Type"); got != "application/ocsp-request" {
			t.Errorf("%s: POST with Content-Type %q", name, got)
		}
		if got := header.Get("Accept"); got != "application/ocsp-response" {
			t.Errorf("%s: POST with Accept %q", name, got)
		}
	}
}

// TestFetchLongURL: RFC 5019 asks by GET if the whole URL has 255 bytes or fewer.
func TestFetchLongURL(t *testing.T) {
	s := newScene(t)
	srv := newResponder(t, says(s.good))
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ocsp.CreateRequest(s.leaf, s.ca.cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	room := 255 - len(getURL(base, der)) - 1 // for a slash and more
	for _, n := range []int{room, room + 1} {
		if _, err := s.fetch(t.Context(), nil, srv.URL+"/"+strings.Repeat("x", n)); err != nil {
			t.Error(err)
		}
	}
	if got := srv.methods(); got != "GET POST" {
		t.Errorf("requests with URLs of 255 and 256 bytes by %q, want GET POST", got)
	}
}

func TestFetchNextResponder(t *testing.T) {
	s := newScene(t)
	broken := newResponder(t, func(w http.ResponseWriter, req *http.Request) { http.Error(w, "broken", 500) })
	down := httptest.NewServer(nil)
	down.Close()
	works := newResponder(t, says(s.good))
	urls := []string{"ldap://127.0.0.1/", ":", broken.URL, down.URL, works.URL}
	if _, err := s.fetch(t.Context(), nil, urls...); err != nil {
		t.Errorf("Fetch = %v, want the last responder's answer", err)
	}
	_, err := s.fetch(t.Context(), nil, broken.URL, down.URL)
	for _, want := range []string{broken.URL + ": status 500 Internal Server Error; by POST: status 500", down.URL + ": dial tcp"} {
		if !isError(err, want) {
			t.Errorf("Fetch = %v, want error with %q", err, want)
		}
	}
}

// TestFetchPassword: an error may be shown to anybody.
func TestFetchPassword(t *testing.T) {
	s := newScene(t)
	broken := newResponder(t, func(w http.ResponseWriter, req *http.Request) { http.Error(w, "broken", 500) })
	u := strings.Replace(broken.URL, "http://", "http://user:secret@", 1)
	if _, err := s.fetch(t.Context(), nil, u); err == nil || isError(err, "secret") {
		t.Errorf("Fetch = %v, want error without the password", err)
	}
}

func TestFetchFewResponders(t *testing.T) {
	s := newScene(t)
	broken := newResponder(t, func(w http.ResponseWriter, req *http.Request) { http.Error(w, "broken", 500) })
	if _, err := s.fetch(t.Context(), nil, slices.Repeat([]string{broken.URL}, 1000)...); err == nil {
		t.Error("Fetch = nil, want error")
	}
	if n := len(broken.requests()); n != 2*maxResponders {
		t.Errorf("Fetch sent %d requests for a certificate with 1000 responders, want %d", n, 2*maxResponders)
	}
}

func TestFetchNoResponder(t *testing.T) {
	s := newScene(t)
	for _, urls := range [][]string{nil, {"ldap://127.0.0.1/x", "file:///etc/passwd", "http:", "http:///x", "127.0.0.1", ""}} {
		if _, err := s.fetch(t.Context(), nil, urls...); !errors.Is(err, ErrNoResponder) {
			t.Errorf("Fetch from %q = %v, want ErrNoResponder", urls, err)
		}
	}
}

func TestFetchRedirects(t *testing.T) {
	s := newScene(t)
	srv := newResponder(t, func(w http.ResponseWriter, req *http.Request) {
		// As many more redirects as the path has elements.
		first, rest, ok := strings.Cut(strings.TrimPrefix(req.URL.Path, "/"), "/")
		switch {
		case first == "file":
			http.Redirect(w, req, "file:///etc/passwd", http.StatusFound)
		case ok && first == "r":
			http.Redirect(w, req, "/"+rest, http.StatusFound)
		default:
			w.Write(s.good)
		}
	})
	tests := []struct {
		path, want string
		requests   int
	}{
		{"/r/r/r", "", 4},
		{"/r/r/r/r", "more than 3 redirects", 4},
		{"/file", `redirect to scheme "file"`, 1},
	}
	for _, tt := range tests {
		before := len(srv.requests())
		if _, err := s.fetch(t.Context(), nil, srv.URL+tt.path); !isError(err, tt.want) {
			t.Errorf("Fetch from %s = %v, want error with %q", tt.path, err, tt.want)
		}
		if n := len(srv.requests()) - before; n != tt.requests {
			t.Errorf("Fetch from %s sent %d requests, want %d", tt.path, n, tt.requests)
		}
	}
}

// TestFetchClientRedirects: the program's own rule for redirects counts too,
// and its client is left as it was.
func TestFetchClientRedirects(t *testing.T) {
	s := newScene(t)
	srv := newResponder(t, func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, "/x", http.StatusFound) })
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("not here") }}
	if _, err := s.fetch(t.Context(), client, srv.URL); !isError(err, "not here") {
		t.Errorf("Fetch = %v, want the client's error", err)
	}
	client.CheckRedirect = nil
	if _, err := s.fetch(t.Context(), client, srv.URL); !isError(err, "more than 3 redirects") {
		t.Errorf("Fetch = %v, want error after three redirects", err)
	}
	if client.CheckRedirect != nil {
		t.Error("Fetch changed the program's client")
	}
}

// zeros is a body without end that counts what was read, and how often it was
// closed.
type zeros struct{ n, closed int }

func (z *zeros) Read(p []byte) (int, error) { clear(p); z.n += len(p); return len(p), nil }
func (z *zeros) Close() error               { z.closed++; return nil }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestFetchEndlessBody(t *testing.T) {
	s := newScene(t)
	body := new(zeros)
	client := &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: body, Request: req}, nil
	})}
	if _, err := s.fetch(t.Context(), client, "http://ocsp.test/"); !isError(err, "longer than 65536 bytes") {
		t.Errorf("Fetch = %v, want error that the response is too long", err)
	}
	if body.n > 4*maxBody { // GET and POST
		t.Errorf("Fetch read %d bytes, want little more than %d twice", body.n, maxBody)
	}
	if body.closed != 2 {
		t.Errorf("Fetch closed %d bodies of 2", body.closed)
	}
}

func TestFetchHugeBody(t *testing.T) {
	s := newScene(t)
	huge := newResponder(t, says(append(slices.Clone(s.good), make([]byte, maxBody)...)))
	if _, err := s.fetch(t.Context(), nil, huge.URL); !isError(err, "longer than 65536 bytes") {
		t.Errorf("Fetch = %v, want error that the response is too long", err)
	}
}

// TestFetchHangs: who doesn't answer is given up on in ten seconds, and not
// asked again in another way.
func TestFetchHangs(t *testing.T) {
	s := newScene(t)
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		client := &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
			asked = append(asked, req.Method+" "+req.Host)
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		})}
		start := time.Now()
		_, err := s.fetch(t.Context(), client, "http://a.test", "http://b.test")
		if !isError(err, "a.test: no answer within 10s") || !isError(err, "b.test: no answer within 10s") {
			t.Errorf("Fetch = %v, want error that neither answered within 10s", err)
		}
		if want := []string{"GET a.test", "GET b.test"}; !slices.Equal(asked, want) {
			t.Errorf("asked %q, want %q", asked, want)
		}
		if got := time.Since(start); got != 2*requestTimeout {
			t.Errorf("Fetch took %v, want %v", got, 2*requestTimeout)
		}
	})
}

// TestFetchContext: once the context ends, nobody is asked, by whatever method.
func TestFetchContext(t *testing.T) {
	s := newScene(t)
	for _, inBody := range []bool{false, true} {
		ctx, cancel := context.WithCancelCause(t.Context())
		errStop := errors.New("enough")
		asked := 0
		client := &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
			asked++
			body := readerFunc(func([]byte) (int, error) {
				cancel(errStop)
				return 0, context.Cause(ctx)
			})
			if !inBody {
				_, err := body(nil)
				return nil, err
			}
			return &http.Response{StatusCode: 200, Body: io.NopCloser(body), Request: req}, nil
		})}
		_, err := s.fetch(ctx, client, "http://a.test", "http://b.test")
		if !errors.Is(err, errStop) || isError(err, "by POST") || isError(err, "b.test") {
			t.Errorf("Fetch = %v, want what ended the first request alone (in its body: %v)", err, inBody)
		}
		if asked != 1 {
			t.Errorf("Fetch sent %d requests, want 1 (context ended in its body: %v)", asked, inBody)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestFetchContextReal ends a request to a real server.
func TestFetchContextReal(t *testing.T) {
	s := newScene(t)
	ctx, cancel := context.WithCancel(t.Context())
	srv := newResponder(t, func(w http.ResponseWriter, req *http.Request) {
		cancel()
		<-req.Context().Done()
	})
	if _, err := s.fetch(ctx, nil, srv.URL); !errors.Is(err, context.Canceled) {
		t.Errorf("Fetch = %v, want context.Canceled", err)
	}
}
