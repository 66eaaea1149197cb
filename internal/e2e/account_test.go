package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/crypto/acme"
)

var (
	eabKey    = []byte("thirty-two bytes that the CA gave")
	eabOfOurs = &acme.ExternalAccountBinding{KID: "us", Key: eabKey}
)

// A newAccount is what an account is asked for with.
type newAccount struct {
	OnlyReturnExisting     bool
	ExternalAccountBinding json.RawMessage
}

// bound returns how many of the requests for an account had a binding.
func bound(sent []newAccount) (n int) {
	for _, a := range sent {
		if a.ExternalAccountBinding != nil {
			n++
		}
	}
	return n
}

// The binding makes the account and is not sent again: not for another host, a
// renewal or a change of address, nor after a restart. An account that the CA
// forgot takes it once more.
func TestBindingIsSentOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{EAB: map[string][]byte{"us": eabKey}})
	accounts := eavesdrop[newAccount](r, pebble.NewAccount)
	m, _ := r.manager()
	m.CAs[0].EAB = eabOfOurs
	cache := cacheFile(t, m)
	r.serve(m)
	if err := m.Manage(t.Context(), hosts(3)...); err != nil {
		t.Fatal(err)
	}
	if err := m.Register("us@example.com", nil); err != nil {
		t.Fatal(err)
	}
	shutdown(t, m)

	m, _ = r.manager()
	m.CAs[0].EAB = eabOfOurs
	if err := m.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	r.serve(m)
	if err := m.Renew(t.Context(), hosts(1)[0]); err != nil {
		t.Fatal(err)
	}
	if sent := accounts(); len(sent) != 1 || bound(sent) != 1 {
		t.Errorf("%d requests for an account, %d with a binding; want 1 with one", len(sent), bound(sent))
	}

	if err := r.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Manage(t.Context(), hosts(6)...); err != nil {
		t.Fatal(err)
	}
	for _, host := range hosts(6)[3:] {
		r.served(host)
	}
	if n := r.Accounts(); n != 2 {
		t.Errorf("%d accounts, want 2: before the CA forgot and after", n)
	}
	if n := bound(accounts()); n != 2 {
		t.Errorf("%d requests with a binding, want 2", n)
	}
}

// A CA that says of every account that it does not know it is believed once.
func TestAccountForgottenForEver(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, told := r.server()
	if err := m.Manage(t.Context(), oldHost); err != nil {
		t.Fatal(err)
	}
	r.proxy.SetFault(nth(pebble.NewOrder, always, pebble.Problem(http.StatusBadRequest, "accountDoesNotExist", "who are you?", "")))
	orders, accounts := r.proxy.Count(pebble.NewOrder), r.proxy.Count(pebble.NewAccount)
	err := m.Manage(t.Context(), newHost)
	r.failed(m, told, err, newHost, "accountDoesNotExist", "who are you?")
	if n := r.proxy.Count(pebble.NewOrder) - orders; n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
	if n := r.proxy.Count(pebble.NewAccount) - accounts; n != 1 {
		t.Errorf("%d requests for an account, want one, that finds the account there is", n)
	}
	r.served(oldHost)
	if n := r.Accounts(); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
}

// A reply that was lost may have been that of an account made: the next try
// finds it by its key, and spends no other binding.
func TestBindingIsSentOnceWhateverGetsLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{EAB: map[string][]byte{"us": eabKey}})
	var bindings atomic.Int64
	r.proxy.SetFault(func(q *http.Request, e pebble.Endpoint, n int) pebble.Reply {
		if e != pebble.NewAccount {
			return nil
		}
		if strings.Contains(payload(q), `"externalAccountBinding"`) {
			bindings.Add(1)
		}
		if n == 1 {
			return pebble.LoseReply
		}
		return nil
	})
	m, _ := r.manager()
	m.CAs[0].EAB = eabOfOurs
	cache := cacheFile(t, m)
	if err := m.Register("", nil); err == nil {
		t.Fatal("Register = nil though the reply was lost")
	}
	shutdown(t, m)

	m, _ = r.manager()
	m.CAs[0].EAB = eabOfOurs
	if err := m.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	if err := m.Register("", nil); err != nil {
		t.Fatal(err)
	}
	if n := bindings.Load(); n != 1 || r.Accounts() != 1 {
		t.Errorf("%d requests with a binding and %d accounts, want 1 of each", n, r.Accounts())
	}
}
