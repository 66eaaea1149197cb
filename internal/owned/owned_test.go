package owned

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt/internal/certs"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// newCert returns a certificate for the names that expires after the given time.
func newCert(t *testing.T, expires time.Duration, names ...string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(expires)}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return sign(t, template)
}

func sign(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// add adds a certificate and returns the names it is served for, sorted.
func add(t *testing.T, s *Set, cert tls.Certificate) []string {
	t.Helper()
	added, err := s.Add(cert, now)
	if err != nil {
		t.Fatalf("Add: %v", err)
	}
	return slices.Sorted(slices.Values(certs.Names(added.Leaf)))
}

// wantServed checks what is served for a name: one of the certificates, or
// nothing if that is the zero Certificate.
func wantServed(t *testing.T, s *Set, name string, want tls.Certificate) {
	t.Helper()
	for _, spelled := range []string{name, strings.ToUpper(name)} {
		if got, want := s.Covers(spelled), want.Certificate != nil; got != want {
			t.Errorf("Covers(%q) = %t, want %t", spelled, got, want)
		}
	}
	got := s.Get(name)
	if got == nil && want.Certificate == nil {
		return
	}
	if got == nil || want.Certificate == nil || string(got.Certificate[0]) != string(want.Certificate[0]) {
		t.Errorf("Get(%q) = %s, want %s", name, describe(got), describe(&want))
	}
}

func describe(c *tls.Certificate) string {
	if c == nil || len(c.Certificate) == 0 {
		return "none"
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("one for %q until %v", leaf.DNSNames, leaf.NotAfter)
}

func TestGet(t *testing.T) {
	var s Set
	exact := newCert(t, time.Hour, "a.example.com", "192.0.2.1", "2001:db8::1")
	wild := newCert(t, time.Hour, "*.example.com", "Other.Example.ORG")
	none := tls.Certificate{}
	wantServed(t, &s, "a.example.com", none)
	add(t, &s, exact)
	add(t, &s, wild)
	for name, want := range map[string]tls.Certificate{
		"a.example.com":     exact,
		"192.0.2.1":         exact,
		"2001:db8::1":       exact,
		"b.example.com":     wild,
		"*.example.com":     wild,
		"other.example.org": wild,
		"example.com":       none,
		"x.b.example.com":   none,
		"example.org":       none,
		"192.0.2.2":         none,
		"com":               none,
		"":                  none,
	} {
		wantServed(t, &s, name, want)
	}
}

func TestAddReturnsTheNames(t *testing.T) {
	var s Set
	got := add(t, &s, newCert(t, time.Hour, "B.example.com", "*.example.com", "a.example.com", "no host", "192.0.2.1", "b.example.com"))
	want := []string{"*.example.com", "192.0.2.1", "a.example.com", "b.example.com"}
	if !slices.Equal(got, want) {
		t.Errorf("Add = %q, want %q", got, want)
	}
	var served []string
	for name, cert := range s.All() {
		served = append(served, name)
		if cert.Leaf == nil {
			t.Errorf("the certificate for %s has no Leaf", name)
		}
	}
	if slices.Sort(served); !slices.Equal(served, want) {
		t.Errorf("All has %q, want %q", served, want)
	}
}

func TestCommonNameWithoutAlternatives(t *testing.T) {
	var s Set
	cert := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "old.example.com"},
		NotAfter:     now.Add(time.Hour),
	})
	add(t, &s, cert)
	wantServed(t, &s, "old.example.com", cert)
}

func TestAddRefuses(t *testing.T) {
	good := newCert(t, time.Hour, "a.example.com")
	for _, tt := range []struct {
		name string
		cert tls.Certificate
		want string // in the error
	}{
		{"nothing", tls.Certificate{}, "no certificate"},
		{"key alone", tls.Certificate{PrivateKey: good.PrivateKey}, "no certificate"},
		{"rubbish", tls.Certificate{Certificate: [][]byte{{1, 2, 3}}, PrivateKey: good.PrivateKey}, "x509"},
		{"no key", tls.Certificate{Certificate: good.Certificate}, "no key"},
		{"a key that can't sign", tls.Certificate{Certificate: good.Certificate, PrivateKey: "key"}, "no key"},
		{"another key", tls.Certificate{Certificate: good.Certificate, PrivateKey: newCert(t, time.Hour, "x").PrivateKey}, "not the certificate's"},
		{"a key of another kind", tls.Certificate{Certificate: good.Certificate, PrivateKey: strange{}}, "not the certificate's"},
		{"expired", newCert(t, -time.Second, "a.example.com"), "2026-11-01T11:59:59Z"},
		{"expired just now", newCert(t, 0, "a.example.com"), "expired"},
		{"no names", newCert(t, time.Hour), "no host"},
		{"no hosts", newCert(t, time.Hour, "a b", "a..b"), "no host"},
	} {
		var s Set
		_, err := s.Add(tt.cert, now)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Add of %s = %v, want an error with %q", tt.name, err, tt.want)
		}
		if len(s.Certificates()) > 0 {
			t.Errorf("Add of %s adds it", tt.name)
		}
	}
}

// strange is a signer whose public key is of no type that certificates have.
type strange struct{ crypto.Signer }

func (strange) Public() crypto.PublicKey { return "public" }

func TestTheLaterAdded(t *testing.T) {
	var s Set
	// It is the later call that counts, not the later to expire.
	first := newCert(t, 2*time.Hour, "a.example.com", "b.example.com", "*.c.example.com")
	second := newCert(t, time.Hour, "b.example.com", "x.c.example.com")
	add(t, &s, first)
	add(t, &s, second)
	wantServed(t, &s, "a.example.com", first)
	wantServed(t, &s, "b.example.com", second)
	wantServed(t, &s, "x.c.example.com", second)
	wantServed(t, &s, "y.c.example.com", first)
}

func TestExpire(t *testing.T) {
	var s Set
	if got := s.Expire(now); got != nil {
		t.Errorf("Expire of nothing = %q", got)
	}
	short := newCert(t, time.Hour, "a.example.com", "b.example.com")
	long := newCert(t, 3*time.Hour, "b.example.com", "c.example.com")
	add(t, &s, short)
	add(t, &s, long)
	for _, tt := range []struct {
		after time.Duration
		want  []string
		any   bool
	}{
		{time.Hour - time.Second, nil, true},
		{time.Hour, []string{"a.example.com"}, true}, // b's is the long one
		{2 * time.Hour, nil, true},
		{3 * time.Hour, []string{"b.example.com", "c.example.com"}, false},
		{4 * time.Hour, nil, false},
	} {
		got := s.Expire(now.Add(tt.after))
		if slices.Sort(got); !slices.Equal(got, tt.want) || s.any.Load() != tt.any {
			t.Errorf("Expire after %v = %q, and Any = %v, want %q and %v", tt.after, got, s.any.Load(), tt.want, tt.any)
		}
	}
	wantServed(t, &s, "b.example.com", tls.Certificate{})
	add(t, &s, short)
	wantServed(t, &s, "b.example.com", short)
}

func TestWhatWasReplacedIsNotServedAgain(t *testing.T) {
	var s Set
	add(t, &s, newCert(t, 2*time.Hour, "a.example.com"))
	add(t, &s, newCert(t, time.Hour, "a.example.com"))
	if got := s.Expire(now.Add(time.Hour)); !slices.Equal(got, []string{"a.example.com"}) {
		t.Errorf("Expire = %q, want the name", got)
	}
	wantServed(t, &s, "a.example.com", tls.Certificate{})
	if got := s.Expire(now.Add(2 * time.Hour)); len(got) > 0 || s.any.Load() {
		t.Errorf("Expire of what was replaced = %q, and Any = %v, want neither", got, s.any.Load())
	}
}

func TestConcurrentUse(t *testing.T) {
	var s Set
	certs := []tls.Certificate{
		newCert(t, time.Hour, "a.example.com", "*.example.com"),
		newCert(t, 2*time.Hour, "a.example.com", "b.example.com"),
	}
	var running sync.WaitGroup
	for i := range 4 {
		running.Go(func() {
			for n := range 200 {
				switch i {
				case 0:
					s.Expire(now.Add(time.Duration(n%3) * time.Hour))
				case 1:
					if _, err := s.Add(certs[n%2], now); err != nil {
						t.Errorf("Add: %v", err)
					}
				default:
					if cert := s.Get("a.example.com"); cert != nil && cert.Leaf == nil {
						t.Error("Get returns a certificate that is half made")
					}
					for range s.All() {
						break
					}
				}
			}
		})
	}
	running.Wait()
	s.Expire(now.Add(3 * time.Hour))
	if s.any.Load() || s.Get("a.example.com") != nil {
		t.Error("something is left of what has expired")
	}
}

func TestGetDoesNotAllocate(t *testing.T) {
	var s Set
	add(t, &s, newCert(t, time.Hour, "a.example.com", "*.example.com"))
	if n := testing.AllocsPerRun(100, func() {
		s.Get("a.example.com")
		s.Get("b.example.com")
		s.Get("c.example.org")
	}); n > 0 {
		t.Errorf("Get allocates %v times, want 0", n)
	}
}
