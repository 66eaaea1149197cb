package fleet

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/pebble"
)

// TestFleetRenews has clients come all the time, while the certificates of all
// hosts are replaced again and again. Every client sees a verified one, and each
// is replaced once, by one member, and no sooner than by a Manager that is alone.
func TestFleetRenews(t *testing.T) {
	turns := make(chan bool, runtime.GOMAXPROCS(0)) // a fleet takes a core to renew all that it has in twenty seconds
	each(t, func(t *testing.T, e engine) {
		turns <- true
		defer func() { <-turns }()
		const brief = "brief"
		f := newFleet(t, e, pebble.Config{
			AuthzReuse: 100,
			Profiles:   map[string]time.Duration{brief: 20 * time.Second},
		})
		f.profile = brief
		f.start(members)
		began := time.Now()
		f.visitAll(began.Add(recovery))
		if t.Failed() {
			return
		}
		visits := f.load(span(30*time.Second, 2*time.Minute))
		orders, took := f.ca.Orders(), time.Since(began)

		issued, err := f.ca.Certificates(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		soonest := renewedAt(issued[0])
		most := hosts + int(hosts*took/soonest)
		t.Logf("%d visits, %d orders and %d certificates in %v; there may be %d orders",
			visits, orders, len(issued), took.Round(time.Second), most)
		if orders > most {
			t.Errorf("%d orders in %v, want %d at most", orders, took, most)
		}
		f.apart(issued, soonest)
		for _, m := range f.all() {
			if f.balancer.to(m) == 0 {
				t.Errorf("no connection came to member %d", m.number)
			}
		}
	})
}

// renewedAt returns the least age at which a certificate like this is renewed.
// Pebble suggests all of a short life (RFC 9773).
func renewedAt(leaf *x509.Certificate) time.Duration {
	start, _ := certs.Clip(leaf.NotBefore, leaf.NotAfter, leaf.NotBefore, leaf.NotAfter, leaf.NotBefore)
	return min(start.Sub(leaf.NotBefore), certs.RenewAt(leaf.NotBefore, leaf.NotAfter, 1).Sub(leaf.NotBefore))
}

// apart checks that no two certificates of a host are of less than an age.
func (f *fleet) apart(issued []*x509.Certificate, age time.Duration) {
	f.t.Helper()
	before := make(map[string]time.Time)
	for _, leaf := range issued {
		host := leaf.DNSNames[0]
		// Certificates have whole seconds.
		if gap := leaf.NotBefore.Sub(before[host]); gap <= age-time.Second {
			f.t.Errorf("%s has a certificate from %v after the one before, want %v at least", host, gap, age)
		}
		before[host] = leaf.NotBefore
	}
}

// load has clients come through the balancer, for one host after the other, and
// returns how many came. Each must be served.
func (f *fleet) load(span time.Duration) (visits int64) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), span)
	defer cancel()
	const clients, pace = 4, 200 * time.Millisecond
	var running sync.WaitGroup
	var count, failed atomic.Int64
	for range clients {
		running.Go(func() {
			tick := time.NewTicker(pace)
			defer tick.Stop()
			for ctx.Err() == nil {
				for _, i := range rand.Perm(hosts) {
					host := f.hosts[i]
					count.Add(1)
					if err := f.comeBy(host); err != nil && failed.Add(1) < 10 {
						f.t.Errorf("%s: %v; the CA's trail:\n%s", host, err, f.trail.about(host, nil))
					}
					<-tick.C
				}
			}
		})
	}
	running.Wait()
	return count.Load()
}

// comeBy visits a host as it is known to the world.
func (f *fleet) comeBy(host string) error {
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	leaf, err := f.visit(ctx, f.tlsAddr(), host)
	if err != nil {
		return err
	}
	if !slices.Contains(leaf.DNSNames, host) {
		return fmt.Errorf("a certificate for %v", leaf.DNSNames)
	}
	return nil
}
