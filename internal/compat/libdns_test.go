package compat

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/libdns/rfc2136"

	"example.com/letsencrypt/dns/libdns"
)

// libdns returns a provider that changes b's zones with one of its keys.
func (b *bind) libdns(key string) *libdns.DNS {
	return b.libdnsWith(key, b.keys[key])
}

func (b *bind) libdnsWith(key, secret string) *libdns.DNS {
	d := libdns.New(&rfc2136.Provider{KeyName: key, KeyAlg: "hmac-sha256", Key: secret, Server: b.addr})
	d.Resolver = b.resolver()
	return d
}

const (
	token    = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
	oneAuth  = token + ".9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
	oneValue = "lCM7cZyQXcVHK2nnW3jjAhNT3Fvm18UN-kWZZknKoYM" // as openssl has it
)

// TestLibdns has records come and go at names of all kinds, beside a record of
// somebody else's.
func TestLibdns(t *testing.T) {
	t.Parallel()
	b := newBind(t)
	for _, tt := range []struct{ domain, zone, name, key string }{
		{"example.test", "example.test", "_acme-challenge.example.test", mainKey},
		{"a.b.c.d.example.test", "example.test", "_acme-challenge.a.b.c.d.example.test", mainKey},
		{"sub.example.test", "sub.example.test", "_acme-challenge.sub.example.test", mainKey},
		{"x.sub.example.test", "sub.example.test", "_acme-challenge.x.sub.example.test", mainKey},
		{"x.balanced.example.test", "example.test", "_acme-challenge.x.balanced.example.test", mainKey},
		{"delegated.example.test", "challenges.test", "delegated.challenges.test", challengeKey},
	} {
		t.Run(tt.domain, func(t *testing.T) {
			d := b.libdns(tt.key)
			present(t, d, tt.domain, oneAuth)
			if got := b.txt(t, tt.name); !slices.Equal(got, []string{oneValue}) {
				t.Errorf("after Present %s has %q, want %q", tt.name, got, oneValue)
			}
			b.add(t, tt.zone, tt.name, "theirs")
			cleanUp(t, d, tt.domain, oneAuth)
			if got := b.txt(t, tt.name); !slices.Equal(got, []string{"theirs"}) {
				t.Errorf("after CleanUp %s has %q, want theirs alone", tt.name, got)
			}
			present(t, d, tt.domain, oneAuth)
			if got := b.txt(t, tt.name); !slices.Equal(got, []string{oneValue, "theirs"}) {
				t.Errorf("after Present beside another %s has %q, want both", tt.name, got)
			}
			cleanUp(t, b.libdns(tt.key), tt.domain, oneAuth) // as after a restart
			if got := b.txt(t, tt.name); !slices.Equal(got, []string{"theirs"}) {
				t.Errorf("after CleanUp of another process's record %s has %q, want theirs alone", tt.name, got)
			}
		})
	}
}

func present(t *testing.T, d *libdns.DNS, domain, keyAuth string) {
	t.Helper()
	if err := d.Present(t.Context(), domain, token, keyAuth); err != nil {
		t.Fatal(err)
	}
}

func cleanUp(t *testing.T, d *libdns.DNS, domain, keyAuth string) {
	t.Helper()
	if err := d.CleanUp(t.Context(), domain, token, keyAuth); err != nil {
		t.Fatal(err)
	}
}

func TestLibdnsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBind(t)
	d := b.libdns(mainKey)
	const n = 10
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := d.Present(t.Context(), "example.test", token, fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := b.txt(t, "_acme-challenge.example.test"); len(got) != n {
		t.Errorf("after %d at once there are %d: %q", n, len(got), got)
	}
	for i := range n {
		all.Go(func() {
			if err := d.CleanUp(t.Context(), "example.test", token, fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := b.txt(t, "_acme-challenge.example.test"); len(got) > 0 {
		t.Errorf("after all were cleaned up there are %q", got)
	}
}

// TestLibdnsRefused checks that a person can tell from the error what to do.
func TestLibdnsRefused(t *testing.T) {
	t.Parallel()
	b := newBind(t)
	for _, tt := range []struct {
		d            *libdns.DNS
		domain, want string
	}{
		{b.libdnsWith(mainKey, newSecret()), "example.test", "to zone example.test. (is the provider configured right, and may it change the zone?)"},
		{b.libdnsWith("unknown", newSecret()), "example.test", "to zone example.test. (is the provider configured right, and may it change the zone?)"},
		{b.libdns(challengeKey), "example.test", "to zone example.test. (is the provider configured right, and may it change the zone?)"},
		{b.libdns(mainKey), "elsewhere.test", "finding the zone of _acme-challenge.elsewhere.test.: there is none"},
	} {
		err := tt.d.Present(t.Context(), tt.domain, token, oneAuth)
		if err == nil || !strings.HasPrefix(err.Error(), "libdns: "+tt.domain+": ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Present(%s) = %v, want %q in it", tt.domain, err, tt.want)
		}
	}
	if got := b.txt(t, "_acme-challenge.example.test"); len(got) > 0 {
		t.Errorf("after updates that were refused there are %q", got)
	}
}
