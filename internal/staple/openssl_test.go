package staple

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"example.com/letsencrypt/internal/ocspd"
)

// TestOpenSSL has openssl make the responses, as the issuer and as its delegate.
func TestOpenSSL(t *testing.T) {
	s := newScene(t)
	for _, delegated := range []bool{false, true} {
		r := ocspd.New(t)
		r.SetIssuer(s.ca.cert, s.ca.key)
		if delegated {
			r.Delegate()
		}
		testOpenSSL(t, s, r)
	}
}

func testOpenSSL(t *testing.T, s *scene, r *ocspd.Responder) {
	t.Helper()
	fetch := func() (*Response, error) { return s.fetch(t.Context(), nil, r.URL()) }

	r.Know()
	if _, err := fetch(); !isError(err, "does not know the certificate") {
		t.Errorf("Fetch of an unknown certificate = %v, want error", err)
	}
	r.Know(s.leaf.SerialNumber)
	r.SetLife(time.Hour)
	got, err := fetch()
	if err != nil {
		t.Fatal(err)
	}
	if life := got.NextUpdate.Sub(got.ThisUpdate); life != time.Hour || !got.Fresh(time.Now()) {
		t.Errorf("Fetch = %+v, want a response that is fresh for an hour", got)
	}
	r.SetLife(0)
	if got, err = fetch(); err != nil || !got.NextUpdate.IsZero() {
		t.Errorf("Fetch = %+v, %v, want a response without nextUpdate", got, err)
	}
	r.Revoke(s.leaf.SerialNumber)
	if got, err = fetch(); err != nil || !got.Revoked || got.Reason != ocsp.KeyCompromise {
		t.Errorf("Fetch = %+v, %v, want revoked for key compromise", got, err)
	}
	r.Stop()
	if got, err := fetch(); err == nil {
		t.Errorf("Fetch from a responder that is down = %+v, want error", got)
	}
	r.Start()
	if _, err := fetch(); err != nil {
		t.Errorf("Fetch from a responder that is back = %v", err)
	}
}

// TestOpenSSLServer asks openssl's own web server, which reads requests by GET
// and POST without help of ours, and names the responder by its key.
func TestOpenSSLServer(t *testing.T) {
	version, err := exec.Command("openssl", "version").Output()
	if err != nil || !strings.HasPrefix(string(version), "OpenSSL ") {
		t.Skip("OpenSSL is not installed")
	}
	s := newScene(t)
	u := startOpenSSL(t, s)
	for _, method := range []string{"GET", "POST"} {
		target, body := u.String(), []byte(nil)
		der, err := ocsp.CreateRequest(s.leaf, s.ca.cert, nil)
		if err != nil {
			t.Fatal(err)
		}
		if method == "GET" {
			target = getURL(u, der)
		} else {
			body = der
		}
		f := &fetch{client: restrict(nil), leaf: s.leaf, issuer: s.ca.cert}
		if r, err := f.do(t.Context(), method, target, body); err != nil || !r.Fresh(time.Now()) {
			t.Errorf("%s = %+v, %v, want a fresh response", method, r, err)
		}
	}
}

// startOpenSSL runs openssl as a web server that answers two requests.
func startOpenSSL(t *testing.T, s *scene) *url.URL {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(s.ca.key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"ca":    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.cert.Raw}),
		"key":   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"index": []byte("V\t491231235959Z\t\t07\tunknown\t/CN=unknown\n"), // the leaf's number
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "openssl", "ocsp", "-index", "index", "-CA", "ca", "-rsigner", "ca",
		"-rkey", "key", "-nmin", "60", "-resp_key_id", "-port", "0", "-nrequest", "2")
	cmd.Dir = dir
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Wait() }) // killed with the test's context if a request never came
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		// ACCEPT [::]:34567 PID=4321
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "ACCEPT" {
			port := fields[1][strings.LastIndex(fields[1], ":")+1:]
			return &url.URL{Scheme: "http", Host: "127.0.0.1:" + port}
		}
	}
	t.Fatal("openssl does not say on which port it listens")
	return nil
}
