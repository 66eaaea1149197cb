// Package ocspd runs `openssl ocsp` as an OCSP responder for tests.
package ocspd

// openssl can listen on a port itself, but on all interfaces, and it is slow to
// see that its index changed. We run it once for each request, behind a web
// server of our own, which has a URL before there is a CA, keeps it while the
// responder is down, and leaves no process behind. What is said about a
// certificate, and how it is signed, is openssl's all the same.

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Responder answers for one CA. All methods may be called at any time, from
// any goroutine.
type Responder struct {
	tb  testing.TB
	srv *httptest.Server
	dir string // for the files of the requests under way

	mu       sync.Mutex
	issuer   *party // nil: not known yet
	signer   *party // issuer, or its delegate
	life     time.Duration
	down     bool
	requests int
	knowsAll bool
	known    map[string]bool      // by serial number in hexadecimal, as below
	revoked  map[string]time.Time // since when
}

// A party is who can sign.
type party struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// New starts a responder on the loopback interface that ends with the test. Its
// responses hold for a day. Without openssl the test is skipped.
func New(tb testing.TB) *Responder {
	tb.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		tb.Skip("openssl is not installed")
	}
	r := &Responder{
		tb:       tb,
		dir:      tb.TempDir(),
		life:     24 * time.Hour,
		knowsAll: true,
		known:    make(map[string]bool),
		revoked:  make(map[string]time.Time),
	}
	r.srv = httptest.NewServer(http.HandlerFunc(r.serve))
	tb.Cleanup(r.srv.Close)
	return r
}

// URL returns where the responder is. It never changes.
func (r *Responder) URL() string { return r.srv.URL }

// SetIssuer says for whose certificates r answers, and with whose key it signs.
// Until then its answers are 503 Service Unavailable.
func (r *Responder) SetIssuer(issuer *x509.Certificate, key crypto.Signer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.issuer = &party{issuer, key}
	r.signer = r.issuer
}

// Delegate has responses signed from now on with a key of the responder's own,
// which the issuer, who must be known, certifies for a week.
func (r *Responder) Delegate() {
	r.tb.Helper()
	r.mu.Lock()
	issuer := r.issuer
	r.mu.Unlock()
	delegate, err := newDelegate(issuer)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signer = delegate
}

// SetLife sets for how long responses hold, which openssl counts in minutes. A
// response without life has no nextUpdate.
func (r *Responder) SetLife(life time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life = life
}

// Know makes r know the certificates with these serial numbers. A responder of
// which it was never called knows all that it is asked about, and says that
// they are good; after the first call, be it with none, the rest are unknown.
func (r *Responder) Know(serials ...*big.Int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.knowsAll = false
	for _, serial := range serials {
		r.known[hex(serial)] = true
	}
}

// Revoke makes r say that the certificate is revoked since now, because its key
// was compromised.
func (r *Responder) Revoke(serial *big.Int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked[hex(serial)] = time.Now()
}

// Stop makes r cut every connection without an answer, until Start.
func (r *Responder) Stop() { r.setDown(true) }

// Start ends what Stop began.
func (r *Responder) Start() { r.setDown(false) }

func (r *Responder) setDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

// Requests returns the number of requests so far, answered or not.
func (r *Responder) Requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

func (r *Responder) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests++
	down, ready := r.down, r.issuer != nil
	r.mu.Unlock()
	if down {
		panic(http.ErrAbortHandler)
	}
	if !ready {
		http.Error(w, "the CA is not known yet", http.StatusServiceUnavailable)
		return
	}
	question, err := readQuestion(req)
	if err != nil {
		r.tb.Errorf("OCSP request %s %s: %v", req.Method, req.RequestURI, err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := r.answer(question)
	if err != nil {
		r.tb.Errorf("OCSP request %x: %v", question, err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/ocsp-response")
	w.Write(answer)
}

// readQuestion returns the OCSP request in req (RFC 6960 appendix A.1).
func readQuestion(req *http.Request) ([]byte, error) {
	switch req.Method {
	case http.MethodGet:
		b64, err := url.PathUnescape(strings.TrimPrefix(req.URL.EscapedPath(), "/"))
		if err != nil {
			return nil, err
		}
		return base64.StdEncoding.DecodeString(b64)
	case http.MethodPost:
		if got := req.Header.Get("Content-Type"); got != "application/ocsp-request" {
			return nil, fmt.Errorf("content type %q", got)
		}
		return io.ReadAll(req.Body)
	}
	return nil, errors.New("neither GET nor POST")
}

// answer runs openssl. It is given no clock: responses are of now.
func (r *Responder) answer(question []byte) ([]byte, error) {
	serial, err := parseSerial(question)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(r.dir, "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	args, files, err := r.prepare(serial)
	if err != nil {
		return nil, err
	}
	files["question"] = question
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command("openssl", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("openssl: %w\n%s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "answer"))
}

// prepare returns openssl's arguments and the files that they name.
func (r *Responder) prepare(serial string) (args []string, files map[string][]byte, err error) {
	r.mu.Lock()
	issuer, signer, life, index := r.issuer, r.signer, r.life, r.indexLocked(serial)
	r.mu.Unlock()
	key, err := x509.MarshalPKCS8PrivateKey(signer.key)
	if err != nil {
		return nil, nil, err
	}
	files = map[string][]byte{
		"index":  []byte(index),
		"issuer": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.cert.Raw}),
		"signer": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signer.cert.Raw}),
		"key":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
	args = []string{"ocsp", "-index", "index", "-CA", "issuer", "-rsigner", "signer", "-rkey", "key",
		"-reqin", "question", "-respout", "answer"}
	if minutes := int(life.Minutes()); minutes > 0 {
		args = append(args, "-nmin", strconv.Itoa(minutes))
	}
	return args, files, nil
}

// indexLocked returns openssl's index of certificates, as far as it matters to
// who asks about serial: a line of status, expiry, revocation, serial number,
// file name and subject, or none for an unknown certificate.
func (r *Responder) indexLocked(serial string) string {
	const date = "060102150405Z"
	status, revoked := "V", ""
	if since, ok := r.revoked[serial]; ok {
		status, revoked = "R", since.UTC().Format(date)+",keyCompromise"
	} else if !r.knowsAll && !r.known[serial] {
		return ""
	}
	expiry := time.Now().AddDate(1, 0, 0).UTC().Format(date)
	return strings.Join([]string{status, expiry, revoked, serial, "unknown", "/CN=unknown"}, "\t") + "\n"
}

// parseSerial returns the serial number that an OCSP request asks about.
func parseSerial(question []byte) (string, error) {
	var req struct {
		TBS struct {
			Version   int           `asn1:"explicit,tag:0,default:0,optional"`
			Requestor asn1.RawValue `asn1:"explicit,tag:1,optional"`
			List      []struct {
				CertID struct {
					Hash              pkix.AlgorithmIdentifier
					NameHash, KeyHash []byte
					Serial            *big.Int
				}
			}
		}
	}
	rest, err := asn1.Unmarshal(question, &req)
	if err != nil {
		return "", err
	}
	if len(rest) > 0 || len(req.TBS.List) != 1 {
		return "", errors.New("not a request about one certificate")
	}
	return hex(req.TBS.List[0].CertID.Serial), nil
}

// hex returns a serial number as openssl's index has it.
func hex(serial *big.Int) string {
	s := fmt.Sprintf("%X", serial)
	return strings.Repeat("0", len(s)%2) + s
}

// newDelegate makes a key and a certificate with which its holder may sign
// responses about issuer's certificates. Nobody need ask whether it is revoked
// itself (RFC 6960 section 4.2.2.2.1).
func newDelegate(issuer *party) (*party, error) {
	if issuer == nil {
		return nil, errors.New("no issuer to delegate to an OCSP responder")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "OCSP responder"},
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(7 * 24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: bytes.Clone(asn1.NullBytes)},
		},
	}, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &party{cert, key}, err
}
