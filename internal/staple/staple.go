// Package staple fetches and verifies OCSP responses (RFC 6960, RFC 5019) to
// staple to certificates.
//
// It has no state and sets no pace: who calls decides when to ask, and keeps
// what it gets.
package staple

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	// clockSkew is by how much a responder's clock may be ahead of ours.
	// Responders sign on demand, so that a response is often a second old.
	clockSkew = 5 * time.Minute

	// longestLife bounds how long we believe a responder before we ask again.
	// The CA/Browser Forum lets no response live for more than ten days; a
	// private CA's may live for years, in which we would not learn of a
	// revocation.
	longestLife = 10 * 24 * time.Hour

	// assumedLife is that of a response that does not tell its own. By RFC 6960
	// section 4.2.2.1 a newer one is there at any time.
	assumedLife = 24 * time.Hour
)

// A Response is what a certificate's responder says of it, verified.
type Response struct {
	DER       []byte
	Revoked   bool
	RevokedAt time.Time // zero unless Revoked
	Reason    int       // of the revocation, as in RFC 5280 section 5.3.1

	ThisUpdate time.Time

	// NextUpdate is when the response ceases to hold: when the responder said,
	// or earlier, when the certificate expires that the responder signs with.
	// It is zero if the responder did not say.
	NextUpdate time.Time
}

// Fresh reports whether r may be stapled at the time now: it says good, and now
// is between thisUpdate, less a little clock skew, and nextUpdate. A response
// without nextUpdate is never fresh: RFC 5019 section 2.2.4 demands one, and
// clients disagree on how long they believe it without.
func (r *Response) Fresh(now time.Time) bool {
	return !r.Revoked && !r.isEarly(now) && now.Before(r.NextUpdate)
}

// RefreshAt returns when to ask for the next response: half-way between
// thisUpdate and nextUpdate, from a twentieth of that time earlier to a
// twentieth later as u goes from 0 to 1. It is no later than six days after
// thisUpdate, however long the response lives, and within 14 hours if it does
// not say.
//
// It may be in the past: a responder may hand out what it signed days ago, and
// once more when asked again.
func (r *Response) RefreshAt(u float64) time.Time {
	life := assumedLife
	if !r.NextUpdate.IsZero() {
		life = min(r.NextUpdate.Sub(r.ThisUpdate), longestLife)
	}
	return r.ThisUpdate.Add(time.Duration((0.45 + u/10) * float64(life)))
}

func (r *Response) isEarly(now time.Time) bool {
	return now.Add(clockSkew).Before(r.ThisUpdate)
}

// Parse verifies der as a response about leaf at the time now. The issuer is
// the certificate of the CA that signed leaf. What Parse accepts
//
//   - is a status, good or revoked, of leaf's serial number at that issuer;
//   - is signed by the issuer, or by a responder whose certificate the issuer
//     signed for that purpose and that is valid now; whether that certificate
//     is revoked itself nobody asks (RFC 6960 section 4.2.2.2.1);
//   - is neither expired nor from the future.
//
// That leaf is revoked is no error, nor is a response without nextUpdate.
func Parse(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*Response, error) {
	// The issuer is not for package ocsp to know. It would take whatever the
	// issuer signed for a responder's certificate, and refuse a response that
	// has the issuer's own with it, because that is signed by somebody else.
	resp, err := ocsp.ParseResponseForCert(der, leaf, nil)
	if err != nil {
		return nil, fmt.Errorf("parsing OCSP response: %w", err)
	}
	if err := checkSubject(resp, issuer); err != nil {
		return nil, err
	}
	signer, err := findSigner(resp, leaf, issuer, now)
	if err != nil {
		return nil, err
	}
	r := &Response{
		DER:        bytes.Clone(der),
		ThisUpdate: resp.ThisUpdate,
		NextUpdate: resp.NextUpdate,
	}
	if signer != issuer && signer.NotAfter.Before(r.NextUpdate) {
		r.NextUpdate = signer.NotAfter
	}
	if err := r.setStatus(resp); err != nil {
		return nil, err
	}
	if err := r.checkTimes(resp.ProducedAt, now); err != nil {
		return nil, err
	}
	return r, nil
}

// responseData is the signed part of a response (RFC 6960 section 4.2.1), as
// far as package ocsp does not tell of it. Package asn1 lets a SEQUENCE have
// more at its end.
type responseData struct {
	Version     int `asn1:"optional,default:0,explicit,tag:0"`
	ResponderID asn1.RawValue
	ProducedAt  time.Time `asn1:"generalized"`
	Responses   []struct{ CertID certID }
	Extensions  []pkix.Extension `asn1:"optional,explicit,tag:1"`
}

type certID struct {
	HashAlgorithm pkix.AlgorithmIdentifier
	NameHash      []byte
	KeyHash       []byte
	Serial        *big.Int
}

// checkSubject returns an error unless resp is about the certificate with its
// serial number that issuer issued. Package ocsp looks at the number alone, and
// any CA may use any. A responder may send more than it was asked for, but two
// statuses for one number leave to each client which it believes.
func checkSubject(resp *ocsp.Response, issuer *x509.Certificate) error {
	var data responseData
	if _, err := asn1.Unmarshal(resp.TBSResponseData, &data); err != nil {
		return fmt.Errorf("parsing OCSP response: %w", err)
	}
	if slices.ContainsFunc(data.Extensions, func(e pkix.Extension) bool { return e.Critical }) {
		return errors.New("OCSP response has an unknown critical extension")
	}
	var ids []certID
	for _, r := range data.Responses {
		if r.CertID.Serial.Cmp(resp.SerialNumber) == 0 {
			ids = append(ids, r.CertID)
		}
	}
	if len(ids) != 1 {
		return errors.New("OCSP response has several statuses for one serial number")
	}
	if !bytes.Equal(ids[0].NameHash, sum(resp.IssuerHash, issuer.RawSubject)) ||
		!bytes.Equal(ids[0].KeyHash, sum(resp.IssuerHash, publicKey(issuer))) {
		return errors.New("OCSP response is about a certificate of another issuer")
	}
	return nil
}

// findSigner returns the certificate of who signed resp and was entitled to:
// issuer, or its delegate, whose certificate is in resp.
func findSigner(resp *ocsp.Response, leaf, issuer *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	switch resp.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1:
		// Package x509 still accepts these here; public CAs must not make them.
		return nil, fmt.Errorf("OCSP response is signed with %v", resp.SignatureAlgorithm)
	}
	signer := issuer
	if err := resp.CheckSignatureFrom(issuer); err != nil {
		signer = resp.Certificate // package ocsp has seen that it signed resp
		if signer == nil {
			return nil, fmt.Errorf("OCSP response is not signed by %q: %w", issuer.Subject, err)
		}
		if err := checkDelegate(signer, leaf, issuer, now); err != nil {
			return nil, fmt.Errorf("OCSP response is signed by %q, which %w", signer.Subject, err)
		}
	}
	if !isResponder(resp, signer) {
		// Clients look for the signer by this name, or hash, and would find none.
		return nil, fmt.Errorf("OCSP response names another responder than its signer %q", signer.Subject)
	}
	return signer, nil
}

// checkDelegate returns an error unless delegate may sign responses about the
// issuer's certificates. Without the extended key usage every customer of the
// CA could.
func checkDelegate(delegate, leaf, issuer *x509.Certificate, now time.Time) error {
	const signing = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment // RFC 5280 section 4.2.1.12
	switch {
	case delegate.Equal(leaf):
		return errors.New("is the certificate that it is about")
	case !slices.Contains(delegate.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return errors.New("is not for signing OCSP responses")
	case delegate.KeyUsage != 0 && delegate.KeyUsage&signing == 0:
		return errors.New("is not for signatures")
	case len(delegate.UnhandledCriticalExtensions) > 0:
		return errors.New("has an unknown critical extension")
	case now.Add(clockSkew).Before(delegate.NotBefore):
		return fmt.Errorf("is not valid before %v", delegate.NotBefore)
	case now.After(delegate.NotAfter):
		return fmt.Errorf("expired at %v", delegate.NotAfter)
	case !bytes.Equal(delegate.RawIssuer, issuer.RawSubject):
		return fmt.Errorf("is issued by %q, not by %q", delegate.Issuer, issuer.Subject)
	}
	if err := delegate.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("is not issued by %q: %w", issuer.Subject, err)
	}
	return nil
}

// isResponder reports whether resp names cert as its responder. The hash of the
// key is SHA-1 always (RFC 6960 section 4.2.1).
func isResponder(resp *ocsp.Response, cert *x509.Certificate) bool {
	if resp.RawResponderName != nil {
		return bytes.Equal(resp.RawResponderName, cert.RawSubject)
	}
	return bytes.Equal(resp.ResponderKeyHash, sum(crypto.SHA1, publicKey(cert)))
}

func (r *Response) setStatus(resp *ocsp.Response) error {
	switch resp.Status {
	case ocsp.Good:
		return nil
	case ocsp.Unknown:
		return errors.New("OCSP responder does not know the certificate")
	}
	if resp.RevokedAt.IsZero() {
		// What has no status at all package ocsp takes for revoked.
		return errors.New("OCSP response has no status")
	}
	r.Revoked, r.RevokedAt, r.Reason = true, resp.RevokedAt, resp.RevocationReason
	return nil
}

func (r *Response) checkTimes(producedAt, now time.Time) error {
	switch {
	case r.isEarly(now):
		return fmt.Errorf("OCSP response is of %v, which is in the future", r.ThisUpdate)
	case now.Add(clockSkew).Before(producedAt):
		return fmt.Errorf("OCSP response was produced at %v, which is in the future", producedAt)
	case r.NextUpdate.IsZero():
		return nil
	case !r.NextUpdate.After(r.ThisUpdate):
		return fmt.Errorf("OCSP response ends at %v, before it begins at %v", r.NextUpdate, r.ThisUpdate)
	case !now.Before(r.NextUpdate):
		return fmt.Errorf("OCSP response expired at %v", r.NextUpdate)
	}
	return nil
}

// publicKey returns the key of cert as a CertID and a ResponderID hash it: the
// bits alone, without the algorithm.
func publicKey(cert *x509.Certificate) []byte {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info); err != nil {
		return nil // not of a certificate that package x509 parsed
	}
	return info.Key.RightAlign()
}

// sum returns the hash of data. Package ocsp links all that a CertID may have.
func sum(hash crypto.Hash, data []byte) []byte {
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}
