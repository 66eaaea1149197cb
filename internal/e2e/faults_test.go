package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/crypto/acme"
	"golang.org/x/net/dns/dnsmessage"
)

const (
	oldHost = "old.example.com" // has a certificate before the fault
	newHost = "new.example.com" // is to get one during it

	soon = 3 * time.Second // a time-out that a reply meets unless it never comes
)

// Each fault, once, at each step of an order costs a retry and nothing else:
// one certificate in the end, and one order unless its URL was lost.
func TestPassingFaults(t *testing.T) {
	t.Parallel()
	faults := map[string]pebble.Reply{
		"dropped":             pebble.Drop,
		"hanging":             pebble.Hang,
		"lost reply":          pebble.LoseReply,
		"truncated":           pebble.Truncate,
		"HTML":                pebble.HTML(http.StatusBadGateway),
		"429 without problem": pebble.HTML(http.StatusTooManyRequests),
		"500":                 pebble.Problem(http.StatusInternalServerError, "serverInternal", "oops", ""),
		"503 for a second":    pebble.Problem(http.StatusServiceUnavailable, "serverInternal", "busy", "1"),
		"503 until a date":    untilDate(2*time.Second, http.StatusServiceUnavailable, "serverInternal", "busy"),
	}
	steps := []pebble.Endpoint{pebble.Authz, pebble.Challenge, pebble.Order, pebble.Finalize, pebble.Certificate}
	for name, reply := range faults {
		for _, step := range steps {
			t.Run(fmt.Sprintf("%s at %s", name, step), func(t *testing.T) {
				t.Parallel()
				testPassingFault(t, step, reply, 1)
			})
		}
	}
	for _, name := range []string{"dropped", "lost reply", "truncated"} {
		t.Run(name+" at newOrder", func(t *testing.T) {
			t.Parallel()
			testPassingFault(t, pebble.NewOrder, faults[name], 2)
		})
	}
}

// untilDate is pebble.Problem with a Retry-After that is a date.
func untilDate(wait time.Duration, status int, typ, detail string) pebble.Reply {
	return func(w http.ResponseWriter, r *http.Request, ca http.Handler) {
		date := time.Now().Add(wait).UTC().Format(http.TimeFormat)
		pebble.Problem(status, typ, detail, date)(w, r, ca)
	}
}

func testPassingFault(t *testing.T, step pebble.Endpoint, reply pebble.Reply, mostOrders int) {
	r := newRig(t, pebble.Config{})
	r.proxy.SetFault(nth(step, 1, reply))
	m, told := r.manager()
	m.CAs[0].Client.Timeout = soon // for the reply that never comes
	cacheFile(t, m)
	r.serve(m)
	if err := m.Manage(t.Context(), newHost); err != nil {
		t.Fatal(err)
	}
	r.served(newHost)
	if n := len(r.Issued()); n != 1 {
		t.Errorf("%d certificates, want 1", n)
	}
	if n := r.Orders(); n > mostOrders {
		t.Errorf("%d orders, want %d at most", n, mostOrders)
	}
	if n := r.cost(); n > 14 {
		t.Errorf("%d requests, want 14 at most, twice what it takes", n)
	}
	if failed := told.of(letsencrypt.EventFailed, newHost); len(failed) > 0 {
		t.Errorf("it failed on the way: %v", failed[0].Err)
	}
}

// A lasting is a fault that does not pass, and what is to become of it.
type lasting struct {
	name   string
	step   pebble.Endpoint
	reply  pebble.Reply
	words  []string      // of the error
	wait   time.Duration // till the next try, at least; zero means some time
	caWide bool          // nothing else is asked of the CA meanwhile
}

const (
	limitText = "too many certificates (5) already issued for this exact set of domains in the last 168h0m0s"
	pauseText = "Your account is temporarily prevented from requesting certificates for new.example.com and possibly others. Please visit: "
	pauseLink = "https://portal.example.com/sfe/v1/unpause?jwt=eyJhbGciOiJIUzI1NiJ9.secret"
)

func lastingFaults() []lasting {
	const hour = time.Hour
	limit := pebble.Problem(http.StatusTooManyRequests, "rateLimited", limitText, "7200")
	faults := []lasting{
		{name: "HTML 200", step: pebble.NewOrder, reply: pebble.HTML(http.StatusOK), words: []string{"order"}, caWide: true},
		{name: "limited for two hours", step: pebble.NewOrder, reply: limit, words: []string{limitText}, wait: 2*hour - time.Minute},
		{name: "limited till a date", step: pebble.NewOrder, reply: untilDate(2*hour, http.StatusTooManyRequests, "rateLimited", limitText), words: []string{limitText}, wait: 2*hour - time.Minute},
		{name: "limited", step: pebble.NewOrder, reply: pebble.Problem(http.StatusTooManyRequests, "rateLimited", limitText, ""), words: []string{limitText}},
		{name: "limited", step: pebble.Challenge, reply: limit, words: []string{limitText}, wait: 2*hour - time.Minute},
		{name: "limited", step: pebble.Finalize, reply: limit, words: []string{limitText}, wait: 2*hour - time.Minute},
		{name: "429 without problem", step: pebble.NewOrder, reply: pebble.HTML(http.StatusTooManyRequests), words: []string{"429"}, caWide: true},
		{name: "policy", step: pebble.NewOrder, reply: pebble.Problem(http.StatusForbidden, "rejectedIdentifier", "we do not serve that", ""), words: []string{"rejectedIdentifier", "we do not serve that"}},
		{name: "wrong name", step: pebble.Certificate, reply: certificate("other.example.com", time.Hour), words: []string{"checking the certificate", "it is for other.example.com instead"}, caWide: true},
		{name: "wrong key", step: pebble.Certificate, reply: certificate(newHost, time.Hour), words: []string{"checking the certificate", "is not the key asked for"}, caWide: true},
		{name: "no certificate", step: pebble.Certificate, reply: pebble.HTML(http.StatusOK), words: []string{"downloading the certificate"}, caWide: true},
		{name: "no nonce is good", step: pebble.NewOrder, reply: pebble.Problem(http.StatusBadRequest, "badNonce", "never seen that nonce", ""), words: []string{"badNonce", "never seen that nonce"}, caWide: true},
	}
	for _, step := range []pebble.Endpoint{pebble.NewOrder, pebble.Authz, pebble.Challenge, pebble.Order, pebble.Finalize, pebble.Certificate} {
		faults = append(faults,
			lasting{name: "maintenance", step: step, reply: pebble.Problem(http.StatusServiceUnavailable, "serverInternal", "back soon", "7200"), words: []string{"503", "back soon"}, wait: 2*hour - time.Minute, caWide: true},
			lasting{name: "maintenance till a date", step: step, reply: untilDate(2*hour, http.StatusServiceUnavailable, "serverInternal", "back soon"), words: []string{"503", "back soon"}, wait: 2*hour - time.Minute, caWide: true},
		)
	}
	return faults
}

// A fault that does not pass is told of everywhere, in the CA's words, costs
// few requests, and hinders nobody who has a certificate.
func TestLastingFaults(t *testing.T) {
	t.Parallel()
	for _, test := range lastingFaults() {
		t.Run(fmt.Sprintf("%s at %s", test.name, test.step), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, pebble.Config{})
			m, told := r.server()
			if err := m.Manage(t.Context(), oldHost); err != nil {
				t.Fatal(err)
			}
			r.proxy.SetFault(nth(test.step, always, test.reply))
			before := r.cost()
			err := m.Manage(t.Context(), newHost)
			r.failed(m, told, err, newHost, test.words...)
			r.nextTry(m, told, test.wait)
			if n := r.cost() - before; n > 70 {
				t.Errorf("%d requests, want a few, or two for each of 30 nonces", n)
			}
			r.checkPause(m, told, test)
			r.served(oldHost)
		})
	}
}

// nextTry checks when newHost is tried again.
func (r *rig) nextTry(m *letsencrypt.Manager, told *told, wait time.Duration) {
	r.t.Helper()
	const most = 25 * time.Hour
	failed := told.of(letsencrypt.EventFailed, newHost)
	next := failed[len(failed)-1].Next
	if left := time.Until(next); left < max(wait, time.Second) || left > most {
		r.t.Errorf("the next try is in %v, want %v at least and %v at most", left, wait, most)
	}
	if retry := m.Status(newHost)[0].Retry; !retry.Equal(next) {
		r.t.Errorf("Status.Retry = %v, want the event's %v", retry, next)
	}
}

// checkPause checks that a CA at fault is left alone, and told to be, and that
// one that refused a single host is asked for others.
func (r *rig) checkPause(m *letsencrypt.Manager, told *told, test lasting) {
	r.t.Helper()
	before := r.cost() // which renewal information is not part of: that is asked for meanwhile
	err := m.Manage(r.t.Context(), "next.example.com")
	asked := r.cost() > before
	if err == nil || asked == test.caWide {
		r.t.Errorf("the next host: %v, with the CA asked: %v; want an error and %v", err, asked, !test.caWide)
	}
	if !test.caWide {
		return
	}
	paused := told.of(letsencrypt.EventPaused, "")
	if len(paused) == 0 || paused[0].CA != r.proxy.Directory() || paused[0].Err == nil || time.Until(paused[0].Next) < test.wait {
		r.t.Errorf("events = %+v, want one that the CA is paused for %v", paused, test.wait)
	}
	for _, w := range test.words {
		if len(paused) > 0 && !strings.Contains(paused[0].Err.Error(), w) || !strings.Contains(err.Error(), w) {
			r.t.Errorf("event %+v or the next host's error %v without %q", paused, err, w)
		}
	}
}

// What comes before any order: the same, with no host that has a certificate.
func TestLastingFaultsBeforeTheFirstOrder(t *testing.T) {
	t.Parallel()
	limit := pebble.Problem(http.StatusTooManyRequests, "rateLimited", "too many accounts from this address", "7200")
	busy := pebble.Problem(http.StatusServiceUnavailable, "serverInternal", "back soon", "7200")
	badNonce := pebble.Problem(http.StatusBadRequest, "badNonce", "never seen that nonce", "")
	for _, test := range []lasting{
		{name: "HTML 200", step: pebble.Directory, reply: pebble.HTML(http.StatusOK), words: []string{"no ACME directory"}},
		{name: "HTML 502", step: pebble.Directory, reply: pebble.HTML(http.StatusBadGateway), words: []string{"502"}},
		{name: "dropped", step: pebble.Directory, reply: pebble.Drop, words: []string{"EOF"}},
		{name: "truncated", step: pebble.Directory, reply: pebble.Truncate, words: []string{"EOF"}},
		{name: "hanging", step: pebble.Directory, reply: pebble.Hang, words: []string{"exceeded"}},
		{name: "429", step: pebble.Directory, reply: limit, words: []string{"too many accounts from this address"}, wait: time.Hour},
		{name: "503", step: pebble.Directory, reply: busy, words: []string{"back soon"}, wait: time.Hour},
		{name: "503", step: pebble.NewNonce, reply: busy, words: []string{"503"}, wait: time.Hour},
		{name: "429", step: pebble.NewNonce, reply: limit, words: []string{"429"}, wait: time.Hour},
		{name: "dropped", step: pebble.NewNonce, reply: pebble.Drop, words: []string{"EOF"}},
		{name: "429", step: pebble.NewAccount, reply: limit, words: []string{"too many accounts from this address"}, wait: time.Hour},
		{name: "503", step: pebble.NewAccount, reply: busy, words: []string{"back soon"}, wait: time.Hour},
		{name: "no nonce is good", step: pebble.NewAccount, reply: badNonce, words: []string{"never seen that nonce"}},
	} {
		t.Run(fmt.Sprintf("%s at %s", test.name, test.step), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, pebble.Config{})
			r.proxy.SetFault(nth(test.step, always, test.reply))
			m, told := r.manager()
			m.CAs[0].Client.Timeout = soon
			r.serve(m)
			err := m.Manage(t.Context(), newHost)
			r.failed(m, told, err, newHost, test.words...)
			r.nextTry(m, told, test.wait)
			test.caWide = true
			r.checkPause(m, told, test)
			if n := len(r.proxy.Requests()); n > 70 {
				t.Errorf("%d requests, want a few, or two for each of 30 nonces", n)
			}
		})
	}
}

func TestCAIsDown(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, told := r.server()
	if err := m.Manage(t.Context(), oldHost); err != nil {
		t.Fatal(err)
	}
	r.proxy.Close() // connections are refused
	err := m.Manage(t.Context(), newHost)
	r.failed(m, told, err, newHost, "refused")
	r.served(oldHost)
}

// A host that the CA paused until a person acts has the link in full in its
// error and nothing of its query in the log.
func TestPausedHost(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, told := r.server()
	r.proxy.SetFault(nth(pebble.NewOrder, 1, pebble.Problem(http.StatusTooManyRequests, "rateLimited", pauseText+pauseLink, "")))
	err := m.Manage(t.Context(), newHost)
	for what, err := range map[string]error{"Manage": err, "Status.Err": m.Status(newHost)[0].Err} {
		r.explains(what, err, newHost, []string{pauseText + pauseLink})
		if e, ok := errors.AsType[*acme.Error](err); !ok || e.Detail != pauseText+pauseLink {
			t.Errorf("%s = %#v, want an acme.Error with the CA's detail", what, err)
		}
	}
	eventually(t, "a log line", func() bool { return len(told.lines(newHost)) > 0 })
	l := told.lines(newHost)[0]
	if !strings.Contains(l.Err, pauseText) || !strings.Contains(l.Err, "https://portal.example.com/sfe/v1/unpause") {
		t.Errorf("log line %+v without what a person is to do", l)
	}
	if all := told.log.String(); strings.Contains(all, "jwt=") || strings.Contains(all, "secret") {
		t.Errorf("the log has the link's query:\n%s", all)
	}
	r.nextTry(m, told, 20*time.Hour)
	if err := m.Manage(t.Context(), oldHost); err != nil {
		t.Errorf("another host: %v", err)
	}
	if err := m.Renew(t.Context(), newHost); err != nil { // the person did
		t.Errorf("Renew: %v", err)
	}
	if s := m.Status(newHost)[0]; s.Err != nil {
		t.Errorf("Status.Err = %v after Renew", s.Err)
	}
}

// Clients that come meanwhile cost the CA nothing.
func TestLimitedHostIsLeftAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.server()
	r.proxy.SetFault(nth(pebble.NewOrder, 1, pebble.Problem(http.StatusTooManyRequests, "rateLimited", limitText, "")))
	if err := m.Manage(t.Context(), newHost); err == nil {
		t.Fatal("Manage = nil, want an error")
	}
	asked := r.cost()
	if _, err := m.Cert(newHost); err == nil || r.cost() != asked {
		t.Errorf("Cert = %v after %d requests, want an error after none", err, r.cost()-asked)
	}
}

func TestForgottenAccountIsMadeAnew(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, told := r.server()
	if err := m.Manage(t.Context(), oldHost); err != nil {
		t.Fatal(err)
	}
	old := r.roots()
	if err := r.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Manage(t.Context(), newHost); err != nil {
		t.Fatal(err)
	}
	r.served(newHost)
	if _, err := visit(r.tlsAddr(), oldHost, old); err != nil {
		t.Errorf("the host of before: %v", err)
	}
	if n := r.Accounts(); n != 2 { // before the restart and after
		t.Errorf("%d accounts, want 2", n)
	}
	if failed := told.of(letsencrypt.EventFailed, newHost); len(failed) > 0 {
		t.Errorf("it failed on the way: %v", failed[0].Err)
	}
}

func TestRefusedReplacementIsOrderedWithoutIt(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, told := r.server()
	if err := m.Manage(t.Context(), oldHost); err != nil {
		t.Fatal(err)
	}
	var replacing int
	r.proxy.SetFault(func(q *http.Request, e pebble.Endpoint, _ int) pebble.Reply {
		if e == pebble.NewOrder && strings.Contains(payload(q), `"replaces"`) {
			replacing++
			return pebble.Problem(http.StatusConflict, "alreadyReplaced", "somebody else has", "")
		}
		return nil
	})
	if err := m.Renew(t.Context(), oldHost); err != nil {
		t.Fatal(err)
	}
	if replacing != 1 || len(r.Issued()) != 2 {
		t.Errorf("%d orders that replace, and %d certificates; want 1 and 2", replacing, len(r.Issued()))
	}
	if failed := told.of(letsencrypt.EventFailed, oldHost); len(failed) > 0 {
		t.Errorf("it failed on the way: %v", failed[0].Err)
	}
}

// A renewal that comes to a certificate of no use leaves the old one served,
// and an error.
func TestUselessCertificateReplacesNothing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		fault pebble.Fault
		words string
	}{
		{"other name", nth(pebble.Certificate, always, certificate("other.example.com", time.Hour)), "it is for other.example.com instead"},
		{"other key", nth(pebble.Certificate, always, certificate(oldHost, time.Hour)), "is not the key asked for"},
		{"expired", expired(oldHost), "it expired on"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, pebble.Config{})
			m, told := r.server()
			if err := m.Manage(t.Context(), oldHost); err != nil {
				t.Fatal(err)
			}
			old := r.served(oldHost)
			r.proxy.SetFault(test.fault)
			err := m.Renew(t.Context(), oldHost)
			r.failed(m, told, err, oldHost, "checking the certificate", test.words)
			if leaf := r.served(oldHost); !leaf.Equal(old) {
				t.Error("another certificate is served")
			}
			if n := r.Orders(); n != 2 {
				t.Errorf("%d orders, want 2", n)
			}
		})
	}
}

// certificate returns a reply with a certificate of a CA that nobody knows, for
// a key of its own.
func certificate(host string, life time.Duration) pebble.Reply {
	return issued(host, life, newKey().Public())
}

// expired returns a fault that has certificates made for the key that is asked
// for, and an hour dead.
func expired(host string) pebble.Fault {
	var key atomic.Value
	return func(q *http.Request, e pebble.Endpoint, _ int) pebble.Reply {
		switch e {
		case pebble.Finalize:
			var p struct{ CSR string }
			json.Unmarshal([]byte(payload(q)), &p)
			der, _ := base64.RawURLEncoding.DecodeString(p.CSR)
			if csr, err := x509.ParseCertificateRequest(der); err == nil {
				key.Store(csr.PublicKey)
			}
		case pebble.Certificate:
			return issued(host, -time.Hour, key.Load())
		}
		return nil
	}
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// issued returns a reply with a certificate of a CA that nobody knows.
func issued(host string, life time.Duration, public any) pebble.Reply {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: host},
		DNSNames:     []string{host},
		NotBefore:    now.Add(-2 * time.Hour),
		NotAfter:     now.Add(life),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, newKey())
	if err != nil {
		panic(err)
	}
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
}

func TestOneBadHostOfFifty(t *testing.T) {
	t.Parallel()
	all := append(hosts(49), "bad.example.org")
	r := newRig(t, pebble.Config{Blocklist: []string{"bad.example.org"}})
	m, told := r.manager()
	m.SetHosts(all)
	r.serve(m)
	for _, host := range all[:49] {
		eventually(t, host+" obtained", func() bool { return len(told.of(letsencrypt.EventObtained, host)) == 1 })
		r.served(host)
	}
	eventually(t, "the bad host's failure", func() bool { return len(told.of(letsencrypt.EventFailed, "bad.example.org")) > 0 })
	r.failed(m, told, m.Status("bad.example.org")[0].Err, "bad.example.org", "rejectedIdentifier", "is a forbidden domain")
	if n := r.Orders(); n != 49 {
		t.Errorf("%d orders, want 49", n)
	}
}

// A host that the CA can't find costs an order for each type of challenge, and
// the CA's words on each are kept.
func TestFailedValidation(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	r.DNS().Handle(func(reply *dnsmessage.Message) {
		if strings.HasPrefix(reply.Questions[0].Name.String(), newHost) {
			reply.RCode, reply.Answers = dnsmessage.RCodeNameError, nil
		}
	})
	m, told := r.server()
	err := m.Manage(t.Context(), newHost)
	r.failed(m, told, err, newHost, "http-01", "tls-alpn-01", "could not resolve URL", "Could not resolve URL")
	if n := r.Orders(); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
	if err := m.Manage(t.Context(), oldHost); err != nil {
		t.Errorf("another host: %v", err)
	}
}

// The CA that is at fault is passed over for the next one, in one attempt.
func TestNextCA(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	broken, err := r.Proxy(nth(pebble.NewOrder, always, pebble.HTML(http.StatusBadGateway)))
	if err != nil {
		t.Fatal(err)
	}
	m, told := r.manager()
	m.CAs = slices.Insert(m.CAs, 0, letsencrypt.CA{Directory: broken.Directory(), Client: r.Client()})
	r.serve(m)
	for _, host := range hosts(3) {
		if err := m.Manage(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		r.served(host)
		if s := m.Status(host)[0]; s.CA != r.proxy.Directory() {
			t.Errorf("Status(%q).CA = %q, want %q", host, s.CA, r.proxy.Directory())
		}
	}
	if n := broken.Count(pebble.NewOrder); n != 1 {
		t.Errorf("the broken CA was asked for %d orders, want 1", n)
	}
	paused := told.of(letsencrypt.EventPaused, "")
	if len(paused) != 1 || paused[0].CA != broken.Directory() {
		t.Errorf("events = %+v, want one that %s is paused", paused, broken.Directory())
	}
}
