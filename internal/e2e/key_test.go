package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
)

func rsaKey(bits int) func() (crypto.Signer, error) {
	return func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, bits) }
}

// describe names the kind of a public key.
func describe(key any) string {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	}
	return fmt.Sprintf("%T", key)
}

// Every kind of key is obtained for and served, to clients that know no other
// kind too.
func TestKindsOfKeys(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		kind   string
		newKey func() (crypto.Signer, error)
		rsa    bool
	}{
		{"ECDSA P-256", nil, false},
		{"ECDSA P-384", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) }, false},
		{"RSA 2048", rsaKey(2048), true},
		{"RSA 4096", rsaKey(4096), true},
	} {
		t.Run(test.kind, func(t *testing.T) {
			t.Parallel()
			const host = "a.example.com"
			r := newRig(t, pebble.Config{})
			m, _ := r.manager()
			m.NewKey = test.newKey
			cache := cacheFile(t, m)
			r.serve(m)
			if err := m.Manage(t.Context(), host); err != nil {
				t.Fatal(err)
			}
			check := func() {
				t.Helper()
				if got := describe(r.served(host).PublicKey); got != test.kind {
					t.Errorf("served with a key of %s, want %s", got, test.kind)
				}
				c := r.call(host)
				answered(t, c)
				c.rsa12 = true
				if test.rsa {
					answered(t, c)
				} else {
					refused(t, c)
				}
			}
			check()
			shutdown(t, m)

			m, _ = r.manager() // without NewKey: the key's kind is in the file
			if err := m.CacheFile(cache); err != nil {
				t.Fatal(err)
			}
			r.serve(m)
			check()
			if n := r.Orders(); n != 1 {
				t.Errorf("%d orders, want 1", n)
			}
		})
	}
}

// Every certificate has a key of its own, by default too.
func TestNewKeyForEveryCertificate(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("NewKey=%v", own), func(t *testing.T) {
			r := r.in(t)
			var made atomic.Int64
			m, _ := r.manager()
			if own {
				m.NewKey = func() (crypto.Signer, error) {
					made.Add(1)
					return newKey(), nil
				}
			}
			cacheFile(t, m)
			r.serve(m)
			before := r.Orders()
			seen := make(map[string]bool)
			for _, host := range []string{"a.example.com", "b.example.com"} {
				if err := m.Manage(t.Context(), host); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					seen[string(r.served(host).RawSubjectPublicKeyInfo)] = true
					if err := m.Renew(t.Context(), host); err != nil {
						t.Fatal(err)
					}
				}
				seen[string(r.served(host).RawSubjectPublicKeyInfo)] = true
			}
			orders := r.Orders() - before
			if len(seen) != 6 || orders != 6 {
				t.Errorf("%d keys in %d orders, want 6 in 6", len(seen), orders)
			}
			if n := int(made.Load()); own && n != orders {
				t.Errorf("NewKey was called %d times for %d orders", n, orders)
			}
		})
	}
}

// A remoteKey is one whose private half is elsewhere, in a KMS or a smart card.
type remoteKey struct{ crypto.Signer }

// A key that could not be kept costs the CA nothing, and the error says whose
// it is.
func TestKeyThatCannotBeKept(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	for name, test := range map[string]struct {
		newKey func() (crypto.Signer, error)
		words  []string
	}{
		"wrapped": {func() (crypto.Signer, error) { return remoteKey{newKey()}, nil }, []string{"NewKey made a key that can't be kept", "e2e.remoteKey"}},
		"none":    {func() (crypto.Signer, error) { return nil, nil }, []string{"NewKey made a key that can't be kept"}},
		"error":   {func() (crypto.Signer, error) { return nil, errors.New("no entropy left") }, []string{"NewKey: no entropy left"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := r.in(t)
			m, told := r.manager()
			m.NewKey = test.newKey
			r.serve(m)
			err := m.Manage(t.Context(), newHost)
			r.failed(m, told, err, newHost, test.words...)
			if n := r.proxy.Count(pebble.NewOrder); n > 0 {
				t.Errorf("%d orders, want none", n)
			}
			if paused := told.of(letsencrypt.EventPaused, ""); len(paused) > 0 {
				t.Errorf("events %+v: the CA is made to pay for it", paused)
			}
		})
	}
}
