package catest_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

func TestCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Lifetime = 45 * day
		ca.Backdate = time.Hour
		ca.OCSPServer = "http://ocsp.test"
		c := newClient(t, ca).register(t)
		leaf := c.mustObtain(t, "http-01", "b.example.com", "a.example.com", "192.0.2.7")
		if want := time.Now().Add(-time.Hour); !leaf.NotBefore.Equal(want) || !leaf.NotAfter.Equal(want.Add(45*day)) {
			t.Errorf("certificate is valid from %v to %v, want 45 days from %v", leaf.NotBefore, leaf.NotAfter, want)
		}
		if !slices.Equal(leaf.DNSNames, []string{"b.example.com", "a.example.com"}) || len(leaf.IPAddresses) != 1 {
			t.Errorf("certificate is for %q and %v", leaf.DNSNames, leaf.IPAddresses)
		}
		if leaf.Subject.CommonName != "" || leaf.IsCA || leaf.SerialNumber.Sign() <= 0 || len(leaf.SubjectKeyId) != 20 {
			t.Errorf("certificate has subject %v, IsCA %v, serial %v, key id %x", leaf.Subject, leaf.IsCA, leaf.SerialNumber, leaf.SubjectKeyId)
		}
		issuer, key := ca.Issuer()
		if string(leaf.AuthorityKeyId) != string(issuer.SubjectKeyId) || !key.PublicKey.Equal(issuer.PublicKey) {
			t.Errorf("authority key id is %x, the issuer's %x", leaf.AuthorityKeyId, issuer.SubjectKeyId)
		}
		if !slices.Equal(leaf.OCSPServer, []string{"http://ocsp.test"}) {
			t.Errorf("OCSP servers are %q", leaf.OCSPServer)
		}
		for _, name := range []string{"", "a.example.com", "192.0.2.7"} {
			if got := ca.Issued(name); len(got) != 1 || !got[0].Equal(leaf) {
				t.Errorf("Issued(%q) = %d certificates, want this one", name, len(got))
			}
		}
		if got := ca.Issued("example.com"); len(got) != 0 {
			t.Errorf("Issued(example.com) = %d certificates, want none", len(got))
		}
		o := ca.Orders()[0]
		if want := []string{"192.0.2.7", "a.example.com", "b.example.com"}; !slices.Equal(o.Names, want) || o.Serial != leaf.SerialNumber.Text(16) {
			t.Errorf("order is for %q with serial %s, want %q and %x", o.Names, o.Serial, want, leaf.SerialNumber)
		}
	})
}

func TestMustStaple(t *testing.T) {
	mustStaple := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		o := c.ready(t, "example.com")
		req := &x509.CertificateRequest{DNSNames: []string{"example.com"}, ExtraExtensions: []pkix.Extension{mustStaple}}
		der, err := x509.CreateCertificateRequest(rand.Reader, req, newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, der, true); err != nil {
			t.Fatal(err)
		}
		has := func(ext pkix.Extension) bool {
			return ext.Id.Equal(mustStaple.Id) && string(ext.Value) == string(mustStaple.Value)
		}
		if !slices.ContainsFunc(ca.Issued("example.com")[0].Extensions, has) {
			t.Error("certificate has no TLS feature extension")
		}
	})
}

func TestFlaws(t *testing.T) {
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when a bubble begins
	tests := []struct {
		flaw  catest.Flaw
		wrong func(chain []*x509.Certificate, err error) bool
	}{
		{"", func(chain []*x509.Certificate, err error) bool {
			return len(chain) == 2 && !now.Before(chain[0].NotBefore)
		}},
		{catest.OtherName, func(chain []*x509.Certificate, err error) bool { return chain[0].VerifyHostname("example.com") != nil }},
		{catest.Expired, func(chain []*x509.Certificate, err error) bool { return chain[0].NotAfter.Before(now) }},
		{catest.NotYetValid, func(chain []*x509.Certificate, err error) bool { return chain[0].NotBefore.After(now) }},
		{catest.LongChain, func(chain []*x509.Certificate, err error) bool {
			return err != nil && strings.Contains(err.Error(), "too long")
		}},
		{catest.LeafOnly, func(chain []*x509.Certificate, err error) bool { return len(chain) == 1 }},
		{catest.EmptyChain, func(chain []*x509.Certificate, err error) bool { return len(chain) == 0 }},
		{catest.Garbage, func(chain []*x509.Certificate, err error) bool { return err != nil }},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			ca.Flaw = test.flaw
			chain, err := newClient(t, ca).register(t).obtain(t, "http-01", "example.com")
			if !test.wrong(chain, err) {
				t.Errorf("with flaw %q: chain of %d, %v", test.flaw, len(chain), err)
			}
		})
	}
}

func TestFlawOtherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Flaw = catest.OtherKey
		c := newClient(t, ca).register(t)
		o := c.ready(t, "example.com")
		key := newKey(t)
		if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, key, "example.com"), true); err != nil {
			t.Fatal(err)
		}
		if ca.Issued("")[0].PublicKey.(*ecdsa.PublicKey).Equal(key.Public()) {
			t.Error("certificate has the CSR's key")
		}
	})
}

func TestAlternates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		c.mustObtain(t, "http-01", "example.com")
		url := "https://ca.test/cert/" + ca.Orders()[0].Serial
		if got, err := c.ListCertAlternates(t.Context(), url); err != nil || len(got) != 0 {
			t.Errorf("ListCertAlternates = %q, %v, want none", got, err)
		}
		ca.Change(func(c *catest.Config) { c.Alternates = true })
		alternates, err := c.ListCertAlternates(t.Context(), url)
		if err != nil || len(alternates) != 1 {
			t.Fatalf("ListCertAlternates = %q, %v, want one", alternates, err)
		}
		for url, want := range map[string]string{url: "ca.test Root 1", alternates[0]: "ca.test Root 2"} {
			chain, err := c.FetchCert(t.Context(), url, true)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err1 := x509.ParseCertificate(chain[0])
			top, err2 := x509.ParseCertificate(chain[1])
			if err1 != nil || err2 != nil || top.Issuer.CommonName != want {
				t.Errorf("%s: chain ends at %v, want %s", url, top.Issuer, want)
			}
			opts := x509.VerifyOptions{Roots: ca.Roots(), Intermediates: x509.NewCertPool()}
			opts.Intermediates.AddCert(top)
			if _, err := leaf.Verify(opts); err != nil {
				t.Errorf("%s: %v", url, err)
			}
		}
		if back, err := c.ListCertAlternates(t.Context(), alternates[0]); err != nil || !slices.Equal(back, []string{url}) {
			t.Errorf("the alternate's alternate is %q, %v, want %s", back, err, url)
		}
	})
}

func TestRevoke(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		c := newClient(t, ca).register(t)
		o := c.ready(t, "example.com")
		key := newKey(t)
		if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, key, "example.com"), true); err != nil {
			t.Fatal(err)
		}
		byKey := ca.Issued("")[0]
		byAccount := c.mustObtain(t, "http-01", "example.com")
		if _, _, ok := ca.Revoked(byKey); ok {
			t.Error("Revoked reports a certificate that is not")
		}

		other := newClient(t, ca).register(t)
		if err := other.RevokeCert(t.Context(), nil, byAccount.Raw, acme.CRLReasonUnspecified); !isProblem(err, 403, "unauthorized") {
			t.Errorf("revocation by another account: %v, want unauthorized", err)
		}
		if err := other.RevokeCert(t.Context(), newKey(t), byAccount.Raw, acme.CRLReasonUnspecified); !isProblem(err, 403, "unauthorized") {
			t.Errorf("revocation by another key: %v, want unauthorized", err)
		}
		rec.wantFailure(t, "revocation by another key", "neither an account's nor the certificate's key")
		if err := c.RevokeCert(t.Context(), nil, byAccount.Raw, acme.CRLReasonCACompromise); !isProblem(err, 400, "badRevocationReason") {
			t.Errorf("revocation for the CA's compromise: %v, want badRevocationReason", err)
		}
		if _, _, ok := ca.Revoked(byAccount); ok {
			t.Error("a refused revocation took place")
		}

		if err := c.RevokeCert(t.Context(), nil, byAccount.Raw, acme.CRLReasonSuperseded); err != nil {
			t.Errorf("revocation by the account: %v", err)
		}
		if err := other.RevokeCert(t.Context(), key, byKey.Raw, acme.CRLReasonKeyCompromise); err != nil {
			t.Errorf("revocation by the certificate's key: %v", err)
		}
		for leaf, want := range map[*x509.Certificate]int{byAccount: 4, byKey: 1} {
			if at, reason, ok := ca.Revoked(leaf); !ok || reason != want || !at.Equal(time.Now()) {
				t.Errorf("Revoked = %v, %d, %v, want now, %d, true", at, reason, ok, want)
			}
		}
		payload := fmt.Sprintf(`{"certificate":%q}`, b64(byKey.Raw))
		if p := newRaw(t, c, "https://ca.test/revoke", payload).send(t, ca.Client()); !p.is(400, "alreadyRevoked") {
			t.Errorf("second revocation: %d %s, want alreadyRevoked", p.Status, p.Type)
		}
		issuer, _ := ca.Issuer()
		if err := c.RevokeCert(t.Context(), nil, issuer.Raw, acme.CRLReasonUnspecified); !isProblem(err, 404, "malformed") {
			t.Errorf("revocation of what was not issued: %v, want 404", err)
		}

		c.serve()
		o = c.ready(t, "example.com")
		if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, key, "example.com"), true); !isProblem(err, 400, "badCSR") {
			t.Errorf("CSR with a compromised key: %v, want badCSR", err)
		}
		rec.wantFailure(t, "CSR with a compromised key", "revoked as compromised")
	})
}

// An account that is authorized for a certificate's names may revoke it.
func TestRevokeAuthorized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		leaf := newClient(t, ca).register(t).mustObtain(t, "http-01", "example.com")
		ca.Change(func(c *catest.Config) { c.AuthzReuse = day })
		other := newClient(t, ca).register(t)
		other.mustObtain(t, "http-01", "example.com")
		if err := other.RevokeCert(t.Context(), nil, leaf.Raw, acme.CRLReasonUnspecified); err != nil {
			t.Errorf("revocation by an authorized account: %v", err)
		}
	})
}

// renewalInfo reads a certificate's window.
func renewalInfo(t testing.TB, ca *catest.CA, leaf *x509.Certificate) (status int, start, end time.Time, h http.Header, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://ca.test/renewal-info/"+catest.CertID(leaf), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "test")
	res, err := ca.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var doc struct {
		SuggestedWindow struct{ Start, End time.Time }
		ExplanationURL  string
	}
	decode(t, res.Body, &doc)
	return res.StatusCode, doc.SuggestedWindow.Start, doc.SuggestedWindow.End, res.Header, doc.ExplanationURL
}

func TestRenewalInfo(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		begin := time.Now()
		ca.ARI = catest.SuggestedWindow
		c := newClient(t, ca).register(t)
		leaf := c.mustObtain(t, "http-01", "example.com")
		doc := c.directory(t)
		if doc["renewalInfo"] != "https://ca.test/renewal-info" {
			t.Errorf("directory has renewalInfo %v", doc["renewalInfo"])
		}
		status, start, end, h, _ := renewalInfo(t, ca, leaf)
		if status != 200 || !start.Equal(begin.Add(60*day-90*day/100)) || !end.Equal(begin.Add(60*day+90*day/100)) || h.Get("Retry-After") != "21600" {
			t.Errorf("renewalInfo = %d, from %v to %v, Retry-After %s, want around day 60 and 21600", status, start, end, h.Get("Retry-After"))
		}

		ca.Change(func(c *catest.Config) {
			c.Impolite = true
			c.ARI = func(got *x509.Certificate) catest.Window {
				if !got.Equal(ca.Issued("")[0]) { // a func may use the CA
					t.Errorf("ARI is asked about %v", got.Subject)
				}
				return catest.Window{Start: begin.Add(-2 * day), End: begin.Add(-day), RetryAfter: time.Minute, Explanation: "https://ca.test/why"}
			}
		})
		status, start, end, h, why := renewalInfo(t, ca, leaf)
		if status != 200 || !start.Equal(begin.Add(-2*day)) || !end.Equal(begin.Add(-day)) || h.Get("Retry-After") != "60" || why != "https://ca.test/why" {
			t.Errorf("renewalInfo = %d, from %v to %v, Retry-After %s, %s", status, start, end, h.Get("Retry-After"), why)
		}

		issuer, _ := ca.Issuer()
		if status, _, _, _, _ := renewalInfo(t, ca, issuer); status != 404 {
			t.Errorf("renewalInfo of an unknown certificate = %d, want 404", status)
		}
		ca.Change(func(c *catest.Config) { c.ARI = nil })
		if status, _, _, _, _ := renewalInfo(t, ca, leaf); status != 404 {
			t.Errorf("renewalInfo that ended = %d, want 404", status)
		}
		ca.Change(func(c *catest.Config) { c.ARI = catest.SuggestedWindow })
		time.Sleep(90*day + time.Second)
		renewalInfo(t, ca, leaf)
		rec.wantFailure(t, "renewalInfo of an expired certificate", "expired")
	})
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		c := newClient(t, ca).register(t)
		renewalInfo(t, ca, c.mustObtain(t, "http-01", "example.com"))
		rec.wantFailure(t, "renewalInfo that never was", "never offered")
	})
}

func TestRenewalInfoPolite(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		ca.ARI = catest.SuggestedWindow
		leaf := newClient(t, ca).register(t).mustObtain(t, "http-01", "example.com")
		renewalInfo(t, ca, leaf)
		time.Sleep(6*time.Hour - time.Second)
		renewalInfo(t, ca, leaf)
		rec.wantFailure(t, "asking early", "due in 1s")
		time.Sleep(6 * time.Hour)
		renewalInfo(t, ca, leaf)
	})
}

func TestRenewalInfoRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ARI = catest.SuggestedWindow
		c := newClient(t, ca).register(t)
		leaf := c.mustObtain(t, "http-01", "example.com")
		if err := c.RevokeCert(t.Context(), nil, leaf.Raw, acme.CRLReasonUnspecified); err != nil {
			t.Fatal(err)
		}
		if _, start, end, _, _ := renewalInfo(t, ca, leaf); !start.Before(end) || !end.Before(time.Now()) {
			t.Errorf("window of a revoked certificate is from %v to %v, want it in the past", start, end)
		}
	})
}

// A key may be certified again where it need not be fresh.
func TestKeyReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		key := newKey(t)
		for range 2 {
			o := c.ready(t, "example.com")
			if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, key, "example.com"), true); err != nil {
				t.Error(err)
			}
		}
	})
}

// The example of RFC 9773 section 4.1.
func TestCertID(t *testing.T) {
	leaf := &x509.Certificate{
		AuthorityKeyId: []byte{0x69, 0x88, 0x5B, 0x6B, 0x87, 0x46, 0x40, 0x41, 0xE1, 0xB3, 0x7B, 0x84, 0x7B, 0xA0, 0xAE, 0x2C, 0xDE, 0x01, 0xC8, 0xD4},
	}
	leaf.SerialNumber = bigInt("87654321")
	if got, want := catest.CertID(leaf), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"; got != want {
		t.Errorf("CertID = %s, want %s", got, want)
	}
}

func TestSuggestedWindow(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for life, want := range map[time.Duration]time.Duration{90 * day: 60 * day, 6 * day: 3 * day} {
		w := catest.SuggestedWindow(&x509.Certificate{NotBefore: begin, NotAfter: begin.Add(life)})
		middle := w.Start.Add(w.End.Sub(w.Start) / 2).Sub(begin)
		if middle != want || w.End.Sub(w.Start) != life/50 {
			t.Errorf("SuggestedWindow for %v is %v wide around %v, want %v around %v", life, w.End.Sub(w.Start), middle, life/50, want)
		}
	}
}

// newOrderReplacing sends a newOrder with "replaces".
func (c *client) newOrderReplacing(t testing.TB, name, certID string) *problem {
	t.Helper()
	payload := fmt.Sprintf(`{"identifiers":[{"type":"dns","value":%q}],"replaces":%q}`, name, certID)
	return newRaw(t, c, "https://ca.test/new-order", payload).send(t, c.ca.Client())
}

func TestReplaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ARI = catest.SuggestedWindow
		ca.OrderLifetime = time.Hour
		c := newClient(t, ca).register(t)
		leaf := c.mustObtain(t, "http-01", "example.com")
		other := newClient(t, ca).register(t)
		other.directory(t)
		id := catest.CertID(leaf)
		check := func(what string, p *problem, status int, typ string) {
			t.Helper()
			if p.Status != status || typ != "" && !p.is(status, typ) {
				t.Errorf("%s = %d %s, want %d %s", what, p.Status, p.Type, status, typ)
			}
		}
		check("unknown certificate", c.newOrderReplacing(t, "example.com", "AAAA.AAAA"), 404, "malformed")
		check("another account", other.newOrderReplacing(t, "example.com", id), 403, "unauthorized")
		check("other names", c.newOrderReplacing(t, "example.org", id), 400, "malformed")
		refuse := &catest.Error{Status: 500, Type: "serverInternal", Detail: "no"}
		ca.Change(func(c *catest.Config) { c.RefuseReplaces = func(string) *catest.Error { return refuse } })
		check("by order of the test", c.newOrderReplacing(t, "example.com", id), 500, "serverInternal")
		ca.Change(func(c *catest.Config) { c.RefuseReplaces = nil })
		check("good", c.newOrderReplacing(t, "example.com", id), 201, "")
		check("again", c.newOrderReplacing(t, "example.com", id), 409, "alreadyReplaced")
		time.Sleep(time.Hour) // the order that replaces has expired
		check("again after expiry", c.newOrderReplacing(t, "example.com", id), 201, "")
		orders := ca.Orders()
		if got := orders[len(orders)-1].Replaces; got != id {
			t.Errorf("order replaces %q, want %q", got, id)
		}
		if doc := c.document(t, orders[len(orders)-1].URL); doc["replaces"] != id {
			t.Errorf("order's document has replaces %v, want %s", doc["replaces"], id)
		}
	})
}

// A certificate that was replaced is asked about no more.
func TestRenewalInfoReplaced(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		ca.ARI = catest.SuggestedWindow
		c := newClient(t, ca).register(t)
		leaf := c.mustObtain(t, "http-01", "example.com")
		c.newOrderReplacing(t, "example.com", catest.CertID(leaf))
		url := ca.Orders()[1].URL
		o, err := c.GetOrder(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.fulfil(t, o, "http-01"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, newKey(t), "example.com"), true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		renewalInfo(t, ca, leaf) // by another member of the fleet
		rec.wantFailure(t, "asking soon after", "")
		time.Sleep(day + time.Second)
		renewalInfo(t, ca, leaf)
		rec.wantFailure(t, "asking a day later", "replaced")
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		ca.Pause("example.com")
		payload := `{"identifiers":[{"type":"dns","value":"example.com"}]}`
		p := newRaw(t, c, "https://ca.test/new-order", payload).send(t, ca.Client())
		if !p.is(429, "rateLimited") || p.header.Get("Retry-After") != "" || !strings.Contains(p.Detail, "https://ca.test/sfe/v1/unpause?jwt=") {
			t.Errorf("order for a paused name = %d %s, Retry-After %q, %q", p.Status, p.Type, p.header.Get("Retry-After"), p.Detail)
		}
		c.mustObtain(t, "http-01", "example.org")
		ca.Unpause("example.com")
		c.mustObtain(t, "http-01", "example.com")
	})
}

func TestLimits(t *testing.T) {
	week := 7 * day
	tests := []struct {
		name   string
		limits catest.Limits
		names  []string // of one order each
		good   int      // so many succeed
		wait   time.Duration
		detail string
	}{
		{"account", catest.Limits{OrdersPerAccount: catest.Limit{N: 3, Per: 3 * time.Hour}}, []string{"a.test.example", "b.test.example", "c.test.example", "d.test.example"}, 3, time.Hour, "new orders"},
		{"account, renewals", catest.Limits{OrdersPerAccount: catest.Limit{N: 1, Per: week}}, []string{"a.example", "a.example", "a.example"}, 3, 0, ""},
		{"domain", catest.Limits{CertsPerDomain: catest.Limit{N: 2, Per: week}}, []string{"a.x.example", "x.example", "a.y.example", "b.x.example"}, 3, week / 2, "x.example"},
		{"domain, renewals", catest.Limits{CertsPerDomain: catest.Limit{N: 1, Per: week}}, []string{"x.example", "x.example", "a.x.example"}, 2, week, "x.example"},
		{"domain, two names", catest.Limits{CertsPerDomain: catest.Limit{N: 2, Per: week}}, []string{"x.example a.x.example", "b.x.example", "c.x.example"}, 2, week / 2, "x.example"},
		{"domain, addresses", catest.Limits{CertsPerDomain: catest.Limit{N: 1, Per: week}}, []string{"2001:db8::1", "192.0.2.7", "2001:db8::2"}, 2, week, "2001:db8::/64"},
		{"set", catest.Limits{CertsPerSet: catest.Limit{N: 2, Per: week}}, []string{"a.example", "b.example", "a.example", "a.example"}, 3, week / 2, "exact set"},
		{"none", catest.Limits{}, []string{"a.example", "a.example", "a.example"}, 3, 0, ""},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			ca.Limits = &test.limits
			c := newClient(t, ca).register(t)
			c.RetryBackoff = func(int, *http.Request, *http.Response) time.Duration { return 0 }
			for i, name := range test.names {
				names := strings.Fields(name)
				_, err := c.obtain(t, "http-01", names...)
				if i < test.good {
					if err != nil {
						t.Errorf("%s: order %d: %v", test.name, i+1, err)
					}
					continue
				}
				wait, ok := acme.RateLimit(err)
				if !ok || !strings.Contains(err.Error(), test.detail) {
					t.Fatalf("%s: order %d: %v, want rateLimited about %s", test.name, i+1, err, test.detail)
				}
				// RateLimit reads the real clock for dates alone.
				if wait != test.wait {
					t.Errorf("%s: Retry-After is %v, want %v", test.name, wait, test.wait)
				}
				time.Sleep(wait)
				if _, err := c.obtain(t, "http-01", names...); err != nil {
					t.Errorf("%s: after Retry-After: %v", test.name, err)
				}
			}
		})
	}
}

func TestLimitFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Limits = catest.LetsEncryptLimits()
		c := newClient(t, ca).register(t)
		c.RetryBackoff = func(int, *http.Request, *http.Response) time.Duration { return 0 }
		http := ca.HTTP
		ca.Change(func(c *catest.Config) { c.HTTP = nil })
		for range 4 {
			c.obtain(t, "http-01", "example.com")
		}
		z := c.firstAuthz(t, "example.com")
		if err := c.RevokeAuthorization(t.Context(), z.URI); err != nil { // counts as well
			t.Fatal(err)
		}
		ca.Change(func(c *catest.Config) { c.HTTP = http })
		_, err := c.order(t, []string{"example.com"})
		if wait, ok := acme.RateLimit(err); !ok || wait != 12*time.Minute {
			t.Errorf("order after five failures: %v, %v, want rateLimited for 12 minutes", err, wait)
		}
		if _, err := c.order(t, []string{"*.example.com"}); err == nil {
			t.Error("order for the wildcard, which is validated at the same name, was not limited")
		}
		c.mustObtain(t, "http-01", "www.example.com")
		time.Sleep(12 * time.Minute)
		c.mustObtain(t, "http-01", "example.com")
	})
}

// An order that replaces a certificate in its window is exempt from all limits.
func TestLimitsExempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Limits = &catest.Limits{CertsPerSet: catest.Limit{N: 1, Per: 365 * day}}
		ca.ARI = catest.SuggestedWindow
		ca.OrderLifetime = time.Hour
		c := newClient(t, ca).register(t)
		leaf := c.mustObtain(t, "http-01", "example.com")
		if p := c.newOrderReplacing(t, "example.com", catest.CertID(leaf)); !p.is(429, "rateLimited") {
			t.Errorf("order before the window = %d %s, want rateLimited", p.Status, p.Type)
		}
		time.Sleep(60 * day)
		ca.Change(func(c *catest.Config) { c.Impolite = true })
		if p := c.newOrderReplacing(t, "example.com", catest.CertID(leaf)); p.Status != 201 {
			t.Errorf("order in the window = %d %s, want 201", p.Status, p.Type)
		}
	})
}
