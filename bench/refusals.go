package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"example.com/letsencrypt"
	"github.com/caddyserver/certmagic"
	xautocert "golang.org/x/crypto/acme/autocert"
	"golang.org/x/time/rate"
)

// How many hosts are on the list when others are refused.
const listedHosts = 1_000

// strangers are the names that are refused, each another.
var strangers = &family{head: "x", tail: ".example.net"}

var refusals = []*figure{
	{
		name: "refusal", about: "refusal of a name not on a list of 1,000", unit: "ns",
		sizes: []int{1_000_000}, target: "300 ns, no heap kept, no request",
		met: func(v values) bool { return v[ours] <= 300 && v[oursBytes] <= 64<<10 && v[oursRequests] == 0 },
		run: func(r *run) (values, error) { return runRefusal(r, newHello("")) },
	},
	{
		name: "refusalnew", about: "refusal past NewHostLimit, CA dead", unit: "ns",
		sizes: []int{1_000_000}, target: "1,000 ns, 1 MiB, no goroutine",
		met: func(v values) bool { return v[ours] <= 1000 && v[oursBytes] <= 1<<20 && v[oursGoroutines] <= 0 },
		run: runRefusalNew,
	},
	{
		name: "refusalalpn", about: "refusal of an acme-tls/1 hello", unit: "ns",
		sizes: []int{1_000_000}, target: "300 ns",
		met: func(v values) bool { return v[ours] <= 300 },
		run: func(r *run) (values, error) {
			hello := newHello("")
			hello.SupportedProtos = []string{"acme-tls/1"}
			return runRefusal(r, hello)
		},
	},
}

// What else is known of ours.
const (
	oursBytes      = "ours, bytes"
	oursGoroutines = "ours, goroutines"
	oursRequests   = "ours, requests"
)

func init() {
	children["refusalnew "+autocert] = strangersAtAutocert
	children["refusalnew "+certMagic] = strangersAtCertMagic
	children["refusalnew "+ours] = strangersAtOurs
}

// runRefusal measures refusals of names that are not on a list. The floor misses
// a key of its map.
func runRefusal(r *run, hello *tls.ClientHelloInfo) (values, error) {
	unload()
	v := make(values)
	names := names(strangers, r.n)
	for _, who := range contestants {
		r.progress("%s", who)
		s, err := loadList(who)
		if err != nil {
			return nil, err
		}
		cost, err := refuse(s, hello, names)
		s.stop()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", who, err)
		}
		v[who] = cost.ns
		if who == ours {
			v[oursBytes], v[oursRequests] = cost.bytes, cost.requests
		}
		r.note("%s: %.0f bytes of heap kept in all, %.0f requests to the CA", who, cost.bytes, cost.requests)
	}
	return v, nil
}

// loadList returns a contestant with a list of hosts. That ours has no
// certificates for them keeps it from asking the CA when to renew those.
func loadList(who string) (*server, error) {
	switch who {
	case autocert:
		return newAutocert(hosts, listedHosts, xautocert.HostWhitelist(names(hosts, listedHosts)...)), nil
	case ours:
		s := newOurs()
		s.ours.SetHosts(names(hosts, listedHosts))
		return s, nil
	}
	return load(who, hosts, listedHosts)
}

// A cost is that of refusals.
type cost struct{ ns, bytes, goroutines, requests float64 }

// refuse has a client ask for each of the names, none of which gets a certificate.
func refuse(s *server, hello *tls.ClientHelloInfo, names []string) (cost, error) {
	const batch = 10_000
	hello.ServerName = "first.example.net"
	s.get(hello) // what the first use makes is not the names' doing
	goroutines, requests := runtime.NumGoroutine(), s.requests()
	bytes := heap()
	var ns []float64
	for i := 0; i < len(names); i += batch {
		some := names[i:min(i+batch, len(names))]
		began := time.Now()
		for _, hello.ServerName = range some {
			if cert, err := s.get(hello); err == nil && cert != nil {
				return cost{}, fmt.Errorf("%s gets a certificate", hello.ServerName)
			}
		}
		ns = append(ns, float64(time.Since(began))/float64(len(some)))
	}
	bytes = heap() - bytes
	runtime.KeepAlive(s)
	return cost{median(ns), bytes, float64(runtime.NumGoroutine() - goroutines), float64(s.requests() - requests)}, nil
}

func (s *server) requests() int64 {
	if s.dead == nil {
		return 0
	}
	return s.dead.requests.Load()
}

// runRefusalNew measures what becomes of strangers' names where any name could
// have a certificate and the CA is dead, in a process for each contestant.
func runRefusalNew(r *run) (values, error) {
	unload()
	v := make(values)
	for _, who := range []string{autocert, certMagic, ours} {
		n := r.n
		switch who {
		case autocert:
			n = min(n, 2_000)
		case certMagic:
			n = min(n, 20)
		}
		r.progress("%s", who)
		c, err := inChild("", "refusalnew "+who, n)
		if err != nil {
			return nil, err
		}
		if c[0] > 0 {
			v[who] = c[0]
		}
		what := "refused"
		if who == certMagic {
			what = fmt.Sprintf("of which it had refused %.0f after %v", c[4], patience)
		}
		r.note("%s: %s names, %s: %.0f bytes of heap and %.0f goroutines more, %.0f requests", who, count(n), what, c[1], c[2], c[3])
		if who == ours {
			v[oursBytes], v[oursGoroutines], v[oursRequests] = c[1], c[2], c[3]
		}
	}
	return v, nil
}

func (c cost) list() []float64 { return []float64{c.ns, c.bytes, c.goroutines, c.requests} }

// strangersAtOurs measures both reasons that ours has, and returns the worse: the
// CA is not asked again at once when it did not answer, and NewHostLimit is used
// up.
func strangersAtOurs(n int) ([]float64, error) {
	names := names(strangers, n)
	var worst cost
	for _, used := range []int{0, 20} {
		s := newOurs()
		s.ours.NewHostLimit = rate.NewLimiter(rate.Every(3*time.Hour), 20)
		s.ours.NewHostLimit.AllowN(time.Now(), used)
		_, err := s.get(newHello("another.example.net"))
		if limited := errors.Is(err, letsencrypt.ErrRateLimited); limited != (used > 0) {
			return nil, fmt.Errorf("the first host of those after %d new ones: %w", used, err)
		}
		c, err := refuse(s, newHello(""), names)
		s.stop()
		if err != nil {
			return nil, err
		}
		worst = cost{max(c.ns, worst.ns), max(c.bytes, worst.bytes), max(c.goroutines, worst.goroutines), worst.requests + c.requests}
	}
	return worst.list(), nil
}

// strangersAtAutocert has no policy, which is how autocert has no list.
func strangersAtAutocert(n int) ([]float64, error) {
	s := newAutocert(hosts, 0, nil)
	c, err := refuse(s, newHello(""), names(strangers, n))
	return c.list(), err
}

// patience is how long we wait for CertMagic: it goes on trying for minutes.
const patience = 2 * time.Second

// strangersAtCertMagic has OnDemand let any name by. All clients come at once.
func strangersAtCertMagic(n int) ([]float64, error) {
	allow := func(context.Context, string) error { return nil }
	s := newCertMagic(hosts, 0, &certmagic.OnDemandConfig{DecisionFunc: allow})
	bytes, goroutines := heap(), runtime.NumGoroutine()
	began := time.Now()
	var refused, took atomic.Int64
	for i := range n {
		hello := newHello(strangers.name(i))
		go func() {
			s.get(hello)
			took.Add(int64(time.Since(began)))
			refused.Add(1)
		}()
	}
	for refused.Load() < int64(n) && time.Since(began) < patience {
		time.Sleep(10 * time.Millisecond)
	}
	c := cost{bytes: heap() - bytes, goroutines: float64(runtime.NumGoroutine() - goroutines), requests: float64(s.requests())}
	if refused.Load() == int64(n) {
		c.ns = float64(took.Load()) / float64(n)
	}
	return append(c.list(), float64(refused.Load())), nil
}
