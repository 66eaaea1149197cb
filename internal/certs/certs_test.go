package certs_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt/internal/certs"
)

var (
	now      = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	caKey    = newKey()
	leafKey  = newKey()
	otherKey = newKey()
	caCert   = newCA("Root X")
)

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func newCA(name string) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.AddDate(-1, 0, 0),
		NotAfter:              now.AddDate(1, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "Above " + name}}, caKey.Public(), caKey)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

// good is a template for a leaf that is right for www.example.com and a few
// other hosts at the time now.
func good() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(0x87654321),
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.AddDate(0, 0, 90),
		DNSNames:     []string{"www.example.com", "*.example.com"},
		IPAddresses:  []net.IP{net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1")},
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

// chainOf returns the chain of a leaf made from tmpl for leafKey.
func chainOf(tb testing.TB, tmpl *x509.Certificate) [][]byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, caCert, leafKey.Public(), caKey)
	if err != nil {
		tb.Fatal(err)
	}
	return [][]byte{der, caCert.Raw}
}

func leafOf(tb testing.TB, tmpl *x509.Certificate) *x509.Certificate {
	tb.Helper()
	leaf, err := x509.ParseCertificate(chainOf(tb, tmpl)[0])
	if err != nil {
		tb.Fatal(err)
	}
	return leaf
}

func TestCheck(t *testing.T) {
	chain := chainOf(t, good())
	for _, host := range []string{"www.example.com", "*.example.com", "192.0.2.1", "2001:db8::1"} {
		leaf, err := certs.Check(chain, leafKey.Public(), host, now)
		if err != nil || !slices.Equal(leaf.Raw, chain[0]) {
			t.Errorf("Check(%s) = %v, want the leaf", host, err)
		}
		if _, err := certs.Check(chain, nil, host, now); err != nil {
			t.Errorf("Check(%s) without a key = %v, want the leaf", host, err)
		}
	}
}

// refuse checks that Check refuses chain in a sentence with the words want.
func refuse(t *testing.T, chain [][]byte, pub crypto.PublicKey, host string, at time.Time, want string) {
	t.Helper()
	leaf, err := certs.Check(chain, pub, host, at)
	if err == nil || leaf != nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), host) {
		t.Errorf("Check(%s) = %v, %v, want an error that names the host and says %q", host, leaf != nil, err, want)
	}
}

func TestCheckRefusesChain(t *testing.T) {
	chain := chainOf(t, good())
	const host = "www.example.com"
	refuse(t, nil, leafKey.Public(), host, now, "empty chain")
	refuse(t, [][]byte{nil}, leafKey.Public(), host, now, "number 1 of 1")
	refuse(t, [][]byte{chain[0], chain[1], []byte("junk")}, leafKey.Public(), host, now, "number 3 of 3")
	refuse(t, [][]byte{append(slices.Clone(chain[0]), 0)}, leafKey.Public(), host, now, "number 1 of 1")
}

func TestCheckRefusesHost(t *testing.T) {
	chain := chainOf(t, good())
	for _, host := range []string{"example.com", "a.example.com", "*.www.example.com", "192.0.2.2", "2001:db8::2", ""} {
		refuse(t, chain, leafKey.Public(), host, now, "it is for www.example.com, *.example.com, 192.0.2.1, 2001:db8::1 instead")
	}
	many := good()
	many.DNSNames = []string{"a.test", "b.test", "c.test", "d.test", "e.test", "f.test"}
	refuse(t, chainOf(t, many), leafKey.Public(), "www.test", now, "it is for a.test, b.test, c.test, d.test, e.test and 3 more instead")
	nameless := good()
	nameless.DNSNames, nameless.IPAddresses = nil, nil
	nameless.Subject.CommonName = "www.example.com"
	refuse(t, chainOf(t, nameless), leafKey.Public(), "www.example.com", now, "it is for no name instead")
}

func TestCheckRefusesKey(t *testing.T) {
	chain := chainOf(t, good())
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, pub := range []crypto.PublicKey{otherKey.Public(), edKey, "no key"} {
		refuse(t, chain, pub, "www.example.com", now, "ECDSA one, is not the key asked for")
	}
}

func TestCheckTimes(t *testing.T) {
	const skew = 5 * time.Minute
	tmpl := good()
	chain := chainOf(t, tmpl)
	for _, at := range []time.Time{tmpl.NotBefore, tmpl.NotAfter, tmpl.NotBefore.Add(-skew)} {
		if _, err := certs.Check(chain, nil, "www.example.com", at); err != nil {
			t.Errorf("Check at %v = %v, want the leaf", at, err)
		}
	}
	refuse(t, chain, nil, "www.example.com", tmpl.NotAfter.Add(time.Second),
		"expired on 2027-02-19T12:00:00Z, if the clock here is right, which says 2027-02-19T12:00:01Z")
	refuse(t, chain, nil, "www.example.com", tmpl.NotBefore.Add(-skew-time.Second),
		"not valid before 2026-11-21T11:00:00Z, if the clock here is right, which says 2026-11-21T10:54:59Z")
}

func TestCheckUsage(t *testing.T) {
	const host = "www.example.com"
	check := func(usage []x509.ExtKeyUsage, unknown ...asn1.ObjectIdentifier) error {
		tmpl := good()
		tmpl.ExtKeyUsage, tmpl.UnknownExtKeyUsage = usage, unknown
		_, err := certs.Check(chainOf(t, tmpl), nil, host, now)
		return err
	}
	for _, usage := range [][]x509.ExtKeyUsage{nil, {x509.ExtKeyUsageAny}, {x509.ExtKeyUsageServerAuth}} {
		if err := check(usage); err != nil {
			t.Errorf("Check with usages %v = %v, want the leaf", usage, err)
		}
	}
	if err := check([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}); err == nil {
		t.Error("Check of a client certificate = nil, want an error")
	}
	if err := check(nil, asn1.ObjectIdentifier{1, 2, 3}); err == nil {
		t.Error("Check of a certificate for an unknown usage only = nil, want an error")
	}
}

func TestNames(t *testing.T) {
	tests := []struct {
		dns  []string
		ips  []net.IP
		cn   string
		want []string
	}{
		{dns: []string{"www.Example.com", "*.EXAMPLE.com"}, want: []string{"www.example.com", "*.example.com"}},
		{dns: []string{"a.test", "a.test", "A.test"}, want: []string{"a.test"}},
		{dns: []string{"a.test", "under_score.test"}, want: []string{"a.test"}},
		{dns: []string{"a.test"}, ips: []net.IP{{192, 0, 2, 1}}, want: []string{"a.test", "192.0.2.1"}},
		{ips: []net.IP{net.ParseIP("2001:db8::1")}, want: []string{"2001:db8::1"}},
		{dns: []string{"a.test"}, cn: "b.test", want: []string{"a.test"}},
		{ips: []net.IP{{192, 0, 2, 1}}, cn: "b.test", want: []string{"192.0.2.1"}},
		{cn: "B.test", want: []string{"b.test"}},
		{cn: "My Router", want: nil},
		{want: nil},
	}
	for _, tt := range tests {
		tmpl := good()
		tmpl.DNSNames, tmpl.IPAddresses, tmpl.Subject.CommonName = tt.dns, tt.ips, tt.cn
		if got := certs.Names(leafOf(t, tmpl)); !slices.Equal(got, tt.want) {
			t.Errorf("Names(%v, %v, CN %q) = %q, want %q", tt.dns, tt.ips, tt.cn, got, tt.want)
		}
	}
}

func TestTopIssuer(t *testing.T) {
	chain := chainOf(t, good())
	if got := certs.TopIssuer(chain); got != "Above Root X" {
		t.Errorf("TopIssuer(leaf, CA) = %q, want %q", got, "Above Root X")
	}
	if got := certs.TopIssuer(chain[:1]); got != "Root X" {
		t.Errorf("TopIssuer(leaf) = %q, want %q", got, "Root X")
	}
	for _, chain := range [][][]byte{nil, {[]byte("junk")}} {
		if got := certs.TopIssuer(chain); got != "" {
			t.Errorf("TopIssuer(%q) = %q, want none", chain, got)
		}
	}
}

// TestID has the example of RFC 9773 section 4.1 and serial numbers around the
// places where a DER integer grows by a byte.
func TestID(t *testing.T) {
	keyID := []byte{
		0x69, 0x88, 0x5B, 0x6B, 0x87, 0x46, 0x40, 0x41, 0xE1, 0xB3,
		0x7B, 0x84, 0x7B, 0xA0, 0xAE, 0x2C, 0xDE, 0x01, 0xC8, 0xD4,
	}
	tests := []struct {
		serial int64
		want   string
	}{
		{0x87654321, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"},
		{0, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AA"},      // 00
		{0x7f, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.fw"},   // 7f
		{0x80, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIA"},  // 00 80
		{0xff, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AP8"},  // 00 ff
		{0x100, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AQA"}, // 01 00
	}
	for _, tt := range tests {
		leaf := &x509.Certificate{AuthorityKeyId: keyID, SerialNumber: big.NewInt(tt.serial)}
		if got, err := certs.ID(leaf); got != tt.want || err != nil {
			t.Errorf("ID(serial %#x) = %q, %v, want %q", tt.serial, got, err, tt.want)
		}
	}
	for _, leaf := range []*x509.Certificate{
		{SerialNumber: big.NewInt(1)},
		{AuthorityKeyId: keyID},
		{AuthorityKeyId: keyID, SerialNumber: big.NewInt(-1)},
	} {
		if got, err := certs.ID(leaf); got != "" || err == nil {
			t.Errorf("ID(%x, serial %v) = %q, want an error", leaf.AuthorityKeyId, leaf.SerialNumber, got)
		}
	}
}

// TestIDOfParsed: what ID takes apart is what is in the DER.
func TestIDOfParsed(t *testing.T) {
	leaf := leafOf(t, good())
	got, err := certs.ID(leaf)
	if _, serial, _ := strings.Cut(got, "."); serial != "AIdlQyE" || err != nil {
		t.Errorf("ID = %q, %v, want it to end in .AIdlQyE", got, err)
	}
}

func TestMustStaple(t *testing.T) {
	feature := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}
	tests := []struct {
		id    asn1.ObjectIdentifier
		value []byte
		want  bool
	}{
		{feature, []byte{0x30, 3, 2, 1, 5}, true},
		{feature, []byte{0x30, 6, 2, 1, 17, 2, 1, 5}, true},
		{feature, []byte{0x30, 3, 2, 1, 17}, false},
		{feature, []byte{0x30, 0}, false},
		{feature, []byte{0x30, 9}, false},
		{asn1.ObjectIdentifier{1, 2, 3}, []byte{0x30, 3, 2, 1, 5}, false},
	}
	for _, tt := range tests {
		tmpl := good()
		tmpl.ExtraExtensions = []pkix.Extension{{Id: tt.id, Value: tt.value}}
		if got := certs.MustStaple(leafOf(t, tmpl)); got != tt.want {
			t.Errorf("MustStaple(%v: %x) = %v, want %v", tt.id, tt.value, got, tt.want)
		}
	}
	if certs.MustStaple(leafOf(t, good())) {
		t.Error("MustStaple(no extension) = true, want false")
	}
}

func TestHasResponder(t *testing.T) {
	tmpl := good()
	if certs.HasResponder(leafOf(t, tmpl)) {
		t.Error("HasResponder(none) = true, want false")
	}
	tmpl.OCSPServer = []string{"http://ocsp.test"}
	if !certs.HasResponder(leafOf(t, tmpl)) {
		t.Error("HasResponder(http://ocsp.test) = false, want true")
	}
}

// FuzzCheck: whatever a CA sends, the answer is a leaf that names the host and
// lives, or an error.
func FuzzCheck(f *testing.F) {
	chain := chainOf(f, good())
	f.Add(chain[0], chain[1], "www.example.com")
	f.Add(chain[0], []byte(nil), "*.example.com")
	f.Add(chain[1], chain[0], "192.0.2.1")
	f.Fuzz(func(t *testing.T, der, issuer []byte, host string) {
		leaf, err := certs.Check([][]byte{der, issuer}, leafKey.Public(), host, now)
		if (leaf == nil) != (err != nil) {
			t.Fatalf("Check = %v, %v, want one of them", leaf, err)
		}
		if err == nil && !slices.Contains(certs.Names(leaf), host) {
			t.Errorf("Check(%q) = nil, but the names are %q", host, certs.Names(leaf))
		}
		certs.TopIssuer([][]byte{der})
		if leaf, err := x509.ParseCertificate(der); err == nil {
			certs.Names(leaf)
			certs.ID(leaf)
			certs.MustStaple(leaf)
		}
	})
}
