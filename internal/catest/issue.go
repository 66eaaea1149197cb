package catest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Flaw is something wrong with the certificates that a CA hands out.
type Flaw string

// The flaws of a leaf are those of certificates issued while Flaw is set, the
// flaws of a chain those of certificates downloaded while it is.
const (
	OtherKey    Flaw = "other key"     // leaf: not the CSR's key
	OtherName   Flaw = "other name"    // leaf: for wrong.test
	Expired     Flaw = "expired"       // leaf: since an hour
	NotYetValid Flaw = "not yet valid" // leaf: for another day
	LongChain   Flaw = "long chain"    // chain: of a hundred
	LeafOnly    Flaw = "leaf only"     // chain: without the intermediate
	EmptyChain  Flaw = "empty chain"   // chain: an empty body
	Garbage     Flaw = "garbage"       // chain: a PEM block that is no certificate
)

type certificate struct {
	leaf     *x509.Certificate
	account  *account
	names    []string
	issued   time.Time
	replaced *order // the latest order that replaces this certificate
	revoked  bool
	reason   int
	at       time.Time // of the revocation
}

// Issued returns the certificates issued for a name so far, the oldest first;
// for "" it returns them all.
func (ca *CA) Issued(name string) []*x509.Certificate {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	var list []*x509.Certificate
	for _, c := range ca.certs {
		if name == "" || slices.Contains(c.names, name) {
			list = append(list, c.leaf)
		}
	}
	return list
}

// Roots returns the CA's roots, those of the alternate chains too.
func (ca *CA) Roots() *x509.CertPool {
	h := hierarchyOf(ca.config().Host)
	pool := x509.NewCertPool()
	for _, root := range h.roots {
		pool.AddCert(root)
	}
	return pool
}

// Issuer returns the intermediate certificate and its key, for a test that
// has more to sign than certificates, such as OCSP responses.
func (ca *CA) Issuer() (*x509.Certificate, *ecdsa.PrivateKey) {
	h := hierarchyOf(ca.config().Host)
	return h.issuers[0], h.key
}

// finalize is RFC 8555 section 7.4, from "a request to the order's finalize URL".
func (ca *CA) finalize(rq *request) (*reply, *Error) {
	o, problem := ca.findOrder(rq)
	if problem != nil {
		return nil, problem
	}
	csr, problem := rq.parseCSR()
	if problem != nil {
		return nil, problem
	}
	key := spki(csr.PublicKey)
	if problem := ca.checkReady(rq, o, key); problem != nil {
		return nil, problem
	}
	if problem := ca.checkCSR(rq, o, csr, key); problem != nil {
		return nil, problem
	}
	o.Status, o.spki = "processing", key
	if rq.cfg.FinalizeTakes > 0 {
		time.AfterFunc(rq.cfg.FinalizeTakes, func() {
			ca.mu.Lock()
			defer ca.mu.Unlock()
			ca.issue(&rq.cfg, o, csr)
		})
	} else {
		ca.issue(&rq.cfg, o, csr)
	}
	return ca.orderReply(rq, o, http.StatusOK), nil
}

func (rq *request) parseCSR() (*x509.CertificateRequest, *Error) {
	var req struct{ CSR string }
	if problem := rq.decode(&req); problem != nil {
		return nil, problem
	}
	der, err := b64.DecodeString(req.CSR)
	if err != nil {
		return nil, rq.violate(http.StatusBadRequest, "badCSR", "csr is not base64url: %v", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, rq.violate(http.StatusBadRequest, "badCSR", "csr: %v", err)
	}
	return csr, nil
}

// checkReady checks that an order can be finalized. A client whose first try
// had no answer, or two of a fleet with the same key, may find it finalized
// already; and an order may expire at any moment. No client finalizes an order
// that never was ready.
func (ca *CA) checkReady(rq *request, o *order, key string) *Error {
	status := ca.orderStatus(o)
	if status == "ready" {
		return nil
	}
	finalized := o.spki != ""
	expired := status == "invalid" && !rq.now.Before(o.Expires)
	if finalized && o.spki == key || expired {
		return &Error{Status: http.StatusForbidden, Type: "orderNotReady", Detail: "order is " + status}
	}
	return rq.violate(http.StatusForbidden, "orderNotReady", "finalizing an order that is %s", status)
}

// checkCSR checks a CSR that carries a good signature.
func (ca *CA) checkCSR(rq *request, o *order, csr *x509.CertificateRequest, key string) *Error {
	names := slices.Clone(csr.DNSNames)
	for _, ip := range csr.IPAddresses {
		names = append(names, ip.String())
	}
	slices.Sort(names)
	cn := csr.Subject.CommonName
	bad := func(format string, args ...any) *Error {
		return rq.violate(http.StatusBadRequest, "badCSR", format, args...)
	}
	switch {
	case !slices.Equal(names, o.Names):
		return bad("CSR is for %q, the order for %q", names, o.Names)
	case cn != "" && !slices.Contains(names, cn):
		return bad("CSR's common name %q is none of its names", cn)
	case len(csr.EmailAddresses)+len(csr.URIs) > 0:
		return bad("CSR has names that are neither DNS names nor addresses")
	case ca.blocked[key]:
		return bad("CSR has a key that was revoked as compromised")
	case rq.cfg.FreshKeys && ca.certKeys[key]:
		return bad("CSR has an earlier certificate's key")
	}
	for _, a := range ca.accountList {
		if a.key.spki == key {
			return bad("CSR has an account's key (RFC 8555 section 11.1)")
		}
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return &Error{Status: http.StatusBadRequest, Type: "badCSR", Detail: err.Error()}
	}
	return nil
}

// checkKey reports what public CAs would not certify.
func checkKey(pub any) error {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub.Curve == elliptic.P256() || pub.Curve == elliptic.P384() {
			return nil
		}
	case *rsa.PublicKey:
		if bits := pub.N.BitLen(); bits == 2048 || bits == 3072 || bits == 4096 {
			return nil
		}
	}
	return fmt.Errorf("keys of type %T and this size are not certified", pub)
}

// issue ends a processing order with a certificate, or without one.
func (ca *CA) issue(cfg *Config, o *order, csr *x509.CertificateRequest) {
	if cfg.FailIssuance != nil {
		var problem *Error
		ca.ask(func() { problem = cfg.FailIssuance(slices.Clone(o.Names)) })
		if problem != nil {
			o.Status, o.problem = "invalid", problem
			return
		}
	}
	leaf, err := hierarchyOf(cfg.Host).sign(cfg.template(o, csr), csr.PublicKey, cfg.Flaw)
	if err != nil {
		o.Status, o.problem = "invalid", &Error{Status: http.StatusInternalServerError, Type: "serverInternal", Detail: err.Error()}
		return
	}
	o.Status, o.Serial = "valid", leaf.SerialNumber.Text(16)
	c := &certificate{leaf: leaf, account: o.account, names: o.Names, issued: time.Now()}
	ca.certs = append(ca.certs, c)
	ca.certByID[o.Serial], ca.certByARI[CertID(leaf)] = c, c
	ca.certKeys[o.spki] = true
	ca.spendIssuance(cfg.Limits, o, time.Now())
}

// template returns what an order's certificate says.
func (c *Config) template(o *order, csr *x509.CertificateRequest) *x509.Certificate {
	lifetime := c.Lifetime
	if o.Profile != "" {
		lifetime = c.Profiles[o.Profile]
	}
	begin := time.Now().UTC().Truncate(time.Second).Add(-c.Backdate)
	keyID := sha256.Sum256([]byte(o.spki))
	t := &x509.Certificate{
		NotBefore:             begin,
		NotAfter:              begin.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          keyID[:20], // RFC 7093 section 2
	}
	for _, id := range o.ids {
		if id.Type == "ip" {
			t.IPAddresses = append(t.IPAddresses, net.ParseIP(id.Value))
		} else {
			t.DNSNames = append(t.DNSNames, id.Value)
		}
	}
	if c.OCSPServer != "" {
		t.OCSPServer = []string{c.OCSPServer}
	}
	for _, ext := range csr.Extensions {
		if ext.Id.Equal(tlsFeature) {
			t.ExtraExtensions = append(t.ExtraExtensions, ext)
		}
	}
	c.Flaw.spoil(t)
	return t
}

// tlsFeature is how a CSR asks for "must staple" (RFC 7633).
var tlsFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

// spoil puts a leaf's flaw into its template.
func (f Flaw) spoil(t *x509.Certificate) {
	switch f {
	case OtherName:
		t.DNSNames, t.IPAddresses = []string{"wrong.test"}, nil
	case Expired:
		t.NotAfter = time.Now().Add(-time.Hour)
		t.NotBefore = t.NotAfter.Add(-time.Hour)
	case NotYetValid:
		t.NotBefore = t.NotBefore.Add(day)
		t.NotAfter = t.NotAfter.Add(day)
	}
}

// certificate is RFC 8555 section 7.4.2. The second chain is at the URL with
// /alternate.
func (ca *CA) certificate(rq *request) (*reply, *Error) {
	if problem := rq.wantRead(); problem != nil {
		return nil, problem
	}
	id, alternate := strings.CutSuffix(rq.id, "/alternate")
	c := ca.certByID[id]
	if c == nil {
		return nil, rq.violate(http.StatusNotFound, "malformed", "the CA never issued this certificate")
	}
	if c.account != rq.account {
		return nil, &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "another account's certificate"}
	}
	h := hierarchyOf(rq.cfg.Host)
	issuer, other := h.issuers[0], rq.cfg.url("cert", id, "alternate")
	if alternate {
		issuer, other = h.issuers[1], rq.cfg.url("cert", id)
	}
	rep := &reply{http.StatusOK, http.Header{"Content-Type": {"application/pem-certificate-chain"}}, rq.cfg.Flaw.chain(c.leaf, issuer)}
	if rq.cfg.Alternates {
		rep.header.Add("Link", "<"+other+`>;rel="alternate"`)
	}
	return rep, nil
}

// chain returns the PEM of a chain with its flaw.
func (f Flaw) chain(leaf, issuer *x509.Certificate) []byte {
	n := 1
	switch f {
	case EmptyChain:
		return []byte{}
	case Garbage:
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("garbage")})
	case LeafOnly:
		n = 0
	case LongChain:
		n = 100
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	up := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Raw})
	return append(chain, slices.Repeat(up, n)...)
}

// Revoked returns when and for what reason (RFC 5280 section 5.3.1) a certificate was revoked.
func (ca *CA) Revoked(leaf *x509.Certificate) (at time.Time, reason int, ok bool) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	c := ca.find(leaf)
	if c == nil || !c.revoked {
		return time.Time{}, 0, false
	}
	return c.at, c.reason, true
}

// find returns what the CA knows of a certificate, nil if it issued none like it.
func (ca *CA) find(leaf *x509.Certificate) *certificate {
	c := ca.certByID[leaf.SerialNumber.Text(16)]
	if c == nil || !c.leaf.Equal(leaf) {
		return nil
	}
	return c
}

// revoke is RFC 8555 section 7.6.
func (ca *CA) revoke(rq *request) (*reply, *Error) {
	var req struct {
		Certificate string
		Reason      int
	}
	if problem := rq.decode(&req); problem != nil {
		return nil, problem
	}
	der, err := b64.DecodeString(req.Certificate)
	if err != nil {
		return nil, rq.violate(http.StatusBadRequest, "malformed", "certificate is not base64url: %v", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, rq.violate(http.StatusBadRequest, "malformed", "certificate: %v", err)
	}
	c := ca.find(leaf)
	if c == nil {
		return nil, &Error{Status: http.StatusNotFound, Type: "malformed", Detail: "not a certificate of this CA"}
	}
	if problem := ca.mayRevoke(rq, c); problem != nil {
		return nil, problem
	}
	if !slices.Contains([]int{0, 1, 3, 4, 5}, req.Reason) {
		return nil, &Error{Status: http.StatusBadRequest, Type: "badRevocationReason", Detail: fmt.Sprintf("reason %d, want one of 0, 1, 3, 4, 5", req.Reason)}
	}
	switch byKey := rq.account == nil; {
	case byKey:
		req.Reason = 1 // as Let's Encrypt has it: whoever has the key, it is not secret
	case req.Reason == 1:
		return nil, &Error{Status: http.StatusBadRequest, Type: "badRevocationReason", Detail: "keyCompromise is for who has the key to say"}
	}
	if c.revoked {
		return nil, &Error{Status: http.StatusBadRequest, Type: "alreadyRevoked", Detail: "revoked already"}
	}
	c.revoked, c.reason, c.at = true, req.Reason, rq.now
	if req.Reason == 1 { // keyCompromise
		ca.blocked[spki(leaf.PublicKey)] = true
	}
	return &reply{status: http.StatusOK, header: make(http.Header)}, nil
}

// mayRevoke checks who asks for a revocation: the account that ordered the
// certificate, the holder of its key, or an account that is authorized for all
// its names.
func (ca *CA) mayRevoke(rq *request, c *certificate) *Error {
	if rq.account == nil {
		if rq.key.spki != spki(c.leaf.PublicKey) {
			return rq.violate(http.StatusForbidden, "unauthorized", "revocation is signed with neither an account's nor the certificate's key")
		}
		return nil
	}
	if rq.account == c.account {
		return nil
	}
	for _, name := range c.names {
		if a := rq.account.valid[name]; a == nil || authzStatus(a, rq.now) != "valid" {
			return &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "account is not authorized for " + name}
		}
	}
	return nil
}

// A hierarchy is the keys and CA certificates of one CA: two roots, each with
// a certificate for the same intermediate.
type hierarchy struct {
	roots, issuers [2]*x509.Certificate
	key            *ecdsa.PrivateKey // the intermediate's
}

// sign issues a certificate.
func (h *hierarchy) sign(t *x509.Certificate, pub any, flaw Flaw) (*x509.Certificate, error) {
	if flaw == OtherKey {
		pub = mustKey().Public()
	}
	t.SerialNumber = newSerial()
	der, err := x509.CreateCertificate(rand.Reader, t, h.issuers[0], pub, h.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns a positive serial number of 16 bytes.
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = 3 // as Let's Encrypt's begin, too
	return new(big.Int).SetBytes(b)
}

func mustKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic("catest: internal error: " + err.Error())
	}
	return key
}

func newHierarchy(host string) *hierarchy {
	h := &hierarchy{key: mustKey()}
	for i := range h.roots {
		rootKey := mustKey()
		root := caTemplate(fmt.Sprintf("%s Root %d", host, i+1))
		issuer := caTemplate(host + " Intermediate")
		h.roots[i] = mustSign(root, root, rootKey.Public(), rootKey)
		h.issuers[i] = mustSign(issuer, h.roots[i], h.key.Public(), rootKey)
	}
	return h
}

// caTemplate describes a CA's certificate: valid both in a bubble, where it is
// the year 2000, and outside.
func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"catest"}, CommonName: name},
		NotBefore:             time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
}

func mustSign(t, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err1 := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	cert, err2 := x509.ParseCertificate(der)
	if err := errors.Join(err1, err2); err != nil {
		panic("catest: internal error: " + err.Error())
	}
	return cert
}

// hierarchies holds a func() *hierarchy for each host: keys are made once a process.
var hierarchies sync.Map

func hierarchyOf(host string) *hierarchy {
	f, _ := hierarchies.LoadOrStore(host, sync.OnceValue(func() *hierarchy { return newHierarchy(host) }))
	return f.(func() *hierarchy)()
}
