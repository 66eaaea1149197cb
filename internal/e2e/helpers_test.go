package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/time/rate"
)

// A rig is a Pebble with a proxy in front of it.
type rig struct {
	*pebble.Server
	t     *testing.T
	proxy *pebble.Proxy

	validatesAt *pebble.Server // has the ports at which Managers are to serve
}

func newRig(t *testing.T, config pebble.Config) *rig {
	t.Helper()
	s := pebble.New(t, config)
	p, err := s.Proxy(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{s, t, p, s}
}

// manager returns a Manager that asks the rig's CA through the proxy, is
// validated by it once it serves, and has no limit. It is shut down with the
// test. Its fields may be changed before its first use.
func (r *rig) manager() (*letsencrypt.Manager, *told) {
	told := &told{t: r.t}
	m := &letsencrypt.Manager{
		CAs:       []letsencrypt.CA{{Directory: r.proxy.Directory(), Client: r.Client()}},
		HTTPAddr:  r.httpAddr(),
		HTTPSAddr: r.tlsAddr(),
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") }),
		Limit:     rate.NewLimiter(rate.Inf, 0),
		Logger:    slog.New(slog.NewJSONHandler(&told.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		OnEvent:   told.event,
	}
	r.t.Cleanup(func() { shutdown(r.t, m) })
	return m, told
}

func (r *rig) httpAddr() string { return fmt.Sprintf("127.0.0.1:%d", r.validatesAt.HTTPPort()) }
func (r *rig) tlsAddr() string  { return fmt.Sprintf("127.0.0.1:%d", r.validatesAt.TLSPort()) }

// serve has the Manager serve in the background, and returns when it does.
func (r *rig) serve(m *letsencrypt.Manager) {
	r.t.Helper()
	background(r.t, m, m.Serve)
	listening(r.t, m.HTTPAddr, m.HTTPSAddr)
}

// server returns a Manager as manager does, that serves.
func (r *rig) server() (*letsencrypt.Manager, *told) {
	r.t.Helper()
	m, told := r.manager()
	r.serve(m)
	return m, told
}

// listening returns when somebody listens at the addresses.
func listening(t *testing.T, addrs ...string) {
	t.Helper()
	for _, addr := range addrs {
		eventually(t, "a server at "+addr, func() bool {
			conn, err := net.Dial("tcp", addr)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
}

// background runs a server of m's until the test ends.
func background(t *testing.T, m *letsencrypt.Manager, serve func() error) {
	awaitForks()
	ended := make(chan error, 1)
	go func() { ended <- patiently(serve) }()
	t.Cleanup(func() {
		shutdown(t, m)
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("server: %v, want %v", err, http.ErrServerClosed)
		}
	})
}

// awaitForks returns when processes that are being started are on their own.
// Until then they have copies of all our sockets: of listeners that were closed
// meanwhile, which take connections for nobody.
func awaitForks() {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
}

// patiently runs a server, again while its port is taken. One that was given up
// a moment ago may be: a process that is being forked, by another test, has all
// our sockets until it is executed.
func patiently(serve func() error) (err error) {
	became(func() bool {
		err = serve()
		return !errors.Is(err, syscall.EADDRINUSE)
	})
	return err
}

func shutdown(t *testing.T, m *letsencrypt.Manager) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// cacheFile gives m a new cache file and returns its name.
func cacheFile(t *testing.T, m *letsencrypt.Manager) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cache")
	if err := m.CacheFile(name); err != nil {
		t.Fatal(err)
	}
	return name
}

// must returns v, or ends the test.
func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (r *rig) roots() *x509.CertPool {
	r.t.Helper()
	roots, err := r.Roots(r.t.Context())
	return must(r.t, roots, err)
}

// visit connects to the rig's TLS port, verifies the chain for the host and
// returns the leaf.
func (r *rig) visit(host string) (*x509.Certificate, error) {
	r.t.Helper()
	return visit(r.tlsAddr(), host, r.roots())
}

func visit(addr, host string, roots *x509.CertPool) (*x509.Certificate, error) {
	dialer := &net.Dialer{Timeout: patience}
	conn, err := tls.DialWithDialer(dialer, "tcp", addr, &tls.Config{ServerName: host, RootCAs: roots})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

// served ends the test unless the host is served with a certificate that
// verifies, and returns its leaf.
func (r *rig) served(host string) *x509.Certificate {
	r.t.Helper()
	leaf, err := r.visit(host)
	if err != nil {
		r.t.Fatalf("visiting %s: %v", host, err)
	}
	return leaf
}

// cost returns how many requests the CA had, those for the directory, accounts
// and renewal information aside.
func (r *rig) cost() int {
	aside := []pebble.Endpoint{pebble.Directory, pebble.NewAccount, pebble.Account, pebble.RenewalInfo}
	return len(slices.DeleteFunc(r.proxy.Requests(), func(q pebble.Request) bool {
		return slices.Contains(aside, q.Endpoint)
	}))
}

// payload returns what a request's JWS says, and leaves the request as it was.
func payload(r *http.Request) string {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return ""
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var jws struct{ Payload string }
	if json.Unmarshal(body, &jws) != nil {
		return ""
	}
	text, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
	return string(text)
}

// in returns the rig for a subtest.
func (r *rig) in(t *testing.T) *rig {
	sub := *r
	sub.t = t
	return &sub
}

// A newOrder is what an order is asked for with, and a finalize what ends it.
type (
	newOrder struct {
		Identifiers       []struct{ Type, Value string }
		Profile, Replaces string
	}
	finalize struct{ CSR string }
)

// eavesdrop returns what is sent to an endpoint of the rig's CA from now on.
func eavesdrop[T any](r *rig, e pebble.Endpoint) (sofar func() []T) {
	var mu sync.Mutex // guards all
	var all []T
	r.proxy.SetFault(func(q *http.Request, at pebble.Endpoint, _ int) pebble.Reply {
		var v T
		if at == e && json.Unmarshal([]byte(payload(q)), &v) == nil {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, v)
		}
		return nil
	})
	return func() []T {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// nth returns a fault for the first n requests to an endpoint.
func nth(e pebble.Endpoint, n int, reply pebble.Reply) pebble.Fault {
	return func(_ *http.Request, at pebble.Endpoint, i int) pebble.Reply {
		if at == e && i <= n {
			return reply
		}
		return nil
	}
}

// always is enough for nth to last for all of a test.
const always = 1 << 30

// told is all that a Manager said by itself.
type told struct {
	t   *testing.T
	log lockedBuffer // JSON, a line each

	mu     sync.Mutex // guards events
	events []letsencrypt.Event
}

func (t *told) event(e letsencrypt.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
}

// of returns the events of a kind about a host so far, in their order.
func (t *told) of(kind letsencrypt.EventKind, host string) []letsencrypt.Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(t.events), func(e letsencrypt.Event) bool {
		return e.Kind != kind || e.Host != host
	})
}

// A line is what a log line of the Manager's has.
type line struct {
	Level, Msg, Host, CA, Err string
	Next, Expires             time.Time
}

// lines returns the log lines about a host so far, in their order.
func (t *told) lines(host string) []line {
	t.t.Helper()
	var all []line
	for text := range strings.Lines(t.log.String()) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.t.Fatalf("log line %q: %v", text, err)
		}
		if l.Host == host {
			all = append(all, l)
		}
	}
	return all
}

// A lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// failed ends the test unless a Manager told everywhere why the host has no
// certificate, naming the CA, in the given words: in the error that it returned
// (if there was a call to return one), in Status, in an event and in the log.
func (r *rig) failed(m *letsencrypt.Manager, told *told, err error, host string, words ...string) {
	r.t.Helper()
	r.explains("the error", err, host, words)
	r.explains("Status.Err", m.Status(host)[0].Err, host, words)
	eventually(r.t, "an event and a log line", func() bool {
		return len(told.of(letsencrypt.EventFailed, host)) > 0 && len(told.lines(host)) > 0
	})
	events := told.of(letsencrypt.EventFailed, host)
	last := events[len(events)-1]
	r.explains("Event.Err", last.Err, host, words)
	lines := told.lines(host)
	l := lines[len(lines)-1]
	if last.CA != r.proxy.Directory() || l.CA != last.CA {
		r.t.Errorf("Event.CA = %q, the log's %q; want %q", last.CA, l.CA, r.proxy.Directory())
	}
	if last.Next.IsZero() || !l.Next.Equal(last.Next) {
		r.t.Errorf("Event.Next = %v, the log's %v; want the next try", last.Next, l.Next)
	}
	for _, w := range words {
		if !strings.Contains(l.Err, w) {
			r.t.Errorf("log line %+v without %q", l, w)
		}
	}
}

// explains checks that an error is a HostError of host and the rig's CA, in the
// given words.
func (r *rig) explains(what string, err error, host string, words []string) {
	r.t.Helper()
	e, ok := errors.AsType[*letsencrypt.HostError](err)
	if !ok || e.Host != host || e.CA != r.proxy.Directory() {
		r.t.Errorf("%s = %v, want a HostError of %s and %s", what, err, host, r.proxy.Directory())
		return
	}
	for _, w := range append([]string{host, e.CA}, words...) {
		if !strings.Contains(e.Error(), w) {
			r.t.Errorf("%s = %v, want %q in it", what, err, w)
		}
	}
}

// serveArgs are what the child program "serve" is told.
type serveArgs struct {
	Directory           string
	APICert             []byte // PEM
	HTTPAddr, HTTPSAddr string
	CacheFile           string
	Hosts               []string
}

// serveArgs returns the arguments for a child that does what the rig's Managers do.
func (r *rig) serveArgs(cacheFile string, hosts ...string) serveArgs {
	return serveArgs{
		Directory: r.proxy.Directory(),
		APICert:   r.APICert(),
		HTTPAddr:  r.httpAddr(),
		HTTPSAddr: r.tlsAddr(),
		CacheFile: cacheFile,
		Hosts:     hosts,
	}
}

// serveChild obtains certificates and serves until it is killed.
func serveChild(data []byte) error {
	var args serveArgs
	if err := json.Unmarshal(data, &args); err != nil {
		return err
	}
	m := args.manager()
	if err := m.CacheFile(args.CacheFile); err != nil {
		return err
	}
	m.SetHosts(args.Hosts)
	return m.Serve()
}

func (args serveArgs) manager() *letsencrypt.Manager {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(args.APICert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	return &letsencrypt.Manager{
		CAs:       []letsencrypt.CA{{Directory: args.Directory, Client: client}},
		HTTPAddr:  args.HTTPAddr,
		HTTPSAddr: args.HTTPSAddr,
		Limit:     rate.NewLimiter(rate.Inf, 0),
	}
}
