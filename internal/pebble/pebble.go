// Package pebble runs the real Pebble, Let's Encrypt's test CA, for tests and
// the demo: a process of its own, at a pinned version, ready in a moment and
// gone with the process that started it.
//
//	ca := pebble.New(t, pebble.Config{})
//	m := &letsencrypt.Manager{
//		CAs:       []letsencrypt.CA{{Directory: ca.Directory(), Client: ca.Client()}},
//		HTTPAddr:  fmt.Sprintf("127.0.0.1:%d", ca.HTTPPort()),
//		HTTPSAddr: fmt.Sprintf("127.0.0.1:%d", ca.TLSPort()),
//	}
//
// Every name there is resolves to 127.0.0.1, see [DNS], and Pebble validates
// at ports that no other Server uses, in this process or another. Faults are
// put between a client and Pebble by a [Proxy].
package pebble

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Config says how a Pebble behaves. Its zero value is a CA that is quick and
// the same on every run: validations start at once, no nonce is refused, no
// Retry-After is sent, and certificates live 90 days.
type Config struct {
	NonceReject int // percentage of good nonces that are refused all the same

	// AuthzReuse is the percentage of authorizations that are taken over from
	// the account's earlier orders. At zero Pebble still takes over one in a
	// hundred.
	AuthzReuse int

	// ValidationSleep has each of the three connections of a validation wait a
	// random number of whole seconds below it.
	ValidationSleep int
	AlwaysValid     bool // pass every validation without asking anybody

	// RetryAfterOrder and RetryAfterAuthz are the seconds of the Retry-After
	// header of an order and of an authorization that are being processed.
	// Pebble writes it as a number or as a date, at random.
	RetryAfterOrder, RetryAfterAuthz int

	// Profiles maps a profile's name to the lifetime of its certificates, a
	// second or more. An order that names no profile gets any of them. Nil
	// means one profile, "default", of 90 days.
	Profiles map[string]time.Duration

	AlternateRoots int    // alternate chains that are offered beside the default one
	ChainLength    int    // intermediate certificates in a chain; 0 means 1
	KeyAlgorithm   string // of Pebble's own keys, "ecdsa" or "rsa"; "" means "ecdsa"
	OCSPResponder  string // URL that certificates name; "" means none

	EAB       map[string][]byte // key identifier to MAC key; if set, accounts need one
	Blocklist []string          // domains that are refused, subdomains included
	Strict    bool              // Pebble's -strict, changes of the protocol to come

	// HTTPPort and TLSPort are where validations go. Zero means a port that
	// this Server alone may use; see [Server.HTTPPort].
	HTTPPort, TLSPort int

	// DNSServer is the host:port of the name server that Pebble asks, over
	// TCP. "" means one of the Server's own.
	DNSServer string

	Log io.Writer // gets all that Pebble prints, before Close returns; nil means nobody
}

// A Server is a running Pebble. Its methods are safe for concurrent use, but
// for those that change whether it runs: Stop, Restart, Close and Proxy are
// for one goroutine.
type Server struct {
	config  Config
	program string
	ports   *ports
	dns     *DNS // nil with Config.DNSServer

	cert      tls.Certificate // of the API, the management interface and the proxies
	certPEM   []byte
	transport *http.Transport // trusts cert

	log     *logbook
	flushes chan struct{} // holds the one flush that runs

	child     *child
	turnstile turnstile // of proxies and clients
	proxies   []*Proxy
}

// TB is the part of a testing.TB that New uses, so that programs that are no
// tests need not link package testing.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
	Context() context.Context
}

// New starts a Server that is closed when the test ends. A Pebble that does
// not start ends the test.
func New(tb TB, config Config) *Server {
	tb.Helper()
	s, err := Start(tb.Context(), config)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(s.Close)
	return s
}

const (
	startTries   = 5
	startTimeout = time.Minute // RSA keys for many chains take their time
	startPoll    = 10 * time.Millisecond
	flushTimeout = 10 * time.Second
)

// Start builds Pebble if need be, see [Build], and runs one until Close. It
// returns when Pebble answers. The context is for starting alone.
func Start(ctx context.Context, config Config) (*Server, error) {
	program, err := Build(ctx)
	if err != nil {
		return nil, err
	}
	for range startTries {
		var s *Server
		if s, err = start(ctx, program, config); err == nil {
			return s, nil
		}
		// A program that knows nothing of our ports took one of them between
		// our look and Pebble's listening.
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return nil, fmt.Errorf("starting pebble: %w", err)
}

func start(ctx context.Context, program string, config Config) (_ *Server, err error) {
	s := &Server{
		config:  config,
		program: program,
		log:     newLogbook(config.Log),
		flushes: make(chan struct{}, 1),
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := s.identify(); err != nil {
		return nil, err
	}
	if s.ports, err = claimPorts(); err != nil {
		return nil, err
	}
	if config.DNSServer == "" {
		if s.dns, err = ListenDNS(loopback(s.ports.dns())); err != nil {
			// A process that is being forked has copies of our listeners until
			// it becomes another program.
			return nil, fmt.Errorf("%w: %w", errPortTaken, err)
		}
	}
	return s, s.launch(ctx)
}

// identify makes the API's certificate and the transport that trusts it.
func (s *Server) identify() (err error) {
	if s.cert, s.certPEM, err = newAPICert(); err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.certPEM)
	s.transport = &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: pool},
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 100,
	}
	return nil
}

// Directory returns the URL of the CA's directory.
func (s *Server) Directory() string {
	return "https://" + loopback(s.ports.api()) + "/dir"
}

// HTTPPort returns the port on which Pebble expects http-01 answers. Unless
// the Config chose it, the port is free on 127.0.0.1 and no other Server gets
// it before this one is closed: a program may listen there, stop, and listen
// there again.
func (s *Server) HTTPPort() int {
	if s.config.HTTPPort != 0 {
		return s.config.HTTPPort
	}
	return s.ports.http()
}

// TLSPort is like HTTPPort, for tls-alpn-01.
func (s *Server) TLSPort() int {
	if s.config.TLSPort != 0 {
		return s.config.TLSPort
	}
	return s.ports.tls()
}

// DNS returns the name server that Pebble asks, nil if the Config names
// another.
func (s *Server) DNS() *DNS { return s.dns }

// Client returns a new HTTP client that trusts the certificate of Pebble's
// API, and of its proxies. All the clients of a Server share connections.
func (s *Server) Client() *http.Client {
	return &http.Client{Transport: guarded{s}}
}

// APICert returns, in PEM, the certificate that Client trusts, for a client
// in another process.
func (s *Server) APICert() []byte { return s.certPEM }

// Stop ends Pebble: connections are refused until Restart. Name server,
// proxies and ports stay.
func (s *Server) Stop() {
	if s.child != nil {
		s.child.kill()
		s.child = nil
		s.transport.CloseIdleConnections() // to the Pebble that was
	}
}

// Restart ends Pebble and runs another at the same addresses. It knows nothing
// of the one before: accounts, orders and certificates are forgotten, and its
// roots are new. What the Server counts goes on.
func (s *Server) Restart(ctx context.Context) error {
	s.Stop()
	if err := s.launch(ctx); err != nil {
		return fmt.Errorf("restarting pebble: %w", err)
	}
	return nil
}

// Close ends Pebble, its name server and its proxies, and gives up the ports.
// It may be called twice.
func (s *Server) Close() {
	for _, p := range s.proxies {
		p.Close()
	}
	s.Stop()
	if s.dns != nil {
		s.dns.Close()
	}
	if s.ports != nil {
		s.ports.release()
	}
	if s.transport != nil {
		s.transport.CloseIdleConnections()
	}
}
