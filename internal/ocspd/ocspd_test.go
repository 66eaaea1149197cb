package ocspd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A client asks a responder as openssl does, and has openssl judge the answer.
type client struct {
	t   *testing.T
	r   *Responder
	dir string // has ca.pem
}

func newClient(t *testing.T) (*client, *x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "ca"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t, New(t), t.TempDir()}
	c.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return c, cert, key
}

func (c *client) write(name string, data []byte) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), data, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) openssl(args ...string) string {
	c.t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = c.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("openssl %s: %v\n%s", args, err, out)
	}
	return string(out)
}

// question returns a request about the serial number.
func (c *client) question(serial string) []byte {
	c.t.Helper()
	c.openssl("ocsp", "-issuer", "ca.pem", "-serial", serial, "-no_nonce", "-reqout", "question")
	der, err := os.ReadFile(filepath.Join(c.dir, "question"))
	if err != nil {
		c.t.Fatal(err)
	}
	return der
}

// ask returns what openssl reads in the responder's answer.
func (c *client) ask(serial string) string {
	c.t.Helper()
	resp, err := http.Post(c.r.URL(), "application/ocsp-request", bytes.NewReader(c.question(serial)))
	if err != nil {
		c.t.Fatal(err)
	}
	return c.verify(resp)
}

func (c *client) verify(resp *http.Response) string {
	c.t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		c.t.Fatalf("answer with status %s and error %v, want 200\n%s", resp.Status, err, body)
	}
	c.write("answer", body)
	return c.openssl("ocsp", "-respin", "answer", "-CAfile", "ca.pem", "-resp_text")
}

func check(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range append(wants, "Response verify OK") {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the response:\n%s", want, out)
		}
	}
}

func TestResponder(t *testing.T) {
	c, cert, key := newClient(t)
	c.r.SetIssuer(cert, key)
	check(t, c.ask("0x0123"), "Cert Status: good", "Serial Number: 0123", "Next Update", "Responder Id: CN = ca")
	c.r.Revoke(big.NewInt(0x123))
	check(t, c.ask("0x0123"), "Cert Status: revoked", "Revocation Reason: keyCompromise")
	check(t, c.ask("0x0124"), "Cert Status: good")
	c.r.Delegate()
	check(t, c.ask("0x0123"), "Cert Status: revoked", "Responder Id: CN = OCSP responder")
	c.r.SetLife(0)
	if out := c.ask("0x0124"); strings.Contains(out, "Next Update") {
		t.Errorf("a response without life has a nextUpdate:\n%s", out)
	}
	if got := c.r.Requests(); got != 5 {
		t.Errorf("Requests() = %d, want 5", got)
	}
}

func TestGet(t *testing.T) {
	c, cert, key := newClient(t)
	c.r.SetIssuer(cert, key)
	b64 := base64.StdEncoding.EncodeToString(c.question("0x77"))
	resp, err := http.Get(c.r.URL() + "/" + url.QueryEscape(b64))
	if err != nil {
		t.Fatal(err)
	}
	check(t, c.verify(resp), "Cert Status: good", "Serial Number: 77")
}

func TestKnow(t *testing.T) {
	c, cert, key := newClient(t)
	c.r.SetIssuer(cert, key)
	c.r.Know()
	check(t, c.ask("0x05"), "Cert Status: unknown")
	c.r.Know(big.NewInt(5))
	check(t, c.ask("0x05"), "Cert Status: good")
	check(t, c.ask("0x06"), "Cert Status: unknown")
}

func TestStop(t *testing.T) {
	c, cert, key := newClient(t)
	resp, err := http.Post(c.r.URL(), "application/ocsp-request", bytes.NewReader(c.question("0x05")))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %s before there is an issuer, want 503", resp.Status)
	}
	c.r.SetIssuer(cert, key)
	c.r.Stop()
	if resp, err := http.Post(c.r.URL(), "application/ocsp-request", nil); err == nil {
		resp.Body.Close()
		t.Errorf("a stopped responder answered with status %s", resp.Status)
	}
	c.r.Start()
	check(t, c.ask("0x05"), "Cert Status: good")
}

func TestReadQuestion(t *testing.T) {
	post := httptest.NewRequest("POST", "/", strings.NewReader("x"))
	post.Header.Set("Content-Type", "text/plain")
	for name, req := range map[string]*http.Request{
		"content type": post,
		"method":       httptest.NewRequest("PUT", "/", strings.NewReader("x")),
		"base64":       httptest.NewRequest("GET", "/a%3Fb", nil),
		"raw URL code": httptest.NewRequest("GET", "/_-8=", nil),
	} {
		if got, err := readQuestion(req); err == nil {
			t.Errorf("%s: readQuestion = %x, want error", name, got)
		}
	}
}

func TestParseSerial(t *testing.T) {
	c, _, _ := newClient(t)
	good := c.question("0x0ABC")
	if got, err := parseSerial(good); got != "0ABC" || err != nil {
		t.Errorf("parseSerial = %q, %v, want 0ABC", got, err)
	}
	for name, der := range map[string][]byte{
		"nothing":  nil,
		"a part":   good[:len(good)-1],
		"and more": append(bytes.Clone(good), 0),
		"no list":  {0x30, 0x04, 0x30, 0x02, 0x30, 0x00},
	} {
		if got, err := parseSerial(der); err == nil {
			t.Errorf("%s: parseSerial = %q, want error", name, got)
		}
	}
}

func TestDelegateOfNobody(t *testing.T) {
	if p, err := newDelegate(nil); err == nil {
		t.Errorf("newDelegate(nil) = %v, want error", p)
	}
}
