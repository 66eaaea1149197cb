package pebble

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/acme"
)

func TestCertStatus(t *testing.T) {
	s := New(t, Config{AlwaysValid: true})
	c := newClient(t, s, s.Directory())
	leaf := c.issue("a.test")[0]
	status, err := s.CertStatus(t.Context(), leaf.SerialNumber)
	if err != nil || status.Revoked || !status.Certificate.Equal(leaf) {
		t.Errorf("CertStatus = %+v, %v, want the certificate, not revoked", status, err)
	}
	if err := c.RevokeCert(t.Context(), nil, leaf.Raw, acme.CRLReasonKeyCompromise); err != nil {
		t.Fatal(err)
	}
	status, err = s.CertStatus(t.Context(), leaf.SerialNumber)
	if err != nil || !status.Revoked || status.Reason != int(acme.CRLReasonKeyCompromise) {
		t.Errorf("CertStatus = %+v, %v, want revoked for a compromised key", status, err)
	}
	if _, err := s.CertStatus(t.Context(), big.NewInt(42)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CertStatus(42) = %v, want fs.ErrNotExist", err)
	}
}

func TestSetRenewalInfo(t *testing.T) {
	s := New(t, Config{AlwaysValid: true})
	leaf := newClient(t, s, s.Directory()).issue("a.test")[0]
	const answer = `{"suggestedWindow": "torn`
	if err := s.SetRenewalInfo(t.Context(), leaf, answer); err != nil {
		t.Fatal(err)
	}
	res, err := s.Client().Get(strings.TrimSuffix(s.Directory(), "dir") + renewalPath(leaf))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, err := io.ReadAll(res.Body); string(got) != answer {
		t.Errorf("renewal information = %q, %v, want %q", got, err, answer)
	}
	other := New(t, Config{})
	if err := other.SetRenewalInfo(t.Context(), leaf, answer); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SetRenewalInfo of another CA's certificate = %v, want fs.ErrNotExist", err)
	}
}

// Each certificate must be counted by the time that its client has it.
func TestIssued(t *testing.T) {
	s := New(t, Config{AlwaysValid: true})
	c := newClient(t, s, s.Directory())
	for i := range 20 {
		leaf := c.issue("a.test")[0]
		issued := s.Issued()
		if len(issued) != i+1 {
			t.Fatalf("Issued has %d certificates, want %d", len(issued), i+1)
		}
		if got, want := issued[i].Serial, leaf.SerialNumber; !sameSerial(got, want) || issued[i].Order == "" {
			t.Errorf("Issued[%d] = %+v, want serial %x and an order", i, issued[i], want)
		}
	}
	certs, err := s.Certificates(t.Context())
	if err != nil || len(certs) != 20 || certs[0].DNSNames[0] != "a.test" {
		t.Errorf("Certificates = %d of them, %v, want 20 for a.test", len(certs), err)
	}
}

func sameSerial(hex string, want *big.Int) bool {
	got, ok := new(big.Int).SetString(hex, 16)
	return ok && got.Cmp(want) == 0
}

func TestCounts(t *testing.T) {
	s := New(t, Config{AlwaysValid: true})
	for range 2 {
		newClient(t, s, s.Directory())
	}
	c := newClient(t, s, s.Directory())
	for range 5 {
		c.order("a.test")
	}
	c.issue("a.test")
	if n := s.Accounts(); n != 3 {
		t.Errorf("Accounts = %d, want 3", n)
	}
	if n := s.Orders(); n != 6 {
		t.Errorf("Orders = %d, want 6", n)
	}
	requests := s.Requests()
	for e, want := range map[Endpoint]int{
		Directory: 3, NewNonce: 3, NewAccount: 3, NewOrder: 6,
		Authz: 1, Challenge: 1, Finalize: 1, Certificate: 1, RevokeCert: 0,
	} {
		if requests[e] != want {
			t.Errorf("Requests[%s] = %d, want %d", e, requests[e], want)
		}
	}
}

// A gate holds up what is written while it is shut.
type gate struct {
	sync.Mutex
}

func (g *gate) Write(p []byte) (int, error) {
	g.Lock()
	defer g.Unlock()
	return len(p), nil
}

// waiting returns how many wait for a line of the log.
func waiting(s *Server) int {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return len(s.log.waiters)
}

// What Pebble printed must be counted however slowly it is read.
func TestFlush(t *testing.T) {
	var g gate
	s := New(t, Config{AlwaysValid: true, Log: &g})
	c := newClient(t, s, s.Directory())
	g.Lock()
	c.issue("a.test")
	issued := make(chan int, 1)
	go func() { issued <- len(s.Issued()) }()
	eventually(func() bool { return waiting(s) > 0 || len(issued) > 0 })
	g.Unlock()
	if n := <-issued; n != 1 {
		t.Errorf("Issued = %d certificates, want 1", n)
	}
}

func TestWaitLog(t *testing.T) {
	s := New(t, Config{AlwaysValid: true})
	c := newClient(t, s, s.Directory())
	found := make(chan error)
	go func() { found <- s.WaitLog(t.Context(), "Issued certificate") }()
	if n := s.Logged("Issued certificate"); n != 0 {
		t.Errorf("Logged = %d, want 0", n)
	}
	c.issue("a.test")
	if err := <-found; err != nil {
		t.Errorf("WaitLog = %v", err)
	}
	if err := s.WaitLog(t.Context(), "Issued certificate"); err != nil {
		t.Errorf("WaitLog for a line that is there = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WaitLog(ctx, "no such line"); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitLog for a line that never comes = %v, want context.Canceled", err)
	}
	if n := waiting(s); n != 0 {
		t.Errorf("%d waiters are left", n)
	}
}
