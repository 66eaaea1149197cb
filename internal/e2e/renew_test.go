package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/pebble"
)

// brief is the profile of rigs whose certificates live for moments.
const brief = "brief"

func newBriefRig(t *testing.T, life time.Duration) *rig {
	t.Helper()
	return newRig(t, pebble.Config{
		Profiles:    map[string]time.Duration{brief: life},
		NonceReject: 20, // as it happens, and no reason to be late
	})
}

func (r *rig) briefServer() (*letsencrypt.Manager, *told) {
	r.t.Helper()
	m, told := r.manager()
	m.CAs[0].Profile = brief
	cacheFile(r.t, m)
	r.serve(m)
	return m, told
}

// Clients that come all the time see a verified certificate every time, while
// each of ten is replaced again and again.
func TestRenewalUnderLoad(t *testing.T) {
	t.Parallel()
	const (
		life    = 20 * time.Second
		span    = 45 * time.Second
		clients = 4
	)
	r := newBriefRig(t, life)
	m, told := r.briefServer()
	all := hosts(10)
	if err := m.Manage(t.Context(), all...); err != nil {
		t.Fatal(err)
	}
	seen := r.load(clients, all, span)

	orders := r.Orders()
	for _, host := range all {
		if n := len(seen[host]); n < int(span/life)+1 {
			t.Errorf("clients saw %d certificates of %s in %v, want more than one every %v", n, host, span, life)
		}
		for _, kind := range []letsencrypt.EventKind{letsencrypt.EventFailed, letsencrypt.EventExpired} {
			for _, e := range told.of(kind, host) {
				t.Errorf("%s %s: %v", host, e.Kind, e.Err)
			}
		}
	}
	// Half of the life has passed or, where the CA says when, a third at least.
	// One order may have begun and one more be late.
	if most := len(all) * (int(span/(life/3)) + 2); orders > most {
		t.Errorf("%d orders in %v, want %d at most", orders, span, most)
	}
	if issued := len(r.Issued()); orders-issued > len(all) {
		t.Errorf("%d orders for %d certificates, want one each", orders, issued)
	}
}

// load has clients visit the hosts for a while and returns the serial numbers
// that they saw. A visit that fails fails the test.
func (r *rig) load(clients int, hosts []string, span time.Duration) map[string]map[string]bool {
	r.t.Helper()
	roots := r.roots()
	ctx, cancel := context.WithTimeout(r.t.Context(), span)
	defer cancel()
	var mu sync.Mutex // guards the variables below
	seen, visits := make(map[string]map[string]bool), 0
	for _, host := range hosts {
		seen[host] = make(map[string]bool)
	}
	var running sync.WaitGroup
	for c := range clients {
		running.Go(func() {
			for i := c; ctx.Err() == nil; i++ {
				host := hosts[i%len(hosts)]
				leaf, err := visit(r.tlsAddr(), host, roots)
				if err != nil {
					r.t.Errorf("visiting %s: %v", host, err)
					continue
				}
				mu.Lock()
				seen[host][fmt.Sprintf("%016x", leaf.SerialNumber)] = true
				visits++
				mu.Unlock()
				<-time.After(5 * time.Millisecond)
			}
		})
	}
	running.Wait()
	r.t.Logf("%d visits", visits)
	return seen
}

// A CA that wants a certificate replaced soon has it replaced before we would by
// ourselves, though not in the first third of its life, by an order that says
// what it replaces.
func TestRenewedWhenTheCASaysSo(t *testing.T) {
	t.Parallel()
	const (
		host = "a.example.com"
		life = 45 * time.Second // by ourselves we renew after 21 at least
	)
	r := newBriefRig(t, life)
	var mu sync.Mutex // guards orders
	var orders []string
	r.proxy.SetFault(func(q *http.Request, e pebble.Endpoint, n int) pebble.Reply {
		switch {
		case e == pebble.NewOrder:
			mu.Lock()
			defer mu.Unlock()
			orders = append(orders, payload(q))
		case e == pebble.RenewalInfo && n == 1:
			r.renewSoon()
		}
		return nil
	})
	m, told := r.briefServer()
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	old := r.served(host)
	eventually(t, "a renewal", func() bool { return len(told.of(letsencrypt.EventRenewed, host)) > 0 })
	leaf := r.served(host)
	if age := leaf.NotBefore.Sub(old.NotBefore); age < life/3-time.Second || age > 20*time.Second {
		t.Errorf("renewed at an age of %v, want a third of %v or a little more", age, life)
	}
	id, err := certs.ID(old)
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	last := orders[len(orders)-1] // refused nonces make for more requests than orders
	if n := r.Orders(); n != 2 || !strings.Contains(last, `"replaces":"`+id+`"`) {
		t.Errorf("%d orders, the last of them %s; want a second one that replaces %s", n, last, id)
	}
}

// renewSoon has Pebble want its first certificate replaced within a second.
func (r *rig) renewSoon() {
	ctx := r.t.Context()
	issued, err := r.Certificates(ctx)
	if err != nil {
		r.t.Error(err)
		return
	}
	now := time.Now().UTC()
	info := fmt.Sprintf(`{"suggestedWindow": {"start": %q, "end": %q}}`,
		now.Format(time.RFC3339Nano), now.Add(time.Second).Format(time.RFC3339Nano))
	if err := r.SetRenewalInfo(ctx, issued[0], info); err != nil {
		r.t.Error(err)
	}
}
