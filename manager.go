// Package letsencrypt obtains, serves, renews and remembers TLS certificates.
package letsencrypt

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/letsencrypt/internal/ca"
	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/challenge"
	"example.com/letsencrypt/internal/event"
	"example.com/letsencrypt/internal/hostname"
	"example.com/letsencrypt/internal/journal"
	"example.com/letsencrypt/internal/owned"
	"example.com/letsencrypt/internal/queue"
	"example.com/letsencrypt/internal/table"
	"golang.org/x/crypto/acme"
	"golang.org/x/time/rate"
)

// Directory URLs of Let's Encrypt. The staging environment issues certificates
// that no browser trusts, within limits that no test reaches.
const (
	LetsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	LetsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// A Manager obtains, serves, renews and remembers TLS certificates. The zero
// Manager is ready: it asks Let's Encrypt for a certificate whenever a client
// asks for a new name.
//
// Set the fields before the first use and leave them alone afterwards. First
// use is the first call that serves, obtains or starts work; CacheFile,
// Unmarshal, SetHosts and AddCertificate do none of that. All methods are safe
// for concurrent use. A Manager must not be copied.
type Manager struct {
	CAs         []CA         // asked in order until one issues; nil means Let's Encrypt
	Handler     http.Handler // what Serve and ServeHTTPS serve; nil means http.DefaultServeMux
	HTTPAddr    string       // where Serve listens for HTTP; "" means ":http"
	HTTPSAddr   string       // where Serve, ServeHTTPS and Listen listen; "" means ":https"
	DefaultHost string       // for a client that sends no server name

	// Allow says whether a host that SetHosts did not list may have a
	// certificate: nil means yes, an error means no. It is asked when a client
	// asks for a name there is no certificate for, and again before a renewal.
	// An error that is a net.Error, as time-outs are, means that it can't be
	// told now, which stops a new host but no renewal.
	//
	// Allow may block, within reason: clients wait for it, and its ctx ends
	// with the Manager. ClientAddr(ctx) is the client that asks, if any.
	Allow func(ctx context.Context, host string) error

	// NewKey makes the key for each new certificate; nil means ECDSA P-256. It
	// must be one that x509.MarshalPKCS8PrivateKey accepts.
	NewKey func() (crypto.Signer, error)

	// Limit counts every certificate asked for, renewals included. Nil means
	// one a minute, with a burst of 20.
	Limit *rate.Limiter

	// NewHostLimit counts the hosts never seen before that nobody vouched for:
	// not SetHosts, Manage or Allow. Nil means one every three hours, with a
	// burst of 20; if Allow is set, nil means no limit of this kind.
	NewHostLimit *rate.Limiter

	Logger *slog.Logger // nil means slog.Default()

	// OnEvent is told of everything that changes, one call after the other, in
	// order, never from a handshake's goroutine. If it falls behind by more
	// than a thousand events, the next ones are dropped, and counted in
	// Event.Dropped. It may call any method but Shutdown.
	OnEvent func(Event)

	mu           sync.Mutex // guards all that follows up to log; held for memory only
	state                   // what Marshal writes
	listSet      bool       // the list is this process's, not the file's
	kept         bool       // there is a cache file
	started      bool
	closed       bool
	eager        bool // what the list lacks is obtained unasked
	tlsReady     bool // tls-alpn-01 validations are sure to reach us
	httpReady    bool // the same for http-01
	limit        *rate.Limiter
	newHosts     *rate.Limiter // nil: no limit of this kind
	authorities  []*authority
	due          queue.Queue[*host] // hosts, by when something is next due for them
	renewals     queue.Queue[*host] // hosts past their moment that wait for a token, by expiry
	lacking      queue.Queue[*host] // hosts without a certificate that wait for a token, in turn
	awaited      map[*flight]int
	background   int // flights under way that started from a queue
	waiters      int // handshakes and Cert calls that wait
	polls        int // questions for renewal information under way
	refusals     map[string]refusal
	chains       map[string][][]byte // above the leaves, by hash
	newest       int64               // the latest notBefore, in Unix seconds
	wall         time.Time           // the latest the buckets were looked at
	leveled      time.Time           // when their levels were last recorded
	spent        bool                // they have changed since
	warned       time.Time
	shortage     error // Limit can't sustain the renewals
	clockWrong   bool
	warnedMemory bool
	badHosts     map[string]error // entries of the list that are no hosts
	onlyAddr     string           // the one address on the list, if there is one
	onlyHost     string           // the one host on the list, if there is one
	seq          uint64           // of the last record put
	dirty        bool             // some are not known to be durable
	flushing     bool
	unwritten    error // why they could not be written
	watch        chan struct{}
	told         time.Time
	untold       bool
	servers      []*http.Server

	log     journal.Log // the state as records
	hosts   table.Table[host]
	own     owned.Set // the program's own certificates
	answers challenge.Answers
	events  event.Queue[Event]

	ctx     context.Context // ends with Shutdown; the work's, not the waiters'
	cancel  context.CancelFunc
	poke    chan struct{}  // wakes loop
	running sync.WaitGroup // every goroutine this Manager started
}

// A CA says where certificates come from.
type CA struct {
	Directory string // URL of its ACME directory; "" means LetsEncrypt
	Profile   string // the kind of certificate, one of those its directory lists; "" leaves it to the CA
	Chain     string // common name of the topmost issuer of the chain to serve, where it offers several; "" leaves it to the CA

	// EAB is what the CA gave its customer to make accounts with (RFC 8555,
	// section 7.3.4). It is used to make the account and not after.
	EAB *acme.ExternalAccountBinding

	Client *http.Client // nil means http.DefaultClient
}

// An authority is a CA as we deal with it.
type authority struct {
	CA
	reader   *ca.Client    // without an account, for what needs none
	register chan struct{} // holds a token while the account is being made
	slots    chan struct{} // a token each for the orders under way

	client  *ca.Client // guarded by m.mu, as is all below; nil until there is an account
	prober  *flight    // the one that sees whether the CA works again
	limited []limited  // hosts it refused, since it last did not
}

// The errors that a HostError may wrap.
var (
	// ErrHostNotAllowed says that the program's settings refuse the host.
	ErrHostNotAllowed = errors.New("host not allowed")
	// ErrRateLimited says that the Manager's own limits are used up for now.
	ErrRateLimited = errors.New("rate limited")
)

// A HostError says why a host has no certificate, or not a new one.
type HostError struct {
	Host  string
	CA    string    // directory URL of the last one asked; "" if none was
	Err   error     // everything that failed, the CA's words whole: see errors.As with *acme.Error
	Retry time.Time // when the Manager tries again, or a client may; zero if it makes no difference
}

func (e *HostError) Error() string {
	s := "letsencrypt: " + e.Host
	if e.CA != "" {
		s += ": " + e.CA
	}
	s += ": " + e.Err.Error()
	if !e.Retry.IsZero() {
		s += " (again at " + e.Retry.UTC().Format(time.RFC3339) + ")"
	}
	return s
}

func (e *HostError) Unwrap() error { return e.Err }

// A host is a name that we hold a certificate for, or want one for, or failed
// to obtain one for. But for the atomic fields it is guarded by m.mu.
type host struct {
	name  string                          // canonical
	place queue.Item[*host]               // in one of the queues
	leaf  atomic.Pointer[tls.Certificate] // what clients are given; nil until the first asks
	asked atomic.Bool                     // a client did, since the last issuance

	notBefore, notAfter int64 // of the certificate, Unix seconds; zero: there is none
	renewal             int64 // its moment, Unix nanoseconds
	poll                int64 // when the CA is next asked for that, Unix nanoseconds
	polling             bool
	dead                bool // and said to be
	listed, managed     bool
	trouble             *trouble // nil while all is well
	flight              *flight  // nil while there is none
}

func (h *host) held() bool        { return h.notAfter != 0 }
func (h *host) expiry() time.Time { return time.Unix(h.notAfter, 0) }

func (h *host) retry() time.Time {
	if h.trouble == nil {
		return time.Time{}
	}
	return h.trouble.Retry
}

func (h *host) lastError() error {
	if h.trouble == nil {
		return nil
	}
	return h.trouble.cause()
}

// hold notes a new certificate. A nil leaf is read from the state when the
// first client asks for it.
func (h *host) hold(notBefore, notAfter int64, leaf *tls.Certificate) {
	h.notBefore, h.notAfter, h.dead = notBefore, notAfter, false
	h.renewal = certs.RenewAt(time.Unix(notBefore, 0), time.Unix(notAfter, 0), mathrand.Float64()).UnixNano()
	h.leaf.Store(leaf)
}

// A flight is one attempt to obtain a certificate, from when it waits for its
// token. It is landed once: cert and err are set and then done closed.
type flight struct {
	host  *host
	queue *queue.Queue[*host] // where it waits for its token; nil once it has it
	done  chan struct{}
	cert  *tls.Certificate
	err   error

	waiters    int // clients; guarded by m.mu
	background bool
}

func (m *Manager) logger() *slog.Logger {
	if m.Logger == nil {
		return slog.Default()
	}
	return m.Logger
}

// begin makes the Manager ready for work, at its first use.
func (m *Manager) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started {
		return
	}
	m.started = true
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.poke = make(chan struct{}, 1)
	m.awaited = make(map[*flight]int)
	for _, c := range m.CAs {
		m.addCALocked(c)
	}
	if len(m.CAs) == 0 {
		m.addCALocked(CA{})
	}
	m.limit, m.newHosts = m.Limit, m.NewHostLimit
	if m.limit == nil {
		m.limit = rate.NewLimiter(rate.Every(time.Minute), 20)
	}
	if m.newHosts == nil && m.Allow == nil {
		m.newHosts = rate.NewLimiter(rate.Every(3*time.Hour), 20)
	}
	m.restoreLocked()
	for name := range m.orders { // unfinished ones are finished
		h := m.hostLocked(name)
		h.asked.Store(true)
	}
	for _, h := range m.hosts.All() {
		if h.held() {
			h.poll = time.Now().Add(mathrand.N(spreadPolls)).UnixNano()
		}
		m.requeueLocked(h)
	}
	m.goLocked(m.loop)
}

// spreadPolls is the time over which a Manager that starts with many
// certificates asks for their renewal information.
const spreadPolls = 6 * time.Hour

func (m *Manager) addCALocked(c CA) {
	if c.Directory == "" {
		c.Directory = LetsEncrypt
	}
	m.authorities = append(m.authorities, &authority{
		CA:       c,
		reader:   ca.New(c.Directory, c.Client, nil, ""),
		register: make(chan struct{}, 1),
		slots:    make(chan struct{}, maxFlights),
	})
}

// goLocked runs f in a goroutine that Shutdown waits for, and reports whether
// it does: after Shutdown nothing starts.
func (m *Manager) goLocked(f func()) bool {
	if m.closed {
		return false
	}
	m.running.Go(f)
	return true
}

// pokeLocked has loop look at the queues again.
func (m *Manager) pokeLocked() {
	select {
	case m.poke <- struct{}{}: // never blocks; before begin it is nil
	default:
	}
}

// hostLocked returns the host with a canonical name, made if need be.
func (m *Manager) hostLocked(name string) *host {
	h := m.hosts.Get(name)
	if h == nil {
		h = &host{name: name}
		h.place.Value = h
		m.hosts.Set(name, h)
	}
	return h
}

// dropLocked forgets a host that nobody wants.
func (m *Manager) dropLocked(h *host) {
	for _, kind := range []string{kindCert, kindBackoff, kindMoment, kindOrder} {
		if _, ok := m.log.Get(kind, h.name); ok {
			m.putLocked(journal.Delete(kind, h.name))
		}
	}
	delete(m.orders, h.name)
	m.due.Remove(&h.place)
	m.hosts.Delete(h.name)
}

// wantedLocked reports whether a host is to have a certificate at all times.
func (m *Manager) wantedLocked(h *host) bool {
	if m.own.Get(h.name) != nil {
		return false
	}
	asked := h.asked.Load()
	if !h.listed && !h.managed && !asked || m.judgeLocked(h.name, h) == refused {
		return false
	}
	if _, begun := m.orders[h.name]; h.held() || h.managed || begun {
		return true
	}
	return h.listed && (m.eager || asked)
}

// SetHosts lists the hosts that may have certificates, in place of any list
// before: names, wildcards and IP addresses. An empty list allows no host, a
// nil one lifts the list. What is not on the list is for Allow to say, if that
// is set; certificates held already are served till they expire.
//
// An entry that is no host (a URL, host:443) is logged, shown in Status, and
// never asked for. Serve, ServeHTTPS and Listen obtain what the list lacks by
// themselves. The list is part of the state, and in place of one read from a
// cache file, whichever came first.
func (m *Manager) SetHosts(hosts []string) {
	m.mu.Lock()
	m.listSet = true
	if r := hostsRecord(hosts); !slices.Equal(m.list, hosts) || (m.list == nil) != (hosts == nil) {
		m.setLocked(r)
	}
	m.relistLocked()
	bad := m.badHosts
	m.mu.Unlock()
	for name, err := range bad {
		m.logger().Error("letsencrypt: not a host, so it gets no certificate", "host", name, "err", err)
	}
}

func hostsRecord(hosts []string) journal.Record {
	if hosts == nil {
		return journal.Delete(kindHosts, onlyOne)
	}
	return record(kindHosts, onlyOne, hosts)
}

// relistLocked marks the hosts that are on the list.
func (m *Manager) relistLocked() {
	on := make(map[string]bool, len(m.list))
	m.badHosts = nil
	for _, s := range m.list {
		name, err := hostname.Canonical(s)
		if err == nil {
			on[name] = true
			continue
		}
		if m.badHosts == nil {
			m.badHosts = make(map[string]error)
		}
		m.badHosts[s] = &HostError{Host: s, Err: err}
		m.reportLocked(Event{Kind: EventFailed, Host: s, Err: m.badHosts[s], logged: true})
	}
	m.onlyAddr, m.onlyHost = only(on)
	for name, h := range m.hosts.All() {
		if h.listed != on[name] {
			h.listed = on[name]
			m.requeueLocked(h)
		}
		delete(on, name)
	}
	for name := range on {
		h := m.hostLocked(name)
		h.listed = true
		m.requeueLocked(h)
	}
}

// GetCertificate returns the certificate for a client, for use as
// tls.Config.GetCertificate. A name that there is none for gets one if it is
// allowed: the handshake waits for the CA. It also answers the CA's
// tls-alpn-01 validations, which reach it only if the tls.Config's NextProtos
// lists "acme-tls/1", as TLSConfig's does.
//
// The error is a *HostError, or http.ErrServerClosed after Shutdown. The
// certificate must not be modified.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if challenge.IsValidation(hello) {
		return m.validation(hello)
	}
	if !m.own.Any() {
		if h := m.hosts.Get(hello.ServerName); h != nil {
			if leaf := h.leaf.Load(); leaf != nil && h.asked.Load() {
				return leaf, nil
			}
		}
	}
	name, err := m.helloName(hello)
	if err != nil {
		return nil, &HostError{Host: quote(hello.ServerName), Err: fmt.Errorf("%w: %w", ErrHostNotAllowed, err)}
	}
	cert, waited, err := m.certificate(helloContext(hello), name, hello.Conn)
	if waited {
		extend(hello)
	}
	return cert, err
}

// certificate returns the certificate that is to be served for a host, and
// whether the caller had to wait for it. A nil conn means that no client does.
func (m *Manager) certificate(ctx context.Context, name string, conn net.Conn) (cert *tls.Certificate, waited bool, err error) {
	m.begin()
	if cert := m.own.Get(name); cert != nil {
		return cert, false, nil
	}
	if cert := m.live(name); cert != nil {
		return cert, false, nil
	}
	if wild, ok := hostname.Wildcard(name); ok {
		if cert := m.live(wild); cert != nil {
			return cert, false, nil
		}
	}
	m.mu.Lock()
	f, err := m.joinLocked(name, conn)
	m.mu.Unlock()
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxWait, errWait)
	defer cancel()
	cert, err = f.wait(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiters--
	f.waiters--
	return cert, true, err
}

// live returns the certificate that we hold for a name, nil if there is none
// or it has expired.
func (m *Manager) live(name string) *tls.Certificate {
	h := m.hosts.Get(name)
	if h == nil {
		return nil
	}
	leaf := h.leaf.Load()
	if leaf == nil {
		leaf = m.firstUse(h)
	}
	if leaf != nil && !h.asked.Swap(true) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.requeueLocked(h)
	}
	return leaf
}

// firstUse reads a host's certificate from the state.
func (m *Manager) firstUse(h *host) *tls.Certificate {
	m.mu.Lock()
	expiry := h.expiry()
	m.mu.Unlock()
	if !time.Now().Before(expiry) {
		return nil
	}
	_, cert, err := m.readCert(h.name)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil && h.expiry().Equal(expiry):
		m.reportLocked(Event{Kind: EventState, Host: h.name, Err: err})
		h.notBefore, h.notAfter = 0, 0
	case err == nil && h.expiry().Equal(expiry):
		h.leaf.CompareAndSwap(nil, cert)
	}
	return h.leaf.Load()
}

// wait returns what the flight came to.
func (f *flight) wait(ctx context.Context) (*tls.Certificate, error) {
	select {
	case <-f.done:
		return f.cert, f.err
	case <-ctx.Done():
		return nil, &HostError{Host: f.host.name, Err: context.Cause(ctx)}
	}
}

var (
	errWait = errors.New("the order takes longer than a client may wait; it goes on")
	errBusy = errors.New("too many clients wait for certificates")
)

// fly is a flight: it asks Allow, if it must, and the CAs.
func (m *Manager) fly(f *flight, ask bool, conn net.Conn) {
	if ask {
		if err := m.admitted(f, conn); err != nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			f.host.asked.Store(false)
			m.landLocked(f, nil, err)
			return
		}
	}
	cert, err := m.obtain(f)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil && m.ctx.Err() == nil {
		m.failedLocked(f.host, err, time.Now().Round(0))
	}
	m.landLocked(f, cert, err)
}

// obtain asks the CAs for a certificate, one after the other until one issues
// or a failure is not the CA's, and puts it in place.
func (m *Manager) obtain(f *flight) (*tls.Certificate, *HostError) {
	failed := &HostError{Host: f.host.name}
	if err := m.writable(); err != nil {
		failed.Err = err
		return nil, failed
	}
	var errs []error
	for _, a := range m.authorities {
		m.mu.Lock()
		retry, err := m.admitLocked(a, f.host, f, time.Now().Round(0))
		m.mu.Unlock()
		goOn := err != nil
		if err == nil {
			failed.CA = a.Directory
			var cert *tls.Certificate
			if cert, err = m.order(f, a); err == nil {
				return cert, nil
			}
			retry, goOn = m.settle(f, a, err)
		}
		failed.Retry = earliest(later(failed.Retry, retry), retry)
		errs = append(errs, err)
		if !goOn {
			break
		}
	}
	failed.Err = errors.Join(errs...)
	if len(errs) == 1 {
		failed.Err = errs[0]
	}
	return nil, failed
}

// settle notes how the CA did, and returns when it may be asked again about
// this host and whether another CA may do better.
func (m *Manager) settle(f *flight, a *authority, err error) (retry time.Time, another bool) {
	fault, ok := errors.AsType[*ca.Failure](err)
	if !ok {
		return time.Time{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now().Round(0)
	m.settleLocked(a, f.host, fault, now)
	switch fault.Class {
	case ca.Ours, ca.Validation:
		return time.Time{}, false
	case ca.Fault, ca.Network:
		return m.pauses[a.Directory].Until, true
	case ca.Paused:
		return now.Add(personMost), true
	case ca.Limited:
		return now.Add(max(fault.Retry, backoffFirst)), true
	}
	return time.Time{}, true
}

// order obtains a certificate from one CA. An account that the CA does not
// know any more is made anew, once.
func (m *Manager) order(f *flight, a *authority) (*tls.Certificate, error) {
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-m.ctx.Done():
		return nil, http.ErrServerClosed
	}
	for again := true; ; again = false {
		client, err := m.account(m.ctx, a)
		if err != nil {
			return nil, err
		}
		cert, err := m.tryChallenges(f, a, client)
		if fault, ok := errors.AsType[*ca.Failure](err); !again || !ok || fault.Class != ca.NoAccount {
			return cert, err
		}
		m.forgetAccount(a)
	}
}

// tryChallenges obtains a certificate, with a new order for each type of
// challenge that is left when one could not be passed.
func (m *Manager) tryChallenges(f *flight, a *authority, client *ca.Client) (*tls.Certificate, error) {
	h := f.host
	var tried []string
	var errs []error
	for {
		types := m.challengeTypes(h, tried)
		if len(types) == 0 {
			return nil, errors.Join(errs...)
		}
		if len(errs) > 0 {
			m.mu.Lock()
			_, ok := m.takeNowLocked(false)
			m.mu.Unlock()
			if !ok {
				return nil, errors.Join(errs...)
			}
		}
		job, err := m.job(h, a, client)
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		var typ string
		job.Solve = func(ctx context.Context, auth *ca.Authorization, arrived chan<- struct{}) (*ca.Answer, error) {
			ans, err := m.solve(client, h.name, auth, types, arrived)
			if err == nil {
				typ = ans.Challenge.Type
			}
			return ans, err
		}
		cert, err := client.Obtain(m.ctx, job.Job)
		if err == nil {
			return m.publish(h, a, client, job.key, cert)
		}
		fault := err.(*ca.Failure)
		if !fault.Resumable() {
			m.set(journal.Delete(kindOrder, h.name))
		}
		if typ == "" || fault.Class != ca.Validation {
			return nil, errors.Join(append(errs, err)...)
		}
		m.noteFailed(h, typ)
		tried = append(tried, typ)
		errs = append(errs, m.advise(typ, h.name, err))
	}
}

// A job is an order to make or to take up again.
type job struct {
	ca.Job
	key []byte // the certificate's, PKCS #8
}

// job returns the order for a host that was made at the CA before, or a new
// one, which replaces the certificate that we hold from there.
func (m *Manager) job(h *host, a *authority, client *ca.Client) (*job, error) {
	j := &job{Job: ca.Job{Host: h.name, Profile: a.Profile, Chain: a.Chain}}
	m.mu.Lock()
	begun, ok := m.orders[h.name]
	m.mu.Unlock()
	var err error
	if ok && begun.CA == a.Directory && begun.Account == client.KID() {
		j.OrderURL, j.key = begun.URL, begun.Key
		j.Key, err = parseKey(begun.Key)
	} else {
		j.Key, j.key, err = m.newKey()
	}
	if err != nil {
		return nil, &ca.Failure{Class: ca.Ours, Step: "making the key", Err: err}
	}
	if rec, old, err := m.readCert(h.name); err == nil && rec.CA == a.Directory && rec.Account == client.KID() {
		if leaf, err := x509.ParseCertificate(old.Certificate[0]); err == nil {
			j.Replaces, _ = certs.ID(leaf) // without an identifier it replaces none
		}
	}
	j.Keep = func(url string) error {
		m.set(record(kindOrder, h.name, orderRecord{CA: a.Directory, Account: client.KID(), URL: url, Key: j.key}))
		return m.sync()
	}
	return j, nil
}

// newKey returns a key for a certificate, and how it will be kept.
func (m *Manager) newKey() (crypto.Signer, []byte, error) {
	make := m.NewKey
	if make == nil {
		make = func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
	}
	key, err := make()
	if err != nil {
		return nil, nil, fmt.Errorf("NewKey: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("NewKey made a key that can't be kept: %w", err)
	}
	return key, der, nil
}

// publish keeps a new certificate, durably, and serves it.
func (m *Manager) publish(h *host, a *authority, client *ca.Client, key []byte, c *ca.Certificate) (*tls.Certificate, error) {
	signer, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	rec := certRecord{CA: a.Directory, Account: client.KID(), Profile: c.Profile, Challenge: c.Challenge, Key: key}
	m.mu.Lock()
	m.putLocked(certRecords(h.name, rec, c.Chain, c.Leaf)...)
	m.mu.Unlock()
	m.sync() // if it fails it says so, and is tried again; the certificate serves meanwhile
	cert := &tls.Certificate{Certificate: c.Chain, PrivateKey: signer}
	kind, now := EventObtained, time.Now().Round(0)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, kind := range []string{kindOrder, kindBackoff, kindMoment} {
		if _, ok := m.log.Get(kind, h.name); ok {
			m.setLocked(journal.Delete(kind, h.name))
		}
	}
	if h.held() {
		kind = EventRenewed
	}
	h.hold(c.Leaf.NotBefore.Unix(), c.Leaf.NotAfter.Unix(), cert)
	h.asked.Store(false)
	h.poll = now.UnixNano()
	m.newest = max(m.newest, h.notBefore)
	m.settleLocked(a, h, nil, now)
	m.reportLocked(Event{Kind: kind, Host: h.name, CA: a.Directory, NotAfter: c.Leaf.NotAfter, Next: time.Unix(0, h.renewal)})
	m.tooSoonLocked(h, now)
	return cert, nil
}

// Register makes an account at the first CA, under an e-mail address at which
// it may reach its subscriber; "" gives none. The CA's terms of service, if it
// has any, are put to prompt; a nil prompt agrees. The other CAs, when they are
// needed, are given the same address and answer. A program that does not call
// Register agrees to their terms, and gives no address, by asking for a
// certificate.
//
// If prompt does not agree Register returns an error, and no CA is asked for
// anything until it agrees in another call. With an account Register changes
// the address. It blocks while it talks to the CA.
func (m *Manager) Register(email string, prompt func(tosURL string) bool) error {
	m.begin()
	if m.isClosed() {
		return http.ErrServerClosed
	}
	a := m.authorities[0]
	if err := m.register(m.ctx, a, email, prompt); err != nil {
		return fmt.Errorf("letsencrypt: registering with %s: %w", a.Directory, err)
	}
	return nil
}

// Registered reports whether there is an account at the first CA.
func (m *Manager) Registered() bool {
	m.begin()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.accounts[m.authorities[0].Directory].URL != ""
}

func (m *Manager) register(ctx context.Context, a *authority, email string, prompt func(string) bool) error {
	if prompt != nil {
		d, err := a.reader.Directory(ctx)
		if err != nil {
			return err
		}
		if d.Meta.Terms != "" && !prompt(d.Meta.Terms) {
			m.set(record(kindRegister, onlyOne, registration{Email: email, Refused: true}))
			m.sync() // reports its error
			return fmt.Errorf("%w: %s", errTerms, d.Meta.Terms)
		}
	}
	m.mu.Lock()
	had, changed := m.accounts[a.Directory].URL != "", m.registration.Email != email
	m.setLocked(record(kindRegister, onlyOne, registration{Email: email}))
	m.mu.Unlock()
	client, err := m.account(ctx, a)
	if err == nil && had && changed {
		err = client.Update(ctx, contact(email))
	}
	return err
}

var errTerms = errors.New("the terms of service were not agreed to")

func contact(email string) []string {
	if email == "" {
		return nil
	}
	return []string{"mailto:" + email}
}

// account returns a client with our account at the CA, which is made if there
// is none: first its key is kept, then the CA is asked.
func (m *Manager) account(ctx context.Context, a *authority) (*ca.Client, error) {
	select {
	case a.register <- struct{}{}:
		defer func() { <-a.register }()
	case <-ctx.Done():
		return nil, http.ErrServerClosed
	}
	m.mu.Lock()
	client, reg := a.client, m.registration
	rec, known := m.accounts[a.Directory]
	m.mu.Unlock()
	if reg.Refused {
		return nil, &ca.Failure{Class: ca.Ours, Step: "making the account", Err: fmt.Errorf("%w: call Register", errTerms)}
	}
	if client != nil {
		return client, nil
	}
	if !known {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		if rec.Key, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			return nil, err
		}
		m.set(record(kindAccount, a.Directory, rec))
		if err := m.sync(); err != nil {
			return nil, &ca.Failure{Class: ca.Ours, Step: "keeping the account key", Err: err}
		}
	}
	key, err := parseKey(rec.Key)
	if err != nil {
		return nil, &ca.Failure{Class: ca.Ours, Step: "reading the account key", Err: err}
	}
	client = ca.New(a.Directory, a.Client, key, rec.URL)
	if rec.URL == "" {
		if rec.URL, err = client.Register(ctx, contact(reg.Email), a.EAB, known); err != nil {
			return nil, err
		}
		m.set(record(kindAccount, a.Directory, rec))
		m.sync() // reports its error; the key is kept, and the CA knows it
		m.report(Event{Kind: EventAccount, CA: a.Directory})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	a.client = client
	return client, nil
}

// forgetAccount has the account made anew, with the key it had: the CA does
// not know it any more.
func (m *Manager) forgetAccount(a *authority) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rec := m.accounts[a.Directory]
	rec.URL = ""
	m.setLocked(record(kindAccount, a.Directory, rec))
}

// forgetClientLocked has the client for a CA made anew of its account's record.
func (m *Manager) forgetClientLocked(directory string) {
	for _, a := range m.authorities {
		if a.Directory == directory {
			a.client = nil
		}
	}
}

// Cert returns a host's certificate. If there is none it obtains one, if that
// is allowed, and blocks meanwhile, for a minute at most. Its Leaf is set. The
// error is a *HostError, or http.ErrServerClosed after Shutdown.
func (m *Manager) Cert(host string) (*tls.Certificate, error) {
	name, err := hostname.Canonical(host)
	if err != nil {
		return nil, &HostError{Host: quote(host), Err: fmt.Errorf("%w: %w", ErrHostNotAllowed, err)}
	}
	cert, _, err := m.certificate(context.Background(), name, nil)
	if err != nil {
		return nil, err
	}
	c := *cert // ours is shared, the caller's is not
	c.Certificate = slices.Clip(c.Certificate)
	c.Leaf, err = x509.ParseCertificate(c.Certificate[0])
	return &c, err
}

// Manage obtains the certificates that the hosts lack, and has them renewed
// from then on. It waits for tokens of Limit as long as ctx lets it, tries
// every host whatever becomes of the others, and returns all their errors,
// joined; each is a *HostError. What could not be obtained is tried again in
// the background. With a list or Allow, those must allow the hosts.
func (m *Manager) Manage(ctx context.Context, hosts ...string) error {
	m.begin()
	var errs []error
	var flights []*flight
	for _, s := range hosts {
		name, err := hostname.Canonical(s)
		if err != nil {
			errs = append(errs, &HostError{Host: quote(s), Err: err})
			continue
		}
		f, err := m.manage(name, false)
		if err != nil {
			errs = append(errs, err)
		} else if f != nil {
			flights = append(flights, f)
		}
	}
	for _, f := range flights {
		if err := m.await(ctx, f); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Renew replaces a host's certificate now, whatever its age, and blocks until
// that is done, has failed, or ctx ends. It joins an attempt under way, and
// makes one whatever failed before. The error is a *HostError.
func (m *Manager) Renew(ctx context.Context, host string) error {
	m.begin()
	name, err := hostname.Canonical(host)
	if err != nil {
		return &HostError{Host: quote(host), Err: err}
	}
	f, err := m.manage(name, true)
	if err != nil {
		return err
	}
	return m.await(ctx, f)
}

// manage returns the flight that obtains a certificate for a host of the
// program's naming, nil if it has one and that is not to be replaced.
func (m *Manager) manage(name string, renew bool) (*flight, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, http.ErrServerClosed
	}
	h := m.hostLocked(name)
	was := h.managed
	h.managed = h.managed || !renew
	now := time.Now().Round(0)
	switch {
	case m.judgeLocked(name, h) == refused:
		h.managed = was
		m.tidyLocked(h)
		return nil, &HostError{Host: name, Err: ErrHostNotAllowed}
	case h.flight != nil:
	case !renew && (now.Before(h.expiry()) || m.own.Get(name) != nil):
		m.requeueLocked(h)
		return nil, nil
	case !renew && now.Before(h.retry()):
		return nil, &HostError{Host: name, CA: h.trouble.CA, Err: h.trouble.cause(), Retry: h.retry()}
	default:
		m.readyLocked(h, now)
	}
	m.awaited[h.flight]++
	m.pokeLocked()
	return h.flight, nil
}

func (m *Manager) await(ctx context.Context, f *flight) error {
	_, err := f.wait(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.awaited[f]--; m.awaited[f] <= 0 {
		delete(m.awaited, f)
	}
	return err
}

func (m *Manager) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// An EventKind says what an Event is about.
type EventKind string

// The kinds of events, and the fields that are set beside Kind and Time.
const (
	EventAccount  EventKind = "account"  // an account was made: CA
	EventObtained EventKind = "obtained" // a host's first certificate: Host, CA, NotAfter, Next
	EventRenewed  EventKind = "renewed"  // another: Host, CA, NotAfter, Next
	EventFailed   EventKind = "failed"   // an attempt failed: Host, CA, Err, NotAfter of the old certificate, Next
	EventExpired  EventKind = "expired"  // a certificate died before it was replaced: Host, NotAfter, Err
	EventPaused   EventKind = "paused"   // a CA fails or limits us and is left alone for a while: CA, Err, Next
	EventResumed  EventKind = "resumed"  // it works again: CA
	EventLimit    EventKind = "limit"    // Limit is too low for the renewals: Err
	EventState    EventKind = "state"    // the state could not be kept, or can be again: Err, nil in the latter case
)

// An Event is something that changed.
type Event struct {
	Kind     EventKind
	Host, CA string // CA is a directory URL
	Err      error
	Time     time.Time
	NotAfter time.Time // when the certificate that is served expires
	Next     time.Time // when the Manager acts next on this: renews, or tries again
	Dropped  int       // events lost before this one

	logged bool
}

func (m *Manager) report(e Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reportLocked(e)
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

// A HostStatus is what the Manager knows of a host.
type HostStatus struct {
	Host      string
	CA        string    // directory URL of the CA that issued its certificate; "" for the program's own
	Profile   string    // of the certificate
	Challenge string    // the type that was passed for it
	Serial    string    // of the certificate, in hexadecimal; "" if there is none
	NotAfter  time.Time // when it expires; zero if there is none
	Renewal   time.Time // when it is renewed; zero if it is not
	Retry     time.Time // not before then is the host's next attempt, after a failure
	Err       error     // why the last attempt failed, a *HostError; nil if it did not
}

// Status returns what is known of the hosts, or of all there are if none is
// named: those with a certificate, on the list, named to Manage, or failed
// lately. They are sorted by name.
func (m *Manager) Status(hosts ...string) []HostStatus {
	var all []HostStatus
	for _, s := range hosts {
		name, err := hostname.Canonical(s)
		if err != nil {
			all = append(all, HostStatus{Host: s, Err: &HostError{Host: quote(s), Err: err}})
			continue
		}
		all = append(all, m.status(name))
	}
	if len(hosts) > 0 {
		return all
	}
	for name := range m.hosts.All() {
		all = append(all, m.status(name))
	}
	m.mu.Lock()
	for name, err := range m.badHosts {
		all = append(all, HostStatus{Host: name, Err: err})
	}
	m.mu.Unlock()
	for name := range m.own.All() {
		if m.hosts.Get(name) == nil {
			all = append(all, m.status(name))
		}
	}
	slices.SortFunc(all, func(a, b HostStatus) int { return strings.Compare(a.Host, b.Host) })
	return all
}

func (m *Manager) status(name string) HostStatus {
	s := HostStatus{Host: name}
	if cert := m.own.Get(name); cert != nil {
		s.Serial, s.NotAfter = cert.Leaf.SerialNumber.Text(16), cert.Leaf.NotAfter
		return s
	}
	if rec, cert, err := m.readCert(name); err == nil {
		s.CA, s.Profile, s.Challenge = rec.CA, rec.Profile, rec.Challenge
		if leaf, err := x509.ParseCertificate(cert.Certificate[0]); err == nil {
			s.Serial, s.NotAfter = leaf.SerialNumber.Text(16), leaf.NotAfter
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts.Get(name)
	if h == nil {
		return s
	}
	if h.held() && m.wantedLocked(h) {
		s.Renewal = time.Unix(0, h.renewal)
	}
	if h.trouble != nil && h.trouble.Failures+len(h.trouble.Error) > 0 {
		s.Retry, s.Err = h.trouble.Retry, h.trouble.cause()
	}
	if f := h.flight; f != nil && f.queue != nil && s.Err == nil {
		now := time.Now().Round(0)
		if until, err := m.openLocked(h, nil, now); err != nil {
			s.Retry, s.Err = until, &HostError{Host: name, Err: err, Retry: until}
		} else if m.shortage != nil {
			s.Err = &HostError{Host: name, Err: m.shortage}
		}
	}
	return s
}

// challengeTypes returns the types of challenges to try for a host, the best
// first: the one that worked last, then those that are sure to reach us, then
// those that may, then those that failed within a week; and among equals any,
// so that neither is silently relied upon.
func (m *Manager) challengeTypes(h *host, tried []string) []string {
	rec, _, _ := m.readCert(h.name)
	m.mu.Lock()
	defer m.mu.Unlock()
	ready := map[string]bool{challenge.TLSALPN01: m.tlsReady}
	if m.httpReady {
		ready[challenge.HTTP01] = true
	}
	rank := make(map[string]float64)
	for typ, sure := range ready {
		switch {
		case slices.Contains(tried, typ):
			continue
		case typ == rec.Challenge:
			rank[typ] = 0
		case h.trouble != nil && time.Since(h.trouble.Failed[typ]) < failedAge:
			rank[typ] = 3
		case sure:
			rank[typ] = 1
		default:
			rank[typ] = 2
		}
		rank[typ] += mathrand.Float64() / 2
	}
	types := slices.Collect(maps.Keys(rank))
	slices.SortFunc(types, func(a, b string) int { return cmp.Compare(rank[a], rank[b]) })
	return types
}

// failedAge is how long a type of challenge that failed is tried last.
const failedAge = 7 * 24 * time.Hour

// solve sets up the answer to the first of the types that the CA offers. One
// that the CA was told to validate before we were restarted goes first.
func (m *Manager) solve(client *ca.Client, host string, auth *ca.Authorization, types []string, arrived chan<- struct{}) (*ca.Answer, error) {
	var offered []string
	for _, ch := range auth.Challenges {
		offered = append(offered, ch.Type)
		if ch.Status == acme.StatusProcessing {
			types = append([]string{ch.Type}, types...)
		}
	}
	for _, typ := range types {
		for _, ch := range auth.Challenges {
			if ch.Type != typ {
				continue
			}
			remove, err := m.answer(client, host, ch, arrived)
			if err != nil {
				return nil, err
			}
			return &ca.Answer{Challenge: &ch, Remove: remove}, nil
		}
	}
	return nil, &ca.Failure{Class: ca.Policy, Step: "choosing a challenge", Err: fmt.Errorf(
		"the CA offers %s, and we can pass %s", strings.Join(offered, ", "), strings.Join(types, ", "))}
}

func (m *Manager) answer(client *ca.Client, host string, ch ca.Challenge, arrived chan<- struct{}) (remove func(), err error) {
	keyAuth, err := client.KeyAuthorization(ch.Token)
	if err != nil {
		return nil, err
	}
	if ch.Type == challenge.HTTP01 {
		return m.answers.AddHTTP(host, ch.Token, keyAuth, arrived), nil
	}
	return m.answers.AddTLSALPN(host, keyAuth, arrived)
}

// noteFailed notes that a type of challenge could not be passed.
func (m *Manager) noteFailed(h *host, typ string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var t trouble
	if h.trouble != nil {
		t = *h.trouble
	}
	t.Failed = maps.Clone(t.Failed)
	if t.Failed == nil {
		t.Failed = make(map[string]time.Time)
	}
	t.Failed[typ] = time.Now().Round(0)
	h.trouble = &t
}

// advise adds to the CA's words on a failed validation what we saw of it.
func (m *Manager) advise(typ, host string, err error) error {
	v, ok := errors.AsType[*ca.ValidationError](err)
	if !ok || v.Arrived {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case typ == challenge.HTTP01:
		return fmt.Errorf("%w; no http-01 validation arrived here: does %s lead here, to port 80?", err, host)
	case m.tlsReady:
		return fmt.Errorf("%w; no tls-alpn-01 validation arrived here: does %s lead here, to port 443?", err, host)
	}
	return fmt.Errorf("%w; no tls-alpn-01 validation arrived here: does %s lead here, to port 443? "+
		`A tls.Config of the program's own must have "acme-tls/1" in NextProtos, as TLSConfig's has, or serve HTTPHandler on port 80`, err, host)
}

// writable returns an error if the state can't be written: then nothing is
// ordered, lest it be lost. What is written is what the buckets hold.
func (m *Manager) writable() error {
	m.mu.Lock()
	warn := !m.kept && m.watch == nil && !m.warnedMemory
	m.warnedMemory = m.warnedMemory || warn
	m.leveled, m.spent = time.Now(), false
	m.putLocked(m.levelRecordsLocked(m.wallLocked())...)
	m.mu.Unlock()
	if warn {
		m.logger().Warn("letsencrypt: certificates are kept in memory alone and lost when the program ends: see CacheFile")
	}
	if err := m.sync(); err != nil {
		return fmt.Errorf("nothing is ordered while the state can't be written: %w", err)
	}
	return nil
}
