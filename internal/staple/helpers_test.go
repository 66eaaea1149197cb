package staple

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// A party has a certificate and its key.
type party struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newParty issues a certificate as template says, which is valid for the hour
// before now and the next hundred unless it says otherwise. A nil issuer makes
// a root.
func newParty(tb testing.TB, issuer *party, template x509.Certificate) *party {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(100*time.Hour)
	}
	return certify(tb, issuer, key, template)
}

func certify(tb testing.TB, issuer *party, key *ecdsa.PrivateKey, template x509.Certificate) *party {
	tb.Helper()
	p := &party{&template, key}
	if issuer == nil {
		issuer = p
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		tb.Fatal(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	return p
}

func newCA(tb testing.TB, issuer *party, name string) *party {
	tb.Helper()
	return newParty(tb, issuer, x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
}

func newLeaf(tb testing.TB, issuer *party, serial int64) *party {
	tb.Helper()
	return newParty(tb, issuer, x509.Certificate{
		SerialNumber: big.NewInt(serial),
		DNSNames:     []string{"example.com"},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// delegateTemplate is that of a certificate which entitles to sign responses.
func delegateTemplate() x509.Certificate {
	return x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "delegate"},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
	}
}

// A reply is what a responder says: by default that the certificate is good,
// from an hour ago to a day from now.
type reply struct {
	about  *big.Int // serial number
	issuer *party   // of the certificate that it is about
	signer *party   // nil: issuer
	name   *party   // whose name it gives as the responder's; nil: signer
	embed  *party   // whose certificate is in it; nil: nobody's

	status     int
	now        time.Time     // zero: by the clock
	this, next time.Duration // from now; 0: the default
	endless    bool          // without nextUpdate
	hash       crypto.Hash   // of the CertID; 0: SHA-1
	algorithm  x509.SignatureAlgorithm
	extensions []pkix.Extension
}

func (r reply) der(tb testing.TB) []byte {
	tb.Helper()
	now := r.now
	if now.IsZero() {
		now = time.Now()
	}
	template := ocsp.Response{
		Status:             r.status,
		SerialNumber:       r.about,
		ThisUpdate:         now.Add(cmp.Or(r.this, -time.Hour)).Truncate(time.Second),
		RevokedAt:          now.Add(-2 * time.Hour).Truncate(time.Second),
		RevocationReason:   ocsp.KeyCompromise,
		IssuerHash:         r.hash,
		SignatureAlgorithm: r.algorithm,
		ExtraExtensions:    r.extensions,
	}
	if !r.endless {
		template.NextUpdate = now.Add(cmp.Or(r.next, 24*time.Hour)).Truncate(time.Second)
	}
	if r.embed != nil {
		template.Certificate = r.embed.cert
	}
	signer := cmp.Or(r.signer, r.issuer)
	der, err := ocsp.CreateResponse(r.issuer.cert, cmp.Or(r.name, signer).cert, template, signer.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// isError reports whether the text of err has want in it, or, for an empty
// want, whether err is nil.
func isError(err error, want string) bool {
	if err == nil || want == "" {
		return err == nil && want == ""
	}
	return strings.Contains(err.Error(), want)
}
