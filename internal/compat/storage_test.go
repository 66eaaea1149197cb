package compat

import (
	"context"
	"net"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/engine"
	"example.com/letsencrypt/store/storetest"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	storageredis "github.com/pberkel/caddy-storage-redis"
)

// Every storage plugin of CertMagic is a Storage.
var _ letsencrypt.Storage = certmagic.Storage(nil)

func TestFileStorage(t *testing.T) {
	storetest.Required(t, storetest.Engine{
		Start: func(tb testing.TB) string { return tb.TempDir() },
		Open: func(tb testing.TB, addr string) letsencrypt.Storage {
			return &certmagic.FileStorage{Path: addr}
		},
		CrashTTL: 15 * time.Second, // twice five seconds are what it calls stale
	})
}

func TestCaddyRedis(t *testing.T) {
	storetest.Required(t, storetest.Engine{
		Start:    func(tb testing.TB) string { return engine.Redis(tb).Addr },
		Open:     openCaddyRedis,
		CrashTTL: 10 * time.Second,
	})
}

// openCaddyRedis does what Caddy does with the plugin.
func openCaddyRedis(tb testing.TB, addr string) letsencrypt.Storage {
	tb.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	tb.Cleanup(cancel)
	s := storageredis.New()
	s.Host, s.Port = []string{host}, []string{port}
	if err := s.Provision(ctx); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Cleanup() })
	return s
}
