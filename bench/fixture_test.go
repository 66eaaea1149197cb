package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"strings"
	"testing"

	"example.com/letsencrypt"
)

// TestMain is main's part of inChild.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-child" {
		beChild(os.Args[2])
		return
	}
	os.Exit(m.Run())
}

func TestLeaf(t *testing.T) {
	for _, f := range []*family{hosts, wildcards} {
		for _, i := range []int{0, 7, 1234567} {
			der := f.leaf(i)
			if got := len(der) + len(authority().keyPKCS8); got != hostSize {
				t.Errorf("leaf(%d) and its key take %d bytes, want %d", i, got, hostSize)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatalf("leaf(%d): %v", i, err)
			}
			if len(cert.DNSNames) != 1 || cert.DNSNames[0] != f.name(i) || cert.Subject.CommonName != f.name(i) {
				t.Errorf("leaf(%d) is for %q and %q, want %q", i, cert.DNSNames, cert.Subject.CommonName, f.name(i))
			}
		}
	}
}

func TestRenewedLeaf(t *testing.T) {
	cert, err := x509.ParseCertificate(hosts.renewed(5, 3))
	if err != nil {
		t.Fatal(err)
	}
	if want := authority().notAfter(3); !cert.NotAfter.Equal(want) {
		t.Errorf("renewed(5, 3) expires at %v, want %v", cert.NotAfter, want)
	}
}

func TestStateServes(t *testing.T) {
	m := &letsencrypt.Manager{CAs: []letsencrypt.CA{{Client: new(deadCA).client()}}}
	defer m.Shutdown(t.Context())
	text := state(3)
	if err := m.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		server, client := net.Pipe()
		go tls.Server(server, m.TLSConfig()).HandshakeContext(t.Context())
		conn := tls.Client(client, &tls.Config{ServerName: name(i), InsecureSkipVerify: true}) // a patched leaf is not signed
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Errorf("handshake for %s: %v", name(i), err)
			continue
		}
		if got := conn.ConnectionState().PeerCertificates; len(got) != 2 || got[0].DNSNames[0] != name(i) {
			t.Errorf("handshake for %s was given %d certificates, the first for %q, want 2 and its own", name(i), len(got), got[0].DNSNames)
		}
	}
	if st := m.Status(name(1)); st[0].CA != directory || st[0].Challenge != "tls-alpn-01" {
		t.Errorf("Status(%s) = CA %q, challenge %q, want %q, tls-alpn-01", name(1), st[0].CA, st[0].Challenge, directory)
	}
	if got := m.Marshal(); !strings.HasPrefix(got, text[:strings.Index(text, "\nhosts")]) {
		t.Errorf("Marshal() begins %.200q, want the certificates as they came", got)
	}
}

// A string has no capacity to look at, so it is by what was allocated for it.
func TestStateTakesItsLength(t *testing.T) {
	const n = 3000
	var text string
	_, bytes := allocations(func() { text = state(n) })
	_, without := allocations(func() { hosts.writeState(new(counter), n) })
	if got, most := bytes-without, float64(len(text))*1.02; got > most {
		t.Errorf("state(%d) takes %.0f bytes for %d, want at most %.0f", n, got, len(text), most)
	}
}
