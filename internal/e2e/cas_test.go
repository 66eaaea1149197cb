package e2e

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/crypto/acme"
)

// newPair returns two CAs that validate at the same ports.
func newPair(t *testing.T, config1, config2 pebble.Config) (first, second *rig) {
	t.Helper()
	first = newRig(t, config1)
	config2.HTTPPort, config2.TLSPort = first.HTTPPort(), first.TLSPort()
	return first, newRig(t, config2)
}

// ca returns the rig as a Manager's CA.
func (r *rig) ca() letsencrypt.CA {
	return letsencrypt.CA{Directory: r.proxy.Directory(), Client: r.Client()}
}

// A remembered says whom a CA at fault is spared, and for how long that is kept.
type remembered int

const (
	nobody  remembered = iota // the next order may ask it again
	oneHost                   // the host that it refused
	all                       // it is left alone
)

// A way is one for a CA to fail.
type way struct {
	fault pebble.Fault
	spare remembered
}

// brokenFirstCA returns ways for a CA to fail that last, each before it issued
// anything.
func brokenFirstCA() map[string]way {
	at := func(e pebble.Endpoint, reply pebble.Reply, spare remembered) way {
		return way{nth(e, always, reply), spare}
	}
	const limited, internal = "rateLimited", "serverInternal"
	return map[string]way{
		"429 with Retry-After":            at(pebble.NewOrder, pebble.Problem(http.StatusTooManyRequests, limited, limitText, "7200"), oneHost),
		"429 without":                     at(pebble.NewOrder, pebble.Problem(http.StatusTooManyRequests, limited, limitText, ""), oneHost),
		"429 until a date":                at(pebble.NewOrder, untilDate(2*time.Hour, http.StatusTooManyRequests, limited, limitText), oneHost),
		"429 at finalize":                 at(pebble.Finalize, pebble.Problem(http.StatusTooManyRequests, limited, limitText, "7200"), oneHost),
		"429 that is a page":              at(pebble.NewOrder, pebble.HTML(http.StatusTooManyRequests), all),
		"429 for an account":              at(pebble.NewAccount, pebble.Problem(http.StatusTooManyRequests, limited, "too many accounts", "7200"), all),
		"a person is to act":              at(pebble.NewOrder, pebble.Problem(http.StatusTooManyRequests, limited, pauseText+pauseLink, ""), nobody), // but Renew is that person
		"503 with Retry-After":            at(pebble.NewOrder, pebble.Problem(http.StatusServiceUnavailable, internal, "back soon", "7200"), all),
		"503 without":                     at(pebble.NewOrder, pebble.HTML(http.StatusServiceUnavailable), all),
		"503 for the directory":           at(pebble.Directory, pebble.Problem(http.StatusServiceUnavailable, internal, "back soon", "7200"), all),
		"500":                             at(pebble.NewOrder, pebble.Problem(http.StatusInternalServerError, internal, "oops", ""), all),
		"500 at finalize":                 at(pebble.Finalize, pebble.Problem(http.StatusInternalServerError, internal, "oops", ""), all),
		"reset":                           at(pebble.NewOrder, pebble.Drop, all),
		"reset at the directory":          at(pebble.Directory, pebble.Drop, all),
		"lost reply":                      at(pebble.NewOrder, pebble.LoseReply, all),
		"truncated":                       at(pebble.NewOrder, pebble.Truncate, all),
		"hanging":                         at(pebble.NewOrder, pebble.Hang, all),
		"page for a directory":            at(pebble.Directory, pebble.HTML(http.StatusOK), all),
		"page for an order":               at(pebble.NewOrder, pebble.HTML(http.StatusOK), all),
		"page for an authorization":       at(pebble.Authz, pebble.HTML(http.StatusOK), all),
		"page for a certificate":          at(pebble.Certificate, pebble.HTML(http.StatusOK), all),
		"another's certificate":           at(pebble.Certificate, certificate("other.example.com", time.Hour), all),
		"a certificate for another's key": at(pebble.Certificate, certificate(newHost, time.Hour), all),
		"an expired certificate":          {expired(newHost), all},
		"no nonce is good":                at(pebble.NewOrder, pebble.Problem(http.StatusBadRequest, "badNonce", "never seen that nonce", ""), all),
		"refusal":                         at(pebble.NewOrder, pebble.Problem(http.StatusForbidden, "rejectedIdentifier", "we do not serve that", ""), nobody),
		"down":                            {nil, all}, // its proxy is closed
	}
}

// Whatever is wrong with the first CA, the second issues in the same attempt,
// and a Manager that is started again knows whom to leave alone.
func TestSecondCAIssuesWhateverTheFirstDoes(t *testing.T) {
	t.Parallel()
	for name, way := range brokenFirstCA() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second := newPair(t, pebble.Config{}, pebble.Config{})
			first.proxy.SetFault(way.fault)
			if way.fault == nil {
				first.proxy.Close()
			}
			manager := func() (*letsencrypt.Manager, *told) {
				m, told := first.manager()
				if name == "hanging" {
					m.CAs[0].Client.Timeout = time.Second // for the reply that never comes
				}
				m.CAs = append(m.CAs, second.ca())
				return m, told
			}
			m, told := manager()
			cache := cacheFile(t, m)
			first.serve(m)
			second.issues(m, told, newHost)
			checkPaused(t, told, first, way.spare == all)
			shutdown(t, m)

			m, told = manager()
			if err := m.CacheFile(cache); err != nil {
				t.Fatal(err)
			}
			first.serve(m)
			asked := len(first.proxy.Requests())
			if err := m.Renew(t.Context(), newHost); err != nil {
				t.Fatal(err)
			}
			if way.spare == all {
				second.issues(m, told, "next.example.org")
			}
			if n := len(first.proxy.Requests()) - asked; n > 0 && way.spare != nobody {
				t.Errorf("after a restart %d requests to the CA that is to be left alone", n)
			}
		})
	}
}

// issues ends the test unless the rig's CA is the one that issues for the host,
// and nobody is told of a failure.
func (r *rig) issues(m *letsencrypt.Manager, told *told, host string) {
	r.t.Helper()
	if err := m.Manage(r.t.Context(), host); err != nil {
		r.t.Fatal(err)
	}
	if _, err := visit(m.HTTPSAddr, host, r.roots()); err != nil {
		r.t.Fatalf("visiting %s: %v", host, err)
	}
	if s := m.Status(host)[0]; s.CA != r.proxy.Directory() || s.Err != nil {
		r.t.Errorf("Status(%s) = CA %s, error %v; want CA %s and none", host, s.CA, s.Err, r.proxy.Directory())
	}
	if failed := told.of(letsencrypt.EventFailed, host); len(failed) > 0 {
		r.t.Errorf("%s failed on the way: %v", host, failed[0].Err)
	}
}

// checkPaused checks whether it was told, once, that the rig's CA is left alone.
func checkPaused(t *testing.T, told *told, r *rig, want bool) {
	t.Helper()
	// Events come in order, so that once the certificate's is there so is this.
	eventually(t, "an event of the certificate", func() bool { return len(told.of(letsencrypt.EventObtained, newHost)) == 1 })
	paused := told.of(letsencrypt.EventPaused, "")
	switch {
	case len(paused) > 1 || want != (len(paused) == 1):
		t.Errorf("%d events of a pause, want one: %v", len(paused), want)
	case want && (paused[0].CA != r.proxy.Directory() || time.Until(paused[0].Next) < 30*time.Second):
		t.Errorf("event %+v, want %s paused for a minute or more", paused[0], r.proxy.Directory())
	}
}

// A counting is a transport that counts its requests.
type counting struct {
	http.RoundTripper
	n atomic.Int64
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.RoundTripper.RoundTrip(r)
}

// A special is a CA with a setting of each kind that the CA's customer may have.
type special struct {
	*rig
	customer letsencrypt.CA
	life     time.Duration
	root     *x509.Certificate // of the chain asked for, which is not the CA's first choice
	requests *counting         // of the CA's own client
}

func newSpecial(t *testing.T, profile string, life time.Duration, eab *acme.ExternalAccountBinding, config pebble.Config) *special {
	t.Helper()
	config.Profiles = map[string]time.Duration{profile: life, "classic": 90 * 24 * time.Hour}
	config.EAB = map[string][]byte{eab.KID: eab.Key}
	config.AlternateRoots = 1
	s := &special{rig: newRig(t, config), life: life}
	data, err := s.RootPEM(t.Context())
	s.root = parsePEM(t, must(t, data, err))[1]
	s.requests = &counting{RoundTripper: s.Client().Transport}
	s.customer = letsencrypt.CA{
		Directory: s.proxy.Directory(),
		Profile:   profile,
		Chain:     s.root.Subject.CommonName,
		EAB:       eab,
		Client:    &http.Client{Transport: s.requests},
	}
	return s
}

// gave checks that the CA issued for the host, as it was asked to.
func (s *special) gave(m *letsencrypt.Manager, told *told, host string) {
	s.t.Helper()
	s.issues(m, told, host)
	pool := x509.NewCertPool()
	pool.AddCert(s.root)
	leaf, err := visit(m.HTTPSAddr, host, pool)
	if err != nil {
		s.t.Fatalf("%s, with the root %s alone: %v", host, s.root.Subject.CommonName, err)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore).Round(time.Hour); life != s.life {
		s.t.Errorf("the certificate of %s lives %v, want %v", host, life, s.life)
	}
	// One for renewal information may be on its way.
	eventually(s.t, "all requests to "+s.proxy.Directory()+" made by its own client", func() bool {
		return int(s.requests.n.Load()) == len(s.proxy.Requests())
	})
}

// Each CA has a profile, a preferred chain, an external account and a client of
// its own. Neither CA knows the other's, so that a mix-up fails.
func TestEachCAHasItsOwn(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	first := newSpecial(t, "brief", 6*day,
		&acme.ExternalAccountBinding{KID: "us at one", Key: []byte("thirty-two bytes of the first CA")}, pebble.Config{})
	second := newSpecial(t, "long", 45*day,
		&acme.ExternalAccountBinding{KID: "us at two", Key: []byte("32 bytes that the second CA gave")},
		pebble.Config{HTTPPort: first.HTTPPort(), TLSPort: first.TLSPort()})
	m, told := first.manager()
	m.CAs = []letsencrypt.CA{first.customer, second.customer}
	first.serve(m)
	first.gave(m, told, "a.example.com")
	if n := second.requests.n.Load(); n > 0 {
		t.Errorf("%d requests to the second CA while the first issues", n)
	}
	first.proxy.SetFault(nth(pebble.NewOrder, always, pebble.HTML(http.StatusBadGateway)))
	second.gave(m, told, "b.example.com")
}

// A chain that the CA does not have costs no certificate.
func TestUnknownChain(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{AlternateRoots: 2})
	m, _ := r.manager()
	m.CAs[0].Chain = "Root of No CA"
	r.serve(m)
	if err := m.Manage(t.Context(), newHost); err != nil {
		t.Fatal(err)
	}
	data, err := r.RootPEM(t.Context())
	pool := x509.NewCertPool()
	pool.AddCert(parsePEM(t, must(t, data, err))[0])
	if _, err := visit(r.tlsAddr(), newHost, pool); err != nil {
		t.Errorf("visiting with the default chain's root alone: %v", err)
	}
}

// When both CAs fail the error has both of their words, each with its CA.
func TestErrorHasTheWordsOfBothCAs(t *testing.T) {
	t.Parallel()
	first, second := newPair(t, pebble.Config{}, pebble.Config{})
	first.proxy.SetFault(nth(pebble.NewOrder, always, pebble.Problem(http.StatusServiceUnavailable, "serverInternal", "the first rests", "7200")))
	second.proxy.SetFault(nth(pebble.NewOrder, always, pebble.Problem(http.StatusForbidden, "rejectedIdentifier", "the second declines", "")))
	m, told := first.manager()
	m.CAs = append(m.CAs, second.ca())
	first.serve(m)
	err := m.Manage(t.Context(), newHost)
	second.failed(m, told, err, newHost,
		first.proxy.Directory()+": making the order: ", "the first rests",
		second.proxy.Directory()+": making the order: ", "the second declines")
	var details []string
	collect(err, &details)
	if fmt.Sprint(details) != "[the first rests the second declines]" {
		t.Errorf("errors.As finds the details %q, want both", details)
	}
}

// collect appends the details of all the CA's errors that err is made of.
func collect(err error, details *[]string) {
	switch e := err.(type) {
	case *acme.Error:
		*details = append(*details, e.Detail)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			collect(err, details)
		}
	default:
		if err := errors.Unwrap(err); err != nil {
			collect(err, details)
		}
	}
}

// Two entries may be one CA, under two of its profiles: what the one is refused
// the other gets, with the same account.
func TestSameCAUnderAnotherProfile(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{Profiles: lives})
	m, told := r.manager()
	m.CAs = []letsencrypt.CA{r.ca(), r.ca()}
	m.CAs[0].Profile, m.CAs[1].Profile = "not there yet", "tlsserver"
	cacheFile(t, m)
	r.serve(m)
	for _, host := range hosts(3) {
		r.issues(m, told, host)
		r.checkProfile(m, host, "tlsserver")
	}
	if n := r.Accounts(); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	if paused := told.of(letsencrypt.EventPaused, ""); len(paused) > 0 {
		t.Errorf("events %+v, want no pause: the CA works", paused)
	}
}
