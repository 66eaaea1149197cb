// Package owned keeps the certificates that a program brought itself, each
// under every name it is good for, until it expires.
package owned

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/hostname"
	"example.com/letsencrypt/internal/table"
)

// A Set of certificates. The zero Set is empty and ready; it is safe for
// concurrent use, and reading it takes no lock.
type Set struct {
	any    atomic.Bool
	byName table.Table[tls.Certificate]

	mu   sync.Mutex // guards list
	list []entry
}

type entry struct {
	cert  *tls.Certificate
	names []string
}

// Add adds a certificate, in place of earlier ones for its names, and returns it
// as it is served. Its leaf must match its key.
func (s *Set) Add(cert tls.Certificate, now time.Time) (*tls.Certificate, error) {
	if len(cert.Certificate) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	if !now.Before(leaf.NotAfter) {
		return nil, fmt.Errorf("it expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := matches(leaf, cert.PrivateKey); err != nil {
		return nil, err
	}
	names := certs.Names(leaf)
	if len(names) == 0 {
		return nil, errors.New("it names no host")
	}
	cert.Leaf = leaf
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		s.byName.Set(name, &cert)
	}
	s.list = append(s.list, entry{&cert, names})
	s.any.Store(true)
	return &cert, nil
}

func matches(leaf *x509.Certificate, key crypto.PrivateKey) error {
	signer, ok := key.(crypto.Signer)
	if !ok {
		return errors.New("there is no key in it that can sign")
	}
	pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(signer.Public()) {
		return errors.New("its key is not the certificate's")
	}
	return nil
}

// Covers reports whether there is a certificate for a name in any spelling.
func (s *Set) Covers(name string) bool { return s.any.Load() && s.covers(name) }

func (s *Set) covers(name string) bool {
	var buf [hostname.MaxLen]byte
	b, err := hostname.AppendCanonical(buf[:0], name)
	if err != nil {
		return false
	}
	if s.byName.GetBytes(b) != nil {
		return true
	}
	wild, ok := hostname.WildcardInPlace(b)
	return ok && s.byName.GetBytes(wild) != nil
}

// Get returns the certificate for a canonical name: its own, or that of the
// wildcard above it. It is nil if there is none.
func (s *Set) Get(name string) *tls.Certificate {
	if !s.any.Load() {
		return nil
	}
	if cert := s.byName.Get(name); cert != nil {
		return cert
	}
	var buf [hostname.MaxLen]byte
	if wild, ok := hostname.AppendWildcard(buf[:0], name); ok {
		return s.byName.GetBytes(wild)
	}
	return nil
}

// Certificates returns the certificates that are served.
func (s *Set) Certificates() []*tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	var certs []*tls.Certificate
	for _, e := range s.list {
		if s.servesLocked(e) {
			certs = append(certs, e.cert)
		}
	}
	return certs
}

func (s *Set) servesLocked(e entry) bool {
	for _, name := range e.names {
		if s.byName.Get(name) == e.cert {
			return true
		}
	}
	return false
}

// Replace has a certificate that was added served with other contents, a new
// OCSP response for one. It reports whether old was still there.
func (s *Set) Replace(old, cert *tls.Certificate) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, e := range s.list {
		if e.cert != old || !s.servesLocked(e) {
			continue
		}
		for _, name := range e.names {
			if s.byName.Get(name) == old {
				s.byName.Set(name, cert)
			}
		}
		s.list[i].cert = cert
		return true
	}
	return false
}

// Expire takes out what has expired and returns the names that were served
// with it.
func (s *Set) Expire(now time.Time) (names []string) {
	if !s.any.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []entry
	for _, e := range s.list {
		if now.Before(e.cert.Leaf.NotAfter) {
			left = append(left, e)
			continue
		}
		for _, name := range e.names {
			if s.byName.Get(name) == e.cert {
				s.byName.Delete(name)
				names = append(names, name)
			}
		}
	}
	s.list = left
	s.any.Store(len(left) > 0)
	return names
}

// Next returns when the first of the certificates expires, zero if there is
// none.
func (s *Set) Next() time.Time {
	if !s.any.Load() {
		return time.Time{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var first time.Time
	for _, e := range s.list {
		if first.IsZero() || e.cert.Leaf.NotAfter.Before(first) {
			first = e.cert.Leaf.NotAfter
		}
	}
	return first
}

// All yields the names that certificates are served for, and those.
func (s *Set) All() iter.Seq2[string, *tls.Certificate] { return s.byName.All() }
