package staple

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// What package ocsp can't make is made here, signed well: a CA may err, too.

// A forgery is the signed part of a response, with whatever in it.
type forgery struct {
	ResponderID asn1.RawValue
	ProducedAt  time.Time `asn1:"generalized"`
	Responses   []asn1.RawValue
	Extensions  []pkix.Extension `asn1:"optional,omitempty,explicit,tag:1"`
}

// A single is what the CA says of one certificate; without Good, nothing.
type single struct {
	ID         certID
	Good       asn1.Flag `asn1:"optional,tag:0"`
	ThisUpdate time.Time `asn1:"generalized"`
	NextUpdate time.Time `asn1:"generalized,optional,explicit,tag:0"`
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func newID(issuer *party, serial int64) certID {
	return certID{
		HashAlgorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, Parameters: asn1.NullRawValue},
		NameHash:      sum(crypto.SHA1, issuer.cert.RawSubject),
		KeyHash:       sum(crypto.SHA1, publicKey(issuer.cert)),
		Serial:        big.NewInt(serial),
	}
}

// newForgery returns what is a good response if singles are.
func newForgery(tb testing.TB, ca *party, singles ...single) forgery {
	tb.Helper()
	return newForgeryAt(tb, time.Now(), ca, singles...)
}

func newForgeryAt(tb testing.TB, now time.Time, ca *party, singles ...single) forgery {
	tb.Helper()
	f := forgery{
		ResponderID: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: ca.cert.RawSubject},
		ProducedAt:  now.UTC(),
	}
	for _, s := range singles {
		s.ThisUpdate, s.NextUpdate = now.UTC(), now.Add(time.Hour).UTC()
		f.Responses = append(f.Responses, asn1.RawValue{FullBytes: marshal(tb, s)})
	}
	return f
}

// sign returns the response.
func (f forgery) sign(tb testing.TB, ca *party) []byte {
	tb.Helper()
	return signRaw(tb, marshal(tb, f), ca)
}

// signRaw returns the response of which tbs is the signed part.
func signRaw(tb testing.TB, tbs []byte, ca *party) []byte {
	tb.Helper()
	digest := sha256.Sum256(tbs)
	sig, err := ca.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		tb.Fatal(err)
	}
	basic := marshal(tb, struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)},
	})
	type body struct {
		Type  asn1.ObjectIdentifier
		Basic []byte
	}
	return marshal(tb, struct {
		Status asn1.Enumerated
		Body   body `asn1:"explicit,tag:0"`
	}{0, body{asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}, basic}})
}

func TestParseStrange(t *testing.T) {
	ca, other := newCA(t, nil, "ca"), newCA(t, nil, "other")
	leaf := newLeaf(t, ca, 7)
	good := single{ID: newID(ca, 7), Good: true}
	neighbour := single{ID: newID(ca, 8), Good: true}
	elsewhere := single{ID: newID(other, 7), Good: true}
	check := func(name string, f forgery, want string) {
		t.Helper()
		if _, err := Parse(f.sign(t, ca), leaf.cert, ca.cert, time.Now()); !isError(err, want) {
			t.Errorf("%s: Parse = %v, want error with %q", name, err, want)
		}
	}
	check("good", newForgery(t, ca, good), "")
	check("a neighbour's too", newForgery(t, ca, neighbour, good), "")
	check("a neighbour's alone", newForgery(t, ca, neighbour), "no response matching")
	check("two statuses", newForgery(t, ca, good, good), "several statuses")
	check("another CA's before it", newForgery(t, ca, elsewhere, good), "several statuses")
	check("none", newForgery(t, ca), "bad number of responses")
	check("no status", newForgery(t, ca, single{ID: newID(ca, 7)}), "no status")

	wrongKey := newID(ca, 7)
	wrongKey.KeyHash = newID(other, 7).KeyHash
	check("another key", newForgery(t, ca, single{ID: wrongKey, Good: true}), "another issuer")
	wrongName := newID(ca, 7)
	wrongName.NameHash = newID(other, 7).NameHash
	check("another name", newForgery(t, ca, single{ID: wrongName, Good: true}), "another issuer")

	f := newForgery(t, ca, good)
	nonce := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}, Value: []byte{4, 1, 0}}
	f.Extensions = []pkix.Extension{nonce}
	check("an extension", f, "")
	nonce.Critical = true
	f.Extensions = []pkix.Extension{nonce}
	check("a critical extension", f, "critical extension")
}

// TestParseResponderKey: a responder may be named by the hash of its key.
func TestParseResponderKey(t *testing.T) {
	ca, other := newCA(t, nil, "ca"), newCA(t, nil, "other")
	leaf := newLeaf(t, ca, 7)
	for name, tt := range map[string]struct {
		named *party
		want  string
	}{
		"its own":   {ca, ""},
		"another's": {other, "names another responder"},
	} {
		hash := sha1.Sum(publicKey(tt.named.cert))
		f := newForgery(t, ca, single{ID: newID(ca, 7), Good: true})
		f.ResponderID = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, IsCompound: true, Bytes: marshal(t, hash[:])}
		if _, err := Parse(f.sign(t, ca), leaf.cert, ca.cert, time.Now()); !isError(err, tt.want) {
			t.Errorf("%s key: Parse = %v, want error with %q", name, err, tt.want)
		}
	}
}

// FuzzParse: what Parse accepts says something that can be used, and parses to
// the same again. So that mutations get past the signature, the input is also
// taken for what is signed.
//
// Several processes share what they find, and keep it, so that the keys are
// fixed, and so is the time: one that package ocsp, which sets producedAt by
// the clock, can't take for the past.
func FuzzParse(f *testing.F) {
	now := time.Date(2048, 1, 1, 0, 0, 0, 0, time.UTC)
	ca := newFixedParty(f, nil, 1, now, x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "ca"},
		BasicConstraintsValid: true,
		IsCA:                  true,
	})
	leaf := newFixedParty(f, ca, 2, now, x509.Certificate{SerialNumber: big.NewInt(7)})
	delegate := newFixedParty(f, ca, 3, now, delegateTemplate())
	seven := leaf.cert.SerialNumber
	for _, r := range []reply{
		{about: seven, issuer: ca},
		{about: seven, issuer: ca, endless: true},
		{about: seven, issuer: ca, status: ocsp.Revoked},
		{about: seven, issuer: ca, status: ocsp.Unknown},
		{about: seven, issuer: ca, signer: delegate, embed: delegate},
		{about: seven, issuer: ca, embed: ca, hash: crypto.SHA256},
	} {
		r.now = now
		f.Add(r.der(f))
	}
	f.Add(ocsp.TryLaterErrorResponse)
	f.Add(marshal(f, newForgeryAt(f, now, ca, single{ID: newID(ca, 7), Good: true})))
	f.Add(marshal(f, newForgeryAt(f, now, ca, single{ID: newID(ca, 8), Good: true}, single{ID: newID(ca, 7), Good: true})))
	f.Fuzz(func(t *testing.T, data []byte) {
		checkParse(t, data, leaf.cert, ca.cert, now)
		var tbs asn1.RawValue
		if rest, err := asn1.Unmarshal(data, &tbs); err == nil && len(rest) == 0 {
			checkParse(t, signRaw(t, data, ca), leaf.cert, ca.cert, now)
		}
	})
}

// newFixedParty is newParty with a key that the number stands for, and valid in
// the hundred hours around now.
func newFixedParty(tb testing.TB, issuer *party, number byte, now time.Time, template x509.Certificate) *party {
	tb.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{number}, 32))
	if err != nil {
		tb.Fatal(err)
	}
	template.NotBefore, template.NotAfter = now.Add(-50*time.Hour), now.Add(50*time.Hour)
	return certify(tb, issuer, key, template)
}

func checkParse(t *testing.T, der []byte, leaf, issuer *x509.Certificate, now time.Time) {
	t.Helper()
	r, err := Parse(der, leaf, issuer, now)
	if err != nil {
		if r != nil {
			t.Errorf("Parse = %+v and error %v", r, err)
		}
		return
	}
	if !bytes.Equal(r.DER, der) {
		t.Errorf("Parse(%x) has DER %x", der, r.DER)
	}
	if fresh := r.Fresh(now); fresh == (r.Revoked || r.NextUpdate.IsZero()) {
		t.Errorf("Fresh = %v of %+v", fresh, r)
	}
	if at := r.RefreshAt(0.5); at.Before(r.ThisUpdate) || !r.NextUpdate.IsZero() && at.After(r.NextUpdate) {
		t.Errorf("RefreshAt = %v of %+v", at, r)
	}
	if again, err := Parse(r.DER, leaf, issuer, now); err != nil || !sameMeaning(again, r) {
		t.Errorf("Parse = %+v, and of its DER %+v, %v", r, again, err)
	}
}
