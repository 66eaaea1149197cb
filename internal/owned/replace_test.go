package owned

import (
	"crypto/tls"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// mustAdd adds a certificate and returns it as it is served.
func mustAdd(t *testing.T, s *Set, cert tls.Certificate) *tls.Certificate {
	t.Helper()
	added, err := s.Add(cert, now)
	if err != nil {
		t.Fatalf("Add: %v", err)
	}
	return added
}

// stapled returns the certificate with an OCSP response.
func stapled(cert *tls.Certificate, response string) *tls.Certificate {
	c := *cert
	c.OCSPStaple = []byte(response)
	return &c
}

// wantGet checks that these very certificates are served for names.
func wantGet(t *testing.T, s *Set, want map[string]*tls.Certificate) {
	t.Helper()
	for name, cert := range want {
		if got := s.Get(name); got != cert {
			t.Errorf("Get(%s) = %s, %p, want %s, %p", name, describe(got), got, describe(cert), cert)
		}
	}
}

func wantCertificates(t *testing.T, s *Set, want ...*tls.Certificate) {
	t.Helper()
	if got := s.Certificates(); !slices.Equal(got, want) {
		t.Errorf("Certificates = %v, want %v", got, want)
	}
}

func TestAddReturnsWhatIsServed(t *testing.T) {
	var s Set
	cert := mustAdd(t, &s, newCert(t, time.Hour, "a.example.com", "*.example.com"))
	wantGet(t, &s, map[string]*tls.Certificate{"a.example.com": cert, "b.example.com": cert})
	if cert.Leaf == nil {
		t.Error("it has no Leaf")
	}
}

func TestCertificates(t *testing.T) {
	var s Set
	wantCertificates(t, &s)
	ab := mustAdd(t, &s, newCert(t, time.Hour, "a.example.com", "b.example.com"))
	wantCertificates(t, &s, ab) // once, whatever the number of its names
	bc := mustAdd(t, &s, newCert(t, 3*time.Hour, "b.example.com", "c.example.com"))
	wantCertificates(t, &s, ab, bc)
	c := mustAdd(t, &s, newCert(t, 2*time.Hour, "c.example.com"))
	wantCertificates(t, &s, ab, bc, c)
	b := mustAdd(t, &s, newCert(t, 4*time.Hour, "b.example.com"))
	wantCertificates(t, &s, ab, c, b) // bc is served for nothing any more
	s.Expire(now.Add(time.Hour))
	wantCertificates(t, &s, c, b)
	s.Expire(now.Add(4 * time.Hour))
	wantCertificates(t, &s)
}

func TestReplace(t *testing.T) {
	var s Set
	old := mustAdd(t, &s, newCert(t, time.Hour, "a.example.com", "b.example.com", "*.c.example.com", "192.0.2.1"))
	other := mustAdd(t, &s, newCert(t, time.Hour, "d.example.com"))
	later := mustAdd(t, &s, newCert(t, time.Hour, "b.example.com"))
	first, second := stapled(old, "one"), stapled(old, "two")
	if !s.Replace(old, first) {
		t.Error("Replace of a certificate that is served = false")
	}
	want := map[string]*tls.Certificate{
		"a.example.com": first, "x.c.example.com": first, "192.0.2.1": first,
		"b.example.com": later, "d.example.com": other,
	}
	wantGet(t, &s, want)
	wantCertificates(t, &s, first, other, later)
	if s.Replace(old, second) {
		t.Error("Replace of what was replaced = true")
	}
	wantGet(t, &s, want)
	if !s.Replace(first, second) {
		t.Error("Replace of what it was replaced with = false")
	}
	want["a.example.com"], want["x.c.example.com"], want["192.0.2.1"] = second, second, second
	wantGet(t, &s, want)
	wantCertificates(t, &s, second, other, later)

	if got := s.Expire(now.Add(time.Hour)); len(got) != 5 || s.any.Load() {
		t.Errorf("Expire = %q, and Any = %v, want five names and false", got, s.any.Load())
	}
	wantGet(t, &s, map[string]*tls.Certificate{"a.example.com": nil, "b.example.com": nil, "x.c.example.com": nil})
}

func TestReplaceWhatIsNotThere(t *testing.T) {
	var s Set
	cert := newCert(t, time.Hour, "a.example.com")
	stranger := stapled(&cert, "it was never added")
	if s.Replace(stranger, stranger) || s.any.Load() {
		t.Errorf("Replace in an empty set = true, or adds it")
	}
	gone := mustAdd(t, &s, newCert(t, time.Hour, "a.example.com"))
	later := mustAdd(t, &s, newCert(t, 2*time.Hour, "a.example.com"))
	for name, old := range map[string]*tls.Certificate{
		"of a stranger":           stranger,
		"of nothing":              nil,
		"of what a later one has": gone,
	} {
		if s.Replace(old, stapled(gone, "new")) {
			t.Errorf("Replace %s = true, want false", name)
		}
	}
	wantGet(t, &s, map[string]*tls.Certificate{"a.example.com": later})
	wantCertificates(t, &s, later)
	s.Expire(now.Add(2 * time.Hour))
	if s.Replace(later, stapled(later, "new")) || s.any.Load() || s.Get("a.example.com") != nil {
		t.Error("Replace of what has expired = true, or brings it back")
	}
}

// While certificates are replaced and added, whoever asks gets one of the
// certificates that were there: the latest, and never an earlier one again.
func TestReplaceWhileInUse(t *testing.T) {
	const rounds = 20000 // long enough for the readers to be there
	var s Set
	names := []string{"a.example.com", "*.b.example.com", "c.example.com"}
	versions := []*tls.Certificate{mustAdd(t, &s, newCert(t, time.Hour, names...))}
	number := map[*tls.Certificate]int{versions[0]: 0}
	for i := range rounds {
		v := stapled(versions[0], "response")
		versions, number[v] = append(versions, v), i+1
	}
	taken := newCert(t, time.Hour, "c.example.com")
	var done atomic.Bool
	var running sync.WaitGroup
	running.Go(func() {
		defer done.Store(true)
		for i := range rounds {
			if !s.Replace(versions[i], versions[i+1]) {
				t.Errorf("Replace of version %d = false", i)
			}
		}
	})
	running.Go(func() {
		for range 100 {
			if _, err := s.Add(taken, now); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		running.Go(func() {
			last, lost := make(map[string]int), false
			for !done.Load() {
				for _, name := range []string{"a.example.com", "x.b.example.com"} {
					n, ok := number[s.Get(name)]
					if !ok || n < last[name] {
						t.Errorf("Get(%s) = version %d, one of them: %v, after version %d", name, n, ok, last[name])
						return
					}
					last[name] = n
				}
				_, ours := number[s.Get("c.example.com")]
				if lost && ours {
					t.Error("c.example.com is taken back from the certificate that was added later")
					return
				}
				lost = !ours
				s.Certificates()
			}
		})
	}
	running.Wait()
	for _, name := range names[:2] {
		if s.Get(name) != versions[rounds] {
			t.Errorf("Get(%s) is not the last version", name)
		}
	}
}
