package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"testing"
	"time"

	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/crypto/acme"
)

// Clients' certificates are demanded of clients alone: the CA, which has none,
// validates, and who has none is refused.
func TestServerDemandsClientCertificates(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	m.SetHosts([]string{host})
	member, stranger := selfSigned(t), selfSigned(t)
	config := m.TLSConfig()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = x509.NewCertPool()
	config.ClientCAs.AddCert(member.Leaf)
	s := &http.Server{Addr: r.tlsAddr(), Handler: m.Handler, TLSConfig: config}
	serveHTTP(t, s, func() error { return s.ListenAndServeTLS("", "") })
	for range 2 { // the second time with a certificate to serve
		if err := m.Renew(t.Context(), host); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.Status(host)[0].Challenge; got != "tls-alpn-01" {
		t.Errorf("passed %s, want tls-alpn-01", got)
	}
	c := r.call(host)
	refused(t, c)
	c.cert = &stranger
	refused(t, c)
	c.cert = &member
	answered(t, c)
	// What a validation is excused from a client does not get by posing as one.
	if conn, err := tls.Dial("tcp", r.tlsAddr(), &tls.Config{ServerName: host, NextProtos: []string{acme.ALPNProto}, InsecureSkipVerify: true}); err == nil {
		conn.Close()
		t.Error("a client that poses as a validation is served")
	}
}

// selfSigned returns a certificate of a client's.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key := newKey()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: "a client"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	leaf, err := x509.ParseCertificate(must(t, der, err))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(t, leaf, err)}
}
