package compat

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
)

// TestEverything obtains a certificate of each kind there is, from Pebble and
// with BIND, and has openssl and curl visit the server that has it.
func TestEverything(t *testing.T) {
	t.Parallel()
	b := newBind(t)
	ca := newCA(t, b, pebble.Config{
		Profiles:       map[string]time.Duration{"default": 90 * 24 * time.Hour, "shortlived": 160 * time.Hour},
		AlternateRoots: 1,
	})
	names(t, b, ca)
	addresses(t, b, ca)
	choices(t, b, ca)
}

// names tries all types of challenges.
func names(t *testing.T, b *bind, ca *authority) {
	t.Run("a name by tls-alpn-01", func(t *testing.T) {
		m := b.manager(t, ca.Server, "tls.example.test")
		addr := serve(t, at("127.0.0.1", ca.TLSPort()), m.TLSConfig())
		obtain(t, m, "tls.example.test", "tls-alpn-01")
		ca.visit(t, addr, "tls.example.test")
	})
	t.Run("a name by http-01", func(t *testing.T) {
		m := b.manager(t, ca.Server, "http.example.test")
		serveHTTP(t, at("127.0.0.1", ca.HTTPPort()), m.HTTPHandler(nil))
		addr := serve(t, "127.0.0.1:0", &tls.Config{GetCertificate: m.GetCertificate})
		obtain(t, m, "http.example.test", "http-01")
		ca.visit(t, addr, "http.example.test")
	})
	t.Run("a name and a wildcard by dns-01", func(t *testing.T) {
		m := b.manager(t, ca.Server, "dns.example.test", "*.dns.example.test")
		m.DNS = b.libdns(mainKey)
		addr := serve(t, "127.0.0.1:0", m.TLSConfig())
		obtain(t, m, "dns.example.test", "dns-01")
		obtain(t, m, "*.dns.example.test", "dns-01")
		ca.visit(t, addr, "dns.example.test")
		ca.visit(t, addr, "any.dns.example.test")
	})
	t.Run("a wildcard by dns-persist-01", func(t *testing.T) {
		m := b.manager(t, ca.Server, "*.persist.example.test")
		addr := serve(t, "127.0.0.1:0", m.TLSConfig())
		b.follow(t, m.Manage(t.Context(), "*.persist.example.test"))
		if err := m.Renew(t.Context(), "*.persist.example.test"); err != nil {
			t.Fatalf("with the record that was asked for: %v", err)
		}
		obtain(t, m, "*.persist.example.test", "dns-persist-01")
		ca.visit(t, addr, "any.persist.example.test")
	})
}

// addresses tries the addresses that every machine has.
func addresses(t *testing.T, b *bind, ca *authority) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run("the address "+ip, func(t *testing.T) {
			m := b.manager(t, ca.Server, ip)
			addr := serve(t, at(ip, ca.TLSPort()), m.TLSConfig())
			obtain(t, m, ip, "tls-alpn-01")
			ca.visit(t, addr, ip)
		})
	}
}

// choices tries what one can ask of a CA.
func choices(t *testing.T, b *bind, ca *authority) {
	t.Run("a profile", func(t *testing.T) {
		m := b.manager(t, ca.Server, "short.example.test")
		m.DNS = b.libdns(mainKey)
		m.CAs[0].Profile = "shortlived"
		addr := serve(t, "127.0.0.1:0", m.TLSConfig())
		obtain(t, m, "short.example.test", "dns-01")
		ca.visit(t, addr, "short.example.test")
		s := m.Status("short.example.test")[0]
		if left := time.Until(s.NotAfter); s.Profile != "shortlived" || left > 160*time.Hour || left < 150*time.Hour {
			t.Errorf("the certificate is %q and lives %v, want shortlived and 160 hours", s.Profile, left)
		}
	})
	t.Run("an alternate chain", func(t *testing.T) {
		m := b.manager(t, ca.Server, "chain.example.test")
		m.DNS = b.libdns(mainKey)
		m.CAs[0].Chain = ca.roots[1].Subject.CommonName
		addr := serve(t, "127.0.0.1:0", m.TLSConfig())
		obtain(t, m, "chain.example.test", "dns-01")
		ca.visitWith(t, ca.roots[1], addr, "chain.example.test")
	})
	t.Run("a CA for its customers", func(t *testing.T) {
		key := []byte("thirty-two bytes that the CA gave")
		ca := newCA(t, b, pebble.Config{EAB: map[string][]byte{"customer": key}})
		m := b.manager(t, ca.Server, "customer.example.test")
		m.CAs[0].EAB = &acme.ExternalAccountBinding{KID: "customer", Key: key}
		addr := serve(t, at("127.0.0.1", ca.TLSPort()), m.TLSConfig())
		obtain(t, m, "customer.example.test", "tls-alpn-01")
		ca.visit(t, addr, "customer.example.test")
	})
}

// An authority is a Pebble with its roots: that of the default chain, then those
// of the others.
type authority struct {
	*pebble.Server
	roots []*x509.Certificate
}

func newCA(t *testing.T, b *bind, config pebble.Config) *authority {
	t.Helper()
	config.DNSServer = b.addr
	ca := &authority{Server: pebble.New(t, config)}
	data, err := ca.RootPEM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		ca.roots = append(ca.roots, root)
	}
	return ca
}

// obtain ends the test unless a certificate for the host comes, or came, by a
// challenge of the given type.
func obtain(t *testing.T, m *letsencrypt.Manager, host, typ string) {
	t.Helper()
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if got := m.Status(host)[0].Challenge; got != typ {
		t.Errorf("the certificate for %s came by %s, want %s", host, got, typ)
	}
}

// follow does what an error says is to be done: it sets a record of
// dns-persist-01.
func (b *bind) follow(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("a wildcard was obtained without a record")
	}
	instruction := regexp.MustCompile(`set a TXT record once: name (\S+), value ("[^"]*")`).FindStringSubmatch(err.Error())
	if instruction == nil {
		t.Fatalf("error without an instruction: %v", err)
	}
	value, err := strconv.Unquote(instruction[2])
	if err != nil {
		t.Fatal(err)
	}
	b.add(t, "example.test", instruction[1], value)
}

// serve serves "hello" by TLS until the test ends, and returns where.
func serve(t *testing.T, addr string, config *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", addr, config)
	if ip, _, _ := net.SplitHostPort(addr); err != nil && ip == "::1" {
		t.Skipf("this machine has no %s: %v", ip, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	serveOn(t, l, handler)
	return l.Addr().String()
}

func serveHTTP(t *testing.T, addr string, handler http.Handler) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, handler)
}

func serveOn(t *testing.T, l net.Listener, handler http.Handler) {
	// It reports every client that refuses a certificate.
	s := &http.Server{Handler: handler, ReadHeaderTimeout: patience, ErrorLog: log.New(t.Output(), "", 0)}
	ended := make(chan error)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("server: %v, want %v", err, http.ErrServerClosed)
		}
	})
}

func at(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }

func (ca *authority) visit(t *testing.T, addr, host string) {
	t.Helper()
	ca.visitWith(t, ca.roots[0], addr, host)
}

// visitWith visits the server at addr with openssl and curl, and fails the test
// unless its certificate is for the host and has its root in root. That they
// look is seen by a visit to another host and with another root.
func (ca *authority) visitWith(t *testing.T, root *x509.Certificate, addr, host string) {
	t.Helper()
	file := rootFile(t, root)
	for _, cmd := range []*exec.Cmd{openssl(t, file, addr, host, host), curl(t, file, addr, host)} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", cmd, err, out)
		}
	}
	if out, err := openssl(t, file, addr, host, "other.example.test").CombinedOutput(); err == nil {
		t.Errorf("openssl takes the certificate of %s for another host's\n%s", host, out)
	}
	for _, other := range ca.roots {
		if other == root {
			continue
		}
		if out, err := openssl(t, rootFile(t, other), addr, host, host).CombinedOutput(); err == nil {
			t.Errorf("openssl takes the chain of %s for one with the root %s\n%s", host, other.Subject, out)
		}
	}
}

func rootFile(t *testing.T, root *x509.Certificate) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "root.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// openssl returns a command that asks the server for the certificate of a host,
// and fails unless it is that of want.
func openssl(t *testing.T, rootFile, addr, host, want string) *exec.Cmd {
	args := []string{"s_client", "-connect", addr, "-CAfile", rootFile, "-verify_return_error"}
	if net.ParseIP(host) == nil {
		args = append(args, "-servername", host)
	} else {
		args = append(args, "-noservername")
	}
	if net.ParseIP(want) == nil {
		args = append(args, "-verify_hostname", want)
	} else {
		args = append(args, "-verify_ip", want)
	}
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = strings.NewReader("") // or it waits for what to send
	return cmd
}

// curl returns a command that fails unless the server has a certificate of the
// host's, and a page.
func curl(t *testing.T, rootFile, addr, host string) *exec.Cmd {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), "curl", "-sS", "-f", "--noproxy", "*", "--cacert", rootFile,
		"--connect-to", "::"+addr, "https://"+net.JoinHostPort(host, port))
}
