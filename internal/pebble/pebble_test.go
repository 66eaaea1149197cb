package pebble

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/net/dns/dnsmessage"
)

const day = 24 * time.Hour

// problem returns the type of the problem document in err.
func problem(err error) string {
	if e, ok := errors.AsType[*acme.Error](err); ok {
		return strings.TrimPrefix(e.ProblemType, "urn:ietf:params:acme:error:")
	}
	return ""
}

func TestHTTP01(t *testing.T) {
	s := New(t, Config{})
	c := newClient(t, s, s.Directory())
	answerHTTP(t, c, loopback(s.HTTPPort()))
	chain := c.issue("a.test")
	roots, err := s.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	verify := x509.VerifyOptions{DNSName: "a.test", Roots: roots, Intermediates: x509.NewCertPool()}
	for _, cert := range chain[1:] {
		verify.Intermediates.AddCert(cert)
	}
	if _, err := chain[0].Verify(verify); err != nil {
		t.Errorf("Verify = %v, want a chain to a root of Roots", err)
	}
	if life := chain[0].NotAfter.Sub(chain[0].NotBefore); life != 90*day-time.Second {
		t.Errorf("lifetime = %v, want 90 days and, as Pebble does, less a second", life)
	}
}

func TestTLSALPN01(t *testing.T) {
	s := New(t, Config{})
	c := newClient(t, s, s.Directory())
	o := c.order("a.test")
	chal := c.challenge(o, "tls-alpn-01")
	cert, err := c.TLSALPN01ChallengeCert(chal.Token, "a.test")
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", loopback(s.TLSPort()), &tls.Config{
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{acme.ALPNProto},
	})
	if err != nil {
		t.Fatal(err)
	}
	var server sync.WaitGroup
	defer server.Wait()
	defer l.Close()
	server.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	})
	c.accept(chal)
	c.finalize(o, "a.test")
}

func TestDNS01(t *testing.T) {
	s := New(t, Config{})
	c := newClient(t, s, s.Directory())
	o := c.order("*.a.test")
	chal := c.challenge(o, "dns-01")
	value, err := c.DNS01ChallengeRecord(chal.Token)
	if err != nil {
		t.Fatal(err)
	}
	s.DNS().SetTXT("_acme-challenge.a.test", "another", value)
	c.accept(chal)
	c.finalize(o, "*.a.test")
	if n := s.DNS().Queries("_acme-challenge.A.test.", dnsmessage.TypeTXT); n != 3 {
		t.Errorf("Queries = %d, want one of each of three validations", n)
	}
}

func TestPorts(t *testing.T) {
	own, err := claimPorts()
	if err != nil {
		t.Fatal(err)
	}
	defer own.release()
	s := New(t, Config{HTTPPort: own.http(), TLSPort: own.tls()})
	if s.HTTPPort() != own.http() || s.TLSPort() != own.tls() {
		t.Errorf("ports = %d, %d, want those of the Config, %d, %d", s.HTTPPort(), s.TLSPort(), own.http(), own.tls())
	}
	c := newClient(t, s, s.Directory())
	answerHTTP(t, c, loopback(own.http()))
	c.issue("a.test")
}

func TestNonceReject(t *testing.T) {
	all := New(t, Config{NonceReject: 100})
	c := newStranger(t, all, all.Directory())
	if _, err := c.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); problem(err) != "badNonce" {
		t.Errorf("Register at 100%% = %v, want badNonce", err)
	}
	// At Pebble's own default of 5% this would fail nearly always.
	none := New(t, Config{AlwaysValid: true})
	c = newClient(t, none, none.Directory())
	for range 100 {
		c.order("a.test")
	}
}

func TestAuthzReuse(t *testing.T) {
	all := New(t, Config{AlwaysValid: true, AuthzReuse: 100})
	c := newClient(t, all, all.Directory())
	c.issue("a.test")
	if o := c.order("a.test"); o.Status != acme.StatusReady {
		t.Errorf("second order at 100%% is %s, want ready", o.Status)
	}
	none := New(t, Config{AlwaysValid: true})
	c = newClient(t, none, none.Directory())
	c.issue("a.test")
	pending := 0
	for range 10 {
		if c.order("a.test").Status == acme.StatusPending {
			pending++
		}
	}
	if pending < 5 {
		t.Errorf("%d of 10 later orders at 0%% are pending, want nearly all", pending)
	}
}

func TestValidationSleep(t *testing.T) {
	s := New(t, Config{AlwaysValid: true, ValidationSleep: 1})
	newClient(t, s, s.Directory()).issue("a.test")
	if n := s.Logged("Sleeping for "); n != 3 {
		t.Errorf("%d sleeps, want one of each of three validations", n)
	}
	s = New(t, Config{AlwaysValid: true})
	newClient(t, s, s.Directory()).issue("a.test")
	if n := s.Logged("Sleeping for "); n != 0 {
		t.Errorf("%d sleeps, want none", n)
	}
}

func TestRetryAfter(t *testing.T) {
	for _, seconds := range []int{0, 60} {
		s := New(t, Config{AlwaysValid: true, RetryAfterOrder: seconds})
		c := newClient(t, s, s.Directory())
		c.issue("a.test")
		checkRetryAfter(t, c, Finalize, seconds)

		// The validation lasts for as long as the longest of three sleeps.
		s = New(t, Config{AlwaysValid: true, RetryAfterAuthz: seconds, ValidationSleep: 10_000})
		c = newClient(t, s, s.Directory())
		o := c.order("a.test")
		c.accept(c.challenge(o, "http-01"))
		c.challenge(o, "http-01")
		checkRetryAfter(t, c, Authz, seconds)
	}
}

func checkRetryAfter(t *testing.T, c *client, e Endpoint, seconds int) {
	t.Helper()
	got := c.headers[e].Get("Retry-After")
	date, err := http.ParseTime(got)
	isDate := err == nil && time.Until(date) > 0 && time.Until(date) <= time.Duration(seconds)*time.Second
	if want := seconds > 0; want != (got == "60" || isDate) || !want && got != "" {
		t.Errorf("Retry-After of %s = %q, want %d seconds", e, got, seconds)
	}
}

func TestProfiles(t *testing.T) {
	lives := map[string]time.Duration{"long": 398 * day, "short": 6 * day, "test": 20 * time.Second}
	s := New(t, Config{AlwaysValid: true, Profiles: lives})
	c := newClient(t, s, s.Directory())
	for name, want := range lives {
		leaf := c.issue("a.test", acme.WithOrderIssuanceProfile(acme.ProfileName(name)))[0]
		if life := leaf.NotAfter.Sub(leaf.NotBefore); life != want-time.Second {
			t.Errorf("profile %s: lifetime %v, want %v less a second", name, life, want)
		}
	}
}

func TestChains(t *testing.T) {
	s := New(t, Config{AlwaysValid: true, AlternateRoots: 2, ChainLength: 3})
	c := newClient(t, s, s.Directory())
	o := c.order("a.test")
	c.accept(c.challenge(o, "http-01"))
	chain, url := c.finalize(o, "a.test")
	if len(chain) != 4 {
		t.Errorf("%d certificates, want a leaf and 3 intermediates", len(chain))
	}
	alternates, err := c.ListCertAlternates(t.Context(), url)
	if err != nil || len(alternates) != 2 {
		t.Errorf("ListCertAlternates = %q, %v, want 2", alternates, err)
	}
	roots := parseAll(t, s)
	if len(roots) != 3 || chain[3].Issuer.CommonName != roots[0].Subject.CommonName {
		t.Errorf("RootPEM has %d roots, the chain ends below %q; want 3, the chain's first", len(roots), chain[3].Issuer.CommonName)
	}
}

// parseAll returns the certificates of s.RootPEM.
func parseAll(t *testing.T, s *Server) (certs []*x509.Certificate) {
	t.Helper()
	data, err := s.RootPEM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return certs
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
}

func TestKeyAlgorithm(t *testing.T) {
	s := New(t, Config{KeyAlgorithm: "rsa"})
	if root := parseAll(t, s)[0]; root.PublicKeyAlgorithm != x509.RSA {
		t.Errorf("root has a key of type %v, want %T", root.PublicKeyAlgorithm, &rsa.PublicKey{})
	}
	s = New(t, Config{})
	if root := parseAll(t, s)[0]; root.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("root has a key of type %v, want ECDSA", root.PublicKeyAlgorithm)
	}
}

func TestOCSPResponder(t *testing.T) {
	const url = "http://127.0.0.1:1/ocsp"
	s := New(t, Config{AlwaysValid: true, OCSPResponder: url})
	leaf := newClient(t, s, s.Directory()).issue("a.test")[0]
	if !slices.Equal(leaf.OCSPServer, []string{url}) {
		t.Errorf("OCSPServer = %q, want %q", leaf.OCSPServer, url)
	}
}

func TestEAB(t *testing.T) {
	key := []byte("a key of thirty-two octets, yes!")
	s := New(t, Config{EAB: map[string][]byte{"kid-1": key}})
	c := newStranger(t, s, s.Directory())
	_, err := c.Register(t.Context(), &acme.Account{}, acme.AcceptTOS)
	if problem(err) != "externalAccountRequired" {
		t.Errorf("Register without EAB = %v, want externalAccountRequired", err)
	}
	binding := &acme.ExternalAccountBinding{KID: "kid-1", Key: key}
	if _, err := c.Register(t.Context(), &acme.Account{ExternalAccountBinding: binding}, acme.AcceptTOS); err != nil {
		t.Errorf("Register with EAB = %v", err)
	}
}

func TestBlocklist(t *testing.T) {
	s := New(t, Config{Blocklist: []string{"blocked.test"}})
	c := newClient(t, s, s.Directory())
	_, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("www.blocked.test"))
	if problem(err) != "rejectedIdentifier" {
		t.Errorf("AuthorizeOrder = %v, want rejectedIdentifier", err)
	}
	c.order("www.other.test")
}

func TestStrict(t *testing.T) {
	for _, strict := range []bool{false, true} {
		s := New(t, Config{Strict: strict})
		if got := s.Logged("Running in strict mode") > 0; got != strict {
			t.Errorf("Strict %v: Pebble is strict: %v", strict, got)
		}
	}
}

func TestDNSServer(t *testing.T) {
	d, err := ListenDNS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := New(t, Config{DNSServer: d.Addr()})
	if s.DNS() != nil {
		t.Error("DNS of a Server that has none is not nil")
	}
	c := newClient(t, s, s.Directory())
	answerHTTP(t, c, loopback(s.HTTPPort()))
	c.issue("a.test")
	if n := d.Queries("a.test", dnsmessage.TypeA); n != 3 {
		t.Errorf("Queries = %d, want 3", n)
	}
}

func TestRestart(t *testing.T) {
	s := New(t, Config{AlwaysValid: true})
	c := newClient(t, s, s.Directory())
	c.issue("a.test")
	directory, roots := s.Directory(), parseAll(t, s)

	s.Stop()
	if _, err := s.Client().Get(directory); err == nil {
		t.Error("Get of a stopped Pebble's directory succeeds")
	}
	if n := len(s.Issued()); n != 1 {
		t.Errorf("Issued of a stopped Pebble has %d certificates, want 1", n)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Directory() != directory {
		t.Errorf("Directory = %s, want %s as before", s.Directory(), directory)
	}
	if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.test")); problem(err) != "accountDoesNotExist" {
		t.Errorf("AuthorizeOrder after Restart = %v, want accountDoesNotExist", err)
	}
	if parseAll(t, s)[0].Equal(roots[0]) {
		t.Error("after Restart the root is the same")
	}
	newClient(t, s, s.Directory()).issue("b.test")
	if n := len(s.Issued()); n != 2 {
		t.Errorf("Issued after Restart has %d certificates, want 2", n)
	}
	if certs, err := s.Certificates(t.Context()); err != nil || len(certs) != 1 || certs[0].DNSNames[0] != "b.test" {
		t.Errorf("Certificates after Restart = %d of them, %v, want b.test's", len(certs), err)
	}
}

func TestRestartFails(t *testing.T) {
	s := New(t, Config{AlwaysValid: true})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Restart(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Restart = %v, want context.Canceled", err)
	}
	if s.child != nil {
		t.Error("Pebble runs after a Restart that failed")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	newClient(t, s, s.Directory()).issue("a.test")
}

func TestStartMany(t *testing.T) {
	servers := make([]*Server, 6)
	var started sync.WaitGroup
	for i := range servers {
		started.Go(func() {
			s, err := Start(t.Context(), Config{AlwaysValid: true})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(s.Close)
			servers[i] = s
		})
	}
	started.Wait()
	if t.Failed() {
		return
	}
	ports := map[int]bool{}
	for i, s := range servers {
		newClient(t, s, s.Directory()).issue("a.test")
		if n := len(s.Issued()); n != 1 {
			t.Errorf("server %d issued %d certificates, want 1", i, n)
		}
		ports[s.HTTPPort()], ports[s.TLSPort()] = true, true
	}
	if len(ports) != 2*len(servers) {
		t.Errorf("%d servers have %d ports for validations, want two each", len(servers), len(ports))
	}
}

func TestClose(t *testing.T) {
	var out bytes.Buffer
	s, err := Start(t.Context(), Config{Log: &out})
	if err != nil {
		t.Fatal(err)
	}
	child := s.child
	if _, err := s.Proxy(nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close()
	if child.cmd.ProcessState == nil {
		t.Error("Close returned before Pebble's end")
	}
	if !strings.Contains(out.String(), "ACME directory available") {
		t.Errorf("Log got %q, want all of Pebble's output", &out)
	}
	if !allFree(s.ports.base, s.ports.base+portBlock) {
		t.Error("after Close, ports are in use")
	}
}

func TestStartCanceled(t *testing.T) {
	if _, err := Build(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, err := Start(ctx, Config{})
	if !errors.Is(err, context.Canceled) || s != nil {
		t.Errorf("Start = %v, %v, want context.Canceled", s, err)
	}
}

func TestStartFails(t *testing.T) {
	_, err := Start(t.Context(), Config{KeyAlgorithm: "md5"})
	if err == nil || !strings.Contains(err.Error(), "invalid key algorithm") {
		t.Errorf("Start = %v, want Pebble's own words", err)
	}
}

func TestPortTaken(t *testing.T) {
	program, err := Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ports, err := claimPorts()
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("tcp", loopback(ports.management()))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s := &Server{program: program, log: newLogbook(nil), ports: ports, config: Config{DNSServer: "127.0.0.1:1"}}
	defer s.Close()
	if err := s.identify(); err != nil {
		t.Fatal(err)
	}
	if err := s.launch(t.Context()); !errors.Is(err, errPortTaken) {
		t.Errorf("launch = %v, want errPortTaken", err)
	}
}

func TestClaimPorts(t *testing.T) {
	taken := map[int]bool{}
	for range 100 {
		p, err := claimPorts()
		if err != nil {
			t.Fatal(err)
		}
		defer p.release()
		if taken[p.base] {
			t.Fatalf("block at %d claimed twice", p.base)
		}
		taken[p.base] = true
	}
}

func TestClaimBlock(t *testing.T) {
	p, err := claimPorts()
	if err != nil {
		t.Fatal(err)
	}
	if again := claimBlock(p.base); again != nil {
		again.release()
		t.Error("a block that is held is claimed again")
	}
	user, err := net.Listen("tcp", loopback(p.tls()))
	if err != nil {
		t.Fatal(err)
	}
	p.release()
	if again := claimBlock(p.base); again != nil {
		again.release()
		t.Error("a block with a port in use is claimed")
	}
	user.Close()
	again := claimBlock(p.base)
	if again == nil {
		t.Fatal("a block that was released is not claimed")
	}
	again.release()
}

func TestAPICert(t *testing.T) {
	s := New(t, Config{})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.APICert())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer tr.CloseIdleConnections()
	for _, host := range []string{"localhost", "127.0.0.1"} {
		url := strings.Replace(s.Directory(), "127.0.0.1", host, 1)
		res, err := (&http.Client{Transport: tr}).Get(url)
		if err != nil {
			t.Errorf("Get(%s) with a pool of APICert: %v", url, err)
			continue
		}
		res.Body.Close()
	}
}
