package letsencrypt

// In this file, from the top: what a handshake is given; how challenges are
// answered; certificates of the program's own; listening and HTTP; OCSP responses;
// events and the log.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"example.com/letsencrypt/internal/ca"
	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/challenge"
	"example.com/letsencrypt/internal/event"
	"example.com/letsencrypt/internal/hostname"
	"example.com/letsencrypt/internal/queue"
	"example.com/letsencrypt/internal/shared"
	"example.com/letsencrypt/internal/staple"
	"example.com/letsencrypt/internal/txt"
)

// What bounds a connection.
const (
	handshakeTimeout = 10 * time.Second // for a hello to arrive, or for the rest of a handshake that waited
	idleTimeout      = 2 * time.Minute
)

// serving is how clients and validations reach us. It is guarded by Manager.mu.
type serving struct {
	eager     bool // what the list lacks is obtained unasked
	tlsReady  bool // tls-alpn-01 validations are sure to reach us
	httpReady bool // the same for http-01
	servers   []*http.Server
}

// helloName returns the canonical name of the host that a client asks for. For
// one that names none it is the address that the client reached, if listed,
// else the only listed address, else DefaultHost, else the only listed host.
func (m *Manager) helloName(hello *tls.ClientHelloInfo) (string, error) {
	if hello.ServerName != "" {
		return hostname.Canonical(hello.ServerName)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if hello.Conn != nil {
		if ap, err := netip.ParseAddrPort(hello.Conn.LocalAddr().String()); err == nil {
			name := ap.Addr().Unmap().WithZone("").String()
			if h := m.hosts.Get(name); h != nil && (time.Now().Before(h.expiry()) || m.judgeLocked(name, h) == vouched) || m.own.Get(name) != nil {
				return name, nil
			}
		}
	}
	for _, name := range []string{m.onlyAddr, m.DefaultHost, m.onlyHost} {
		if name != "" {
			return hostname.Canonical(name)
		}
	}
	return "", errors.New("the client named no host, and there is no DefaultHost")
}

// atOnce returns what there is to say to a client without a lock, a clock or a wait:
// the certificate if one has asked for it before, or an error if the name is not on
// the list. Otherwise it returns neither, and the name as it would be kept unless it
// is a host's, or no name.
func (m *Manager) atOnce(name string) (leaf *tls.Certificate, canonical string, err error) {
	if m.own.Covers(name) {
		return nil, "", nil
	}
	h := m.hosts.Get(name)
	if h == nil {
		h, canonical = m.spelled(name)
	}
	if leaf := h.ready(); leaf != nil {
		return leaf, "", nil
	}
	if h == nil && m.strict.Load() && m.Allow == nil && name != "" {
		return nil, "", m.refuse(name, canonical)
	}
	return nil, canonical, nil
}

// spelled returns the host that a client means by a name that is not in the
// table as it was sent: the same in other letters, or the wildcard above it. It is
// nil if we have none, and then the name is returned as it would be kept, "" if it
// is no host's.
func (m *Manager) spelled(name string) (h *host, canonical string) {
	var buf [hostname.MaxLen]byte
	b, err := hostname.AppendCanonical(buf[:0], name)
	if err != nil {
		return nil, ""
	}
	if string(b) == name {
		canonical = name
	} else if h := m.hosts.GetBytes(b); h != nil {
		return h, ""
	} else {
		canonical = string(b)
	}
	if m.wild.Load() {
		if wild, ok := hostname.WildcardInPlace(b); ok {
			h = m.hosts.GetBytes(wild)
		}
	}
	return h, canonical
}

// refuse returns the error for a name that is not on the list. It takes no lock and
// keeps nothing: strangers may have us do so as often as they like.
func (m *Manager) refuse(name, canonical string) error {
	m.begin()
	err := &struct {
		handshakeError
		host HostError
	}{host: HostError{Host: canonical, Err: ErrHostNotAllowed}}
	if canonical == "" {
		_, nonsense := hostname.Canonical(name)
		err.host.Host, err.host.Err = quote(name), fmt.Errorf("%w: %w", ErrHostNotAllowed, nonsense)
	}
	err.error = &err.host
	return &err.handshakeError
}

// ready returns the certificate if a client has asked for it before.
func (h *host) ready() *tls.Certificate {
	if h == nil || h.marks.Load() != asked|used {
		return nil
	}
	return h.leaf.Load()
}

// certificate returns the certificate that is to be served for a host, and
// whether the caller had to wait for it. A nil hello means that the program
// asks, and no client.
func (m *Manager) certificate(ctx context.Context, name string, hello *tls.ClientHelloInfo) (cert *tls.Certificate, waited bool, err error) {
	m.begin()
	if cert := m.own.Get(name); cert != nil && time.Now().Before(cert.Leaf.NotAfter) {
		return cert, false, nil
	}
	if cert := m.live(m.hosts.Get(name)); cert != nil {
		return cert, false, nil
	}
	if m.wild.Load() {
		var buf [hostname.MaxLen + len("*.")]byte
		wild, _ := hostname.AppendWildcard(buf[:0], name)
		if cert := m.live(m.hosts.GetBytes(wild)); cert != nil {
			return cert, false, nil
		}
	}
	m.mu.Lock()
	f, parked, err := m.joinLocked(name, hello)
	m.mu.Unlock()
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxWait, errWait)
	defer cancel()
	cert, err = f.wait(ctx, parked)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiters--
	f.waiters--
	if err == nil && f.host.mark(asked|used) { // who waited for it is served with it
		m.requeueLocked(f.host)
	}
	return cert, true, err
}

// live returns the certificate that we hold for a host, nil if there is none
// or it has expired.
func (m *Manager) live(h *host) *tls.Certificate {
	if h == nil {
		return nil
	}
	leaf := h.leaf.Load()
	if leaf == nil {
		leaf = m.firstUse(h)
	}
	if leaf != nil && h.mark(asked|used) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.requeueLocked(h)
	}
	return leaf
}

// firstUse reads a host's certificate from the state.
func (m *Manager) firstUse(h *host) *tls.Certificate {
	m.mu.Lock()
	expiry, evicted := h.expiry(), h.evicted
	m.mu.Unlock()
	if evicted || !time.Now().Before(expiry) {
		return nil
	}
	rec, cert, err := m.readCert(h.name)
	s := newStapled(h, m.authority(rec.CA), cert, rec.Stapled && err == nil)
	if resp := m.keptStaple(s); resp != nil {
		s.take(resp)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil && h.expiry().Equal(expiry) && !h.evicted:
		m.reportLocked(Event{Kind: EventState, Host: h.name, Err: err})
		if !errors.Is(err, errNoChain) { // it may be read in a moment
			h.notBefore, h.notAfter = 0, 0
			m.requeueLocked(h)
		}
	case err == nil && h.expiry().Equal(expiry) && !h.evicted && h.leaf.CompareAndSwap(nil, s.served):
		m.queueStapleLocked(s, time.Now())
	}
	return h.leaf.Load()
}

// validation answers a tls-alpn-01 validation.
func (m *Manager) validation(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if !m.answers.Any() && m.Storage == nil {
		return nil, errNoValidation
	}
	var buf [hostname.MaxLen]byte
	name := hello.ServerName
	if addr, ok := hostname.FromReverse(name); ok { // RFC 8738, section 6
		name = addr.String()
	} else if b, err := hostname.AppendCanonical(buf[:0], name); err == nil {
		name = string(b)
	} else {
		return nil, errNoValidation
	}
	if cert := m.answers.TLSALPN(name); cert != nil {
		return cert, nil
	}
	if ctx := helloContext(hello); m.Storage != nil && m.expects(name) != refused {
		if cert := m.others.TLSALPN(ctx, name); cert != nil {
			return cert, nil
		}
	}
	return nil, errNoValidation
}

// expects returns what the program's settings say of a name that a CA may have
// come to validate.
func (m *Manager) expects(name string) verdict {
	m.begin()
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts.Get(name)
	switch {
	case m.closed:
		return refused
	case h != nil && h.held():
		return vouched
	}
	return m.judgeLocked(name, h)
}

// answerElsewhere returns the answer to a validation that another member of the
// fleet set up.
func (m *Manager) answerElsewhere(host string) (p challenge.Pending, ok bool) {
	if m.expects(host) == asking && !m.allowed(host) {
		return p, false
	}
	return m.pending(host)
}

// pending returns the answer to a validation that a member of the fleet set up, and
// that Storage has.
func (m *Manager) pending(host string) (p challenge.Pending, ok bool) {
	value, err := m.client.Load(m.ctx, shared.Key(kindChallenge, host))
	if err != nil {
		return p, false
	}
	records, err := shared.Decode(value, kindChallenge, host)
	if err != nil {
		return p, false
	}
	err = json.Unmarshal([]byte(records[len(records)-1].JSON()), &p)
	return p, err == nil
}

// allowed asks Allow about a host that a CA may have come to validate. There are
// few such questions at a time: a stranger's must not be in the way of others.
func (m *Manager) allowed(host string) bool {
	m.mu.Lock()
	crowded := m.guesses >= maxGuesses
	if !crowded {
		m.guesses++
	}
	m.mu.Unlock()
	if crowded {
		return false
	}
	err := m.allow(m.ctx, host)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guesses--
	return err == nil
}

// share lets the other members of the fleet answer a challenge, too.
func (s *solving) share(ctx context.Context, p challenge.Pending) (remove func(), err error) {
	if s.m.Storage == nil {
		return func() {}, nil
	}
	key, value := shared.Key(kindChallenge, s.host), shared.Encode(record(kindChallenge, s.host, p))
	if err := s.m.client.Store(ctx, key, value); err != nil {
		return func() {}, s.m.outage(ctx, newStorageError("storing", kindChallenge, s.host, err))
	}
	return func() {
		ctx := context.WithoutCancel(ctx)
		if now, err := s.m.client.Load(ctx, key); err == nil && bytes.Equal(now, value) { // who lost a lock takes away no other's
			s.m.client.Delete(ctx, key) // what is left of it does no harm
		}
	}, nil
}

var errNoValidation = &HostError{Host: "acme-tls/1", Err: errors.New("no validation of this name is pending here")}

func (m *Manager) recordLeft(name string, err error) {
	m.logger().Warn("letsencrypt: a DNS record could not be taken away, which does no harm", "name", name, "err", err)
}

// A DNSProvider sets the TXT records that dns-01 validations look for and takes
// them away, given the domain, without "*.", and the challenge's token and key
// authorization (RFC 8555, section 8.4). Every DNS provider of lego v5 is one;
// those of libdns become one by package dns/libdns.
//
// Present and CleanUp may block. They are called for several domains at once,
// but for one with the same TXT record only after the one before is cleaned up.
// Optional methods that lego's have are honored: Timeout returns how long to
// wait for a record to be seen and how often to look, and a provider with
// Sequential gets one domain at a time, that long apart.
type DNSProvider interface {
	Present(ctx context.Context, domain, token, keyAuth string) error
	CleanUp(ctx context.Context, domain, token, keyAuth string) error
}

// challengeTypes returns the types of challenges to try for a host in turn. A
// record of dns-persist-01 is the last resort, unless it worked before.
func (m *Manager) challengeTypes(h *host) []string {
	rec, _, _ := m.readCert(h.name) // none is no error here
	_, addr := hostname.IsAddr(h.name)
	m.mu.Lock()
	defer m.mu.Unlock()
	sure := make(map[string]bool)
	switch {
	case m.DNS != nil && !addr:
		sure[challenge.DNS01] = true
	case !isWildcard(h.name):
		sure[challenge.TLSALPN01] = m.tlsReady
		if m.httpReady {
			sure[challenge.HTTP01] = true
		}
	}
	past := challenge.Past{Worked: rec.Challenge}
	if h.trouble != nil {
		past.Failed = h.trouble.Failed
	}
	types := challenge.Order(sure, past, time.Now(), rand.Float64)
	switch {
	case addr:
		return types
	case rec.Challenge == challenge.Persist01:
		return slices.Insert(types, 0, challenge.Persist01)
	}
	return append(types, challenge.Persist01)
}

// A solving is how the challenges of a host's orders at one CA are answered.
type solving struct {
	m      *Manager
	f      *flight
	a      *authority
	client *ca.Client
	host   string
	types  []string // to try in turn

	typ     string // the one that was tried last
	late    error  // why its record is not seen everywhere
	offered bool   // whether the CA offers dns-persist-01
}

// begin returns an error if no order is worth making: there is no way but
// dns-persist-01, and its record is not there. The first order is made all the
// same, since the CA says with it what the record must be.
func (s *solving) begin() error {
	if s.types[0] != challenge.Persist01 {
		return nil
	}
	s.m.mu.Lock()
	issuers := s.a.issuers
	s.m.mu.Unlock()
	only := len(s.types) == 1
	if only && issuers == nil {
		return nil
	}
	err := s.standing(s.m.ctx, issuers)
	if err != nil && !only {
		s.types, err = s.types[1:], nil
	}
	return err
}

// dropType takes out the type that was tried last, and reports whether there is
// one left to try.
func (s *solving) dropType() bool {
	i := slices.Index(s.types, s.typ)
	if i < 0 {
		return false
	}
	s.types = slices.Delete(s.types, i, i+1)
	s.typ, s.late = "", nil
	if len(s.types) == 0 || s.types[0] != challenge.Persist01 {
		return len(s.types) > 0
	}
	return s.offered && s.standing(s.m.ctx, nil) == nil
}

// solve chooses one of an authorization's challenges and sets up its answer.
func (s *solving) solve(ctx context.Context, auth *ca.Authorization, arrived chan<- struct{}) (*ca.Answer, error) {
	for _, ch := range auth.Challenges {
		s.offered = s.offered || ch.Type == challenge.Persist01
	}
	if s.m.Storage != nil {
		s.follow(auth)
	}
	ch, err := auth.Pick(s.types)
	if f, ok := err.(*ca.Failure); ok && isWildcard(s.host) && s.m.DNS == nil {
		err = &ca.Failure{Class: f.Class, Step: f.Step, Err: fmt.Errorf("%w; a wildcard needs dns-01: set the Manager's DNS to a provider", f.Err)}
	}
	if err != nil {
		return nil, err
	}
	s.typ = ch.Type
	return s.answer(ctx, ch, arrived)
}

// follow puts the type of challenge first that another member of the fleet has
// answered for this authorization: it may have told the CA to validate that, or be
// about to.
func (s *solving) follow(auth *ca.Authorization) {
	p, ok := s.m.pending(s.host)
	if !ok {
		return
	}
	for _, ch := range auth.Challenges {
		if i := slices.Index(s.types, ch.Type); ch.Type == p.Type && ch.Token == p.Token && i > 0 {
			s.types = slices.Insert(slices.Delete(s.types, i, i+1), 0, p.Type)
		}
	}
}

// answer sets up the answer to a challenge. A record of dns-01 that is not seen
// everywhere yet is an answer all the same.
func (s *solving) answer(ctx context.Context, ch *ca.Challenge, arrived chan<- struct{}) (*ca.Answer, error) {
	ans := &ca.Answer{Challenge: ch, Remove: func() {}}
	if ch.Type == challenge.Persist01 {
		return ans, s.permitted(ctx, ch)
	}
	keyAuth, err := s.client.KeyAuthorization(ch.Token)
	if err != nil {
		return nil, err
	}
	if ch.Type == challenge.DNS01 {
		remove, late, err := s.setRecord(ctx, ch.Token, keyAuth)
		ans.Remove, s.late = func() { s.m.aside(remove) }, late
		return ans, err
	}
	elsewhere, err := s.share(ctx, challenge.Pending{Type: ch.Type, Token: ch.Token, KeyAuth: keyAuth})
	if err != nil {
		return nil, err
	}
	var here func()
	if ch.Type == challenge.HTTP01 {
		here = s.m.answers.AddHTTP(s.host, ch.Token, keyAuth, arrived)
	} else if here, err = s.m.answers.AddTLSALPN(s.host, keyAuth, arrived); err != nil {
		elsewhere()
		return nil, err
	}
	ans.Remove = func() { here(); elsewhere() }
	return ans, nil
}

// setRecord has a record set for dns-01 and waits until it is seen, which may
// take an hour: others have its place at the CA and among the flights meanwhile.
func (s *solving) setRecord(ctx context.Context, token, keyAuth string) (remove func(), late, err error) {
	s.m.waitElsewhere(s.f, +1)
	<-s.a.slots
	remove, late, err = s.m.solver.Add(ctx, s.host, token, keyAuth)
	s.a.slots <- struct{}{} // the others under way come to an end
	s.m.waitElsewhere(s.f, -1)
	return remove, late, err
}

// waitElsewhere counts the flights that wait for others than the CA: for a DNS record
// to be seen, or for another member of the fleet.
func (m *Manager) waitElsewhere(f *flight, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.background {
		m.unseen += n
		m.pokeLocked()
	}
}

// aside runs f in the background or, after Shutdown, which waits for its
// caller, at once.
func (m *Manager) aside(f func()) {
	m.mu.Lock()
	ok := m.goLocked(f)
	m.mu.Unlock()
	if !ok {
		f()
	}
}

// permitted returns nil if the record is there that a challenge of
// dns-persist-01 is about. Else the CA is not to validate it, and the error says
// what record to set.
func (s *solving) permitted(ctx context.Context, ch *ca.Challenge) error {
	issuers := ch.IssuerDomainNames
	if len(issuers) == 0 {
		d, err := s.client.Directory(ctx)
		if err != nil {
			return err
		}
		issuers = d.Meta.CAAIdentities
	}
	s.m.mu.Lock()
	s.a.issuers = issuers
	s.m.mu.Unlock()
	return s.standing(ctx, issuers)
}

// standing returns nil if a record of dns-persist-01 lets our account at the CA,
// which goes by these names, have certificates for the host. No names mean any.
func (s *solving) standing(ctx context.Context, issuers []string) error {
	name := challenge.PersistentName(s.host)
	want := challenge.Persistent{Issuers: issuers, Account: s.client.KID(), Wildcard: isWildcard(s.host)}
	records := txt.Client{Resolver: s.m.Resolver}
	values, err := records.Lookup(ctx, name)
	if err != nil { // a firewall perhaps; such records stay, so that a cache will do
		values, err = cmp.Or(s.m.Resolver, net.DefaultResolver).LookupTXT(ctx, name)
	}
	if want.In(values, time.Now()) {
		return nil
	}
	found := "it has none"
	if len(values) > 0 {
		found = fmt.Sprintf("it has %q", values)
	} else if e, ok := errors.AsType[*net.DNSError](err); err != nil && !(ok && e.IsNotFound) {
		found = err.Error()
	}
	return &ca.Failure{Class: ca.Unset, Step: "looking for a record of dns-persist-01", Err: fmt.Errorf(
		"to have certificates for %s without a DNS provider, set a TXT record once: name %s, value %q (%s)", s.host, name, want.Value(), found)}
}

// helloContext returns the context of a handshake; a hello built by hand has none.
func helloContext(hello *tls.ClientHelloInfo) context.Context {
	if ctx := hello.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}

// extend gives a handshake that had to wait for us the time to end: whatever
// bounds it was set before. When it has ended the bound is lifted.
func extend(hello *tls.ClientHelloInfo) {
	conn, ctx := hello.Conn, helloContext(hello)
	if conn == nil || ctx.Done() == nil {
		return
	}
	conn.SetDeadline(time.Now().Add(handshakeTimeout)) // an error shows when the handshake goes on
	if s, ok := ctx.Value(http.ServerContextKey).(*http.Server); ok && (s.ReadHeaderTimeout > 0 || s.ReadTimeout > 0 || s.WriteTimeout > 0) {
		return // it bounds handshakes, and so sets the deadline that comes after
	}
	context.AfterFunc(ctx, func() { conn.SetDeadline(time.Time{}) })
}

// A handshakeError is why a handshake failed. Servers log it as it is, so its
// text is fit for that; what it wraps is whole.
type handshakeError struct{ error }

func (e *handshakeError) Error() string { return event.Redact(e.error) }
func (e *handshakeError) Unwrap() error { return e.error }

// quote returns a name as a client or program wrote it, fit to be printed.
func quote(s string) string {
	if len(s) > hostname.MaxLen {
		s = s[:hostname.MaxLen] + "..."
	}
	q := strconv.QuoteToASCII(s)
	if q == `"`+s+`"` {
		return s
	}
	return q
}

// AddCertificate adds a certificate of the program's own: it is served for
// every name that its leaf lists, wildcards included, in place of those that
// the Manager obtains, until it expires. Of two for the same name the later
// one is served. It is kept in memory only; cert must not be changed after.
// The error says why it can't be used.
func (m *Manager) AddCertificate(cert tls.Certificate) error {
	added, err := m.own.Add(cert, time.Now())
	if err != nil {
		return fmt.Errorf("letsencrypt: AddCertificate: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started {
		m.stapleOwnLocked(added)
		for _, h := range m.hosts.All() { // a wildcard is for many
			m.requeueLocked(h)
		}
	}
	return nil
}

// protocols are what a server speaks, and how validations are answered.
var protocols = []string{"h2", "http/1.1", challenge.ALPNProto}

// TLSConfig returns a new configuration for a server of the program's own:
// GetCertificate, HTTP/2 and HTTP/1.1, TLS 1.2 and later. It may be changed,
// but for GetConfigForClient: that answers the CA's validations under a
// configuration apart, so that they pass whatever the program demands of its
// clients.
func (m *Manager) TLSConfig() *tls.Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tlsReady = true
	validations := &tls.Config{
		GetCertificate: m.validation,
		NextProtos:     []string{challenge.ALPNProto},
		MinVersion:     tls.VersionTLS12,
	}
	return &tls.Config{
		GetCertificate: m.GetCertificate,
		NextProtos:     slices.Clone(protocols),
		MinVersion:     tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if challenge.IsValidation(hello) {
				return validations, nil
			}
			return nil, nil
		},
	}
}

// Listen returns a listener at HTTPSAddr whose connections speak TLS with
// TLSConfig. The certificates that the list lacks are obtained in the
// background. Give an http.Server that serves it a ReadHeaderTimeout, which
// bounds handshakes too.
func (m *Manager) Listen() (net.Listener, error) {
	ln, err := m.listen(m.httpsAddr())
	if err != nil {
		return nil, err
	}
	m.beEager()
	return tls.NewListener(ln, m.TLSConfig()), nil
}

func (m *Manager) listen(addr string) (net.Listener, error) {
	if m.isClosed() {
		return nil, http.ErrServerClosed
	}
	return net.Listen("tcp", addr)
}

func (m *Manager) httpAddr() string { return cmp.Or(m.HTTPAddr, ":http") }

func (m *Manager) httpsAddr() string { return cmp.Or(m.HTTPSAddr, ":https") }

// beEager has what the list lacks obtained without being asked for.
func (m *Manager) beEager() {
	m.begin()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.eager = true
	for _, h := range m.hosts.All() {
		if h.listed {
			m.requeueLocked(h)
		}
	}
}

// Serve serves Handler over HTTPS at HTTPSAddr, and at HTTPAddr what ServeHTTP
// does: validations of the CA, and redirects to HTTPS. The certificates that
// the list lacks are obtained in the background; that they can't be is no
// error of Serve's. It returns when a listener fails, or with
// http.ErrServerClosed after Shutdown.
func (m *Manager) Serve() error {
	plain, err := m.listen(m.httpAddr())
	if err != nil {
		return err
	}
	secure, err := m.listen(m.httpsAddr())
	if err != nil {
		plain.Close()
		return err
	}
	m.mu.Lock()
	m.httpReady = true
	m.mu.Unlock()
	m.beEager()
	http1, https := m.server(m), m.server(m.Handler)
	ended := make(chan error, 2)
	if !m.track(http1, https) {
		plain.Close()
		secure.Close()
		return http.ErrServerClosed
	}
	go func() { ended <- http1.Serve(plain) }()
	go func() { ended <- https.ServeTLS(secure, "", "") }()
	if err = <-ended; !errors.Is(err, http.ErrServerClosed) { // else Shutdown sees to both
		http1.Close()
		https.Close()
		<-ended
	}
	return err
}

// ServeHTTPS is Serve without the server at HTTPAddr, for a program that has
// one of its own: see HTTPHandler.
func (m *Manager) ServeHTTPS() error {
	ln, err := m.listen(m.httpsAddr())
	if err != nil {
		return err
	}
	m.beEager()
	s := m.server(m.Handler)
	if !m.track(s) {
		ln.Close()
		return http.ErrServerClosed
	}
	return s.ServeTLS(ln, "", "")
}

// server returns a server with time-outs for the open internet. What goes wrong
// with single connections, scanners' handshakes mostly, is for debugging.
func (m *Manager) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		TLSConfig:         m.TLSConfig(),
		ReadHeaderTimeout: handshakeTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(m.logger().Handler(), slog.LevelDebug),
	}
}

// track has Shutdown shut the servers down, and reports whether there was none
// yet.
func (m *Manager) track(servers ...*http.Server) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.servers = append(m.servers, servers...)
	}
	return !m.closed
}

// Shutdown ends the work: the servers of Serve and ServeHTTPS stop listening
// and finish their requests, orders under way are parked for the next start,
// and the state is written. It waits for all that until ctx ends, and returns
// its error then. Listeners of Listen and servers of the program's own are the
// program's to close.
//
// Afterwards GetCertificate and Cert return the certificates that are there
// and http.ErrServerClosed for others; nothing starts again. Shutdown may be
// called twice, but not from OnEvent, which it waits for.
func (m *Manager) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	m.strict.Store(false)
	servers := m.servers
	m.mu.Unlock()
	errs := make([]error, len(servers))
	var down sync.WaitGroup
	for i, s := range servers {
		down.Go(func() { errs[i] = s.Shutdown(ctx) })
	}
	down.Wait()
	m.mu.Lock()
	if m.started {
		m.cancel()
	}
	for _, q := range []*queue.Queue[*flight]{&m.renewals, &m.lacking} {
		for item, _ := q.Next(); item != nil; item, _ = q.Next() {
			m.landLocked(item.Value, nil, &HostError{Host: item.Value.host.name, Err: http.ErrServerClosed})
		}
	}
	m.mu.Unlock()
	errs = append(errs, m.ended(ctx))
	return errors.Join(errs...)
}

// ended waits for what is under way to end, and writes the state.
func (m *Manager) ended(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		m.running.Wait()
		m.mu.Lock()
		if m.owed {
			m.tellLocked(true) // loop, which would have, has ended
		}
		m.mu.Unlock()
		m.events.Drain()
		err := m.log.Close()
		m.mu.Lock()
		left := m.lackingLocked(func(string) bool { return true })
		m.mu.Unlock()
		done <- errors.Join(err, m.share(false, left))
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Manager) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// ServeHTTP is what Serve does at HTTPAddr. It answers the CA's http-01
// validations, and redirects to HTTPS what asks for a host that is on the list
// or has a certificate, or, if there is no list, for any that could have one.
// Everything else is not found.
func (m *Manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.serveHTTP(w, r, nil)
}

// HTTPHandler returns a handler that answers the CA's http-01 validations and
// leaves all else to fallback, or if that is nil does with it what ServeHTTP
// does. It may stand anywhere that requests for port 80 come by.
func (m *Manager) HTTPHandler(fallback http.Handler) http.Handler {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.httpReady = true
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serveHTTP(w, r, fallback) })
}

func (m *Manager) serveHTTP(w http.ResponseWriter, r *http.Request, fallback http.Handler) {
	host, port, err := splitHost(r.Host)
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	if token, ok := challenge.Token(r.URL.Path); ok && err == nil && get {
		if keyAuth, ok := m.answer(r.Context(), host, token); ok {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			io.WriteString(w, keyAuth)
			return
		}
	}
	m.mu.Lock()
	m.httpReady = true
	known := err == nil && m.knownLocked(host)
	m.mu.Unlock()
	switch {
	case fallback != nil:
		fallback.ServeHTTP(w, r)
	case !known:
		http.NotFound(w, r)
	default:
		redirect(w, r, host, m.httpsPort(port))
	}
}

// answer returns the key authorization that answers an http-01 validation, ours
// or another member's of the fleet.
func (m *Manager) answer(ctx context.Context, host, token string) (keyAuth string, ok bool) {
	keyAuth, ok = m.answers.HTTP(host, token)
	if !ok && m.Storage != nil && m.expects(host) != refused {
		return m.others.HTTP(ctx, host, token)
	}
	return keyAuth, ok
}

// knownLocked reports whether there is, or could be, something at the host to
// redirect to.
func (m *Manager) knownLocked(name string) bool {
	wild, _ := hostname.Wildcard(name)
	for _, name := range []string{name, wild} {
		if h := m.hosts.Get(name); h != nil && (h.listed || h.held()) || m.own.Get(name) != nil {
			return true
		}
	}
	return !m.listed && hostname.Plausible(name)
}

// splitHost returns the canonical host and the port, if any, of a Host header.
func splitHost(s string) (host, port string, err error) {
	host = s
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	}
	host, err = hostname.Canonical(host)
	return host, port, err
}

// httpsPort returns the port to redirect to for a request that was made to
// port: none, that is 443, unless the program chose both ports itself.
func (m *Manager) httpsPort(port string) string {
	_, plain, _ := net.SplitHostPort(m.httpAddr())
	_, secure, _ := net.SplitHostPort(m.httpsAddr())
	if port == "" || port != plain || secure == "https" || secure == "443" {
		return ""
	}
	return secure
}

// RedirectHTTP redirects a request for any host there could be to the same
// place over HTTPS, at port 443. See Manager.ServeHTTP for one that knows which
// hosts there are.
func RedirectHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, err := splitHost(r.Host)
	if err != nil {
		http.Error(w, "the Host header names no host", http.StatusBadRequest)
		return
	}
	redirect(w, r, host, "")
}

// redirect is careful that nothing of the request gets anywhere but into the
// Location, and there only escaped.
func redirect(w http.ResponseWriter, r *http.Request, host, port string) {
	code := http.StatusTemporaryRedirect // a POST stays one
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		code = http.StatusFound
	}
	if port != "" {
		host = net.JoinHostPort(host, port)
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	uri := r.URL.RequestURI()
	if !strings.HasPrefix(uri, "/") {
		uri = "/"
	}
	w.Header().Set("Location", "https://"+host+uri)
	w.WriteHeader(code)
}

// A stapled is a certificate that names an OCSP responder, and what that says of
// it (RFC 6960). Once it is in m.staples it is guarded by m.mu.
type stapled struct {
	place  queue.Item[*stapled] // in m.staples, by when to see to it
	host   *host                // nil for the program's own
	name   string               // of the host or, if there is none, the first in it
	key    string               // of the record
	ca     string
	client *http.Client
	base   *tls.Certificate // without a staple; nil if it names no responder
	served *tls.Certificate // what is in its place, with one or without
	until  time.Time        // the predecessor lives, which is served until there is one

	last     *staple.Response // the newest that was good; nil while there is none
	failures int              // since then
	looked   bool             // for one that was kept
	asking   bool
	told     bool // that there is none
	revoked  bool // and so said
}

// newStapled returns what is to be known of a host's certificate. A is the CA
// that issued it, nil if it is not one of ours.
func newStapled(h *host, a *authority, cert *tls.Certificate, responder bool) *stapled {
	s := &stapled{host: h, name: h.name, key: h.name, served: cert}
	if responder {
		s.base = cert
	}
	if a != nil {
		s.ca, s.client = a.Directory, a.Client
	}
	s.place.Value = s
	return s
}

// stapleOwnLocked has the program's own certificate stapled, if it names a
// responder.
func (m *Manager) stapleOwnLocked(cert *tls.Certificate) {
	if !certs.HasResponder(cert.Leaf) {
		return
	}
	base := *cert
	base.OCSPStaple = nil
	s := &stapled{name: certs.Names(cert.Leaf)[0], key: leafHash(cert.Certificate[0]), base: &base, served: cert}
	s.place.Value = s
	m.queueStapleLocked(s, time.Now())
}

// queueStapleLocked has a certificate that names a responder seen to.
func (m *Manager) queueStapleLocked(s *stapled, at time.Time) {
	if s.base == nil {
		return
	}
	if s.last != nil {
		soonest := max(stapleFirst, min(stapleMost, s.last.NextUpdate.Sub(at)/4)) // some hand out old ones
		at = later(at.Add(soonest), s.last.RefreshAt(rand.Float64()))
	}
	m.staples.Set(&s.place, at)
	m.pokeLocked()
}

// seeToStapleLocked does what is due for a certificate's staple.
func (m *Manager) seeToStapleLocked(s *stapled, now time.Time) {
	switch {
	case !m.inPlaceLocked(s): // it was replaced, or has expired
		if s.host == nil {
			m.forgetLocked(kindStaple, s.key)
		}
		return
	case s.last != nil && !s.last.Fresh(now), !s.until.IsZero() && !now.Before(s.until):
		s.last, s.until = nil, time.Time{}
		m.swapLocked(s, s.base)
		m.bareLocked(s, errors.New("the last one is out of date"))
	}
	if s.asking {
		return
	}
	if m.staplings >= maxStaplings {
		at := now.Add(time.Second)
		if s.last != nil {
			at = earliest(at, s.last.NextUpdate)
		}
		m.staples.Set(&s.place, earliest(at, s.until))
		return
	}
	if s.asking = m.goLocked(func() { m.refresh(s) }); s.asking {
		m.staplings++
	}
	if s.last != nil {
		m.staples.Set(&s.place, s.last.NextUpdate) // it may not live as long as the question takes
	}
}

// refresh asks for a new staple and puts it in place.
func (m *Manager) refresh(s *stapled) {
	resp, err := m.fetchStaple(m.ctx, s)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.staplings--
	s.asking = false
	now := time.Now().Round(0)
	if !m.inPlaceLocked(s) || m.closed {
		return
	}
	switch {
	case err != nil:
		s.failures++
		if s.last == nil {
			m.bareLocked(s, err)
		}
	case resp.Revoked:
		s.failures++
		m.revokedLocked(s, resp, now)
	default:
		if s.host != nil {
			s.host.redone = false
		}
		s.failures, s.until, s.last = 0, time.Time{}, resp
		m.swapLocked(s, s.with(resp))
		m.keepStapleLocked(s, now)
		return
	}
	at := now.Add(backoff(s.failures, stapleFirst, stapleMost))
	if s.last != nil {
		at = earliest(at, s.last.NextUpdate)
	}
	m.staples.Set(&s.place, earliest(at, s.until))
}

// fetchStaple returns what the responder says of a certificate or, the first
// time, what it said before we were restarted.
func (m *Manager) fetchStaple(ctx context.Context, s *stapled) (*staple.Response, error) {
	if m.Storage != nil && m.pull(ctx, kindStaple, s.key) == nil {
		s.looked = false // another member may have asked
	}
	if resp := m.keptStaple(s); resp != nil && (s.last == nil || resp.NextUpdate.After(s.last.NextUpdate)) {
		return resp, nil
	}
	leaf, issuer, err := leafAndIssuer(s.base)
	if err != nil {
		return nil, err
	}
	resp, err := staple.Fetch(ctx, s.client, leaf, issuer)
	if err == nil && !resp.Revoked && !resp.Fresh(time.Now()) {
		err = errors.New("the responder does not say until when its answer holds")
	}
	return resp, err
}

// keptStaple returns the staple that the state has for a certificate, or that
// the program brought with its own. It is asked for once.
func (m *Manager) keptStaple(s *stapled) *staple.Response {
	if s.base == nil || s.looked {
		return nil
	}
	s.looked = true
	var rec stapleRecord
	r, ok := m.log.Get(kindStaple, s.key)
	if !ok || json.Unmarshal([]byte(r.JSON()), &rec) != nil || rec.Leaf != leafHash(s.base.Certificate[0]) {
		rec.Response = s.served.OCSPStaple
	}
	leaf, issuer, err := leafAndIssuer(s.base)
	if err != nil || len(rec.Response) == 0 {
		return nil
	}
	now := time.Now()
	resp, err := staple.Parse(rec.Response, leaf, issuer, now)
	if err != nil || !resp.Fresh(now) {
		return nil
	}
	return resp
}

func leafAndIssuer(cert *tls.Certificate) (leaf, issuer *x509.Certificate, err error) {
	if len(cert.Certificate) < 2 {
		return nil, nil, errors.New("the certificate of its issuer, which an OCSP request needs, is not in its chain")
	}
	if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		return nil, nil, err
	}
	issuer, err = x509.ParseCertificate(cert.Certificate[1])
	return leaf, issuer, err
}

// take gives a certificate that nobody is served yet its staple.
func (s *stapled) take(resp *staple.Response) {
	s.served, s.last = s.with(resp), resp
}

func (s *stapled) with(resp *staple.Response) *tls.Certificate {
	cert := *s.base
	cert.OCSPStaple = resp.DER
	return &cert
}

// inPlaceLocked reports whether the certificate is still the one that is served,
// or is to be.
func (m *Manager) inPlaceLocked(s *stapled) bool {
	switch h := s.host; {
	case h == nil:
		return m.own.Replace(s.served, s.served)
	default:
		return h.next == s || h.leaf.Load() == s.served
	}
}

// swapLocked puts cert in the place of what is served, unless that was replaced
// meanwhile.
func (m *Manager) swapLocked(s *stapled, cert *tls.Certificate) {
	switch h := s.host; {
	case h == nil:
		m.own.Replace(s.served, cert)
	case h.next == s:
		h.leaf.Store(cert)
		h.next = nil
		delete(m.befores, h)
	default:
		h.leaf.CompareAndSwap(s.served, cert)
	}
	s.served = cert
}

// keepStapleLocked keeps a certificate's staple, in place of the one before, and
// has it refreshed in time.
func (m *Manager) keepStapleLocked(s *stapled, now time.Time) {
	if s.last == nil {
		m.forgetLocked(kindStaple, s.key)
	} else {
		m.putStapleLocked(s)
	}
	if s.told && s.last != nil {
		s.told = false
		m.reportLocked(Event{Kind: EventStaple, Host: s.name, CA: s.ca})
	}
	m.queueStapleLocked(s, now)
}

func (m *Manager) putStapleLocked(s *stapled) {
	r := record(kindStaple, s.key, stapleRecord{Leaf: leafHash(s.base.Certificate[0]), Until: s.last.NextUpdate.Unix(), Response: s.last.DER})
	if was, _ := m.log.Get(kindStaple, s.key); was != r {
		m.putLocked(r)
	}
}

// bareLocked says, once, that a certificate has no staple.
func (m *Manager) bareLocked(s *stapled, err error) {
	if !s.told {
		s.told = true
		m.reportLocked(Event{Kind: EventStaple, Host: s.name, CA: s.ca, Err: err})
	}
}

// revokedLocked has a certificate replaced that the CA has revoked. The last
// good staple stays till it is out of date: there is nothing better to serve.
func (m *Manager) revokedLocked(s *stapled, resp *staple.Response, now time.Time) {
	if s.revoked {
		return
	}
	s.revoked = true
	err := fmt.Errorf("its OCSP responder says that it was revoked at %s, for reason %d of RFC 5280", resp.RevokedAt.UTC().Format(time.RFC3339), resp.Reason)
	m.reportLocked(Event{Kind: EventRevoked, Host: s.name, CA: s.ca, Err: err})
	h := s.host
	switch {
	case h == nil:
	case h.next != nil && h.next != s: // it is the one before, which is not worth waiting with
		m.swapLocked(h.next, h.next.served)
	default:
		h.renewal, h.revoked = now.UnixNano(), true
		if h.redone { // a responder that knows none of them good would have us go on for ever
			h.since = uint32(now.Unix())
		}
		m.tooSoonLocked(h, now)
		m.requeueLocked(h)
	}
}

func (m *Manager) logger() *slog.Logger {
	if m.Logger == nil {
		return slog.Default()
	}
	return m.Logger
}

// reportLocked has an event logged and given to OnEvent, in a goroutine of
// their own: both may block.
func (m *Manager) reportLocked(e Event) {
	e.Time = time.Now().Round(0)
	if m.events.Deliver == nil {
		m.events.Max, m.events.Deliver = maxEvents, m.deliver
	}
	if idle := m.events.Add(e); idle && m.started {
		m.goLocked(m.events.Drain)
	}
}

func (m *Manager) deliver(e Event, dropped int) {
	e.Dropped = dropped
	if !e.logged {
		m.logEvent(e)
	}
	if m.OnEvent != nil {
		m.OnEvent(e)
	}
}

// logLines are how events are logged.
var logLines = map[EventKind]struct {
	level slog.Level
	text  string
}{
	EventAccount:  {slog.LevelInfo, "made an account, and agreed to the CA's terms of service"},
	EventObtained: {slog.LevelInfo, "obtained a certificate"},
	EventRenewed:  {slog.LevelInfo, "renewed a certificate"},
	EventFailed:   {slog.LevelWarn, "no new certificate"},
	EventExpired:  {slog.LevelError, "a certificate has expired"},
	EventPaused:   {slog.LevelWarn, "the CA is not asked for now"},
	EventResumed:  {slog.LevelInfo, "the CA works again"},
	EventLimit:    {slog.LevelWarn, "Limit is too low"},
	EventState:    {slog.LevelError, "the state is in trouble"},
	EventTerms:    {slog.LevelInfo, "agreed to the CA's new terms of service"},
	EventRecalled: {slog.LevelWarn, "the CA wants a certificate replaced before its time"},
	EventRevoked:  {slog.LevelWarn, "a certificate was revoked"},
	EventStaple:   {slog.LevelWarn, "no OCSP response goes with a certificate"},
}

// logEvent logs an event, with the fields that it has.
func (m *Manager) logEvent(e Event) {
	line := logLines[e.Kind]
	if e.Kind == EventState && e.Err == nil {
		line.level, line.text = slog.LevelInfo, "the state can be written again"
	}
	if e.Kind == EventStaple && e.Err == nil {
		line.level, line.text = slog.LevelInfo, "an OCSP response goes with a certificate again"
	}
	var attrs []slog.Attr
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	date := func(key string, t time.Time) {
		if t.Unix() > 0 {
			attrs = append(attrs, slog.Time(key, t))
		}
	}
	text("host", e.Host)
	text("ca", e.CA)
	err := e.Err
	if he, ok := err.(*HostError); ok {
		err = he.Err // the rest of it is in the other fields
	}
	text("err", event.Redact(err))
	date("expires", e.NotAfter)
	date("next", e.Next)
	m.logger().LogAttrs(context.Background(), line.level, "letsencrypt: "+line.text, attrs...)
}
