package compat

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/certmagic"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/engine"
	"example.com/letsencrypt/internal/pebble"
)

// TestFleetFileStorage has Managers share CertMagic's folder.
func TestFleetFileStorage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fleet(t, func() letsencrypt.Storage { return &certmagic.FileStorage{Path: dir} })
}

// TestFleetCaddyRedis has Managers share a Redis as Caddy does.
func TestFleetCaddyRedis(t *testing.T) {
	t.Parallel()
	addr := engine.Redis(t).Addr
	fleet(t, func() letsencrypt.Storage { return openCaddyRedis(t, addr) })
}

// fleet asks two Managers for the same hosts at the same time. The CA's
// validations reach now this one and now that.
func fleet(t *testing.T, open func() letsencrypt.Storage) {
	b := newBind(t)
	ca := pebble.New(t, pebble.Config{DNSServer: b.addr})
	var hosts []string
	for i := range 5 {
		hosts = append(hosts, fmt.Sprintf("fleet%d.example.test", i))
	}
	var members []*letsencrypt.Manager
	for range 2 {
		s := open() // which is there until the Manager is shut down
		m := b.manager(t, ca, hosts...)
		m.Storage = s
		members = append(members, m)
	}
	balance(t, ca, members)
	var wg sync.WaitGroup
	for _, m := range members {
		for _, host := range hosts {
			wg.Go(func() {
				if err := m.Manage(t.Context(), host); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for _, host := range hosts {
		same(t, members, host)
	}
	if n := ca.Orders(); n != len(hosts) {
		t.Errorf("%d orders for %d hosts", n, len(hosts))
	}
	if n := ca.Accounts(); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
}

// balance has connections from the CA go to the members in turn.
func balance(t *testing.T, ca *pebble.Server, members []*letsencrypt.Manager) {
	var configs []*tls.Config
	var handlers []http.Handler
	for _, m := range members {
		configs = append(configs, m.TLSConfig())
		handlers = append(handlers, m.HTTPHandler(nil))
	}
	var n atomic.Int64
	next := func() int { return int(n.Add(1)) % len(members) }
	serve(t, at("127.0.0.1", ca.TLSPort()), &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return configs[next()], nil },
	})
	serveHTTP(t, at("127.0.0.1", ca.HTTPPort()), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers[next()].ServeHTTP(w, r)
	}))
}

// same checks that all members serve one certificate for a host.
func same(t *testing.T, members []*letsencrypt.Manager, host string) {
	t.Helper()
	var first []byte
	for i, m := range members {
		cert, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: host})
		if err != nil {
			t.Errorf("member %d: %v", i, err)
			return
		}
		if leaf := cert.Certificate[0]; i == 0 {
			first = leaf
		} else if !bytes.Equal(leaf, first) {
			t.Errorf("member %d serves another certificate for %s than the first", i, host)
		}
	}
}
