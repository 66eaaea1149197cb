package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/crypto/acme"
)

// hosts returns n names of hosts.
func hosts(n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("h%d.example.com", i))
	}
	return names
}

// serveFor has the Manager serve so that one type of challenge can reach it.
func (r *rig) serveFor(typ string, m *letsencrypt.Manager) {
	r.t.Helper()
	if typ == "tls-alpn-01" {
		background(r.t, m, m.ServeHTTPS)
		listening(r.t, m.HTTPSAddr)
		return
	}
	server := &http.Server{Addr: m.HTTPAddr, Handler: m.HTTPHandler(nil)}
	go server.ListenAndServe()
	r.t.Cleanup(func() { server.Close() })
	listening(r.t, m.HTTPAddr)
}

// A certificate is to cost 8 requests at most, and to be there half a second
// after what the CA itself takes. The time that the CA's validations take
// counts as ours here: they are spent in our answers.
func TestCostOfACertificate(t *testing.T) {
	const mostRequests, mostTime = 8, 500 * time.Millisecond
	for _, typ := range []string{"tls-alpn-01", "http-01"} {
		t.Run(typ, func(t *testing.T) {
			r := newRig(t, pebble.Config{})
			m, _ := r.manager()
			cacheFile(t, m)
			r.serveFor(typ, m)
			if err := m.Register("", nil); err != nil {
				t.Fatal(err)
			}
			var theirs atomic.Int64 // nanoseconds that the CA's replies took
			r.proxy.SetFault(timed(&theirs))

			all, requests, ours := hosts(20), 0, time.Duration(0)
			for _, host := range all {
				before, start := r.cost(), time.Now()
				theirs.Store(0)
				if _, err := m.Cert(host); err != nil {
					t.Fatal(err)
				}
				ours += time.Since(start) - time.Duration(theirs.Load())
				n := r.cost() - before
				if requests += n; n > mostRequests {
					t.Errorf("%d requests for %s, want %d at most", n, host, mostRequests)
				}
				if s := m.Status(host)[0]; s.Challenge != typ {
					t.Errorf("Status(%q).Challenge = %q, want %q", host, s.Challenge, typ)
				}
			}
			if n := len(r.Issued()); n != len(all) {
				t.Errorf("the CA issued %d certificates, want %d", n, len(all))
			}
			mean := ours / time.Duration(len(all))
			if mean > mostTime {
				t.Errorf("%v a certificate beside the CA's replies, want %v at most", mean, mostTime)
			}
			t.Logf("%.2f requests and %v beside the CA's replies", float64(requests)/float64(len(all)), mean)
		})
	}
}

// timed returns a fault that is none but adds up the time that replies take.
func timed(sum *atomic.Int64) pebble.Fault {
	return func(*http.Request, pebble.Endpoint, int) pebble.Reply {
		return func(w http.ResponseWriter, r *http.Request, ca http.Handler) {
			start := time.Now()
			ca.ServeHTTP(w, r)
			sum.Add(int64(time.Since(start)))
		}
	}
}

func TestNothingFailsWhenHalfOfTheNoncesAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{NonceReject: 50})
	m, told := r.server()
	all := hosts(20)
	if err := m.Manage(t.Context(), all...); err != nil {
		t.Fatal(err)
	}
	for _, host := range all {
		r.served(host)
		if failed := told.of(letsencrypt.EventFailed, host); len(failed) > 0 {
			t.Errorf("%s failed on the way: %v", host, failed[0].Err)
		}
	}
	if n := r.Accounts(); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	if orders, certs := r.Orders(), len(r.Issued()); orders != len(all) || certs != len(all) {
		t.Errorf("%d orders and %d certificates, want %d of each", orders, certs, len(all))
	}
}

func TestSlowValidationCostsFewMoreRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{ValidationSleep: 4})
	m, _ := r.server()
	if err := m.Manage(t.Context(), "a.example.com"); err != nil {
		t.Fatal(err)
	}
	r.served("a.example.com")
	if n := r.cost(); n > 20 {
		t.Errorf("%d requests, want about 7 and a few a second", n)
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	const seconds = 3
	r := newRig(t, pebble.Config{RetryAfterOrder: seconds, RetryAfterAuthz: seconds})
	m, _ := r.server()
	if err := m.Manage(t.Context(), "a.example.com"); err != nil {
		t.Fatal(err)
	}
	// After finalize the order is being processed, and the reply says how long.
	finalized, looked := r.first(pebble.Finalize), time.Time{}
	for _, q := range r.proxy.Requests() {
		if q.Endpoint == pebble.Order && q.Time.After(finalized) {
			looked = q.Time
			break
		}
	}
	// A header in the form of a date has lost up to a second.
	if gap := looked.Sub(finalized); gap < (seconds-1)*time.Second {
		t.Errorf("the order was asked %v after finalize, want %d s", gap, seconds)
	}
}

// first returns the time of the first request to an endpoint.
func (r *rig) first(e pebble.Endpoint) time.Time {
	r.t.Helper()
	for _, q := range r.proxy.Requests() {
		if q.Endpoint == e {
			return q.Time
		}
	}
	r.t.Fatalf("no request to %s", e)
	return time.Time{}
}

func TestDirectoryIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.server()
	for _, host := range hosts(5) {
		if err := m.Manage(t.Context(), host); err != nil {
			t.Fatal(err)
		}
	}
	// One asks who needs no account, and one who has it.
	if n := r.proxy.Count(pebble.Directory); n > 2 {
		t.Errorf("the directory was asked for %d times, want 2 at most", n)
	}
}

func TestChainOfTheCAsChoiceOrOurs(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{AlternateRoots: 2, ChainLength: 2})
	data, err := r.RootPEM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, root := range parsePEM(t, data) {
		m, _ := r.manager()
		m.CAs[0].Chain = root.Subject.CommonName
		m.HTTPAddr = "127.0.0.1:0"
		ended := make(chan error, 1)
		go func() { ended <- patiently(m.Serve) }()
		listening(t, m.HTTPSAddr)
		host := fmt.Sprintf("chain%d.example.com", i)
		if err := m.Manage(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(root)
		if _, err := visit(m.HTTPSAddr, host, pool); err != nil {
			t.Errorf("Chain = %q: visiting with that root alone: %v", root.Subject.CommonName, err)
		}
		shutdown(t, m)
		<-ended
	}
}

func parsePEM(t *testing.T, data []byte) []*x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		all = append(all, must(t, cert, err))
	}
	return all
}

func TestProfile(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	r := newRig(t, pebble.Config{Profiles: map[string]time.Duration{"brief": 6 * day, "classic": 90 * day}})
	m, _ := r.manager()
	m.CAs[0].Profile = "brief"
	r.serve(m)
	if err := m.Manage(t.Context(), "a.example.com"); err != nil {
		t.Fatal(err)
	}
	leaf := r.served("a.example.com")
	if life := leaf.NotAfter.Sub(leaf.NotBefore).Round(time.Hour); life != 6*day {
		t.Errorf("the certificate lives %v, want six days", life)
	}
	if got := m.Status("a.example.com")[0].Profile; got != "brief" {
		t.Errorf("Status.Profile = %q, want %q", got, "brief")
	}
}

func TestUnknownProfileNamesThoseThereAre(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{Profiles: map[string]time.Duration{"brief": time.Hour, "classic": time.Hour}})
	m, told := r.manager()
	m.CAs[0].Profile = "clasic"
	r.serve(m)
	err := m.Manage(t.Context(), "a.example.com")
	r.failed(m, told, err, "a.example.com", `"clasic"`, "brief, classic")
	if n := r.Orders(); n != 0 {
		t.Errorf("%d orders, want none", n)
	}
}

func TestExternalAccountBinding(t *testing.T) {
	t.Parallel()
	key := []byte("0123456789abcdef0123456789abcdef")
	r := newRig(t, pebble.Config{EAB: map[string][]byte{"us": key}})
	for _, test := range []struct {
		name string
		eab  *acme.ExternalAccountBinding
		want string // in the error; "" means there is none
	}{
		{"none", nil, "CA.EAB"},
		{"unknown", &acme.ExternalAccountBinding{KID: "them", Key: key}, "not known to the ACME server"},
		{"right", &acme.ExternalAccountBinding{KID: "us", Key: key}, ""},
	} {
		m, told := r.manager()
		m.CAs[0].EAB = test.eab
		m.HTTPAddr = "127.0.0.1:0"
		ended := make(chan error, 1)
		go func() { ended <- patiently(m.Serve) }()
		listening(t, m.HTTPSAddr)
		host := test.name + ".example.com"
		err := m.Manage(t.Context(), host)
		if test.want == "" && err != nil {
			t.Errorf("%s binding: %v", test.name, err)
		} else if test.want != "" {
			r.failed(m, told, err, host, test.want)
		}
		shutdown(t, m)
		<-ended
	}
}

func TestReusedAuthorizationNeedsNoChallenge(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{AuthzReuse: 100})
	m, _ := r.server()
	if err := m.Manage(t.Context(), "a.example.com"); err != nil {
		t.Fatal(err)
	}
	if err := m.Renew(t.Context(), "a.example.com"); err != nil {
		t.Fatal(err)
	}
	if n := r.proxy.Count(pebble.Challenge); n != 1 {
		t.Errorf("%d challenges were accepted for two certificates, want 1", n)
	}
	if n := len(r.Issued()); n != 2 {
		t.Errorf("%d certificates, want 2", n)
	}
}

func TestOrderOutlivesTheClientThatAskedForIt(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r := newRig(t, pebble.Config{})
	ordered, goOn := make(chan struct{}), make(chan struct{})
	r.proxy.SetFault(nth(pebble.NewOrder, 1, func(w http.ResponseWriter, q *http.Request, ca http.Handler) {
		close(ordered)
		<-goOn
		ca.ServeHTTP(w, q)
	}))
	m, told := r.server()

	conn, err := net.Dial("tcp", r.tlsAddr())
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error)
	go func() { gone <- tls.Client(conn, &tls.Config{ServerName: host}).Handshake() }()
	<-ordered
	conn.Close()
	if err := <-gone; err == nil {
		t.Fatal("the client had its handshake")
	}
	close(goOn)
	eventually(t, "a certificate", func() bool { return len(told.of(letsencrypt.EventObtained, host)) == 1 })
	asked := r.cost()
	r.served(host)
	if r.cost() != asked || r.Orders() != 1 {
		t.Errorf("the next client cost %d requests, and there were %d orders; want 0 and 1", r.cost()-asked, r.Orders())
	}
	if s := m.Status(host)[0]; s.Err != nil {
		t.Errorf("Status.Err = %v", s.Err)
	}
}

func TestSecondManagerOfACacheOrdersNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	first, _ := r.manager()
	cache := cacheFile(t, first)
	r.serve(first)
	all := hosts(3)
	if err := first.Manage(t.Context(), all...); err != nil {
		t.Fatal(err)
	}
	shutdown(t, first)

	second, _ := r.manager()
	if err := second.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	second.SetHosts(all)
	r.serve(second)
	for _, host := range all {
		r.served(host)
	}
	if err := second.Manage(t.Context(), all...); err != nil {
		t.Error(err)
	}
	if !second.Registered() {
		t.Error("Registered() = false for the account in the cache file")
	}
	if orders, accounts := r.Orders(), r.Accounts(); orders != len(all) || accounts != 1 {
		t.Errorf("%d orders and %d accounts, want %d and 1", orders, accounts, len(all))
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	m.SetHosts([]string{"127.0.0.1"})
	r.serve(m)
	if err := m.Manage(t.Context(), "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	leaf := r.served("127.0.0.1") // a name that clients check and never send
	if len(leaf.IPAddresses) != 1 || len(leaf.DNSNames) != 0 {
		t.Errorf("the certificate is for %v and %v, want 127.0.0.1 alone", leaf.IPAddresses, leaf.DNSNames)
	}
}

func TestRefusedTermsOrderNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.server()
	var terms string
	err := m.Register("us@example.com", func(url string) bool { terms = url; return false })
	if err == nil || terms == "" || !strings.Contains(err.Error(), terms) {
		t.Errorf("Register = %v with terms %q, want an error with them", err, terms)
	}
	if err := m.Manage(t.Context(), "a.example.com"); err == nil {
		t.Error("Manage = nil, want an error")
	}
	if n := r.proxy.Count(pebble.NewAccount); n != 0 {
		t.Errorf("%d requests for an account, want none", n)
	}
	if err := m.Register("us@example.com", func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if !m.Registered() || r.Accounts() != 1 {
		t.Errorf("Registered() = %v with %d accounts, want true with 1", m.Registered(), r.Accounts())
	}
	if err := m.Renew(t.Context(), "a.example.com"); err != nil {
		t.Error(err)
	}
}
