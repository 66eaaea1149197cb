package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"testing"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
)

const (
	v4 = "127.0.0.1"
	v6 = "::1"
)

// skipWithout skips the test on a machine without the loopback address.
func skipWithout(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Skipf("this machine has no %s: %v", addr, err)
	}
	l.Close()
}

// at returns the rig's TLS or HTTP port at another address.
func at(addr string, port int) string { return net.JoinHostPort(addr, strconv.Itoa(port)) }

// serveAt has the Manager's certificates served at the addresses, by servers of
// the program's own that one type of challenge can reach.
func (r *rig) serveAt(m *letsencrypt.Manager, typ string, addrs ...string) {
	r.t.Helper()
	for _, addr := range addrs {
		config := &tls.Config{GetCertificate: m.GetCertificate}
		if typ == "tls-alpn-01" {
			config = m.TLSConfig()
		}
		s := &http.Server{Addr: at(addr, r.TLSPort()), Handler: m.Handler, TLSConfig: config}
		serveHTTP(r.t, s, func() error { return s.ListenAndServeTLS("", "") })
		if typ == "http-01" {
			s := &http.Server{Addr: at(addr, r.HTTPPort()), Handler: m.HTTPHandler(nil)}
			serveHTTP(r.t, s, s.ListenAndServe)
		}
	}
}

// An address is proved by both challenges. The request and the certificate have
// it as an IP SAN and have no common name (RFC 8738, section 3), and it is what
// clients get that can't send it as a server name.
func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{v4, v6} {
		for _, typ := range []string{"tls-alpn-01", "http-01"} {
			t.Run(addr+" by "+typ, func(t *testing.T) {
				t.Parallel()
				skipWithout(t, addr)
				r := newRig(t, pebble.Config{})
				sent := eavesdrop[finalize](r, pebble.Finalize)
				m, _ := r.manager()
				m.SetHosts([]string{"a.example.com", addr})
				r.serveAt(m, typ, addr)
				if err := m.Manage(t.Context(), addr); err != nil {
					t.Fatal(err)
				}
				if s := m.Status(addr)[0]; s.Challenge != typ || s.Err != nil {
					t.Errorf("Status(%s) = challenge %q, error %v; want %s and none", addr, s.Challenge, s.Err, typ)
				}
				c := r.call(addr)
				c.addr = at(addr, r.TLSPort())
				answered(t, c)
				leaf, err := visit(c.addr, addr, r.roots())
				checkAddress(t, "the certificate", must(t, leaf, err).Subject.String(), leaf.DNSNames, leaf.IPAddresses, addr)
				if len(sent()) != 1 {
					t.Fatalf("%d requests for a certificate, want 1", len(sent()))
				}
				der, err := base64.RawURLEncoding.DecodeString(sent()[0].CSR)
				csr, err := x509.ParseCertificateRequest(must(t, der, err))
				checkAddress(t, "the request", must(t, csr, err).Subject.String(), csr.DNSNames, csr.IPAddresses, addr)
			})
		}
	}
}

func checkAddress(t *testing.T, what, subject string, names []string, addrs []net.IP, want string) {
	t.Helper()
	if fmt.Sprint(subject, names, addrs) != fmt.Sprint("", []string{}, []string{want}) {
		t.Errorf("%s has subject %q, names %q and addresses %v; want %s alone", what, subject, names, addrs, want)
	}
}

// A client that reached another address than ours, as all do from outside of a
// NAT, gets the certificate of the only address there is, whatever hosts are
// listed beside it.
func TestAddressBehindNAT(t *testing.T) {
	t.Parallel()
	const inside = "127.0.0.2" // which all Linux machines have
	skipWithout(t, inside)
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	m.DefaultHost = "a.example.com"
	m.SetHosts([]string{"a.example.com", "b.example.com", v4})
	r.serveAt(m, "tls-alpn-01", v4, inside)
	if err := m.Manage(t.Context(), "a.example.com", v4); err != nil {
		t.Fatal(err)
	}
	c := r.call(v4)
	c.addr = at(inside, r.TLSPort())
	answered(t, c)
}

// Of two addresses a client gets the one that it reached.
func TestBothAddresses(t *testing.T) {
	t.Parallel()
	skipWithout(t, v6)
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	m.SetHosts([]string{"0:0:0:0:0:0:0:1", v4})
	r.serveAt(m, "tls-alpn-01", v4, v6)
	for _, addr := range []string{v4, v6} {
		if err := m.Manage(t.Context(), addr); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []string{v4, v6} {
		c := r.call(addr)
		c.addr = at(addr, r.TLSPort())
		answered(t, c)
	}
	if n := r.Orders(); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
}
