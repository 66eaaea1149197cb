package letsencrypt_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/catest"
)

// newManager returns a Manager that gets its certificates from the CA, which
// validates them there. It is shut down with the test.
func newManager(t *testing.T, cas ...*catest.CA) *letsencrypt.Manager {
	t.Helper()
	m := &letsencrypt.Manager{Logger: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	for _, ca := range cas {
		m.CAs = append(m.CAs, letsencrypt.CA{Directory: ca.Directory(), Client: ca.Client()})
		config := m.TLSConfig()
		ca.TLS = func(string) *tls.Config { return config }
		ca.HTTP = m
	}
	t.Cleanup(func() {
		if err := m.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return m
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p)
	return len(p), nil
}

// handshake makes a TLS connection for the server name over a pipe and returns
// the leaf that it is shown.
func handshake(m *letsencrypt.Manager, name string) (*x509.Certificate, error) {
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		conn := tls.Server(server, m.TLSConfig())
		if conn.Handshake() == nil {
			io.Copy(io.Discard, conn)
		}
	}()
	conn := tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

func TestFirstHandshakeObtainsACertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		leaf, err := handshake(m, "a.example.com")
		if err != nil {
			t.Fatal(err)
		}
		if err := leaf.VerifyHostname("a.example.com"); err != nil {
			t.Error(err)
		}
		again, err := handshake(m, "a.example.com")
		if err != nil || !again.Equal(leaf) {
			t.Errorf("second handshake: another certificate, or %v", err)
		}
		if n := ca.Count("newOrder"); n != 1 {
			t.Errorf("%d orders, want 1", n)
		}
	})
}

func TestYearOf90DayCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		m := newManager(t, ca)
		m.SetHosts([]string{"a.example.com"})
		for range 365 {
			leaf, err := handshake(m, "a.example.com")
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(leaf.NotAfter); left < 29*24*time.Hour {
				t.Fatalf("%v left, want a third of 90 days or so", left)
			}
			time.Sleep(24 * time.Hour)
			synctest.Wait()
		}
		if n := len(ca.Issued("a.example.com")); n < 6 || n > 8 {
			t.Errorf("%d certificates in a year, want 7 or so", n)
		}
	})
}
