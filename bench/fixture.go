package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"

	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/journal"
)

const (
	digits   = 7    // in a name
	hostSize = 1120 // bytes of a leaf and of its key in PKCS #8

	directory = "https://acme-v02.api.letsencrypt.org/directory"
)

// hosts are those that nearly every figure is about, and wildcards are others.
var (
	hosts     = &family{head: "h", tail: ".example.com"}
	wildcards = &family{head: "*.h", tail: ".example.com"}
)

func name(i int) string             { return hosts.name(i) }
func state(n int) string            { return hosts.state(n) }
func writeState(w io.Writer, n int) { hosts.writeState(w, n) }

// A family is a set of hosts whose names, of one length, differ in a number.
// Host i's leaf is that of host 0 with the other number: nobody in here checks
// its signature, and to make a million would take longer than to measure them.
type family struct {
	head, tail string

	once   sync.Once
	sample []byte // leaf of host 0
	places []int  // of the number in it
	until  int    // place of notAfter in it
}

// name returns the name of host i, in memory of its own, as do the other methods.
func (f *family) name(i int) string { return fmt.Sprintf("%s%0*d%s", f.head, digits, i, f.tail) }

func (f *family) leaf(i int) []byte { return f.renewed(i, 0) }

// renewed returns the leaf that host i has after so many renewals, a minute from
// each to the next.
func (f *family) renewed(i, times int) []byte {
	f.once.Do(f.makeSample)
	der := bytes.Clone(f.sample)
	number := fmt.Sprintf("%0*d", digits, i)
	for _, at := range f.places {
		copy(der[at:], number)
	}
	copy(der[f.until:], utcTime(authority().notAfter(times)))
	return der
}

func (f *family) makeSample() {
	f.sample = authority().issue(f.name(0))
	for at := 0; ; at++ {
		i := bytes.Index(f.sample[at:], []byte(f.name(0)))
		if i < 0 {
			break
		}
		at += i
		f.places = append(f.places, at+len(f.head))
	}
	f.until = bytes.Index(f.sample, []byte(utcTime(authority().notAfter(0))))
}

// utcTime returns a time as certificates have it (RFC 5280, section 4.1.2.5.1).
func utcTime(t time.Time) string { return t.UTC().Format("060102150405Z") }

// pems returns host i's chain, leaf and intermediate, and its key, which all
// contestants keep this way but us.
func (f *family) pems(i int) (chain, key []byte) { return f.renewedPEMs(i, 0) }

func (f *family) renewedPEMs(i, times int) (chain, key []byte) {
	block := func(typ string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
	}
	a := authority()
	chain = append(block("CERTIFICATE", f.renewed(i, times)), block("CERTIFICATE", a.intermediate)...)
	return chain, block("EC PRIVATE KEY", a.keySEC1)
}

// tlsCert returns host i's certificate as a program would load it, its Leaf parsed.
func (f *family) tlsCert(i int) *tls.Certificate {
	cert, err := tls.X509KeyPair(f.pems(i))
	if err != nil {
		panic(err) // it is our own
	}
	return &cert
}

// state returns what Marshal would for n hosts that are on the list and have
// certificates of Let's Encrypt. It takes no more memory than it is long: who
// reads it may keep it.
func (f *family) state(n int) string {
	var size counter
	f.writeState(&size, min(n, 1))
	long := len(f.certRecord(0, 0)) + len("\n") + len(f.name(0)) + len(`"",`) // of one host more
	var b strings.Builder
	b.Grow(int(size) + max(n-1, 0)*long)
	f.writeState(&b, n)
	return b.String()
}

// A counter counts what is written to it.
type counter int

func (c *counter) Write(p []byte) (int, error) { return c.WriteString(string(p)) }

func (c *counter) WriteString(s string) (int, error) {
	*c += counter(len(s))
	return len(s), nil
}

func (f *family) writeState(w io.Writer, n int) {
	put := func(s string) { io.WriteString(w, s+"\n") }
	put(stateHeader)
	for i := range n {
		put(string(f.certRecord(i, 0)))
	}
	put(string(chainRecord()))
	put(string(f.hostsRecord(n)))
}

const stateHeader = "letsencrypt 1"

// certRecord returns the record that the state has for host i's certificate.
func (f *family) certRecord(i, times int) journal.Record {
	a := authority()
	return journal.Format("cert", f.name(i), []int64{a.notBefore.Unix(), a.notAfter(times).Unix()}, marshal(struct {
		Chain string `json:"chain"`
		Leaf  []byte `json:"leaf"`
		Key   []byte `json:"key"`
	}{chainRecord().Name(), f.renewed(i, times), a.keyShort}))
}

// hostsRecord returns the record that lists n hosts.
func (f *family) hostsRecord(n int) journal.Record {
	names := make([]string, n)
	for i := range names {
		names[i] = f.name(i)
	}
	return journal.Format("hosts", "-", nil, marshal(names))
}

// chainRecord returns the record of what all the certificates have in common.
var chainRecord = sync.OnceValue(func() journal.Record {
	value := marshal(struct {
		Above     [][]byte `json:"above"`
		CA        string   `json:"ca"`
		Account   string   `json:"account"`
		Challenge string   `json:"challenge"`
	}{[][]byte{authority().intermediate}, directory, "https://acme-v02.api.letsencrypt.org/acme/acct/1234567890", "tls-alpn-01"})
	sum := sha256.Sum256(value)
	return journal.Format("chain", hex.EncodeToString(sum[:16]), nil, value)
})

func marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // it is our own
	}
	return data
}

// An issuer makes the certificates.
type issuer struct {
	signer       *ecdsa.PrivateKey
	intermediate []byte            // DER
	parsed       *x509.Certificate // the same

	key       *ecdsa.PrivateKey // of every host: they are not worth a million
	keySEC1   []byte            // RFC 5915
	keyPKCS8  []byte
	keyShort  []byte // PKCS #8 without the public key, as our state has it
	notBefore time.Time
}

// notAfter returns when a certificate that was renewed so many times expires.
func (a *issuer) notAfter(times int) time.Time {
	return a.notBefore.AddDate(0, 0, 90).Add(time.Duration(times) * time.Minute)
}

// authority returns the only issuer.
var authority = sync.OnceValue(func() *issuer {
	a := &issuer{signer: newKey(), key: newKey(), notBefore: time.Now().Add(-time.Hour).Truncate(time.Minute).UTC()}
	var err error
	if a.keySEC1, err = x509.MarshalECPrivateKey(a.key); err != nil {
		panic(err) // here and below: it is our own
	}
	if a.keyPKCS8, err = x509.MarshalPKCS8PrivateKey(a.key); err != nil {
		panic(err)
	}
	if a.keyShort, err = certs.MarshalKey(a.key); err != nil {
		panic(err)
	}
	root, rootKey := a.template("Bench Root X2"), newKey()
	a.intermediate = create(a.template("Bench E7"), root, &a.signer.PublicKey, rootKey)
	if a.parsed, err = x509.ParseCertificate(a.intermediate); err != nil {
		panic(err)
	}
	return a
})

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// template returns that of a CA.
func (a *issuer) template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{Country: []string{"US"}, Organization: []string{"Bench"}, CommonName: name},
		NotBefore:    a.notBefore.AddDate(-1, 0, 0), NotAfter: a.notBefore.AddDate(2, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, IsCA: true, SubjectKeyId: make([]byte, 20),
	}
}

// issue returns a leaf in the likeness of Let's Encrypt's, which with its key
// takes hostSize bytes.
func (a *issuer) issue(name string) []byte {
	leaf := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    a.notBefore, NotAfter: a.notAfter(0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          make([]byte, 20),
		IssuingCertificateURL: []string{"http://e7.i.lencr.org/"},
		CRLDistributionPoints: []string{"http://e7.c.lencr.org/42.crl"},
		PolicyIdentifiers:     []asn1.ObjectIdentifier{{2, 23, 140, 1, 2, 1}},
	}
	// What the certificate transparency logs say takes the rest of the room. A
	// signature's length varies, so that it may take a few attempts.
	for size := 200; ; {
		leaf.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: make([]byte, size)}}
		der := create(leaf, a.parsed, &a.key.PublicKey, a.signer)
		short := hostSize - len(a.keyPKCS8) - len(der)
		if short == 0 {
			return der
		}
		size += short
	}
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err)
	}
	return n.SetBit(n, 120, 1)
}

func create(template, parent *x509.Certificate, public *ecdsa.PublicKey, signer *ecdsa.PrivateKey) []byte {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		panic(err)
	}
	return der
}

// newHello returns what crypto/tls tells of a browser that asks for a name.
func newHello(name string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName:        name,
		CipherSuites:      []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
		SupportedCurves:   []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		SignatureSchemes:  []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedProtos:   []string{"h2", "http/1.1"},
		SupportedVersions: []uint16{tls.VersionTLS13, tls.VersionTLS12},
		Conn:              noConn{},
	}
}

// A noConn is a connection that only has addresses.
type noConn struct{ net.Conn }

func (noConn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }
func (noConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50000} }
