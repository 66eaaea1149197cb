package redis

import (
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/engine"
	"example.com/letsencrypt/store/storetest"
	"github.com/redis/go-redis/v9"
)

var _ letsencrypt.Storage = (*Storage)(nil)

func TestMain(m *testing.M) { engine.Main(m, "redis-server") }

const testTTL = 5 * time.Second

func open(client redis.UniversalClient) *Storage {
	s := New(client, "test/")
	s.ttl = testTTL
	return s
}

func newClient(tb testing.TB, addr string) *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: addr})
	tb.Cleanup(func() { client.Close() })
	return client
}

func TestStorage(t *testing.T) {
	var servers sync.Map // *engine.Server by address
	e := storetest.Engine{
		Start: func(tb testing.TB) string {
			server := engine.Redis(tb)
			servers.Store(server.Addr, server)
			return server.Addr
		},
		Open:     func(tb testing.TB, addr string) letsencrypt.Storage { return open(newClient(tb, addr)) },
		CrashTTL: testTTL + 3*time.Second,
		Restart: func(tb testing.TB, addr string) {
			server, _ := servers.Load(addr)
			server.(*engine.Server).Restart(tb)
		},
		Steal: func(tb testing.TB, addr, name string) {
			n, err := newClient(tb, addr).Del(tb.Context(), New(nil, "test/").lockKey(name)).Result()
			if n != 1 || err != nil {
				tb.Fatalf("DEL of the lock = %d, %v", n, err)
			}
		},
	}
	storetest.Required(t, e)
	storetest.Strict(t, e)
}
