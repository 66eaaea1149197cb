package catest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

// A client is an ACME client that answers every type of challenge.
type client struct {
	*acme.Client
	ca *catest.CA

	mu   sync.Mutex
	tls  map[string]*tls.Certificate // tls-alpn-01 answers by server name
	http map[string]string           // http-01 answers by host and path
	txt  map[string][]string
}

// newClient returns a client whose servers the CA validates.
// It is not registered.
func newClient(t testing.TB, ca *catest.CA) *client {
	c := &client{
		Client: &acme.Client{DirectoryURL: ca.Directory(), HTTPClient: ca.Client(), Key: newKey(t)},
		ca:     ca,
		tls:    make(map[string]*tls.Certificate),
		http:   make(map[string]string),
		txt:    make(map[string][]string),
	}
	c.serve()
	return c
}

// serve makes the client's servers the ones that the CA validates.
func (c *client) serve() {
	c.ca.Change(func(conf *catest.Config) {
		conf.TLS = func(string) *tls.Config {
			return &tls.Config{GetCertificate: c.getCertificate, NextProtos: []string{"h2", "acme-tls/1"}}
		}
		conf.HTTP = c
		conf.TXT = func(name string) []string {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.txt[name]
		}
	})
}

func (c *client) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cert := c.tls[hello.ServerName]; cert != nil {
		return cert, nil
	}
	return nil, errors.New("no certificate")
}

func (c *client) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	answer, ok := c.http[r.Host+r.URL.Path]
	c.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Write([]byte(answer))
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// register makes the client's account.
func (c *client) register(t testing.TB) *client {
	t.Helper()
	if _, err := c.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); err != nil {
		t.Fatalf("Register: %v", err)
	}
	return c
}

// answer puts the answer to a challenge in place.
func (c *client) answer(t testing.TB, z *acme.Authorization, chal *acme.Challenge) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	name := z.Identifier.Value
	switch chal.Type {
	case "tls-alpn-01":
		cert, err := c.TLSALPN01ChallengeCert(chal.Token, name)
		if err != nil {
			t.Fatal(err)
		}
		c.tls[serverName(name)] = &cert
	case "http-01":
		body, err := c.HTTP01ChallengeResponse(chal.Token)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(name, ":") {
			name = "[" + name + "]"
		}
		c.http[name+c.HTTP01ChallengePath(chal.Token)] = body
	case "dns-01":
		record, err := c.DNS01ChallengeRecord(chal.Token)
		if err != nil {
			t.Fatal(err)
		}
		name = "_acme-challenge." + name
		c.txt[name] = append(c.txt[name], record)
	}
}

// serverName is what the tests' addresses are called in a ClientHello.
func serverName(name string) string {
	switch name {
	case "192.0.2.7":
		return "7.2.0.192.in-addr.arpa"
	case "2001:db8::1":
		return "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
	}
	return name
}

// order makes an order.
func (c *client) order(t testing.TB, names []string, opts ...acme.OrderOption) (*acme.Order, error) {
	var ids []acme.AuthzID
	for _, name := range names {
		if net.ParseIP(name) != nil {
			ids = append(ids, acme.IPIDs(name)...)
		} else {
			ids = append(ids, acme.DomainIDs(name)...)
		}
	}
	return c.AuthorizeOrder(t.Context(), ids, opts...)
}

// fulfil answers a challenge of the type, in each of the order's authorizations, and waits.
func (c *client) fulfil(t testing.TB, o *acme.Order, typ string) error {
	for _, url := range o.AuthzURLs {
		z, err := c.GetAuthorization(t.Context(), url)
		if err != nil {
			return err
		}
		if z.Status == acme.StatusValid {
			continue
		}
		i := slices.IndexFunc(z.Challenges, func(chal *acme.Challenge) bool { return chal.Type == typ })
		if i < 0 {
			return errors.New("challenge not offered")
		}
		c.answer(t, z, z.Challenges[i])
		if _, err := c.Accept(t.Context(), z.Challenges[i]); err != nil {
			return err
		}
		if _, err := c.WaitAuthorization(t.Context(), url); err != nil {
			return err
		}
	}
	return nil
}

// ready returns an order that is ready to be finalized.
func (c *client) ready(t testing.TB, names ...string) *acme.Order {
	t.Helper()
	o, err := c.order(t, names)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.fulfil(t, o, "http-01"); err != nil {
		t.Fatal(err)
	}
	return o
}

// csr returns a certificate request.
func csr(t testing.TB, key crypto.Signer, names ...string) []byte {
	t.Helper()
	req := &x509.CertificateRequest{}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			req.IPAddresses = append(req.IPAddresses, ip)
		} else {
			req.DNSNames = append(req.DNSNames, name)
		}
	}
	return makeCSR(t, key, req)
}

func makeCSR(t testing.TB, key crypto.Signer, req *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, req, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// obtain does all that it takes to get a certificate.
func (c *client) obtain(t testing.TB, typ string, names ...string) ([]*x509.Certificate, error) {
	o, err := c.order(t, names)
	if err != nil {
		return nil, err
	}
	if err := c.fulfil(t, o, typ); err != nil {
		return nil, err
	}
	if o, err = c.WaitOrder(t.Context(), o.URI); err != nil {
		return nil, err
	}
	ders, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, newKey(t), names...), true)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// mustObtain returns the leaf of a new certificate.
func (c *client) mustObtain(t testing.TB, typ string, names ...string) *x509.Certificate {
	t.Helper()
	chain, err := c.obtain(t, typ, names...)
	if err != nil {
		t.Fatalf("obtaining a certificate for %q by %s: %v", names, typ, err)
	}
	return chain[0]
}

func TestObtain(t *testing.T) {
	tests := []struct {
		typ   string
		names []string
	}{
		{"tls-alpn-01", []string{"a.example.com"}},
		{"tls-alpn-01", []string{"192.0.2.7"}},
		{"tls-alpn-01", []string{"2001:db8::1"}},
		{"tls-alpn-01", []string{"a.example.com", "b.example.com", "192.0.2.7"}},
		{"http-01", []string{"a.example.com"}},
		{"http-01", []string{"192.0.2.7"}},
		{"http-01", []string{"2001:db8::1"}},
		{"dns-01", []string{"a.example.com"}},
		{"dns-01", []string{"*.example.com"}},
		{"dns-01", []string{"*.example.com", "example.com"}},
	}
	for _, test := range tests {
		t.Run(test.typ+" "+strings.Join(test.names, " "), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := catest.New(t)
				chain, err := newClient(t, ca).register(t).obtain(t, test.typ, test.names...)
				if err != nil {
					t.Fatal(err)
				}
				opts := x509.VerifyOptions{Roots: ca.Roots(), Intermediates: x509.NewCertPool()}
				for _, cert := range chain[1:] {
					opts.Intermediates.AddCert(cert)
				}
				if _, err := chain[0].Verify(opts); err != nil {
					t.Errorf("Verify: %v", err)
				}
				for _, name := range test.names {
					if err := chain[0].VerifyHostname(strings.Replace(name, "*", "x", 1)); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// Many clients at a time, a year of renewals.
func TestYear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Latency = 50 * time.Millisecond
		ca.ValidationTakes = 2 * time.Second
		ca.FinalizeTakes = time.Second
		const hosts = 6
		end := time.Now().Add(365 * day)
		servers := make(map[string]*client)
		var wg sync.WaitGroup
		for i := range hosts {
			// A client each: acme.Client asks for nonces with a mutex held,
			// which in a bubble stops the clock for all that wait for it.
			c, host := newClient(t, ca), fmt.Sprintf("host%d.example.com", i)
			servers[host] = c
			wg.Go(func() {
				c.register(t)
				for time.Now().Before(end) {
					leaf := c.mustObtain(t, "tls-alpn-01", host)
					time.Sleep(time.Until(leaf.NotBefore.Add(60 * day)))
				}
			})
		}
		ca.Change(func(conf *catest.Config) {
			conf.TLS = func(host string) *tls.Config {
				return &tls.Config{GetCertificate: servers[host].getCertificate, NextProtos: []string{"acme-tls/1"}}
			}
		})
		wg.Wait()
		if got, want := len(ca.Issued("")), 7*hosts; got != want {
			t.Errorf("%d certificates in a year, want %d", got, want)
		}
	})
}

func BenchmarkOrder(b *testing.B) {
	for _, typ := range []string{"http-01", "tls-alpn-01"} {
		b.Run(typ, func(b *testing.B) {
			c := newClient(b, catest.New(b)).register(b)
			for b.Loop() {
				c.mustObtain(b, typ, "example.com")
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
		})
	}
}
