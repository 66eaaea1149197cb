package catest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // for ES384 and ES512
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"
)

var b64 = base64.RawURLEncoding.Strict()

// A jws is a JSON Web Signature in the one form that RFC 8555 section 6.2 allows.
type jws struct {
	Protected string `json:"protected"`
	Payload   string `json:"payload"`
	Signature string `json:"signature"`

	header  jwsHeader
	payload []byte
}

type jwsHeader struct {
	Alg   string          `json:"alg"`
	JWK   json.RawMessage `json:"jwk"`
	KID   *string         `json:"kid"`
	Nonce *string         `json:"nonce"`
	URL   *string         `json:"url"`
}

// parseJWS decodes a JWS without a look at its signature.
func parseJWS(data []byte) (*jws, error) {
	var j jws
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // an unprotected header, several signatures
	if err := dec.Decode(&j); err != nil {
		return nil, fmt.Errorf("body is no flattened JWS: %w", err)
	}
	protected, err := b64.DecodeString(j.Protected)
	if err != nil {
		return nil, fmt.Errorf("protected header is not base64url: %w", err)
	}
	if err := json.Unmarshal(protected, &j.header); err != nil {
		return nil, fmt.Errorf("protected header: %w", err)
	}
	if j.payload, err = b64.DecodeString(j.Payload); err != nil {
		return nil, fmt.Errorf("payload is not base64url: %w", err)
	}
	return &j, nil
}

// peekNames returns the names that a newOrder request is for, as far as they can be read.
func peekNames(body []byte) []string {
	j, err := parseJWS(body)
	if err != nil {
		return nil
	}
	var order newOrderRequest
	if err := json.Unmarshal(j.payload, &order); err != nil {
		return nil
	}
	return order.names()
}

// algorithms are the ones that we accept.
var algorithms = []string{"RS256", "ES256", "ES384", "ES512"}

// A publicKey is an account's key, or one that wants to become it.
type publicKey struct {
	crypto.PublicKey
	jwk        string // as RFC 7638 section 3 writes it
	thumbprint string
	spki       string // see spki
}

// parseJWK decodes a public key.
func parseJWK(data []byte) (publicKey, error) {
	var k struct{ Kty, Crv, X, Y, N, E string }
	if err := json.Unmarshal(data, &k); err != nil {
		return publicKey{}, err
	}
	switch k.Kty {
	case "EC":
		return parseEC(k.Crv, k.X, k.Y)
	case "RSA":
		return parseRSA(k.N, k.E)
	}
	return publicKey{}, fmt.Errorf("key type %q", k.Kty)
}

func parseEC(crv, xs, ys string) (publicKey, error) {
	curves := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}
	curve, ok := curves[crv]
	if !ok {
		return publicKey{}, fmt.Errorf("curve %q", crv)
	}
	x, err1 := b64.DecodeString(xs)
	y, err2 := b64.DecodeString(ys)
	if err := errors.Join(err1, err2); err != nil {
		return publicKey{}, err
	}
	if size := (curve.Params().BitSize + 7) / 8; len(x) != size || len(y) != size {
		return publicKey{}, errors.New("coordinates are not of the curve's size") // RFC 7518 section 6.2.1.2
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y))
	if err != nil {
		return publicKey{}, err
	}
	return newPublicKey(pub, fmt.Sprintf(`{"crv":%q,"kty":"EC","x":%q,"y":%q}`, crv, xs, ys)), nil
}

func parseRSA(ns, es string) (publicKey, error) {
	n, err1 := b64.DecodeString(ns)
	e, err2 := b64.DecodeString(es)
	if err := errors.Join(err1, err2); err != nil {
		return publicKey{}, err
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	if pub.N.BitLen() < 2048 {
		return publicKey{}, fmt.Errorf("RSA key of %d bits", pub.N.BitLen())
	}
	return newPublicKey(pub, fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`, es, ns)), nil
}

func newPublicKey(pub crypto.PublicKey, jwk string) publicKey {
	sum := sha256.Sum256([]byte(jwk))
	return publicKey{pub, jwk, b64.EncodeToString(sum[:]), spki(pub)}
}

// spki returns a key as a map's index.
func spki(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return string(der)
}

// verify checks the JWS's signature with a key that must fit the algorithm.
func (j *jws) verify(key publicKey) error {
	sig, err := b64.DecodeString(j.Signature)
	if err != nil {
		return fmt.Errorf("signature is not base64url: %w", err)
	}
	signed := []byte(j.Protected + "." + j.Payload)
	switch pub := key.PublicKey.(type) {
	case *rsa.PublicKey:
		if j.header.Alg != "RS256" {
			return fmt.Errorf("alg %q with an RSA key", j.header.Alg)
		}
		sum := sha256.Sum256(signed)
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], sig)
	case *ecdsa.PublicKey:
		return verifyECDSA(pub, j.header.Alg, signed, sig)
	}
	return fmt.Errorf("key of type %T", key.PublicKey)
}

func verifyECDSA(pub *ecdsa.PublicKey, alg string, signed, sig []byte) error {
	fit := map[string]struct {
		alg  string
		hash crypto.Hash
	}{"P-256": {"ES256", crypto.SHA256}, "P-384": {"ES384", crypto.SHA384}, "P-521": {"ES512", crypto.SHA512}}
	want := fit[pub.Params().Name]
	if alg != want.alg {
		return fmt.Errorf("alg %q with a key on %s", alg, pub.Params().Name)
	}
	size := (pub.Params().BitSize + 7) / 8
	if len(sig) != 2*size {
		return fmt.Errorf("signature has %d bytes, want %d", len(sig), 2*size)
	}
	h := want.hash.New()
	h.Write(signed)
	r, s := new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:])
	if !ecdsa.Verify(pub, h.Sum(nil), r, s) {
		return errors.New("signature does not verify")
	}
	return nil
}

// verify checks how a request was made and, but for unsigned endpoints, its
// signature. It sets the request's key, account and payload. It takes mu.
func (ca *CA) verify(rq *request) *Error {
	if rq.endpoint.auth == unsigned {
		return rq.checkUnsigned()
	}
	if rq.http.Method != http.MethodPost {
		return rq.violate(http.StatusMethodNotAllowed, "malformed", "want POST, or POST-as-GET to read (RFC 8555 section 6.3)")
	}
	if ct := rq.http.Header.Get("Content-Type"); ct != "application/jose+json" {
		return rq.violate(http.StatusUnsupportedMediaType, "malformed", "Content-Type is %q, want application/jose+json", ct)
	}
	j, err := parseJWS(rq.body)
	if err != nil {
		return rq.violate(http.StatusBadRequest, "malformed", "%v", err)
	}
	if problem := ca.checkHeader(rq, j.header); problem != nil {
		return problem
	}
	if problem := ca.takeNonce(rq, *j.header.Nonce); problem != nil {
		return problem
	}
	if problem := ca.findKey(rq, j.header); problem != nil {
		return problem
	}
	if err := j.verify(rq.key); err != nil {
		return rq.violate(http.StatusBadRequest, "malformed", "JWS: %v", err)
	}
	rq.payload = j.payload
	return nil
}

func (rq *request) checkUnsigned() *Error {
	switch {
	case rq.http.Method == http.MethodGet, rq.http.Method == http.MethodHead && rq.endpoint.name == "newNonce":
		return nil
	}
	return rq.violate(http.StatusMethodNotAllowed, "malformed", "want GET")
}

// checkHeader checks a JWS's protected header by RFC 8555 sections 6.2 and 6.4.
func (ca *CA) checkHeader(rq *request, h jwsHeader) *Error {
	if !slices.Contains(algorithms, h.Alg) {
		e := rq.violate(http.StatusBadRequest, "badSignatureAlgorithm", "alg %q", h.Alg)
		e.Algorithms = algorithms
		return e
	}
	bad := func(format string, args ...any) *Error {
		return rq.violate(http.StatusBadRequest, "malformed", format, args...)
	}
	switch {
	case h.Nonce == nil:
		return rq.violate(http.StatusBadRequest, "badNonce", "JWS has no nonce")
	case h.URL == nil || *h.URL != rq.url:
		return rq.violate(http.StatusForbidden, "unauthorized", "JWS header's url is not the request's")
	case (h.KID != nil) == (h.JWK != nil):
		return bad("JWS has both kid and jwk, or neither")
	case h.KID != nil && rq.endpoint.auth == withKey:
		return bad("signed with kid, want jwk")
	case h.JWK != nil && rq.endpoint.auth == withAccount:
		return bad("signed with jwk, want kid")
	case h.KID != nil && !strings.HasPrefix(*h.KID, rq.cfg.url("account", "")):
		return bad("kid %q is no account of this CA", *h.KID)
	}
	return nil
}

// findKey sets the request's key and account from its JWS header. It takes mu.
func (ca *CA) findKey(rq *request, h jwsHeader) *Error {
	if h.KID == nil {
		key, err := parseJWK(h.JWK)
		if err != nil {
			return rq.violate(http.StatusBadRequest, "badPublicKey", "jwk: %v", err)
		}
		rq.key = key
		return nil
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	a := ca.accounts[*h.KID]
	if a == nil {
		return &Error{Status: http.StatusBadRequest, Type: "accountDoesNotExist", Detail: "no account " + *h.KID}
	}
	if a.Status != "valid" {
		return &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "account is " + a.Status}
	}
	rq.account, rq.key = a, a.key
	return nil
}

type nonce struct {
	made time.Time
	used bool
}

// makeNonce returns a nonce that is good for one request.
func (ca *CA) makeNonce() string {
	ca.lastNonce++
	n := b64.EncodeToString(fmt.Appendf(nil, "%s nonce %d", ca.Host, ca.lastNonce))
	ca.nonces[n] = &nonce{made: time.Now()}
	return n
}

// takeNonce takes the nonce of a request out of circulation. It takes mu.
func (ca *CA) takeNonce(rq *request, value string) *Error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.signed++
	n := ca.nonces[value]
	if n != nil && n.used {
		return rq.violate(http.StatusBadRequest, "badNonce", "nonce used twice")
	}
	old := n != nil && rq.cfg.NonceLifetime > 0 && rq.now.Sub(n.made) > rq.cfg.NonceLifetime
	if n == nil || old {
		return &Error{Status: http.StatusBadRequest, Type: "badNonce", Detail: "unknown or expired nonce"}
	}
	n.used = true
	if ca.testRefusesNonce(rq, ca.signed) {
		return &Error{Status: http.StatusBadRequest, Type: "badNonce", Detail: "nonce refused by order of the test"}
	}
	return nil
}

// testRefusesNonce asks the test whether it refuses the nonce of the n-th signed request.
func (ca *CA) testRefusesNonce(rq *request, n int) (refused bool) {
	if rq.cfg.NonceReject != nil {
		ca.ask(func() { refused = rq.cfg.NonceReject(n) })
	}
	return refused
}

// decode reads the request's payload as JSON.
func (rq *request) decode(v any) *Error {
	if err := json.Unmarshal(rq.payload, v); err != nil {
		return rq.violate(http.StatusBadRequest, "malformed", "payload: %v", err)
	}
	return nil
}

// wantRead notes a violation unless the request is a POST-as-GET.
func (rq *request) wantRead() *Error {
	if len(rq.payload) > 0 {
		return rq.violate(http.StatusBadRequest, "malformed", "POST-as-GET has a payload (RFC 8555 section 6.3)")
	}
	return nil
}

// checkEAB verifies an external account binding (RFC 8555 section 7.3.4) and
// returns its key id.
func (ca *CA) checkEAB(rq *request, data []byte) (string, *Error) {
	bad := func(format string, args ...any) (string, *Error) {
		return "", rq.violate(http.StatusBadRequest, "malformed", "externalAccountBinding: "+format, args...)
	}
	j, err := parseJWS(data)
	if err != nil {
		return bad("%v", err)
	}
	switch h := j.header; {
	case h.Alg != "HS256":
		return bad("alg %q, want HS256", h.Alg)
	case h.KID == nil || h.JWK != nil || h.Nonce != nil:
		return bad("header wants a kid, no jwk and no nonce")
	case h.URL == nil || *h.URL != rq.url:
		return bad("url is not newAccount's")
	}
	if key, err := parseJWK(j.payload); err != nil || key.jwk != rq.key.jwk {
		return bad("payload is not the account's key")
	}
	kid := *j.header.KID
	mac := hmac.New(sha256.New, rq.cfg.EAB[kid])
	mac.Write([]byte(j.Protected + "." + j.Payload))
	sig, err := b64.DecodeString(j.Signature)
	if rq.cfg.EAB[kid] == nil || err != nil || !hmac.Equal(sig, mac.Sum(nil)) {
		return "", &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "external account binding: unknown key id or wrong MAC"}
	}
	if rq.cfg.EABOnce && ca.eabUsed[kid] {
		return "", &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "external account binding: key id used before"}
	}
	return kid, nil
}
