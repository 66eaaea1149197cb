package ca

import (
	"crypto"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

// inNewWorld is inWorld with a client that has no account.
func inNewWorld(t *testing.T, configure func(*catest.Config), f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, ca: catest.New(t)}
		if configure != nil {
			configure(&w.ca.Config)
		}
		w.client = New(w.ca.Directory(), w.ca.Client(), newKey(t), "")
		f(t, w)
	})
}

func TestRegister(t *testing.T) {
	terms := func(c *catest.Config) { c.Terms = "https://ca.test/terms" }
	inNewWorld(t, terms, func(t *testing.T, w *world) {
		kid, err := w.client.Register(t.Context(), []string{"mailto:a@example.com"}, nil, false)
		if err != nil {
			t.Fatal(err) // catest wants the terms agreed to
		}
		accounts := w.ca.Accounts()
		if len(accounts) != 1 || accounts[0].URL != kid || !slices.Equal(accounts[0].Contact, []string{"mailto:a@example.com"}) {
			t.Errorf("Register = %s, of accounts %v", kid, accounts)
		}
		if w.client.KID() != kid {
			t.Errorf("KID = %q, want %q", w.client.KID(), kid)
		}
	})
}

// A key that has an account finds it, whether that was known or not.
func TestRegisterAgain(t *testing.T) {
	for _, known := range []bool{false, true} {
		inNewWorld(t, nil, func(t *testing.T, w *world) {
			first, err := w.client.Register(t.Context(), nil, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			again := New(w.ca.Directory(), w.ca.Client(), w.client.key, "")
			kid, err := again.Register(t.Context(), nil, nil, known)
			if err != nil || kid != first || again.KID() != first {
				t.Errorf("known %v: Register = %q, %v, want %q", known, kid, err, first)
			}
			if n := len(w.ca.Accounts()); n != 1 {
				t.Errorf("known %v: %d accounts, want 1", known, n)
			}
		})
	}
}

// A key that may have an account and has none gets one.
func TestRegisterKnownKeyWithoutAccount(t *testing.T) {
	inNewWorld(t, nil, func(t *testing.T, w *world) {
		if kid, err := w.client.Register(t.Context(), nil, nil, true); err != nil || kid == "" {
			t.Errorf("Register = %q, %v, want an account", kid, err)
		}
		if got, want := w.asked(), "directory newNonce newAccount newAccount"; got != want {
			t.Errorf("the CA was asked for %s, want %s", got, want)
		}
	})
}

// A binding is used once: where the account exists it is found without.
func TestRegisterEAB(t *testing.T) {
	eab := &acme.ExternalAccountBinding{KID: "customer 7", Key: []byte("a very secret key of 32 bytes...")}
	wanted := func(c *catest.Config) { c.EAB, c.EABOnce = map[string][]byte{eab.KID: eab.Key}, true }
	inNewWorld(t, wanted, func(t *testing.T, w *world) {
		_, err := w.client.Register(t.Context(), nil, nil, false)
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Refused || !strings.Contains(err.Error(), "CA.EAB") {
			t.Errorf("without a binding: %v, want that it is needed", err)
		}
		if n := w.ca.Count("newAccount"); n != 0 {
			t.Errorf("without a binding: asked for %d accounts, want 0", n)
		}
		first, err := w.client.Register(t.Context(), nil, eab, false)
		if err != nil {
			t.Fatal(err)
		}
		again := New(w.ca.Directory(), w.ca.Client(), w.client.key, "")
		if kid, err := again.Register(t.Context(), nil, eab, true); err != nil || kid != first {
			t.Errorf("Register again = %q, %v, want %q", kid, err, first)
		}
		if kid, err := again.Register(t.Context(), nil, nil, true); err != nil || kid != first {
			t.Errorf("Register again, without a binding = %q, %v, want %q", kid, err, first)
		}
		if a := w.ca.Accounts()[0]; a.EAB != eab.KID {
			t.Errorf("the account is bound to %q, want %q", a.EAB, eab.KID)
		}
		other := New(w.ca.Directory(), w.ca.Client(), newKey(t), "")
		wrong := &acme.ExternalAccountBinding{KID: eab.KID, Key: []byte("another key")}
		_, err = other.Register(t.Context(), nil, wrong, false)
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Refused || !strings.Contains(err.Error(), eab.KID) {
			t.Errorf("with a wrong key: %v, want that %s is refused", err, eab.KID)
		}
	})
}

// What a CA says of a binding that it does not take is told in its own words,
// with the key ID to look for, and never the MAC key.
func TestRegisterEABRefused(t *testing.T) {
	good := &acme.ExternalAccountBinding{KID: "customer 7", Key: []byte("a very secret key of 32 bytes...")}
	tests := []struct {
		name  string
		eab   acme.ExternalAccountBinding
		words string // the CA's; "" if it is not asked
	}{
		{"wrong key", acme.ExternalAccountBinding{KID: good.KID, Key: []byte("another secret")}, "wrong MAC"},
		{"unknown key ID", acme.ExternalAccountBinding{KID: "customer 8", Key: good.Key}, "unknown key id"},
		{"spent", *good, "used before"},
		{"no key", acme.ExternalAccountBinding{KID: good.KID}, ""},
		{"no key ID", acme.ExternalAccountBinding{Key: good.Key}, ""},
	}
	wanted := func(c *catest.Config) { c.EAB, c.EABOnce = map[string][]byte{good.KID: good.Key}, true }
	for _, test := range tests {
		inNewWorld(t, wanted, func(t *testing.T, w *world) {
			first := New(w.ca.Directory(), w.ca.Client(), newKey(t), "")
			if _, err := first.Register(t.Context(), nil, good, false); err != nil {
				t.Fatal(err)
			}
			w.asked()
			_, err := w.client.Register(t.Context(), nil, &test.eab, false)
			f, ok := errors.AsType[*Failure](err)
			if !ok || f.Class != Refused || !strings.HasPrefix(err.Error(), "making the account: ") || !strings.Contains(err.Error(), "CA.EAB") {
				t.Fatalf("%s: Register = %v, want a refusal that says what to mend", test.name, err)
			}
			if strings.Contains(err.Error(), "secret") || w.client.KID() != "" {
				t.Errorf("%s: %v has the MAC key, or there is an account", test.name, err)
			}
			if test.words == "" {
				if got := w.asked(); got != "directory" {
					t.Errorf("%s: the CA was asked for %s, want directory", test.name, got)
				}
				return
			}
			if !strings.Contains(err.Error(), test.words) || !strings.Contains(err.Error(), `"`+test.eab.KID+`"`) {
				t.Errorf("%s: Register = %v, want %q and the key ID %q in it", test.name, err, test.words, test.eab.KID)
			}
			if e, ok := errors.AsType[*acme.Error](err); !ok || e.StatusCode != 403 || !strings.HasSuffix(e.ProblemType, ":unauthorized") {
				t.Errorf("%s: Register = %v, which is no *acme.Error", test.name, err)
			}
		})
	}
}

// A binding that is good for one account is not spent on one that exists: not
// when its URL was lost, not when the CA is asked again.
func TestAccountEABOnce(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		eab := &acme.ExternalAccountBinding{KID: "customer 7", Key: []byte("a very secret key of 32 bytes...")}
		ca.EAB, ca.EABOnce = map[string][]byte{eab.KID: eab.Key}, true
		a.EAB = eab
		wire := tap(a)
		bindings := func() (n int) {
			for _, line := range wire.sent {
				n += strings.Count(line, "externalAccountBinding")
			}
			return n
		}
		l.fail = func(c Credentials) error {
			if c.URL != "" {
				return errors.New("crash")
			}
			return nil
		}
		if _, err := a.Client(t.Context()); err == nil || bindings() != 1 {
			t.Fatalf("Client = %v after %d bindings, want a crash after one", err, bindings())
		}
		l.fail = nil
		c := mustClient(t, a)
		if err := a.Forget(c); err != nil { // by mistake: the CA knows it well
			t.Fatal(err)
		}
		again := mustClient(t, a)
		if err := again.Update(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if err := a.Agree(t.Context(), again, "https://ca.test/terms", time.Now(), func(string) error { return nil }); err != nil {
			t.Error(err)
		}
		if n := bindings(); n != 1 || c.KID() != again.KID() || len(ca.Accounts()) != 1 {
			t.Errorf("%d bindings sent, %d accounts, want one of each; sent %q", n, len(ca.Accounts()), wire.sent)
		}
	})
}

func TestRegisterFails(t *testing.T) {
	tests := []struct {
		name     string
		response catest.Response
		class    Class
		retry    time.Duration
	}{
		{"down", catest.Refuse, Network, 0},
		{"503", catest.HTML(503, "30"), Fault, 30 * time.Second},
		{"429", catest.Problem(429, "rateLimited", "too many accounts", "3600"), Fault, time.Hour},
		{"refused", catest.Problem(400, "invalidContact", "no such domain", ""), Refused, 0},
		{"hangs", catest.Hang, Network, 0},
		{"no URL", catest.Edit(func(res *http.Response, body []byte) []byte { res.Header.Del("Location"); return body }), Fault, 0},
	}
	for _, test := range tests {
		for _, known := range []bool{false, true} {
			inNewWorld(t, nil, func(t *testing.T, w *world) {
				if _, err := New(w.ca.Directory(), w.ca.Client(), w.client.key, "").Register(t.Context(), nil, nil, false); err != nil {
					t.Fatal(err)
				}
				w.ca.Fault(catest.On("newAccount", 0, test.response))
				_, err := w.client.Register(t.Context(), nil, nil, known)
				f, ok := errors.AsType[*Failure](err)
				if !ok || f.Class != test.class || f.Retry != test.retry {
					t.Errorf("%s, known %v: %v, want %v with Retry %v", test.name, known, err, test.class, test.retry)
				}
				if w.client.KID() != "" {
					t.Errorf("%s: KID = %q, want none", test.name, w.client.KID())
				}
			})
		}
	}
}

func TestRegisterDirectoryDown(t *testing.T) {
	inNewWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Fault(catest.Down)
		for name, do := range map[string]func() error{
			"Register": func() error { _, err := w.client.Register(t.Context(), nil, nil, false); return err },
			"Update":   func() error { return w.client.Update(t.Context(), nil) },
			"Revoke":   func() error { return w.client.Revoke(t.Context(), nil, nil, 0) },
			"Obtain":   func() error { _, err := w.client.Obtain(t.Context(), w.job("a.example.com")); return err },
		} {
			if f, ok := errors.AsType[*Failure](do()); !ok || f.Class != Network || f.Step != "reading the directory" {
				t.Errorf("%s: %v, want network, reading the directory", name, f)
			}
		}
	})
}

func TestUpdate(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		want := []string{"mailto:new@example.com"}
		if err := w.client.Update(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if got := w.ca.Accounts()[0].Contact; !slices.Equal(got, want) {
			t.Errorf("contact %q, want %q", got, want)
		}
		w.ca.Fault(catest.On("account", 0, catest.Problem(429, "rateLimited", "slow", "60")))
		err := w.client.Update(t.Context(), nil)
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Fault || f.Retry != time.Minute {
			t.Errorf("a limit: %v, want a fault with Retry 1m", err)
		}
	})
}

// Whatever is asked, an account that the CA forgot is told from other refusals.
func TestNoAccount(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		leaf := w.obtain(w.job("a.example.com")).Leaf
		w.ca.ForgetAccounts()
		for name, do := range map[string]func() error{
			"Update": func() error { return w.client.Update(t.Context(), nil) },
			"Revoke": func() error { return w.client.Revoke(t.Context(), nil, leaf.Raw, 0) },
			"Obtain": func() error { _, err := w.client.Obtain(t.Context(), w.job("a.example.com")); return err },
		} {
			if f, ok := errors.AsType[*Failure](do()); !ok || f.Class != NoAccount {
				t.Errorf("%s: %v, want no account", name, f)
			}
		}
	})
}

func TestRevoke(t *testing.T) {
	for _, own := range []bool{false, true} {
		inWorld(t, nil, func(t *testing.T, w *world) {
			j := w.job("a.example.com")
			leaf := w.obtain(j).Leaf
			var key crypto.Signer
			client, reasonWanted := w.client, acme.CRLReasonSuperseded
			if own {
				key, reasonWanted = j.Key, acme.CRLReasonKeyCompromise
				client = New(w.ca.Directory(), w.ca.Client(), nil, "") // an account is not needed
			}
			for range 2 { // the second time is no error
				if err := client.Revoke(t.Context(), key, leaf.Raw, reasonWanted); err != nil {
					t.Fatalf("with the certificate's key %v: %v", own, err)
				}
			}
			if _, reason, ok := w.ca.Revoked(leaf); !ok || reason != int(reasonWanted) {
				t.Errorf("with the certificate's key %v: revoked %v for %d, want for %d", own, ok, reason, reasonWanted)
			}
		})
	}
}

func TestRevokeFails(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.ca.Fault(catest.On("revokeCert", 0, catest.Problem(403, "unauthorized", "not yours", "")))
		err := w.client.Revoke(t.Context(), nil, []byte("x"), 0)
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Policy || !strings.Contains(err.Error(), "not yours") {
			t.Errorf("Revoke = %v, want a policy error in the CA's words", err)
		}
	})
}

// A key authorization is the token and the key's thumbprint (RFC 8555, section 8.1).
func TestKeyAuthorization(t *testing.T) {
	key := newKey(t)
	thumb, err := acme.JWKThumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	got, err := New("https://ca.test/dir", nil, key, "").KeyAuthorization("token")
	if want := "token." + thumb; got != want || err != nil {
		t.Errorf("KeyAuthorization = %q, %v, want %q", got, err, want)
	}
}
