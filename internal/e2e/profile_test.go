package e2e

import (
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
)

// lives are the profiles of a CA, and how long their certificates live.
var lives = map[string]time.Duration{
	"shortlived": 160 * time.Hour,
	"tlsserver":  45 * 24 * time.Hour,
	"classic":    90 * 24 * time.Hour,
}

// checkProfile checks that a host is served with a certificate of the profile.
func (r *rig) checkProfile(m *letsencrypt.Manager, host, profile string) {
	r.t.Helper()
	leaf := r.served(host)
	if life := leaf.NotAfter.Sub(leaf.NotBefore).Round(time.Hour); life != lives[profile] {
		r.t.Errorf("the certificate of %s lives %v, want %v", host, life, lives[profile])
	}
	if got := m.Status(host)[0].Profile; got != profile {
		r.t.Errorf("Status(%s).Profile = %q, want %q", host, got, profile)
	}
}

// A profile is asked for by its name, the first time and every time.
func TestProfileIsKeptOnRenewal(t *testing.T) {
	t.Parallel()
	for _, profile := range []string{"shortlived", "tlsserver"} {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			const host = "a.example.com"
			r := newRig(t, pebble.Config{Profiles: lives})
			orders := eavesdrop[newOrder](r, pebble.NewOrder)
			m, _ := r.manager()
			m.CAs[0].Profile = profile
			r.serve(m)
			if err := m.Manage(t.Context(), host); err != nil {
				t.Fatal(err)
			}
			r.checkProfile(m, host, profile)
			if err := m.Renew(t.Context(), host); err != nil {
				t.Fatal(err)
			}
			r.checkProfile(m, host, profile)
			if sent := orders(); len(sent) != 2 || sent[0].Profile != profile || sent[1].Profile != profile {
				t.Errorf("orders %+v, want two with profile %s", sent, profile)
			}
		})
	}
}

// A certificate stays when the profile is changed, and its successor has the
// new one.
func TestChangedProfileWaitsForRenewal(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r := newRig(t, pebble.Config{Profiles: lives})
	m, _ := r.manager()
	m.CAs[0].Profile = "tlsserver"
	cache := cacheFile(t, m)
	r.serve(m)
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	old := r.served(host)
	shutdown(t, m)

	m, told := r.manager()
	m.CAs[0].Profile = "shortlived"
	if err := m.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	m.SetHosts([]string{host})
	r.serve(m)
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	r.checkProfile(m, host, "tlsserver")
	if s, n := m.Status(host)[0], r.Orders(); n != 1 || !r.served(host).Equal(old) || time.Until(s.Renewal) < lives["tlsserver"]/2 {
		t.Errorf("%d orders, the renewal at %v; want none but the first, and the renewal when it was due", n, s.Renewal)
	}
	if err := m.Renew(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	r.checkProfile(m, host, "shortlived")
	eventually(t, "an event of the renewal", func() bool { return len(told.of(letsencrypt.EventRenewed, host)) == 1 })
	if e := told.of(letsencrypt.EventRenewed, host)[0]; time.Until(e.Next) > lives["shortlived"]/2 {
		t.Errorf("the next renewal is at %v, want it within half of %v", e.Next, lives["shortlived"])
	}
}
