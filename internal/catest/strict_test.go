package catest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

// A recorder is a testing.TB on which a test may fail without harm.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failures []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// take returns the failures so far and forgets them.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	failures := r.failures
	r.failures = nil
	return failures
}

// wantFailure checks that there was one failure and that its text has the
// substring, or that there was none if want is "".
func (r *recorder) wantFailure(t *testing.T, what, want string) {
	t.Helper()
	got := r.take()
	if want == "" && len(got) > 0 {
		t.Errorf("%s failed the test with %q, want no failure", what, got)
	}
	if want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
		t.Errorf("%s failed the test with %q, want one failure with %q", what, got, want)
	}
}

// strict runs f in a bubble with a CA, at which nobody is registered, and the
// recorder of its complaints.
func strict(t *testing.T, f func(t *testing.T, ca *catest.CA, r *recorder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{TB: t}
		f(t, catest.New(r), r)
		r.wantFailure(t, "the rest", "")
	})
}

// A raw request has nothing between the test and the CA.
type raw struct {
	method, url string
	headers     map[string]string
	protected   map[string]any
	payload     string
	body        string // "": the signed payload
	key         crypto.Signer
	spoil       bool // the signature
}

// newRaw returns a good request of a client: a POST-as-GET if payload is "".
func newRaw(t testing.TB, c *client, url, payload string) *raw {
	return &raw{
		method:  "POST",
		url:     url,
		headers: map[string]string{"Content-Type": "application/jose+json", "User-Agent": "test"},
		protected: map[string]any{
			"alg":   "ES256",
			"kid":   string(c.KID),
			"nonce": newNonce(t, c.ca),
			"url":   url,
		},
		payload: payload,
		key:     c.Key,
	}
}

func newNonce(t testing.TB, ca *catest.CA) string {
	t.Helper()
	req, err := http.NewRequest("HEAD", "https://ca.test/nonce", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "test")
	res, err := ca.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return res.Header.Get("Replay-Nonce")
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// sign returns a JWS. Its key is on P-256.
func sign(t testing.TB, key crypto.Signer, protected map[string]any, payload []byte) []byte {
	t.Helper()
	header, err := json.Marshal(protected)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(b64(header) + "." + b64(payload)))
	x, y, err := ecdsa.Sign(rand.Reader, key.(*ecdsa.PrivateKey), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...)
	return fmt.Appendf(nil, `{"protected":%q,"payload":%q,"signature":%q}`, b64(header), b64(payload), b64(sig))
}

// jwk returns a public key on P-256 for a JWS header.
func jwk(t testing.TB, key crypto.Signer) json.RawMessage {
	t.Helper()
	point, err := key.Public().(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, b64(point[1:33]), b64(point[33:]))
}

// A problem is what came back: the status and what a problem document says.
type problem struct {
	Status int
	Type   string
	Detail string
	header http.Header
}

// is reports whether the problem is of a type and status.
func (p *problem) is(status int, typ string) bool {
	return p.Status == status && p.Type == "urn:ietf:params:acme:error:"+typ
}

// request returns the request as it is sent.
func (r *raw) request(t testing.TB) *http.Request {
	t.Helper()
	body := []byte(r.body)
	if r.body == "" && r.method == "POST" {
		body = sign(t, r.key, r.protected, []byte(r.payload))
	}
	if r.spoil {
		i := bytes.LastIndex(body, []byte(`":"`)) + 10
		body[i] ^= 1 // one letter or digit becomes another
	}
	req, err := http.NewRequestWithContext(t.Context(), r.method, r.url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range r.headers {
		req.Header[name] = []string{value}
	}
	return req
}

// send sends the request.
func (r *raw) send(t testing.TB, hc *http.Client) *problem {
	t.Helper()
	res, err := hc.Do(r.request(t))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	p := &problem{header: res.Header}
	if res.Header.Get("Content-Type") == "application/problem+json" {
		if err := json.Unmarshal(data, p); err != nil {
			t.Fatalf("problem document %q: %v", data, err)
		}
		if p.Status != res.StatusCode {
			t.Errorf("problem document has status %d, the reply %d", p.Status, res.StatusCode)
		}
	}
	p.Status = res.StatusCode
	return p
}

func TestStrictRequests(t *testing.T) {
	tests := []struct {
		name   string
		edit   func(t testing.TB, r *raw)
		status int
		typ    string
		want   string // in the failure
	}{
		{"good", func(t testing.TB, r *raw) {}, 200, "", ""},
		{"no User-Agent", func(t testing.TB, r *raw) { r.headers["User-Agent"] = "" }, 400, "malformed", "User-Agent"},
		{"GET", func(t testing.TB, r *raw) { r.method = "GET" }, 405, "malformed", "POST-as-GET"},
		{"Content-Type", func(t testing.TB, r *raw) { r.headers["Content-Type"] = "application/json" }, 415, "malformed", "application/jose+json"},
		{"no JWS", func(t testing.TB, r *raw) { r.body = "{" }, 400, "malformed", "JWS"},
		{"unprotected header", func(t testing.TB, r *raw) { r.body = `{"header":{}}` }, 400, "malformed", "unknown field"},
		{"padding", func(t testing.TB, r *raw) { r.body = `{"protected":"e30="}` }, 400, "malformed", "base64url"},
		{"no header", func(t testing.TB, r *raw) { r.body = `{"protected":"e30"}` }, 400, "badSignatureAlgorithm", "alg"},
		{"alg none", func(t testing.TB, r *raw) { r.protected["alg"] = "none" }, 400, "badSignatureAlgorithm", "none"},
		{"alg HS256", func(t testing.TB, r *raw) { r.protected["alg"] = "HS256" }, 400, "badSignatureAlgorithm", "HS256"},
		{"alg of another key", func(t testing.TB, r *raw) { r.protected["alg"] = "ES384" }, 400, "malformed", "ES384"},
		{"alg of another type", func(t testing.TB, r *raw) { r.protected["alg"] = "RS256" }, 400, "malformed", "RS256"},
		{"no nonce", func(t testing.TB, r *raw) { delete(r.protected, "nonce") }, 400, "badNonce", "nonce"},
		{"unknown nonce", func(t testing.TB, r *raw) { r.protected["nonce"] = "abc" }, 400, "badNonce", ""},
		{"other url", func(t testing.TB, r *raw) { r.protected["url"] = "https://ca.test/order/7" }, 403, "unauthorized", "url"},
		{"no url", func(t testing.TB, r *raw) { delete(r.protected, "url") }, 403, "unauthorized", "url"},
		{"neither kid nor jwk", func(t testing.TB, r *raw) { delete(r.protected, "kid") }, 400, "malformed", "neither"},
		{"both kid and jwk", func(t testing.TB, r *raw) { r.protected["jwk"] = jwk(t, r.key) }, 400, "malformed", "both"},
		{"jwk for kid", func(t testing.TB, r *raw) { delete(r.protected, "kid"); r.protected["jwk"] = jwk(t, r.key) }, 400, "malformed", "want kid"},
		{"kid of another CA", func(t testing.TB, r *raw) { r.protected["kid"] = "https://other.test/account/1" }, 400, "malformed", "kid"},
		{"unknown kid", func(t testing.TB, r *raw) { r.protected["kid"] = "https://ca.test/account/99" }, 400, "accountDoesNotExist", ""},
		{"wrong key", func(t testing.TB, r *raw) { r.key = newKey(t) }, 400, "malformed", "signature"},
		{"bad signature", func(t testing.TB, r *raw) { r.spoil = true }, 400, "malformed", "signature"},
		{"payload in a read", func(t testing.TB, r *raw) { r.payload = "{}" }, 400, "malformed", "POST-as-GET"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
				c := newClient(t, ca).register(t)
				o, err := c.order(t, []string{"example.com"})
				if err != nil {
					t.Fatal(err)
				}
				r := newRaw(t, c, o.URI, "")
				test.edit(t, r)
				p := r.send(t, ca.Client())
				if p.Status != test.status || test.typ != "" && !p.is(test.status, test.typ) {
					t.Errorf("reply is %d %s, want %d %s", p.Status, p.Type, test.status, test.typ)
				}
				rec.wantFailure(t, test.name, test.want)
			})
		})
	}
}

// A request to an URL that the CA never gave out fails the test.
func TestStrictURLs(t *testing.T) {
	for _, url := range []string{
		"https://ca.test/", "https://ca.test/nothing", "https://ca.test/dir?x=1", "http://ca.test/dir", "https://other.test/dir",
	} {
		strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
			r := &raw{method: "GET", url: url, headers: map[string]string{"User-Agent": "test"}}
			if p := r.send(t, ca.Client()); !p.is(404, "malformed") {
				t.Errorf("GET %s = %d %s, want 404 malformed", url, p.Status, p.Type)
			}
			rec.wantFailure(t, url, "never gave out")
		})
	}
	for _, path := range []string{"order/77", "authz/77", "challenge/77", "finalize/77", "cert/77"} {
		strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
			c := newClient(t, ca).register(t)
			if p := newRaw(t, c, "https://ca.test/"+path, "").send(t, ca.Client()); !p.is(404, "malformed") {
				t.Errorf("POST %s = %d %s, want 404 malformed", path, p.Status, p.Type)
			}
			rec.wantFailure(t, path, "the CA never")
		})
	}
}

func TestStrictMethods(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		r := &raw{method: "DELETE", url: ca.Directory(), headers: map[string]string{"User-Agent": "test"}}
		if p := r.send(t, ca.Client()); !p.is(405, "malformed") {
			t.Errorf("DELETE directory = %d %s, want 405 malformed", p.Status, p.Type)
		}
		rec.wantFailure(t, "DELETE directory", "want GET")
	})
}

func TestStrictNonceReuse(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		c := newClient(t, ca).register(t)
		r := newRaw(t, c, string(c.KID), "")
		if p := r.send(t, ca.Client()); p.Status != 200 {
			t.Errorf("first use of a nonce: status %d, want 200", p.Status)
		}
		if p := r.send(t, ca.Client()); !p.is(400, "badNonce") {
			t.Errorf("second use of a nonce: %d %s, want 400 badNonce", p.Status, p.Type)
		}
		rec.wantFailure(t, "second use of a nonce", "nonce used twice")
	})
}

// Payloads that no client sends fail the test.
func TestStrictPayloads(t *testing.T) {
	tests := []struct {
		path, payload string
		status        int
		typ, want     string
	}{
		{"new-order", `[]`, 400, "malformed", "payload"},
		{"new-order", `{"identifiers":[]}`, 400, "malformed", "without identifiers"},
		{"new-order", `{"identifiers":[{"type":"dns","value":"Example.com"}]}`, 400, "malformed", "lower case"},
		{"new-order", `{"identifiers":[{"type":"dns","value":"a.test"},{"type":"dns","value":"a.test"}]}`, 400, "malformed", "twice"},
		{"new-order", `{"identifiers":[{"type":"ip","value":"2001:DB8::1"}]}`, 400, "malformed", "RFC 8738"},
		{"new-order", `{"identifiers":[{"type":"ip","value":"a.test"}]}`, 400, "malformed", "RFC 8738"},
		{"new-order", `{"identifiers":[{"type":"dns","value":"a.test"}],"replaces":"a.b"}`, 400, "malformed", "no renewal information"},
		{"new-order", `{"identifiers":[{"type":"dns","value":"192.0.2.1"}]}`, 400, "rejectedIdentifier", ""},
		{"new-order", `{"identifiers":[{"type":"dns","value":"localhost"}]}`, 400, "rejectedIdentifier", ""},
		{"new-order", `{"identifiers":[{"type":"dns","value":"a_b.test"}]}`, 400, "rejectedIdentifier", ""},
		{"new-order", `{"identifiers":[{"type":"dns","value":"a..test"}]}`, 400, "rejectedIdentifier", ""},
		{"new-order", `{"identifiers":[{"type":"dns","value":"a.*.test"}]}`, 400, "rejectedIdentifier", ""},
		{"new-order", `{"identifiers":[{"type":"mail","value":"a"}]}`, 400, "unsupportedIdentifier", ""},
		{"new-order", `{"identifiers":[{"type":"dns","value":"a.test"}],"notAfter":"2000-01-02T00:00:00Z"}`, 400, "malformed", ""},
		{"new-order", `{"identifiers":[{"type":"dns","value":"a.test"}],"profile":"none"}`, 400, "invalidProfile", ""},
		{"new-order", `{"identifiers":[{"type":"dns","value":"a.test"}]}`, 201, "", ""},
		{"account/1", `{"status":"revoked"}`, 400, "malformed", "account status"},
		{"account/1", `{"contact":["tel:1"]}`, 400, "unsupportedContact", ""},
		{"account/1", `{"contact":["mailto:a"]}`, 400, "invalidContact", ""},
		{"account/1", `{"contact":["mailto:a@b.test"]}`, 200, "", ""},
		{"authz/3", `{"status":"valid"}`, 400, "malformed", "authorization status"},
		{"account/2", ``, 403, "unauthorized", "another account"},
		{"orders/2", ``, 403, "unauthorized", "another account"},
		{"orders/1", ``, 200, "", ""},
		{"revoke", `{"certificate":"!"}`, 400, "malformed", "base64url"},
		{"revoke", `{"certificate":"AAAA"}`, 400, "malformed", "certificate"},
	}
	for _, test := range tests {
		strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
			c := newClient(t, ca).register(t) // account 1
			c.firstAuthz(t, "example.com")    // order 2, authorization 3
			p := newRaw(t, c, "https://ca.test/"+test.path, test.payload).send(t, ca.Client())
			if p.Status != test.status || test.typ != "" && !p.is(test.status, test.typ) {
				t.Errorf("%s %s = %d %s, want %d %s", test.path, test.payload, p.Status, p.Type, test.status, test.typ)
			}
			rec.wantFailure(t, test.path+" "+test.payload, test.want)
		})
	}
}

func TestStrictChallengePayload(t *testing.T) {
	for payload, want := range map[string]string{"": "", "{}": "", "null": "want {}", `{"keyAuthorization":"x"}`: "want {}"} {
		strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
			c := newClient(t, ca).register(t)
			z := c.firstAuthz(t, "example.com")
			newRaw(t, c, z.Challenges[0].URI, payload).send(t, ca.Client())
			rec.wantFailure(t, "challenge payload "+payload, want)
		})
	}
}

// firstAuthz returns the authorization of a new order for a name.
func (c *client) firstAuthz(t testing.TB, name string) *acme.Authorization {
	t.Helper()
	o, err := c.order(t, []string{name})
	if err != nil {
		t.Fatal(err)
	}
	z, err := c.GetAuthorization(t.Context(), o.AuthzURLs[0])
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func TestStrictKeys(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		c := newClient(t, ca).register(t)
		r := newRaw(t, c, "https://ca.test/new-account", "{}")
		if p := r.send(t, ca.Client()); !p.is(400, "malformed") {
			t.Errorf("newAccount with kid = %d %s, want 400 malformed", p.Status, p.Type)
		}
		rec.wantFailure(t, "newAccount with kid", "want jwk")

		point, err := c.Key.Public().(*ecdsa.PublicKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for name, bad := range map[string]string{
			"curve":  `{"kty":"EC","crv":"P-224"}`,
			"size":   `{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}`,
			"point":  fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%[1]q}`, b64(make([]byte, 32))),
			"type":   `{"kty":"oct"}`,
			"bits":   fmt.Sprintf(`{"kty":"RSA","e":"AQAB","n":%q}`, b64(new(big.Int).Lsh(big.NewInt(1), 1023).Bytes())),
			"base64": `{"kty":"EC","crv":"P-256","x":"=","y":""}`,
			"split":  fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, b64(point[1:32]), b64(point[32:])),
		} {
			r := newRaw(t, c, "https://ca.test/new-account", "{}")
			delete(r.protected, "kid")
			r.protected["jwk"] = json.RawMessage(bad)
			if p := r.send(t, ca.Client()); !p.is(400, "badPublicKey") {
				t.Errorf("newAccount with a bad %s = %d %s, want 400 badPublicKey", name, p.Status, p.Type)
			}
			rec.wantFailure(t, "bad "+name, "jwk")
		}
	})
}

func TestStrictAlgorithm(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		c := newClient(t, ca).register(t)
		key := fmt.Appendf(nil, `{"kty":"RSA","e":"AQAB","n":%q}`, b64(new(big.Int).Lsh(big.NewInt(1), 2047).Bytes()))
		r := newRaw(t, c, "https://ca.test/new-account", "{}")
		delete(r.protected, "kid")
		r.protected["jwk"] = json.RawMessage(key)
		if p := r.send(t, ca.Client()); !p.is(400, "malformed") {
			t.Errorf("ES256 with an RSA key = %d %s, want malformed", p.Status, p.Type)
		}
		rec.wantFailure(t, "ES256 with an RSA key", "with an RSA key")
	})
}

func TestStrictFinalize(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		ca.FreshKeys = true
		c := newClient(t, ca).register(t)
		key := newKey(t)
		o, err := c.order(t, []string{"example.com"})
		if err != nil {
			t.Fatal(err)
		}
		finalize := func(csr []byte) *problem {
			return newRaw(t, c, o.FinalizeURL, fmt.Sprintf(`{"csr":%q}`, b64(csr))).send(t, ca.Client())
		}
		refused := func(what string, csr []byte, typ, want string) {
			t.Helper()
			if p := finalize(csr); !strings.HasSuffix(p.Type, ":"+typ) {
				t.Errorf("finalize with %s = %d %s, want %s", what, p.Status, p.Type, typ)
			}
			rec.wantFailure(t, what, want)
		}
		good := csr(t, key, "example.com")
		refused("pending order", good, "orderNotReady", "finalizing an order that is pending")
		if err := c.fulfil(t, o, "http-01"); err != nil {
			t.Fatal(err)
		}
		spoilt := bytes.Clone(good)
		spoilt[len(spoilt)-1] ^= 1
		refused("bad DER", good[1:], "badCSR", "csr")
		refused("bad signature", spoilt, "badCSR", "csr")
		refused("no name", csr(t, key), "badCSR", "CSR is for")
		refused("other name", csr(t, key, "www.example.com"), "badCSR", "CSR is for")
		refused("one name more", csr(t, key, "example.com", "www.example.com"), "badCSR", "CSR is for")
		refused("other common name", makeCSR(t, key, &x509.CertificateRequest{DNSNames: []string{"example.com"}, Subject: pkix.Name{CommonName: "x"}}), "badCSR", "common name")
		refused("mail address", makeCSR(t, key, &x509.CertificateRequest{DNSNames: []string{"example.com"}, EmailAddresses: []string{"a@b.test"}}), "badCSR", "neither DNS names nor addresses")
		refused("account key", csr(t, c.Key, "example.com"), "badCSR", "account's key")
		if p := finalize(good); p.Status != 200 {
			t.Errorf("finalize = %d %s, want 200", p.Status, p.Type)
		}
		refused("same again", good, "orderNotReady", "")
		refused("other key", csr(t, newKey(t), "example.com"), "orderNotReady", "finalizing an order that is valid")

		o = c.ready(t, "example.com")
		refused("used key", good, "badCSR", "earlier certificate's key")
	})
}

// An order may expire before the client could know.
func TestFinalizeExpiredOrder(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		ca.OrderLifetime = time.Hour
		c := newClient(t, ca).register(t)
		o := c.ready(t, "example.com")
		time.Sleep(time.Hour)
		_, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, newKey(t), "example.com"), true)
		if !isProblem(err, 403, "orderNotReady") {
			t.Errorf("finalizing an expired order: %v, want 403 orderNotReady", err)
		}
	})
}

func TestPolite(t *testing.T) {
	tests := []struct {
		name       string
		retryAfter string
		wait       time.Duration
		want       string
	}{
		{"at once", "10", 0, "due in 10s"},
		{"early", "10", 9 * time.Second, "due in 1s"},
		{"in time", "10", 10 * time.Second, ""},
		{"early by date", "Sat, 01 Jan 2000 00:00:10 GMT", 9 * time.Second, "due in 1s"},
		{"in time by date", "Sat, 01 Jan 2000 00:00:10 GMT", 10 * time.Second, ""},
		{"none", "", 0, ""},
	}
	for _, test := range tests {
		for endpoint, status := range map[string]int{"order": 503, "newOrder": 429, "directory": 503} {
			strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
				c := newClient(t, ca).register(t)
				o, err := c.order(t, []string{"example.com"})
				if err != nil {
					t.Fatal(err)
				}
				requests := map[string]func() *raw{
					"order": func() *raw { return newRaw(t, c, o.URI, "") },
					"newOrder": func() *raw {
						return newRaw(t, c, "https://ca.test/new-order", `{"identifiers":[{"type":"dns","value":"a.test"}]}`)
					},
					"directory": func() *raw {
						return &raw{method: "GET", url: ca.Directory(), headers: map[string]string{"User-Agent": "test"}}
					},
				}
				ca.Fault(catest.On(endpoint, 1, catest.Problem(status, "rateLimited", "later", test.retryAfter)))
				if p := requests[endpoint]().send(t, ca.Client()); p.Status != status {
					t.Errorf("%s under a fault = %d, want %d", endpoint, p.Status, status)
				}
				time.Sleep(test.wait)
				requests[endpoint]().send(t, ca.Client())
				want := test.want
				if endpoint == "directory" && test.wait == 0 {
					want = "" // perhaps it was on its way
				}
				rec.wantFailure(t, endpoint+" "+test.name, want)
			})
		}
	}
}

// A rate limit is about the names, a CA at its end about everybody.
func TestPoliteToWhom(t *testing.T) {
	for _, status := range []int{429, 503} {
		strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
			c := newClient(t, ca).register(t)
			ca.Fault(catest.On("newOrder", 1, catest.Problem(status, "rateLimited", "later", "3600")))
			send := func(name string) {
				newRaw(t, c, "https://ca.test/new-order", `{"identifiers":[{"type":"dns","value":"`+name+`"}]}`).send(t, ca.Client())
			}
			send("a.test")
			send("b.test") // may have been on its way
			rec.wantFailure(t, "another name at once", "")
			time.Sleep(time.Second)
			send("b.test")
			want := map[int]string{429: "", 503: "due in"}[status]
			rec.wantFailure(t, "another name", want)
			send("a.test")
			rec.wantFailure(t, "the same name", "due in")
			ca.Change(func(c *catest.Config) { c.Impolite = true })
			send("a.test")
		})
	}
}

// A request may be on its way when another is told to come later.
func TestPoliteOnItsWay(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		c := newClient(t, ca).register(t)
		z := c.firstAuthz(t, "example.com")
		ca.Fault(catest.On("authz", 1, catest.Problem(503, "serverInternal", "later", "60")))
		first, second, third := newRaw(t, c, z.URI, ""), newRaw(t, c, z.URI, ""), newRaw(t, c, z.URI, "")
		ca.Change(func(c *catest.Config) { c.Latency = time.Second })
		var wg sync.WaitGroup
		wg.Go(func() { first.send(t, ca.Client()) })
		time.Sleep(time.Second / 2)
		wg.Go(func() { second.send(t, ca.Client()) })
		wg.Wait()
		rec.wantFailure(t, "the request on its way", "")
		time.Sleep(59 * time.Second)
		third.send(t, ca.Client())
		rec.wantFailure(t, "the request after them", "due in 500ms")
	})
}

// The CA's own Retry-After is for the resource that is at work.
func TestPoliteOrder(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		ca.FinalizeTakes = 10 * time.Second
		ca.RetryAfter = 3 * time.Second
		c := newClient(t, ca).register(t)
		o := c.ready(t, "example.com")
		newRaw(t, c, o.FinalizeURL, fmt.Sprintf(`{"csr":%q}`, b64(csr(t, newKey(t), "example.com")))).send(t, ca.Client())
		time.Sleep(2 * time.Second)
		p := newRaw(t, c, o.URI, "").send(t, ca.Client())
		rec.wantFailure(t, "reading the order early", "due in 1s")
		if got := p.header.Get("Retry-After"); got != "3" {
			t.Errorf("processing order has Retry-After %q, want 3", got)
		}
		time.Sleep(3 * time.Second)
		newRaw(t, c, o.URI, "").send(t, ca.Client())
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 10 * time.Second
		ca.RetryAfter = 2500 * time.Millisecond
		c := newClient(t, ca).register(t)
		z := c.firstAuthz(t, "example.com")
		check := func(when, want string) {
			t.Helper()
			for _, url := range []string{ca.Orders()[0].URL, z.URI} {
				p := newRaw(t, c, url, "").send(t, ca.Client())
				if got := p.header.Get("Retry-After"); got != want {
					t.Errorf("%s: Retry-After of %s is %q, want %q", when, url, got, want)
				}
			}
		}
		check("pending", "")
		if _, err := c.Accept(t.Context(), z.Challenges[0]); err != nil {
			t.Fatal(err)
		}
		check("processing", "3")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		check("done", "")
	})
}

// isProblem reports whether an error is a problem document of a status and type.
func isProblem(err error, status int, typ string) bool {
	e, ok := err.(*acme.Error)
	return ok && e.StatusCode == status && e.ProblemType == "urn:ietf:params:acme:error:"+typ
}
