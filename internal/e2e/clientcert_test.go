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
// validates, and who has none is refused. In TLS 1.2 a demand ends the
// handshake; in TLS 1.3 a client that only looks does not notice.
func TestServerDemandsClientCertificates(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			r.in(t).checkClientCertificates(version)
		})
	}
}

func (r *rig) checkClientCertificates(version uint16) {
	const host = "a.example.com"
	m, _ := r.manager()
	m.SetHosts([]string{host})
	member, stranger := selfSigned(r.t), selfSigned(r.t)
	config := m.TLSConfig()
	config.MaxVersion = version
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = x509.NewCertPool()
	config.ClientCAs.AddCert(member.Leaf)
	s := &http.Server{Addr: r.tlsAddr(), Handler: m.Handler, TLSConfig: config}
	serveHTTP(r.t, s, func() error { return s.ListenAndServeTLS("", "") })
	for range 2 { // the second time with a certificate to serve
		if err := m.Renew(r.t.Context(), host); err != nil {
			r.t.Fatal(err)
		}
	}
	if got := m.Status(host)[0].Challenge; got != "tls-alpn-01" {
		r.t.Errorf("passed %s, want tls-alpn-01", got)
	}
	c := r.call(host)
	refused(r.t, c)
	c.cert = &stranger
	refused(r.t, c)
	c.cert = &member
	answered(r.t, c)
	// What a validation is excused from a client does not get by posing as one.
	if conn, err := tls.Dial("tcp", r.tlsAddr(), &tls.Config{ServerName: host, NextProtos: []string{acme.ALPNProto}, InsecureSkipVerify: true}); err == nil {
		conn.Close()
		r.t.Error("a client that poses as a validation is served")
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
