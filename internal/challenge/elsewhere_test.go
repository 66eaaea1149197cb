package challenge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const loadTime = 20 * time.Millisecond

// A shelf is where other processes put their answers. It takes its time.
type shelf struct {
	mu        sync.Mutex // guards the fields below
	pending   map[string]Pending
	loads     map[string][]time.Time // when each host was asked for
	now, most int                    // how many loads are under way, and were
	blocked   chan struct{}          // nil, or closed when loads go on
}

func newShelf(t *testing.T) (*shelf, *Elsewhere) {
	t.Cleanup(func() { time.Sleep(time.Second) }) // those under way end
	s := &shelf{pending: make(map[string]Pending), loads: make(map[string][]time.Time)}
	return s, &Elsewhere{Load: s.load}
}

func (s *shelf) load(host string) (Pending, bool) {
	s.mu.Lock()
	s.loads[host] = append(s.loads[host], time.Now())
	p, ok := s.pending[host]
	blocked := s.blocked
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	if blocked != nil {
		<-blocked
	} else {
		time.Sleep(loadTime)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
	return p, ok
}

func (s *shelf) put(host string, p Pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[host] = p
}

// block has the loads that begin now wait for release.
func (s *shelf) block() (release func()) {
	blocked := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked = blocked
	return func() {
		s.unblock()
		close(blocked)
	}
}

// unblock has those that begin later not wait.
func (s *shelf) unblock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked = nil
}

// asked returns when a host was asked for.
func (s *shelf) asked(host string) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.loads[host])
}

func (s *shelf) count(host string) int { return len(s.asked(host)) }

// loading returns how many loads are under way, and were at most.
func (s *shelf) loading() (now, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.most
}

// pester has a stranger ask for a host a hundred times a second until ctx ends.
func pester(ctx context.Context, t *testing.T, e *Elsewhere, host string) {
	tick := time.NewTicker(time.Second / 100)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			go e.TLSALPN(t.Context(), host)
		case <-ctx.Done():
			return
		}
	}
}

// However many ask for what is not there, Load is asked twice a second at most.
func TestElsewhereMisses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e := newShelf(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() { pester(ctx, t, e, "a.example.com") })
		for range 500 {
			all.Go(func() {
				for ctx.Err() == nil {
					if keyAuth, ok := e.HTTP(ctx, "a.example.com", "token"); ok {
						t.Errorf("HTTP = %q, want none", keyAuth)
					}
				}
			})
		}
		all.Wait()
		loads := s.asked("a.example.com")
		if len(loads) < 20 || len(loads) > 21 {
			t.Errorf("Load was asked %d times in 10s, want about 20", len(loads))
		}
		for i := range len(loads) - 1 {
			if gap := loads[i+1].Sub(loads[i]); gap < lookAgain {
				t.Errorf("Load was asked %v after the last time, want %v", gap, lookAgain)
			}
		}
	})
}

// Whenever an answer is set up, who comes then is given it, and soon: what was
// remembered to be missing, or is being looked for, is of no account. So a
// stranger who asks all the time can't hide it.
func TestElsewhereIsNotHidden(t *testing.T) {
	for after := time.Duration(0); after <= 2*lookAgain; after += lookAgain / 50 {
		for _, strangers := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s, e := newShelf(t)
				ctx, cancel := context.WithCancel(t.Context())
				if strangers {
					go pester(ctx, t, e, "a.example.com")
				}
				if e.TLSALPN(t.Context(), "a.example.com") != nil {
					t.Error("TLSALPN = a certificate, want none yet")
				}
				time.Sleep(after)
				s.put("a.example.com", Pending{Type: TLSALPN01, KeyAuth: "token.thumb"})
				came := time.Now()
				cert := e.TLSALPN(t.Context(), "a.example.com")
				if took := time.Since(came); cert == nil || took > lookAgain+loadTime {
					t.Errorf("%v after a miss, strangers %v: TLSALPN = %v after %v, want a certificate within %v", after, strangers, cert, took, lookAgain+loadTime)
				}
				cancel()
			})
		}
	}
}

// A CA validates from several places at once.
func TestElsewhereFound(t *testing.T) {
	for _, apart := range []time.Duration{0, loadTime / 4} {
		synctest.Test(t, func(t *testing.T) {
			s, e := newShelf(t)
			s.put("a.example.com", Pending{Type: TLSALPN01, KeyAuth: "token.thumb"})
			got := make([]*tls.Certificate, 5)
			var all sync.WaitGroup
			for i := range got {
				all.Go(func() { got[i] = e.TLSALPN(t.Context(), "a.example.com") })
				time.Sleep(apart)
			}
			all.Wait()
			if slices.Contains(got, nil) {
				t.Errorf("%v apart: TLSALPN = %v, want a certificate each time", apart, got)
			}
			if n, most := s.count("a.example.com"), 1+int(4*apart/loadTime)+1; n > most {
				t.Errorf("%v apart: Load was asked %d times, want at most %d", apart, n, most)
			}
			made := make(map[*tls.Certificate]bool)
			for _, cert := range got {
				made[cert] = true
			}
			if len(made) > s.count("a.example.com") {
				t.Errorf("%v apart: %d certificates were made of what Load returned %d times", apart, len(made), s.count("a.example.com"))
			}
		})
	}
}

// What was found is not remembered, and what is being loaded may be the answer
// before: who comes later is given another.
func TestElsewhereFoundAgain(t *testing.T) {
	for _, after := range []time.Duration{loadTime / 2, loadTime, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s, e := newShelf(t)
			var all sync.WaitGroup
			for _, token := range []string{"one", "two"} {
				s.put("a.example.com", Pending{Type: HTTP01, Token: token, KeyAuth: token + ".thumb"})
				all.Go(func() {
					if got, ok := e.HTTP(t.Context(), "a.example.com", token); !ok || got != token+".thumb" {
						t.Errorf("%v apart: HTTP(%q) = %q, %v, want %s.thumb", after, token, got, ok, token)
					}
				})
				time.Sleep(after)
			}
			all.Wait()
		})
	}
}

// An answer is for one type of challenge, one host and one token.
func TestElsewhereIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e := newShelf(t)
		s.put("alpn.example.com", Pending{Type: TLSALPN01, Token: "token", KeyAuth: "token.thumb"})
		s.put("http.example.com", Pending{Type: HTTP01, Token: "token", KeyAuth: "token.thumb"})
		s.put("dns.example.com", Pending{Type: DNS01, Token: "token", KeyAuth: "token.thumb"})
		s.put("192.0.2.1", Pending{Type: TLSALPN01, Token: "token", KeyAuth: "token.thumb"})
		tests := []struct {
			host, token string
			http, alpn  bool
		}{
			{"http.example.com", "token", true, false},
			{"http.example.com", "tok", false, false},
			{"http.example.com", "", false, false},
			{"alpn.example.com", "token", false, true},
			{"192.0.2.1", "token", false, true},
			{"dns.example.com", "token", false, false},
			{"www.example.com", "token", false, false},
			{"", "", false, false},
		}
		for _, tt := range tests {
			got, ok := e.HTTP(t.Context(), tt.host, tt.token)
			if ok != tt.http || (got == "token.thumb") != tt.http || !tt.http && got != "" {
				t.Errorf("HTTP(%q, %q) = %q, %v, want an answer: %v", tt.host, tt.token, got, ok, tt.http)
			}
			cert := e.TLSALPN(t.Context(), tt.host)
			if (cert != nil) != tt.alpn || tt.alpn && !answers(t, cert, tt.host, "token.thumb") {
				t.Errorf("TLSALPN(%q) = %v, want the certificate that answers: %v", tt.host, cert, tt.alpn)
			}
		}
	})
}

// answers reports whether a certificate is the one of RFC 8737, section 3.
func answers(t *testing.T, cert *tls.Certificate, host, keyAuth string) bool {
	t.Helper()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(keyAuth))
	return leaf.VerifyHostname(host) == nil && slices.ContainsFunc(leaf.Extensions, func(x pkix.Extension) bool {
		return x.Id.Equal(acmeIdentifier) && bytes.HasSuffix(x.Value, digest[:])
	})
}

// Who asks leaves when its context ends, whether Load was asked for it or for
// another, and holds up nobody who asks for another host.
func TestElsewhereBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e := newShelf(t)
		s.put("a.example.com", Pending{Type: TLSALPN01, KeyAuth: "token.thumb"})
		s.put("b.example.com", Pending{Type: TLSALPN01, KeyAuth: "token.thumb"})
		release := s.block()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				came := time.Now()
				if cert := e.TLSALPN(ctx, "a.example.com"); cert != nil || time.Since(came) != time.Second {
					t.Errorf("TLSALPN while Load blocks = %v after %v, want none when the context ends", cert, time.Since(came))
				}
			})
		}
		synctest.Wait()
		s.unblock()
		if e.TLSALPN(ctx, "b.example.com") == nil {
			t.Error("TLSALPN of another host = nil, want its certificate")
		}
		all.Wait()
		if now, _ := s.loading(); now != 1 {
			t.Errorf("%d loads are under way, want the one that blocks", now)
		}
		release()
		if e.TLSALPN(t.Context(), "a.example.com") == nil {
			t.Error("TLSALPN when Load goes on = nil, want the certificate")
		}
	})
}

// Who comes with a context that has ended asks nothing.
func TestElsewhereEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e := newShelf(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		cert := e.TLSALPN(ctx, "a.example.com")
		synctest.Wait()
		if cert != nil || s.count("a.example.com") != 0 {
			t.Errorf("TLSALPN = %v, and Load was asked %d times, want neither", cert, s.count("a.example.com"))
		}
	})
}

// However many wait for an answer that is not there, another host's is found.
func TestElsewhereCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e := newShelf(t)
		s.put("b.example.com", Pending{Type: TLSALPN01, KeyAuth: "token.thumb"})
		release := s.block()
		var all sync.WaitGroup
		for range 5000 {
			all.Go(func() { e.TLSALPN(t.Context(), "a.example.com") })
		}
		synctest.Wait()
		all.Go(func() {
			if e.TLSALPN(t.Context(), "b.example.com") == nil {
				t.Error("TLSALPN of a host that nobody else asks for = nil, want the certificate")
			}
		})
		synctest.Wait()
		release()
		all.Wait()
	})
}

// Who asks for ever other hosts takes up memory for some of them, and can hide
// nothing.
func TestElsewhereFlood(t *testing.T) {
	const names = 10_000
	synctest.Test(t, func(t *testing.T) {
		s, e := newShelf(t)
		e.Load = func(host string) (Pending, bool) { // at once
			p, ok := s.pending[host]
			return p, ok
		}
		most := 0
		for i := range names {
			e.TLSALPN(t.Context(), fmt.Sprint(i, ".example.com"))
			most = max(most, len(e.looks))
		}
		if most > maxLooks {
			t.Errorf("%d looks are remembered, want at most %d", most, maxLooks)
		}
		s.put("a.example.com", Pending{Type: TLSALPN01, KeyAuth: "token.thumb"})
		if e.TLSALPN(t.Context(), "a.example.com") == nil {
			t.Error("TLSALPN after the flood = nil, want the certificate")
		}
	})
}

// Those who left leave their loads behind: they are bounded, too.
func TestElsewhereFloodBlocked(t *testing.T) {
	const names = 2 * maxLooks
	synctest.Test(t, func(t *testing.T) {
		s, e := newShelf(t)
		s.put("a.example.com", Pending{Type: TLSALPN01, KeyAuth: "token.thumb"})
		release := s.block()
		for i := range names {
			ctx, leave := context.WithCancel(t.Context())
			left := make(chan struct{})
			go func() {
				defer close(left)
				e.TLSALPN(ctx, fmt.Sprint(i, ".example.com"))
			}()
			synctest.Wait()
			leave()
			<-left
		}
		if _, most := s.loading(); len(e.looks) > maxLooks || most > maxLooks {
			t.Errorf("%d looks are there and %d loads were under way, want at most %d", len(e.looks), most, maxLooks)
		}
		release()
		synctest.Wait()
		if e.TLSALPN(t.Context(), "a.example.com") == nil {
			t.Error("TLSALPN after the flood = nil, want the certificate")
		}
	})
}
