package pebble

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// helperEnv makes the test binary a program that runs a Pebble until it is
// killed.
const helperEnv = "PEBBLE_TEST_HELPER"

// TestMain checks that the package leaves no goroutine behind, whatever its
// tests did.
func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		runHelper()
	}
	before := runtime.NumGoroutine()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // fuzzing leaves a goroutine of os/signal's
	}
	// Connections whose other end is gone take a moment to notice.
	if code == 0 && !eventually(func() bool { return runtime.NumGoroutine() <= before }) {
		fmt.Fprintf(os.Stderr, "%d goroutines after all tests, want %d:\n", runtime.NumGoroutine(), before)
		pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		code = 1
	}
	os.Exit(code)
}

func runHelper() {
	s, err := Start(context.Background(), Config{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.child.cmd.Process.Pid)
	select {}
}

// eventually reports whether ok becomes true in good time.
func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if ok() {
			return true
		}
		runtime.Gosched()
	}
	return ok()
}

// A client is an ACME client that tries nothing twice. Those of its methods
// that take no context end the test when they fail.
type client struct {
	*acme.Client
	t       *testing.T
	base    http.RoundTripper
	headers map[Endpoint]http.Header // of the latest replies
}

// newClient returns a client for s with an account at the directory, s's own
// or a proxy's.
func newClient(t *testing.T, s *Server, directory string) *client {
	t.Helper()
	c := newStranger(t, s, directory)
	if _, err := c.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); err != nil {
		t.Fatalf("registering: %v", err)
	}
	return c
}

// newStranger is like newClient, without an account.
func newStranger(t *testing.T, s *Server, directory string) *client {
	t.Helper()
	c := &client{t: t, base: s.Client().Transport, headers: map[Endpoint]http.Header{}}
	c.Client = &acme.Client{
		Key:          newKey(t),
		DirectoryURL: directory,
		HTTPClient:   &http.Client{Transport: c},
		RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return -1 },
	}
	return c
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// RoundTrip keeps the headers of the reply. It takes the Retry-After out of what
// is no error: the client would sleep that long in the middle of a test.
func (c *client) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := c.base.RoundTrip(r)
	if err == nil {
		c.headers[endpointOf(r.URL.Path)] = res.Header.Clone()
		if res.StatusCode < 400 {
			res.Header.Del("Retry-After")
		}
	}
	return res, err
}

// renewalPath returns the path of a certificate's renewal information, without
// its first slash (RFC 9773 section 4.1).
func renewalPath(leaf *x509.Certificate) string {
	serial := leaf.SerialNumber.Bytes()
	if serial[0]&0x80 != 0 {
		serial = append([]byte{0}, serial...)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return "draft-ietf-acme-ari-03/renewalInfo/" + encode(leaf.AuthorityKeyId) + "." + encode(serial)
}

func (c *client) order(name string, opts ...acme.OrderOption) *acme.Order {
	c.t.Helper()
	o, err := c.AuthorizeOrder(c.t.Context(), acme.DomainIDs(name), opts...)
	if err != nil {
		c.t.Fatalf("ordering: %v", err)
	}
	return o
}

// challenge returns the order's first challenge of a type.
func (c *client) challenge(o *acme.Order, typ string) *acme.Challenge {
	c.t.Helper()
	z, err := c.GetAuthorization(c.t.Context(), o.AuthzURLs[0])
	if err != nil {
		c.t.Fatalf("authorization: %v", err)
	}
	for _, chal := range z.Challenges {
		if chal.Type == typ {
			return chal
		}
	}
	c.t.Fatalf("no %s challenge", typ)
	return nil
}

func (c *client) accept(chal *acme.Challenge) {
	c.t.Helper()
	if _, err := c.Accept(c.t.Context(), chal); err != nil {
		c.t.Fatalf("accepting: %v", err)
	}
}

// finalize waits for the order to be ready and returns its certificates, and
// the URL that they are from.
func (c *client) finalize(o *acme.Order, name string) ([]*x509.Certificate, string) {
	c.t.Helper()
	ctx := c.t.Context()
	if _, err := c.WaitOrder(ctx, o.URI); err != nil {
		c.t.Fatalf("waiting for the order: %v", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, newKey(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	ders, url, err := c.CreateCertFromOrder(ctx, o, csr, true)
	if err != nil {
		c.t.Fatalf("finalizing: %v", err)
	}
	var chain []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			c.t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain, url
}

// issue returns a new certificate's chain, of a Pebble that is always content.
func (c *client) issue(name string, opts ...acme.OrderOption) []*x509.Certificate {
	c.t.Helper()
	o := c.order(name, opts...)
	if o.Status == acme.StatusPending {
		c.accept(c.challenge(o, "http-01"))
	}
	chain, _ := c.finalize(o, name)
	return chain
}

// answerHTTP answers every http-01 challenge of c on addr until the test ends.
func answerHTTP(t *testing.T, c *client, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := c.HTTP01ChallengeResponse(path.Base(r.URL.Path))
		if err != nil {
			t.Error(err)
		}
		fmt.Fprint(w, answer)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}
