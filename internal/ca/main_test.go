package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"example.com/letsencrypt/internal/challenge"
)

// A world is a CA, a client with an account there, and the servers that the CA
// validates.
type world struct {
	t       testing.TB
	ca      *catest.CA
	client  *Client
	answers challenge.Answers
	kept    []string // the orders' URLs that the client wanted kept
	logged  int      // how much of the CA's log is of no interest any more
}

// inWorld runs f in a bubble with a new world, whose CA is as configure makes it.
func inWorld(t *testing.T, configure func(*catest.Config), f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, configure)) })
}

func newWorld(t testing.TB, configure func(*catest.Config)) *world {
	w := &world{t: t, ca: catest.New(t)}
	w.ca.TLS = func(host string) *tls.Config {
		return &tls.Config{NextProtos: []string{challenge.ALPNProto}, GetCertificate: w.getCertificate}
	}
	w.ca.HTTP = http.HandlerFunc(w.serveHTTP)
	if configure != nil {
		configure(&w.ca.Config)
	}
	w.client = New(w.ca.Directory(), w.ca.Client(), newKey(t), "")
	if _, err := w.client.Register(t.Context(), nil, nil, false); err != nil {
		t.Fatalf("Register: %v", err)
	}
	w.asked()
	return w
}

// getCertificate answers for names as the Manager would. The reverse names of
// RFC 8738, section 6 are as good as the addresses here: a test has but one.
func (w *world) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host := hello.ServerName
	if strings.HasSuffix(host, ".arpa") {
		host, _, _ = net.SplitHostPort(hello.Conn.LocalAddr().String())
	}
	if cert := w.answers.TLSALPN(host); cert != nil {
		return cert, nil
	}
	return nil, errors.New("no certificate")
}

func (w *world) serveHTTP(res http.ResponseWriter, req *http.Request) {
	token, _ := challenge.Token(req.URL.Path)
	keyAuth, ok := w.answers.HTTP(strings.Trim(req.Host, "[]"), token)
	if !ok {
		http.NotFound(res, req)
		return
	}
	res.Write([]byte(keyAuth))
}

// job returns a Job for the host with a new key, to be solved by tls-alpn-01.
func (w *world) job(host string) Job {
	return Job{
		Host:  host,
		Key:   newKey(w.t),
		Keep:  func(url string) error { w.kept = append(w.kept, url); return nil },
		Solve: w.solve("tls-alpn-01", true),
	}
}

// solve returns a Job's Solve for one type of challenge. The validations that
// arrive are seen or not.
func (w *world) solve(typ string, seen bool) func(context.Context, *Authorization, chan<- struct{}) (*Answer, error) {
	return func(_ context.Context, a *Authorization, arrived chan<- struct{}) (*Answer, error) {
		i := slices.IndexFunc(a.Challenges, func(ch Challenge) bool { return ch.Type == typ })
		if i < 0 {
			return nil, errors.New("not offered: " + typ)
		}
		ch := &a.Challenges[i]
		keyAuth, err := w.client.KeyAuthorization(ch.Token)
		if err != nil {
			return nil, err
		}
		if !seen {
			arrived = nil
		}
		switch typ {
		case "tls-alpn-01":
			remove, err := w.answers.AddTLSALPN(a.Identifier.Value, keyAuth, arrived)
			return &Answer{Challenge: ch, Remove: remove}, err
		case "http-01":
			return &Answer{Challenge: ch, Remove: w.answers.AddHTTP(a.Identifier.Value, ch.Token, keyAuth, arrived)}, nil
		}
		return &Answer{Challenge: ch, Remove: func() {}}, nil
	}
}

// obtain runs a job and fails the test unless it comes to a certificate.
func (w *world) obtain(j Job) *Certificate {
	w.t.Helper()
	cert, err := w.client.Obtain(w.t.Context(), j)
	if err != nil {
		w.t.Fatalf("Obtain(%s): %v", j.Host, err)
	}
	return cert
}

// refused runs a job and fails the test unless it comes to a Failure.
func (w *world) refused(j Job) *Failure {
	w.t.Helper()
	_, err := w.client.Obtain(w.t.Context(), j)
	f, ok := errors.AsType[*Failure](err)
	if !ok {
		w.t.Fatalf("Obtain(%s): %v, want a *Failure", j.Host, err)
	}
	return f
}

// asked returns the endpoints that were asked since the last call, in order.
func (w *world) asked() string {
	var names []string
	for _, r := range w.requests() {
		names = append(names, r.Endpoint)
	}
	return strings.Join(names, " ")
}

// requests returns the requests since the last call of it or asked.
func (w *world) requests() []catest.Request {
	log := w.ca.Requests()
	defer func() { w.logged = len(log) }()
	return log[w.logged:]
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// pemChain returns the DER of the PEM blocks in b.
func pemChain(b []byte) (chain [][]byte) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return chain
		}
		chain = append(chain, block.Bytes)
	}
}

// elapsed returns how long f takes.
func elapsed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// A roundTripper is a func that answers requests.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// reply returns a reply with the body; headers come as "Name: value".
func reply(status int, body string, headers ...string) *http.Response {
	h := make(http.Header)
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		h.Add(name, value)
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}
}
