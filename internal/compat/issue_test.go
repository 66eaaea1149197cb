package compat

import (
	"context"
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/go-acme/lego/v5/challenge/dns01"
	"github.com/go-acme/lego/v5/providers/dns/dnsupdate"
	"golang.org/x/time/rate"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
)

// manager returns a Manager for the hosts that asks the CA, and b for what there
// is in the DNS, and has no limit. It is shut down with the test.
func (b *bind) manager(t *testing.T, ca *pebble.Server, hosts ...string) *letsencrypt.Manager {
	m := &letsencrypt.Manager{
		CAs:      []letsencrypt.CA{{Directory: ca.Directory(), Client: ca.Client()}},
		Resolver: b.resolver(),
		Limit:    rate.NewLimiter(rate.Inf, 0),
		Logger:   slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	m.SetHosts(hosts)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return m
}

// lego returns the provider of lego's that does dynamic updates.
func (b *bind) lego(t *testing.T) *dnsupdate.DNSProvider {
	t.Helper()
	// It follows CNAME records through servers that are the process's.
	dns01.SetDefaultClient(dns01.NewClient(&dns01.Options{RecursiveNameservers: []string{b.addr}}))
	config := dnsupdate.NewDefaultConfig()
	config.Nameserver = b.addr
	config.TSIGKey, config.TSIGSecret, config.TSIGAlgorithm = mainKey, b.keys[mainKey], "hmac-sha256."
	config.PollingInterval, config.SequenceInterval = 100*time.Millisecond, 100*time.Millisecond
	p, err := dnsupdate.NewDNSProviderConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDNS obtains certificates whose challenges share a TXT record's name, or
// are delegated, at once. Libdns adds values, lego's provider replaces them.
func TestDNS(t *testing.T) {
	t.Parallel()
	b := newBind(t)
	for name, provider := range map[string]letsencrypt.DNSProvider{
		"libdns": b.libdns(mainKey),
		"lego":   b.lego(t),
	} {
		t.Run(name, func(t *testing.T) {
			ca := pebble.New(t, pebble.Config{DNSServer: b.addr})
			hosts := []string{
				"example.test", "*.example.test", "a.b.example.test", "*.sub.example.test",
				"delegated.example.test", "*.delegated.example.test",
			}
			m := b.manager(t, ca, hosts...)
			m.DNS = provider
			if err := m.Manage(t.Context(), hosts...); err != nil {
				t.Fatal(err)
			}
			roots, err := ca.Roots(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, host := range hosts {
				checkCert(t, m, host, roots)
			}
			for _, name := range []string{
				"_acme-challenge.example.test", "_acme-challenge.a.b.example.test", "_acme-challenge.sub.example.test",
				"delegated.challenges.test",
			} {
				if got := b.txt(t, name); len(got) > 0 {
					t.Errorf("%s still has %q", name, got)
				}
			}
		})
	}
}

// checkCert checks that there is a certificate for the host, which may be a
// wildcard, and that dns-01 brought it.
func checkCert(t *testing.T, m *letsencrypt.Manager, host string, roots *x509.CertPool) {
	t.Helper()
	cert, err := m.Cert(host)
	if err != nil {
		t.Error(err)
		return
	}
	pool := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(c)
	}
	opts := x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: pool}
	if _, err := cert.Leaf.Verify(opts); err != nil {
		t.Errorf("the certificate for %s: %v", host, err)
	}
	if got := m.Status(host)[0].Challenge; got != "dns-01" {
		t.Errorf("the certificate for %s came by %s, want dns-01", host, got)
	}
}

// TestDNSRefused: what the name server says reaches whoever asked, with the CA
// that waits for it and the zone that can't be changed.
func TestDNSRefused(t *testing.T) {
	t.Parallel()
	b := newBind(t)
	ca := pebble.New(t, pebble.Config{DNSServer: b.addr})
	m := b.manager(t, ca, "*.example.test", "*.delegated.example.test")
	m.DNS = b.libdns(challengeKey)
	err := m.Manage(t.Context(), "*.example.test")
	for _, want := range []string{"*.example.test", ca.Directory(), "zone example.test.", "REFUSED"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Manage = %v, want %q in it", err, want)
		}
	}
	if err := m.Manage(t.Context(), "*.delegated.example.test"); err != nil {
		t.Errorf("with a key for the other zone, where the challenge is led to: %v", err)
	}
}
