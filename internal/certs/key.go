package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
)

// MarshalKey returns a private key in PKCS #8. That of an elliptic curve comes
// without its public key, which is optional there and longer than all the rest:
// whoever parses it computes it anyway.
func MarshalKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ec, ok := key.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return der, err
	}
	var outer struct { // RFC 5208, section 5
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, err
	}
	secret, err := ec.Bytes()
	if err != nil {
		return nil, err
	}
	inner := struct { // RFC 5915, section 3
		Version int
		Secret  []byte
	}{1, secret}
	if outer.Key, err = asn1.Marshal(inner); err != nil {
		return nil, err
	}
	return asn1.Marshal(outer)
}
