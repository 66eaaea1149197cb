// Package challenge holds the answers to the CA's pending validations, and
// gives each only to who asks for it the way a validation does.
package challenge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The types of challenges that answers are kept for.
const (
	TLSALPN01 = "tls-alpn-01"    // RFC 8737
	HTTP01    = "http-01"        // RFC 8555, section 8.3
	DNS01     = "dns-01"         // RFC 8555, section 8.4
	Persist01 = "dns-persist-01" // draft-ietf-acme-dns-persist
)

// ALPNProto is the protocol that a tls-alpn-01 validation offers, alone.
const ALPNProto = "acme-tls/1"

// pathPrefix is where an http-01 validation asks.
const pathPrefix = "/.well-known/acme-challenge/"

// maxToken is longer than any CA's token.
const maxToken = 256

// Answers are the pending ones. The zero value is empty and ready; it is safe
// for concurrent use.
type Answers struct {
	pending atomic.Int64 // how many the maps hold; written under mu

	mu   sync.RWMutex // guards the maps; held for memory only
	tls  map[string]*answer
	http map[location]*answer
}

type location struct{ host, token string }

type answer struct {
	keyAuth string
	cert    *tls.Certificate
	arrived chan<- struct{}
}

func (a *answer) seen() {
	select {
	case a.arrived <- struct{}{}:
	default: // nobody waits, or is told already
	}
}

// AddTLSALPN answers tls-alpn-01 validations of the host, a canonical name or
// address, until remove is called. Each one that arrives is sent on arrived,
// which may be nil, without waiting.
func (s *Answers) AddTLSALPN(host, keyAuth string, arrived chan<- struct{}) (remove func(), err error) {
	cert, err := newCertificate(host, keyAuth)
	if err != nil {
		return nil, err
	}
	a := &answer{cert: cert, arrived: arrived}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tls == nil {
		s.tls = make(map[string]*answer)
	}
	s.tls[host] = a
	s.countLocked()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.tls[host] == a {
			delete(s.tls, host)
			s.countLocked()
		}
	}, nil
}

// AddHTTP answers http-01 validations of the host for the token until remove
// is called. Each one that arrives is sent on arrived, which may be nil,
// without waiting.
func (s *Answers) AddHTTP(host, token, keyAuth string, arrived chan<- struct{}) (remove func()) {
	a := &answer{keyAuth: keyAuth, arrived: arrived}
	at := location{host, token}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http == nil {
		s.http = make(map[location]*answer)
	}
	s.http[at] = a
	s.countLocked()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.http[at] == a {
			delete(s.http, at)
			s.countLocked()
		}
	}
}

func (s *Answers) countLocked() { s.pending.Store(int64(len(s.tls) + len(s.http))) }

// Any reports whether any answer is pending. Mostly none is, and then whoever
// asks for one can be turned away unread.
func (s *Answers) Any() bool { return s.pending.Load() > 0 }

// TLSALPN returns the certificate that answers a validation of the host, nil
// if none is pending.
func (s *Answers) TLSALPN(host string) *tls.Certificate {
	if !s.Any() {
		return nil
	}
	s.mu.RLock()
	a := s.tls[host]
	s.mu.RUnlock()
	if a == nil {
		return nil
	}
	a.seen()
	return a.cert
}

// HTTP returns the key authorization that answers a validation of the host
// with the token, and whether one is pending. Nothing of it is ever made from
// the request, which RFC 8555, section 8.3 warns against.
func (s *Answers) HTTP(host, token string) (keyAuth string, ok bool) {
	if !s.Any() {
		return "", false
	}
	s.mu.RLock()
	a := s.http[location{host, token}]
	s.mu.RUnlock()
	if a == nil {
		return "", false
	}
	a.seen()
	return a.keyAuth, true
}

// IsValidation reports whether a hello is a tls-alpn-01 validation: one that
// offers its protocol and no other (RFC 8737, section 4).
func IsValidation(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == ALPNProto
}

// Token returns the token that an http-01 validation asks for at the path, and
// whether the path is one that such a validation may ask for.
func Token(path string) (token string, ok bool) {
	token, ok = strings.CutPrefix(path, pathPrefix)
	if !ok || token == "" || len(token) > maxToken {
		return "", false
	}
	for i := range len(token) {
		c := token[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return "", false
		}
	}
	return token, true
}

// acmeIdentifier is id-pe-acmeIdentifier (RFC 8737, section 6.1).
var acmeIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

// newCertificate returns the self-signed certificate of RFC 8737, section 3.
func newCertificate(host, keyAuth string) (*tls.Certificate, error) {
	digest := sha256.Sum256([]byte(keyAuth))
	value, err := asn1.Marshal(digest[:])
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:    big.NewInt(1),
		NotBefore:       now.Add(-time.Hour),
		NotAfter:        now.Add(24 * time.Hour),
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		ExtraExtensions: []pkix.Extension{{Id: acmeIdentifier, Critical: true, Value: value}},
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
