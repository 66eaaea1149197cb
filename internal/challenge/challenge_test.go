package challenge

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestAnswersAreGivenWhilePending(t *testing.T) {
	var s Answers
	arrived := make(chan struct{}, 1)
	remove, err := s.AddTLSALPN("a.example.com", "token.thumb", arrived)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.TLSALPN("b.example.com"); got != nil {
		t.Errorf("TLSALPN(b.example.com) = %v, want nil: nothing is pending", got)
	}
	if len(arrived) != 0 {
		t.Error("a hello for another name counts as an arrival")
	}
	for range 3 { // a CA asks from many places
		if s.TLSALPN("a.example.com") == nil {
			t.Error("TLSALPN(a.example.com) = nil, want the answer each time")
		}
	}
	if len(arrived) != 1 {
		t.Error("the arrivals were not told")
	}
	remove()
	if got := s.TLSALPN("a.example.com"); got != nil {
		t.Errorf("TLSALPN(a.example.com) = %v after remove, want nil", got)
	}

	remove = s.AddHTTP("a.example.com", "tok", "tok.thumb", nil)
	for _, tt := range []struct{ host, token, want string }{
		{"a.example.com", "tok", "tok.thumb"},
		{"b.example.com", "tok", ""},
		{"a.example.com", "tik", ""},
		{"", "tok", ""},
	} {
		if got, _ := s.HTTP(tt.host, tt.token); got != tt.want {
			t.Errorf("HTTP(%q, %q) = %q, want %q", tt.host, tt.token, got, tt.want)
		}
	}
	remove()
	if got, ok := s.HTTP("a.example.com", "tok"); ok {
		t.Errorf("HTTP after remove = %q, want none", got)
	}
}

func TestRemoveLeavesALaterAnswer(t *testing.T) {
	var s Answers
	first, err := s.AddTLSALPN("a.example.com", "one", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddTLSALPN("a.example.com", "two", nil); err != nil {
		t.Fatal(err)
	}
	first()
	if s.TLSALPN("a.example.com") == nil {
		t.Error("removing the first answer took the second with it")
	}
}

func TestAnyWhilePending(t *testing.T) {
	var s Answers
	var removes []func()
	for i := range 2 { // the second answer takes the place of the first
		remove, err := s.AddTLSALPN("a.example.com", "one", nil)
		if err != nil {
			t.Fatal(err)
		}
		removes = append(removes, remove, s.AddHTTP("a.example.com", "tok", "one", nil))
		if !s.Any() {
			t.Errorf("Any() = false with %d answers of each kind added", i+1)
		}
	}
	for i, remove := range slices.Concat(removes, removes) {
		remove()
		if got, want := s.Any(), i < 3; got != want {
			t.Errorf("Any() = %v after %d removes, want %v", got, i+1, want)
		}
	}
	remove, err := s.AddTLSALPN("a.example.com", "three", nil)
	if err != nil || !s.Any() {
		t.Errorf("Any() = %v with one TLS answer, error %v", s.Any(), err)
	}
	if remove(); s.Any() {
		t.Error("Any() = true without it")
	}
}

func TestAnAnswerIsThereOnceAdded(t *testing.T) {
	var s Answers
	var wg sync.WaitGroup
	for i := range 8 {
		host := fmt.Sprint(i, ".example.com")
		wg.Go(func() {
			for range 100 {
				remove := s.AddHTTP(host, "tok", "tok.thumb", nil)
				if _, ok := s.HTTP(host, "tok"); !ok {
					t.Errorf("HTTP(%s) finds nothing while pending", host)
				}
				remove()
				if _, ok := s.HTTP(host, "tok"); ok {
					t.Errorf("HTTP(%s) finds what was removed", host)
				}
			}
		})
	}
	wg.Wait()
	if s.Any() {
		t.Error("Any() = true in the end")
	}
}

func TestTLSALPNDoesNotAllocate(t *testing.T) {
	var s Answers
	host := strings.Repeat("a.", 100) + "example.com"
	if _, err := s.AddTLSALPN(host, "one", nil); err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{host, host[2:]} {
		if n := testing.AllocsPerRun(100, func() { s.TLSALPN(h) }); n != 0 {
			t.Errorf("TLSALPN(%s) allocates %v times, want 0", h, n)
		}
	}
}

func TestCertificateIsRFC8737s(t *testing.T) {
	for _, host := range []string{"a.example.com", "192.0.2.1", "2001:db8::1"} {
		cert, err := newCertificate(host, "token.thumb")
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if len(leaf.DNSNames)+len(leaf.IPAddresses) != 1 || leaf.VerifyHostname(host) != nil {
			t.Errorf("%s: names are %v and %v, want the one", host, leaf.DNSNames, leaf.IPAddresses)
		}
		critical := false
		for _, e := range leaf.Extensions {
			critical = critical || e.Id.Equal(acmeIdentifier) && e.Critical && len(e.Value) == 34
		}
		if !critical {
			t.Errorf("%s: no critical acmeIdentifier extension with a SHA-256", host)
		}
	}
}

func TestIsValidation(t *testing.T) {
	for _, tt := range []struct {
		protos string
		want   bool
	}{
		{"acme-tls/1", true},
		{"", false},
		{"h2", false},
		{"acme-tls/1 h2", false},
		{"h2 acme-tls/1", false},
	} {
		if got := IsValidation(&tls.ClientHelloInfo{SupportedProtos: strings.Fields(tt.protos)}); got != tt.want {
			t.Errorf("IsValidation(%q) = %v, want %v", tt.protos, got, tt.want)
		}
	}
}

func TestToken(t *testing.T) {
	const at = "/.well-known/acme-challenge/"
	for _, tt := range []struct {
		path, want string
		ok         bool
	}{
		{at + "DGyRejmCefe7v4NfDGDKfA", "DGyRejmCefe7v4NfDGDKfA", true},
		{at + "a-b_c", "a-b_c", true},
		{at, "", false},
		{at + "../secret", "", false},
		{at + "..", "", false},
		{at + "a/b", "", false},
		{at + "a%2fb", "", false},
		{at + "a\x00", "", false},
		{at + strings.Repeat("a", maxToken+1), "", false},
		{"/well-known/acme-challenge/a", "", false},
		{"/", "", false},
		{"", "", false},
	} {
		if got, ok := Token(tt.path); got != tt.want || ok != tt.ok {
			t.Errorf("Token(%q) = %q, %v, want %q, %v", tt.path, got, ok, tt.want, tt.ok)
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add("/.well-known/acme-challenge/abc")
	f.Add("/.well-known/acme-challenge/../x")
	f.Fuzz(func(t *testing.T, path string) {
		token, ok := Token(path)
		if ok != (token != "") || strings.ContainsAny(token, "./\\% \x00") || ok && path != pathPrefix+token {
			t.Errorf("Token(%q) = %q, %v", path, token, ok)
		}
	})
}

func BenchmarkNothingPending(b *testing.B) {
	var s Answers
	b.ReportAllocs()
	for b.Loop() {
		s.TLSALPN("b.example.com")
	}
}

func BenchmarkNoPendingValidation(b *testing.B) {
	var s Answers
	if _, err := s.AddTLSALPN("a.example.com", "x", nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.TLSALPN("b.example.com")
	}
}
