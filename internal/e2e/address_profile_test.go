package e2e

import (
	"maps"
	"slices"
	"testing"
	"time"

	"example.com/letsencrypt/internal/pebble"
)

// Let's Encrypt certifies addresses by its profile shortlived alone, so that is
// the one to ask for where the CA lists it and the program has no other wish.
func TestProfileOfAddresses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, profile string
		host          string
		has           []string // the CA
		want          string
	}{
		{"an address", "", v4, []string{"shortlived", "classic"}, "shortlived"},
		{"a name", "", "a.example.com", []string{"shortlived", "classic"}, ""},
		{"the program's choice", "classic", v4, []string{"shortlived", "classic"}, "classic"},
		{"not listed", "", v4, []string{"classic", "tlsserver"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			config := pebble.Config{Profiles: maps.Clone(lives)}
			maps.DeleteFunc(config.Profiles, func(name string, _ time.Duration) bool { return !slices.Contains(test.has, name) })
			r := newRig(t, config)
			orders := eavesdrop[newOrder](r, pebble.NewOrder)
			m, _ := r.manager()
			m.CAs[0].Profile = test.profile
			m.SetHosts([]string{test.host})
			r.serve(m)
			for _, obtain := range []func() error{
				func() error { return m.Manage(t.Context(), test.host) },
				func() error { return m.Renew(t.Context(), test.host) },
			} {
				if err := obtain(); err != nil {
					t.Fatal(err)
				}
				if test.want != "" { // else it is the CA's choice
					r.checkProfile(m, test.host, test.want)
				}
			}
			for _, o := range orders() {
				if o.Profile != test.want {
					t.Errorf("an order %+v, want profile %q", o, test.want)
				}
			}
		})
	}
}
