// Package letsencrypt obtains, serves, renews and remembers TLS certificates,
// from Let's Encrypt or any other CA that speaks ACME (RFC 8555).
//
// # Quick start
//
// A complete HTTPS server:
//
//	package main
//
//	import (
//		"fmt"
//		"log"
//		"net/http"
//
//		"example.com/letsencrypt"
//	)
//
//	func main() {
//		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
//			fmt.Fprintln(w, "Hello, TLS!")
//		})
//		var m letsencrypt.Manager
//		if err := m.CacheFile("letsencrypt.cache"); err != nil {
//			log.Fatal(err)
//		}
//		m.SetHosts([]string{"example.com"})
//		log.Fatal(m.Serve())
//	}
//
// The name must lead to the machine that this runs on, and the CA must reach
// it there at port 443 or port 80: at the one it makes a TLS connection, which
// GetCertificate answers (tls-alpn-01), at the other an HTTP request, which
// HTTPHandler answers (http-01). With DNS, which sets TXT records by way of a DNS
// provider (dns-01), it need reach neither. Each host has a certificate of its
// own, so that one whose DNS is wrong harms no other.
//
// # Registration
//
// An account is made at the CA, and its terms of service are agreed to, when
// the first certificate is asked for. Register does so beforehand, gives the
// CA an e-mail address, and lets the program see the terms.
//
// Certificates come from Let's Encrypt. The field CAs names another CA, the
// staging environment for trying things out, or several CAs: the next is asked
// when one fails.
//
// # Hosts
//
// Any name that a client asks for and that could exist gets a certificate,
// within NewHostLimit. That is for trying things out: anybody can have any
// number of names lead here. SetHosts lists the hosts that may have one, and
// Allow decides, when a client asks, about those that are not on the list.
//
// A wildcard on the list, *.example.com, serves all names with one more label. It
// needs DNS or, where the CA offers that, a record that a person sets once
// (dns-persist-01); Status then says which. An IP address may be listed, too.
//
// Names are compared in lower case, without a trailing dot and in Punycode. A
// client that names no host gets the certificate of the address it reached, if
// that is listed, else that of DefaultHost, or of the only host on the list.
//
// AddCertificate adds certificates that the program has from elsewhere.
//
// # Storage
//
// Everything is kept in memory, and lost when the program ends; to start over
// again and again is the surest way to a CA's limits. CacheFile keeps it in a
// file: what depends on something waits until that is on disk, and a crash at
// any instant loses no certificate. Marshal, Unmarshal and Watch let the program
// keep it wherever it likes. What they write has private keys in it.
//
// # Fleets
//
// Processes that serve the same hosts share what the CA issues, and ask it once,
// if their Managers have the same Storage: a folder, a database. Any of them
// answers the CA's validations. One that loses the Storage serves what it has,
// says so, and carries on when it is back. The state that Marshal and CacheFile
// are about is what this one knows.
//
// # Limits
//
// A CA issues so many certificates and then refuses for hours or days. So that
// a mistake, a crash loop or a stranger with a list of names does not get us
// there, every certificate takes a token from Limit, one a minute with a burst
// of 20, and one for a host that nobody vouched for, by SetHosts, Manage or
// Allow, takes another from NewHostLimit, one every three hours with a burst of
// 20. How many are left is part of the state, which a fleet does not share: each
// member counts for itself.
//
// A handshake does not wait for a token, and fails with ErrRateLimited.
// Renewals go first and do wait: when Limit is too low for them an event, a log
// line and Status say so.
//
// A host that failed is left alone for a minute, and for twice as long with
// every failure up to a day; a CA that fails, for up to an hour; both for as
// long as the CA says. Renew does not heed the host's.
//
// # Renewal
//
// A certificate is renewed when a third of its life is left, half if it lives
// ten days or less, or when the CA suggests it (RFC 9773), in the background
// and while the old one is served. That is done for hosts on the list, for
// those named to Manage, and for others if a client asked for them since the
// last time and they are still allowed. Renew replaces a certificate at once,
// and Revoke does and has the CA revoke the old one.
//
// A certificate that names an OCSP responder is served with a response of that,
// the program's own included, and replaced if it was revoked.
//
// OnEvent and Logger are told how it goes, and Status tells it of any host, with
// the CA's own words where something failed.
//
// # Serving
//
// Serve listens at ports 443 and 80; HTTPSAddr, HTTPAddr and Handler change what
// it does there. ServeHTTPS leaves port 80 to the program. Shutdown ends both.
//
// For a server of the program's own there are TLSConfig, and Listen, which
// returns a listener, and for its port 80 HTTPHandler. GetCertificate fits any
// tls.Config, but can't answer the CA's validations unless "acme-tls/1" is in
// NextProtos; otherwise HTTPHandler is needed.
//
// A handshake for a host that has its certificate takes no lock and waits for
// nothing, but for the first, which reads it from the state. One for a host that
// lacks it waits for the CA, a few seconds most often and a minute at most.
//
// # Compatibility
//
// Names in this package that rsc.io/letsencrypt had mean what they meant there,
// and CacheFile and Unmarshal read what it wrote. They will read what this
// version writes, too, in every version to come; what a later version wrote an
// earlier one refuses whole or keeps word for word, and does not damage.
package letsencrypt

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/letsencrypt/internal/ca"
	"example.com/letsencrypt/internal/challenge"
	"example.com/letsencrypt/internal/event"
	"example.com/letsencrypt/internal/hostname"
	"example.com/letsencrypt/internal/journal"
	"example.com/letsencrypt/internal/owned"
	"example.com/letsencrypt/internal/queue"
	"example.com/letsencrypt/internal/table"
	"example.com/letsencrypt/internal/txt"
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
// Unmarshal, SetHosts and AddCertificate do none of that, and use only Logger.
// All methods are safe for concurrent use. A Manager must not be copied.
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
	// after a minute or with the Manager. ClientAddr(ctx) is the client that
	// asks, if any.
	Allow func(ctx context.Context, host string) error

	DNS      DNSProvider   // sets records for dns-01; nil means tls-alpn-01 and http-01
	Resolver *net.Resolver // for what we look up in the DNS; nil means net.DefaultResolver

	Storage Storage // what the members of a fleet share; nil means that this process is alone

	// CacheSize is how many certificates are held in memory if Storage has the
	// others, of which a few hundred bytes each stay; 0 means all.
	CacheSize int

	// NewKey makes the key for each new certificate; nil means ECDSA P-256. It
	// must be one that x509.MarshalPKCS8PrivateKey accepts.
	NewKey func() (crypto.Signer, error)

	// MustStaple asks for certificates that clients refuse unless they come
	// with an OCSP response (RFC 7633). Many CAs don't issue them.
	MustStaple bool

	// Limit counts every certificate asked for, renewals included. Nil means
	// one a minute, with a burst of 20.
	Limit *rate.Limiter

	// NewHostLimit counts the hosts never seen before that nobody vouched for,
	// by SetHosts, Manage or Allow: those that clients name, and Cert. Nil means
	// one every three hours, with a burst of 20; if Allow is set, nil means no
	// limit of this kind.
	NewHostLimit *rate.Limiter

	Logger *slog.Logger // nil means slog.Default()

	// OnEvent is told of everything that changes, one call after the other, in
	// order, never from a handshake's goroutine. If it falls behind by more
	// than a thousand events, the next ones are dropped, and counted in
	// Event.Dropped. It may call any method but Shutdown.
	OnEvent func(Event)

	once sync.Once // of begin

	mu       sync.Mutex // guards what follows, up to the blank line; not held while anything is waited for
	started  bool
	closed   bool
	hosted   // which hosts may have certificates
	schedule // what is due when, and what must wait
	state    // what Marshal writes
	keeping  // where that goes
	sharing  // what of it other members of the fleet have
	serving  // how clients and validations reach us

	strict  atomic.Bool // there is a list, so that a name that is not in hosts is refused unless Allow is set
	log     journal.Log // the state as records
	hosts   table.Table[host]
	wild    atomic.Bool // one of them is a wildcard, or was
	own     owned.Set   // the program's own certificates
	answers challenge.Answers
	others  challenge.Elsewhere // the other members' answers
	solver  challenge.DNS       // set by begin
	events  event.Queue[Event]

	authorities []*authority    // the CAs; set by begin, as what follows
	ctx         context.Context // ends with Shutdown; the work's, not the waiters'
	cancel      context.CancelFunc
	poke        chan struct{}  // wakes loop
	running     sync.WaitGroup // every goroutine this Manager started
}

// A CA says where certificates come from.
type CA struct {
	Directory string // URL of its ACME directory; "" means LetsEncrypt
	Profile   string // the kind of certificate, one of those its directory lists; "" leaves it to the CA
	Chain     string // common name of the topmost issuer of the chain to serve, where it offers that; "" leaves it to the CA

	// EAB is what the CA gave its customer to make accounts with (RFC 8555,
	// section 7.3.4). It is used to make the account and not after.
	EAB *acme.ExternalAccountBinding

	Client *http.Client // nil means http.DefaultClient
}

// The errors that a HostError may wrap.
var (
	ErrHostNotAllowed = errors.New("host not allowed") // the program's settings refuse it
	ErrRateLimited    = errors.New("rate limited")     // the Manager's own limits are used up for now
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

// An EventKind says what an Event is about.
type EventKind string

// The kinds of events, and the fields that are set beside Kind and Time.
const (
	EventAccount  EventKind = "account"  // an account was made: CA
	EventObtained EventKind = "obtained" // this process obtained a host's first certificate: Host, CA, NotAfter, Next
	EventRenewed  EventKind = "renewed"  // another: Host, CA, NotAfter, Next
	EventFailed   EventKind = "failed"   // an attempt failed: Host, CA, Err, NotAfter of the old certificate, Next
	EventExpired  EventKind = "expired"  // a certificate died before it was replaced: Host, NotAfter, Err
	EventPaused   EventKind = "paused"   // a CA fails or limits us and is left alone for a while: CA, Err, Next
	EventResumed  EventKind = "resumed"  // it works again: CA
	EventLimit    EventKind = "limit"    // Limit is too low for the renewals: Err
	EventState    EventKind = "state"    // the state could not be kept, or can be again: Err, nil in the latter case
	EventTerms    EventKind = "terms"    // a CA's new terms of service were agreed to, unasked if Register got no prompt: CA
	EventRecalled EventKind = "recalled" // a CA would have a certificate replaced before its time: Host, CA, Err
	EventRevoked  EventKind = "revoked"  // a certificate was revoked, by Revoke or the CA: Host, CA, Err
	EventStaple   EventKind = "staple"   // a certificate has no OCSP response to go with it, or has one again: Host, Err, nil in the latter case
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

// A host is a name that we hold a certificate for, or want one for, or failed
// to obtain one for. But for the atomic fields it is guarded by m.mu. There may be
// a million: it has 128 bytes.
type host struct {
	leaf  atomic.Pointer[tls.Certificate] // what clients are given; nil until the first asks
	marks atomic.Uint32                   // asked and used
	since uint32                          // when the certificate was obtained, Unix seconds modulo 1<<32; zero: before we started
	name  string                          // canonical
	place queue.Item[*host]               // in m.due

	notBefore, notAfter int64    // of the certificate, Unix seconds; zero: there is none
	renewal             int64    // its moment, Unix nanoseconds
	poll                int64    // when the CA is next asked for that, Unix nanoseconds
	shut                instant  // no CA takes an order for it before then
	next                *stapled // takes the leaf's place with its first staple, or when that dies; mostly nil
	trouble             *trouble // nil while all is well
	flight              *flight  // nil while there is none

	early           uint16 // certificates in a row, up to this one, that were due at once
	turnedBack      uint8  // in a row, because other members were at it
	listed, managed bool   // by SetHosts; to Manage
	read, dead      bool   // in what is just being read; and said to be
	polling, cached bool   // for renewal information; in m.cached
	evicted, stored bool   // the certificate is in Storage only; it is there, too
	revoked         bool   // by the CA, as its OCSP responder says
	redone          bool   // in place of one that was, and not yet said to be good
}

// begin makes the Manager ready for work, at its first use.
func (m *Manager) begin() { m.once.Do(m.beginOnce) }

func (m *Manager) beginOnce() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = true
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.poke = make(chan struct{}, 1)
	m.solver.Provider, m.solver.Records, m.solver.Left = m.DNS, &txt.Client{Resolver: m.Resolver}, m.recordLeft
	for _, c := range m.CAs {
		m.addCALocked(c)
	}
	if len(m.CAs) == 0 {
		m.addCALocked(CA{})
	}
	m.joinFleetLocked()
	m.fillBucketsLocked()
	m.queueBegunLocked()
	m.goLocked(m.loop)
	m.goLocked(m.events.Drain) // what came up before
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

// Registered reports whether there is an account at the first CA. With Storage
// it blocks until it has looked there.
func (m *Manager) Registered() bool {
	first := LetsEncrypt
	if len(m.CAs) > 0 {
		first = cmp.Or(m.CAs[0].Directory, first)
	}
	if m.Storage != nil {
		m.begin()
		m.pull(m.ctx, kindAccount, first) // reports its error
	}
	cred, _ := m.credentials(first)
	return cred.URL != ""
}

// SetHosts lists the hosts that may have certificates, in place of any list
// before: names, wildcards and IP addresses. An empty list allows no host, a nil
// one lifts the list. What is not on the list is for Allow to say, if that is
// set; certificates held already are served till they expire.
//
// A wildcard, *.example.com, serves every name that has one more label, but for
// those that are on the list themselves. It needs DNS, or a TXT record that a
// person sets once: Status tells which.
//
// An entry that is no host (a URL, host:443) is logged, shown in Status, and
// never asked for. Serve, ServeHTTPS and Listen obtain what the list lacks by
// themselves. The list is part of the state, and in place of one read from a
// cache file, whichever came first.
func (m *Manager) SetHosts(hosts []string) {
	m.mu.Lock()
	m.listSet = true
	if was, r := m.listLocked(), hostsRecord(hosts); was != r {
		m.setLocked(r)
	}
	m.relistLocked()
	bad := m.badHosts
	m.mu.Unlock()
	for name, err := range bad {
		m.logger().Error("letsencrypt: not a host, so it gets no certificate", "host", name, "err", err)
	}
}

// GetCertificate returns the certificate for a client, for use as
// tls.Config.GetCertificate. A name that there is none for gets one if it is
// allowed: the handshake waits for the CA. It also answers the CA's
// tls-alpn-01 validations, which reach it only if the tls.Config's NextProtos
// lists "acme-tls/1", as TLSConfig's does.
//
// The error wraps a *HostError, or http.ErrServerClosed after Shutdown; its text
// is fit for a server's log. The certificate must not be modified, and its Leaf
// may be nil: Cert sets it. If a handshake waited for the CA, its connection's
// deadline is replaced: ten seconds for the rest of the handshake, then none. An
// http.Server sets its own again; a program that accepts connections itself must
// too.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if challenge.IsValidation(hello) {
		return m.validation(hello)
	}
	leaf, name, err := m.atOnce(hello.ServerName)
	if leaf != nil || err != nil {
		return leaf, err
	}
	if name == "" { // atOnce did not come as far as that
		name, err = m.helloName(hello)
	}
	if err != nil {
		return nil, &handshakeError{&HostError{Host: quote(hello.ServerName), Err: fmt.Errorf("%w: %w", ErrHostNotAllowed, err)}}
	}
	cert, waited, err := m.certificate(helloContext(hello), name, hello)
	if waited {
		extend(hello)
	}
	if err != nil {
		return nil, &handshakeError{err}
	}
	return cert, nil
}

// Cert returns a host's certificate. If there is none it obtains one, if that
// is allowed, and blocks meanwhile, for a minute at most; with neither a list
// nor Allow that takes from NewHostLimit what a client would. Its Leaf is set.
// The error is a *HostError, or http.ErrServerClosed after Shutdown.
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
	c.Certificate = slices.Clone(c.Certificate)
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
// that is done, has failed, or ctx ends, which may be while it waits for a token
// of Limit. It joins an attempt under way, and makes one whatever failed before.
// The error is a *HostError.
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

// Revoke has the CA revoke a host's certificate, for one of the reasons that are
// a subscriber's to give: unspecified, keyCompromise, affiliationChanged,
// superseded and cessationOfOperation (RFC 5280, section 5.3.1). A new one with a
// new key takes its place first, and if none can be obtained nothing is revoked.
// With cessationOfOperation there is no new one, unless the host is still on the
// list. With keyCompromise the old one is revoked, and its key then erased from
// memory and state, whatever becomes of the new one.
//
// Revoke blocks, and tries again while the CA fails, until ctx ends. From when
// the certificate was replaced, and with these two reasons from the beginning,
// the Manager goes on trying of itself, also after a restart, and another call
// waits for that. Other members of a fleet learn of it within six hours. The error
// is a *HostError, or several joined.
func (m *Manager) Revoke(ctx context.Context, host string, reason acme.CRLReasonCode) error {
	m.begin()
	name, err := hostname.Canonical(host)
	if err != nil {
		return &HostError{Host: quote(host), Err: err}
	}
	if done, err := m.finishBegun(ctx, name, reason); done {
		return err
	}
	current, marked, err := m.startRevocation(ctx, name, reason)
	if err != nil {
		return &HostError{Host: name, Err: err}
	}
	compromised := reason == acme.CRLReasonKeyCompromise
	if reason != acme.CRLReasonCessationOfOperation {
		err = m.replace(ctx, name, current, compromised)
	}
	if err != nil && !compromised {
		m.dropRevocations(marked)
		return err
	}
	return errors.Join(err, m.finishRevocations(ctx, marked))
}

// A HostStatus is what the Manager knows of a host.
type HostStatus struct {
	Host      string
	CA        string    // directory URL of the CA that issued its certificate; "" for the program's own
	Profile   string    // of the certificate
	Challenge string    // the type that was passed for it; "" if the CA asked for none
	Serial    string    // of the certificate, in hexadecimal; "" if there is none; like the three above only while it is in memory
	NotAfter  time.Time // when it expires; zero if there is none
	Renewal   time.Time // when it is renewed; zero if it is not
	Retry     time.Time // after a failure: there is no attempt before then
	Err       error     // why the last attempt failed, a *HostError; nil if it did not
}

// Status returns what is known of the hosts, in their order, or of all there
// are if none is named, sorted: those with a certificate, on the list, named to
// Manage, or failed lately.
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

// obtain asks the CAs for a certificate, one after the other until one issues
// or a failure is not the CA's, and puts it in place.
func (m *Manager) obtain(f *flight) (*tls.Certificate, *failure) {
	failed := &failure{HostError: HostError{Host: f.host.name}}
	if failed.Err = m.writable(); failed.Err != nil {
		return nil, failed
	}
	if cert := m.overtaken(f); cert != nil {
		return cert, nil
	}
	for _, a := range m.authorities {
		cert, err := m.order(f, a)
		if err == nil {
			return cert, nil
		}
		if tryNext := m.settle(f, a, err, failed); !tryNext {
			break
		}
	}
	return nil, failed
}

// order obtains a certificate from one CA. An account that the CA does not
// know any more is made anew, once, and new terms of service agreed to.
func (m *Manager) order(f *flight, a *authority) (*tls.Certificate, error) {
	if err := m.admit(f, a); err != nil {
		return nil, err
	}
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-m.ctx.Done():
		return nil, http.ErrServerClosed
	}
	if err := m.pull(m.ctx, kindPause, a.Directory); err != nil {
		return nil, err
	}
	if err := m.admit(f, a); err != nil { // others may have failed while we waited
		return nil, err
	}
	for again := true; ; again = false {
		began := time.Now()
		client, err := a.account.Client(m.ctx)
		if err != nil {
			return nil, err
		}
		cert, err := m.tryChallenges(f, a, client)
		fault, _ := faultsIn(err)
		switch {
		case !again || fault == nil || fault.Class != ca.NoAccount && fault.Class != ca.Terms:
			return cert, err
		case fault.Class == ca.NoAccount:
			err = a.account.Forget(client)
		default:
			err = m.agree(a, client, fault, began)
		}
		if err != nil {
			return nil, err
		}
	}
}

// tryChallenges obtains a certificate, with a new order for each type of
// challenge that is left when one could not be passed.
func (m *Manager) tryChallenges(f *flight, a *authority, client *ca.Client) (*tls.Certificate, error) {
	var errs []error
	adopted := false // another member's order
	s := &solving{m: m, f: f, a: a, client: client, host: f.host.name, types: m.challengeTypes(f.host)}
	if err := s.begin(); err != nil {
		return nil, err
	}
	for len(s.types) > 0 && (len(errs) == 0 || m.takeAnother()) {
		j, err := m.job(f, a, client)
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		j.Solve = s.solve
		cert, err := client.Obtain(m.ctx, j.Job)
		if err == nil {
			return m.publish(f.host, a, client, j.key, cert)
		}
		if errors.Is(err, errElsewhere) && !adopted && m.resumable(f.host, a, client) {
			adopted = true
			continue
		}
		if cert := m.theirs(f, err); cert != nil {
			return cert, nil
		}
		failed := err.(*ca.Failure) // as Obtain says
		errs = append(errs, m.orderFailed(f.host, s.typ, failed, s.late))
		if failed.Class != ca.Validation || !s.dropType() {
			break
		}
	}
	return nil, errors.Join(errs...)
}
