// Package certs knows facts about certificates: whether a chain is right for a
// host and its key, what else it says, and when it is due for renewal.
//
// Everything here is pure: the time and the dice are arguments. Hosts are
// canonical, as package hostname spells them.
package certs

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"example.com/letsencrypt/internal/hostname"
)

// maxSkew is how far a certificate's first moment may lie ahead of our clock.
// CAs date certificates back for clocks that are late; one ahead of a clock
// by more than this means that the clock is wrong.
const maxSkew = 5 * time.Minute

// Check parses chain, the DER of a certificate and its issuers from the leaf
// up, and returns the leaf if at the time now it is right for host and pub:
//
//   - every certificate of the chain parses;
//   - the leaf names host: a wildcard host literally, and a host that a wildcard
//     would cover by itself, as it was ordered;
//   - the leaf is neither expired nor from the future, and fit for TLS servers;
//   - its public key is pub, unless pub is nil.
//
// It does not verify signatures: who trusts the CA is for clients to say. The
// error is a sentence that names the host.
func Check(chain [][]byte, pub crypto.PublicKey, host string, now time.Time) (*x509.Certificate, error) {
	leaf, err := parse(chain)
	if err == nil {
		err = checkLeaf(leaf, pub, host, now)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", host, err)
	}
	return leaf, nil
}

func parse(chain [][]byte) (leaf *x509.Certificate, err error) {
	if len(chain) == 0 {
		return nil, errors.New("empty chain")
	}
	for i, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parsing number %d of %d in the chain: %w", i+1, len(chain), err)
		}
		if i == 0 {
			leaf = cert
		}
	}
	return leaf, nil
}

// ErrOtherKey is returned, wrapped, for a certificate that is not for our key.
var ErrOtherKey = errors.New("is not the key asked for")

func checkLeaf(leaf *x509.Certificate, pub crypto.PublicKey, host string, now time.Time) error {
	if names := subjectAltNames(leaf); !slices.Contains(names, host) {
		return fmt.Errorf("it is for %s instead", list(names))
	}
	if pub != nil && !equal(leaf.PublicKey, pub) {
		return fmt.Errorf("its key, a %s one, %w", leaf.PublicKeyAlgorithm, ErrOtherKey)
	}
	if !servesTLS(leaf) {
		return errors.New("it may not be used by TLS servers")
	}
	return checkTime(leaf, now)
}

func checkTime(leaf *x509.Certificate, now time.Time) error {
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("it expired on %s, if the clock here is right, which says %s",
			stamp(leaf.NotAfter), stamp(now))
	}
	if leaf.NotBefore.After(now.Add(maxSkew)) {
		return fmt.Errorf("it is not valid before %s, if the clock here is right, which says %s",
			stamp(leaf.NotBefore), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// list joins names for an error, a few of them: a certificate has up to a hundred.
func list(names []string) string {
	const few = 5
	switch {
	case len(names) == 0:
		return "no name"
	case len(names) > few:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
	}
	return strings.Join(names, ", ")
}

// equal reports whether two public keys are the same. All of the standard
// library have an Equal method, as do those that want to be like them.
func equal(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// servesTLS reports whether leaf allows server authentication: by name, or by
// restricting nothing (RFC 5280 section 4.2.1.12).
func servesTLS(leaf *x509.Certificate) bool {
	if len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// Names returns the hosts that leaf is for, each once: its DNS names, wildcards
// included, and its addresses. A name that is no host is left out. The common
// name counts only if there are no alternative names at all: browsers have
// stopped believing it, but programs with old private CAs bring such certificates.
func Names(leaf *x509.Certificate) []string {
	if len(leaf.DNSNames) == 0 && len(leaf.IPAddresses) == 0 {
		return canonical([]string{leaf.Subject.CommonName})
	}
	return subjectAltNames(leaf)
}

func subjectAltNames(leaf *x509.Certificate) []string {
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		if addr, ok := netip.AddrFromSlice(ip); ok {
			names = append(names, addr.String())
		}
	}
	return canonical(names)
}

// canonical returns the hosts among names, each once, in the same order.
func canonical(names []string) []string {
	var hosts []string
	for _, name := range names {
		host, err := hostname.Canonical(name)
		if err == nil && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// TopIssuer returns the common name of the issuer of the last certificate in
// chain: the root by which a CA's several chains are told apart. It is empty if
// there is none.
func TopIssuer(chain [][]byte) string {
	if len(chain) == 0 {
		return ""
	}
	top, err := x509.ParseCertificate(chain[len(chain)-1])
	if err != nil {
		return ""
	}
	return top.Issuer.CommonName
}

// ID returns the name by which a CA's renewal information knows leaf (RFC 9773
// section 4.1): the key identifier of its issuer and its serial number.
func ID(leaf *x509.Certificate) (string, error) {
	if len(leaf.AuthorityKeyId) == 0 {
		return "", errors.New("certificate without authority key identifier")
	}
	if leaf.SerialNumber == nil || leaf.SerialNumber.Sign() < 0 {
		return "", errors.New("certificate without a serial number that is positive")
	}
	// The content of a DER integer is signed: a leading bit of 1 needs a zero
	// byte before it, and zero is a byte too.
	serial := leaf.SerialNumber.Bytes()
	if leaf.SerialNumber.BitLen()%8 == 0 {
		serial = append([]byte{0}, serial...)
	}
	b64 := base64.RawURLEncoding
	return b64.EncodeToString(leaf.AuthorityKeyId) + "." + b64.EncodeToString(serial), nil
}

var oidTLSFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

// MustStaple reports whether leaf demands that it be served with an OCSP
// response: it lists status_request as a TLS feature (RFC 7633).
func MustStaple(leaf *x509.Certificate) bool {
	const statusRequest = 5
	for _, ext := range leaf.Extensions {
		if !ext.Id.Equal(oidTLSFeature) {
			continue
		}
		var features []int
		_, err := asn1.Unmarshal(ext.Value, &features)
		return err == nil && slices.Contains(features, statusRequest)
	}
	return false
}

// HasResponder reports whether leaf names a server for OCSP responses.
func HasResponder(leaf *x509.Certificate) bool { return len(leaf.OCSPServer) > 0 }
