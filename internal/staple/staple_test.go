package staple

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"reflect"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

func TestParse(t *testing.T) {
	root := newCA(t, nil, "root")
	ca, other := newCA(t, root, "ca"), newCA(t, root, "other")
	namesake := newCA(t, root, "ca")
	leaf := newLeaf(t, ca, 7)
	delegate := newParty(t, ca, delegateTemplate())
	stranger := newParty(t, other, delegateTemplate())
	critical := []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
	seven := big.NewInt(7)
	tests := []struct {
		name string
		r    reply
		want string
	}{
		{"good", reply{about: seven, issuer: ca}, ""},
		{"revoked", reply{about: seven, issuer: ca, status: ocsp.Revoked}, ""},
		{"unknown", reply{about: seven, issuer: ca, status: ocsp.Unknown}, "does not know"},
		{"SHA-256 CertID", reply{about: seven, issuer: ca, hash: crypto.SHA256}, ""},
		{"the issuer's own certificate", reply{about: seven, issuer: ca, embed: ca}, ""},
		{"no nextUpdate", reply{about: seven, issuer: ca, endless: true}, ""},

		{"another serial number", reply{about: big.NewInt(8), issuer: ca}, "no response matching"},
		{"another issuer", reply{about: seven, issuer: other, signer: ca}, "another issuer"},
		{"an issuer of the same name", reply{about: seven, issuer: namesake, signer: ca}, "another issuer"},
		{"unknown critical extension", reply{about: seven, issuer: ca, extensions: critical}, "critical extension"},

		{"another's signature", reply{about: seven, issuer: ca, signer: other}, "not signed by"},
		{"another's signature in the issuer's name", reply{about: seven, issuer: ca, signer: other, name: ca}, "not signed by"},
		{"another's with the issuer's certificate", reply{about: seven, issuer: ca, signer: other, name: ca, embed: ca}, "bad signature"},
		{"another CA's", reply{about: seven, issuer: ca, signer: other, embed: other}, "not for signing OCSP"},
		{"the root's", reply{about: seven, issuer: ca, signer: root, embed: root}, "not for signing OCSP"},
		{"the issuer in another's name", reply{about: seven, issuer: ca, name: other}, "names another responder"},
		{"SHA-1", reply{about: seven, issuer: ca, algorithm: x509.ECDSAWithSHA1}, "ECDSA-SHA1"},

		{"a delegate", reply{about: seven, issuer: ca, signer: delegate, embed: delegate}, ""},
		{"a delegate says revoked", reply{about: seven, issuer: ca, signer: delegate, embed: delegate, status: ocsp.Revoked}, ""},
		{"a delegate without its certificate", reply{about: seven, issuer: ca, signer: delegate}, "not signed by"},
		{"a delegate in the issuer's name", reply{about: seven, issuer: ca, signer: delegate, name: ca, embed: delegate}, "names another responder"},
		{"another CA's delegate", reply{about: seven, issuer: ca, signer: stranger, embed: stranger}, "is issued by"},
		{"the leaf itself", reply{about: seven, issuer: ca, signer: leaf, embed: leaf}, "is the certificate that it is about"},

		{"expired", reply{about: seven, issuer: ca, next: -time.Minute}, "expired"},
		{"expired, revoked", reply{about: seven, issuer: ca, next: -time.Minute, status: ocsp.Revoked}, "expired"},
		{"a clock that is ahead", reply{about: seven, issuer: ca, this: clockSkew - time.Minute}, ""},
		{"from the future", reply{about: seven, issuer: ca, this: clockSkew + time.Minute}, "future"},
		{"ends before it begins", reply{about: seven, issuer: ca, this: 2 * time.Minute, next: time.Minute}, "before it begins"},
	}
	for _, tt := range tests {
		der := tt.r.der(t)
		got, err := Parse(der, leaf.cert, ca.cert, time.Now())
		if !isError(err, tt.want) {
			t.Errorf("%s: Parse = %v, want error with %q", tt.name, err, tt.want)
		}
		if (got == nil) != (err != nil) {
			t.Errorf("%s: Parse = %v and error %v, want one of them", tt.name, got, err)
		}
	}
}

func TestParseDelegate(t *testing.T) {
	ca := newCA(t, nil, "ca")
	namesake := newCA(t, nil, "ca")
	leaf := newLeaf(t, ca, 7)
	now := time.Now()
	tests := []struct {
		name   string
		issuer *party
		change func(*x509.Certificate)
		want   string
	}{
		{"good", ca, func(*x509.Certificate) {}, ""},
		{"no key usage", ca, func(c *x509.Certificate) { c.KeyUsage = 0 }, ""},
		{"non-repudiation", ca, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageContentCommitment }, ""},
		{"other key usage", ca, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, "not for signatures"},
		{"no extended key usage", ca, func(c *x509.Certificate) { c.ExtKeyUsage = nil }, "not for signing OCSP"},
		{"any extended key usage", ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, "not for signing OCSP"},
		{"a server's", ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "not for signing OCSP"},
		{"expired", ca, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Minute) }, "which expired"},
		{"new, by a clock that is ahead", ca, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(clockSkew/2), now.Add(time.Hour) }, ""},
		{"not yet valid", ca, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(2*clockSkew), now.Add(time.Hour) }, "not valid before"},
		{"unknown critical extension", ca, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, "critical extension"},
		{"of a CA of the same name", namesake, func(*x509.Certificate) {}, "is not issued by"},
	}
	for _, tt := range tests {
		template := delegateTemplate()
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
		tt.change(&template)
		delegate := newParty(t, tt.issuer, template)
		der := reply{about: leaf.cert.SerialNumber, issuer: ca, signer: delegate, embed: delegate}.der(t)
		if _, err := Parse(der, leaf.cert, ca.cert, now); !isError(err, tt.want) {
			t.Errorf("%s: Parse = %v, want error with %q", tt.name, err, tt.want)
		}
	}
}

// TestDelegateExpires: clients look at the delegate's certificate too, so that
// the response ends with it.
func TestDelegateExpires(t *testing.T) {
	ca := newCA(t, nil, "ca")
	leaf := newLeaf(t, ca, 7)
	template := delegateTemplate()
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	delegate := newParty(t, ca, template)
	r := reply{about: leaf.cert.SerialNumber, issuer: ca, signer: delegate, embed: delegate}
	got, err := Parse(r.der(t), leaf.cert, ca.cert, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if want := delegate.cert.NotAfter; !got.NextUpdate.Equal(want) {
		t.Errorf("NextUpdate = %v, want %v, when the delegate's certificate expires", got.NextUpdate, want)
	}
	r.endless = true
	if got, err = Parse(r.der(t), leaf.cert, ca.cert, time.Now()); err != nil || !got.NextUpdate.IsZero() {
		t.Errorf("Parse without nextUpdate = %+v, %v, want none there", got, err)
	}
}

func TestParseRevoked(t *testing.T) {
	ca := newCA(t, nil, "ca")
	leaf := newLeaf(t, ca, 7)
	for _, endless := range []bool{false, true} {
		der := reply{about: leaf.cert.SerialNumber, issuer: ca, status: ocsp.Revoked, endless: endless}.der(t)
		r, err := Parse(der, leaf.cert, ca.cert, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if since := time.Since(r.RevokedAt); !r.Revoked || r.Reason != ocsp.KeyCompromise || since < time.Hour || since > 3*time.Hour {
			t.Errorf("Parse = %+v, want revoked two hours ago for key compromise", r)
		}
		if r.Fresh(time.Now()) {
			t.Error("Fresh = true for a response that says revoked")
		}
	}
}

func TestParseProducedAt(t *testing.T) {
	ca := newCA(t, nil, "ca")
	leaf := newLeaf(t, ca, 7)
	der := reply{about: leaf.cert.SerialNumber, issuer: ca, this: -3 * time.Hour}.der(t) // produced now
	_, err := Parse(der, leaf.cert, ca.cert, time.Now().Add(-time.Hour))
	if !isError(err, "produced at") {
		t.Errorf("Parse an hour before the response was produced = %v, want error", err)
	}
}

func TestParseErrorResponses(t *testing.T) {
	ca := newCA(t, nil, "ca")
	leaf := newLeaf(t, ca, 7)
	_, err := Parse(ocsp.TryLaterErrorResponse, leaf.cert, ca.cert, time.Now())
	var re ocsp.ResponseError
	if !errors.As(err, &re) || re.Status != ocsp.TryLater {
		t.Errorf("Parse = %v, want ocsp.ResponseError to try later", err)
	}
	good := reply{about: leaf.cert.SerialNumber, issuer: ca}.der(t)
	for name, der := range map[string][]byte{
		"nothing":    nil,
		"HTML":       []byte("<html>not found</html>"),
		"a part":     good[:len(good)-1],
		"and more":   append(bytes.Clone(good), 0),
		"no content": {0x30, 0x03, 0x0a, 0x01, 0x00}, // successful, but no response
	} {
		if r, err := Parse(der, leaf.cert, ca.cert, time.Now()); err == nil {
			t.Errorf("%s: Parse = %+v, want error", name, r)
		}
	}
}

// TestParseEveryByte: whoever changes a byte of what is signed, is found out.
func TestParseEveryByte(t *testing.T) {
	ca := newCA(t, nil, "ca")
	leaf := newLeaf(t, ca, 7)
	now := time.Now()
	der := reply{about: leaf.cert.SerialNumber, issuer: ca}.der(t)
	want, err := Parse(der, leaf.cert, ca.cert, now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range der {
		forged := bytes.Clone(der)
		forged[i] ^= 1
		if r, err := Parse(forged, leaf.cert, ca.cert, now); err == nil && !sameMeaning(r, want) {
			t.Errorf("Parse with byte %d of %d changed = %+v, want an error or %+v", i, len(der), r, want)
		}
	}
}

// sameMeaning reports whether a and b say the same in whatever bytes.
func sameMeaning(a, b *Response) bool {
	x, y := *a, *b
	x.DER, y.DER = nil, nil
	return reflect.DeepEqual(x, y)
}

func TestParseKeepsItsOwn(t *testing.T) {
	ca := newCA(t, nil, "ca")
	leaf := newLeaf(t, ca, 7)
	der := reply{about: leaf.cert.SerialNumber, issuer: ca}.der(t)
	r, err := Parse(der, leaf.cert, ca.cert, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	clear(der)
	if _, err := Parse(r.DER, leaf.cert, ca.cert, time.Now()); err != nil {
		t.Errorf("the response changed with the caller's bytes: %v", err)
	}
}

func TestFresh(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return now.Add(d) }
	tests := []struct {
		name string
		r    Response
		want bool
	}{
		{"now", Response{ThisUpdate: at(-time.Hour), NextUpdate: at(time.Hour)}, true},
		{"revoked", Response{ThisUpdate: at(-time.Hour), NextUpdate: at(time.Hour), Revoked: true}, false},
		{"no end", Response{ThisUpdate: at(-time.Hour)}, false},
		{"last second", Response{ThisUpdate: at(-time.Hour), NextUpdate: at(time.Second)}, true},
		{"past", Response{ThisUpdate: at(-time.Hour), NextUpdate: at(0)}, false},
		{"a clock that is ahead", Response{ThisUpdate: at(clockSkew), NextUpdate: at(time.Hour)}, true},
		{"future", Response{ThisUpdate: at(clockSkew + time.Second), NextUpdate: at(time.Hour)}, false},
	}
	for _, tt := range tests {
		if got := tt.r.Fresh(now); got != tt.want {
			t.Errorf("%s: Fresh(now) = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestRefreshAt(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		life time.Duration // 0: no nextUpdate
		u    float64
		want time.Duration // after thisUpdate
	}{
		{100 * time.Minute, 0, 45 * time.Minute},
		{100 * time.Minute, 0.5, 50 * time.Minute},
		{100 * time.Minute, 1, 55 * time.Minute},
		{7 * day, 0.5, 7 * day / 2},
		{10 * day, 0.5, 5 * day},
		{365 * day, 0.5, 5 * day},
		{0, 0.5, 12 * time.Hour},
	}
	for _, tt := range tests {
		r := Response{ThisUpdate: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
		if tt.life > 0 {
			r.NextUpdate = r.ThisUpdate.Add(tt.life)
		}
		if got := r.RefreshAt(tt.u).Sub(r.ThisUpdate).Round(time.Millisecond); got != tt.want {
			t.Errorf("RefreshAt(%v) with a life of %v = %v after thisUpdate, want %v", tt.u, tt.life, got, tt.want)
		}
	}
}
