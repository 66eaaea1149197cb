package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/letsencrypt/internal/pebble"
)

// What is measured with a CA, which is always Pebble, at its quickest: it waits
// for nothing and asks nobody to wait. Each contestant has one of its own, passes
// tls-alpn-01, and keeps what it obtains on the disk.
var orders = []*figure{
	{
		name:   "requests",
		about:  "asked of the CA for a certificate, account and ARI aside",
		unit:   "requests",
		sizes:  []int{200},
		target: "at most 7.2",
		met:    func(v values) bool { return v[ours] <= 7.2 },
		run:    countRequests,
	},
	{
		name:   "first",
		about:  "first handshake to its certificate, less what the CA takes to reply",
		unit:   "ms",
		target: "at most 100",
		met:    func(v values) bool { return v[ours] <= 100 },
		run:    timeFirst,
	},
	{
		name:   "rate",
		about:  "certificates from one Pebble on the same machine",
		unit:   "a second",
		sizes:  []int{500},
		target: "at least 140, or Pebble the bottleneck; 0.9 of it with 5 % of nonces refused",
		met: func(v values) bool {
			bottleneck := v[pebbleShare] > 0.5 && v[busy] > 0.9
			return (v[ours] >= 140 || bottleneck) && v[withRefusals] >= 0.9*v[ours]
		},
		run: timeRate,
	},
	{
		name:   "written",
		about:  "written for one certificate, all told",
		unit:   "B",
		sizes:  []int{200},
		target: "at most 6,000",
		met:    func(v values) bool { return v[ours] <= 6000 },
		run:    countWritten,
	},
}

// What else the values of rate have.
const (
	withRefusals = "ours, 5 % of nonces refused" // certificates a second
	pebbleShare  = "Pebble's share of our CPU time and its own"
	busy         = "share of the machine's CPU time that is"
)

// few returns how many of something to do, which are fewer if r is quick.
func (r *run) few(n int) int {
	if r.quick {
		return min(n, 2)
	}
	return n
}

// withSite has f use a contestant's site, and a CA and a folder that are for it
// alone.
func withSite(contestant string, config pebble.Config, onDemand bool, f func(ca *pebble.Server, s *site) error) error {
	folder, err := os.MkdirTemp("", "site-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	ca, err := pebble.Start(context.Background(), config)
	if err != nil {
		return err
	}
	defer ca.Close()
	proxy, err := ca.Proxy(nil)
	if err != nil {
		return err
	}
	s := &site{ca: ca, proxy: proxy, directory: ca.Directory(), folder: folder, onDemand: onDemand}
	if onDemand || contestant == certMagic {
		s.directory = proxy.Directory() // it takes no client that keeps Pebble from standing still
	}
	if err := s.open(contestant); err != nil {
		return fmt.Errorf("%s: %w", contestant, err)
	}
	err = f(ca, s)
	return errors.Join(err, s.close())
}

// countRequests counts what Pebble says it was asked.
func countRequests(r *run) (values, error) {
	v := values{}
	wanted := names(hosts, r.few(r.n))
	for _, c := range []string{autocert, certMagic, ours} {
		r.progress("%s", c)
		err := withSite(c, pebble.Config{}, false, func(ca *pebble.Server, s *site) error {
			if err := s.obtain(wanted); err != nil {
				return err
			}
			total := 0
			for e, n := range ca.Requests() {
				if e != pebble.NewAccount && e != pebble.Account && e != pebble.RenewalInfo {
					total += n
				}
			}
			v[c] = float64(total) / float64(len(wanted))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return v, nil
}

// timeFirst times handshakes for names that there is no certificate for, less
// what the CA took to reply to the requests that were made meanwhile. Those go
// through a proxy which measures that, so that the way to it and back is counted
// as the contestant's, and so is the CA's validation.
func timeFirst(r *run) (values, error) {
	v := values{}
	n := r.few(20)
	for _, c := range []string{autocert, certMagic, ours} {
		var took []time.Duration
		err := withSite(c, pebble.Config{}, true, func(_ *pebble.Server, s *site) error {
			for i, host := range names(hosts, 1+n) {
				r.progress("%s, host %d of %d", c, i, n)
				d, err := timeHandshake(s, host)
				if err != nil {
					return err
				}
				if i > 0 { // else there is an account to be made
					took = append(took, d)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		slices.Sort(took)
		v[c] = took[n/2].Seconds() * 1000
		r.note("%s: from %.0f to %.0f ms, with the CA's validation", c, took[0].Seconds()*1000, took[n-1].Seconds()*1000)
	}
	return v, nil
}

// timeHandshake returns what a handshake took, less what the CA did.
func timeHandshake(s *site, host string) (time.Duration, error) {
	var inCA atomic.Int64
	var replies sync.WaitGroup
	timed := func(w http.ResponseWriter, r *http.Request, ca http.Handler) {
		replies.Add(1)
		defer replies.Done()
		began := time.Now()
		ca.ServeHTTP(w, r)
		inCA.Add(int64(time.Since(began)))
	}
	s.proxy.SetFault(func(_ *http.Request, e pebble.Endpoint, _ int) pebble.Reply {
		if e == pebble.RenewalInfo { // nobody waits for that
			return nil
		}
		return timed
	})
	began := time.Now()
	err := s.visit(host)
	took := time.Since(began)
	replies.Wait() // the last has reached us, but may not have ended there
	return took - time.Duration(inCA.Load()), err
}

// A pace is how fast certificates were obtained, and what CPU time it took.
type pace struct {
	took         time.Duration
	self, pebble time.Duration // CPU time
}

// timeRate obtains many certificates as fast as can be. Ours is measured with and
// without refused nonces, by turns.
func timeRate(r *run) (values, error) {
	if _, err := pebble.Build(context.Background()); err != nil { // lest it count as Pebble's CPU time
		return nil, err
	}
	v := values{}
	wanted := names(hosts, r.few(r.n))
	rounds := r.few(3)
	for _, c := range []string{autocert, certMagic} {
		r.progress("%s", c)
		p, err := measurePace(c, pebble.Config{}, wanted)
		if err != nil {
			return nil, err
		}
		v[c] = p.rate(wanted)
	}
	var plain, refused []pace
	for i := range rounds {
		r.progress("%s, round %d of %d", ours, i+1, rounds)
		p, err := measurePace(ours, pebble.Config{}, wanted)
		if err != nil {
			return nil, err
		}
		q, err := measurePace(ours, pebble.Config{NonceReject: 5}, wanted)
		if err != nil {
			return nil, err
		}
		plain, refused = append(plain, p), append(refused, q)
	}
	p, q := middle(plain), middle(refused)
	v[ours], v[withRefusals] = p.rate(wanted), q.rate(wanted)
	r.note("with 5 %% of the nonces refused: %.0f a second, %.2f of what it is without", v[withRefusals], v[withRefusals]/v[ours])
	if cpu := p.self + p.pebble; cpu > 0 {
		v[pebbleShare] = p.pebble.Seconds() / cpu.Seconds()
		v[busy] = cpu.Seconds() / p.took.Seconds() / float64(runtime.NumCPU())
		r.note("CPU time of a certificate: Pebble's %.1f ms, ours %.1f ms with the CA's name server; both are %.0f %% of what the machine has",
			ms(p.pebble)/float64(len(wanted)), ms(p.self)/float64(len(wanted)), 100*v[busy])
	}
	return v, nil
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// middle returns the median.
func middle(ps []pace) pace {
	slices.SortFunc(ps, func(a, b pace) int { return int(a.took - b.took) })
	return ps[len(ps)/2]
}

func (p *pace) rate(wanted []string) float64 { return float64(len(wanted)) / p.took.Seconds() }

func measurePace(contestant string, config pebble.Config, wanted []string) (p pace, err error) {
	runtime.GC()
	_, children := cpuTimes()
	err = withSite(contestant, config, false, func(_ *pebble.Server, s *site) error {
		if err := s.obtain([]string{"account.example.com"}); err != nil { // which is made for it
			return err
		}
		before, _ := cpuTimes()
		began := time.Now()
		if err := s.obtain(wanted); err != nil {
			return err
		}
		p.took = time.Since(began)
		after, _ := cpuTimes()
		p.self = after - before
		return nil
	})
	_, ended := cpuTimes() // Pebble is gone and its time known
	p.pebble = ended - children
	return p, err
}

// countWritten counts the bytes that went into files.
func countWritten(r *run) (values, error) {
	v := values{}
	wanted := names(hosts, r.few(r.n))
	for _, c := range []string{autocert, certMagic, ours} {
		r.progress("%s", c)
		err := withSite(c, pebble.Config{}, false, func(_ *pebble.Server, s *site) error {
			if err := s.obtain(wanted); err != nil {
				return err
			}
			n, err := s.written()
			v[c] = float64(n) / float64(len(wanted))
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	r.note("the files that CertMagic locks with are not counted")
	return v, nil
}
