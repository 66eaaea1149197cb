package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"testing"
)

func TestMarshalKey(t *testing.T) {
	type key interface {
		Equal(crypto.PrivateKey) bool
	}
	ec := func(c elliptic.Curve) key {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	small, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 7))
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		key  key
		most int // bytes
	}{
		{"P-256", ec(elliptic.P256()), 67},
		{"P-256 that begins with zeros", small, 67},
		{"P-384", ec(elliptic.P384()), 80},
		{"P-521", ec(elliptic.P521()), 98},
		{"RSA", rsaKey, 1300},
		{"Ed25519", edKey, 48},
	} {
		der, err := MarshalKey(tt.key)
		if err != nil || len(der) > tt.most {
			t.Errorf("%s: MarshalKey = %d bytes, %v, want %d at most", tt.name, len(der), err, tt.most)
			continue
		}
		if got, err := x509.ParsePKCS8PrivateKey(der); err != nil || !tt.key.Equal(got) {
			t.Errorf("%s: it is parsed as %v, %v, want the key", tt.name, got, err)
		}
	}
	if _, err := MarshalKey("no key"); err == nil {
		t.Error("MarshalKey of a string = nil, want an error")
	}
}
