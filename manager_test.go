package letsencrypt_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/catest"
	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/journal"
	"example.com/letsencrypt/internal/shared"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/ocsp"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/time/rate"
)

const day = 24 * time.Hour

// bubble runs a test beside the others, in a bubble where time is fake.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

func TestMain(m *testing.M) {
	// Package net makes what it keeps for good before a bubble could.
	warm := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, io.ErrUnexpectedEOF }}
	warm.LookupHost(context.Background(), "warm.example.") // fails
	before := runtime.NumGoroutine()
	code := m.Run()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); code == 0 && n > before {
		fmt.Fprintf(os.Stderr, "%d goroutines after all tests, want %d:\n", n, before)
		pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		code = 1
	}
	os.Exit(code)
}

// newManager returns a Manager that gets its certificates from the CAs, which
// validate them there. It is shut down with the test.
func newManager(t *testing.T, cas ...*catest.CA) *letsencrypt.Manager {
	t.Helper()
	m := &letsencrypt.Manager{Logger: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	for _, ca := range cas {
		m.CAs = append(m.CAs, letsencrypt.CA{Directory: ca.Directory(), Client: ca.Client()})
	}
	if len(cas) > 0 {
		point(cas, m.TLSConfig(), m)
	}
	t.Cleanup(func() { shutdown(t, m) })
	return m
}

// point has the CAs' validations go to these servers, either of which may be
// nil.
func point(cas []*catest.CA, config *tls.Config, plain http.Handler) {
	for _, ca := range cas {
		ca.Change(func(c *catest.Config) {
			c.TLS = func(string) *tls.Config { return config }
			c.HTTP = plain
		})
	}
}

// newCA returns one of several CAs.
func newCA(t *testing.T, host string) *catest.CA {
	ca := catest.New(t)
	ca.Host = host
	return ca
}

func shutdown(t *testing.T, m *letsencrypt.Manager) {
	t.Helper()
	if err := m.Shutdown(context.Background()); err != nil {
		t.Errorf("Shutdown() = %v, want nil", err)
	}
}

// restart shuts a Manager down and returns a new one that has its state.
func restart(t *testing.T, m *letsencrypt.Manager, cas ...*catest.CA) *letsencrypt.Manager {
	t.Helper()
	shutdown(t, m)
	again := newManager(t, cas...)
	if err := again.Unmarshal(m.Marshal()); err != nil {
		t.Fatalf("Unmarshal(Marshal()) = %v, want nil", err)
	}
	return again
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// A diary holds all that a Manager said of its own accord.
type diary struct {
	testLog
	mu     sync.Mutex
	log    strings.Builder
	events []letsencrypt.Event
}

// keepDiary has a Manager that is not used yet write a diary.
func keepDiary(t *testing.T, m *letsencrypt.Manager) *diary {
	d := &diary{testLog: testLog{t}}
	m.Logger = slog.New(slog.NewTextHandler(d, nil))
	m.OnEvent = func(e letsencrypt.Event) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.events = append(d.events, e)
	}
	return d
}

func (d *diary) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log.Write(p)
	return d.testLog.Write(p)
}

// of returns the events of a kind so far.
func (d *diary) of(kind letsencrypt.EventKind) []letsencrypt.Event {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []letsencrypt.Event
	for _, e := range d.events {
		if e.Kind == kind {
			list = append(list, e)
		}
	}
	return list
}

// lines returns the lines logged so far that contain all the words.
func (d *diary) lines(words ...string) []string {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []string
next:
	for line := range strings.Lines(d.log.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		list = append(list, line)
	}
	return list
}

// pass lets time go by, and what was due in it come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// handshake makes a TLS connection for the server name over a pipe and returns
// the leaf that it is shown.
func handshake(m *letsencrypt.Manager, name string) (*x509.Certificate, error) {
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		conn := tls.Server(server, m.TLSConfig())
		if conn.Handshake() == nil {
			io.Copy(io.Discard, conn)
		}
	}()
	conn := tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

// get asks for a certificate as a handshake does, at a thousandth of the cost,
// and returns its leaf.
func get(m *letsencrypt.Manager, name string) (*x509.Certificate, error) {
	cert, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(cert.Certificate[0])
}

// mustGet ends the test unless there is a certificate that is good now.
func mustGet(t *testing.T, m *letsencrypt.Manager, name string) *x509.Certificate {
	t.Helper()
	leaf, err := get(m, name)
	if err != nil {
		t.Fatalf("GetCertificate(%s) at %v = %v, want a certificate", name, time.Now(), err)
	}
	if err := leaf.VerifyHostname(name); err != nil {
		t.Fatalf("GetCertificate(%s): %v", name, err)
	}
	if now := time.Now(); now.Before(leaf.NotBefore) || !now.Before(leaf.NotAfter) {
		t.Fatalf("GetCertificate(%s) at %v: good from %v to %v", name, now, leaf.NotBefore, leaf.NotAfter)
	}
	return leaf
}

// wantHostError returns what err is to be: a *HostError for the host.
func wantHostError(t *testing.T, err error, host string) *letsencrypt.HostError {
	t.Helper()
	var he *letsencrypt.HostError
	if !errors.As(err, &he) {
		t.Fatalf("error %v for %s, want a *HostError", err, host)
	}
	if he.Host != host || !strings.Contains(err.Error(), host) {
		t.Errorf("error %v is about host %q, want %q", err, he.Host, host)
	}
	return he
}

func wantCount(t *testing.T, ca *catest.CA, endpoint string, want int) {
	t.Helper()
	if n := ca.Count(endpoint); n != want {
		t.Errorf("%d requests to %s, want %d", n, endpoint, want)
	}
}

// unlimited is a Limit that is none.
func unlimited() *rate.Limiter { return rate.NewLimiter(rate.Inf, 1) }

// hostNames returns n names of as many registered domains.
func hostNames(n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("www.site%03d.example", i))
	}
	return names
}

// requests counts the CA's requests to an endpoint, or all for "", from a
// moment on, itself included, and before another.
func requests(ca *catest.CA, endpoint string, from, to time.Time) int {
	n := 0
	for _, r := range ca.Requests() {
		if (endpoint == "" || r.Endpoint == endpoint) && !r.Time.Before(from) && r.Time.Before(to) {
			n++
		}
	}
	return n
}

// A tally refuses orders for some hosts and counts how often each is asked for.
type tally struct {
	mu    sync.Mutex
	count map[string]int
	with  func(host string) *catest.Error // nil, or a nil result: not refused
}

func (y *tally) refuse(names []string, _ string) *catest.Error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.count == nil {
		y.count = make(map[string]int)
	}
	y.count[names[0]]++
	if y.with == nil {
		return nil
	}
	return y.with(names[0])
}

func (y *tally) of(host string) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.count[host]
}

func (y *tally) change(with func(host string) *catest.Error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.with = with
}

func rateLimited(retryAfter string) *catest.Error {
	return &catest.Error{Status: 429, Type: "rateLimited", Detail: "too many of these", RetryAfter: retryAfter}
}

// The first handshake.

func TestFirstHandshakeObtainsACertificate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		leaf, err := handshake(m, "a.example.com")
		if err != nil {
			t.Fatal(err)
		}
		if err := leaf.VerifyHostname("a.example.com"); err != nil {
			t.Error(err)
		}
		again, err := handshake(m, "a.example.com")
		if err != nil || !again.Equal(leaf) {
			t.Errorf("second handshake: another certificate, or %v", err)
		}
		wantCount(t, ca, "newOrder", 1)
	})
}

// The schedule of renewals.

func TestYear(t *testing.T) {
	for _, tt := range []struct {
		name  string
		life  time.Duration
		every time.Duration // between renewals, as planned
		ari   bool
	}{
		{"of 90 days", 90 * day, 58*day + 12*time.Hour, false},
		{"of 45 days", 45 * day, 29*day + 6*time.Hour, false},
		{"of 6 days", 6 * day, 70 * time.Hour, false},
		{"steered by ARI", 90 * day, 60 * day, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) { year(t, tt.life, tt.every, tt.ari) })
		})
	}
}

func year(t *testing.T, life, every time.Duration, ari bool) {
	ca := catest.New(t)
	ca.Lifetime = life
	if ari {
		ca.ARI = catest.SuggestedWindow
	}
	m := newManager(t, ca)
	m.SetHosts([]string{"a.example.com"})
	step := life/100 + time.Minute // so that no moment of the day is preferred
	for begin := time.Now(); time.Since(begin) < 365*day; pass(step) {
		leaf := mustGet(t, m, "a.example.com")
		if left := time.Until(leaf.NotAfter); left < life/4 {
			t.Fatalf("%v left of %v, want a third or more", left, life)
		}
	}
	got, want := len(ca.Issued("a.example.com")), 1+math.Floor(float64(365*day)/float64(every))
	if math.Abs(float64(got)-want) > want/10 {
		t.Errorf("%d certificates in a year, want %v within a tenth", got, want)
	}
	wantCount(t, ca, "newOrder", got)
	wantCount(t, ca, "newAccount", 1)
}

// overSince returns the advice that has certificates replaced that were issued
// before a time, and others when they are old.
func overSince(at time.Time) func(*x509.Certificate) catest.Window {
	return func(leaf *x509.Certificate) catest.Window {
		if leaf.NotBefore.Before(at) {
			return catest.Window{Start: at.Add(-2 * time.Hour), End: at.Add(-time.Hour)}
		}
		return catest.SuggestedWindow(leaf)
	}
}

func TestWindowInThePastReplacesWithinAPoll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ARI = catest.SuggestedWindow
		m := newManager(t, ca)
		m.SetHosts([]string{"a.example.com"})
		first := mustGet(t, m, "a.example.com")
		pass(10*day + time.Hour)
		wantCount(t, ca, "newOrder", 1)
		ca.Change(func(c *catest.Config) { c.ARI = overSince(time.Now()) })
		pass(6*time.Hour + time.Minute)
		if second := mustGet(t, m, "a.example.com"); second.Equal(first) {
			t.Fatal("the certificate is still served that the CA wants replaced")
		}
		if got, want := ca.Orders()[1].Replaces, catest.CertID(first); got != want {
			t.Errorf("replaces %q, want %q", got, want)
		}
		pass(10 * day)
		wantCount(t, ca, "newOrder", 2)
	})
}

func TestChosenMomentSurvivesRestart(t *testing.T) {
	for _, file := range []bool{false, true} {
		t.Run(fmt.Sprintf("file=%v", file), func(t *testing.T) {
			cache := filepath.Join(t.TempDir(), "cache")
			bubble(t, func(t *testing.T) { momentSurvives(t, file, cache) })
		})
	}
}

func momentSurvives(t *testing.T, file bool, cache string) {
	ca := catest.New(t)
	ca.ARI = func(leaf *x509.Certificate) catest.Window {
		return catest.Window{Start: leaf.NotBefore.Add(31 * day), End: leaf.NotBefore.Add(60 * day)}
	}
	ca.Impolite = true // that the CA was asked is not kept
	m := newManager(t, ca)
	open := func() {
		if err := m.CacheFile(cache); err != nil {
			t.Fatal(err)
		}
	}
	if file {
		open()
	}
	m.SetHosts([]string{"a.example.com"})
	mustGet(t, m, "a.example.com")
	pass(time.Hour)
	want := m.Status("a.example.com")[0].Renewal
	for range 5 {
		if file {
			shutdown(t, m)
			m = newManager(t, ca)
			open()
		} else {
			m = restart(t, m, ca)
		}
		mustGet(t, m, "a.example.com")
		pass(12 * time.Hour) // in which it is asked about again
		if got := m.Status("a.example.com")[0].Renewal; !got.Equal(want) {
			t.Errorf("after a restart Renewal = %v, want %v as before", got, want)
		}
	}
	pass(time.Until(want) + time.Minute)
	if n := len(ca.Issued("")); n != 2 {
		t.Errorf("%d certificates after the moment, want 2", n)
	}
}

func TestOrderWithoutReplacesWhenRefused(t *testing.T) {
	for _, refusal := range []*catest.Error{
		{Status: 409, Type: "alreadyReplaced", Detail: "there is another order"},
		{Status: 404, Type: "malformed", Detail: "no such certificate"},
		{Status: 500, Type: "serverInternal", Detail: "database gone"},
		{Status: 403, Type: "unauthorized", Detail: "not your certificate"},
	} {
		t.Run(refusal.Type, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				ca.ARI = catest.SuggestedWindow
				ca.RefuseReplaces = func(string) *catest.Error { return refusal }
				m := newManager(t, ca)
				d := keepDiary(t, m)
				m.SetHosts([]string{"a.example.com"})
				mustGet(t, m, "a.example.com")
				pass(time.Minute) // ARI is asked
				pass(time.Until(m.Status("a.example.com")[0].Renewal) + time.Second)
				orders := ca.Orders()
				if len(orders) != 2 || orders[1].Replaces != "" || orders[1].Status != "valid" {
					t.Errorf("orders %+v, want a second that is valid and replaces nothing", orders)
				}
				wantCount(t, ca, "newOrder", 3)
				if failed := d.of(letsencrypt.EventFailed); len(failed) > 0 {
					t.Errorf("events %+v, want no failure", failed)
				}
			})
		})
	}
}

func TestReplacesOnlyOfTheSameAccount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ARI = catest.SuggestedWindow
		m := newManager(t, ca)
		m.SetHosts([]string{"a.example.com"})
		mustGet(t, m, "a.example.com")
		ca.ForgetAccounts()
		for range 2 {
			if err := m.Renew(t.Context(), "a.example.com"); err != nil {
				t.Fatal(err)
			}
		}
		orders := ca.Orders()
		if got := orders[1].Replaces; got != "" {
			t.Errorf("by a new account: replaces %q, want none", got)
		}
		if got, want := orders[2].Replaces, catest.CertID(ca.Issued("")[1]); got != want {
			t.Errorf("by the same account: replaces %q, want %q", got, want)
		}
		wantCount(t, ca, "newAccount", 3) // one each, and one to see that the first is gone
	})
}

func TestNewCertificateThatIsDueAtOnceIsNoLoop(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*catest.Config)
	}{
		{"says ARI", func(c *catest.Config) {
			c.ARI = func(leaf *x509.Certificate) catest.Window {
				return catest.Window{Start: leaf.NotBefore.Add(-day), End: leaf.NotBefore.Add(-time.Hour)}
			}
		}},
		{"says its life", func(c *catest.Config) { c.Lifetime, c.Backdate = 100*day, 70*day }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				ca.Change(tt.change)
				m := newManager(t, ca)
				d := keepDiary(t, m)
				m.SetHosts([]string{"a.example.com"})
				for range 7 {
					mustGet(t, m, "a.example.com")
					pass(day)
				}
				if n := ca.Count("newOrder"); n > 25 {
					t.Errorf("%d orders in a week, want them to become fewer: 25 at most", n)
				}
				failed := d.of(letsencrypt.EventFailed)
				if len(failed) == 0 {
					t.Fatal("no event says so")
				}
				wantHostError(t, failed[0].Err, "a.example.com")
			})
		})
	}
}

// CAs that are away.

func TestEveryCADead(t *testing.T) {
	for _, tt := range []struct {
		name       string
		life, dead time.Duration
	}{
		{"three weeks", 90 * day, 21 * day},
		{"two days", 6 * day, 2 * day},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) { everyCADead(t, tt.life, tt.dead) })
		})
	}
}

func everyCADead(t *testing.T, life, dead time.Duration) {
	cas := []*catest.CA{newCA(t, "one.test"), newCA(t, "two.test")}
	for _, ca := range cas {
		ca.Lifetime = life
	}
	m := newManager(t, cas...)
	hosts := hostNames(5)
	m.SetHosts(hosts)
	for _, host := range hosts {
		mustGet(t, m, host)
	}
	pass(life / 2 * 9 / 10)
	for time.Now().Before(firstRenewal(m).Add(-time.Hour)) {
		pass(time.Hour)
	}
	for _, ca := range cas {
		ca.Fault(catest.Down)
	}
	begin := time.Now()
	for time.Since(begin) < dead {
		for _, host := range hosts {
			mustGet(t, m, host)
		}
		pass(time.Hour)
	}
	for i, ca := range cas {
		hours := int(dead / time.Hour)
		if n := requests(ca, "", begin, time.Now()); n < hours/2 || n > 3*hours+50 {
			t.Errorf("CA %d: %d requests in %d hours, want one or two an hour", i, n, hours)
		}
		ca.Fault(nil)
	}
	pass(67 * time.Minute) // an hour, a tenth more, and a moment
	for _, host := range hosts {
		if leaf := mustGet(t, m, host); time.Since(leaf.NotBefore) > 67*time.Minute {
			t.Errorf("%s: not renewed within one back-off after the CAs are back", host)
		}
	}
}

// firstRenewal returns when the first host is to be renewed.
func firstRenewal(m *letsencrypt.Manager) time.Time {
	var first time.Time
	for _, s := range m.Status() {
		if first.IsZero() || s.Renewal.Before(first) {
			first = s.Renewal
		}
	}
	return first
}

func TestSecondCAServesWhileTheFirstIsDead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		first.Lifetime, second.Lifetime = 6*day, 6*day
		m := newManager(t, first, second)
		m.SetHosts([]string{"a.example.com"})
		mustGet(t, m, "a.example.com")
		first.Fault(catest.Down)
		begin := time.Now()
		for time.Since(begin) < 10*day {
			leaf := mustGet(t, m, "a.example.com")
			if left := time.Until(leaf.NotAfter); left < 2*day {
				t.Fatalf("%v left, want half of six days or so", left)
			}
			pass(time.Hour)
		}
		if n := len(second.Issued("")); n < 3 || n > 4 {
			t.Errorf("the second CA issued %d certificates in ten days, want 3 or 4", n)
		}
		if n := requests(first, "", begin, time.Now()); n > 30 {
			t.Errorf("%d requests to a dead CA in ten days with four renewals, want 30 at most", n)
		}
		if got := m.Status("a.example.com")[0].CA; got != second.Directory() {
			t.Errorf("Status: CA = %s, want %s", got, second.Directory())
		}
		first.Fault(nil)
		pass(4 * day)
		if got := m.Status("a.example.com")[0].CA; got != first.Directory() {
			t.Errorf("after the first CA is back: CA = %s, want %s", got, first.Directory())
		}
	})
}

func TestPausedCA(t *testing.T) {
	const retryAfter = 2 * time.Hour
	for _, tt := range []struct {
		name     string
		endpoint string
		response catest.Response
	}{
		{"503 to an order", "newOrder", catest.HTML(503, "7200")},
		{"429 without a problem document", "newOrder", catest.HTML(429, "7200")},
		{"503 to a challenge", "challenge", catest.Problem(503, "serverInternal", "later", "7200")},
		{"429 to a nonce", "newNonce", catest.Problem(429, "rateLimited", "later", "7200")},
		{"429 to an account", "newAccount", catest.Problem(429, "rateLimited", "later", "7200")},
		{"503 to the directory", "directory", catest.HTML(503, "7200")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				ca.Latency = 50 * time.Millisecond
				ca.Impolite = tt.endpoint == "newOrder" // orders on their way to it can't be called back
				ca.Fault(catest.On(tt.endpoint, 0, tt.response))
				m := newManager(t, ca)
				m.Limit = unlimited()
				d := keepDiary(t, m)
				hosts := hostNames(50)
				m.SetHosts(hosts)
				begin := time.Now()
				wantHostError(t, m.Manage(t.Context(), hosts...), hosts[0])
				pass(retryAfter - time.Minute)
				if n := requests(ca, "", begin.Add(5*time.Second), time.Now()); n != 0 {
					t.Errorf("%d requests while the CA is paused, want none", n)
				}
				if n := requests(ca, tt.endpoint, begin, time.Now()); n > 32 {
					t.Errorf("%d requests before the pause, want those in flight at most", n)
				}
				probed := time.Now()
				pass(retryAfter)
				if n := requests(ca, tt.endpoint, probed, time.Now()); n != 1 {
					t.Errorf("%d requests after the pause, want one probe", n)
				}
				if n := len(d.of(letsencrypt.EventPaused)); n != 2 {
					t.Errorf("%d events of a pause, want 2", n)
				}
				ca.Fault(nil)
				pass(retryAfter)
				for _, host := range hosts {
					if s := m.Status(host)[0]; s.Serial == "" {
						t.Errorf("%s has no certificate after the pause: %v", host, s.Err)
					}
				}
				if n := len(d.of(letsencrypt.EventResumed)); n != 1 {
					t.Errorf("%d events that the CA works again, want 1", n)
				}
			})
		})
	}
}

func TestErrorNamesEachCABesideItsOwnFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		m := newManager(t, first, second)
		said := map[*catest.CA]string{first: "no, says the first", second: "no, says the second"}
		for ca, words := range said {
			ca.RefuseOrder = func([]string, string) *catest.Error {
				return &catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: words}
			}
		}
		_, err := get(m, "a.example.com")
		wantHostError(t, err, "a.example.com")
		for ca, words := range said {
			before, _, ok := strings.Cut(err.Error(), words)
			if !ok || !strings.HasPrefix(before[max(0, strings.LastIndex(before, "https://")):], ca.Directory()+": ") {
				t.Errorf("error %v, want %q and before it %s", err, words, ca.Directory())
			}
		}
	})
}

// Hosts that a CA limits.

func TestLimitedHostWaitsAndOthersGoOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		y := &tally{with: func(host string) *catest.Error {
			if host == "a.example.com" {
				return rateLimited("7200")
			}
			return nil
		}}
		ca.RefuseOrder = y.refuse
		m := newManager(t, ca)
		begin := time.Now()
		err := m.Manage(t.Context(), "a.example.com")
		he := wantHostError(t, err, "a.example.com")
		if he.CA != ca.Directory() || he.Retry.Before(begin.Add(2*time.Hour)) {
			t.Errorf("HostError{CA: %q, Retry: %v}, want %q and two hours on", he.CA, he.Retry, ca.Directory())
		}
		var problem *acme.Error
		if !errors.As(err, &problem) || problem.Detail != "too many of these" {
			t.Errorf("error %v, want the CA's problem in it", err)
		}
		mustGet(t, m, "b.example.com")
		mustGet(t, m, "c.example.com")
		for time.Since(begin) < 2*time.Hour-2*time.Minute {
			get(m, "a.example.com")
			pass(time.Minute)
		}
		if n := y.of("a.example.com"); n != 1 {
			t.Errorf("asked %d times in two hours, want once", n)
		}
		y.change(nil)
		pass(3 * time.Minute)
		mustGet(t, m, "a.example.com")
		if n := y.of("a.example.com"); n != 2 {
			t.Errorf("asked %d times in all, want twice", n)
		}
	})
}

// TestLimitOnTheSecondChallengesOrderIsHeeded is about how Let's Encrypt says
// that too many validations failed: to the order that follows one.
func TestLimitOnTheSecondChallengesOrderIsHeeded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Fault(catest.On("newOrder", 2, catest.Problem(429, "rateLimited", "too many failed validations", "7200")))
		m := newManager(t, ca)
		m.HTTPHandler(nil)
		point([]*catest.CA{ca}, nil, nil)
		begin := time.Now()
		err := m.Manage(t.Context(), "a.example.com")
		he := wantHostError(t, err, "a.example.com")
		if left := he.Retry.Sub(begin); left < 2*time.Hour || left > 2*time.Hour+time.Minute {
			t.Errorf("Retry is in %v, want the two hours of the Retry-After", left)
		}
		for _, words := range []string{"too many failed validations", "connection"} {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("error %v, want %q in it", err, words)
			}
		}
		point([]*catest.CA{ca}, m.TLSConfig(), m)
		pass(2*time.Hour - time.Second)
		wantCount(t, ca, "newOrder", 2)
		pass(time.Minute)
		mustGet(t, m, "a.example.com")
		wantCount(t, ca, "newOrder", 3)
	})
}

func TestHostLimitedAtOneCAWhileTheOtherIsDown(t *testing.T) {
	for _, tt := range []struct {
		name         string
		limit        time.Duration // at the first CA
		down         time.Duration // the second CA, from the first day on
		renewedFirst bool          // by the first CA
	}{
		{"the limit ends first", 4 * day, 30 * day, true},
		{"the CA is back first", 10 * day, 3 * day, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) { limitedAndDown(t, tt.limit, tt.down, tt.renewedFirst) })
		})
	}
}

func limitedAndDown(t *testing.T, limit, down time.Duration, renewedFirst bool) {
	first, second := newCA(t, "one.test"), newCA(t, "two.test")
	first.Lifetime, second.Lifetime = 6*day, 6*day
	opens := time.Now().Add(limit)
	first.RefuseOrder = func([]string, string) *catest.Error {
		if left := time.Until(opens); left > 0 {
			return rateLimited(fmt.Sprint(int(left.Seconds())))
		}
		return nil
	}
	m := newManager(t, first, second)
	m.Limit = unlimited()
	var asked atomic.Int64 // once for each attempt that begins
	m.Allow = func(context.Context, string) error { asked.Add(1); return nil }
	hosts := []string{"a.example.com", "b.example.com", "c.example.com"} // of one owner
	if err := m.Manage(t.Context(), hosts...); err != nil {
		t.Fatal(err)
	}
	pass(day)
	second.Fault(catest.Down)
	from := asked.Load()
	for end := time.Now().Add(min(limit-day, down) - time.Minute); time.Now().Before(end); {
		pass(time.Minute) // a loop would take for ever
		if n := asked.Load() - from; n > 1000 {
			t.Fatalf("%d attempts began while no CA took orders, want a few for each pause", n)
		}
	}
	if asked.Load() == from {
		t.Error("no attempt began, want the renewals to have fallen due")
	}
	wantCount(t, first, "newOrder", len(hosts))
	if !renewedFirst {
		second.Fault(nil)
	}
	pass(2 * time.Hour) // a pause of the CA may have just begun
	issuer := second
	if renewedFirst {
		issuer = first
	}
	for _, host := range hosts {
		mustGet(t, m, host)
		if s := m.Status(host)[0]; s.CA != issuer.Directory() || time.Until(s.NotAfter) < 5*day {
			t.Errorf("%s has a certificate of %s until %v, want a new one of %s", host, s.CA, s.NotAfter, issuer.Directory())
		}
	}
}

func TestHostsOfSeveralOwnersLimitedPauseTheCA(t *testing.T) {
	for _, tt := range []struct {
		name  string
		hosts []string
		pause bool
	}{
		{"three owners", []string{"a.one.example", "a.two.example", "a.three.example"}, true},
		{"one owner", []string{"a.one.example", "b.one.example", "c.one.example"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) { limitedOwners(t, tt.hosts, tt.pause) })
		})
	}
}

func limitedOwners(t *testing.T, hosts []string, pause bool) {
	ca := catest.New(t)
	retry := map[string]string{hosts[0]: "10800", hosts[1]: "7200", hosts[2]: "14400"}
	y := &tally{with: func(host string) *catest.Error {
		if r, ok := retry[host]; ok {
			return rateLimited(r)
		}
		return nil
	}}
	ca.RefuseOrder = y.refuse
	m := newManager(t, ca)
	m.Limit, m.NewHostLimit = unlimited(), unlimited()
	begin := time.Now()
	for _, host := range hosts {
		m.Manage(t.Context(), host)
	}
	_, err := get(m, "www.four.example")
	if !pause {
		if err != nil {
			t.Errorf("a fourth host: %v, want a certificate", err)
		}
		return
	}
	he := wantHostError(t, err, "www.four.example")
	if want := begin.Add(2 * time.Hour); he.Retry.Sub(want).Abs() > time.Minute {
		t.Errorf("Retry = %v, want %v, the earliest of the three", he.Retry, want)
	}
	if y.of("www.four.example") != 0 {
		t.Error("a fourth host was asked for, want the CA paused")
	}
	pass(2*time.Hour + 5*time.Minute) // the first probe may be one that is limited still
	mustGet(t, m, "www.four.example")
}

func TestHostPausedUntilAPersonActs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		ca.Pause(host)
		m := newManager(t, ca)
		d := keepDiary(t, m)
		begin := time.Now()
		err := m.Manage(t.Context(), host)
		wantHostError(t, err, host)
		const link = "unpause?jwt=eyJhbGciOiJIUzI1NiJ9.secret"
		if !strings.Contains(err.Error(), link) {
			t.Errorf("error %v, want the link in it", err)
		}
		if s := m.Status(host)[0]; s.Err == nil || !strings.Contains(s.Err.Error(), link) {
			t.Errorf("Status: Err = %v, want the link in it", s.Err)
		}
		if len(d.lines("unpause?", host)) == 0 || len(d.lines("eyJ")) != 0 {
			t.Errorf("log %q, want the link in it without its query", d.lines())
		}
		pass(10 * day)
		if n := requests(ca, "newOrder", begin, time.Now()); n < 8 || n > 12 {
			t.Errorf("%d orders in ten days, want one a day", n)
		}
		before := ca.Count("newOrder")
		wantHostError(t, m.Renew(t.Context(), host), host)
		wantCount(t, ca, "newOrder", before+1)
		ca.Unpause(host)
		if err := m.Renew(t.Context(), host); err != nil {
			t.Errorf("Renew after the person acted = %v, want nil", err)
		}
	})
}

// What a restart must not undo.

func TestHundredRestartsUnderALimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.RefuseOrder = func([]string, string) *catest.Error { return rateLimited("86400") }
		m := newManager(t, ca)
		m.SetHosts([]string{"a.example.com"})
		m.Manage(t.Context(), "a.example.com")
		for range 100 {
			m = restart(t, m, ca)
			if _, err := get(m, "a.example.com"); err == nil {
				t.Fatal("a certificate from nowhere")
			}
			pass(14 * time.Minute)
		}
		wantCount(t, ca, "newOrder", 1)
	})
}

func TestPauseOfTheCASurvivesRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Fault(catest.On("newOrder", 0, catest.HTML(503, "86400")))
		m := newManager(t, ca)
		m.SetHosts(hostNames(3))
		m.Manage(t.Context(), hostNames(3)...)
		before := ca.Count("")
		for range 20 {
			m = restart(t, m, ca)
			for _, host := range hostNames(3) {
				get(m, host)
			}
			pass(time.Hour)
		}
		wantCount(t, ca, "", before)
	})
}

func TestBackoffSurvivesRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.RefuseOrder = func([]string, string) *catest.Error {
			return &catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: "not this one"}
		}
		m := newManager(t, ca)
		m.SetHosts([]string{"a.example.com"})
		m.Manage(t.Context(), "a.example.com")
		pass(12 * time.Hour) // until there are hours between attempts
		retry, before := m.Status("a.example.com")[0].Retry, ca.Count("newOrder")
		if before > 12 || time.Until(retry) < time.Hour {
			t.Fatalf("%d orders in twelve hours and the next in %v, want a doubling back-off", before, time.Until(retry))
		}
		m = restart(t, m, ca)
		_, err := get(m, "a.example.com")
		if he := wantHostError(t, err, "a.example.com"); !he.Retry.Equal(retry) || !strings.Contains(he.Error(), "not this one") {
			t.Errorf("after a restart: %v, want the same words and %v", he, retry)
		}
		pass(time.Until(retry) - time.Second)
		wantCount(t, ca, "newOrder", before)
		pass(2 * time.Second)
		get(m, "a.example.com")
		wantCount(t, ca, "newOrder", before+1)
	})
}

func TestSpentTokensSurviveRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.NewHostLimit = unlimited()
		for _, host := range hostNames(20) {
			mustGet(t, m, host)
		}
		for range 3 {
			m = restart(t, m, ca)
			m.NewHostLimit = unlimited()
			if _, err := get(m, "one.more.example"); !errors.Is(err, letsencrypt.ErrRateLimited) {
				t.Errorf("the 21st host after a restart: %v, want %v", err, letsencrypt.ErrRateLimited)
			}
			time.Sleep(time.Second)
		}
		wantCount(t, ca, "newOrder", 20)
	})
}

// The limits of the Manager's own.

func TestDefaultLimits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		names := hostNames(30)
		for _, host := range names[:20] {
			mustGet(t, m, host)
		}
		_, err := get(m, names[20])
		he := wantHostError(t, err, names[20])
		if !errors.Is(err, letsencrypt.ErrRateLimited) || time.Until(he.Retry).Round(time.Minute) != 3*time.Hour {
			t.Errorf("the 21st new host: %v, want %v for three hours", err, letsencrypt.ErrRateLimited)
		}
		if err := m.Manage(t.Context(), names[21]); err != nil { // a minute later
			t.Errorf("Manage while strangers are limited = %v, want nil", err)
		}
		if got := time.Since(ca.Orders()[0].Time).Round(time.Second); got != time.Minute {
			t.Errorf("the 21st token came after %v, want a minute", got)
		}
		if _, err := get(m, names[20]); !errors.Is(err, letsencrypt.ErrRateLimited) {
			t.Errorf("a new host after a minute: %v, want %v", err, letsencrypt.ErrRateLimited)
		}
		pass(time.Until(he.Retry))
		mustGet(t, m, names[20])
		if _, err := get(m, names[22]); !errors.Is(err, letsencrypt.ErrRateLimited) {
			t.Errorf("two new hosts in three hours: %v, want %v", err, letsencrypt.ErrRateLimited)
		}
	})
}

func TestNewHostLimitIsNoneWhereAllowVouches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		m.Limit = unlimited()
		m.Allow = func(context.Context, string) error { return nil }
		for _, host := range hostNames(25) {
			mustGet(t, m, host)
		}
	})
}

func TestFiveHostsEver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		m.NewHostLimit = rate.NewLimiter(0, 5)
		names := hostNames(6)
		for range 9 {
			for _, host := range names[:5] {
				mustGet(t, m, host)
			}
			_, err := get(m, names[5])
			if he := wantHostError(t, err, names[5]); !errors.Is(err, letsencrypt.ErrRateLimited) || !he.Retry.IsZero() {
				t.Fatalf("the sixth host: %v, want %v and no time to try again", err, letsencrypt.ErrRateLimited)
			}
			pass(15 * time.Hour)
		}
		if n := len(ca.Issued(names[0])); n < 2 {
			t.Errorf("%d certificates in five days for one of the five, want it renewed", n)
		}
	})
}

func TestHandshakeNeverWaitsForAToken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		m.Limit = rate.NewLimiter(rate.Every(time.Hour), 1)
		mustGet(t, m, "a.example.com")
		begin := time.Now()
		_, err := get(m, "b.example.com")
		if he := wantHostError(t, err, "b.example.com"); !errors.Is(err, letsencrypt.ErrRateLimited) || time.Until(he.Retry).Round(time.Minute) != time.Hour {
			t.Errorf("handshake: %v, want %v for an hour", err, letsencrypt.ErrRateLimited)
		}
		if _, err := m.Cert("b.example.com"); !errors.Is(err, letsencrypt.ErrRateLimited) {
			t.Errorf("Cert: %v, want %v", err, letsencrypt.ErrRateLimited)
		}
		if waited := time.Since(begin); waited != 0 {
			t.Errorf("waited %v, want not at all", waited)
		}
	})
}

func TestManageWaitsForTokensUntilItsContextEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.Limit = rate.NewLimiter(rate.Every(time.Hour), 1)
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Minute)
		defer cancel()
		names := hostNames(3)
		err := m.Manage(ctx, names...)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Manage = %v, want %v", err, context.DeadlineExceeded)
		}
		if n := len(ca.Orders()); n != 2 {
			t.Errorf("%d orders in 90 minutes, want 2", n)
		}
		for _, host := range names {
			if failed := strings.Contains(err.Error(), host); failed == (len(ca.Issued(host)) > 0) {
				t.Errorf("Manage = %v, want it to name the host without a certificate alone", err)
			}
		}
		pass(time.Hour)
		if n := len(ca.Orders()); n != 3 {
			t.Errorf("%d orders after Manage's end, want the third host's too", n)
		}
	})
}

func TestHostsTakenOffTheListAreNotOrdered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		y := new(tally)
		ca.RefuseOrder = y.refuse
		m := newManager(t, ca)
		m.Limit = rate.NewLimiter(rate.Every(time.Hour), 1)
		wrong := hostNames(5)
		m.SetHosts(wrong)
		err := m.Manage(deadline(t, time.Minute), wrong...) // one of them has the token
		wantHostError(t, err, wrong[1])
		wantCount(t, ca, "newOrder", 1)
		right := []string{"a.example.com", "b.example.com"}
		m.SetHosts(right)
		if err := m.Manage(deadline(t, 150*time.Minute), right...); err != nil {
			t.Errorf("Manage = %v, want the next two tokens for the hosts on the list", err)
		}
		pass(day)
		wantCount(t, ca, "newOrder", 3)
	})
}

func TestManageThatWaitsIsToldOfTheNewList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.Limit = rate.NewLimiter(rate.Every(time.Hour), 1)
		mustGet(t, m, "first.example.com")
		waiting := make(chan error)
		go func() { waiting <- m.Manage(t.Context(), "a.example.com") }()
		pass(time.Minute)
		m.SetHosts([]string{})
		err := <-waiting
		wantHostError(t, err, "a.example.com")
		if !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Errorf("Manage = %v, want %v", err, letsencrypt.ErrHostNotAllowed)
		}
		wantCount(t, ca, "newOrder", 1)
	})
}

func TestTwoThatShareTheStateOrderOnce(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		hosts := hostNames(6)
		var both []*letsencrypt.Manager
		var plain http.Handler
		for range 2 {
			m := newManager(t)
			m.CAs = []letsencrypt.CA{{Directory: ca.Directory(), Client: ca.Client()}}
			m.Limit = rate.NewLimiter(rate.Every(18*time.Hour), 6)
			if err := m.CacheFile(cache); err != nil {
				t.Fatal(err)
			}
			m.SetHosts(hosts)
			plain = m.HTTPHandler(plain)
			both = append(both, m)
		}
		point([]*catest.CA{ca}, nil, plain)
		for _, m := range both {
			if err := m.Manage(deadline(t, 20*day), hosts...); err != nil {
				t.Fatal(err)
			}
		}
		pass(90 * day)
		for _, host := range hosts {
			if n := len(ca.Issued(host)); n != 2 {
				t.Errorf("%d certificates for %s in ninety days, want 2", n, host)
			}
		}
	})
}

func TestRenewalPastItsMomentGoesBeforeHandshakes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.Limit = rate.NewLimiter(rate.Every(12*time.Hour), 1)
		m.SetHosts([]string{"a.example.com", "b.example.com", "c.example.com"})
		first := mustGet(t, m, "a.example.com")
		pass(time.Until(m.Status("a.example.com")[0].Renewal) - time.Minute)
		token := time.Now().Add(12*time.Hour + time.Nanosecond)
		mustGet(t, m, "b.example.com") // takes the token that the renewal will wait for
		pass(2 * time.Minute)
		if _, err := get(m, "c.example.com"); !errors.Is(err, letsencrypt.ErrRateLimited) {
			t.Errorf("a new host while a renewal waits: %v, want %v", err, letsencrypt.ErrRateLimited)
		}
		time.Sleep(time.Until(token)) // then the next one is there
		for _, o := range together(m, 20, "c.example.com") {
			if !errors.Is(o.err, letsencrypt.ErrRateLimited) {
				t.Fatalf("a new host when a renewal waits for the same token: %v, want %v", o.err, letsencrypt.ErrRateLimited)
			}
		}
		pass(time.Second)
		if mustGet(t, m, "a.example.com").Equal(first) {
			t.Error("the renewal did not get the token that it waited for")
		}
	})
}

func TestMostUrgentRenewalGoesFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 60 * day // renewed on day 39 or 40
		m := newManager(t, ca)
		m.Limit = rate.NewLimiter(rate.Every(4*day), 3)
		names := hostNames(6)
		m.SetHosts(names)
		for _, host := range names[:3] {
			mustGet(t, m, host)
			pass(time.Minute)
		}
		pass(37*day + 20*time.Hour)
		for _, host := range names[3:] {
			mustGet(t, m, host) // and no token is left for four days
		}
		pass(13 * day)
		var order []string
		for _, o := range ca.Orders()[6:] {
			order = append(order, o.Names[0])
		}
		if got, want := fmt.Sprint(order), fmt.Sprint(names[:3]); got != want {
			t.Errorf("renewed in the order %s, want %s, by expiry", got, want)
		}
	})
}

func TestShortageIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		m.Limit = rate.NewLimiter(rate.Every(6*time.Hour), 100)
		d := keepDiary(t, m)
		m.SetHosts(hostNames(100))
		for _, host := range hostNames(100) {
			mustGet(t, m, host)
		}
		pass(3*day + time.Hour)
		events := d.of(letsencrypt.EventLimit)
		if len(events) == 0 {
			t.Fatal("no event says that Limit is too low")
		}
		const advice = "set Limit to one every "
		err := events[len(events)-1].Err
		_, after, ok := strings.Cut(err.Error(), advice)
		every, _, _ := strings.Cut(after, " ")
		if d, perr := time.ParseDuration(every); !ok || perr != nil || d < 20*time.Minute || d > 6*time.Hour {
			t.Errorf("the event says %q, want %q and an hour or so", err, advice)
		}
		if len(d.lines("level=WARN", advice)) == 0 {
			t.Error("no line of the log says that Limit is too low")
		}
		said := 0
		for _, s := range m.Status() {
			if s.Err != nil && strings.Contains(s.Err.Error(), advice) {
				said++
			}
		}
		if said < 50 {
			t.Errorf("Status says so of %d hosts, want those that wait", said)
		}
	})
}

// Who may have a certificate.

// wantAllowed reports an error unless a handshake for each host gets a
// certificate, or if allowed is false is refused with not a word to the CA.
func wantAllowed(t *testing.T, m *letsencrypt.Manager, ca *catest.CA, allowed bool, hosts ...string) {
	t.Helper()
	for _, host := range hosts {
		before := ca.Count("")
		_, err := get(m, host)
		if allowed && err != nil {
			t.Errorf("%s: %v, want a certificate", host, err)
		}
		if !allowed && !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Errorf("%s: error %v, want %v", host, err, letsencrypt.ErrHostNotAllowed)
		}
		if !allowed && ca.Count("") != before {
			t.Errorf("%s: the CA was asked about a host that is refused", host)
		}
	}
}

func TestList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.SetHosts([]string{"A.example.com.", "bücher.example.com"})
		wantAllowed(t, m, ca, true, "a.example.com", "A.EXAMPLE.com", "xn--bcher-kva.example.com")
		wantAllowed(t, m, ca, false, "b.example.com", "x.a.example.com", "example.com")
		m.SetHosts([]string{})
		wantAllowed(t, m, ca, false, "b.example.com")
		wantAllowed(t, m, ca, true, "a.example.com") // it is held already
		m.SetHosts(nil)
		wantAllowed(t, m, ca, true, "b.example.com")
		if n := len(ca.Orders()); n != 3 {
			t.Errorf("%d orders, want 3", n)
		}
	})
}

func TestCertManageAndRenewObeyTheList(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule func(m *letsencrypt.Manager)
	}{
		{"list", func(m *letsencrypt.Manager) { m.SetHosts([]string{"a.example.com"}) }},
		{"empty list", func(m *letsencrypt.Manager) { m.SetHosts([]string{}) }},
		{"Allow", func(m *letsencrypt.Manager) {
			m.Allow = func(context.Context, string) error { return errors.New("no") }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				m := newManager(t, ca)
				tt.rule(m)
				_, certErr := m.Cert("b.example.com")
				for method, err := range map[string]error{
					"Cert":   certErr,
					"Manage": m.Manage(t.Context(), "b.example.com"),
					"Renew":  m.Renew(t.Context(), "b.example.com"),
				} {
					if !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
						t.Errorf("%s = %v, want %v", method, err, letsencrypt.ErrHostNotAllowed)
					}
					wantHostError(t, err, "b.example.com")
				}
				wantCount(t, ca, "", 0)
			})
		})
	}
}

func TestCertMayNameAnyHostWhereNothingRules(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.NewHostLimit = rate.NewLimiter(rate.Every(day), 1)
		wantAllowed(t, m, ca, false, "intranet") // for clients it is no name
		_, err := m.Cert("intranet")
		wantHostError(t, err, "intranet")
		if !strings.Contains(err.Error(), "no public name") {
			t.Errorf("Cert(intranet) = %v, want what the CA says", err)
		}
		_, err = m.Cert("extranet")
		wantHostError(t, err, "extranet")
		if !errors.Is(err, letsencrypt.ErrRateLimited) {
			t.Errorf("Cert(extranet) = %v, want %v", err, letsencrypt.ErrRateLimited)
		}
		wantCount(t, ca, "newOrder", 1)
		m.SetHosts([]string{"a.example.com"})
		if _, err := m.Cert("extranet"); !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Errorf("Cert(extranet) with a list = %v, want %v", err, letsencrypt.ErrHostNotAllowed)
		}
	})
}

func TestListAndAllow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		var asked []string
		m.Allow = func(_ context.Context, host string) error {
			asked = append(asked, host)
			if strings.HasPrefix(host, "yes.") {
				return nil
			}
			return errors.New("who is that?")
		}
		m.SetHosts([]string{"listed.example.com"})
		wantAllowed(t, m, ca, true, "listed.example.com", "yes.example.com")
		wantAllowed(t, m, ca, false, "no.example.com")
		if got, want := fmt.Sprint(asked), "[yes.example.com no.example.com]"; got != want {
			t.Errorf("Allow was asked about %s, want %s", got, want)
		}
		if _, err := get(m, "no.example.com"); !strings.Contains(err.Error(), "who is that?") {
			t.Errorf("error %v, want Allow's in it", err)
		}
	})
}

func TestRefusalOfAllowIsRemembered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		asked := 0
		m.Allow = func(context.Context, string) error { asked++; return errors.New("no") }
		for range 59 {
			get(m, "a.example.com")
			pass(time.Second)
		}
		if asked != 1 {
			t.Errorf("Allow was asked %d times in a minute, want once", asked)
		}
		pass(2 * time.Second)
		get(m, "a.example.com")
		if asked != 2 {
			t.Errorf("Allow was asked %d times in a minute and a bit, want twice", asked)
		}
	})
}

// A client is a connection from an address.
type client struct {
	net.Conn
	local, remote net.Addr
}

func (c client) LocalAddr() net.Addr           { return c.local }
func (c client) RemoteAddr() net.Addr          { return c.remote }
func (c client) SetDeadline(t time.Time) error { return nil }
func tcpAddr(addr string, port int) *net.TCPAddr {
	return &net.TCPAddr{IP: net.ParseIP(addr), Port: port}
}

func TestAllowSeesTheClientsAddress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		var seen []net.Addr
		m.Allow = func(ctx context.Context, _ string) error {
			seen = append(seen, letsencrypt.ClientAddr(ctx))
			return nil
		}
		from := tcpAddr("192.0.2.7", 4711)
		hello := &tls.ClientHelloInfo{ServerName: "a.example.com", Conn: client{remote: from}}
		if _, err := m.GetCertificate(hello); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Cert("b.example.com"); err != nil {
			t.Fatal(err)
		}
		if len(seen) != 2 || seen[0] != from || seen[1] != nil {
			t.Errorf("Allow saw the clients %v, want %v for a handshake and nil for Cert", seen, from)
		}
	})
}

func TestAllowIsAskedAgainBeforeRenewal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		d := keepDiary(t, m)
		var refused atomic.Bool
		var asked atomic.Int32
		m.Allow = func(context.Context, string) error {
			if asked.Add(1); refused.Load() {
				return errors.New("not any more")
			}
			return nil
		}
		mustGet(t, m, "a.example.com")
		pass(4 * day)
		if n, asked := len(ca.Issued("")), asked.Load(); n != 2 || asked != 2 {
			t.Errorf("%d certificates, Allow asked %d times: want one renewal, and Allow asked", n, asked)
		}
		expiry := ca.Issued("")[1].NotAfter
		pass(time.Until(expiry) - day)
		if n, asked := len(ca.Issued("")), asked.Load(); n != 2 || asked != 2 {
			t.Errorf("%d certificates, Allow asked %d times: want no renewal that no client asked for", n, asked)
		}
		refused.Store(true)
		for time.Now().Before(expiry) {
			mustGet(t, m, "a.example.com")
			pass(10 * time.Minute)
		}
		if n := len(ca.Issued("")); n != 2 {
			t.Errorf("%d certificates, want no renewal that Allow refuses", n)
		}
		if n := asked.Load(); n < 3 || n > 2+6*24+1 {
			t.Errorf("Allow was asked %d times, want it asked when a client asks", n)
		}
		pass(time.Hour)
		if _, err := get(m, "a.example.com"); !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Errorf("after the certificate expired: %v, want %v", err, letsencrypt.ErrHostNotAllowed)
		}
		if failed := d.of(letsencrypt.EventFailed); len(failed) != 0 {
			t.Errorf("events %v: a refusal is none", failed)
		}
		pass(30 * day)
		if s := m.Status(); len(s) != 0 {
			t.Errorf("Status() = %+v, want the host forgotten", s)
		}
	})
}

type timeout struct{ error }

func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

func TestUnreachableAllowStopsNewHostsButNoRenewal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		var unreachable atomic.Bool
		m.Allow = func(context.Context, string) error {
			if unreachable.Load() {
				return timeout{errors.New("no answer")}
			}
			return nil
		}
		mustGet(t, m, "a.example.com")
		unreachable.Store(true)
		for range 50 {
			mustGet(t, m, "a.example.com")
			pass(2 * time.Hour)
		}
		if n := len(ca.Issued("a.example.com")); n != 2 {
			t.Errorf("%d certificates in four days, want it renewed", n)
		}
		_, err := get(m, "b.example.com")
		if he := wantHostError(t, err, "b.example.com"); errors.Is(err, letsencrypt.ErrHostNotAllowed) || !strings.Contains(he.Error(), "no answer") {
			t.Errorf("a new host: %v, want it to say that Allow could not tell", err)
		}
		unreachable.Store(false)
		pass(6 * time.Second)
		mustGet(t, m, "b.example.com")
	})
}

func TestUnlistedHostIsRenewedOnlyIfAskedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		mustGet(t, m, "asked.example.com")
		mustGet(t, m, "idle.example.com")
		if err := m.Manage(t.Context(), "managed.example.com"); err != nil {
			t.Fatal(err)
		}
		pass(4 * day) // all are renewed: who waited for the first was served it
		mustGet(t, m, "asked.example.com")
		pass(4 * day)
		for host, want := range map[string]int{"asked.example.com": 3, "idle.example.com": 2, "managed.example.com": 3} {
			if n := len(ca.Issued(host)); n != want {
				t.Errorf("%s: %d certificates, want %d", host, n, want)
			}
		}
		pass(12 * day)
		if s := m.Status("idle.example.com")[0]; s.Serial != "" {
			t.Errorf("Status(idle) = %+v, want it forgotten when it has expired", s)
		}
	})
}

func TestBadEntriesOfTheList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		d := keepDiary(t, m)
		bad := []string{"host.example:443", "https://example.com/", "", "a..example.com", "*.*.example.com"}
		m.SetHosts(append(bad, "good.example.com"))
		mustGet(t, m, "good.example.com")
		pass(day)
		said := make(map[string]bool)
		for _, e := range d.of(letsencrypt.EventFailed) {
			said[e.Host] = e.Err != nil
		}
		errs := make(map[string]error)
		for _, s := range m.Status() {
			errs[s.Host] = s.Err
		}
		for _, host := range bad {
			if !said[host] {
				t.Errorf("%q: no event", host)
			}
			if he := new(letsencrypt.HostError); !errors.As(errs[host], &he) {
				t.Errorf("%q: Status has the error %v, want a *HostError", host, errs[host])
			}
			if n := len(d.lines("host="+logged(host), "level=ERROR")); n != 1 {
				t.Errorf("%q: %d lines in the log, want 1", host, n)
			}
		}
		if errs["good.example.com"] != nil {
			t.Errorf("the good entry: %v", errs["good.example.com"])
		}
		wantCount(t, ca, "newOrder", 1)
	})
}

// logged returns a value as slog writes it.
func logged(s string) string {
	if s == "" || strings.ContainsAny(s, `= "`) {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func TestCallbacksMayCallTheManager(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		calls := 0
		m.Allow = func(ctx context.Context, host string) error {
			m.Status()
			m.Marshal()
			if host == "a.example.com" {
				_, err := m.Cert("inner.example.com")
				return err
			}
			return nil
		}
		m.OnEvent = func(e letsencrypt.Event) {
			calls++
			m.Status()
			m.SetHosts([]string{"listed.example.com"})
			if e.Host == "a.example.com" {
				if err := m.Renew(context.Background(), "inner.example.com"); err != nil {
					t.Errorf("Renew in OnEvent = %v, want nil", err)
				}
			}
		}
		mustGet(t, m, "a.example.com")
		pass(time.Minute)
		if calls != 4 { // the account, both hosts, and one again
			t.Errorf("%d events, want 4", calls)
		}
	})
}

func TestNames(t *testing.T) {
	long := strings.Repeat("a23456789.", 26) + "com"
	for _, tt := range []struct{ name, host string }{
		{"capitals", "A.EXAMPLE.COM"},
		{"trailing dot", "a.example.com."},
		{"both", "A.Example.Com."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				m := newManager(t, ca)
				first := mustGet(t, m, "a.example.com")
				if leaf, err := get(m, tt.host); err != nil || !leaf.Equal(first) {
					t.Errorf("GetCertificate(%q) = another, %v, want that of a.example.com", tt.host, err)
				}
				wantCount(t, ca, "newOrder", 1)
			})
		})
	}
	for _, host := range []string{
		"localhost", "com", long, strings.Repeat("a", 64) + ".example.com", "a\x00.example.com", "%61.example.com",
		"a..example.com", ".example.com", "bücher.example.com\xff", "192.0.2.1", "2001:db8::1", "[2001:db8::1]", "*.example.com",
		"a.local", "_.example.com:443", "a/b.example.com", "a b.example.com",
	} {
		t.Run(fmt.Sprintf("refused %.20q", host), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				m := newManager(t, ca)
				wantAllowed(t, m, ca, false, host)
				if _, err := get(m, host); len(err.Error()) > 1500 || !utf8.ValidString(err.Error()) || strings.Contains(err.Error(), "\x00") {
					t.Errorf("error %q, want it fit to be printed", err)
				}
				if s := m.Status(); len(s) != 0 {
					t.Errorf("Status() = %+v, want nothing known of it", s)
				}
			})
		})
	}
}

// Flights.

// An outcome is what became of one of several handshakes.
type outcome struct {
	leaf *x509.Certificate
	err  error
	took time.Duration
}

// together makes n handshakes at once and returns their outcomes.
func together(m *letsencrypt.Manager, n int, host string) []outcome {
	var all sync.WaitGroup
	list := make([]outcome, n)
	begin := time.Now()
	for i := range list {
		all.Go(func() {
			leaf, err := get(m, host)
			list[i] = outcome{leaf, err, time.Since(begin)}
		})
	}
	all.Wait()
	return list
}

func TestOneOrderForManyHandshakes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 5 * time.Second
		m := newManager(t, ca)
		list := together(m, 20, "a.example.com")
		for _, o := range list {
			if o.err != nil || !o.leaf.Equal(list[0].leaf) {
				t.Errorf("handshake: %v, want the one certificate", o.err)
			}
		}
		wantCount(t, ca, "newOrder", 1)
	})
}

func TestOneErrorForManyHandshakes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Latency = time.Second
		ca.RefuseOrder = func([]string, string) *catest.Error {
			return &catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: "on a list of ours"}
		}
		m := newManager(t, ca)
		for _, o := range together(m, 20, "a.example.com") {
			he := wantHostError(t, o.err, "a.example.com")
			var problem *acme.Error
			if !errors.As(o.err, &problem) || problem.Detail != "on a list of ours" || he.CA != ca.Directory() {
				t.Errorf("handshake: %v, want the problem of %s", o.err, ca.Directory())
			}
		}
		wantCount(t, ca, "newOrder", 1)
	})
}

func TestWaitersAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 70 * time.Second // longer than a client waits
		m := newManager(t, ca)
		atOnce, waited := 0, 0
		for _, o := range together(m, 25, "a.example.com") {
			wantHostError(t, o.err, "a.example.com")
			switch o.took {
			case 0:
				atOnce++
			case time.Minute:
				waited++
			}
		}
		if atOnce != 5 || waited != 20 {
			t.Errorf("of 25 handshakes %d failed at once and %d after a minute, want 5 and 20", atOnce, waited)
		}
		pass(20 * time.Second)
		mustGet(t, m, "a.example.com")
		wantCount(t, ca, "newOrder", 1)
	})
}

func TestWaitersInAllAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 5 * time.Second
		m := newManager(t, ca)
		m.Limit, m.NewHostLimit = unlimited(), unlimited()
		var mu sync.Mutex
		var all sync.WaitGroup
		atOnce := 0
		for _, host := range hostNames(60) {
			all.Go(func() {
				for _, o := range together(m, 20, host) {
					mu.Lock()
					if o.err != nil && o.took == 0 {
						atOnce++
					}
					mu.Unlock()
				}
			})
		}
		all.Wait()
		if atOnce != 200 {
			t.Errorf("of 1,200 handshakes %d failed at once, want 200", atOnce)
		}
	})
}

func TestClientThatGivesUpDoesNotEndTheOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 10 * time.Second
		m := newManager(t, ca)
		client, server := net.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		go tls.Client(client, &tls.Config{ServerName: "a.example.com", InsecureSkipVerify: true}).Handshake()
		if err := tls.Server(server, m.TLSConfig()).HandshakeContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("handshake = %v, want %v", err, context.DeadlineExceeded)
		}
		client.Close()
		server.Close()
		pass(20 * time.Second)
		begin := time.Now()
		mustGet(t, m, "a.example.com")
		if waited := time.Since(begin); waited != 0 {
			t.Errorf("the next client waited %v, want the certificate there", waited)
		}
		wantCount(t, ca, "newOrder", 1)
	})
}

func TestRenewJoinsAFlight(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 5 * time.Second
		m := newManager(t, ca)
		var both sync.WaitGroup
		both.Go(func() { mustGet(t, m, "a.example.com") })
		synctest.Wait()
		both.Go(func() {
			if err := m.Renew(t.Context(), "a.example.com"); err != nil {
				t.Errorf("Renew = %v, want nil", err)
			}
		})
		both.Wait()
		wantCount(t, ca, "newOrder", 1)
	})
}

func TestRenewSkipsTheBackoffOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		y := &tally{with: func(string) *catest.Error {
			return &catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: "no"}
		}}
		ca.RefuseOrder = y.refuse
		m := newManager(t, ca)
		for i := range 3 {
			wantHostError(t, m.Renew(t.Context(), "a.example.com"), "a.example.com")
			if n := y.of("a.example.com"); n != i+1 {
				t.Errorf("asked %d times after %d calls of Renew", n, i+1)
			}
			if _, err := get(m, "a.example.com"); err == nil || y.of("a.example.com") != i+1 {
				t.Errorf("a handshake skipped the back-off (%v)", err)
			}
		}
		y.change(nil)
		if err := m.Renew(t.Context(), "a.example.com"); err != nil {
			t.Errorf("Renew = %v, want nil", err)
		}
		mustGet(t, m, "a.example.com")
	})
}

func TestManageWithinTheBackoffIsTriedAgainAfterIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		y := &tally{with: func(string) *catest.Error {
			return &catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: "no"}
		}}
		ca.RefuseOrder = y.refuse
		m := newManager(t, ca)
		if _, err := get(m, "a.example.com"); err == nil {
			t.Fatal("a certificate from nowhere")
		}
		y.change(nil)
		he := wantHostError(t, m.Manage(t.Context(), "a.example.com"), "a.example.com")
		if n := y.of("a.example.com"); n != 1 || time.Until(he.Retry) > 2*time.Minute {
			t.Errorf("asked %d times, and again in %v, want the first back-off to hold", n, time.Until(he.Retry))
		}
		pass(time.Until(he.Retry) + time.Second)
		if s := m.Status("a.example.com")[0]; s.Serial == "" {
			t.Errorf("no certificate after the back-off: %v", s.Err)
		}
	})
}

func TestOneBadHostOfFifty(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		hosts := hostNames(50)
		y := &tally{with: func(host string) *catest.Error {
			if host == hosts[17] {
				return &catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: "this one not"}
			}
			return nil
		}}
		ca.RefuseOrder = y.refuse
		m := newManager(t, ca)
		err := m.Manage(t.Context(), hosts...)
		wantHostError(t, err, hosts[17])
		for i, host := range hosts {
			if i != 17 {
				mustGet(t, m, host)
			}
			if strings.Contains(err.Error(), host) != (i == 17) {
				t.Errorf("Manage = %v, want it to name %s alone", err, hosts[17])
			}
		}
	})
}

// Challenges.

func TestChallengeThatCanBePassedIsFound(t *testing.T) {
	for _, tt := range []struct {
		want string
		off  func(*catest.Config)
	}{
		{"http-01", func(c *catest.Config) { c.TLS = nil }},
		{"tls-alpn-01", func(c *catest.Config) { c.HTTP = nil }},
	} {
		t.Run(tt.want, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				for i := range 8 { // since the first choice is random
					ca := catest.New(t)
					m := newManager(t, ca)
					point([]*catest.CA{ca}, m.TLSConfig(), m.HTTPHandler(nil))
					ca.Change(tt.off)
					mustGet(t, m, "a.example.com")
					point([]*catest.CA{ca}, m.TLSConfig(), m)
					if n := len(ca.Orders()); n > 2 || n != len(ca.Validations()) {
						t.Errorf("%d: %d orders, %d validations, want one each and two at most", i, n, len(ca.Validations()))
					}
					for range 4 {
						if err := m.Renew(t.Context(), "a.example.com"); err != nil {
							t.Fatal(err)
						}
						v := ca.Validations()
						if got := v[len(v)-1].Type; got != tt.want {
							t.Errorf("%d: at renewal %s was tried, want %s, which worked last", i, got, tt.want)
						}
					}
					if got := m.Status("a.example.com")[0].Challenge; got != tt.want {
						t.Errorf("Status: Challenge = %s, want %s", got, tt.want)
					}
				}
			})
		})
	}
}

func TestChallengeThatFailedLatelyIsTriedLast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for i := range 8 {
			ca := catest.New(t)
			m := newManager(t, ca)
			m.HTTPHandler(nil)
			m.Limit = rate.NewLimiter(rate.Every(time.Hour), 1) // one try at a time
			point([]*catest.CA{ca}, nil, nil)
			for range 2 {
				if _, err := get(m, "a.example.com"); err == nil {
					t.Fatal("a certificate without a validation")
				}
				pass(time.Hour)
			}
			v := ca.Validations()
			if len(v) < 2 || v[0].Type == v[1].Type {
				t.Errorf("%d: validations %+v, want the other type when one has failed", i, v)
			}
			shutdown(t, m)
		}
	})
}

func TestChallengeLeftPendingEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.LeavePending = true
		m := newManager(t, ca)
		point([]*catest.CA{ca}, nil, nil)
		begin := time.Now()
		err := m.Manage(t.Context(), "a.example.com")
		wantHostError(t, err, "a.example.com")
		var problem *acme.Error
		if !errors.As(err, &problem) {
			t.Errorf("Manage = %v, want the CA's words on the challenge", err)
		}
		if took := time.Since(begin); took > 2*91*time.Second {
			t.Errorf("it took %v, want two orders of 90 s at most", took)
		}
	})
}

func TestGetCertificateAloneIsAdvised(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t)
		m.CAs = []letsencrypt.CA{{Directory: ca.Directory(), Client: ca.Client()}}
		point([]*catest.CA{ca}, &tls.Config{GetCertificate: m.GetCertificate, NextProtos: []string{"http/1.1"}}, nil)
		_, err := get(m, "a.example.com")
		wantHostError(t, err, "a.example.com")
		for _, advice := range []string{`"acme-tls/1" in NextProtos`, "HTTPHandler"} {
			if !strings.Contains(err.Error(), advice) {
				t.Errorf("error %v, want the advice %q", err, advice)
			}
		}
		point([]*catest.CA{ca}, nil, m)
		m.ServeHTTP(discard{}, &http.Request{Method: "GET", Host: "a.example.com", URL: mustURL("/")})
		if err := m.Renew(t.Context(), "a.example.com"); err != nil {
			t.Errorf("with http-01: Renew = %v, want nil", err)
		}
	})
}

// A discard is a ResponseWriter that nobody reads.
type discard struct{}

func (discard) Header() http.Header         { return make(http.Header) }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// CAs that are at fault.

func TestFlawedCertificateIsNotServed(t *testing.T) {
	for _, tt := range []struct {
		flaw catest.Flaw
		says string
	}{
		{catest.OtherKey, "key"},
		{catest.OtherName, "wrong.test"},
		{catest.Expired, "expired"},
		{catest.NotYetValid, "not valid"},
		{catest.LongChain, "chain"},
		{catest.EmptyChain, ""},
		{catest.Garbage, ""},
	} {
		t.Run(string(tt.flaw), func(t *testing.T) {
			bubble(t, func(t *testing.T) { flawed(t, tt.flaw, tt.says) })
		})
	}
}

func flawed(t *testing.T, flaw catest.Flaw, says string) {
	const host = "a.example.com"
	ca := catest.New(t)
	ca.Flaw = flaw
	m := newManager(t, ca)
	d := keepDiary(t, m)
	m.SetHosts([]string{host})
	begin := time.Now()
	err := m.Manage(t.Context(), host)
	he := wantHostError(t, err, host)
	if he.CA != ca.Directory() || !strings.Contains(err.Error(), says) {
		t.Errorf("Manage = %v, want %q of %s", err, says, ca.Directory())
	}
	if s := m.Status(host)[0]; s.Err == nil || s.Serial != "" || !s.Retry.After(time.Now()) {
		t.Errorf("Status = %+v, want the error and the time of the next try", s)
	}
	if failed := d.of(letsencrypt.EventFailed); len(failed) != 1 || failed[0].Host != host || failed[0].CA != ca.Directory() || failed[0].Next.IsZero() {
		t.Errorf("events %+v, want one", failed)
	}
	if n := len(d.lines("host="+host, "ca="+ca.Directory(), "err=", "next=")); n != 1 {
		t.Errorf("%d lines of the log say so, want 1", n)
	}
	for time.Since(begin) < day {
		if _, err := get(m, host); err == nil {
			t.Fatalf("a certificate with the flaw %q is served", flaw)
		}
		pass(10 * time.Minute)
	}
	if n := len(ca.Issued("")); n > 40 {
		t.Errorf("%d certificates issued in a day, want them to become fewer", n)
	}
	ca.Change(func(c *catest.Config) { c.Flaw = "" })
	if err := m.Renew(t.Context(), host); err != nil && !strings.Contains(err.Error(), "not asked for now") {
		t.Errorf("Renew from a CA in order = %v, want nil", err)
	}
	pass(2 * time.Hour)
	get(m, host)
	mustGet(t, m, host)
}

func TestBrokenCAIsReported(t *testing.T) {
	for _, tt := range []struct {
		name     string
		endpoint string
		response catest.Response
		says     string
	}{
		{"down", "directory", catest.Refuse, "connection refused"},
		{"a page in place of the directory", "directory", catest.HTML(200, ""), "directory"},
		{"a page in place of an order", "newOrder", catest.HTML(200, ""), "order"},
		{"500 to an order", "newOrder", catest.Problem(500, "serverInternal", "database gone", ""), "database gone"},
		{"400 to finalize", "finalize", catest.Problem(400, "badCSR", "such a CSR", ""), "such a CSR"},
		{"no answer to an order", "newOrder", catest.Hang, "making the order"},
		{"half an answer to an order", "newOrder", catest.Truncate, "reset"},
		{"an answer without end", "newOrder", catest.Endless, "longer than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) { broken(t, tt.endpoint, tt.response, tt.says) })
		})
	}
}

func broken(t *testing.T, endpoint string, response catest.Response, says string) {
	const host = "a.example.com"
	ca := catest.New(t)
	ca.Fault(catest.On(endpoint, 0, response))
	m := newManager(t, ca)
	d := keepDiary(t, m)
	m.SetHosts([]string{host})
	err := m.Manage(t.Context(), host)
	he := wantHostError(t, err, host)
	if he.CA != ca.Directory() || !he.Retry.After(time.Now()) || !strings.Contains(err.Error(), says) {
		t.Errorf("Manage = %#v, want %q of %s and when it is tried again", he, says, ca.Directory())
	}
	if s := m.Status(host)[0]; s.Err == nil || !strings.Contains(s.Err.Error(), says) || !s.Retry.Equal(he.Retry) {
		t.Errorf("Status = %+v, want the error and %v", s, he.Retry)
	}
	failed := d.of(letsencrypt.EventFailed)
	if len(failed) != 1 || failed[0].Host != host || failed[0].CA != ca.Directory() || !failed[0].Next.Equal(he.Retry) {
		t.Errorf("events %+v, want one with the host, the CA and the next try", failed)
	}
	if len(d.lines("host="+host, "ca="+ca.Directory(), "err=", says, "next=")) != 1 {
		t.Errorf("the log has not one line with the host, the CA, %q and the next try", says)
	}
	ca.Fault(nil)
	pass(5 * time.Minute)
	mustGet(t, m, host)
}

func TestPassingFaultCostsNoHandshake(t *testing.T) {
	endpoints := []string{"newOrder", "authz", "challenge", "order", "finalize", "certificate"}
	for name, response := range map[string]catest.Response{
		"request lost": catest.Drop,
		"reply lost":   catest.LoseReply,
		"reply torn":   catest.Truncate,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				for _, endpoint := range endpoints {
					ca := catest.New(t)
					ca.FinalizeTakes = time.Second
					m := newManager(t, ca)
					mustGet(t, m, "warm.example.com")
					ca.Fault(catest.On(endpoint, 1, response))
					if _, err := get(m, "a.example.com"); err != nil {
						t.Errorf("with a fault at %s: %v", endpoint, err)
					}
					if n := len(ca.Issued("a.example.com")); n != 1 {
						t.Errorf("with a fault at %s: %d certificates issued, want 1", endpoint, n)
					}
					shutdown(t, m)
				}
			})
		})
	}
}

func TestOnlyAcmeTLS1AloneIsAValidation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		mustGet(t, m, "a.example.com")
		hello := &tls.ClientHelloInfo{ServerName: "a.example.com", SupportedProtos: []string{"h2", "acme-tls/1"}}
		if _, err := m.GetCertificate(hello); err != nil {
			t.Errorf("a client that offers acme-tls/1 among others: %v, want the certificate", err)
		}
		hello.SupportedProtos = []string{"acme-tls/1"}
		if cert, err := m.GetCertificate(hello); err == nil {
			t.Errorf("a validation that nobody awaits is answered with %v", cert)
		}
	})
}

func TestForgottenAccountIsMadeAnewOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		d := keepDiary(t, m)
		mustGet(t, m, "a.example.com")
		ca.ForgetAccounts()
		var all sync.WaitGroup
		for _, host := range hostNames(10) {
			all.Go(func() { mustGet(t, m, host) })
		}
		all.Wait()
		if n := len(ca.Accounts()); n != 1 {
			t.Errorf("%d accounts, want 1 in place of the one forgotten", n)
		}
		if n := len(d.of(letsencrypt.EventAccount)); n != 2 {
			t.Errorf("%d events of an account made, want 2", n)
		}
	})
}

func TestAccountDeactivatedIsNoLoop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		mustGet(t, m, "a.example.com")
		ca.DeactivateAccounts()
		before := ca.Count("")
		_, err := get(m, "b.example.com")
		wantHostError(t, err, "b.example.com")
		if n := ca.Count("") - before; n > 6 {
			t.Errorf("%d requests with an account that was deactivated, want 6 at most", n)
		}
	})
}

func TestHalfOfAllNoncesRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.NonceReject = catest.Percent(50, 1)
		m := newManager(t, ca)
		d := keepDiary(t, m)
		begin := time.Now()
		for _, host := range hostNames(20) {
			mustGet(t, m, host)
		}
		if took := time.Since(begin); took > 20*100*time.Millisecond {
			t.Errorf("20 certificates took %v, want refused nonces retried at once", took)
		}
		if failed := d.of(letsencrypt.EventFailed); len(failed) != 0 {
			t.Errorf("events %+v, want no failure", failed)
		}
		wantCount(t, ca, "newOrder", len(ca.Orders())+refusals(ca, "newOrder"))
	})
}

// refusals counts the requests to an endpoint that the CA refused.
func refusals(ca *catest.CA, endpoint string) int {
	n := 0
	for _, r := range ca.Requests() {
		if r.Endpoint == endpoint && r.Status == http.StatusBadRequest {
			n++
		}
	}
	return n
}

func TestExternalAccountBinding(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	for _, eab := range []*acme.ExternalAccountBinding{nil, {KID: "customer", Key: key}} {
		t.Run(fmt.Sprintf("given=%v", eab != nil), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				ca.EAB = map[string][]byte{"customer": key}
				m := newManager(t, ca)
				m.CAs[0].EAB = eab
				_, err := get(m, "a.example.com")
				if eab == nil {
					wantHostError(t, err, "a.example.com")
					if !strings.Contains(err.Error(), "CA.EAB") {
						t.Errorf("error %v, want it to name CA.EAB", err)
					}
					wantCount(t, ca, "newAccount", 0)
					return
				}
				if err != nil || ca.Accounts()[0].EAB != "customer" {
					t.Errorf("%v, account %+v, want it bound to the customer", err, ca.Accounts())
				}
			})
		})
	}
}

// Registration.

func TestRefusedTermsStopEverything(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Terms = "https://ca.test/terms"
		m := newManager(t, ca)
		var asked []string
		refuse := func(url string) bool { asked = append(asked, url); return false }
		if err := m.Register("", refuse); err == nil || !strings.Contains(err.Error(), ca.Terms) {
			t.Errorf("Register = %v, want an error about the terms", err)
		}
		if len(asked) != 1 || asked[0] != ca.Terms {
			t.Errorf("the prompt was given %q, want the URL of the terms once", asked)
		}
		for range 2 {
			_, err := get(m, "a.example.com")
			wantHostError(t, err, "a.example.com")
			if !strings.Contains(err.Error(), "Register") {
				t.Errorf("error %v, want it to name Register", err)
			}
			m = restart(t, m, ca) // the refusal is kept
		}
		wantCount(t, ca, "newAccount", 0)
		if m.Registered() {
			t.Error("Registered() = true, want false")
		}
		if err := m.Register("", func(string) bool { return true }); err != nil || !m.Registered() {
			t.Fatalf("Register = %v, Registered() = %v, want nil and true", err, m.Registered())
		}
		if err := m.Renew(t.Context(), "a.example.com"); err != nil {
			t.Errorf("Renew = %v, want nil", err)
		}
	})
}

func TestRegisterAgainChangesTheAddress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		if m.Registered() {
			t.Error("Registered() = true before Register")
		}
		for _, email := range []string{"a@example.com", "b@example.com", "b@example.com"} {
			if err := m.Register(email, nil); err != nil {
				t.Fatal(err)
			}
			accounts := ca.Accounts()
			if len(accounts) != 1 || len(accounts[0].Contact) != 1 || accounts[0].Contact[0] != "mailto:"+email {
				t.Errorf("accounts %+v, want one, with %s", accounts, email)
			}
		}
		wantCount(t, ca, "account", 1) // the same address again is no news
		if m = restart(t, m, ca); !m.Registered() {
			t.Error("Registered() = false after a restart")
		}
	})
}

func TestRegisterWithoutAnAddressTakesItAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		for _, email := range []string{"a@example.com", ""} {
			if err := m.Register(email, nil); err != nil {
				t.Fatalf("Register(%q) = %v, want nil", email, err)
			}
		}
		if accounts := ca.Accounts(); len(accounts) != 1 || len(accounts[0].Contact) != 0 {
			t.Errorf("accounts %+v, want one without a contact", accounts)
		}
	})
}

func TestAgreementAfterARefusalFreesTheHostsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Terms = "https://ca.test/terms"
		m := newManager(t, ca)
		if err := m.Register("", func(string) bool { return false }); err == nil {
			t.Fatal("Register = nil, want an error about the terms")
		}
		wantHostError(t, m.Manage(t.Context(), "a.example.com"), "a.example.com")
		_, err := get(m, "b.example.com")
		wantHostError(t, err, "b.example.com")
		pass(time.Hour) // a's back-off is half an hour by now
		if _, again := get(m, "b.example.com"); again == nil {
			t.Fatal("a certificate without agreement")
		}
		if err := m.Register("", func(string) bool { return true }); err != nil {
			t.Fatal(err)
		}
		mustGet(t, m, "b.example.com")
		pass(time.Second)
		if s := m.Status("a.example.com")[0]; s.Serial == "" || s.Err != nil {
			t.Errorf("a.example.com, which Manage was given: %+v, want a certificate", s)
		}
	})
}

func TestOtherCAsGetTheSameAddress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		m := newManager(t, first, second)
		if err := m.Register("a@example.com", nil); err != nil {
			t.Fatal(err)
		}
		wantCount(t, second, "", 0) // until it is needed
		first.Fault(catest.Down)
		mustGet(t, m, "a.example.com")
		if got := fmt.Sprint(second.Accounts()[0].Contact); got != "[mailto:a@example.com]" {
			t.Errorf("the second CA's account has the contact %s", got)
		}
	})
}

// Clocks.

func TestClockThatDisagreesWithTheCAOrdersNothing(t *testing.T) {
	for _, skew := range []time.Duration{2 * day, -2 * day} {
		t.Run(skew.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				ca.Skew = skew
				m := newManager(t, ca)
				_, err := get(m, "a.example.com")
				wantHostError(t, err, "a.example.com")
				for _, at := range []time.Time{time.Now(), time.Now().Add(skew)} {
					if s := at.UTC().Format("2006-01-02T15:04"); !strings.Contains(err.Error(), s) {
						t.Errorf("error %v, want %s in it", err, s)
					}
				}
				wantCount(t, ca, "newOrder", 0)
			})
		})
	}
}

func TestClockBeforeOurNewestCertificateOrdersNothing(t *testing.T) {
	t.Parallel()
	var blob string
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(30 * day)
		m := newManager(t, catest.New(t))
		mustGet(t, m, "a.example.com")
		blob = m.Marshal()
	})
	synctest.Test(t, func(t *testing.T) { // a month earlier
		ca := catest.New(t)
		m := newManager(t, ca)
		d := keepDiary(t, m)
		if err := m.Unmarshal(blob); err != nil {
			t.Fatal(err)
		}
		_, err := get(m, "b.example.com")
		wantHostError(t, err, "b.example.com")
		m.Manage(deadline(t, time.Hour), "c.example.com")
		wantCount(t, ca, "newOrder", 0)
		failed := d.of(letsencrypt.EventFailed)
		if len(failed) == 0 || !strings.Contains(failed[0].Err.Error(), "2000-01-01") || !strings.Contains(failed[0].Err.Error(), "2000-01-31") {
			t.Errorf("events %+v, want one with both times", failed)
		}
		pass(30 * day) // the clock is right again
		mustGet(t, m, "b.example.com")
	})
}

// TestClockThatWasAheadIsGotOver has a clock go back to 2000 that said 2040 for
// two days, in which all that failed was noted with times of then.
func TestClockThatWasAheadIsGotOver(t *testing.T) {
	const ahead = 40 * 365 * day
	for _, tt := range []struct {
		name  string
		skew  time.Duration
		fault catest.Script
	}{
		{"and differed from the CA's", -ahead, nil},
		{"and the CA was down", 0, catest.Down},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var blob string
			synctest.Test(t, func(t *testing.T) {
				m := newManager(t, catest.New(t))
				mustGet(t, m, "a.example.com")
				blob = m.Marshal()
			})
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(ahead)
				ca := catest.New(t)
				ca.Skew = tt.skew
				ca.Fault(tt.fault)
				m := newManager(t, ca)
				if err := m.Unmarshal(blob); err != nil {
					t.Fatal(err)
				}
				blob = spoilt(t, m)
				wantCount(t, ca, "newOrder", 0)
			})
			synctest.Test(t, func(t *testing.T) { gotOver(t, blob) })
		})
	}
}

// spoilt returns the state of a Manager that could obtain nothing for two days
// and has no token left.
func spoilt(t *testing.T, m *letsencrypt.Manager) string {
	m.Limit = rate.NewLimiter(rate.Every(6*time.Hour), 1)
	m.SetHosts([]string{"a.example.com", "b.example.com"})
	for range 48 {
		if _, err := get(m, "a.example.com"); err == nil {
			t.Fatal("a certificate from nowhere")
		}
		m.Manage(deadline(t, time.Minute), "b.example.com")
		pass(time.Hour)
	}
	return m.Marshal()
}

// gotOver reports an error unless a Manager that has the state soon has what
// it lacks, and keeps it.
func gotOver(t *testing.T, blob string) {
	ca := catest.New(t)
	m := newManager(t, ca)
	m.Limit = rate.NewLimiter(rate.Every(6*time.Hour), 1)
	if err := m.Unmarshal(blob); err != nil {
		t.Fatal(err)
	}
	mustGet(t, m, "a.example.com")
	pass(13 * time.Hour) // two tokens come in that time
	mustGet(t, m, "b.example.com")
	pass(100 * day)
	for _, host := range []string{"a.example.com", "b.example.com"} {
		mustGet(t, m, host)
	}
	if n := len(ca.Orders()); n != 3 { // a's was renewed, b's obtained and renewed
		t.Errorf("%d orders in a hundred days, want 3", n)
	}
}

// deadline returns a context that ends after d, or with the test.
func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// The end.

func TestShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.Limit = rate.NewLimiter(rate.Every(time.Hour), 1)
		leaf := mustGet(t, m, "a.example.com")
		waiting := make(chan error)
		go func() { waiting <- m.Manage(t.Context(), "b.example.com") }()
		synctest.Wait()
		shutdown(t, m)
		err := <-waiting
		wantHostError(t, err, "b.example.com")
		if !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("a waiting Manage = %v, want %v", err, http.ErrServerClosed)
		}
		shutdown(t, m)
		before := ca.Count("")
		if again := mustGet(t, m, "a.example.com"); !again.Equal(leaf) {
			t.Error("another certificate after Shutdown")
		}
		_, getErr := get(m, "c.example.com")
		_, certErr := m.Cert("c.example.com")
		_, listenErr := m.Listen()
		manageErr, renewErr := m.Manage(t.Context(), "c.example.com"), m.Renew(t.Context(), "a.example.com")
		wantHostError(t, manageErr, "c.example.com")
		wantHostError(t, renewErr, "a.example.com")
		for method, err := range map[string]error{
			"GetCertificate": getErr, "Cert": certErr, "Listen": listenErr, "Manage": manageErr, "Renew": renewErr,
			"Register":   m.Register("a@example.com", nil),
			"Serve":      m.Serve(),
			"ServeHTTPS": m.ServeHTTPS(),
		} {
			if !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("%s after Shutdown = %v, want %v", method, err, http.ErrServerClosed)
			}
		}
		pass(100 * day)
		wantCount(t, ca, "", before)
	})
}

func TestShutdownParksAnOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.FinalizeTakes = 30 * time.Second
		m := newManager(t, ca)
		done := make(chan error)
		go func() { done <- m.Manage(t.Context(), "a.example.com") }()
		pass(5 * time.Second)
		begin := time.Now()
		m = restart(t, m, ca)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("Shutdown waited %v for an order", took)
		}
		if err := <-done; err == nil {
			t.Error("Manage = nil, want why it ended")
		}
		mustGet(t, m, "a.example.com")
		if n := len(ca.Orders()); n != 1 {
			t.Errorf("%d orders, want the one that was begun", n)
		}
	})
}

func TestUnusedManagerStartsNothing(t *testing.T) {
	t.Parallel()
	cache := filepath.Join(t.TempDir(), "cache")
	own := selfSigned(t, time.Now(), day, "own.example.com")
	var m letsencrypt.Manager
	t.Cleanup(func() { shutdown(t, &m) })
	blob := new(letsencrypt.Manager).Marshal()
	// A bubble does not end while there is a goroutine in it.
	synctest.Test(t, func(t *testing.T) {
		if err := m.CacheFile(cache); err != nil {
			t.Error(err)
		}
		if err := m.Unmarshal(blob); err != nil {
			t.Error(err)
		}
		m.SetHosts([]string{"a.example.com", "not a host"})
		if err := m.AddCertificate(own); err != nil {
			t.Error(err)
		}
		m.TLSConfig()
		m.HTTPHandler(nil)
		m.Status()
	})
}

// Certificates of the program's own.

// selfSigned returns a certificate for the names and addresses.
func selfSigned(t testing.TB, notBefore time.Time, life time.Duration, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711),
		NotBefore:    notBefore,
		NotAfter:     notBefore.Add(life),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func mustAdd(t testing.TB, m *letsencrypt.Manager, cert tls.Certificate) {
	t.Helper()
	if err := m.AddCertificate(cert); err != nil {
		t.Fatalf("AddCertificate = %v, want nil", err)
	}
}

// wantOwn reports an error unless the hosts are served this certificate.
func wantOwn(t *testing.T, m *letsencrypt.Manager, cert tls.Certificate, hosts ...string) {
	t.Helper()
	for _, host := range hosts {
		got, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: host})
		if err != nil || !bytes.Equal(got.Certificate[0], cert.Certificate[0]) {
			t.Errorf("%s is served another certificate, or %v, want the program's own", host, err)
		}
	}
}

func TestOwnCertificateIsServedForAllItsNames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		expiry := time.Now().Add(day)
		own := selfSigned(t, time.Now(), day, "a.example.com", "B.example.com", "*.w.example.com", "192.0.2.1")
		mustAdd(t, m, own)
		wantOwn(t, m, own, "a.example.com", "A.example.com", "b.example.com", "x.w.example.com", "192.0.2.1")
		wantCount(t, ca, "", 0)
		wantAllowed(t, m, ca, true, "w.example.com") // the wildcard does not cover it
		if err := m.Manage(t.Context(), "a.example.com"); err != nil || ca.Count("newOrder") != 1 {
			t.Errorf("Manage = %v after %d orders, want nothing ordered for a host of the program's own", err, ca.Count("newOrder"))
		}
		if c, err := m.Cert("a.example.com"); err != nil || c.Leaf.SerialNumber.Int64() != 4711 {
			t.Errorf("Cert = %v, want the program's own", err)
		}
		s := m.Status("a.example.com")[0]
		if s.CA != "" || s.Serial != "1267" || !s.NotAfter.Equal(expiry) || !s.Renewal.IsZero() {
			t.Errorf("Status = %+v, want the program's own certificate", s)
		}
	})
}

func TestOwnCertificateWinsUntilItExpires(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		d := keepDiary(t, m)
		m.SetHosts([]string{"a.example.com"})
		ours := mustGet(t, m, "a.example.com")
		first := selfSigned(t, time.Now(), 80*day, "a.example.com", "b.example.com")
		second := selfSigned(t, time.Now(), 85*day, "a.example.com")
		mustAdd(t, m, first)
		wantOwn(t, m, first, "a.example.com", "b.example.com")
		mustAdd(t, m, second)
		wantOwn(t, m, second, "a.example.com", "A.Example.COM.")
		wantOwn(t, m, first, "b.example.com")
		pass(70 * day)
		wantCount(t, ca, "newOrder", 1) // ours is due, but nobody needs it
		wantOwn(t, m, second, "a.example.com")
		pass(15*day + 2*time.Minute)
		if leaf := mustGet(t, m, "a.example.com"); leaf.Equal(ours) {
			t.Error("after the program's own expired ours was not renewed")
		}
		if expired := d.of(letsencrypt.EventExpired); len(expired) != 2 {
			t.Errorf("events %+v, want one for each certificate of the program's that expired", expired)
		}
	})
}

func TestOwnCertificateIsNotServedPastItsExpiry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		mustGet(t, m, "first.example.com") // so that it is at work, and the minute begins
		pass(7 * time.Second)
		own := selfSigned(t, time.Now(), 90*time.Second, "a.example.com")
		mustAdd(t, m, own)
		pass(89 * time.Second)
		wantOwn(t, m, own, "a.example.com")
		pass(time.Second)
		mustGet(t, m, "a.example.com")
	})
}

func TestOwnWildcardWinsOverWhatIsHeld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		mustGet(t, m, "a.example.com")
		own := selfSigned(t, time.Now(), day, "*.example.com")
		mustAdd(t, m, own)
		wantOwn(t, m, own, "a.example.com", "A.Example.COM.")
	})
}

func TestExpiryOfAnOwnWildcardLeavesNoGap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.HTTPSAddr = "127.0.0.1:0"
		hosts := []string{"a.example.com", "b.example.com"}
		m.SetHosts(hosts)
		own := selfSigned(t, time.Now(), 30*day, "*.example.com")
		mustAdd(t, m, own)
		ln, err := m.Listen() // from now on it obtains what the list lacks
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		pass(28 * day)
		wantCount(t, ca, "newOrder", 0)
		pass(2*day - time.Second)
		wantOwn(t, m, own, hosts...)
		wantCount(t, ca, "newOrder", len(hosts))
		pass(time.Second)
		for _, host := range hosts {
			mustGet(t, m, host)
		}
		wantCount(t, ca, "newOrder", len(hosts))
	})
}

func TestBadOwnCertificateIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		good := selfSigned(t, time.Now(), day, "a.example.com")
		mustAdd(t, m, good)
		otherKey := selfSigned(t, time.Now(), day, "a.example.com")
		otherKey.PrivateKey = good.PrivateKey
		for name, bad := range map[string]tls.Certificate{
			"empty":     {},
			"garbage":   {Certificate: [][]byte{{1, 2, 3}}, PrivateKey: good.PrivateKey},
			"no key":    {Certificate: good.Certificate},
			"other key": otherKey,
			"expired":   selfSigned(t, time.Now().Add(-2*day), day, "a.example.com"),
			"no names":  selfSigned(t, time.Now(), day),
		} {
			if err := m.AddCertificate(bad); err == nil || !strings.HasPrefix(err.Error(), "letsencrypt: ") {
				t.Errorf("AddCertificate(%s) = %v, want an error of letsencrypt's", name, err)
			}
		}
		wantOwn(t, m, good, "a.example.com")
	})
}

// Clients that name no host.

func TestNoServerName(t *testing.T) {
	for _, tt := range []struct {
		name        string
		hosts       []string
		defaultHost string
		reached     string // address
		want        string // host; "" for refused
	}{
		{"address reached is listed", []string{"192.0.2.1", "192.0.2.2", "a.example.com"}, "a.example.com", "192.0.2.2", "192.0.2.2"},
		{"mapped into IPv6", []string{"192.0.2.1", "192.0.2.2"}, "", "::ffff:192.0.2.2", "192.0.2.2"},
		{"IPv6", []string{"2001:db8::1", "192.0.2.2"}, "", "2001:db8::1", "2001:db8::1"},
		{"only listed address", []string{"192.0.2.1", "a.example.com"}, "a.example.com", "10.0.0.1", "192.0.2.1"},
		{"DefaultHost", []string{"a.example.com", "b.example.com"}, "B.example.com", "10.0.0.1", "b.example.com"},
		{"only listed host", []string{"a.example.com"}, "", "10.0.0.1", "a.example.com"},
		{"several hosts", []string{"a.example.com", "b.example.com"}, "", "10.0.0.1", ""},
		{"no list", nil, "", "10.0.0.1", ""},
		{"no connection", []string{"a.example.com"}, "", "", "a.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newManager(t, catest.New(t))
				m.DefaultHost = tt.defaultHost
				m.SetHosts(tt.hosts)
				hello := new(tls.ClientHelloInfo)
				if tt.reached != "" {
					hello.Conn = client{local: tcpAddr(tt.reached, 443), remote: tcpAddr("192.0.2.99", 4711)}
				}
				cert, err := m.GetCertificate(hello)
				if tt.want == "" {
					if !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
						t.Errorf("error %v, want %v", err, letsencrypt.ErrHostNotAllowed)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				leaf, err := x509.ParseCertificate(cert.Certificate[0])
				if err != nil || leaf.VerifyHostname(tt.want) != nil {
					t.Errorf("served a certificate for %v %v, want %s", leaf.DNSNames, leaf.IPAddresses, tt.want)
				}
			})
		})
	}
}

func TestNoServerNameAtAnAddressOffTheList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const addr, host = "192.0.2.7", "a.example.com"
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		m.SetHosts([]string{addr, host})
		if err := m.Manage(t.Context(), addr, host); err != nil {
			t.Fatal(err)
		}
		want := func(name string) {
			t.Helper()
			cert, err := m.GetCertificate(&tls.ClientHelloInfo{Conn: client{local: tcpAddr(addr, 443), remote: tcpAddr("192.0.2.99", 4711)}})
			if err != nil {
				t.Fatal(err)
			}
			if err := parseLeaf(t, cert.Certificate[0]).VerifyHostname(name); err != nil {
				t.Error(err)
			}
		}
		want(addr)
		m.SetHosts([]string{host})
		want(addr) // as long as it is good
		pass(7 * day)
		want(host)
	})
}

// Being seen.

func TestStatus(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Profiles = map[string]time.Duration{"shortlived": 6 * day}
		m := newManager(t, ca)
		m.CAs[0].Profile = "shortlived"
		m.SetHosts([]string{"b.example.com", "a.example.com", "none.example.com"})
		leaf := mustGet(t, m, "a.example.com")
		mustGet(t, m, "b.example.com")
		var names []string
		for _, s := range m.Status() {
			names = append(names, s.Host)
		}
		if got, want := fmt.Sprint(names), "[a.example.com b.example.com none.example.com]"; got != want {
			t.Errorf("Status() is of %s, want %s", got, want)
		}
		s := m.Status("A.example.com.")[0]
		want := letsencrypt.HostStatus{
			Host: "a.example.com", CA: ca.Directory(), Profile: "shortlived", Serial: leaf.SerialNumber.Text(16),
			NotAfter: leaf.NotAfter, Renewal: s.Renewal, Challenge: s.Challenge,
		}
		if s != want || s.Challenge == "" {
			t.Errorf("Status(a) = %+v, want %+v", s, want)
		}
		if at := s.Renewal.Sub(leaf.NotBefore); at < 67*time.Hour || at > 72*time.Hour {
			t.Errorf("Renewal is %v after NotBefore, want half of six days or a bit less", at)
		}
		if got, want := m.Status("none.example.com")[0], (letsencrypt.HostStatus{Host: "none.example.com"}); got != want {
			t.Errorf("Status(none) = %+v, want %+v", got, want)
		}
		if got := m.Status("no host")[0]; got.Err == nil {
			t.Errorf("Status(no host) = %+v, want an error", got)
		}
	})
}

func TestUnknownProfileNamesThoseThereAre(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Profiles = map[string]time.Duration{"classic": 90 * day, "shortlived": 6 * day}
		m := newManager(t, ca)
		m.CAs[0].Profile = "short"
		_, err := get(m, "a.example.com")
		wantHostError(t, err, "a.example.com")
		for _, word := range []string{`"short"`, "classic", "shortlived"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("error %v, want %s in it", err, word)
			}
		}
	})
}

func TestEventsComeInOrderAndEachIsALogLine(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		d := keepDiary(t, m)
		m.SetHosts([]string{"a.example.com"})
		mustGet(t, m, "a.example.com")
		pass(2 * day)
		ca.Fault(catest.Down)
		pass(4*day + time.Second)
		ca.Fault(nil)
		pass(2 * time.Hour)
		mustGet(t, m, "a.example.com")
		var kinds []letsencrypt.EventKind
		d.mu.Lock()
		for i, e := range d.events {
			if i > 0 && e.Time.Before(d.events[i-1].Time) {
				t.Errorf("event %d is older than the one before", i)
			}
			if n := len(kinds); n < 2 || kinds[n-1] != e.Kind && kinds[n-2] != e.Kind {
				kinds = append(kinds, e.Kind)
			}
		}
		d.mu.Unlock()
		if got, want := fmt.Sprint(kinds), "[account obtained paused failed expired resumed renewed]"; got != want {
			t.Errorf("events %s, want %s", got, want)
		}
		for kind, words := range map[letsencrypt.EventKind][]string{
			letsencrypt.EventAccount:  {"made an account", "ca=" + ca.Directory()},
			letsencrypt.EventObtained: {"obtained", "host=a.example.com", "ca=" + ca.Directory(), "expires=2000-01-07", "next="},
			letsencrypt.EventRenewed:  {"renewed", "host=a.example.com", "ca=" + ca.Directory(), "expires=", "next="},
			letsencrypt.EventPaused:   {"not asked for now", "ca=" + ca.Directory(), "connection refused", "next="},
			letsencrypt.EventResumed:  {"works again", "ca=" + ca.Directory()},
			letsencrypt.EventFailed:   {"no new certificate", "host=a.example.com", "ca=" + ca.Directory(), "connection refused", "next="},
			letsencrypt.EventExpired:  {"has expired", "host=a.example.com", "expires=2000-01-07", "connection refused"},
		} {
			if lines, events := len(d.lines(words...)), len(d.of(kind)); lines != events {
				t.Errorf("%d lines of the log and %d events of kind %q, want as many", lines, events, kind)
			}
		}
	})
}

func TestFailureWithoutACertificateHasNoExpiry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Fault(catest.Down)
		m := newManager(t, ca)
		d := keepDiary(t, m)
		wantHostError(t, m.Manage(t.Context(), "a.example.com"), "a.example.com")
		for _, e := range d.of(letsencrypt.EventFailed) {
			if !e.NotAfter.IsZero() {
				t.Errorf("event %+v, want a zero NotAfter", e)
			}
		}
		if n := len(d.of(letsencrypt.EventFailed)); n != 1 {
			t.Errorf("%d events of a failure, want 1", n)
		}
	})
}

func TestSlowOnEventHoldsNothingUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		m.OnEvent = func(letsencrypt.Event) { time.Sleep(time.Hour) }
		begin := time.Now()
		mustGet(t, m, "a.example.com")
		mustGet(t, m, "b.example.com")
		if took := time.Since(begin); took > time.Second {
			t.Errorf("two certificates took %v behind a slow OnEvent", took)
		}
	})
}

func TestCertIsTheCallersOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		c, err := m.Cert("a.example.com")
		if err != nil {
			t.Fatal(err)
		}
		if c.Leaf == nil || c.Leaf.VerifyHostname("a.example.com") != nil {
			t.Error("Cert's Leaf is not set, or another host's")
		}
		c.Certificate = append(c.Certificate[:0], nil)
		mustGet(t, m, "a.example.com")
	})
}

// What a handshake costs.

// TestHandshakesAllocateNothing is about the hosts that there is a certificate
// for; it runs alone.
func TestHandshakesAllocateNothing(t *testing.T) {
	m := managerOf(t, 100)
	hello := &tls.ClientHelloInfo{ServerName: "h7.example.com"}
	refused := &tls.ClientHelloInfo{ServerName: "unlisted.example.com"}
	for range 2 {
		if _, err := m.GetCertificate(hello); err != nil {
			t.Fatal(err)
		}
	}
	measure := func(when string) {
		if n := testing.AllocsPerRun(1000, func() { m.GetCertificate(hello) }); n != 0 {
			t.Errorf("a handshake for a known host allocates %v times %s, want 0", n, when)
		}
		if n := testing.AllocsPerRun(1000, func() { m.GetCertificate(refused) }); n > 1 {
			t.Errorf("a refusal allocates %v times %s, want its error alone", n, when)
		}
	}
	measure("")
	mustAdd(t, m, selfSigned(t, time.Now(), day, "own.example.org"))
	measure("beside a certificate of the program's own")
}

func TestHandshakeBelowAWildcardAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newDNSManager(t, catest.New(t))
		m.SetHosts([]string{"*.example.com"})
		hello := &tls.ClientHelloInfo{ServerName: "a.example.com"}
		mustGet(t, m, hello.ServerName)
		synctest.Wait()
		if n := testing.AllocsPerRun(1000, func() { m.GetCertificate(hello) }); n != 0 {
			t.Errorf("a handshake for a name below a wildcard allocates %v times, want 0", n)
		}
	})
}

func TestRefusalsTakeNoMemory(t *testing.T) {
	const names = 50_000
	m := managerOf(t, 1)
	m.SetHosts(nil)
	m.Allow = func(context.Context, string) error { return letsencrypt.ErrHostNotAllowed }
	measure := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := measure()
	for i := range names {
		if _, err := get(m, fmt.Sprintf("x%d.example.net", i)); !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Fatal(err)
		}
	}
	if grown := int64(measure() - before); grown > 5<<20 {
		t.Errorf("%d refusals hold %d bytes, want 5 MB at most", names, grown)
	}
	if n := len(m.Status()); n > 1 {
		t.Errorf("Status knows of %d hosts, want none of those refused", n)
	}
}

// managerOf returns a Manager with certificates for n hosts, h0.example.com
// and so on, and the list of them. No CA is asked, for lack of any.
func managerOf(t testing.TB, n int) *letsencrypt.Manager {
	t.Helper()
	m := offline(t)
	if err := m.Unmarshal(blobOf(t, n)); err != nil {
		t.Fatal(err)
	}
	return m
}

// offline returns a Manager that reaches no CA.
func offline(t testing.TB) *letsencrypt.Manager {
	m := &letsencrypt.Manager{Logger: slog.New(slog.DiscardHandler)}
	m.CAs = []letsencrypt.CA{{Directory: "https://127.0.0.1:1/dir", Client: &http.Client{Transport: noNetwork{}}}}
	t.Cleanup(func() { m.Shutdown(context.Background()) })
	return m
}

type noNetwork struct{}

func (noNetwork) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("no network")
}

// blobOf returns the state of a Manager with n hosts: that of one host, with
// its certificate over and over.
func blobOf(t testing.TB, n int) string {
	t.Helper()
	own := selfSigned(t, time.Now().Add(-time.Hour), 90*day, "h0.example.com")
	der, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	old, err := json.Marshal(map[string]any{"Email": "", "Certs": map[string]any{"h0.example.com": map[string]any{
		"Cert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]})),
		"Key":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	var m letsencrypt.Manager
	if err := m.Unmarshal(string(old)); err != nil {
		t.Fatal(err)
	}
	records, _, err := journal.Split(m.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	var log journal.Log
	var hosts []string
	for i := range n {
		hosts = append(hosts, fmt.Sprintf("h%d.example.com", i))
	}
	for _, r := range records {
		if r.Kind() != "cert" {
			log.Put(r)
			continue
		}
		from, _ := r.Field(0)
		to, _ := r.Field(1)
		for _, host := range hosts {
			log.Put(journal.Format("cert", host, []int64{from, to}, []byte(r.JSON())))
		}
	}
	list, err := json.Marshal(hosts)
	if err != nil {
		t.Fatal(err)
	}
	log.Put(journal.Format("hosts", "-", nil, list))
	return log.Text()
}

// TestBlobWithSeveralRecordsOfAHost is of what a file that was only ever appended
// to has: of several certificates for a host the last to expire counts.
func TestBlobWithSeveralRecordsOfAHost(t *testing.T) {
	const n = 3000
	blob := blobOf(t, n)
	records, _, err := journal.Split(blob)
	if err != nil {
		t.Fatal(err)
	}
	var later, end []journal.Record
	for i, r := range records {
		if r.Kind() != "cert" {
			continue
		}
		from, _ := r.Field(0)
		to, _ := r.Field(1)
		renewed := journal.Format("cert", r.Name(), []int64{from + 60, to + 60}, []byte(r.JSON()))
		switch i % 3 {
		case 0: // right behind it
			between := journal.Format("cert", r.Name(), []int64{from + 30, to + 30}, []byte(r.JSON()))
			later = append(later, r, renewed, between)
		case 1: // far behind
			end = append(end, renewed)
		}
	}
	later = append(later, end...)
	lines := []string{"letsencrypt 1"}
	for _, r := range append(records, later...) {
		lines = append(lines, string(r))
	}
	m := &letsencrypt.Manager{Logger: slog.New(slog.DiscardHandler)}
	if err := m.Unmarshal(strings.Join(lines, "\n")); err != nil {
		t.Fatal(err)
	}
	got, _, err := journal.Split(m.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(records) {
		t.Errorf("%d records, want %d", len(got), len(records))
	}
	for i, r := range got {
		from, _ := records[i].Field(0)
		if now, _ := r.Field(0); r.Kind() == "cert" && i%3 < 2 && now != from+60 {
			t.Fatalf("%s has the certificate that expires first", r.Name())
		}
	}
}

// TestUnmarshalOfMixedKinds is of what a file has that others were appended to: no
// two certificates one behind the other.
func TestUnmarshalOfMixedKinds(t *testing.T) {
	const n = 2000
	records, _, err := journal.Split(blobOf(t, n))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("letsencrypt 1\n")
	for _, r := range records {
		b.WriteString(string(r) + "\n")
		if r.Kind() == "cert" {
			b.WriteString(string(journal.Format("ari", r.Name(), nil, []byte(`{"id":"x"}`))) + "\n")
		}
	}
	m, least := (*letsencrypt.Manager)(nil), uint64(math.MaxUint64)
	for range 3 { // what else runs may allocate, too
		m = offline(t)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := m.Unmarshal(b.String()); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		least = min(least, (after.TotalAlloc-before.TotalAlloc)/n)
	}
	if least > 5000 {
		t.Errorf("Unmarshal allocates %d bytes a host, want 5000 at most", least)
	}
	for i := range n {
		if _, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: fmt.Sprintf("h%d.example.com", i)}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeletionLeavesNoHost is of records that delete what this process never had.
func TestDeletionLeavesNoHost(t *testing.T) {
	m := offline(t)
	blob := "letsencrypt 1\n" + string(journal.Delete("cert", "a.example.com")) + "\n" + string(journal.Delete("backoff", "b.example.com"))
	if err := m.Unmarshal(blob); err != nil {
		t.Fatal(err)
	}
	if st := m.Status(); len(st) != 0 {
		t.Errorf("Status() = %v, want none", st)
	}
}

// TestListThatStaysKnowsNewHosts has a blob with the list that there is bring
// certificates for hosts that are not on it.
func TestListThatStaysKnowsNewHosts(t *testing.T) {
	m := managerOf(t, 2)
	records, _, err := journal.Split(blobOf(t, 3))
	if err != nil {
		t.Fatal(err)
	}
	text := "letsencrypt 1\n"
	for _, r := range records {
		if r.Kind() == "hosts" {
			r = journal.Format("hosts", "-", nil, []byte(`["h0.example.com","h1.example.com"]`))
		}
		text += string(r) + "\n"
	}
	if err := m.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{"h1.example.com": true, "h2.example.com": true, "h3.example.com": false} {
		if _, err := get(m, host); (err == nil) != want {
			t.Errorf("GetCertificate(%s) = %v, want a certificate: %v", host, err, want)
		}
	}
	if s := m.Status("h2.example.com")[0]; !s.Renewal.IsZero() {
		t.Errorf("a host that is not on the list is to be renewed at %v", s.Renewal)
	}
}

// TestOlderBlobBesideAnOrder has a blob with an older certificate read while the new
// one, which is kept already, waits for its staple.
func TestOlderBlobBesideAnOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		other := newManager(t, ca)
		other.SetHosts([]string{host})
		older := mustGet(t, other, host)
		enc := other.Marshal()
		pass(10 * day)

		m, r := newResponder(t, ca)
		m.MustStaple = true
		m.SetHosts([]string{host})
		r.set(func(n *big.Int, good []byte) ([]byte, error) {
			if err := m.Unmarshal(enc); err != nil {
				t.Error(err)
			}
			return good, nil
		})
		newer := mustGet(t, m, host)
		if !newer.NotAfter.After(older.NotAfter) {
			t.Fatalf("the newer one expires %v, the older %v", newer.NotAfter, older.NotAfter)
		}
		again := restart(t, m, ca)
		if got := mustGet(t, again, host); !got.Equal(newer) {
			t.Errorf("after a restart the certificate that expires %v is served, want the one of %v, which was obtained", got.NotAfter.Format(time.DateOnly), newer.NotAfter.Format(time.DateOnly))
		}
	})
}

// TestChainsBehindCertificates has a certificate in use replaced from a file whose
// chains stand far behind its certificates, as in what Marshal writes.
func TestChainsBehindCertificates(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		d := keepDiary(t, m)
		m.Limit = unlimited()
		m.SetHosts([]string{host})
		mustGet(t, m, host)
		mustGet(t, m, host)
		pass(day)
		o := newManager(t, ca) // another process, with an account of its own
		o.SetHosts([]string{host})
		newer := mustGet(t, o, host)
		shutdown(t, o)
		enc := o.Marshal()
		var b strings.Builder
		for i := range 6000 { // more than are read from a file in one go
			b.WriteString(string(journal.Format("cert", fmt.Sprintf("b%d.example.com", i), []int64{time.Now().Unix(), time.Now().Add(90 * day).Unix()}, []byte("{}"))) + "\n")
		}
		at := strings.Index(enc, "\nchain ") + 1
		enc = enc[:at] + b.String() + enc[at:]
		file := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(file, []byte(enc), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := m.CacheFile(file); err != nil {
			t.Fatal(err)
		}
		if es := d.of(letsencrypt.EventState); len(es) > 0 {
			t.Errorf("events %+v, want none", es)
		}
		if got := mustGet(t, m, host); !got.Equal(newer) {
			t.Errorf("the certificate in the file is not the one that is served")
		}
		wantCount(t, ca, "newOrder", 2)
	})
}

// TestChainThatComesLater has a client ask while the chain of its host's certificate
// is still to be read.
func TestChainThatComesLater(t *testing.T) {
	const header = "letsencrypt 1\n"
	records, _, err := journal.Split(blobOf(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	chain, others := header, header
	for _, r := range records {
		if r.Kind() == "chain" {
			chain += string(r) + "\n"
		} else {
			others += string(r) + "\n"
		}
	}
	m, hello := offline(t), &tls.ClientHelloInfo{ServerName: "h0.example.com"}
	if err := m.Unmarshal(others); err != nil {
		t.Fatal(err)
	}
	if _, err := m.GetCertificate(hello); err == nil {
		t.Fatal("GetCertificate without the chain succeeds")
	}
	if err := m.Unmarshal(chain); err != nil {
		t.Fatal(err)
	}
	if _, err := m.GetCertificate(hello); err != nil {
		t.Errorf("GetCertificate with the chain: %v", err)
	}
}

// What follows is about hosts that a client asked for before, 1,000 unless the name
// says how many.

func BenchmarkGetCertificate(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			m := managerOf(b, n)
			hello := &tls.ClientHelloInfo{ServerName: fmt.Sprintf("h%d.example.com", n/2)}
			m.GetCertificate(hello) // the first use reads the certificate
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.GetCertificate(hello); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkGetCertificateParallel(b *testing.B) {
	m := managerOf(b, 1000)
	m.GetCertificate(&tls.ClientHelloInfo{ServerName: "h500.example.com"})
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		hello := &tls.ClientHelloInfo{ServerName: "h500.example.com"}
		for pb.Next() {
			if _, err := m.GetCertificate(hello); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkGetCertificateSpelled(b *testing.B) {
	for _, name := range []string{"H500.Example.COM", "h500.example.com."} {
		b.Run(name, func(b *testing.B) {
			m := managerOf(b, 1000)
			hello := &tls.ClientHelloInfo{ServerName: name}
			m.GetCertificate(hello)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.GetCertificate(hello); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGetCertificateBesideOwn has a certificate of the program's own, for
// another name.
func BenchmarkGetCertificateBesideOwn(b *testing.B) {
	m := managerOf(b, 1000)
	mustAdd(b, m, selfSigned(b, time.Now(), 24*time.Hour, "own.example.org"))
	hello := &tls.ClientHelloInfo{ServerName: "h500.example.com"}
	m.GetCertificate(hello)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.GetCertificate(hello); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkGetCertificateBesideUnmarshal has 10,000 hosts, all of which are read
// again and again meanwhile. What it allocates is the reading's.
func BenchmarkGetCertificateBesideUnmarshal(b *testing.B) {
	m, blob := managerOf(b, 10_000), blobOf(b, 10_000)
	hello := &tls.ClientHelloInfo{ServerName: "h5000.example.com"}
	m.GetCertificate(hello)
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				m.Unmarshal(blob)
			}
		}
	})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.GetCertificate(hello); err != nil {
			b.Fatal(err)
		}
	}
	close(stop)
	writer.Wait()
}

// BenchmarkRefusal refuses a name that is not on a list of 1,000, a validation that
// nobody waits for, what is no name, and a new name when NewHostLimit is used up.
func BenchmarkRefusal(b *testing.B) {
	listed := func(b *testing.B) *letsencrypt.Manager { return managerOf(b, 1000) }
	for _, bm := range []struct {
		name    string
		manager func(b *testing.B) *letsencrypt.Manager
		hello   tls.ClientHelloInfo
	}{
		{"unlisted", listed, tls.ClientHelloInfo{ServerName: "unlisted.example.com"}},
		{"noValidation", listed, tls.ClientHelloInfo{ServerName: "h0.example.com", SupportedProtos: []string{"acme-tls/1"}}},
		{"nonsense", listed, tls.ClientHelloInfo{ServerName: "a..b"}},
		{"newHostLimit", func(b *testing.B) *letsencrypt.Manager {
			m := offline(b)
			m.NewHostLimit = rate.NewLimiter(0, 0)
			return m
		}, tls.ClientHelloInfo{ServerName: "new.example.com"}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			m := bm.manager(b)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.GetCertificate(&bm.hello); err == nil {
					b.Fatal("not refused")
				}
			}
		})
	}
}

// The benchmarks of the state are about 10,000 hosts.

func BenchmarkMarshal(b *testing.B) {
	m := managerOf(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(m.Marshal())))
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	blob := blobOf(b, 10_000)
	b.SetBytes(int64(len(blob)))
	b.ReportAllocs()
	for b.Loop() {
		m := new(letsencrypt.Manager)
		if err := m.Unmarshal(blob); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCacheFile starts with the file that another process left, up to the
// first certificate.
func BenchmarkCacheFile(b *testing.B) {
	blob := blobOf(b, 10_000)
	file := filepath.Join(b.TempDir(), "letsencrypt.cache")
	if err := os.WriteFile(file, []byte(blob), 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(blob)))
	b.ReportAllocs()
	for b.Loop() {
		m := offline(b)
		if err := m.CacheFile(file); err != nil {
			b.Fatal(err)
		}
		if _, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: "h5000.example.com"}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := m.Shutdown(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// What a second look found.

func TestReaderOfWatchHasTheParkedOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Latency, ca.FinalizeTakes = 50*time.Millisecond, 30*time.Second
		m := newManager(t, ca)
		changed, saved := m.Watch(), ""
		save := func() {
			synctest.Wait()
			for {
				select {
				case <-changed:
					saved = m.Marshal()
				default:
					return
				}
			}
		}
		go get(m, "a.example.com")
		for range 50 {
			pass(10 * time.Millisecond)
			save()
		}
		shutdown(t, m)
		save()
		if now := m.Marshal(); saved != now {
			t.Errorf("after Shutdown Watch's reader has\n%s\nwant\n%s", saved, now)
		}
		again := newManager(t, ca)
		if err := again.Unmarshal(saved); err != nil {
			t.Fatal(err)
		}
		mustGet(t, again, "a.example.com")
		if n := len(ca.Orders()); n != 1 {
			t.Errorf("%d orders, want the one that was begun", n)
		}
	})
}

func TestHostPausedAtOneCAWhileTheOtherIsDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		y := &tally{with: func(string) *catest.Error {
			return &catest.Error{Status: 429, Type: "rateLimited", Detail: "paused: see https://portal.test/unpause?jwt=x"}
		}}
		first.RefuseOrder = y.refuse
		second.Fault(catest.Down)
		m := newManager(t, first, second)
		m.Limit = unlimited()
		wantHostError(t, m.Manage(t.Context(), host), host)
		pass(3 * day)
		before := y.of(host)
		if before < 2 || before > 6 {
			t.Errorf("%d orders in three days at the CA that paused the host, want one or two a day", before)
		}
		wantHostError(t, m.Renew(t.Context(), host), host)
		if n := y.of(host) - before; n != 1 {
			t.Errorf("Renew: %d orders at the CA that paused the host, want 1", n)
		}
	})
}

func TestAllowThatHangsIsAskedABoundedNumberOfTimes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const most = 1000
		m := newManager(t, catest.New(t))
		hang := make(chan struct{})
		t.Cleanup(func() { close(hang) })
		var asked atomic.Int64
		m.Allow = func(context.Context, string) error {
			asked.Add(1)
			<-hang
			return letsencrypt.ErrHostNotAllowed
		}
		for i, host := range hostNames(2500) {
			if i%900 == 0 {
				pass(61 * time.Second) // those before wait no more
			}
			go get(m, host)
		}
		pass(61 * time.Second)
		if n, hosts := asked.Load(), len(m.Status()); n > most || hosts > most {
			t.Errorf("%d questions under way and %d hosts known, want %d at most", n, hosts, most)
		}
	})
}

func TestHandshakeThatMeetsAQuestionWaitsForNoToken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		m.Limit = rate.NewLimiter(rate.Every(time.Hour), 1)
		m.Allow = func(context.Context, string) error { time.Sleep(time.Second); return nil }
		mustGet(t, m, "b.example.com") // takes the only token
		go m.Manage(t.Context(), "a.example.com")
		pass(100 * time.Millisecond)
		begin := time.Now()
		_, err := get(m, "a.example.com")
		wantHostError(t, err, "a.example.com")
		if took := time.Since(begin); took > time.Second || !errors.Is(err, letsencrypt.ErrRateLimited) {
			t.Errorf("a handshake that meets a question to Allow: %v after %v, want %v once that is answered", err, took, letsencrypt.ErrRateLimited)
		}
	})
}

func TestErrorsDoNotGrow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		first.RefuseOrder = func([]string, string) *catest.Error { return rateLimited("1000000") }
		second.Fault(catest.Down)
		m := newManager(t, first, second)
		m.Limit = unlimited()
		wantHostError(t, m.Manage(t.Context(), host), host)
		pass(day)
		early := m.Status(host)[0].Err.Error()
		pass(5 * day)
		late := m.Status(host)[0].Err.Error()
		if len(late) > len(early)+100 {
			t.Errorf("after six days the error is\n%s\nwant one as long as after the first\n%s", late, early)
		}
	})
}

func TestTenDaysAheadCostNoHourAfterARestart(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	var blob string
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		m.SetHosts([]string{host})
		mustGet(t, m, host)
		ca.Fault(catest.Down)
		pass(10 * day)
		blob = m.Marshal()
	})
	synctest.Test(t, func(t *testing.T) { // the clock is right again
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		if err := m.Unmarshal(blob); err != nil {
			t.Fatal(err)
		}
		for range 15 * 24 {
			mustGet(t, m, host)
			pass(time.Hour)
		}
	})
}

func TestAgreementForgetsNoLimitOfACA(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		first.Terms = "https://ca.test/terms"
		y := &tally{with: func(string) *catest.Error { return rateLimited("500000") }} // 5.8 days
		first.RefuseOrder = y.refuse
		second.Fault(catest.Down)
		m := newManager(t, first, second)
		wantHostError(t, m.Manage(t.Context(), host), host)
		if err := m.Register("", func(string) bool { return false }); err == nil {
			t.Fatal("Register = nil, want an error about the terms")
		}
		pass(2 * day)
		if err := m.Register("", nil); err != nil {
			t.Fatal(err)
		}
		pass(3 * day)
		if n := y.of(host); n != 1 {
			t.Errorf("%d orders at the CA that limits the host, want 1 until the limit ends", n)
		}
		y.change(nil)
		pass(2 * day)
		mustGet(t, m, host)
	})
}

func TestCertificateDiesOnTimeWhileItsRenewalWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 6 * day
		m := newManager(t, ca)
		m.Limit = rate.NewLimiter(rate.Every(100*day), 2)
		d := keepDiary(t, m)
		hosts := []string{"a.example.com", "b.example.com"}
		m.SetHosts(hosts)
		ends := make(map[string]time.Time)
		for _, host := range hosts {
			ends[host] = mustGet(t, m, host).NotAfter
		}
		pass(time.Until(ends["b.example.com"]) + time.Second)
		if len(d.of(letsencrypt.EventLimit)) == 0 {
			t.Error("no event says that Limit is too low")
		}
		expired := d.of(letsencrypt.EventExpired)
		if len(expired) != len(hosts) {
			t.Errorf("events %+v, want that both certificates expired", expired)
		}
		for _, e := range expired {
			if want := ends[e.Host]; !e.NotAfter.Equal(want) || e.Time.Sub(want).Abs() > time.Second {
				t.Errorf("event %+v, want it at %v", e, want)
			}
		}
		for _, host := range hosts {
			if leaf, err := get(m, host); !errors.Is(err, letsencrypt.ErrRateLimited) {
				t.Errorf("GetCertificate(%s) after the expiry = %v, %v, want %v", host, leaf, err, letsencrypt.ErrRateLimited)
			}
		}
	})
}

// The DNS.

// A zone is the DNS as all see it: the CA, the Manager, to which it is a
// resolver and a name server, and, as a DNSProvider, whoever sets records.
type zone struct {
	mu    sync.Mutex
	txt   map[string][]string
	calls []string // "present" or "clean up", and the domain

	wildcard string // what *.example.com is a CNAME to

	lost  bool  // a record that is set is not seen
	fails error // what Present returns
	stays error // what CleanUp does
}

func newZone(m *letsencrypt.Manager, cas ...*catest.CA) *zone {
	z := &zone{txt: make(map[string][]string)}
	m.Resolver = &net.Resolver{PreferGo: true, Dial: z.dial}
	for _, ca := range cas {
		ca.Change(func(c *catest.Config) { c.TXT = z.lookup })
	}
	return z
}

func (z *zone) lookup(name string) []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.txt[name])
}

func (z *zone) set(name string, values ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.txt[name] = values
}

// Present replaces what is there, as many providers do.
func (z *zone) Present(ctx context.Context, domain, token, keyAuth string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.calls = append(z.calls, "present "+domain)
	if z.fails != nil {
		return z.fails
	}
	digest := sha256.Sum256([]byte(keyAuth))
	if !z.lost {
		z.txt["_acme-challenge."+domain] = []string{base64.RawURLEncoding.EncodeToString(digest[:])}
	}
	return nil
}

func (z *zone) CleanUp(ctx context.Context, domain, token, keyAuth string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	z.calls = append(z.calls, "clean up "+domain)
	if z.stays != nil {
		return z.stays
	}
	delete(z.txt, "_acme-challenge."+domain)
	return nil
}

// wantCleanedUp checks that each record that was set was taken away, before the
// next for the same domain, and that there are as many as wanted.
func (z *zone) wantCleanedUp(t *testing.T, want int) {
	t.Helper()
	synctest.Wait()
	z.mu.Lock()
	defer z.mu.Unlock()
	for i := 0; i+1 < len(z.calls); i += 2 {
		domain := strings.TrimPrefix(z.calls[i], "present ")
		if z.calls[i+1] != "clean up "+domain {
			t.Fatalf("the provider was called for %q, want each record taken away before the next", z.calls)
		}
	}
	if len(z.calls) != 2*want {
		t.Errorf("the provider was called for %q, want %d records", z.calls, want)
	}
}

func (z *zone) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		for {
			var size [2]byte
			if _, err := io.ReadFull(server, size[:]); err != nil {
				return
			}
			query := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(server, query); err != nil {
				return
			}
			reply := z.reply(query)
			server.Write(binary.BigEndian.AppendUint16(nil, uint16(len(reply))))
			server.Write(reply)
		}
	}()
	return client, nil
}

// reply answers a question. There are two zones, example.com and example.org,
// and one name server.
func (z *zone) reply(query []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil
	}
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	q := m.Questions[0]
	head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
	switch name := strings.ToLower(strings.TrimSuffix(q.Name.String(), ".")); {
	case q.Type == dnsmessage.TypeNS && (name == "example.com" || name == "example.org"):
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.NSResource{NS: dnsmessage.MustNewName("ns.example.net.")}})
	case q.Type == dnsmessage.TypeA && name == "ns.example.net":
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 53}}})
	case q.Type == dnsmessage.TypeTXT && z.wildcard != "" && strings.HasSuffix(name, ".example.com") && len(z.lookup(name)) == 0:
		head.Type = dnsmessage.TypeCNAME
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(z.wildcard)}})
	case q.Type == dnsmessage.TypeTXT:
		for _, v := range z.lookup(name) {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.TXTResource{TXT: []string{v}}})
		}
	}
	reply, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return reply
}

// newDNSManager returns a Manager with a DNSProvider.
func newDNSManager(t *testing.T, cas ...*catest.CA) (*letsencrypt.Manager, *zone) {
	m := newManager(t, cas...)
	m.Limit = unlimited()
	z := newZone(m, cas...)
	m.DNS = z
	return m, z
}

func TestWildcardServesTheNamesBelowIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m, z := newDNSManager(t, ca)
		m.SetHosts([]string{"*.example.com", "example.com", "own.example.com"})
		if err := m.Manage(t.Context(), "*.example.com", "example.com"); err != nil {
			t.Fatal(err)
		}
		wild := mustGet(t, m, "a.example.com")
		if got := wild.DNSNames; !slices.Equal(got, []string{"*.example.com"}) {
			t.Errorf("a.example.com is served a certificate for %q, want the wildcard's", got)
		}
		for _, name := range []string{"b.example.com", "B.Example.COM.", "own.example.com"} {
			if leaf := mustGet(t, m, name); !leaf.Equal(wild) {
				t.Errorf("%s is served %q, want the wildcard's", name, leaf.DNSNames)
			}
		}
		if leaf := mustGet(t, m, "example.com"); !slices.Equal(leaf.DNSNames, []string{"example.com"}) {
			t.Errorf("example.com is served %q, want its own", leaf.DNSNames)
		}
		if _, err := get(m, "x.a.example.com"); !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Errorf("GetCertificate(x.a.example.com) = %v, want %v: a wildcard is for one label", err, letsencrypt.ErrHostNotAllowed)
		}
		wantCount(t, ca, "newOrder", 2)
		z.wantCleanedUp(t, 2)
		if err := m.Manage(t.Context(), "own.example.com"); err != nil {
			t.Fatal(err)
		}
		if leaf := mustGet(t, m, "own.example.com"); !slices.Equal(leaf.DNSNames, []string{"own.example.com"}) {
			t.Errorf("own.example.com, which is on the list, is served %q, want its own", leaf.DNSNames)
		}
		if s := m.Status("*.example.com")[0]; s.Challenge != "dns-01" || s.Err != nil {
			t.Errorf("Status = %+v, want one that passed dns-01", s)
		}
	})
}

func TestClientWaitsForAWildcard(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m, _ := newDNSManager(t, ca)
		m.SetHosts([]string{"*.example.com"})
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if leaf, err := get(m, fmt.Sprintf("h%d.example.com", i)); err != nil || leaf.DNSNames[0] != "*.example.com" {
					t.Errorf("GetCertificate = %v, %v, want the wildcard", leaf, err)
				}
			})
		}
		wg.Wait()
		wantCount(t, ca, "newOrder", 1)
	})
}

func TestClientCantHaveAWildcardMade(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m, _ := newDNSManager(t, ca)
		m.Allow = func(context.Context, string) error { return nil }
		if _, err := get(m, "*.example.com"); !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Errorf("GetCertificate(*.example.com) = %v, want %v", err, letsencrypt.ErrHostNotAllowed)
		}
		wantCount(t, ca, "newOrder", 0)
	})
}

func TestNameBelowANewWildcardIsNotRenewed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m, _ := newDNSManager(t, ca)
		m.Allow = func(context.Context, string) error { return nil }
		own := mustGet(t, m, "a.example.com")
		m.SetHosts([]string{"*.example.com"})
		if err := m.Manage(t.Context(), "*.example.com"); err != nil {
			t.Fatal(err)
		}
		for range 90 {
			mustGet(t, m, "a.example.com")
			pass(day)
		}
		if leaf := mustGet(t, m, "a.example.com"); leaf.DNSNames[0] != "*.example.com" || leaf.Equal(own) {
			t.Errorf("a.example.com is served %q, want the wildcard's", leaf.DNSNames)
		}
		if n := len(ca.Issued("a.example.com")); n != 1 {
			t.Errorf("%d certificates for a.example.com, want the 1 from before the wildcard", n)
		}
	})
}

func TestAddressKeepsItsChallengesBesideDNS(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m, z := newDNSManager(t, ca)
		m.SetHosts([]string{"192.0.2.7"})
		if err := m.Manage(t.Context(), "192.0.2.7"); err != nil {
			t.Fatal(err)
		}
		z.wantCleanedUp(t, 0)
	})
}

func TestRecordIsTakenAway(t *testing.T) {
	const host = "a.example.com"
	for _, tt := range []struct {
		name string
		set  func(z *zone, ca *catest.CA)
		want string // in the error
	}{
		{"the provider fails", func(z *zone, _ *catest.CA) { z.fails = errors.New("no credentials") }, "no credentials"},
		{"the CA refuses", func(_ *zone, ca *catest.CA) { ca.TXT = nil }, "no TXT record found"},
		{"the CA changes its mind", func(_ *zone, ca *catest.CA) {
			ca.Fault(catest.On("challenge", 1, catest.Problem(403, "unauthorized", "not today", "")))
		}, "not today"},
		{"nobody sees the record", func(z *zone, _ *catest.CA) { z.lost = true }, "_acme-challenge.a.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				m, z := newDNSManager(t, ca)
				tt.set(z, ca)
				err := m.Manage(t.Context(), host)
				if wantHostError(t, err, host); !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Manage = %v, want %q in it", err, tt.want)
				}
				z.wantCleanedUp(t, 1)
			})
		})
	}
}

func TestCARecordIsLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m, z := newDNSManager(t, ca)
		z.lost = true
		start := time.Now()
		err := m.Manage(t.Context(), "a.example.com")
		wantHostError(t, err, "a.example.com")
		if took := time.Since(start); took < 2*time.Minute || took > 3*time.Minute {
			t.Errorf("Manage took %v, want the two minutes that a record is awaited", took)
		}
		wantCount(t, ca, "challenge", 1) // it was for the CA to decide
		for _, want := range []string{"no TXT record found", "ns.example.net"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("Manage = %v, want %q in it", err, want)
			}
		}
	})
}

func TestRecordThatStaysIsLogged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, z := newDNSManager(t, catest.New(t))
		d := keepDiary(t, m)
		z.stays = errors.New("no credentials to delete with")
		if err := m.Manage(t.Context(), "a.example.com"); err != nil {
			t.Fatal(err)
		}
		if l := d.lines("WARN", "_acme-challenge.a.example.com", "no credentials to delete with"); len(l) != 1 {
			t.Errorf("logged %q, want one line that the record stays", l)
		}
	})
}

func TestShutdownTakesTheRecordAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m, z := newDNSManager(t, ca)
		z.lost = true // so that it is waited for
		done := make(chan error, 1)
		go func() { done <- m.Manage(t.Context(), "a.example.com") }()
		pass(10 * time.Second)
		shutdown(t, m)
		z.wantCleanedUp(t, 1)
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Manage = %v, want %v", err, http.ErrServerClosed)
		}
	})
}

func TestTwoOfATXTNameTakeTurnsBelowAWildcard(t *testing.T) {
	for _, cname := range []string{"", "lb.example.org."} {
		t.Run(cname, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				m, z := newDNSManager(t, ca)
				z.wildcard = cname
				ca.Fault(catest.On("challenge", 1, catest.Slow(20*time.Second)))
				var wg sync.WaitGroup
				for _, host := range []string{"example.com", "*.example.com"} {
					wg.Go(func() {
						if err := m.Manage(t.Context(), host); err != nil {
							t.Error(err)
						}
					})
					pass(15 * time.Second) // the first one's record is set, and seen
				}
				wg.Wait()
				z.wantCleanedUp(t, 2)
			})
		})
	}
}

// A slowZone has records that nobody ever sees in example.org, and takes as long
// as some of lego's providers to give up on them.
type slowZone struct{ *zone }

func (slowZone) Timeout() (timeout, interval time.Duration) { return time.Hour, 15 * time.Second }

func (s slowZone) Present(ctx context.Context, domain, token, keyAuth string) error {
	if strings.HasSuffix(domain, ".example.org") {
		return nil
	}
	return s.zone.Present(ctx, domain, token, keyAuth)
}

func TestRecordsThatAreNotSeenKeepNobodyWaiting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, z := newDNSManager(t, catest.New(t))
		m.DNS = slowZone{z}
		var unseen []string
		for i := range 40 { // more than one CA is asked for at once
			unseen = append(unseen, fmt.Sprintf("h%d.example.org", i))
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		wg.Go(func() { m.Manage(ctx, unseen...) })
		pass(10 * time.Second)
		for _, host := range []string{"192.0.2.7", "good.example.com"} {
			if err := m.Manage(deadline(t, time.Minute), host); err != nil {
				t.Error(err)
			}
		}
	})
}

// Records of dns-persist-01.

func TestWildcardWithoutProviderSaysWhatToSet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "*.example.com"
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		for _, ca := range []*catest.CA{first, second} {
			ca.Challenges = []string{"tls-alpn-01", "http-01", "dns-01", "dns-persist-01"}
			ca.Issuers = []string{"issuer." + ca.Host, "another." + ca.Host}
		}
		m := newManager(t, first, second)
		m.Limit = unlimited()
		d := keepDiary(t, m)
		z := newZone(m, first, second)
		m.SetHosts([]string{host})
		err := m.Manage(t.Context(), host)
		wantHostError(t, err, host)
		told := map[string]string{"Manage": err.Error(), "Status": m.Status(host)[0].Err.Error(), "the log": strings.Join(d.lines("no new certificate"), "")}
		for _, ca := range []*catest.CA{first, second} {
			value := fmt.Sprintf("issuer.%s; accounturi=%s; policy=wildcard", ca.Host, ca.Accounts()[0].URL)
			for where, text := range told {
				if !strings.Contains(text, "_validation-persist.example.com") || !strings.Contains(text, value) {
					t.Errorf("%s says %q, want the record's name and its value %q", where, text, value)
				}
			}
		}
		pass(3 * day)
		for _, ca := range []*catest.CA{first, second} {
			wantCount(t, ca, "challenge", 0)
			wantCount(t, ca, "newOrder", 1)
		}
		value := fmt.Sprintf("issuer.two.test; accounturi=%s", second.Accounts()[0].URL)
		z.set("_validation-persist.example.com", "something else", value) // which lacks the policy
		pass(2 * time.Hour)
		wantCount(t, second, "challenge", 0)
		z.set("_validation-persist.example.com", "something else", value+";policy=wildcard")
		pass(2 * time.Hour)
		if leaf := mustGet(t, m, "a.example.com"); leaf.Issuer.CommonName == "" || m.Status(host)[0].CA != second.Directory() {
			t.Errorf("Status = %+v, want a certificate of the second CA", m.Status(host)[0])
		}
		if s := m.Status(host)[0]; s.Challenge != "dns-persist-01" || s.Err != nil {
			t.Errorf("Status = %+v, want one that passed dns-persist-01", s)
		}
		wantCount(t, first, "newOrder", 1)
	})
}

func TestRecordOfAPersonIsTheLastResort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		ca.Challenges = []string{"tls-alpn-01", "http-01", "dns-persist-01"}
		m := newManager(t, ca)
		m.Limit = unlimited()
		m.HTTPHandler(nil)
		z := newZone(m, ca)
		point([]*catest.CA{ca}, nil, nil) // nothing reaches us
		err := m.Manage(t.Context(), host)
		wantHostError(t, err, host)
		if strings.Contains(err.Error(), "persist") {
			t.Errorf("Manage = %v, want nothing of a record that nobody has heard of", err)
		}
		wantCount(t, ca, "newOrder", 2)
		z.set("_validation-persist."+host, "ca.test; accounturi="+ca.Accounts()[0].URL)
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		wantCount(t, ca, "newOrder", 5)
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		wantCount(t, ca, "newOrder", 6) // it goes first now
		z.set("_validation-persist." + host)
		wantHostError(t, m.Renew(t.Context(), host), host)
		wantCount(t, ca, "newOrder", 8)
		mustGet(t, m, host)
	})
}

func TestRecordOfAPersonIsLookedForWhateverOtherCAsSay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "*.example.com"
		first, second := newCA(t, "one.test"), newCA(t, "two.test") // which has no challenge for it
		first.Challenges = []string{"tls-alpn-01", "http-01", "dns-01", "dns-persist-01"}
		m := newManager(t, first, second)
		m.Limit = unlimited()
		z := newZone(m, first, second)
		m.SetHosts([]string{host})
		wantHostError(t, m.Manage(t.Context(), host), host)
		pass(5 * day)
		z.set("_validation-persist.example.com", fmt.Sprintf("one.test; accounturi=%s; policy=wildcard", first.Accounts()[0].URL))
		pass(67 * time.Minute) // an hour, a tenth more, and a moment
		if s := m.Status(host)[0]; s.Challenge != "dns-persist-01" || s.CA != first.Directory() {
			t.Errorf("Status = %+v, want a certificate of the first CA", s)
		}
	})
}

func TestWildcardThatNoCADoes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		newZone(m, ca)
		m.SetHosts([]string{"*.example.com"})
		err := m.Manage(t.Context(), "*.example.com")
		wantHostError(t, err, "*.example.com")
		for _, want := range []string{"dns-01", "DNS to a provider"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("Manage = %v, want %q in it", err, want)
			}
		}
	})
}

// Revocation.

// order returns what was asked of the CA at these endpoints, in order.
func order(ca *catest.CA, endpoints ...string) []string {
	var list []string
	for _, r := range ca.Requests() {
		if slices.Contains(endpoints, r.Endpoint) {
			list = append(list, r.Endpoint)
		}
	}
	return list
}

func TestRevokeReplacesFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		ca.FreshKeys = true
		m := newManager(t, ca)
		d := keepDiary(t, m)
		old := mustGet(t, m, host)
		if err := m.Revoke(t.Context(), host, acme.CRLReasonSuperseded); err != nil {
			t.Fatal(err)
		}
		if got, want := order(ca, "newOrder", "finalize", "revokeCert"), []string{"newOrder", "finalize", "newOrder", "finalize", "revokeCert"}; !slices.Equal(got, want) {
			t.Errorf("asked of the CA: %q, want %q", got, want)
		}
		if _, reason, ok := ca.Revoked(old); !ok || reason != 4 {
			t.Errorf("the old one is revoked: %v, for reason %d, want true and 4", ok, reason)
		}
		leaf := mustGet(t, m, host)
		if _, _, ok := ca.Revoked(leaf); ok || leaf.Equal(old) {
			t.Error("a revoked certificate is served")
		}
		if es := d.of(letsencrypt.EventRevoked); len(es) != 1 || es[0].Host != host || es[0].CA != ca.Directory() {
			t.Errorf("events %+v, want one that it was revoked", es)
		}
	})
}

func TestNothingIsRevokedThatCantBeReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		old := mustGet(t, m, host)
		ca.Change(func(c *catest.Config) {
			c.RefuseOrder = func([]string, string) *catest.Error { return rateLimited("3600") }
		})
		he := wantHostError(t, m.Revoke(t.Context(), host, acme.CRLReasonUnspecified), host)
		if !strings.Contains(he.Error(), "too many of these") {
			t.Errorf("Revoke = %v, want the CA's words", he)
		}
		wantCount(t, ca, "revokeCert", 0)
		if leaf := mustGet(t, m, host); !leaf.Equal(old) {
			t.Error("another certificate is served")
		}
	})
}

func TestCessationReplacesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		m.SetHosts([]string{host})
		old := mustGet(t, m, host)
		m.SetHosts([]string{})
		if err := m.Revoke(t.Context(), host, acme.CRLReasonCessationOfOperation); err != nil {
			t.Fatal(err)
		}
		if _, reason, ok := ca.Revoked(old); !ok || reason != 5 {
			t.Errorf("revoked: %v, for reason %d, want true and 5", ok, reason)
		}
		pass(100 * day)
		wantCount(t, ca, "newOrder", 1)
		if _, err := get(m, host); !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Errorf("GetCertificate = %v, want %v", err, letsencrypt.ErrHostNotAllowed)
		}
		if s := m.Status(); len(s) != 0 {
			t.Errorf("Status = %+v, want nothing", s)
		}
	})
}

// keyOf returns the private key of the certificate that a Manager serves, as the
// state has it.
func keyOf(t *testing.T, m *letsencrypt.Manager, host string) string {
	t.Helper()
	cert, err := m.Cert(host)
	if err != nil {
		t.Fatal(err)
	}
	der, err := certs.MarshalKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

func TestCompromisedKeyLeavesWhateverBecomesOfTheNewOne(t *testing.T) {
	for _, tt := range []struct {
		name   string
		refuse func([]string, string) *catest.Error
	}{
		{"replaced", nil},
		{"limited", func([]string, string) *catest.Error { return rateLimited("3600") }},
		{"refused", func([]string, string) *catest.Error {
			return &catest.Error{Status: 403, Type: "rejectedIdentifier", Detail: "not this one"}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				file := filepath.Join(t.TempDir(), "state")
				ca := catest.New(t)
				m := newManager(t, ca)
				if err := m.CacheFile(file); err != nil {
					t.Fatal(err)
				}
				m.SetHosts([]string{host})
				old := mustGet(t, m, host)
				key, blob := keyOf(t, m, host), m.Marshal()
				ca.Change(func(c *catest.Config) { c.RefuseOrder = tt.refuse })
				err := m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise)
				if (err == nil) != (tt.refuse == nil) {
					t.Errorf("Revoke = %v", err)
				}
				if _, reason, ok := ca.Revoked(old); !ok || reason != 1 {
					t.Errorf("revoked: %v, for reason %d, want true and 1", ok, reason)
				}
				onDisk, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(m.Marshal(), key) || strings.Contains(string(onDisk), key) {
					t.Error("the compromised key is in the state")
				}
				if err := m.Unmarshal(blob); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(m.Marshal(), key) {
					t.Error("an old blob brings the compromised key back")
				}
				leaf, err := get(m, host)
				if tt.refuse == nil && err != nil || tt.refuse != nil && err == nil || leaf != nil && leaf.Equal(old) {
					t.Errorf("GetCertificate = %v, %v; want another certificate if there is one", leaf, err)
				}
				ca.Change(func(c *catest.Config) { c.RefuseOrder = nil })
				pass(3 * time.Hour)
				mustGet(t, m, host)
			})
		})
	}
}

func TestOtherProcessDropsACompromisedKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		file := filepath.Join(t.TempDir(), "state")
		ca := catest.New(t)
		other, m := newManager(t, ca), newManager(t, ca)
		if err := m.CacheFile(file); err != nil {
			t.Fatal(err)
		}
		old := mustGet(t, m, host)
		key := keyOf(t, m, host)
		if err := other.CacheFile(file); err != nil {
			t.Fatal(err)
		}
		if leaf := mustGet(t, other, host); !leaf.Equal(old) {
			t.Fatal("the other process has another certificate")
		}
		ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			if endpoint == "newOrder" {
				return catest.Problem(403, "rejectedIdentifier", "no", "")
			}
			return nil
		})
		if err := m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise); err == nil {
			t.Error("Revoke = nil, want that there is no new certificate")
		}
		mustNot := func(m *letsencrypt.Manager) {
			t.Helper()
			if leaf, err := get(m, host); err == nil {
				t.Errorf("GetCertificate = %v, want none", leaf.SerialNumber)
			}
			if strings.Contains(m.Marshal(), key) {
				t.Error("the compromised key is in the state")
			}
		}
		mustNot(m)
		get(other, "b.example.com") // refused, but it has the file read
		pass(time.Hour)
		mustNot(other)
		mustNot(m)
		if onDisk, err := os.ReadFile(file); err != nil || strings.Contains(string(onDisk), key) {
			t.Errorf("the compromised key is in the file, or %v", err)
		}
	})
}

func TestRevokeTriesUntilTheCAAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		old := mustGet(t, m, host)
		n := 0
		ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			if endpoint != "revokeCert" || n == 4 {
				return nil
			}
			n++
			return catest.HTML(502, "")
		})
		if err := m.Revoke(t.Context(), host, acme.CRLReasonUnspecified); err != nil {
			t.Fatal(err)
		}
		if _, _, ok := ca.Revoked(old); !ok || n != 4 {
			t.Errorf("revoked: %v, after %d failures, want true after 4", ok, n)
		}
		n = -1000
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := m.Revoke(ctx, host, acme.CRLReasonUnspecified); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Revoke = %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

// revoked returns which of the certificates issued for a host the CA has
// revoked, by number.
func revoked(ca *catest.CA, host string) []int {
	var list []int
	for i, leaf := range ca.Issued(host) {
		if _, _, ok := ca.Revoked(leaf); ok {
			list = append(list, i)
		}
	}
	return list
}

func wantRevoked(t *testing.T, ca *catest.CA, host string, want ...int) {
	t.Helper()
	if got := revoked(ca, host); !slices.Equal(got, want) {
		t.Errorf("of %d certificates %v are revoked, want %v", len(ca.Issued(host)), got, want)
	}
}

// wantServed checks which of the certificates issued for a host is served, by
// number.
func wantServed(t *testing.T, m *letsencrypt.Manager, ca *catest.CA, host string, want int) {
	t.Helper()
	leaf := mustGet(t, m, host)
	if got := slices.IndexFunc(ca.Issued(host), leaf.Equal); got != want {
		t.Errorf("certificate %d of %d is served, want %d", got, len(ca.Issued(host)), want)
	}
}

func TestReasonThatIsNoSubscribersIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		mustGet(t, m, host)
		asked := ca.Count("")
		for _, reason := range []acme.CRLReasonCode{-1, 2, 6, 7, 8, 9, 10, 99} {
			wantHostError(t, m.Revoke(t.Context(), host, reason), host)
		}
		wantCount(t, ca, "", asked)
		wantServed(t, m, ca, host, 0)
	})
}

func TestRevocationIsSeenThrough(t *testing.T) {
	limited := catest.Problem(429, "rateLimited", "too many revocations", "3600")
	for _, tt := range []struct {
		name    string
		fault   catest.Script
		restart bool
		want    int // the one that is served
	}{
		{"the CA limits revocations", catest.On("revokeCert", 0, limited), false, 1},
		{"and a restart", catest.On("revokeCert", 0, limited), true, 1},
		{"the CA fails to revoke", catest.On("revokeCert", 0, catest.HTML(502, "")), false, 1},
		{"and a restart", catest.On("revokeCert", 0, catest.HTML(502, "")), true, 1},
		{"the CA is down", catest.Down, false, 1},
		{"and a restart", catest.Down, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				file := filepath.Join(t.TempDir(), "state")
				ca := catest.New(t)
				m := newManager(t, ca)
				if err := m.CacheFile(file); err != nil {
					t.Fatal(err)
				}
				m.SetHosts([]string{host})
				mustGet(t, m, host)
				key := keyOf(t, m, host)
				ca.Fault(tt.fault)
				start := time.Now()
				wantHostError(t, m.Revoke(deadline(t, 5*time.Minute), host, acme.CRLReasonKeyCompromise), host)
				if took := time.Since(start); took > 5*time.Minute {
					t.Errorf("Revoke took %v", took)
				}
				wantRevoked(t, ca, host)
				if tt.restart {
					shutdown(t, m)
					m = newManager(t, ca)
					if err := m.CacheFile(file); err != nil {
						t.Fatal(err)
					}
					mustGet(t, m, host)
				}
				ca.Fault(nil)
				pass(3 * time.Hour)
				wantRevoked(t, ca, host, 0)
				wantServed(t, m, ca, host, tt.want)
				if onDisk, err := os.ReadFile(file); err != nil || strings.Contains(string(onDisk), key) || strings.Contains(m.Marshal(), key) {
					t.Errorf("the compromised key is in state or file, or %v", err)
				}
			})
		})
	}
}

func TestRevokeAgainRevokesTheSame(t *testing.T) {
	for _, reason := range []acme.CRLReasonCode{acme.CRLReasonSuperseded, acme.CRLReasonKeyCompromise} {
		t.Run(fmt.Sprint(reason), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				ca := catest.New(t)
				m := newManager(t, ca)
				mustGet(t, m, host)
				ca.Fault(catest.On("revokeCert", 0, catest.HTML(502, "")))
				if err := m.Revoke(deadline(t, time.Minute), host, reason); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Revoke = %v, want %v", err, context.DeadlineExceeded)
				}
				ca.Fault(nil)
				if err := m.Revoke(t.Context(), host, reason); err != nil {
					t.Fatal(err)
				}
				wantRevoked(t, ca, host, 0)
				wantServed(t, m, ca, host, 1)
				wantCount(t, ca, "newOrder", 2)
			})
		})
	}
}

func TestRevokeAgainObtainsWhatTheFirstCouldNot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		m.Limit = unlimited()
		m.SetHosts([]string{host})
		mustGet(t, m, host)
		ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			if endpoint == "newOrder" || endpoint == "revokeCert" {
				return catest.Problem(429, "rateLimited", "too many", "86400")
			}
			return nil
		})
		wantHostError(t, m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise), host)
		wantServed(t, m, ca, host, 0)
		ca.Fault(catest.On("newOrder", 0, catest.Problem(429, "rateLimited", "too many", "86400")))
		wantHostError(t, m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise), host)
		wantRevoked(t, ca, host, 0)
		if leaf, err := get(m, host); err == nil {
			t.Errorf("GetCertificate = %v, want none", leaf.SerialNumber)
		}
		wantHostError(t, m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise), host) // there is none to revoke
		ca.Fault(nil)
		pass(26 * time.Hour)
		wantRevoked(t, ca, host, 0)
		wantServed(t, m, ca, host, 1)
	})
}

func TestRevokeWithoutTheAccountThatOrdered(t *testing.T) {
	const host = "a.example.com"
	for _, tt := range []struct {
		name string
		lose func(t *testing.T, m *letsencrypt.Manager, ca *catest.CA)
	}{
		{"forgotten", func(_ *testing.T, _ *letsencrypt.Manager, ca *catest.CA) { ca.ForgetAccounts() }},
		{"deactivated", func(_ *testing.T, _ *letsencrypt.Manager, ca *catest.CA) { ca.DeactivateAccounts() }},
		{"replaced", func(t *testing.T, m *letsencrypt.Manager, ca *catest.CA) {
			other := newManager(t, ca)
			mustGet(t, other, "b.example.com")
			point([]*catest.CA{ca}, m.TLSConfig(), m)
			if err := m.Unmarshal(other.Marshal()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				m := newManager(t, ca)
				mustGet(t, m, host)
				tt.lose(t, m, ca)
				if err := m.Revoke(t.Context(), host, acme.CRLReasonCessationOfOperation); err != nil {
					t.Error(err)
				}
				wantRevoked(t, ca, host, 0)
			})
		})
	}
}

func TestOrderBringsNoCompromisedKeyBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		m.SetHosts([]string{host})
		var begun string // the state, while the order is under way
		ca.Fault(func(endpoint string, n int, _ *http.Request) catest.Response {
			if endpoint == "finalize" && n == 1 {
				begun = m.Marshal()
			}
			return nil
		})
		mustGet(t, m, host)
		key := keyOf(t, m, host)
		if !strings.Contains(begun, key) {
			t.Fatal("no order has the key")
		}
		if err := m.Unmarshal(begun); err != nil { // as after a crash
			t.Fatal(err)
		}
		refuse := func([]string, string) *catest.Error { return rateLimited("3600") }
		ca.Change(func(c *catest.Config) { c.RefuseOrder = refuse })
		wantHostError(t, m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise), host)
		wantRevoked(t, ca, host, 0)
		if strings.Contains(m.Marshal(), key) {
			t.Error("the compromised key is in the state")
		}
		ca.Change(func(c *catest.Config) { c.RefuseOrder = nil })
		m.SetHosts([]string{host})
		pass(3 * time.Hour)
		wantServed(t, m, ca, host, 1)
	})
}

func TestEachCompromisedKeyStaysOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		m.Limit = unlimited()
		m.SetHosts([]string{host})
		var keys, blobs []string
		for n := range 3 {
			mustGet(t, m, host)
			keys, blobs = append(keys, keyOf(t, m, host)), append(blobs, m.Marshal())
			if n == 2 {
				ca.Change(func(c *catest.Config) {
					c.RefuseOrder = func([]string, string) *catest.Error { return rateLimited("3600") }
				})
			}
			if err := m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise); (err == nil) != (n < 2) {
				t.Fatalf("Revoke = %v", err)
			}
		}
		wantRevoked(t, ca, host, 0, 1, 2)
		for _, blob := range blobs {
			if err := m.Unmarshal(blob); err != nil {
				t.Fatal(err)
			}
			if leaf, err := get(m, host); err == nil {
				t.Errorf("GetCertificate = %v, want none", leaf.SerialNumber)
			}
			for i, key := range keys {
				if strings.Contains(m.Marshal(), key) {
					t.Errorf("compromised key %d came back", i)
				}
			}
		}
	})
}

func TestMarkLivesAsLongAsTheCertificate(t *testing.T) {
	for _, reason := range []acme.CRLReasonCode{acme.CRLReasonKeyCompromise, acme.CRLReasonCessationOfOperation} {
		t.Run(fmt.Sprint(reason), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				ca := catest.New(t)
				ca.Lifetime = 12 * day
				m := newManager(t, ca)
				leaf := mustGet(t, m, host)
				key, blob := keyOf(t, m, host), m.Marshal()
				ca.Change(func(c *catest.Config) {
					c.RefuseOrder = func([]string, string) *catest.Error { return rateLimited("3600") }
				})
				m.Revoke(t.Context(), host, reason) // one of them returns that there is no new one
				pass(time.Until(leaf.NotAfter) - time.Hour)
				if err := m.Unmarshal(blob); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(m.Marshal(), key) {
					t.Error("the revoked certificate is back")
				}
				pass(2 * time.Hour)
				if strings.Contains(m.Marshal(), "\nrevoked ") {
					t.Error("there is a record still, although the certificate has expired")
				}
			})
		})
	}
}

func TestSupersededKeyMayBeUsedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		m.NewKey = func() (crypto.Signer, error) { return key, nil }
		mustGet(t, m, host)
		if err := m.Revoke(t.Context(), host, acme.CRLReasonSuperseded); err != nil {
			t.Fatal(err)
		}
		wantRevoked(t, ca, host, 0)
		wantServed(t, m, ca, host, 1)
		wantCount(t, ca, "newOrder", 2)
	})
}

func TestCessationWaitsForTheOrderUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		m.Limit = unlimited()
		m.SetHosts([]string{host})
		mustGet(t, m, host)
		ca.Fault(catest.On("finalize", 1, catest.Slow(time.Minute)))
		var wg sync.WaitGroup
		wg.Go(func() { m.Renew(t.Context(), host) })
		pass(time.Second)
		m.SetHosts([]string{})
		if err := m.Revoke(t.Context(), host, acme.CRLReasonCessationOfOperation); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		pass(time.Hour)
		if got := revoked(ca, host); !slices.Contains(got, 1) || len(ca.Issued(host)) != 2 {
			t.Errorf("of %d certificates %v are revoked, want the newest of 2", len(ca.Issued(host)), got)
		}
		if leaf, err := get(m, host); err == nil {
			t.Errorf("GetCertificate = %v, want none", leaf.SerialNumber)
		}
	})
}

func TestRevocationOfAnotherProcessIsTakenOverAfterTenMinutes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		file := filepath.Join(t.TempDir(), "state")
		ca := catest.New(t)
		died, m := newManager(t, ca), newManager(t, ca)
		for _, m := range []*letsencrypt.Manager{died, m} {
			m.Limit = unlimited()
			if err := m.CacheFile(file); err != nil {
				t.Fatal(err)
			}
		}
		point([]*catest.CA{ca}, died.TLSConfig(), died)
		mustGet(t, died, host)
		key := keyOf(t, died, host)
		ca.Fault(catest.On("revokeCert", 0, catest.HTML(502, "")))
		wantHostError(t, died.Revoke(deadline(t, time.Minute), host, acme.CRLReasonKeyCompromise), host)
		shutdown(t, died)
		point([]*catest.CA{ca}, m.TLSConfig(), m)
		ca.Fault(nil)
		start := time.Now()
		mustGet(t, m, "b.example.com") // has the file read
		pass(9 * time.Minute)
		if n := requests(ca, "revokeCert", start, time.Now()); n != 0 {
			t.Errorf("asked %d times to revoke it, want 0: the other process may be at it", n)
		}
		pass(time.Until(start.Add(12 * time.Minute)))
		wantRevoked(t, ca, host, 0)
		wantServed(t, m, ca, host, 1)
		if onDisk, err := os.ReadFile(file); err != nil || strings.Contains(string(onDisk), key) {
			t.Errorf("the compromised key is in the file, or %v", err)
		}
	})
}

func TestTwoProcessesRevokeAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := []string{"a.example.com", "b.example.com"}
		file := filepath.Join(t.TempDir(), "state")
		ca := catest.New(t)
		var ms []*letsencrypt.Manager
		var keys []string
		ca.TLS = func(host string) *tls.Config { return ms[slices.Index(hosts, host)].TLSConfig() }
		for _, host := range hosts {
			m := newManager(t)
			m.CAs = []letsencrypt.CA{{Directory: ca.Directory(), Client: ca.Client()}}
			ms = append(ms, m)
			m.Limit = unlimited()
			if err := m.CacheFile(file); err != nil {
				t.Fatal(err)
			}
			mustGet(t, m, host)
			keys = append(keys, keyOf(t, m, host))
		}
		ca.Fault(func(endpoint string, n int, _ *http.Request) catest.Response {
			if endpoint == "revokeCert" {
				return catest.Slow(time.Duration(n) * time.Second)
			}
			return nil
		})
		var wg sync.WaitGroup
		for i, m := range ms {
			wg.Go(func() {
				if err := m.Revoke(t.Context(), hosts[i], acme.CRLReasonKeyCompromise); err != nil {
					t.Error(err)
				}
				if strings.Contains(m.Marshal(), keys[i]) {
					t.Error("Revoke has returned, and the compromised key is in the state")
				}
			})
		}
		wg.Wait()
		pass(time.Hour)
		onDisk, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, host := range hosts {
			wantRevoked(t, ca, host, 0)
			for _, m := range ms {
				if strings.Contains(m.Marshal(), keys[i]) || strings.Contains(string(onDisk), keys[i]) {
					t.Errorf("the compromised key of %s is in the state", host)
				}
			}
		}
	})
}

func TestOldStateBringsNoCompromisedKeyBack(t *testing.T) {
	for name, endpoint := range map[string]string{"of while it was ordered": "finalize", "of while it was revoked": "revokeCert"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				ca := catest.New(t)
				m := newManager(t, ca)
				m.SetHosts([]string{host})
				var old string
				ca.Fault(func(at string, n int, _ *http.Request) catest.Response {
					if at == endpoint && n == 1 {
						old = m.Marshal()
					}
					return nil
				})
				mustGet(t, m, host)
				key := keyOf(t, m, host)
				refuse := func([]string, string) *catest.Error { return rateLimited("3600") }
				ca.Change(func(c *catest.Config) { c.RefuseOrder = refuse })
				wantHostError(t, m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise), host)
				if !strings.Contains(old, key) {
					t.Fatal("the old state does not have the key")
				}
				if err := m.Unmarshal(old); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(m.Marshal(), key) {
					t.Error("the compromised key is in the state")
				}
				if leaf, err := get(m, host); err == nil {
					t.Errorf("GetCertificate = %v, want none", leaf.SerialNumber)
				}
				ca.Change(func(c *catest.Config) { c.RefuseOrder = nil })
				m.SetHosts([]string{host})
				pass(3 * time.Hour)
				wantServed(t, m, ca, host, 1)
			})
		})
	}
}

func TestLesserReasonLeavesACompromisedKeyCompromised(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		m.SetHosts([]string{host})
		mustGet(t, m, host)
		key := keyOf(t, m, host)
		ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			if endpoint == "newOrder" || endpoint == "revokeCert" {
				return catest.Problem(429, "rateLimited", "too many", "3600")
			}
			return nil
		})
		for _, reason := range []acme.CRLReasonCode{acme.CRLReasonKeyCompromise, acme.CRLReasonSuperseded} {
			wantHostError(t, m.Revoke(t.Context(), host, reason), host)
		}
		ca.Fault(nil)
		pass(3 * time.Hour)
		wantRevoked(t, ca, host, 0)
		if _, reason, _ := ca.Revoked(ca.Issued(host)[0]); reason != 1 {
			t.Errorf("revoked for reason %d, want 1", reason)
		}
		if strings.Contains(m.Marshal(), key) {
			t.Error("the compromised key is in the state")
		}
	})
}

func TestLimitOnRevocationsIsToldAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		mustGet(t, m, host)
		ca.Fault(catest.On("revokeCert", 0, catest.Problem(429, "rateLimited", "too many revocations", "7200")))
		start := time.Now()
		err := m.Revoke(t.Context(), host, acme.CRLReasonSuperseded)
		if wantHostError(t, err, host); !strings.Contains(err.Error(), "too many revocations") || time.Since(start) > time.Minute {
			t.Errorf("Revoke = %v after %v, want the CA's words at once", err, time.Since(start))
		}
		pass(time.Until(start.Add(2*time.Hour - time.Minute)))
		wantCount(t, ca, "revokeCert", 1) // it said when to come back
		pass(3 * time.Minute)
		wantCount(t, ca, "revokeCert", 2)
	})
}

func TestCompromisedKeyMadeAgainIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		m.Limit = unlimited()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		m.NewKey = func() (crypto.Signer, error) { return key, nil }
		mustGet(t, m, host)
		wantNone := func(what string, err error) {
			t.Helper()
			if wantHostError(t, err, host); !strings.Contains(err.Error(), "NewKey") || !strings.Contains(err.Error(), "compromised") {
				t.Errorf("%s = %v, want that NewKey makes a compromised key", what, err)
			}
		}
		wantNone("Revoke", m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise))
		wantNone("Renew", m.Renew(t.Context(), host))
		wantRevoked(t, ca, host, 0)
		if n := len(ca.Issued(host)); n != 1 {
			t.Errorf("%d certificates have the compromised key, want 1", n)
		}
		if _, err := get(m, host); err == nil {
			t.Error("GetCertificate = nil, want an error")
		}
	})
}

func TestRevokeWhatThereIsNot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		wantHostError(t, m.Revoke(t.Context(), "a.example.com", acme.CRLReasonUnspecified), "a.example.com")
		wantHostError(t, m.Revoke(t.Context(), "a b", acme.CRLReasonUnspecified), "a b")
		wantCount(t, ca, "newOrder", 0)
	})
}

func TestCAWantsACertificateReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		var recalled atomic.Bool
		ca.ARI = func(leaf *x509.Certificate) catest.Window {
			w := catest.SuggestedWindow(leaf)
			if recalled.Load() && len(ca.Issued(host)) == 1 {
				w.Start, w.End = time.Now().Add(-2*day), time.Now().Add(-day)
				w.Explanation = "https://ca.test/incident"
			}
			return w
		}
		m := newManager(t, ca)
		d := keepDiary(t, m)
		m.SetHosts([]string{host})
		old := mustGet(t, m, host)
		pass(10 * day)
		if leaf := mustGet(t, m, host); !leaf.Equal(old) {
			t.Fatal("renewed before the CA wants it")
		}
		recalled.Store(true)
		pass(2 * day)
		if leaf := mustGet(t, m, host); leaf.Equal(old) {
			t.Error("not replaced although the CA wants it")
		}
		if es := d.of(letsencrypt.EventRecalled); len(es) != 1 || es[0].Host != host || !strings.Contains(es[0].Err.Error(), "incident") {
			t.Errorf("events %+v, want one with the CA's explanation", es)
		}
		pass(85 * day)
		if es := d.of(letsencrypt.EventRecalled); len(es) != 1 {
			t.Errorf("events %+v, want none for a renewal in its time", es)
		}
	})
}

// OCSP.

// A responder answers for a CA's certificates, beside the CA itself.
type responder struct {
	ca    *catest.CA
	hangs atomic.Bool

	mu    sync.Mutex
	now   int // questions that hang
	most  int // of them at once
	asked int
	life  time.Duration
	reply func(serial *big.Int, good []byte) (der []byte, err error) // nil: good
}

// newResponder returns the CA's responder, and a Manager that can reach both.
func newResponder(t *testing.T, ca *catest.CA) (*letsencrypt.Manager, *responder) {
	r := &responder{ca: ca, life: 4 * day}
	ca.OCSPServer = "http://ocsp.test"
	m := newManager(t, ca)
	m.CAs[0].Client = &http.Client{Transport: r}
	return m, r
}

func (r *responder) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != "ocsp.test" {
		return r.ca.Client().Transport.RoundTrip(req)
	}
	var query []byte
	if req.Method == http.MethodPost {
		query, _ = io.ReadAll(req.Body)
	} else {
		query, _ = base64.StdEncoding.DecodeString(strings.TrimPrefix(req.URL.Path, "/"))
	}
	q, err := ocsp.ParseRequest(query)
	if err != nil {
		return nil, err
	}
	if r.hangs.Load() {
		r.hang(+1)
		defer r.hang(-1)
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	der, err := r.answer(q.SerialNumber)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Header: make(http.Header), Body: io.NopCloser(bytes.NewReader(der)), Request: req}, nil
}

func (r *responder) hang(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now += n
	r.most = max(r.most, r.now)
}

func (r *responder) mostAtOnce() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.most
}

func (r *responder) answer(serial *big.Int) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	good := r.sign(serial, ocsp.Good, r.life)
	if r.reply == nil {
		return good, nil
	}
	return r.reply(serial, good)
}

func (r *responder) sign(serial *big.Int, status int, life time.Duration) []byte {
	issuer, key := r.ca.Issuer()
	now := time.Now()
	t := ocsp.Response{SerialNumber: serial, Status: status, ThisUpdate: now, NextUpdate: now.Add(life)}
	if status == ocsp.Revoked {
		t.RevokedAt, t.RevocationReason = now.Add(-time.Hour), ocsp.KeyCompromise
	}
	der, err := ocsp.CreateResponse(issuer, issuer, t, key)
	if err != nil {
		panic(err)
	}
	return der
}

func (r *responder) set(reply func(serial *big.Int, good []byte) ([]byte, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reply = reply
}

func (r *responder) times() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

func down(*big.Int, []byte) ([]byte, error) { return nil, errors.New("connection refused") }

// stapleOf returns the OCSP response that goes with a host's certificate, which is
// to be a good one for it, or nil.
func stapleOf(t *testing.T, m *letsencrypt.Manager, host string) *ocsp.Response {
	t.Helper()
	cert, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: host})
	if err != nil {
		t.Fatal(err)
	}
	if cert.OCSPStaple == nil {
		return nil
	}
	leaf, issuer := parseLeaf(t, cert.Certificate[0]), parseLeaf(t, cert.Certificate[1])
	resp, err := ocsp.ParseResponseForCert(cert.OCSPStaple, leaf, issuer)
	if err != nil {
		t.Fatalf("staple of %s: %v", host, err)
	}
	if now := time.Now(); resp.Status != ocsp.Good || now.After(resp.NextUpdate) || now.Before(resp.ThisUpdate) {
		t.Fatalf("staple of %s at %v: status %d, from %v to %v", host, now, resp.Status, resp.ThisUpdate, resp.NextUpdate)
	}
	return resp
}

func parseLeaf(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestStapleIsRefreshedHalfWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		m, r := newResponder(t, catest.New(t))
		m.SetHosts([]string{host})
		d := keepDiary(t, m)
		mustGet(t, m, host)
		synctest.Wait()
		first := stapleOf(t, m, host)
		if first == nil {
			t.Fatal("no staple")
		}
		for range 100 * 2 {
			pass(12 * time.Hour)
			if resp := stapleOf(t, m, host); resp == nil || time.Since(resp.ThisUpdate) > 3*day {
				t.Fatalf("staple %v at %v, want one younger than three days", resp, time.Now())
			}
		}
		if n := r.times(); n < 100/3 || n > 100 {
			t.Errorf("asked %d times in 100 days, want once in two days or so", n)
		}
		if es := d.of(letsencrypt.EventStaple); len(es) > 0 {
			t.Errorf("events %+v, want none", es)
		}
	})
}

func TestStapleIsKeptInTheState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m, r := newResponder(t, ca)
		mustGet(t, m, host)
		synctest.Wait()
		blob := m.Marshal()
		shutdown(t, m)
		r.set(down)
		again, r2 := newResponder(t, ca)
		r2.set(down)
		if err := again.Unmarshal(blob); err != nil {
			t.Fatal(err)
		}
		if stapleOf(t, again, host) == nil { // the first hello's
			t.Error("no staple after a restart")
		}
		pass(3 * day)
		if stapleOf(t, again, host) == nil {
			t.Error("no staple although the last is good still")
		}
		pass(2 * day)
		if stapleOf(t, again, host) != nil {
			t.Error("a staple although all are out of date")
		}
	})
}

func TestResponderIsDownForDays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		m, r := newResponder(t, catest.New(t))
		d := keepDiary(t, m)
		m.SetHosts([]string{host})
		leaf := mustGet(t, m, host)
		synctest.Wait()
		stapleOf(t, m, host)
		r.set(down)
		pass(5 * day)
		if stapleOf(t, m, host) != nil {
			t.Error("a staple although all are out of date")
		}
		es := d.of(letsencrypt.EventStaple)
		if len(es) != 1 || es[0].Host != host || es[0].Err == nil {
			t.Errorf("events %+v, want one that there is no staple", es)
		}
		asked := r.times()
		pass(10 * day)
		if n := r.times() - asked; n > 10*24*2 {
			t.Errorf("asked %d times in ten days, want no more than every hour", n)
		}
		r.set(nil)
		pass(2 * time.Hour)
		if stapleOf(t, m, host) == nil {
			t.Error("no staple although the responder is well again")
		}
		if es := d.of(letsencrypt.EventStaple); len(es) != 2 || es[1].Err != nil {
			t.Errorf("events %+v, want another that there is one again", es)
		}
		if now := mustGet(t, m, host); !now.Equal(leaf) {
			t.Error("the certificate was replaced")
		}
	})
}

func TestResponderThatLies(t *testing.T) {
	for name, lie := range map[string]func(r *responder) func(*big.Int, []byte) ([]byte, error){
		"garbage": func(*responder) func(*big.Int, []byte) ([]byte, error) {
			return func(_ *big.Int, good []byte) ([]byte, error) { return good[:len(good)/2], nil }
		},
		"another serial": func(r *responder) func(*big.Int, []byte) ([]byte, error) {
			return func(n *big.Int, _ []byte) ([]byte, error) {
				return r.sign(new(big.Int).Add(n, big.NewInt(1)), ocsp.Good, day), nil
			}
		},
		"unknown": func(r *responder) func(*big.Int, []byte) ([]byte, error) {
			return func(n *big.Int, _ []byte) ([]byte, error) { return r.sign(n, ocsp.Unknown, day), nil }
		},
		"out of date": func(r *responder) func(*big.Int, []byte) ([]byte, error) {
			return func(n *big.Int, _ []byte) ([]byte, error) { return r.sign(n, ocsp.Good, -time.Minute), nil }
		},
		"forged": func(*responder) func(*big.Int, []byte) ([]byte, error) {
			return func(_ *big.Int, good []byte) ([]byte, error) {
				bad := bytes.Clone(good)
				bad[len(bad)-1] ^= 1
				return bad, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m, r := newResponder(t, catest.New(t))
				r.set(lie(r))
				mustGet(t, m, "a.example.com")
				pass(time.Hour)
				if stapleOf(t, m, "a.example.com") != nil {
					t.Error("the lie is served")
				}
				if r.times() == 0 {
					t.Error("the responder was not asked")
				}
			})
		})
	}
}

func TestRevokedCertificateIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		m, r := newResponder(t, catest.New(t))
		d := keepDiary(t, m)
		m.SetHosts([]string{host})
		old := mustGet(t, m, host)
		r.set(func(n *big.Int, good []byte) ([]byte, error) {
			if n.Cmp(old.SerialNumber) == 0 {
				return r.sign(n, ocsp.Revoked, day), nil
			}
			return good, nil
		})
		pass(3 * day)
		if leaf := mustGet(t, m, host); leaf.Equal(old) {
			t.Error("not replaced although it is revoked")
		}
		if stapleOf(t, m, host) == nil {
			t.Error("no staple for the new one")
		}
		if es := d.of(letsencrypt.EventRevoked); len(es) != 1 || es[0].Host != host || es[0].Err == nil || es[0].CA == "" {
			t.Errorf("events %+v, want one that it was revoked", es)
		}
	})
}

func TestResponderThatRevokesEverythingMakesNoLoop(t *testing.T) {
	for _, after := range []time.Duration{0, 90 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				ca := catest.New(t)
				m, r := newResponder(t, ca)
				m.Limit = unlimited()
				first := make(map[string]time.Time) // when each was asked for, by serial
				r.set(func(n *big.Int, _ []byte) ([]byte, error) {
					if first[n.String()].IsZero() {
						first[n.String()] = time.Now()
					}
					if time.Since(first[n.String()]) < after {
						return r.sign(n, ocsp.Unknown, day), nil
					}
					return r.sign(n, ocsp.Revoked, day), nil
				})
				m.SetHosts([]string{host})
				mustGet(t, m, host)
				for range 10 {
					pass(day)
					if n := len(ca.Issued(host)); n < 2 || n > 30 {
						t.Fatalf("%d certificates by %v, want a few in ten days", n, time.Now())
					}
				}
			})
		})
	}
}

func TestNothingIsSaidOfCertificatesWithoutResponder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newManager(t, catest.New(t))
		d := keepDiary(t, m)
		mustGet(t, m, "a.example.com")
		pass(30 * day)
		if l := append(d.lines("OCSP"), d.lines("staple")...); len(l) > 0 {
			t.Errorf("logged %q, want nothing", l)
		}
	})
}

func TestMustStapleWaitsForItsStaple(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		ca.Lifetime = 12 * day
		m, r := newResponder(t, ca)
		m.MustStaple = true
		m.SetHosts([]string{host})
		old := mustGet(t, m, host)
		if len(old.Extensions) == 0 || stapleOf(t, m, host) == nil {
			t.Fatal("the first certificate came without a staple")
		}
		r.set(func(n *big.Int, good []byte) ([]byte, error) {
			if n.Cmp(old.SerialNumber) == 0 {
				return good, nil
			}
			return nil, errors.New("not here yet")
		})
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		pass(day)
		if leaf := mustGet(t, m, host); !leaf.Equal(old) {
			t.Error("a certificate that must be stapled is served without a staple")
		}
		if stapleOf(t, m, host) == nil {
			t.Error("the old certificate lost its staple")
		}
		r.set(nil)
		pass(2 * time.Hour)
		leaf := mustGet(t, m, host)
		if leaf.Equal(old) || stapleOf(t, m, host) == nil {
			t.Error("the new certificate is not served although its staple is there")
		}
		r.set(down)
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		pass(time.Until(leaf.NotAfter) + time.Minute)
		mustGet(t, m, host) // without a staple rather than not at all
	})
}

// unstapled has the responder answer for one certificate alone, truly.
func (r *responder) unstapled(known *x509.Certificate) {
	r.set(func(n *big.Int, good []byte) ([]byte, error) {
		if n.Cmp(known.SerialNumber) != 0 {
			return nil, errors.New("not here yet")
		}
		if _, _, ok := r.ca.Revoked(known); ok {
			return r.sign(n, ocsp.Revoked, day), nil
		}
		return good, nil
	})
}

// waitingForStaple returns a Manager whose new certificate for the host, the
// second, waits for its first staple, while the one before is served.
func waitingForStaple(t *testing.T, host string) (*catest.CA, *letsencrypt.Manager) {
	t.Helper()
	ca := catest.New(t)
	m, r := newResponder(t, ca)
	m.MustStaple = true
	m.Limit = unlimited()
	m.SetHosts([]string{host})
	r.unstapled(mustGet(t, m, host))
	if err := m.Renew(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	return ca, m
}

func TestRevokedCertificateIsServedNoMoreThoughTheNewOneHasNoStaple(t *testing.T) {
	for _, tt := range []struct {
		name   string
		reason acme.CRLReasonCode
		renew  bool // so that the one in the state waits for its staple
	}{
		{"compromised", acme.CRLReasonKeyCompromise, false},
		{"superseded", acme.CRLReasonSuperseded, false},
		{"compromised while another waits", acme.CRLReasonKeyCompromise, true},
		{"superseded while another waits", acme.CRLReasonSuperseded, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				ca := catest.New(t)
				m, r := newResponder(t, ca)
				m.MustStaple = true
				m.Limit = unlimited()
				m.SetHosts([]string{host})
				r.unstapled(mustGet(t, m, host))
				want, gone := 1, []int{0}
				if tt.renew {
					if err := m.Renew(t.Context(), host); err != nil {
						t.Fatal(err)
					}
					wantServed(t, m, ca, host, 0)
					want, gone = 2, []int{0, 1}
				}
				if err := m.Revoke(t.Context(), host, tt.reason); err != nil {
					t.Fatal(err)
				}
				wantRevoked(t, ca, host, gone...)
				wantServed(t, m, ca, host, want)
				pass(3 * day)
				wantRevoked(t, ca, host, gone...)
				wantServed(t, m, ca, host, want) // and no further one is ordered
			})
		})
	}
}

func TestRevokeAgainSeesToAllThatTheFirstCouldNot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca, m := waitingForStaple(t, host)
		ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			if endpoint == "newOrder" || endpoint == "revokeCert" {
				return catest.Problem(503, "serverInternal", "not now", "")
			}
			return nil
		})
		wantHostError(t, m.Revoke(deadline(t, 5*time.Minute), host, acme.CRLReasonKeyCompromise), host)
		ca.Fault(nil)
		if err := m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise); err != nil {
			t.Fatal(err)
		}
		wantRevoked(t, ca, host, 0, 1)
		wantServed(t, m, ca, host, 2)
	})
}

func TestAllThatWasRevokedIsSeenThrough(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca, m := waitingForStaple(t, host)
		ca.Fault(catest.On("revokeCert", 0, catest.Problem(429, "rateLimited", "too many revocations", "3600")))
		wantHostError(t, m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise), host)
		ca.Fault(nil)
		pass(3 * time.Hour)
		wantRevoked(t, ca, host, 0, 1)
		wantServed(t, m, ca, host, 2)
	})
}

func TestRevokeAgainRevokesAllThatWas(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca, m := waitingForStaple(t, host)
		ca.Fault(catest.On("revokeCert", 0, catest.Problem(429, "rateLimited", "too many revocations", "3600")))
		wantHostError(t, m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise), host)
		ca.Fault(nil)
		if err := m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise); err != nil {
			t.Fatal(err)
		}
		wantRevoked(t, ca, host, 0, 1)
		wantServed(t, m, ca, host, 2)
	})
}

func TestPredecessorIsRevokedWhereItIsFrom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		m, r := newResponder(t, first)
		m.CAs = append(m.CAs, letsencrypt.CA{Directory: second.Directory(), Client: &http.Client{Transport: &responder{ca: second, reply: down}}})
		point([]*catest.CA{second}, m.TLSConfig(), m)
		second.OCSPServer = "http://ocsp.test"
		m.MustStaple = true
		m.Limit = unlimited()
		m.SetHosts([]string{host})
		r.unstapled(mustGet(t, m, host))
		first.Fault(catest.On("newOrder", 0, catest.HTML(503, "")))
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		if err := m.Revoke(deadline(t, time.Hour), host, acme.CRLReasonKeyCompromise); err != nil {
			t.Error(err)
		}
		wantRevoked(t, first, host, 0)
		wantRevoked(t, second, host, 0)
	})
}

func TestRevokeWhileTheNewOneWaitsForItsStaple(t *testing.T) {
	for _, reason := range []acme.CRLReasonCode{acme.CRLReasonSuperseded, acme.CRLReasonKeyCompromise} {
		t.Run(fmt.Sprint(reason), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				ca := catest.New(t)
				m, r := newResponder(t, ca)
				m.MustStaple = true
				m.Limit = unlimited()
				m.SetHosts([]string{host})
				mustGet(t, m, host)
				r.hangs.Store(true)
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() { m.Renew(t.Context(), host) })
				pass(time.Second) // it is in the state, and not served yet
				if n := len(ca.Issued(host)); n != 2 {
					t.Fatalf("%d certificates, want 2", n)
				}
				if err := m.Revoke(t.Context(), host, reason); err != nil {
					t.Fatal(err)
				}
				if got, want := order(ca, "finalize", "revokeCert"), []string{"finalize", "finalize", "finalize", "revokeCert", "revokeCert"}; !slices.Equal(got, want) {
					t.Errorf("asked of the CA: %q, want %q", got, want)
				}
				wantRevoked(t, ca, host, 0, 1)
				wantServed(t, m, ca, host, 2)
			})
		})
	}
}

func TestMustStapleWithoutResponderIsServedAsItIs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m := newManager(t, ca)
		m.MustStaple = true
		m.SetHosts([]string{host})
		mustGet(t, m, host)
		wantServed(t, m, ca, host, 0)
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		wantServed(t, m, ca, host, 1)
		m = restart(t, m, ca)
		wantServed(t, m, ca, host, 1)
	})
}

func TestStapleIsDroppedInTimeThoughTheResponderHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m, r := newResponder(t, catest.New(t))
		m.Limit = unlimited()
		hosts := hostNames(30) // several times what is asked for at once
		m.SetHosts(hosts)
		if err := m.Manage(t.Context(), hosts...); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		first, last := time.Now().Add(r.life), time.Time{}
		for _, host := range hosts {
			resp := stapleOf(t, m, host)
			if resp == nil {
				t.Fatalf("%s has no staple", host)
			}
			if resp.NextUpdate.Before(first) {
				first = resp.NextUpdate
			}
			if resp.NextUpdate.After(last) {
				last = resp.NextUpdate
			}
		}
		r.hangs.Store(true)
		defer r.hangs.Store(false)
		for pass(time.Until(first)); time.Now().Before(last.Add(time.Minute)); pass(5 * time.Second) {
			for _, host := range hosts {
				stapleOf(t, m, host) // ends the test if it is out of date
			}
		}
	})
}

func TestOwnStapleLeavesWithItsCertificate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		ca.Lifetime = 4 * day // and its staple's is such that no newer one is asked for
		issues, r := newResponder(t, ca)
		cert, err := issues.Cert(host)
		if err != nil {
			t.Fatal(err)
		}
		own := *cert
		own.OCSPStaple = r.sign(cert.Leaf.SerialNumber, ocsp.Good, 10*day)
		m := newManager(t)
		m.SetHosts([]string{})
		mustAdd(t, m, own)
		wantOwn(t, m, own, host)
		pass(time.Minute)
		if stapleOf(t, m, host) == nil || !strings.Contains(m.Marshal(), "\nstaple ") {
			t.Fatal("the staple is not served, or not kept")
		}
		pass(10 * day)
		if strings.Contains(m.Marshal(), "\nstaple ") {
			t.Error("there is a record still, although the certificate has expired")
		}
	})
}

func TestPredecessorThatIsRevokedIsNotWaitedWith(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		ca := catest.New(t)
		m, r := newResponder(t, ca)
		m.MustStaple = true
		m.Limit = unlimited()
		m.SetHosts([]string{host})
		old := mustGet(t, m, host)
		r.set(func(n *big.Int, _ []byte) ([]byte, error) {
			if n.Cmp(old.SerialNumber) == 0 {
				return r.sign(n, ocsp.Revoked, day), nil
			}
			return nil, errors.New("not here yet")
		})
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		wantServed(t, m, ca, host, 0) // nobody has said so yet
		pass(3 * day)
		wantServed(t, m, ca, host, 1)
		if n := len(ca.Issued(host)); n != 2 {
			t.Errorf("%d certificates, want 2: the new one is not revoked", n)
		}
	})
}

func TestAccountTakenOutOfTheFile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		file := filepath.Join(t.TempDir(), "state")
		ca := catest.New(t)
		m := newManager(t, ca)
		if err := m.CacheFile(file); err != nil {
			t.Fatal(err)
		}
		old := mustGet(t, m, host)
		shutdown(t, m)
		ca.DeactivateAccounts()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var left strings.Builder
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "account ") {
				left.WriteString(line)
			}
		}
		if err := os.WriteFile(file, []byte(left.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		m = newManager(t, ca)
		if err := m.CacheFile(file); err != nil {
			t.Fatal(err)
		}
		if leaf := mustGet(t, m, host); !leaf.Equal(old) {
			t.Error("the certificate went with the account")
		}
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		if n := len(ca.Accounts()); n != 2 {
			t.Errorf("%d accounts, want another", n)
		}
	})
}

// New terms of service.

func TestNewTermsOfService(t *testing.T) {
	const host, old, changed = "a.example.com", "https://ca.test/terms/1", "https://ca.test/terms/2"
	for _, tt := range []struct {
		name   string
		prompt func(asked *[]string) func(string) bool // nil: Register is not called
		again  bool                                    // the Manager is restarted, and Register not called again
		err    string                                  // of Manage; "": none
		asked  []string
	}{
		{name: "no prompt"},
		{name: "agreed", prompt: func(asked *[]string) func(string) bool {
			return func(url string) bool { *asked = append(*asked, url); return true }
		}, asked: []string{old, changed}},
		{name: "refused", prompt: func(asked *[]string) func(string) bool {
			return func(url string) bool { *asked = append(*asked, url); return url == old }
		}, err: "terms of service were not agreed to", asked: []string{old, changed}},
		{name: "prompt is gone", again: true, prompt: func(asked *[]string) func(string) bool {
			return func(url string) bool { *asked = append(*asked, url); return true }
		}, err: "call Register", asked: []string{old}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca := catest.New(t)
				ca.Terms = old
				m := newManager(t, ca)
				d := keepDiary(t, m)
				var asked []string
				if tt.prompt != nil {
					if err := m.Register("", tt.prompt(&asked)); err != nil {
						t.Fatal(err)
					}
				} else {
					mustGet(t, m, "first.example.com")
				}
				if tt.again {
					m = restart(t, m, ca)
					d = keepDiary(t, m)
				}
				ca.Change(func(c *catest.Config) { c.Terms = changed })
				var agreed atomic.Bool
				ca.Fault(func(endpoint string, _ int, r *http.Request) catest.Response {
					switch {
					case endpoint == "account":
						agreed.Store(true)
					case endpoint == "newOrder" && !agreed.Load():
						return catest.Problem(403, "userActionRequired", "the terms have changed", "")
					}
					return nil
				})
				err := m.Manage(t.Context(), host)
				if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
					t.Errorf("Manage = %v, want %q", err, tt.err)
				}
				if tt.err != "" && !strings.Contains(err.Error(), changed) {
					t.Errorf("Manage = %v, want the terms' URL in it", err)
				}
				if !slices.Equal(asked, tt.asked) {
					t.Errorf("asked about %q, want %q", asked, tt.asked)
				}
				if l := d.lines("new terms of service"); tt.err == "" && len(l) == 0 {
					t.Error("nothing is said of it")
				}
				if tt.err == "" {
					return
				}
				n := ca.Count("newOrder")
				m.Manage(t.Context(), "b.example.com")
				wantCount(t, ca, "newOrder", n) // it is everybody's
				if err := m.Register("", func(string) bool { return true }); err != nil {
					t.Fatal(err)
				}
				pass(2 * time.Minute)
				if err := m.Manage(t.Context(), host); err != nil {
					t.Errorf("Manage after Register agreed = %v, want nil", err)
				}
			})
		})
	}
}

// A shelf is a Storage in memory, of one fleet. Its members have views of it,
// which go wrong in ways of their own.
type shelf struct {
	mu     sync.Mutex
	values map[string][]byte
	locks  map[string]chan struct{} // closed when the lock is given back
	ops    map[string]int           // by what was done and the first two parts of the key
}

// A view is one member's.
type view struct {
	*shelf
	fault func(ctx context.Context, op, key string) error // before it is done; nil: none
	loose atomic.Bool                                     // it has every lock that it asks for
}

func (s *shelf) do(v *view, ctx context.Context, op, key string, f func()) error {
	v.mu.Lock()
	fault := v.fault
	kind, _, _ := strings.Cut(strings.TrimPrefix(key, "letsencrypt/"), "/")
	if s.ops == nil {
		s.ops, s.values, s.locks = make(map[string]int), make(map[string][]byte), make(map[string]chan struct{})
	}
	s.ops[op+" "+kind]++
	v.mu.Unlock()
	if fault != nil {
		if err := fault(ctx, op, key); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	return nil
}

// setFault makes a view fail.
func (v *view) setFault(f func(ctx context.Context, op, key string) error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fault = f
}

// count returns how often something was done: "load cert", say.
func (s *shelf) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ops[what]
}

func (s *shelf) get(key string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

func (v *view) Store(ctx context.Context, key string, value []byte) error {
	return v.do(v, ctx, "store", key, func() { v.values[key] = slices.Clone(value) })
}

func (v *view) Load(ctx context.Context, key string) (value []byte, err error) {
	var ok bool
	if err := v.do(v, ctx, "load", key, func() { value, ok = v.values[key] }); err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("loading %s: %w", key, fs.ErrNotExist)
	}
	return slices.Clone(value), nil
}

func (v *view) Delete(ctx context.Context, key string) error {
	return v.do(v, ctx, "delete", key, func() { delete(v.values, key) })
}

func (v *view) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	return nil, v.do(v, ctx, "list", prefix, func() {})
}

func (v *view) Lock(ctx context.Context, name string) error {
	for {
		var held chan struct{}
		err := v.do(v, ctx, "lock", name, func() {
			if held = v.locks[name]; held == nil || v.loose.Load() {
				v.locks[name], held = make(chan struct{}), nil
			}
		})
		if err != nil || held == nil {
			return err
		}
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (v *view) Unlock(ctx context.Context, name string) error {
	return v.do(v, ctx, "unlock", name, func() {
		if held := v.locks[name]; held != nil {
			close(held)
			delete(v.locks, name)
		}
	})
}

// A fleet is several Managers with one shelf.
type fleet struct {
	shelf   shelf
	members []*letsencrypt.Manager
	views   []*view
	ca      *catest.CA
	next    atomic.Int64 // validations go to the members in turn
}

// newFleet returns a fleet of n members, which with may change before they are
// used. The CA's validations reach now this member and now that.
func newFleet(t *testing.T, n int, with func(m *letsencrypt.Manager)) *fleet {
	t.Helper()
	f := &fleet{ca: catest.New(t)}
	for range n {
		f.add(t, with)
	}
	f.ca.Change(func(c *catest.Config) {
		c.TLS = func(string) *tls.Config {
			return f.members[int(f.next.Add(1))%len(f.members)].TLSConfig()
		}
	})
	return f
}

func (f *fleet) add(t *testing.T, with func(m *letsencrypt.Manager)) *letsencrypt.Manager {
	t.Helper()
	m := newManager(t)
	v := &view{shelf: &f.shelf}
	m.CAs = []letsencrypt.CA{{Directory: f.ca.Directory(), Client: f.ca.Client()}}
	m.Storage, m.Limit = v, unlimited()
	if with != nil {
		with(m)
	}
	f.members, f.views = append(f.members, m), append(f.views, v)
	return m
}

// wantSame ends the test unless all members serve one certificate for a host.
func (f *fleet) wantSame(t *testing.T, host string) *x509.Certificate {
	t.Helper()
	first := mustGet(t, f.members[0], host)
	for i, m := range f.members[1:] {
		if leaf := mustGet(t, m, host); !leaf.Equal(first) {
			t.Errorf("member %d serves %x for %s, member 0 %x", i+1, leaf.SerialNumber, host, first.SerialNumber)
		}
	}
	return first
}

func listed(hosts ...string) func(m *letsencrypt.Manager) {
	return func(m *letsencrypt.Manager) { m.SetHosts(hosts) }
}

func allowAll(m *letsencrypt.Manager) { m.Allow = func(context.Context, string) error { return nil } }

// reach has the CA's validations go to one member alone.
func (f *fleet) reach(m *letsencrypt.Manager) { point([]*catest.CA{f.ca}, m.TLSConfig(), nil) }

// alone returns a Manager that has certificates, and that is no member but shut
// down.
func (f *fleet) alone(t *testing.T, file string, hosts ...string) *letsencrypt.Manager {
	t.Helper()
	m := newManager(t, f.ca)
	m.Limit = unlimited()
	if file != "" {
		if err := m.CacheFile(file); err != nil {
			t.Fatal(err)
		}
	}
	m.SetHosts(hosts)
	for _, host := range hosts {
		mustGet(t, m, host)
	}
	shutdown(t, m)
	return m
}

func TestFleetOrdersOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(5)
		f := newFleet(t, 4, listed(hosts...))
		var wg sync.WaitGroup
		for _, m := range f.members {
			for _, host := range hosts {
				wg.Go(func() { mustGet(t, m, host) })
			}
		}
		wg.Wait()
		for _, host := range hosts {
			f.wantSame(t, host)
		}
		if n := len(f.ca.Issued("")); n != len(hosts) {
			t.Errorf("%d certificates for %d hosts", n, len(hosts))
		}
		wantCount(t, f.ca, "newOrder", len(hosts))
		wantCount(t, f.ca, "newAccount", 1)
		if n := f.shelf.count("list letsencrypt"); n != 0 {
			t.Errorf("the storage was listed %d times", n)
		}
	})
}

func TestFleetRenewsOnce(t *testing.T) {
	for life, long := range map[time.Duration]time.Duration{90 * day: 200 * day, 6 * day: 60 * day} {
		t.Run(life.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				f := newFleet(t, 2, listed(host))
				f.ca.Lifetime = life
				for began := time.Now(); time.Since(began) < long; pass(6 * time.Hour) {
					for _, m := range f.members {
						mustGet(t, m, host)
					}
				}
				soonest := life/2 - life/30 // at which age a certificate is renewed
				if life > 10*day {
					soonest = life - life/3 - life/30
				}
				if n, most := len(f.ca.Issued(host)), int(long/soonest)+1; n > most {
					t.Errorf("%d certificates in %v, want %d at most", n, long, most)
				}
			})
		})
	}
}

func TestFleetSharesRenewalInformation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 4, listed(host))
		f.ca.Change(func(c *catest.Config) { c.ARI = overSince(time.Now().Add(1000 * day)) })
		for _, m := range f.members {
			mustGet(t, m, host)
		}
		pass(10 * day)
		for _, m := range f.members { // a few of them ask at once at the beginning
			mustGet(t, m, host)
		}
		if n, most := f.ca.Count("renewalInfo"), 10*4+4; n > most {
			t.Errorf("%d questions for renewal information in ten days, want %d at most, as one Manager asks", n, most)
		}
	})
}

// TestMomentOfAnotherMembersIsKnownBeforeALock: of certificates so short-lived that
// they are due by our own schedule before we look what the others know of them.
func TestMomentOfAnotherMembersIsKnownBeforeALock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 8, listed(host))
		f.ca.Change(func(c *catest.Config) {
			c.Lifetime = 10 * time.Minute
			c.ARI = func(leaf *x509.Certificate) catest.Window {
				return catest.Window{Start: leaf.NotBefore.Add(7 * time.Minute), End: leaf.NotBefore.Add(7*time.Minute + 10*time.Second)}
			}
		})
		leaf := mustGet(t, f.members[0], host)
		for _, m := range f.members {
			mustGet(t, m, host)
		}
		before := f.shelf.count("lock letsencrypt-host-" + host)
		pass(time.Until(leaf.NotBefore.Add(6 * time.Minute)))
		if n := f.shelf.count("lock letsencrypt-host-"+host) - before; n > 0 {
			t.Errorf("%d locks to find that it is not yet the moment, want 0", n)
		}
		pass(3 * time.Minute)
		if n := len(f.ca.Issued(host)); n != 2 {
			t.Errorf("%d certificates after the moment, want 2", n)
		}
	})
}

func TestNoMomentIsLookedForWithoutACertificate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(20)
		f := newFleet(t, 1, listed(hosts...))
		if err := f.members[0].Manage(t.Context(), hosts...); err != nil {
			t.Fatal(err)
		}
		if n := f.shelf.count("load ari"); n > len(hosts) {
			t.Errorf("%d looks for the moment of %d new hosts, want %d at most, under the lock", n, len(hosts), len(hosts))
		}
	})
}

func TestValidationReachesAnyMember(t *testing.T) {
	for _, kind := range []string{"tls-alpn-01", "http-01"} {
		t.Run(kind, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				f := newFleet(t, 2, listed(host))
				first := f.members[0]
				var late *letsencrypt.Manager // starts when the CA comes to validate
				f.ca.Change(func(c *catest.Config) {
					c.TLS = func(string) *tls.Config {
						if late == nil {
							late = f.add(t, listed(host))
						}
						return late.TLSConfig()
					}
				})
				if kind == "http-01" {
					first.HTTPHandler(nil)
					f.ca.Change(func(c *catest.Config) {
						c.TLS = nil
						c.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							if late == nil {
								late = f.add(t, listed(host))
							}
							late.ServeHTTP(w, r)
						})
					})
				} else {
					first.TLSConfig()
				}
				mustGet(t, first, host)
				if got := first.Status(host)[0].Challenge; got != kind || late == nil {
					t.Errorf("challenge %s, want %s at another member", got, kind)
				}
				if n := f.shelf.count("delete challenge"); n == 0 || f.shelf.get("letsencrypt/challenge/"+host) != nil {
					t.Error("the answer is in the storage still")
				}
			})
		})
	}
}

// validate makes a hello that looks like a CA's validation.
func validate(m *letsencrypt.Manager, name string) error {
	_, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{"acme-tls/1"}})
	return err
}

func TestStrangersCannotLoadTheStorage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, 1, listed("a.example.com"))
		m := f.members[0]
		h := m.HTTPHandler(http.NotFoundHandler())
		ask := func(host string) {
			if err := validate(m, host); err == nil {
				t.Errorf("a validation of %s that nobody expects passed", host)
			}
			r := httptest.NewRequest("GET", "http://"+host+"/.well-known/acme-challenge/abc", nil)
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
		for i := range 1000 {
			ask(fmt.Sprintf("%d.example.net", i))
			get(m, fmt.Sprintf("%d.example.net", i))
		}
		if n := len(f.shelf.ops); n != 0 {
			t.Errorf("hosts that are not allowed had the storage do %v", f.shelf.ops)
		}
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() { ask("a.example.com") })
		}
		began := time.Now()
		wg.Wait()
		if n, most := f.shelf.count("load challenge"), 2+int(2*time.Since(began)/time.Second); n > most {
			t.Errorf("1000 validations of an allowed host had %d values loaded in %v, want %d at most", n, time.Since(began), most)
		}
	})
}

var errAway = errors.New("connection refused")

// away is a fault: nothing works.
func away(context.Context, string, string) error { return errAway }

// unread fails to load all of a kind.
func unread(kind string) func(ctx context.Context, op, key string) error {
	return func(_ context.Context, op, key string) error {
		if op == "load" && strings.HasPrefix(key, "letsencrypt/"+kind+"/") {
			return errors.New("no permission")
		}
		return nil
	}
}

func TestMemberThatLosesTheStorage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host, other = "a.example.com", "b.example.com"
		f := newFleet(t, 1, listed(host, other))
		m, v := f.members[0], f.views[0]
		d := keepDiary(t, m)
		first := mustGet(t, m, host)
		pass(55 * day)
		v.setFault(away)
		began := time.Now()
		_, err := get(m, other)
		if he := wantHostError(t, err, other); !errors.Is(he, errAway) || he.Retry.IsZero() || time.Since(began) > time.Second {
			t.Errorf("error %v after %v, want one that says soon what the storage says, and when to come again", err, time.Since(began))
		}
		pass(10 * day) // the renewal is long past its moment
		if leaf := mustGet(t, m, host); !leaf.Equal(first) {
			t.Error("it was replaced by one that can't be kept")
		}
		wantCount(t, f.ca, "newOrder", 1)
		if es := d.of(letsencrypt.EventState); len(es) != 1 || !errors.Is(es[0].Err, errAway) {
			t.Errorf("events %v, want one that says what the storage says", es)
		}
		if s := m.Status(host)[0]; !errors.Is(s.Err, errAway) {
			t.Errorf("Status says %v, want what the storage says", s.Err)
		}
		if n := f.shelf.count("load register") + f.shelf.count("load cert"); n > 10*24*60*2 {
			t.Errorf("%d questions in ten days while nobody answered", n)
		}
		v.setFault(nil)
		pass(2 * time.Minute)
		if leaf := mustGet(t, m, host); leaf.Equal(first) {
			t.Error("the storage is back for two minutes, and nothing is renewed")
		}
		if es := d.of(letsencrypt.EventState); len(es) != 2 || es[1].Err != nil {
			t.Errorf("events %v, want another that says that all is well", es)
		}
		if s := m.Status(host)[0]; s.Err != nil {
			t.Errorf("Status says %v, want nothing", s.Err)
		}
		mustGet(t, m, other)
	})
}

func TestCertificateThatCouldNotBeStoredIsServedAndStoredLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 2, listed(host))
		f.views[0].setFault(func(_ context.Context, op, key string) error {
			if op == "store" && strings.Contains(key, "/cert/") {
				return errAway
			}
			return nil
		})
		first := mustGet(t, f.members[0], host)
		f.views[0].setFault(nil)
		pass(time.Minute)
		if leaf := mustGet(t, f.members[1], host); !leaf.Equal(first) {
			t.Error("another member ordered another")
		}
		wantCount(t, f.ca, "newOrder", 1)
	})
}

func TestLostLocksCostNoCertificate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(20)
		f := newFleet(t, 2, listed(hosts...))
		f.ca.ValidationTakes = 3 * time.Second
		for _, v := range f.views {
			v.loose.Store(true)
		}
		var wg sync.WaitGroup
		for _, m := range f.members {
			for _, host := range hosts {
				wg.Go(func() { get(m, host) })
			}
		}
		wg.Wait()
		pass(time.Hour) // the one's answer to a challenge may have taken the place of the other's
		for _, host := range hosts {
			f.wantSame(t, host)
		}
		if n := len(f.ca.Issued("")); n != len(hosts) {
			t.Errorf("%d certificates for %d hosts", n, len(hosts))
		}
		t.Logf("%d orders and %d certificates for %d hosts", f.ca.Count("newOrder"), len(f.ca.Issued("")), len(hosts))
	})
}

// TestTwoHoldersFinishOneOrder has a member stall with its new order in hand
// till another, that has the lock as well, has stored its own.
func TestTwoHoldersFinishOneOrder(t *testing.T) {
	for _, stall := range []string{"/order/", "/challenge/"} { // before and after it has stored
		for _, reuse := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s reuse=%v", strings.Trim(stall, "/"), reuse), func(t *testing.T) {
				bubble(t, func(t *testing.T) { twoHolders(t, stall, reuse) })
			})
		}
	}
}

func twoHolders(t *testing.T, stall string, reuse bool) {
	const host, other = "a.example.com", "b.example.com"
	f := newFleet(t, 2, listed(host, other))
	f.ca.OrderReuse = reuse
	f.views[0].loose.Store(true)
	f.views[1].loose.Store(true)
	if reuse {
		mustGet(t, f.members[0], other) // both are to have one account
	}
	gate := make(chan struct{})
	f.views[0].setFault(func(_ context.Context, op, key string) error {
		if op == "store" && strings.Contains(key, stall+host) {
			<-gate
		}
		return nil
	})
	var wg sync.WaitGroup
	for _, m := range f.members {
		wg.Go(func() { mustGet(t, m, host) })
		synctest.Wait() // the first stands at the gate
	}
	close(gate)
	wg.Wait()
	f.wantSame(t, host)
	if n := len(f.ca.Issued(host)); n != 1 {
		t.Errorf("%d certificates, want 1", n)
	}
}

// TestOrderOfTwoKeys has a member keep the order that another, which has the lock
// as well, has just looked at for the last time before it finalizes it. That is
// the one that obtains the certificate, and the first gets it from there.
func TestOrderOfTwoKeys(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host, other = "a.example.com", "b.example.com"
		f := newFleet(t, 2, listed(host, other))
		f.ca.OrderReuse = true
		mustGet(t, f.members[0], other) // both are to have one account
		gate := make(chan struct{})
		for i, v := range f.views {
			v.loose.Store(true)
			v.setFault(func(_ context.Context, op, key string) error {
				switch {
				case i == 0 && op == "store" && strings.Contains(key, "/order/"+host):
					<-gate
				case i == 1 && op == "store" && strings.Contains(key, "/cert/"+host):
					time.Sleep(3 * time.Second)
				}
				return nil
			})
		}
		var finalized atomic.Bool
		f.ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			switch {
			case endpoint != "finalize":
			case finalized.CompareAndSwap(false, true):
				close(gate)
				time.Sleep(time.Second / 10) // till the other is past its look as well
			default:
				time.Sleep(time.Second)
			}
			return nil
		})
		var wg sync.WaitGroup
		for _, m := range f.members {
			wg.Go(func() { mustGet(t, m, host) })
			synctest.Wait() // the first stands at the gate
		}
		wg.Wait()
		f.wantSame(t, host)
		if n := len(f.ca.Issued(host)); n != 1 {
			t.Errorf("%d certificates, want 1", n)
		}
		for _, m := range f.members {
			if s := m.Status(host)[0]; s.Err != nil {
				t.Errorf("Status says %v", s.Err)
			}
		}
	})
}

func TestLockThatDoesNotWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(3)
		f := newFleet(t, 3, listed(hosts...))
		for _, v := range f.views {
			v.setFault(func(_ context.Context, op, name string) error {
				v.mu.Lock()
				defer v.mu.Unlock()
				if op == "lock" && v.locks[name] != nil {
					return errors.New("locked")
				}
				return nil
			})
		}
		var wg sync.WaitGroup
		for _, m := range f.members {
			for _, host := range hosts {
				wg.Go(func() { mustGet(t, m, host) })
			}
		}
		wg.Wait()
		wantCount(t, f.ca, "newOrder", len(hosts))
	})
}

func TestLockThatTakesTwentySeconds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host, other = "a.example.com", "b.example.com"
		f := newFleet(t, 2, listed(host, other))
		mustGet(t, f.members[0], other) // with an account
		for _, v := range f.views {
			v.setFault(func(_ context.Context, op, _ string) error {
				if op == "lock" {
					time.Sleep(20 * time.Second)
				}
				return nil
			})
		}
		var wg sync.WaitGroup
		for _, m := range f.members {
			wg.Go(func() { mustGet(t, m, host) })
		}
		wg.Wait()
		wantCount(t, f.ca, "newOrder", 2)
		pass(20 * time.Second) // a Lock that nobody waits for any more gets there, too
		for name := range f.shelf.locks {
			t.Errorf("%s is locked for good", name)
		}
	})
}

// TestWhatAnotherStoresIsServedBeforeItsLockIsFree: the lock may be a crashed
// holder's, and those who wait for it may be many, of whom each has it for a while.
func TestWhatAnotherStoresIsServedBeforeItsLockIsFree(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 2, listed(host))
		f.views[0].loose.Store(true)
		crashed := &view{shelf: &f.shelf}
		if err := crashed.Lock(t.Context(), "letsencrypt-host-"+host); err != nil {
			t.Fatal(err)
		}
		f.views[0].setFault(func(_ context.Context, op, _ string) error {
			if op == "unlock" {
				return errors.New("it is not mine")
			}
			return nil
		})
		waiting := make(chan error)
		go func() {
			_, err := get(f.members[1], host)
			waiting <- err
		}()
		pass(10 * time.Second)
		mustGet(t, f.members[0], host)
		began := time.Now()
		if err := <-waiting; err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > 6*time.Second {
			t.Errorf("a client waited %v more once there was a certificate, want 6s at most", d)
		}
		wantCount(t, f.ca, "newOrder", 1)
		f.wantSame(t, host)
	})
}

// TestWhoWaitsForALockLooksSparingly: for what makes it needless, and says once what
// is wrong with that.
func TestWhoWaitsForALockLooksSparingly(t *testing.T) {
	const host = "a.example.com"
	tests := []struct {
		name   string
		value  []byte // of the certificate
		fault  func(ctx context.Context, op, key string) error
		loads  int // of it at most, in 100 seconds
		probes int // of the storage, at most
		events int64
	}{
		{"nothing there", nil, nil, 25, 0, 0},
		{"damaged", []byte("letsencrypt "), nil, 25, 0, 1},
		{"fails", nil, unread("cert"), 1, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var events atomic.Int64
				f := newFleet(t, 1, func(m *letsencrypt.Manager) {
					m.SetHosts([]string{host})
					m.Logger = slog.New(slog.DiscardHandler)
					m.OnEvent = func(letsencrypt.Event) { events.Add(1) }
				})
				crashed := &view{shelf: &f.shelf}
				if err := crashed.Lock(t.Context(), "letsencrypt-host-"+host); err != nil {
					t.Fatal(err)
				}
				if tt.value != nil {
					crashed.Store(t.Context(), "letsencrypt/cert/"+host, tt.value)
				}
				go get(f.members[0], host)
				pass(100 * time.Millisecond)
				f.views[0].setFault(tt.fault)
				loads, probes := f.shelf.count("load cert"), f.shelf.count("store probe")
				pass(100 * time.Second)
				if n := f.shelf.count("load cert") - loads; n > tt.loads {
					t.Errorf("%d looks for the certificate in 100s, want %d at most", n, tt.loads)
				}
				if n := f.shelf.count("store probe") - probes; n > tt.probes {
					t.Errorf("%d probes of the storage in 100s, want %d at most", n, tt.probes)
				}
				if n := events.Load(); n != tt.events {
					t.Errorf("%d events, want %d", n, tt.events)
				}
			})
		})
	}
}

// TestAccountThatAnotherMadeIsUsedThoughALaterLookFails: what was seen once is known.
func TestAccountThatAnotherMadeIsUsedThoughALaterLookFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const a, b = "a.example.com", "b.example.com"
		f := newFleet(t, 2, listed(a, b))
		f.views[0].loose.Store(true)
		crashed := &view{shelf: &f.shelf}
		var once sync.Once
		f.views[1].setFault(func(_ context.Context, op, key string) error {
			if op == "lock" && strings.Contains(key, "account") {
				once.Do(func() { crashed.Lock(context.Background(), key) })
			}
			return nil
		})
		waiting := make(chan error)
		go func() { waiting <- f.members[1].Manage(t.Context(), a) }()
		pass(10 * time.Second)
		var seen atomic.Int64
		f.views[1].setFault(func(_ context.Context, op, key string) error {
			if op == "load" && strings.Contains(key, "/account/") && f.shelf.get(key) != nil && seen.Add(1) == 2 {
				return errors.New("a hiccup")
			}
			return nil
		})
		f.views[0].setFault(func(_ context.Context, op, key string) error {
			if op == "unlock" && strings.Contains(key, "account") {
				return errors.New("it is not mine")
			}
			return nil
		})
		mustGet(t, f.members[0], b)
		if err := <-waiting; err != nil {
			t.Error(err)
		}
		if n := seen.Load(); n < 2 {
			t.Errorf("the account was seen %d times, want a second look", n)
		}
	})
}

// kept returns how many certificates a Manager has in memory.
func kept(m *letsencrypt.Manager) int { return strings.Count(m.Marshal(), "\ncert ") }

func TestCacheSize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(10)
		f := newFleet(t, 2, func(m *letsencrypt.Manager) { m.CacheSize = 3 })
		f.ca.Lifetime = 6 * day
		m := f.members[0]
		allowAll(m)
		for _, host := range hosts {
			mustGet(t, m, host)
		}
		pass(time.Hour)
		mustGet(t, m, hosts[0])
		if n := kept(m); n > 3 {
			t.Errorf("%d certificates in memory, want 3", n)
		}
		f.shelf.ops = make(map[string]int)
		for _, host := range hosts[1:] {
			before := maps.Clone(f.shelf.ops)
			mustGet(t, m, host)
			if n := f.shelf.ops["load cert"] - before["load cert"]; n > 1 || len(f.shelf.ops) > 1 {
				t.Errorf("%s came back with %v", host, f.shelf.ops)
			}
		}
		if n := f.shelf.ops["load cert"]; n < 7 {
			t.Errorf("%d of 9 came back from the storage, want 7 or more", n)
		}
		for _, s := range m.Status(hosts...) {
			if s.NotAfter.IsZero() || s.Renewal.IsZero() || s.Err != nil {
				t.Errorf("Status of one out of memory is %+v, want its dates", s)
			}
		}
		pass(4 * day) // those out of memory are renewed, too: clients asked for them
		for _, host := range hosts {
			if n := len(f.ca.Issued(host)); n != 2 {
				t.Errorf("%d certificates for %s, want 2", n, host)
			}
		}
		if n := kept(m); n > 3 {
			t.Errorf("%d certificates in memory, want 3", n)
		}
	})
}

func TestNewMemberServesWhatTheOthersHave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(3)
		f := newFleet(t, 1, allowAll)
		for _, host := range hosts {
			mustGet(t, f.members[0], host)
		}
		pass(time.Hour)
		before := maps.Clone(f.shelf.ops)
		late := f.add(t, allowAll)
		late.TLSConfig()
		late.Status()
		if !maps.Equal(f.shelf.ops, before) {
			t.Errorf("a start had the storage do %v, had done %v", f.shelf.ops, before)
		}
		mustGet(t, late, hosts[0])
		before["load cert"]++
		if !maps.Equal(f.shelf.ops, before) {
			t.Errorf("one certificate came with %v, want one load more than %v", f.shelf.ops, before)
		}
		f.wantSame(t, hosts[1])
		if !late.Registered() {
			t.Error("Registered() = false, but there is an account in the storage")
		}
		wantCount(t, f.ca, "newOrder", len(hosts))
	})
}

func TestStateOfBeforeGoesToTheStorage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(5)
		f := newFleet(t, 0, nil)
		before := f.alone(t, "", hosts...)
		m := f.add(t, nil)
		if err := m.Unmarshal(before.Marshal()); err != nil {
			t.Fatal(err)
		}
		m.Registered()
		pass(time.Minute)
		f.add(t, listed(hosts...))
		for _, host := range hosts {
			f.wantSame(t, host)
		}
		f.reach(m)
		if _, err := get(f.members[1], "x.example.net"); err == nil {
			t.Error("one that is not on the list")
		}
		if err := f.members[1].Renew(deadline(t, time.Minute), hosts[0]); err != nil {
			t.Fatal(err)
		}
		wantCount(t, f.ca, "newAccount", 1)
		wantCount(t, f.ca, "newOrder", len(hosts)+1)
	})
}

func TestFailingHostBacksOffInTheWholeFleet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 5, listed(host))
		f.ca.Change(func(c *catest.Config) { c.TLS = nil })
		for range 60 {
			for _, m := range f.members {
				if _, err := get(m, host); err == nil {
					t.Fatal("a certificate without a validation")
				}
			}
			pass(time.Minute)
		}
		if n := f.ca.Count("newOrder"); n > 7 {
			t.Errorf("%d orders in an hour, want 7 at most: a minute, two, four and so on between them", n)
		}
		f.reach(f.members[0])
		if err := f.members[3].Renew(deadline(t, time.Minute), host); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		f.wantSame(t, host) // also where the back-off runs
	})
}

func TestPauseOfTheCAIsTheFleets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(8)
		f := newFleet(t, 8, listed(hosts...))
		mustGet(t, f.members[0], hosts[0])
		f.ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
			if endpoint == "newOrder" {
				return catest.Refuse
			}
			return nil
		})
		for i, m := range f.members {
			get(m, hosts[i])
			pass(time.Second)
		}
		if n := f.ca.Count("newOrder"); n > 3 { // one is from before
			t.Errorf("%d orders, want the one from before, one try, and one more at once", n)
		}
	})
}

func TestAccountThatTheCAForgotIsMadeAnewOnceInAFleet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(4)
		f := newFleet(t, 4, listed(hosts...))
		for i, m := range f.members {
			mustGet(t, m, hosts[i])
		}
		f.ca.ForgetAccounts()
		for _, m := range f.members {
			if err := m.Renew(deadline(t, time.Minute), hosts[0]); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(f.ca.Accounts()); n != 1 {
			t.Errorf("%d accounts, want 1", n)
		}
	})
}

func TestRevokeInAFleet(t *testing.T) {
	for _, reason := range []acme.CRLReasonCode{acme.CRLReasonSuperseded, acme.CRLReasonKeyCompromise, acme.CRLReasonCessationOfOperation} {
		t.Run(fmt.Sprint(reason), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				f := newFleet(t, 3, allowAll)
				for _, m := range f.members {
					mustGet(t, m, host)
				}
				old := f.wantSame(t, host)
				if err := f.members[0].Revoke(deadline(t, time.Minute), host, reason); err != nil {
					t.Fatal(err)
				}
				if _, _, ok := f.ca.Revoked(old); !ok {
					t.Fatal("not revoked")
				}
				pass(7 * time.Hour) // all have looked into the storage
				if n, want := len(f.ca.Issued(host)), map[acme.CRLReasonCode]int{acme.CRLReasonCessationOfOperation: 1}[reason]; want != 0 && n != want {
					t.Errorf("%d certificates, want %d", n, want)
				}
				if leaf := f.wantSame(t, host); leaf.Equal(old) {
					t.Error("the members serve the one that was revoked")
				}
				if n := len(f.ca.Issued(host)); n != 2 {
					t.Errorf("%d certificates, want 2", n)
				}
				if v := f.shelf.get("letsencrypt/cert/" + host); bytes.Contains(v, []byte(base64.StdEncoding.EncodeToString(old.Raw))) {
					t.Error("the storage has the one that was revoked")
				}
			})
		})
	}
}

func TestShutdownGivesTheLockBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 2, listed(host))
		f.ca.Change(func(c *catest.Config) {
			c.ValidationTakes = 30 * time.Second
			c.TLS = func(string) *tls.Config { return f.members[1].TLSConfig() }
		})
		go get(f.members[0], host)
		pass(time.Second)
		shutdown(t, f.members[0])
		if n := len(f.shelf.locks); n != 0 {
			t.Errorf("%d locks are held after Shutdown", n)
		}
		mustGet(t, f.members[1], host)
		wantCount(t, f.ca, "newOrder", 1)
	})
}

func TestValueThatIsDamagedIsReplacedAndSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 1, listed(host))
		mustGet(t, f.members[0], host)
		f.shelf.mu.Lock()
		f.shelf.values["letsencrypt/cert/"+host] = f.shelf.values["letsencrypt/cert/"+host][:700]
		f.shelf.mu.Unlock()
		m := f.add(t, nil)
		d := keepDiary(t, m)
		m.SetHosts([]string{host})
		f.reach(m)
		mustGet(t, m, host)
		if es := d.of(letsencrypt.EventState); len(es) == 0 || !strings.Contains(es[0].Err.Error(), host) {
			t.Errorf("events %v, want one about %s", es, host)
		}
	})
}

func TestValueOfALaterVersionIsLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 1, listed(host))
		f.shelf.values = map[string][]byte{"letsencrypt/cert/" + host: []byte("letsencrypt 2\nsomething\n")}
		f.shelf.ops, f.shelf.locks = make(map[string]int), make(map[string]chan struct{})
		_, err := get(f.members[0], host)
		if wantHostError(t, err, host); !errors.Is(err, journal.ErrVersion) {
			t.Errorf("error %v, want one about the version", err)
		}
		wantCount(t, f.ca, "newOrder", 0)
	})
}

// TestOneBadKeyStopsNoOtherHost has the storage fail for one host alone.
func TestOneBadKeyStopsNoOtherHost(t *testing.T) {
	for _, op := range []string{"load", "store", "lock"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const bad, good = "a.example.com", "b.example.com"
				f := newFleet(t, 1, listed(bad, good))
				m, v := f.members[0], f.views[0]
				d := keepDiary(t, m)
				v.setFault(func(_ context.Context, what, key string) error {
					if what == op && strings.Contains(key, bad) {
						return errAway
					}
					return nil
				})
				for range 3 {
					get(m, bad)
					pass(5 * time.Minute)
				}
				mustGet(t, m, good)
				if es := d.of(letsencrypt.EventFailed); len(es) == 0 || es[0].Host != bad {
					t.Errorf("events %v, want some about %s", es, bad)
				}
				if s := m.Status(bad, good); !errors.Is(s[0].Err, errAway) || s[1].Err != nil {
					t.Errorf("Status says %v and %v, want an error for the first alone", s[0].Err, s[1].Err)
				}
				v.setFault(nil)
				if err := m.Renew(deadline(t, time.Minute), bad); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestWhatMovesToAFleetWithACacheIsNotLost(t *testing.T) {
	for _, file := range []string{"", filepath.Join(t.TempDir(), "cache")} {
		t.Run(fmt.Sprintf("file=%v", file != ""), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				hosts := hostNames(5)
				f := newFleet(t, 0, nil)
				before := f.alone(t, file, hosts...)
				m := f.add(t, func(m *letsencrypt.Manager) { m.CacheSize = 2 })
				f.reach(m)
				if file != "" {
					if err := m.CacheFile(file); err != nil {
						t.Fatal(err)
					}
				} else if err := m.Unmarshal(before.Marshal()); err != nil {
					t.Fatal(err)
				}
				m.Registered()
				pass(time.Hour)
				for _, host := range hosts {
					mustGet(t, m, host)
				}
				wantCount(t, f.ca, "newOrder", len(hosts))
			})
		})
	}
}

func TestOrderThatMovesToAFleetIsFinished(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 0, nil)
		f.ca.FinalizeTakes = 30 * time.Second
		before := newManager(t, f.ca)
		go get(before, host)
		pass(10 * time.Second)
		shutdown(t, before) // while the CA issues it
		m := f.add(t, nil)
		f.reach(m)
		if err := m.Unmarshal(before.Marshal()); err != nil {
			t.Fatal(err)
		}
		mustGet(t, m, host)
		wantCount(t, f.ca, "newOrder", 1)
	})
}

// TestHostWhoseValueCannotBeReadStopsNoOther has clients ask for it all the time.
func TestHostWhoseValueCannotBeReadStopsNoOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const bad, good, other = "bad.example.com", "good.example.com", "other.example.com"
		f := newFleet(t, 1, listed(bad, good, other))
		f.ca.Lifetime = 6 * day
		m := f.members[0]
		old := mustGet(t, m, good)
		f.views[0].setFault(func(_ context.Context, op, key string) error {
			if op == "load" && strings.Contains(key, "/cert/"+bad) {
				return errors.New("permission denied")
			}
			return nil
		})
		pass(time.Until(m.Status(good)[0].Renewal) - 20*time.Minute)
		for range 40 * 4 {
			get(m, bad)
			pass(15 * time.Second)
		}
		get(m, bad)
		mustGet(t, m, other)
		if leaf := mustGet(t, m, good); leaf.Equal(old) {
			t.Error("the good one was not renewed")
		}
	})
}

func TestStoreThatHangsStopsNoOtherHost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const bad, good = "bad.example.com", "good.example.com"
		f := newFleet(t, 1, listed(bad, good))
		f.ca.RefuseOrder = func(names []string, _ string) *catest.Error {
			if names[0] == bad {
				return &catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: "no"}
			}
			return nil
		}
		gate := make(chan struct{})
		defer close(gate)
		f.views[0].setFault(func(_ context.Context, op, key string) error {
			if op == "store" && strings.Contains(key, "/backoff/"+bad) {
				<-gate
			}
			return nil
		})
		go get(f.members[0], bad)
		pass(5 * time.Minute)
		mustGet(t, f.members[0], good)
	})
}

// TestRevokedIsReplacedThoughOthersSetTheMoment has another member ask the CA
// for renewal information all the time.
func TestRevokedIsReplacedThoughOthersSetTheMoment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 1, listed(host))
		f.ca.OCSPServer = "http://ocsp.test"
		f.ca.ARI = overSince(time.Now().Add(1000 * day))
		r := &responder{ca: f.ca, life: 4 * day}
		m := f.members[0]
		m.CAs[0].Client = &http.Client{Transport: r}
		old := mustGet(t, m, host)
		pass(time.Hour)
		r.set(func(n *big.Int, good []byte) ([]byte, error) {
			if n.Cmp(old.SerialNumber) == 0 {
				return r.sign(n, ocsp.Revoked, day), nil
			}
			return good, nil
		})
		for began := time.Now(); time.Since(began) < 3*day; pass(10 * time.Minute) {
			f.setNextQuestion(t, host, time.Now().Add(300*time.Hour))
		}
		if leaf := mustGet(t, m, host); leaf.Equal(old) {
			t.Error("the certificate that is revoked is served three days later")
		}
	})
}

// setNextQuestion does what a member does that has asked for renewal information.
func (f *fleet) setNextQuestion(t *testing.T, host string, next time.Time) {
	t.Helper()
	f.shelf.mu.Lock()
	defer f.shelf.mu.Unlock()
	key := "letsencrypt/ari/" + host
	if f.shelf.values[key] == nil {
		return // there is another certificate
	}
	rs, err := shared.Decode(f.shelf.values[key], "ari", host)
	if err != nil {
		t.Fatal(err)
	}
	var ari map[string]any
	if err := json.Unmarshal([]byte(rs[len(rs)-1].JSON()), &ari); err != nil {
		t.Fatal(err)
	}
	ari["next"] = next
	text, err := json.Marshal(ari)
	if err != nil {
		t.Fatal(err)
	}
	f.shelf.values[key] = shared.Encode(journal.Format("ari", host, nil, text))
}

func TestRevokedHostThatNobodyWantsIsServedNoMore(t *testing.T) {
	for _, reason := range []acme.CRLReasonCode{acme.CRLReasonKeyCompromise, acme.CRLReasonCessationOfOperation} {
		t.Run(fmt.Sprint(reason), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				f := newFleet(t, 2, listed(host))
				old := f.wantSame(t, host)
				for _, m := range f.members {
					m.SetHosts([]string{"b.example.com"})
				}
				f.members[0].Revoke(deadline(t, time.Hour), host, reason)
				if _, _, ok := f.ca.Revoked(old); !ok {
					t.Fatal("not revoked")
				}
				pass(7 * time.Hour) // all have looked into the storage
				for i, m := range f.members {
					if leaf, err := get(m, host); err == nil && leaf.Equal(old) {
						t.Errorf("member %d serves what was revoked", i)
					}
				}
			})
		})
	}
}

// TestRevocationWaitsThoughTheHostIsOutOfMemory: for the replacement, that is.
func TestRevocationWaitsThoughTheHostIsOutOfMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const a, b = "a.example.com", "b.example.com"
		f := newFleet(t, 1, allowAll)
		old := mustGet(t, f.members[0], a)
		mustGet(t, f.members[0], b)
		f.ca.Change(func(c *catest.Config) { c.TLS, c.ValidationTakes = nil, time.Minute })
		go f.members[0].Revoke(t.Context(), a, acme.CRLReasonSuperseded)
		pass(10 * time.Second)
		blob := f.members[0].Marshal() // it crashes here, and its locks are free
		f.views[0].setFault(away)
		late := f.add(t, func(m *letsencrypt.Manager) { m.CacheSize = 1 })
		f.views[1].loose.Store(true)
		allowAll(late)
		if err := late.Unmarshal(blob); err != nil {
			t.Fatal(err)
		}
		mustGet(t, late, b)
		pass(time.Minute)
		mustGet(t, late, b)
		pass(time.Hour)
		f.views[0].setFault(nil)
		if _, _, ok := f.ca.Revoked(old); ok {
			t.Error("what all serve, and nothing has replaced, was revoked")
		}
	})
}

// stapledFleet returns a fleet whose members want must-staple certificates, and the
// OCSP responder as each of them sees it.
func stapledFleet(t *testing.T, n int, host string) (*fleet, []*responder) {
	f := newFleet(t, n, listed(host))
	f.ca.OCSPServer = "http://ocsp.test"
	var responders []*responder
	for _, m := range f.members {
		r := &responder{ca: f.ca, life: 4 * day}
		m.MustStaple = true
		m.CAs[0].Client = &http.Client{Transport: r}
		responders = append(responders, r)
	}
	return f, responders
}

func TestMustStapleIsStapledAtEveryMember(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f, _ := stapledFleet(t, 2, host)
		for i, m := range f.members {
			if stapleOf(t, m, host) == nil {
				t.Errorf("the first client of member %d gets no staple", i)
			}
		}
		old := mustGet(t, f.members[1], host)
		pass(time.Minute)
		if err := f.members[0].Renew(deadline(t, time.Minute), host); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < 7*time.Hour; pass(time.Minute) {
			if stapleOf(t, f.members[1], host) == nil {
				t.Fatal("one without a staple took the place of one with it")
			}
		}
		if leaf := f.wantSame(t, host); leaf.Equal(old) {
			t.Error("nothing took the place of the old one")
		}
	})
}

// TestMustStapleIsStapledBeforeItsMemberStoresTheStaple is of a client of another
// member, which finds the certificate in the storage while the one that obtained it
// asks for its staple.
func TestMustStapleIsStapledBeforeItsMemberStoresTheStaple(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f, responders := stapledFleet(t, 2, host)
		responders[0].set(func(_ *big.Int, good []byte) ([]byte, error) {
			time.Sleep(5 * time.Second)
			return good, nil
		})
		go f.members[0].Manage(t.Context(), host)
		for f.shelf.get("letsencrypt/cert/"+host) == nil {
			pass(10 * time.Millisecond)
		}
		if stapleOf(t, f.members[1], host) == nil {
			t.Error("the first client of the other member gets no staple")
		}
		pass(time.Minute)
		f.wantSame(t, host)
		if n := responders[1].times(); n != 1 {
			t.Errorf("the responder was asked %d times, want once", n)
		}
	})
}

// TestMustStapleIsStapledThoughItsPredecessorIsNotInUse: whether it is good for
// clients meanwhile is not known before it is read from the state.
func TestMustStapleIsStapledThoughItsPredecessorIsNotInUse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f, responders := stapledFleet(t, 2, host)
		old := mustGet(t, f.members[0], host)
		if err := f.members[1].Unmarshal(f.members[0].Marshal()); err != nil {
			t.Fatal(err)
		}
		responders[0].set(down)
		pass(time.Minute)
		if err := f.members[0].Renew(deadline(t, time.Minute), host); err != nil {
			t.Fatal(err)
		}
		pass(7 * time.Hour) // the other member has looked
		if stapleOf(t, f.members[1], host) == nil {
			t.Error("the first client of the other member gets no staple")
		}
		if leaf := mustGet(t, f.members[1], host); leaf.Equal(old) {
			t.Error("nothing took the place of the old one")
		}
	})
}

// TestMustStapleOfAnotherMemberWaitsForItsStaple though one thing or the other does
// not work: its predecessor is served meanwhile.
func TestMustStapleOfAnotherMemberWaitsForItsStaple(t *testing.T) {
	const host = "a.example.com"
	tests := []struct {
		name   string
		unused bool // the other member has the predecessor, and no client asked for it
		down   bool // the responder is
		fault  func(ctx context.Context, op, key string) error
	}{
		{"unused, responder down", true, true, nil},
		{"responder down", false, true, nil},
		{"staple can't be loaded", false, false, unread("staple")},
		{"unused, staple can't be loaded", true, false, unread("staple")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, responders := stapledFleet(t, 2, host)
				mustGet(t, f.members[0], host)
				if err := f.members[1].Unmarshal(f.members[0].Marshal()); err != nil {
					t.Fatal(err)
				}
				if !tt.unused {
					mustGet(t, f.members[1], host)
				}
				pass(time.Minute)
				if tt.down {
					responders[0].set(down)
					responders[1].set(down)
				}
				f.views[1].setFault(tt.fault)
				if err := f.members[0].Renew(deadline(t, time.Minute), host); err != nil {
					t.Fatal(err)
				}
				steps := []time.Duration{7 * time.Hour} // when the other member has looked
				if !tt.unused {
					steps = slices.Repeat([]time.Duration{time.Minute}, 7*60)
				}
				for _, step := range steps {
					pass(step)
					for i, m := range f.members {
						if stapleOf(t, m, host) == nil {
							t.Errorf("a client of member %d gets no staple", i)
						}
					}
				}
			})
		})
	}
}

// TestFirstStapleIsThere for who has a certificate, but not in use, and for who takes
// over one whose staple can't be loaded.
func TestFirstStapleIsThere(t *testing.T) {
	const host = "a.example.com"
	restore := func(t *testing.T, f *fleet) { // a backup
		v := &view{shelf: &f.shelf}
		cert, staple := f.shelf.get("letsencrypt/cert/"+host), f.shelf.get("letsencrypt/staple/"+host)
		pass(time.Hour)
		if err := f.members[0].Renew(deadline(t, time.Minute), host); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if err := f.members[1].Unmarshal(f.members[0].Marshal()); err != nil {
			t.Fatal(err)
		}
		shutdown(t, f.members[0])
		v.Store(t.Context(), "letsencrypt/cert/"+host, cert)
		v.Store(t.Context(), "letsencrypt/staple/"+host, staple)
		pass(7 * time.Hour)
	}
	late := func(t *testing.T, f *fleet) { // when the first staple is out of date
		if err := f.members[1].Unmarshal(f.members[0].Marshal()); err != nil {
			t.Fatal(err)
		}
		pass(5 * day)
	}
	forbidden := func(_ *testing.T, f *fleet) { f.views[1].setFault(unread("staple")) }
	tests := []struct {
		name string
		do   func(t *testing.T, f *fleet)
	}{
		{"an older certificate in the storage", restore},
		{"later than its first staple lasts", late},
		{"can't be loaded", forbidden},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, _ := stapledFleet(t, 2, host)
				mustGet(t, f.members[0], host)
				pass(time.Minute)
				tt.do(t, f)
				if stapleOf(t, f.members[1], host) == nil {
					t.Error("the first client of member 1 gets no staple")
				}
			})
		})
	}
}

// TestResponderThatHangsHoldsNobodyUp who wants what is only out of memory.
func TestResponderThatHangsHoldsNobodyUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(3)
		f, responders := stapledFleet(t, 1, hosts[0])
		m := f.members[0]
		m.CacheSize = 1
		m.SetHosts(hosts)
		responders[0].hangs.Store(true)
		for _, host := range hosts {
			mustGet(t, m, host)
		}
		pass(time.Hour)
		for range 3 {
			for _, host := range hosts {
				began := time.Now()
				mustGet(t, m, host)
				if d := time.Since(began); d > 0 {
					t.Errorf("a client waited %v for a certificate that the storage has", d)
				}
				pass(time.Minute)
			}
		}
	})
}

func TestFirstStaplesAreAskedForAFewAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(50)
		f, responders := stapledFleet(t, 2, hosts[0])
		for i, m := range f.members {
			m.SetHosts(hosts)
			responders[i].set(down)
		}
		if err := f.members[0].Manage(t.Context(), hosts...); err != nil {
			t.Fatal(err)
		}
		responders[1].hangs.Store(true)
		var wg sync.WaitGroup
		for _, host := range hosts {
			wg.Go(func() { get(f.members[1], host) })
		}
		wg.Wait()
		if n := responders[1].mostAtOnce(); n != 8 {
			t.Errorf("%d questions at once, want 8", n)
		}
	})
}

func TestHostOutOfMemoryIsSubjectToAllow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const a, b = "a.example.com", "b.example.com"
		f := newFleet(t, 1, func(m *letsencrypt.Manager) { m.CacheSize = 1 })
		m := f.members[0]
		var no atomic.Bool
		m.Allow = func(context.Context, string) error {
			if no.Load() {
				return errors.New("no")
			}
			return nil
		}
		mustGet(t, m, a)
		pass(time.Minute)
		mustGet(t, m, b)
		pass(time.Minute)
		mustGet(t, m, b)
		no.Store(true)
		f.shelf.mu.Lock()
		delete(f.shelf.values, "letsencrypt/cert/"+a)
		f.shelf.mu.Unlock()
		if _, err := get(m, a); !errors.Is(err, letsencrypt.ErrHostNotAllowed) {
			t.Errorf("GetCertificate = %v, want ErrHostNotAllowed", err)
		}
	})
}

func TestOutageDoesNotEndRenewals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const a, b = "a.example.com", "b.example.com"
		f := newFleet(t, 1, func(m *letsencrypt.Manager) { m.CacheSize = 1 })
		f.ca.Lifetime = 6 * day
		m := f.members[0]
		allowAll(m)
		mustGet(t, m, a)
		pass(time.Minute)
		mustGet(t, m, b)
		pass(time.Minute)
		mustGet(t, m, b)
		f.views[0].setFault(away)
		if _, err := get(m, a); err == nil {
			t.Fatal("it is in memory")
		}
		f.views[0].setFault(nil)
		pass(4 * day)
		if n := len(f.ca.Issued(a)); n != 2 {
			t.Errorf("%d certificates for a host out of memory that a client asked for, want 2", n)
		}
	})
}

func TestHostThatWasDroppedComesBackToMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 1, func(m *letsencrypt.Manager) { m.CacheSize = 3 })
		f.ca.Lifetime = 6 * day
		m := f.members[0]
		var no atomic.Bool
		m.Allow = func(context.Context, string) error {
			if no.Load() {
				return errors.New("no")
			}
			return nil
		}
		mustGet(t, m, host)
		no.Store(true)
		pass(15 * day)
		no.Store(false)
		for _, h := range []string{host, "b.example.com", "c.example.com"} {
			mustGet(t, m, h)
		}
		if n := kept(m); n != 3 {
			t.Errorf("%d certificates in memory, want 3", n)
		}
	})
}

func TestStorageForgetsWhatNobodyWants(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 1, nil)
		f.ca.Lifetime = 6 * day
		m := f.members[0]
		var no atomic.Bool
		m.Allow = func(context.Context, string) error {
			if no.Load() {
				return errors.New("no")
			}
			return nil
		}
		mustGet(t, m, host)
		no.Store(true)
		pass(15 * day)
		f.shelf.mu.Lock()
		defer f.shelf.mu.Unlock()
		for key := range f.shelf.values {
			if strings.Contains(key, host) {
				t.Errorf("the storage has %s, nine days after it expired", key)
			}
		}
	})
}

// TestStorageThatKeepsFromRenewingIsSaid is of a member that others keep from renewing, or the
// storage does.
func TestStorageThatKeepsFromRenewingIsSaid(t *testing.T) {
	for _, what := range []string{"lock letsencrypt-host", "store letsencrypt/challenge"} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const host = "a.example.com"
				f := newFleet(t, 1, listed(host))
				f.ca.Lifetime = 6 * day
				m := f.members[0]
				d := keepDiary(t, m)
				mustGet(t, m, host)
				pass(2 * day)
				before := len(f.ca.Requests())
				quota := errors.New("quota exceeded")
				f.views[0].setFault(func(_ context.Context, op, key string) error {
					if strings.HasPrefix(op+" "+key, what) {
						return quota
					}
					return nil
				})
				pass(3 * day)
				if s := m.Status(host)[0]; !errors.Is(s.Err, quota) {
					t.Errorf("Status says %v, want what the storage says", s.Err)
				}
				if len(d.of(letsencrypt.EventFailed)) == 0 {
					t.Error("no event says so")
				}
				if n := len(f.ca.Requests()) - before; n > 200 {
					t.Errorf("%d requests to the CA in three days, want 200 at most", n)
				}
			})
		})
	}
}

func TestWaitingForALockTakesNoTokens(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host, other = "a.example.com", "b.example.com"
		f := newFleet(t, 1, listed(host, other))
		m := f.members[0]
		m.Limit = rate.NewLimiter(rate.Every(100*time.Hour), 5)
		mustGet(t, m, other)
		member := &view{shelf: &f.shelf}
		if err := member.Lock(t.Context(), "letsencrypt-host-"+host); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			m.Manage(deadline(t, time.Minute), host)
		}
		if err := member.Unlock(t.Context(), "letsencrypt-host-"+host); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Minute) // it was told to come again
		mustGet(t, m, host)
	})
}

// TestMemberThatComesBackPutsNothingOldInPlaceOfNew is of one that could not
// store its certificate, while another renewed it.
func TestMemberThatComesBackPutsNothingOldInPlaceOfNew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 2, listed(host))
		f.views[0].loose.Store(true) // a lock dies with the connection
		f.views[1].loose.Store(true)
		var gone atomic.Bool
		f.views[0].setFault(func(_ context.Context, op, key string) error {
			if gone.Load() || op == "store" && strings.Contains(key, "/cert/") {
				gone.Store(true)
				return errAway
			}
			return nil
		})
		f.reach(f.members[0])
		mustGet(t, f.members[0], host)
		f.reach(f.members[1])
		mustGet(t, f.members[1], host)
		pass(time.Hour)
		if err := f.members[1].Renew(deadline(t, time.Minute), host); err != nil {
			t.Fatal(err)
		}
		want := mustGet(t, f.members[1], host)
		f.views[0].setFault(nil)
		pass(10 * time.Minute)
		if leaf := mustGet(t, f.add(t, listed(host)), host); !leaf.Equal(want) {
			t.Error("the old certificate took the place of the new one in the storage")
		}
	})
}

func TestStorageThatIsSetBackIsHealed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 2, listed(host))
		f.wantSame(t, host)
		f.shelf.mu.Lock()
		backup := maps.Clone(f.shelf.values)
		f.shelf.mu.Unlock()
		pass(time.Hour)
		if err := f.members[0].Renew(deadline(t, time.Minute), host); err != nil {
			t.Fatal(err)
		}
		want := mustGet(t, f.members[0], host)
		f.shelf.mu.Lock()
		f.shelf.values = backup
		f.shelf.mu.Unlock()
		pass(7 * time.Hour) // all have looked into the storage
		if leaf := mustGet(t, f.add(t, listed(host)), host); !leaf.Equal(want) {
			t.Error("the storage has the old certificate, though a member has the new one")
		}
	})
}

func TestCertificateInAReadOnlyStorageIsServed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(2)
		f := newFleet(t, 2, listed(hosts...))
		for _, host := range hosts {
			mustGet(t, f.members[0], host)
		}
		m := f.members[1]
		mustGet(t, m, hosts[0])
		f.views[1].setFault(func(_ context.Context, op, _ string) error {
			if op == "store" || op == "delete" {
				return errors.New("READONLY You can't write against a read only replica")
			}
			return nil
		})
		m.Register("a@example.com", nil) // so that there is something to store
		mustGet(t, m, hosts[1])
		f.views[1].setFault(nil)
	})
}

func TestEndOfACallersContextIsNoOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 1, listed(host))
		m := f.members[0]
		d := keepDiary(t, m)
		mustGet(t, m, host)
		var slow atomic.Bool
		slow.Store(true)
		f.views[0].setFault(func(ctx context.Context, op, key string) error {
			if op == "load" && strings.Contains(key, "/cert/"+host) && slow.Swap(false) {
				<-ctx.Done()
			}
			return nil
		})
		go m.Revoke(deadline(t, time.Second), host, acme.CRLReasonSuperseded)
		synctest.Wait()
		if err := m.Renew(deadline(t, time.Minute), host); err != nil {
			t.Error(err)
		}
		if es := d.of(letsencrypt.EventState); len(es) > 0 {
			t.Errorf("events %v, want none: the storage is well", es)
		}
	})
}

func TestAllowIsAskedAboutHostsOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, 1, nil)
		m := f.members[0]
		m.Allow = func(_ context.Context, host string) error {
			t.Errorf("Allow was asked about %.30q of %d bytes", host, len(host))
			return errors.New("no")
		}
		validate(m, "../../etc/passwd")
		validate(m, strings.Repeat("a", 60000))
	})
}

func TestValidationsAskAllowOnceAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, 1, nil)
		m := f.members[0]
		gate := make(chan struct{})
		var asked atomic.Int64
		m.Allow = func(context.Context, string) error {
			asked.Add(1)
			<-gate
			return errors.New("no")
		}
		h := m.HTTPHandler(http.NotFoundHandler())
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				r := httptest.NewRequest("GET", "http://a.example.com/.well-known/acme-challenge/abc", nil)
				h.ServeHTTP(httptest.NewRecorder(), r)
			})
		}
		synctest.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("%d questions at once about one host, want 1", n)
		}
		close(gate)
		wg.Wait()
	})
}

func TestHandshakesWithoutTokensDoNotLoadTheStorage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, 1, nil)
		m := f.members[0]
		m.NewHostLimit = rate.NewLimiter(0, 1)
		mustGet(t, m, "a.example.com")
		before := f.shelf.count("load order")
		for i := range 100 {
			if _, err := get(m, fmt.Sprintf("%d.example.net", i)); !errors.Is(err, letsencrypt.ErrRateLimited) {
				t.Fatalf("GetCertificate = %v, want ErrRateLimited", err)
			}
		}
		if n := f.shelf.count("load order") - before; n > 10 {
			t.Errorf("100 handshakes that are refused had %d orders loaded, want 10 at most", n)
		}
	})
}

func TestStrangersDoNotKeepValidationsOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host, other = "a.example.com", "b.example.com"
		f := newFleet(t, 2, listed(host, other))
		f.ca.ValidationTakes = time.Second
		h := f.members[1].HTTPHandler(http.NotFoundHandler())
		f.reach(f.members[1])
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for range 1000 { // connections, of one request at a time
			wg.Go(func() {
				for ctx.Err() == nil {
					r := httptest.NewRequest("GET", "http://"+other+"/.well-known/acme-challenge/abc", nil).WithContext(ctx)
					h.ServeHTTP(httptest.NewRecorder(), r)
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
		pass(time.Second)
		mustGet(t, f.members[0], host)
	})
}

func TestNewMemberLooksForItsHostsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hosts := hostNames(500)
		f := newFleet(t, 1, listed(hosts...))
		m := f.members[0]
		m.Limit = rate.NewLimiter(0, 0)
		m.HTTPSAddr = "127.0.0.1:0"
		ln, err := m.Listen()
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		pass(2 * time.Second)
		if n := f.shelf.count("load cert"); n < len(hosts) {
			t.Errorf("in two seconds a member has looked for %d of its %d hosts in a storage that answers at once", n, len(hosts))
		}
	})
}

func TestManageTakesWhatTheFleetHas(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 2, listed(host))
		f.ca.Change(func(c *catest.Config) { c.TLS = nil })
		for range 6 {
			f.members[0].Renew(deadline(t, time.Minute), host)
		}
		get(f.members[1], host) // takes over how long to wait
		f.reach(f.members[0])
		if err := f.members[0].Renew(deadline(t, time.Minute), host); err != nil {
			t.Fatal(err)
		}
		if err := f.members[1].Manage(deadline(t, time.Minute), host); err != nil {
			t.Errorf("the storage has the certificate, but Manage() = %v", err)
		}
	})
}

// TestOneTXTRecordAtATime is of a host and its wildcard, which have theirs at
// one name.
func TestOneTXTRecordAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, 2, listed("example.com", "*.example.com"))
		f.ca.ValidationTakes = 3 * time.Second
		z := newZone(f.members[0], f.ca)
		f.members[1].Resolver = f.members[0].Resolver
		var wg sync.WaitGroup
		for i, host := range []string{"example.com", "x.example.com"} {
			f.members[i].DNS = z
			wg.Go(func() { mustGet(t, f.members[i], host) })
		}
		wg.Wait()
		synctest.Wait()
		present, cleanUp := "present example.com", "clean up example.com"
		if want := []string{present, cleanUp, present, cleanUp}; !slices.Equal(z.calls, want) {
			t.Errorf("calls %q, want %q", z.calls, want)
		}
	})
}
func TestOutageInTheMidstOfAnOrderIsNotTheHostsFault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host, other = "a.example.com", "b.example.com"
		f := newFleet(t, 1, listed(host, other))
		m, v := f.members[0], f.views[0]
		mustGet(t, m, other)
		var began atomic.Bool
		v.setFault(func(_ context.Context, op, key string) error {
			if began.Load() || op == "store" && strings.Contains(key, "/challenge/") {
				began.Store(true)
				return errAway
			}
			return nil
		})
		if _, err := get(m, host); err == nil {
			t.Fatal("a certificate without a storage")
		}
		pass(3 * time.Second)
		v.setFault(nil)
		pass(15 * time.Second)
		mustGet(t, m, host)
		wantCount(t, f.ca, "newOrder", 2)
	})
}

func TestMemberWithoutTheSealTouchesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 1, listed(host))
		mustGet(t, f.members[0], host)
		f.shelf.mu.Lock()
		for key, v := range f.shelf.values {
			f.shelf.values[key] = append([]byte{1}, v...) // as good as sealed
		}
		sealed := maps.Clone(f.shelf.values)
		f.shelf.mu.Unlock()
		late := f.add(t, listed(host))
		d := keepDiary(t, late)
		if _, err := get(late, host); err == nil {
			t.Error("a certificate from a storage that can't be read")
		}
		pass(time.Hour)
		for key, v := range sealed {
			if !bytes.Equal(f.shelf.get(key), v) {
				t.Errorf("%s was replaced", key)
			}
		}
		wantCount(t, f.ca, "newOrder", 1)
		wantCount(t, f.ca, "newAccount", 1)
		if len(d.of(letsencrypt.EventFailed)) == 0 {
			t.Error("nothing said so")
		}
	})
}

func TestRenewAfterAnOutageNeedNotWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const host = "a.example.com"
		f := newFleet(t, 1, listed(host))
		mustGet(t, f.members[0], host)
		synctest.Wait() // it has given the lock back
		f.views[0].setFault(away)
		f.members[0].Renew(deadline(t, time.Minute), host)
		pass(10 * time.Minute)
		f.views[0].setFault(nil)
		if err := f.members[0].Renew(deadline(t, time.Minute), host); err != nil {
			t.Errorf("the storage is back, but Renew says %v", err)
		}
	})
}

func TestAccountOfBeforeIsInTheStorageSoon(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, 0, nil)
		alone := newManager(t, f.ca)
		mustGet(t, alone, "a.example.com")
		shutdown(t, alone)
		m := f.add(t, nil)
		if err := m.Unmarshal(alone.Marshal()); err != nil {
			t.Fatal(err)
		}
		m.TLSConfig()
		get(m, "a.example.com") // its first use
		pass(time.Minute)
		f.add(t, listed("b.example.com"))
		f.reach(f.members[1])
		mustGet(t, f.members[1], "b.example.com")
		wantCount(t, f.ca, "newAccount", 1)
	})
}

func TestOrderThatIsTakenOverKeepsItsChallenge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for range 8 { // which type is tried first is left to chance
			takeOverOrder(t)
		}
	})
}

// takeOverOrder has a member lose its storage, and its CA, when its answer to a
// challenge is stored, and another go on.
func takeOverOrder(t *testing.T) {
	const host = "a.example.com"
	f := newFleet(t, 2, listed(host))
	for _, m := range f.members {
		f.reach(m)
		f.ca.Change(func(c *catest.Config) { c.HTTP = m.HTTPHandler(nil) })
	}
	f.views[0].setFault(func(_ context.Context, op, key string) error {
		if f.shelf.get("letsencrypt/challenge/"+host) != nil {
			return errAway
		}
		return nil
	})
	f.ca.Fault(func(endpoint string, _ int, _ *http.Request) catest.Response {
		if endpoint == "challenge" {
			return catest.Refuse
		}
		return nil
	})
	get(f.members[0], host)
	f.ca.Fault(nil)
	answer := f.shelf.get("letsencrypt/challenge/" + host)
	if answer == nil {
		t.Fatal("the first member got no further than this")
	}
	f.views[1].loose.Store(true)
	mustGet(t, f.members[1], host)
	if typ := f.members[1].Status(host)[0].Challenge; !bytes.Contains(answer, []byte(typ)) {
		t.Errorf("%s passed, but the answer was %s", typ, answer)
	}
	f.views[0].setFault(nil)
	pass(time.Minute)
}
