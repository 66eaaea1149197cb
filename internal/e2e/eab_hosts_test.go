package e2e

import (
	"testing"
	"testing/synctest"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
	"golang.org/x/time/rate"
)

// A binding that a CA refuses is refused to all hosts, and one question shows it.
func TestRefusedBindingIsNotTriedForEachHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.EAB = map[string][]byte{"us": eabKey}
		m, _ := customerOf(t, ca)
		m.Limit = rate.NewLimiter(rate.Inf, 0)
		m.CAs[0].EAB = &acme.ExternalAccountBinding{KID: "them", Key: eabKey}
		all := hosts(50)
		m.SetHosts(all)
		if err := m.Manage(t.Context(), all...); err == nil {
			t.Fatal("Manage = nil without an account")
		}
		if n := ca.Count("newAccount"); n != 1 {
			t.Errorf("%d requests for an account for %d hosts, want 1", n, len(all))
		}
		pass(day)
		if n := ca.Count("newAccount"); n > 60 {
			t.Errorf("%d requests for an account in a day, want two an hour or so", n)
		}
	})
}
