package catest_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

const day = 24 * time.Hour

// document reads a resource as raw JSON.
func (c *client) document(t testing.TB, url string) map[string]any {
	t.Helper()
	res, err := c.ca.Client().Do(newRaw(t, c, url, "").request(t))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var doc map[string]any
	if err := json.NewDecoder(res.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestOrderStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 3 * time.Second
		ca.FinalizeTakes = 5 * time.Second
		c := newClient(t, ca).register(t)
		o, err := c.order(t, []string{"example.com"})
		if err != nil {
			t.Fatal(err)
		}
		var z *acme.Authorization
		check := func(when, order, authz, challenge string, challenges int) {
			t.Helper()
			doc := c.document(t, o.URI)
			if z, err = c.GetAuthorization(t.Context(), o.AuthzURLs[0]); err != nil {
				t.Fatal(err)
			}
			if doc["status"] != order || z.Status != authz || z.Challenges[0].Status != challenge || len(z.Challenges) != challenges {
				t.Errorf("%s: order %v, authorization %s, first of %d challenges %s, want %s, %s, of %d %s",
					when, doc["status"], z.Status, len(z.Challenges), z.Challenges[0].Status, order, authz, challenges, challenge)
			}
			if _, ok := doc["certificate"]; ok != (order == "valid") {
				t.Errorf("%s: order has a certificate URL: %v", when, ok)
			}
		}
		check("new", "pending", "pending", "pending", 3)
		c.answer(t, z, z.Challenges[0])
		if _, err := c.Accept(t.Context(), z.Challenges[0]); err != nil {
			t.Fatal(err)
		}
		check("accepted", "pending", "pending", "processing", 3)
		time.Sleep(2 * time.Second)
		check("nearly validated", "pending", "pending", "processing", 3)
		time.Sleep(time.Second)
		synctest.Wait()
		check("validated", "ready", "valid", "valid", 1)
		newRaw(t, c, o.FinalizeURL, fmt.Sprintf(`{"csr":%q}`, b64(csr(t, newKey(t), "example.com")))).send(t, ca.Client())
		check("finalized", "processing", "valid", "valid", 1)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		check("issued", "valid", "valid", "valid", 1)
		if leaf := ca.Issued("example.com")[0]; !leaf.NotBefore.Equal(time.Now()) {
			t.Errorf("certificate begins at %v, want %v", leaf.NotBefore, time.Now())
		}
	})
}

func TestFailedValidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		o, err := c.order(t, []string{"example.com"})
		if err != nil {
			t.Fatal(err)
		}
		ca.Change(func(c *catest.Config) { c.HTTP = nil })
		err = c.fulfil(t, o, "http-01")
		var failure *acme.AuthorizationError
		if !errors.As(err, &failure) || !isProblem(failure.Errors[0], 400, "connection") {
			t.Errorf("validation with nobody there: %v, want connection", err)
		}
		if _, err = c.WaitOrder(t.Context(), o.URI); err == nil {
			t.Error("order with a failed authorization did not fail")
		}
		z, err := c.GetAuthorization(t.Context(), o.AuthzURLs[0])
		if err != nil || len(z.Challenges) != 1 || z.Challenges[0].Status != "invalid" {
			t.Errorf("failed authorization has challenges %v, %v, want the failed one", z, err)
		}
		if got := ca.Validations(); len(got) != 1 || got[0].Name != "example.com" || got[0].Type != "http-01" || got[0].Err == nil {
			t.Errorf("Validations() = %v, want one failure", got)
		}
	})
}

func TestLeavePending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.LeavePending = true
		c := newClient(t, ca).register(t)
		z := c.firstAuthz(t, "example.com")
		chal := z.Challenges[1] // http-01, with no answer in place
		for range 2 {
			if _, err := c.Accept(t.Context(), chal); err != nil {
				t.Fatal(err)
			}
			got, err := c.GetChallenge(t.Context(), chal.URI)
			if err != nil || got.Status != "pending" || !isProblem(got.Error, 403, "unauthorized") {
				t.Errorf("failed challenge: %+v, %v, want pending with an error", got, err)
			}
		}
		c.answer(t, z, chal)
		if _, err := c.Accept(t.Context(), chal); err != nil {
			t.Fatal(err)
		}
		if got, err := c.GetChallenge(t.Context(), chal.URI); err != nil || got.Status != "valid" || got.Error != nil {
			t.Errorf("after the third try: %+v, %v, want valid and no error", got, err)
		}
	})
}

func TestPerspectives(t *testing.T) {
	tests := []struct {
		perspectives int
		takes        time.Duration
		want         []time.Duration // when it was asked
	}{
		{0, 0, []time.Duration{0}},
		{2, 0, []time.Duration{0, 0}},
		{0, 3 * time.Second, []time.Duration{1 * time.Second, 2 * time.Second, 3 * time.Second}},
		{2, 3 * time.Second, []time.Duration{1500 * time.Millisecond, 3 * time.Second}},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			c := newClient(t, ca).register(t)
			var asked []time.Duration
			start := time.Now()
			ca.Change(func(conf *catest.Config) {
				conf.Perspectives, conf.ValidationTakes = test.perspectives, test.takes
				txt := conf.TXT
				conf.TXT = func(name string) []string {
					asked = append(asked, time.Since(start))
					return txt(name)
				}
			})
			c.mustObtain(t, "dns-01", "example.com")
			if !slices.Equal(asked, test.want) {
				t.Errorf("%d perspectives, %v: asked at %v, want %v", test.perspectives, test.takes, asked, test.want)
			}
		})
	}
}

// A test may end while a validation is on its way, an order is processing and
// a server does not answer.
func TestEndOfTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = time.Hour
		ca.FinalizeTakes = time.Hour
		c := newClient(t, ca).register(t)
		z := c.firstAuthz(t, "example.com")
		if _, err := c.Accept(t.Context(), z.Challenges[0]); err != nil {
			t.Fatal(err)
		}
		ca.Change(func(c *catest.Config) { c.ValidationTakes = 0 })
		o := c.ready(t, "example.org")
		newRaw(t, c, o.FinalizeURL, fmt.Sprintf(`{"csr":%q}`, b64(csr(t, newKey(t), "example.org")))).send(t, ca.Client())
	})
}

func TestFailIssuance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.FailIssuance = func(names []string) *catest.Error {
			if len(ca.Orders()) == 1 { // a func may use the CA
				return &catest.Error{Status: 403, Type: "caa", Detail: "no"}
			}
			return nil
		}
		c := newClient(t, ca).register(t)
		_, err := c.obtain(t, "http-01", "example.com")
		var failure *acme.OrderError
		if !errors.As(err, &failure) || !isProblem(failure.Problem, 403, "caa") {
			t.Errorf("obtain = %v, want a failed order with caa", err)
		}
		c.mustObtain(t, "http-01", "example.com")
	})
}

func TestRefuseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Profiles = map[string]time.Duration{"short": 6 * day}
		ca.RefuseOrder = func(names []string, profile string) *catest.Error {
			if names[0] == "192.0.2.7" && profile != "short" {
				return &catest.Error{Status: 400, Type: "rejectedIdentifier", Detail: "addresses need a short profile",
					Subproblems: []catest.Subproblem{{Type: "rejectedIdentifier", Detail: "short", Name: names[0]}}}
			}
			return nil
		}
		c := newClient(t, ca).register(t)
		_, err := c.order(t, []string{"192.0.2.7"})
		if !isProblem(err, 400, "rejectedIdentifier") {
			t.Errorf("order = %v, want rejectedIdentifier", err)
		}
		var e *acme.Error
		if errors.As(err, &e) && (len(e.Subproblems) != 1 || e.Subproblems[0].Identifier.Value != "192.0.2.7") {
			t.Errorf("subproblems are %v, want one for 192.0.2.7", e.Subproblems)
		}
		if _, err := c.order(t, []string{"192.0.2.7"}, acme.WithOrderIssuanceProfile("short")); err != nil {
			t.Errorf("order with the profile: %v", err)
		}
	})
}

func TestProfiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Profiles = map[string]time.Duration{"short": 6 * day, "long": 300 * day}
		c := newClient(t, ca).register(t)
		for profile, want := range map[acme.ProfileName]time.Duration{"": 90 * day, "short": 6 * day, "long": 300 * day} {
			var opts []acme.OrderOption
			if profile != "" {
				opts = append(opts, acme.WithOrderIssuanceProfile(profile))
			}
			o, err := c.order(t, []string{"example.com"}, opts...)
			if err != nil {
				t.Fatal(err)
			}
			if o.Profile != profile {
				t.Errorf("order has profile %q, want %q", o.Profile, profile)
			}
			if err := c.fulfil(t, o, "http-01"); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, newKey(t), "example.com"), true); err != nil {
				t.Fatal(err)
			}
			certs := ca.Issued("example.com")
			leaf := certs[len(certs)-1]
			if got := leaf.NotAfter.Sub(leaf.NotBefore); got != want {
				t.Errorf("certificate of profile %q lives %v, want %v", profile, got, want)
			}
		}
		ca.Change(func(c *catest.Config) { c.Profiles = nil })
		if _, err := c.order(t, []string{"example.com"}, acme.WithOrderIssuanceProfile("short")); !isProblem(err, 400, "invalidProfile") {
			t.Errorf("order with a profile that is gone: %v, want invalidProfile", err)
		}
	})
}

func TestChallengesOffered(t *testing.T) {
	all := []string{"tls-alpn-01", "http-01", "dns-01", "dns-persist-01"}
	tests := []struct {
		name  string
		types []string
		want  string
	}{
		{"example.com", nil, "tls-alpn-01 http-01 dns-01"},
		{"example.com", all, "tls-alpn-01 http-01 dns-01 dns-persist-01"},
		{"example.com", []string{"http-01"}, "http-01"},
		{"*.example.com", all, "dns-01 dns-persist-01"},
		{"192.0.2.7", all, "tls-alpn-01 http-01"},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			if test.types != nil {
				ca.Challenges = test.types
			}
			c := newClient(t, ca).register(t)
			z := c.firstAuthz(t, test.name)
			var got []string
			for _, chal := range z.Challenges {
				got = append(got, chal.Type)
				if (chal.Token == "") != (chal.Type == "dns-persist-01") {
					t.Errorf("%s has token %q", chal.Type, chal.Token)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("challenges for %s of %q: %s, want %s", test.name, test.types, got, test.want)
			}
			if want := strings.HasPrefix(test.name, "*"); z.Wildcard != want || strings.Contains(z.Identifier.Value, "*") {
				t.Errorf("authorization for %s: wildcard %v, identifier %s", test.name, z.Wildcard, z.Identifier.Value)
			}
		})
	}
}

func TestAuthzReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		obtain := func(when string, validations int) {
			t.Helper()
			before := len(ca.Validations())
			c.mustObtain(t, "dns-01", "example.com", "*.example.com")
			if got := len(ca.Validations()) - before; got != validations {
				t.Errorf("%s: %d validations, want %d", when, got, validations)
			}
		}
		obtain("first, no reuse", 2)
		obtain("second, no reuse", 2)
		ca.Change(func(c *catest.Config) { c.AuthzReuse = 7 * time.Hour })
		obtain("first", 2)
		time.Sleep(6 * time.Hour)
		obtain("6 hours later", 0)
		time.Sleep(time.Hour)
		obtain("7 hours later", 2)
		other := newClient(t, ca).register(t)
		other.mustObtain(t, "http-01", "example.com")
		if got := len(ca.Validations()); got != 9 {
			t.Errorf("another account: %d validations, want 9", got)
		}
		c.serve()
		ca.Change(func(c *catest.Config) { c.AuthzReuse = 0 })
		obtain("no reuse any more", 2)
	})
}

func TestOrderReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Profiles = map[string]time.Duration{"short": 6 * day}
		c := newClient(t, ca).register(t)
		order := func(names []string, opts ...acme.OrderOption) string {
			t.Helper()
			o, err := c.order(t, names, opts...)
			if err != nil {
				t.Fatal(err)
			}
			return o.URI
		}
		names := []string{"a.test.example", "b.test.example"}
		if one, two := order(names), order(names); one == two {
			t.Error("order was reused without OrderReuse")
		}
		ca.Change(func(c *catest.Config) { c.OrderReuse = true; c.AuthzReuse = day })
		first := order(names)
		if got := order([]string{names[1], names[0]}); got != first {
			t.Errorf("order for the same names is %s, want %s", got, first)
		}
		for _, other := range []string{order(names[:1]), order(names, acme.WithOrderIssuanceProfile("short"))} {
			if other == first {
				t.Error("another order was taken for the same")
			}
		}
		if _, err := c.obtain(t, "http-01", names...); err != nil {
			t.Fatal(err)
		}
		if order(names) == first {
			t.Error("a valid order was reused")
		}
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.OrderLifetime = 8 * time.Hour
		ca.AuthzLifetime = time.Hour
		c := newClient(t, ca).register(t)
		o, err := c.order(t, []string{"example.com"})
		if err != nil {
			t.Fatal(err)
		}
		if want := time.Now().Add(time.Hour); !o.Expires.Equal(want) {
			t.Errorf("order expires at %v, want %v as its authorization", o.Expires, want)
		}
		time.Sleep(time.Hour)
		z, err := c.GetAuthorization(t.Context(), o.AuthzURLs[0])
		if err != nil || z.Status != "invalid" {
			t.Errorf("authorization after its time: %v, %v, want invalid", z, err)
		}
		if _, err := c.WaitOrder(t.Context(), o.URI); err == nil {
			t.Error("order after its time did not fail")
		}
		if got := ca.Orders()[0].Status; got != "invalid" {
			t.Errorf("Orders()[0].Status = %s, want invalid", got)
		}
		o = c.ready(t, "example.com")
		time.Sleep(time.Hour)
		z, err = c.GetAuthorization(t.Context(), o.AuthzURLs[0])
		if err != nil || z.Status != "expired" {
			t.Errorf("valid authorization after its time: %v, %v, want expired", z, err)
		}
	})
}

func TestDeactivateAuthz(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		o, err := c.order(t, []string{"example.com"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.RevokeAuthorization(t.Context(), o.AuthzURLs[0]); err != nil {
			t.Fatal(err)
		}
		if z, err := c.GetAuthorization(t.Context(), o.AuthzURLs[0]); err != nil || z.Status != "deactivated" {
			t.Errorf("authorization: %v, %v, want deactivated", z, err)
		}
		if got := c.document(t, o.URI)["status"]; got != "invalid" {
			t.Errorf("order is %v, want invalid", got)
		}
	})
}

// What belongs to another account is refused, as it is after an account was made anew.
func TestAnotherAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		c.mustObtain(t, "http-01", "example.com")
		o := ca.Orders()[0]
		z := c.firstAuthz(t, "example.com")
		other := newClient(t, ca).register(t)
		for _, url := range []string{o.URL, z.URI, z.Challenges[0].URI, "https://ca.test/cert/" + o.Serial} {
			if p := newRaw(t, other, url, "").send(t, ca.Client()); !p.is(403, "unauthorized") {
				t.Errorf("%s by another account: %d %s, want 403 unauthorized", url, p.Status, p.Type)
			}
		}
	})
}

// A challenge is accepted once, and none when the authorization is decided.
func TestAcceptTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 3 * time.Second
		c := newClient(t, ca).register(t)
		z := c.firstAuthz(t, "example.com")
		c.answer(t, z, z.Challenges[0])
		if _, err := c.Accept(t.Context(), z.Challenges[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Accept(t.Context(), z.Challenges[0]); !isProblem(err, 400, "malformed") {
			t.Errorf("second Accept: %v, want 400 malformed", err)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if _, err := c.Accept(t.Context(), z.Challenges[1]); !isProblem(err, 400, "malformed") {
			t.Errorf("Accept of another challenge afterwards: %v, want 400 malformed", err)
		}
	})
}

// Of two challenges that are accepted, the first outcome counts.
func TestAcceptTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.ValidationTakes = 3 * time.Second
		c := newClient(t, ca).register(t)
		z := c.firstAuthz(t, "example.com")
		c.answer(t, z, z.Challenges[1])
		for _, chal := range z.Challenges[:2] {
			if _, err := c.Accept(t.Context(), chal); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		got, err := c.GetAuthorization(t.Context(), z.URI)
		if err != nil || got.Status != "invalid" || len(ca.Validations()) != 2 {
			t.Errorf("after a failure and a success: %v, %v, want invalid", got, err)
		}
	})
}

func TestKeyTypes(t *testing.T) {
	p384, err1 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsa2048, err2 := rsa.GenerateKey(rand.Reader, 2048)
	_, ed, err3 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		for _, accountKey := range []*client{{Client: &acme.Client{Key: p384}}, {Client: &acme.Client{Key: rsa2048}}} {
			c := newClient(t, ca)
			c.Key = accountKey.Key
			c.register(t).mustObtain(t, "tls-alpn-01", "example.com")
		}
		c := newClient(t, ca).register(t)
		o := c.ready(t, "example.com")
		if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, ed, "example.com"), true); !isProblem(err, 400, "badCSR") {
			t.Errorf("CSR with an Ed25519 key: %v, want badCSR", err)
		}
		// The order is still there for a CSR with a better key.
		p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, p384, "example.com"), true); err != nil {
			t.Errorf("CSR with a key on P-384: %v", err)
		}
	})
}
