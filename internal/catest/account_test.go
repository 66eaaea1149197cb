package catest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"testing"
	"testing/synctest"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

func decode(t testing.TB, r io.Reader, v any) {
	t.Helper()
	if err := json.NewDecoder(r).Decode(v); err != nil {
		t.Fatal(err)
	}
}

func bigInt(hex string) *big.Int {
	n, ok := new(big.Int).SetString(hex, 16)
	if !ok {
		panic("not a number: " + hex)
	}
	return n
}

// directory reads the directory as raw JSON.
func (c *client) directory(t testing.TB) map[string]any {
	t.Helper()
	_, body, err := get(t.Context(), c.ca)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca)
		if _, err := c.GetReg(t.Context(), ""); !errors.Is(err, acme.ErrNoAccount) {
			t.Errorf("GetReg without an account: %v, want %v", err, acme.ErrNoAccount)
		}
		a, err := c.Register(t.Context(), &acme.Account{Contact: []string{"mailto:a@example.com"}}, acme.AcceptTOS)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); !errors.Is(err, acme.ErrAccountAlreadyExists) {
			t.Errorf("second Register: %v, want %v", err, acme.ErrAccountAlreadyExists)
		}
		if got, err := c.GetReg(t.Context(), ""); err != nil || got.URI != a.URI || got.Status != "valid" {
			t.Errorf("GetReg = %+v, %v, want %s, valid", got, err, a.URI)
		}
		if _, err := c.UpdateReg(t.Context(), &acme.Account{Contact: []string{"mailto:b@example.com"}}); err != nil {
			t.Fatal(err)
		}
		c.order(t, []string{"example.com"})
		if doc := c.document(t, "https://ca.test/orders/1"); len(doc["orders"].([]any)) != 1 {
			t.Errorf("the account's orders are %v, want one", doc["orders"])
		}
		accounts := ca.Accounts()
		if len(accounts) != 1 || accounts[0].URL != a.URI || !slices.Equal(accounts[0].Contact, []string{"mailto:b@example.com"}) {
			t.Errorf("Accounts() = %+v, want one with the new contact", accounts)
		}
		if err := c.DeactivateReg(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.order(t, []string{"example.com"}); !isProblem(err, 403, "unauthorized") {
			t.Errorf("order of a deactivated account: %v, want unauthorized", err)
		}
		if _, err := c.GetReg(t.Context(), ""); !isProblem(err, 403, "unauthorized") {
			t.Errorf("GetReg of a deactivated account: %v, want unauthorized", err)
		}
	})
}

func TestContact(t *testing.T) {
	for contact, want := range map[string]string{
		"mailto:a@example.com": "", "tel:1": "unsupportedContact", "mailto:a": "invalidContact",
		"mailto:a@b": "invalidContact", "mailto:a@b.test,c@d.test": "invalidContact", "mailto:a@b.test?x=y": "invalidContact",
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newClient(t, catest.New(t))
			_, err := c.Register(t.Context(), &acme.Account{Contact: []string{contact}}, acme.AcceptTOS)
			if want == "" && err != nil || want != "" && !isProblem(err, 400, want) {
				t.Errorf("Register(%s): %v, want %q", contact, err, want)
			}
		})
	}
}

func TestTerms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Terms = "https://ca.test/terms"
		c := newClient(t, ca)
		var asked string
		disagree := func(url string) bool { asked = url; return false }
		if _, err := c.Register(t.Context(), &acme.Account{}, disagree); !isProblem(err, 403, "userActionRequired") || asked != ca.Terms {
			t.Errorf("Register without agreement to %q: %v, want userActionRequired", asked, err)
		}
		c.register(t)
	})
}

func TestForgottenAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		c.mustObtain(t, "http-01", "example.com")
		ca.ForgetAccounts()
		if _, err := c.order(t, []string{"example.com"}); !isProblem(err, 400, "accountDoesNotExist") {
			t.Errorf("order of a forgotten account: %v, want accountDoesNotExist", err)
		}
		if got := len(ca.Accounts()); got != 0 {
			t.Errorf("%d accounts after ForgetAccounts, want 0", got)
		}
		c.KID = ""
		c.register(t).mustObtain(t, "http-01", "example.com")
	})
}

func TestDeactivatedAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		ca.DeactivateAccounts()
		if _, err := c.order(t, []string{"example.com"}); !isProblem(err, 403, "unauthorized") {
			t.Errorf("order of a deactivated account: %v, want unauthorized", err)
		}
	})
}

func TestKeyChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		old := c.Key
		if err := c.AccountKeyRollover(t.Context(), newKey(t)); err != nil {
			t.Fatal(err)
		}
		c.mustObtain(t, "http-01", "example.com")
		other := newClient(t, ca).register(t)
		if err := other.AccountKeyRollover(t.Context(), c.Key); !isProblem(err, 409, "malformed") {
			t.Errorf("rollover to another account's key: %v, want 409", err)
		}
		c.Key, c.KID = old, ""
		if _, err := c.GetReg(t.Context(), ""); !errors.Is(err, acme.ErrNoAccount) {
			t.Errorf("GetReg with the old key: %v, want %v", err, acme.ErrNoAccount)
		}
	})
}

func TestStrictKeyChange(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		c := newClient(t, ca).register(t)
		key := newKey(t)
		const url = "https://ca.test/key-change"
		header := map[string]any{"alg": "ES256", "jwk": jwk(t, key), "url": url}
		payload := func(account string) []byte {
			return fmt.Appendf(nil, `{"account":%q,"oldKey":%s}`, account, jwk(t, c.Key))
		}
		for what, inner := range map[string][]byte{
			"no JWS":          []byte("{}"),
			"another key":     sign(t, newKey(t), header, payload(string(c.KID))),
			"another account": sign(t, key, header, payload("https://ca.test/account/9")),
			"no payload":      sign(t, key, header, nil),
		} {
			if p := newRaw(t, c, url, string(inner)).send(t, ca.Client()); !p.is(400, "malformed") {
				t.Errorf("keyChange with %s = %d %s, want malformed", what, p.Status, p.Type)
			}
			rec.wantFailure(t, what, "inner")
		}
		if p := newRaw(t, c, url, string(sign(t, key, header, payload(string(c.KID))))).send(t, ca.Client()); p.Status != 200 {
			t.Errorf("keyChange = %d %s, want 200", p.Status, p.Type)
		}
	})
}

func TestEAB(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.EAB = map[string][]byte{"kid-1": []byte("secret")}
		ca.EABOnce = true
		c := newClient(t, ca)
		meta := c.directory(t)["meta"].(map[string]any)
		if meta["externalAccountRequired"] != true {
			t.Errorf("directory's meta is %v, want externalAccountRequired", meta)
		}
		register := func(eab *acme.ExternalAccountBinding) error {
			_, err := c.Register(t.Context(), &acme.Account{ExternalAccountBinding: eab}, acme.AcceptTOS)
			return err
		}
		if err := register(nil); !isProblem(err, 403, "externalAccountRequired") {
			t.Errorf("Register without a binding: %v, want externalAccountRequired", err)
		}
		for _, eab := range []acme.ExternalAccountBinding{{KID: "kid-1", Key: []byte("guess")}, {KID: "kid-2", Key: []byte("secret")}, {KID: "kid-2", Key: []byte{0}}} {
			if err := register(&eab); !isProblem(err, 403, "unauthorized") {
				t.Errorf("Register with %s: %v, want unauthorized", eab.KID, err)
			}
		}
		good := &acme.ExternalAccountBinding{KID: "kid-1", Key: []byte("secret")}
		if err := register(good); err != nil {
			t.Errorf("Register with a good binding: %v", err)
		}
		if got := ca.Accounts()[0].EAB; got != "kid-1" {
			t.Errorf("the account is bound to %q, want kid-1", got)
		}
		c = newClient(t, ca)
		if err := register(good); !isProblem(err, 403, "unauthorized") {
			t.Errorf("Register with a spent binding: %v, want unauthorized", err)
		}
		ca.Change(func(c *catest.Config) { c.EABOnce = false })
		if err := register(good); err != nil {
			t.Errorf("Register with a binding that may be used again: %v", err)
		}
	})
}

func TestStrictEAB(t *testing.T) {
	other := newKey(t)
	for what, edit := range map[string]func(header map[string]any, payload *[]byte){
		"alg":     func(h map[string]any, _ *[]byte) { h["alg"] = "ES256" },
		"kid":     func(h map[string]any, _ *[]byte) { delete(h, "kid") },
		"nonce":   func(h map[string]any, _ *[]byte) { h["nonce"] = "x" },
		"url":     func(h map[string]any, _ *[]byte) { h["url"] = "https://ca.test/dir" },
		"payload": func(_ map[string]any, p *[]byte) { *p = jwk(t, other) },
	} {
		strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
			ca.EAB = map[string][]byte{"kid-1": []byte("secret")}
			c := newClient(t, ca)
			const url = "https://ca.test/new-account"
			header := map[string]any{"alg": "HS256", "kid": "kid-1", "url": url}
			payload := []byte(jwk(t, c.Key))
			edit(header, &payload)
			r := newRaw(t, c, url, fmt.Sprintf(`{"externalAccountBinding":%s}`, sign(t, c.Key, header, payload)))
			delete(r.protected, "kid")
			r.protected["jwk"] = jwk(t, c.Key)
			if p := r.send(t, ca.Client()); !p.is(400, "malformed") {
				t.Errorf("binding with a bad %s = %d %s, want malformed", what, p.Status, p.Type)
			}
			rec.wantFailure(t, what, "externalAccountBinding: ")
		})
	}
}

func TestAccountKeyOfCertificate(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		c := newClient(t, ca).register(t)
		o := c.ready(t, "example.com")
		other := newClient(t, ca)
		if _, _, err := c.CreateOrderCert(t.Context(), o.FinalizeURL, csr(t, other.Key, "example.com"), true); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); !isProblem(err, 400, "badPublicKey") {
			t.Errorf("Register with a certificate's key: %v, want badPublicKey", err)
		}
		rec.wantFailure(t, "account with a certificate's key", "is a certificate's")
	})
}
