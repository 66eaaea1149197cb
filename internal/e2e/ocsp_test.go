package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/ocspd"
	"example.com/letsencrypt/internal/pebble"
)

// needOpenSSL skips a test that has nobody to see staples by. LibreSSL's
// program of that name is another.
func needOpenSSL(t *testing.T) {
	t.Helper()
	if clients()["openssl"] == nil {
		t.Skip("OpenSSL is not installed")
	}
}

// newStapledRig returns a rig whose certificates name a responder, which
// answers for the rig's CA.
func newStapledRig(t *testing.T) (*rig, *ocspd.Responder) {
	t.Helper()
	needOpenSSL(t)
	responder := ocspd.New(t)
	var log lockedBuffer
	r := newRig(t, pebble.Config{
		OCSPResponder: responder.URL(),
		KeyAlgorithm:  "rsa", // the only kind of key that Pebble hands out
		Log:           &log,
	})
	responder.SetIssuer(r.intermediate(&log))
	return r, responder
}

// intermediate returns who signs Pebble's certificates.
func (r *rig) intermediate(log *lockedBuffer) (*x509.Certificate, crypto.Signer) {
	r.t.Helper()
	const intro = "Management interface listening on: "
	if err := r.WaitLog(r.t.Context(), intro); err != nil {
		r.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(log.String(), intro)
	addr, _, _ := strings.Cut(rest, "\n")
	fetch := func(path string) []byte {
		_, text := get(r.t, r.Client(), "https://"+addr+path)
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			r.t.Fatalf("Pebble's %s is %q, want PEM", path, text)
		}
		return block.Bytes
	}
	cert, err := x509.ParseCertificate(fetch("/intermediates/0"))
	if err != nil {
		r.t.Fatal(err)
	}
	key, err := x509.ParsePKCS1PrivateKey(fetch("/intermediate-keys/0"))
	return cert, must(r.t, key, err)
}

// A stapling is what openssl s_client sees of a server's OCSP response.
type stapling struct {
	sent   bool
	status string // of the certificate
	serial string // in hexadecimal, without leading zeros
}

var (
	certStatus   = regexp.MustCompile(`Cert Status: (\w+)`)
	serialNumber = regexp.MustCompile(`Serial Number: 0*(\w+)`)
)

// stapling has openssl connect, verify the chain and ask for the certificate's
// status. A handshake that fails ends the test.
func (c call) stapling(t *testing.T) stapling {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	roots := filepath.Join(t.TempDir(), "roots.pem")
	write(t, roots, string(c.roots))
	cmd := exec.CommandContext(ctx, "openssl", "s_client", "-connect", c.addr, "-servername", c.host,
		"-verify_hostname", c.host, "-verify_return_error", "-CAfile", roots, "-status")
	out, err := cmd.CombinedOutput() // without input it ends once it is connected
	if err != nil {
		t.Fatalf("openssl s_client: %v\n%s", err, out)
	}
	text := string(out)
	switch {
	case strings.Contains(text, "OCSP response: no response sent"):
		return stapling{}
	case !strings.Contains(text, "OCSP Response Status: successful"):
		t.Fatalf("openssl s_client -status says neither that there is a response nor that there is none:\n%s", text)
	}
	status, serial := certStatus.FindStringSubmatch(text), serialNumber.FindStringSubmatch(text)
	if status == nil || serial == nil {
		t.Fatalf("openssl s_client -status shows a response without status or serial number:\n%s", text)
	}
	return stapling{true, status[1], strings.ToLower(serial[1])}
}

func good(leaf *x509.Certificate) stapling {
	return stapling{true, "good", leaf.SerialNumber.Text(16)}
}

// verifies ends the test unless openssl believes the response that a server
// sends, by the roots and the chain that the server sends.
func (c call) verifies(t *testing.T) {
	t.Helper()
	config := &tls.Config{ServerName: c.host, RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(c.roots)
	conn, err := tls.Dial("tcp", c.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	state, dir := conn.ConnectionState(), t.TempDir()
	files := map[string][]byte{"roots": c.roots, "response": state.OCSPResponse}
	for i, name := range []string{"leaf", "issuer"} {
		files[name] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: state.PeerCertificates[i].Raw})
	}
	for name, data := range files {
		write(t, filepath.Join(dir, name), string(data))
	}
	cmd := exec.CommandContext(t.Context(), "openssl", "ocsp", "-respin", "response", "-no_nonce",
		"-issuer", "issuer", "-cert", "leaf", "-CAfile", "roots", "-verify_other", "issuer")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Response verify OK") || !strings.Contains(string(out), "leaf: good") {
		t.Errorf("openssl ocsp: %v\n%s\nwant it to believe that the certificate is good", err, out)
	}
}

// stapled returns a host's leaf once openssl sees that it is good.
func (r *rig) stapled(host string) *x509.Certificate {
	r.t.Helper()
	c := r.call(host)
	var leaf *x509.Certificate
	eventually(r.t, "a staple of "+host, func() bool {
		leaf = r.served(host)
		return c.stapling(r.t) == good(leaf)
	})
	c.verifies(r.t)
	return leaf
}

// A certificate is stapled, still is after a restart while the responder is
// away, and is replaced when the responder says that it was revoked.
func TestStapledUntilRevoked(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r, responder := newStapledRig(t)
	m, told := r.manager()
	cache := cacheFile(t, m)
	m.SetHosts([]string{host})
	r.serve(m)
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	old := r.stapled(host)
	shutdown(t, m)
	if es := told.of(letsencrypt.EventStaple, host); len(es) > 0 {
		t.Errorf("events %+v, want none about staples", es)
	}

	responder.Stop()
	m, _ = r.manager()
	if err := m.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	r.serve(m)
	if got := r.call(host).stapling(t); got != good(old) {
		t.Errorf("the first client after a restart saw %+v, want %+v from the state", got, good(old))
	}
	shutdown(t, m)
	responder.Start()

	responder.Revoke(old.SerialNumber)
	state := m.Marshal()
	m, told = r.manager()
	if err := m.Unmarshal(withoutStaples(state)); err != nil {
		t.Fatal(err)
	}
	r.serve(m)
	r.served(host)
	eventually(t, "a renewal", func() bool { return len(told.of(letsencrypt.EventRenewed, host)) > 0 })
	if leaf := r.stapled(host); leaf.Equal(old) || sameKey(leaf, old) {
		t.Errorf("serial %x is served, want another than %x with another key", leaf.SerialNumber, old.SerialNumber)
	}
	es := told.of(letsencrypt.EventRevoked, host)
	if len(es) != 1 || es[0].CA != r.proxy.Directory() || es[0].Err == nil || !strings.Contains(es[0].Err.Error(), "OCSP") {
		t.Errorf("events %+v, want one that the responder says that it was revoked", es)
	}
	if n := r.Orders(); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
}

// withoutStaples returns a state whose staples are to be fetched. With them the
// responder would be asked only half-way through their lives.
func withoutStaples(state string) string {
	var rest strings.Builder
	for line := range strings.Lines(state) {
		if !strings.HasPrefix(line, "staple ") {
			rest.WriteString(line)
		}
	}
	return rest.String()
}

// A responder that is down is nothing to a handshake, and is told of once.
func TestResponderIsDown(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r, responder := newStapledRig(t)
	responder.Stop()
	m, told := r.manager()
	cache := cacheFile(t, m)
	m.SetHosts([]string{host})
	r.serve(m)
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an event", func() bool { return len(told.of(letsencrypt.EventStaple, host)) > 0 })
	c := r.call(host)
	for range 5 {
		if got := c.stapling(t); got.sent {
			t.Errorf("openssl saw %+v though the responder is down", got)
		}
	}
	answered(t, c)
	shutdown(t, m)
	if es := told.of(letsencrypt.EventStaple, host); len(es) != 1 || es[0].Err == nil {
		t.Errorf("events %+v, want one that there is no staple", es)
	}
	if n := responder.Requests(); n == 0 || n > 4 {
		t.Errorf("the responder was asked %d times in a moment, want by GET and by POST, once or twice", n)
	}

	responder.Start()
	m, _ = r.manager()
	if err := m.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	r.serve(m)
	r.stapled(host)
}

// The program's own certificate is stapled like ours, by its issuer's word or a
// delegate's.
func TestOwnCertificateIsStapled(t *testing.T) {
	t.Parallel()
	needOpenSSL(t)
	for _, delegated := range []bool{false, true} {
		t.Run(fmt.Sprintf("delegated=%v", delegated), func(t *testing.T) {
			t.Parallel()
			const host = "own.example.com"
			responder := ocspd.New(t)
			cert, root, issuer := ownCertificate(t, host, responder.URL())
			responder.SetIssuer(issuer.cert, issuer.key)
			if delegated {
				responder.Delegate()
			}
			told := &told{t: t}
			m := &letsencrypt.Manager{
				CAs:       []letsencrypt.CA{{Directory: "https://127.0.0.1:1/"}}, // is not needed
				HTTPSAddr: "127.0.0.1:0",
				OnEvent:   told.event,
			}
			t.Cleanup(func() { shutdown(t, m) })
			if err := m.AddCertificate(cert); err != nil {
				t.Fatal(err)
			}
			ln, err := m.Listen()
			if err != nil {
				t.Fatal(err)
			}
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })}
			serveHTTP(t, s, func() error { return s.Serve(ln) })
			c := call{addr: ln.Addr().String(), host: host, roots: root}
			eventually(t, "a staple", func() bool { return c.stapling(t) == good(cert.Leaf) })
			c.verifies(t)
			if es := told.of(letsencrypt.EventStaple, host); len(es) > 0 {
				t.Errorf("events %+v, want none", es)
			}
		})
	}
}

// A signer is a CA certificate with its key.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// ownCertificate returns a certificate for a host that names an OCSP responder,
// the root of its chain in PEM, and its issuer.
func ownCertificate(t *testing.T, host, responder string) (cert tls.Certificate, root []byte, issuer signer) {
	t.Helper()
	sign := func(serial int64, by signer, template x509.Certificate) signer {
		key := newKey()
		if by.cert == nil {
			by = signer{&template, key}
		}
		template.SerialNumber = big.NewInt(serial)
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(90*day)
		template.BasicConstraintsValid = true
		der, err := x509.CreateCertificate(rand.Reader, &template, by.cert, key.Public(), by.key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		return signer{must(t, leaf, err), key}
	}
	ca := x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	ca.Subject = pkix.Name{CommonName: "Root of our own"}
	top := sign(1, signer{}, ca)
	ca.Subject = pkix.Name{CommonName: "Issuer of our own"}
	issuer = sign(2, top, ca)
	leaf := sign(0x0102, issuer, x509.Certificate{
		DNSNames:    []string{host},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		OCSPServer:  []string{responder},
	})
	cert = tls.Certificate{Certificate: [][]byte{leaf.cert.Raw, issuer.cert.Raw}, PrivateKey: leaf.key, Leaf: leaf.cert}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: top.cert.Raw}), issuer
}

// tlsFeature is the extension that has clients demand a staple (RFC 7633).
var tlsFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

func mustStaple(extensions []pkix.Extension) bool {
	return slices.ContainsFunc(extensions, func(e pkix.Extension) bool { return e.Id.Equal(tlsFeature) })
}

// A certificate that must be stapled is asked for, issued, and stapled for the
// first client that sees it.
func TestMustStaple(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r, responder := newStapledRig(t)
	sent := eavesdrop[finalize](r, pebble.Finalize)
	m, _ := r.manager()
	m.MustStaple = true
	cacheFile(t, m)
	r.serve(m)
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	c := r.call(host)
	first := c.stapling(t)
	leaf := r.served(host)
	if first != good(leaf) {
		t.Errorf("the first client saw %+v, want %+v", first, good(leaf))
	}
	c.verifies(t)
	if !mustStaple(leaf.Extensions) {
		t.Error("the certificate has no TLS feature extension")
	}
	der, err := base64.RawURLEncoding.DecodeString(sent()[0].CSR)
	if err != nil {
		t.Fatal(err)
	}
	if csr, err := x509.ParseCertificateRequest(der); err != nil || !mustStaple(csr.Extensions) {
		t.Errorf("the request %x, %v: want a TLS feature extension", der, err)
	}

	// Its successor waits until it has a staple.
	responder.Stop()
	if err := m.Renew(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if got := c.stapling(t); got != good(leaf) || len(r.Issued()) != 2 {
		t.Errorf("with %d certificates issued and the responder down: openssl saw %+v, want the second to wait and %+v",
			len(r.Issued()), got, good(leaf))
	}
}

// The words are Let's Encrypt's, which issues no such certificates since 2025.
func TestMustStapleRefused(t *testing.T) {
	t.Parallel()
	const (
		host  = "a.example.com"
		words = "OCSP must-staple extension is no longer available: see https://letsencrypt.org/2024/12/05/ending-ocsp"
	)
	r := newRig(t, pebble.Config{})
	r.proxy.SetFault(nth(pebble.Finalize, always, pebble.Problem(http.StatusForbidden, "unauthorized", words, "")))
	m, told := r.manager()
	m.MustStaple = true
	cacheFile(t, m)
	r.serve(m)
	err := m.Manage(t.Context(), host)
	r.failed(m, told, err, host, words, "must-staple certificate")
	if n := r.Orders(); n != 1 {
		t.Errorf("%d orders, want one: no other challenge would help", n)
	}
}

func TestNothingIsSaidWithoutResponder(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	needOpenSSL(t)
	r := newRig(t, pebble.Config{})
	m, told := r.manager()
	cache := cacheFile(t, m)
	m.SetHosts([]string{host})
	r.serve(m)
	if err := m.Renew(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if got := r.call(host).stapling(t); got.sent {
		t.Errorf("openssl saw %+v, want no response", got)
	}
	shutdown(t, m)
	m, again := r.manager()
	if err := m.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	r.serve(m)
	r.served(host)
	shutdown(t, m)
	log := told.log.String() + again.log.String()
	if !strings.Contains(log, host) {
		t.Fatal("nothing at all is in the log")
	}
	for _, word := range []string{"ocsp", "stapl"} {
		if strings.Contains(strings.ToLower(log), word) {
			t.Errorf("log has %q in it:\n%s", word, log)
		}
	}
	if strings.Contains(read(t, cache), "staple") {
		t.Error("the state has something about staples")
	}
}
