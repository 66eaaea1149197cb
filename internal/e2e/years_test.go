package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/catest"
	"golang.org/x/time/rate"
)

const day = 24 * time.Hour

// bubble runs a subtest beside the others, where time is fake.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, f)
	})
}

// newCA returns one of several CAs.
func newCA(t *testing.T, host string) *catest.CA {
	ca := catest.New(t)
	ca.Host = host
	return ca
}

// customerOf returns a Manager that the CAs issue for, in this order, and what
// it tells. It is shut down with the test.
func customerOf(t *testing.T, cas ...*catest.CA) (*letsencrypt.Manager, *told) {
	m := customer(cas[0])
	config := m.TLSConfig()
	for _, ca := range cas[1:] {
		m.CAs = append(m.CAs, letsencrypt.CA{Directory: ca.Directory(), Client: ca.Client()})
		ca.Change(func(c *catest.Config) {
			c.TLS = func(string) *tls.Config { return config }
			c.HTTP = m
		})
	}
	told := overhear(t, m)
	t.Cleanup(func() { shutdown(t, m) })
	return m, told
}

// pass lets time go by, and what was due in it come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// alive ends the test unless a client of the host gets a certificate now that
// is good for a while yet. It returns the leaf.
func alive(t *testing.T, m *letsencrypt.Manager, host string, least time.Duration) *x509.Certificate {
	t.Helper()
	cert, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: host})
	if err != nil {
		t.Fatalf("%s at %v: %v", host, time.Now(), err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if left := time.Until(must(t, leaf, err).NotAfter); left < least {
		t.Fatalf("%s at %v: the certificate is good for %v, want %v at least", host, time.Now(), left, least)
	}
	return leaf
}

// noneDied fails the test if a certificate expired before it was replaced.
func (t *told) noneDied() {
	t.t.Helper()
	synctest.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.events {
		if e.Kind == letsencrypt.EventExpired {
			t.t.Errorf("event %+v, want no expiry", e)
		}
	}
}

// For ten days of six-day certificates the first CA fails, in any way: they are
// renewed in time, by the second, and the first is asked now and then. Once it
// is well again it issues again.
func TestTenDaysWithoutTheFirstCA(t *testing.T) {
	ways := map[string]catest.Script{
		"down":                 catest.Down,
		"hanging":              func(string, int, *http.Request) catest.Response { return catest.Hang },
		"no orders":            catest.On("newOrder", 0, catest.Problem(http.StatusInternalServerError, "serverInternal", "oops", "")),
		"limits for two hours": catest.On("newOrder", 0, catest.Problem(http.StatusTooManyRequests, "rateLimited", "too many", "7200")),
	}
	for name, script := range ways {
		bubble(t, name, func(t *testing.T) {
			first, second := newCA(t, "one.test"), newCA(t, "two.test")
			first.Lifetime, second.Lifetime = 6*day, 6*day
			m, told := customerOf(t, first, second)
			all := hosts(4)
			m.SetHosts(all)
			if err := m.Manage(t.Context(), all...); err != nil {
				t.Fatal(err)
			}
			before := len(first.Requests())
			first.Fault(script)
			for begin := time.Now(); time.Since(begin) < 10*day; pass(time.Hour) {
				for _, host := range all {
					alive(t, m, host, 2*day)
				}
			}
			told.noneDied()
			if n := len(second.Issued("")); n < 3*len(all) || n > 4*len(all) {
				t.Errorf("the second CA issued %d certificates for %d hosts in ten days, want 3 or 4 each", n, len(all))
			}
			if n := len(first.Requests()) - before; n > 6*len(second.Issued("")) {
				t.Errorf("%d requests to the first CA in ten days, want a few for each of %d renewals", n, len(second.Issued("")))
			}
			first.Fault(nil)
			pass(4 * day)
			for _, s := range m.Status(all...) {
				if s.CA != first.Directory() {
					t.Errorf("Status(%s).CA = %s after the first CA is well again, want it", s.Host, s.CA)
				}
			}
		})
	}
}

// A CA that works on every third day only, or even every fourth, costs no
// six-day certificate, nor does one beside another that never works. It is
// asked every hour at least when there is need.
func TestCAsAliveEveryThirdDay(t *testing.T) {
	for _, test := range []struct {
		name   string
		period int
		alive  []int // the day of the period on which each CA works, -1 if it never does
	}{
		{"one CA", 3, []int{0}},
		{"beside a dead one", 3, []int{-1, 0}},
		{"two in turn", 3, []int{2, 0}},
		{"every fourth day", 4, []int{0}},
	} {
		bubble(t, test.name, func(t *testing.T) {
			begin := time.Now()
			var cas []*catest.CA
			for i, on := range test.alive {
				ca := newCA(t, fmt.Sprintf("ca%d.test", i))
				ca.Lifetime = 6 * day
				ca.Fault(func(string, int, *http.Request) catest.Response {
					if int(time.Since(begin)/day)%test.period != on {
						return catest.Refuse
					}
					return nil
				})
				cas = append(cas, ca)
			}
			m, told := customerOf(t, cas...)
			all := hosts(3)
			m.SetHosts(all)
			if err := m.Manage(t.Context(), all...); err != nil {
				t.Fatal(err)
			}
			for time.Since(begin) < 24*day {
				for _, host := range all {
					alive(t, m, host, time.Duration(6-test.period)*day-2*time.Hour)
				}
				pass(time.Hour)
			}
			told.noneDied()
			for i, on := range test.alive {
				if n := len(cas[i].Issued("")); n > 0 != (on >= 0) {
					t.Errorf("CA %d, alive on day %d, issued %d certificates", i, on, n)
				}
			}
		})
	}
}

// The first CA is left alone as long as it asks or its failure suggests, also
// by a Manager that is started again meanwhile, and then it is the first again.
func TestFirstCAIsUsedAgain(t *testing.T) {
	const hour = time.Hour
	limit := func(retryAfter string) catest.Script {
		return catest.On("newOrder", 0, catest.Problem(http.StatusTooManyRequests, "rateLimited", "too many", retryAfter))
	}
	for _, test := range []struct {
		name   string
		script catest.Script
		spare  remembered
		wait   time.Duration // at least
	}{
		{"down", catest.Down, all, time.Minute},
		{"reset", func(string, int, *http.Request) catest.Response { return catest.Drop }, all, time.Minute},
		{"hanging", func(string, int, *http.Request) catest.Response { return catest.Hang }, all, time.Minute},
		{"lost replies", catest.On("newOrder", 0, catest.LoseReply), all, time.Minute},
		{"truncated", catest.On("newOrder", 0, catest.Truncate), all, time.Minute},
		{"endless replies", catest.On("newOrder", 0, catest.Endless), all, time.Minute},
		{"endless processing", endlessProcessing, all, time.Minute},
		{"500", catest.On("newOrder", 0, catest.Problem(http.StatusInternalServerError, "serverInternal", "oops", "")), all, time.Minute},
		{"503", catest.On("newOrder", 0, catest.HTML(http.StatusServiceUnavailable, "")), all, time.Minute},
		{"503 for five hours", catest.On("newOrder", 0, catest.HTML(http.StatusServiceUnavailable, "18000")), all, 5 * hour},
		{"429 that is a page", catest.On("newOrder", 0, catest.HTML(http.StatusTooManyRequests, "18000")), all, 5 * hour},
		{"pages", func(string, int, *http.Request) catest.Response { return catest.HTML(http.StatusOK, "") }, all, time.Minute},
		{"bad certificates", catest.On("certificate", 0, catest.HTML(http.StatusOK, "")), all, time.Minute},
		{"no nonce is good", catest.On("newOrder", 0, catest.Problem(http.StatusBadRequest, "badNonce", "never seen that nonce", "")), all, time.Minute},
		{"limit", limit(""), oneHost, time.Minute},
		{"limit for five hours", limit("18000"), oneHost, 5 * hour},
	} {
		bubble(t, test.name, func(t *testing.T) {
			first, second := newCA(t, "one.test"), newCA(t, "two.test")
			cache := filepath.Join(t.TempDir(), "cache")
			start := func() (*letsencrypt.Manager, *told) {
				m, told := customerOf(t, first, second)
				m.Limit = rate.NewLimiter(rate.Inf, 0)
				if err := m.CacheFile(cache); err != nil {
					t.Fatal(err)
				}
				return m, told
			}
			m, told := start()
			first.Fault(test.script)
			issuer(t, m, newHost, second)
			until := time.Now().Add(test.wait)
			if test.spare == all {
				synctest.Wait()
				until = told.of(letsencrypt.EventPaused, "")[0].Next
			}
			if wait := time.Until(until); wait < test.wait*8/10 || wait > 2*hour+test.wait {
				t.Fatalf("the first CA is left alone for %v, want %v or a little more", wait, test.wait)
			}
			shutdown(t, m)
			m, _ = start()
			asked, step := len(first.Requests()), time.Until(until)/5
			for i := 0; time.Until(until) > step/2; i++ {
				if test.spare == all {
					issuer(t, m, fmt.Sprintf("h%d.example.org", i), second)
				}
				if err := m.Renew(t.Context(), newHost); err != nil {
					t.Fatal(err)
				}
				pass(step)
			}
			if n := len(first.Requests()) - asked; n > 0 {
				t.Errorf("%d requests to the first CA before its time", n)
			}
			first.Fault(nil)
			pass(time.Until(until) + time.Second)
			issuer(t, m, "again.example.com", first)
			if err := m.Renew(t.Context(), newHost); err != nil {
				t.Fatal(err)
			}
			issuer(t, m, newHost, first)
		})
	}
}

// endlessProcessing is the script of a CA that takes orders and never ends any.
func endlessProcessing(endpoint string, _ int, _ *http.Request) catest.Response {
	if endpoint != "finalize" && endpoint != "order" {
		return nil
	}
	return catest.Edit(func(res *http.Response, body []byte) []byte {
		return bytes.ReplaceAll(body, []byte(`"valid"`), []byte(`"processing"`))
	})
}

// issuer ends the test unless the host's certificate is the CA's, once it has one.
func issuer(t *testing.T, m *letsencrypt.Manager, host string, ca *catest.CA) {
	t.Helper()
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if s := m.Status(host)[0]; s.CA != ca.Directory() || s.Err != nil {
		t.Fatalf("Status(%s) = CA %s, error %v; want CA %s", host, s.CA, s.Err, ca.Directory())
	}
}

// The first CA has a host wait for a person: it is left alone, about that host,
// for a day at a time, over a restart, while the second renews; and is the
// first again when the person has acted.
func TestHostThatOneCAPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const host = newHost
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		first.Lifetime, second.Lifetime = day, day
		cache := filepath.Join(t.TempDir(), "cache")
		m, _ := customerOf(t, first, second)
		if err := m.CacheFile(cache); err != nil {
			t.Fatal(err)
		}
		first.Pause(host)
		m.SetHosts([]string{host, oldHost})
		issuer(t, m, oldHost, first)
		issuer(t, m, host, second)
		shutdown(t, m)

		m, _ = customerOf(t, first, second)
		if err := m.CacheFile(cache); err != nil {
			t.Fatal(err)
		}
		if err := m.Manage(t.Context(), host); err != nil { // starts the Manager
			t.Fatal(err)
		}
		refused := func() (n int) {
			for _, r := range first.Requests() {
				if r.Endpoint == "newOrder" && r.Status == http.StatusTooManyRequests {
					n++
				}
			}
			return n
		}
		for begin := time.Now(); time.Since(begin) < 23*time.Hour; pass(time.Hour) {
			alive(t, m, host, 6*time.Hour)
		}
		if n := refused(); n != 1 {
			t.Errorf("the first CA was asked %d times within a day, want once", n)
		}
		pass(3 * day)
		if n := refused(); n < 3 || n > 4 {
			t.Errorf("the first CA was asked %d times in four days, want once a day", n)
		}
		first.Unpause(host)
		pass(36 * time.Hour)
		issuer(t, m, host, first)
	})
}

// Six-day certificates are renewed at half their life, or when the CA says, and
// a program that asks for another profile gets it with the next one.
func TestShortLivedAreRenewed(t *testing.T) {
	const life = 6 * day
	for _, test := range []struct {
		name     string
		ari      func(leaf *x509.Certificate) catest.Window
		from, to time.Duration // ages at which certificates are replaced
	}{
		{"at half their life", nil, life/2 - life/30, life/2 + time.Minute},
		{"in the CA's window", func(leaf *x509.Certificate) catest.Window {
			return catest.Window{Start: leaf.NotBefore.Add(50 * time.Hour), End: leaf.NotBefore.Add(54 * time.Hour)}
		}, 50 * time.Hour, 54*time.Hour + time.Minute},
		{"in a window later than half", func(leaf *x509.Certificate) catest.Window {
			return catest.Window{Start: leaf.NotBefore.Add(84 * time.Hour), End: leaf.NotBefore.Add(88 * time.Hour)}
		}, 84 * time.Hour, 88*time.Hour + time.Minute},
		{"not so early that the CA could have us order without end", func(leaf *x509.Certificate) catest.Window {
			return catest.Window{Start: leaf.NotBefore.Add(10 * time.Hour), End: leaf.NotBefore.Add(20 * time.Hour)}
		}, life / 3, life/3 + time.Minute},
	} {
		bubble(t, test.name, func(t *testing.T) {
			ca := catest.New(t)
			ca.Profiles = map[string]time.Duration{"shortlived": life, "classic": 90 * day}
			ca.ARI = test.ari
			m, told := customerOf(t, ca)
			m.CAs[0].Profile = "shortlived"
			all := hosts(2)
			m.SetHosts(all)
			if err := m.Manage(t.Context(), all...); err != nil {
				t.Fatal(err)
			}
			for begin := time.Now(); time.Since(begin) < 13*day; pass(time.Hour) {
				for _, host := range all {
					alive(t, m, host, life/3)
				}
			}
			told.noneDied()
			for _, host := range all {
				certs := ca.Issued(host)
				if least := int(13 * day / test.to); len(certs) < least {
					t.Fatalf("%s: %d certificates in 13 days, want %d at least", host, len(certs), least)
				}
				for i, leaf := range certs[1:] {
					if age := leaf.NotBefore.Sub(certs[i].NotBefore); age < test.from || age > test.to {
						t.Errorf("%s: replaced at an age of %v, want %v to %v", host, age, test.from, test.to)
					}
				}
			}
			for _, o := range ca.Orders() {
				if o.Profile != "shortlived" {
					t.Errorf("order %+v, want profile shortlived", o)
				}
			}
		})
	}
}

// A changed profile is had when the certificate is renewed, by itself.
func TestChangedProfileIsHadInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Profiles = map[string]time.Duration{"shortlived": 6 * day, "classic": 90 * day}
		m, _ := customerOf(t, ca)
		m.CAs[0].Profile = "classic"
		m.SetHosts([]string{newHost})
		issuer(t, m, newHost, ca)
		shutdown(t, m)

		again, told := customerOf(t, ca)
		again.CAs[0].Profile = "shortlived"
		if err := again.Unmarshal(m.Marshal()); err != nil {
			t.Fatal(err)
		}
		if err := again.Manage(t.Context(), newHost); err != nil { // starts the Manager
			t.Fatal(err)
		}
		due := again.Status(newHost)[0].Renewal
		pass(time.Until(due) - time.Hour)
		if n := len(ca.Orders()); n != 1 {
			t.Fatalf("%d orders before the certificate was due, want 1", n)
		}
		pass(2 * time.Hour)
		if s, orders := again.Status(newHost)[0], ca.Orders(); len(orders) != 2 || orders[1].Profile != "shortlived" || s.Profile != "shortlived" {
			t.Errorf("after it was due %d orders, the last %+v, and Status.Profile %q; want 2 and shortlived", len(orders), orders[len(orders)-1], s.Profile)
		}
		for range 10 * 24 {
			alive(t, again, newHost, 2*day)
			pass(time.Hour)
		}
		told.noneDied()
	})
}

// A CA that is no longer among those to ask is not asked, its certificates are
// served, and another replaces them when they are due.
func TestCATakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newCA(t, "one.test"), newCA(t, "two.test")
		first.ARI, second.ARI = catest.SuggestedWindow, catest.SuggestedWindow
		m, _ := customerOf(t, first)
		issuer(t, m, newHost, first)
		shutdown(t, m)

		again, told := customerOf(t, second)
		if err := again.Unmarshal(m.Marshal()); err != nil {
			t.Fatal(err)
		}
		if again.Registered() {
			t.Error("Registered() = true at a CA that was never asked")
		}
		asked := len(first.Requests())
		issuer(t, again, newHost, first)
		for begin := time.Now(); time.Since(begin) < 70*day; pass(day) {
			alive(t, again, newHost, 25*day)
		}
		issuer(t, again, newHost, second)
		if orders := second.Orders(); len(orders) != 1 || orders[0].Replaces != "" {
			t.Errorf("orders %+v, want one that replaces none of another CA's", orders)
		}
		if n := len(first.Requests()) - asked; n > 0 {
			t.Errorf("%d requests to the CA that was taken away", n)
		}
		told.noneDied()
	})
}
