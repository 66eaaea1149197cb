package e2e

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/crypto/acme"
)

// A binding that a CA does not take, or lacks, is an error that names the host
// and the CA, has the CA's words, and says what to look at.
func TestWrongBinding(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{EAB: map[string][]byte{"us": eabKey}})
	for _, test := range []struct {
		name  string
		eab   *acme.ExternalAccountBinding
		words []string // the CA's
	}{
		{"none", nil, nil},
		{"another's", &acme.ExternalAccountBinding{KID: "them", Key: eabKey}, []string{"unauthorized", "the field 'kid' references a key that is not known to the ACME server"}},
		{"wrong key", &acme.ExternalAccountBinding{KID: "us", Key: eabKey[1:]}, []string{"unauthorized", "external account binding JWS verification error"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := r.in(t)
			m, told := r.manager()
			m.CAs[0].EAB = test.eab
			r.serve(m)
			err := m.Manage(t.Context(), newHost)
			r.failed(m, told, err, newHost, append(test.words, "making the account", "CA.EAB")...)
			if n := r.proxy.Count(pebble.NewOrder); n > 0 {
				t.Errorf("%d orders, want none", n)
			}
			if m.Registered() {
				t.Error("Registered() = true without an account")
			}
		})
	}
	m, _ := r.manager()
	m.CAs[0].EAB = eabOfOurs
	if err := m.Register("", nil); err != nil {
		t.Error(err)
	}
}

// A binding that was used is of no use to make the account anew, or another: the
// error says so, and the next CA takes over.
func TestSpentBinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		first.EAB, first.EABOnce = map[string][]byte{"us": eabKey}, true
		m, _ := customerOf(t, first)
		m.CAs[0].EAB = eabOfOurs
		issuer(t, m, oldHost, first)
		first.ForgetAccounts()
		err := m.Manage(t.Context(), newHost)
		e, ok := errors.AsType[*letsencrypt.HostError](err)
		if !ok || e.Host != newHost || e.CA != first.Directory() {
			t.Fatalf("Manage = %v, want a HostError of %s and %s", err, newHost, first.Directory())
		}
		for _, w := range []string{newHost, first.Directory(), "making the account", "key id used before", "CA.EAB"} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("Manage = %v, want %q in it", err, w)
			}
		}
		alive(t, m, oldHost, 80*day)
		shutdown(t, m)

		m, _ = customerOf(t, first, second)
		m.CAs[0].EAB = eabOfOurs
		issuer(t, m, newHost, second)
	})
}
