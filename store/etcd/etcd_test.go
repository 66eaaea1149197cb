package etcd

import (
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/engine"
	"example.com/letsencrypt/store/storetest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

var _ letsencrypt.Storage = (*Storage)(nil)

func TestMain(m *testing.M) { engine.Main(m, "etcd") }

const testTTL = 5 * time.Second

func newClient(tb testing.TB, addr string) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}, Logger: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close() })
	return client
}

func open(client *clientv3.Client) *Storage {
	s := New(client, "test/")
	s.ttl = int(testTTL / time.Second)
	return s
}

func TestStorage(t *testing.T) {
	var servers sync.Map // *engine.Server by address
	e := storetest.Engine{
		Start: func(tb testing.TB) string {
			server := engine.Etcd(tb)
			servers.Store(server.Addr, server)
			return server.Addr
		},
		Open:     func(tb testing.TB, addr string) letsencrypt.Storage { return open(newClient(tb, addr)) },
		CrashTTL: testTTL + 3*time.Second,
		Restart: func(tb testing.TB, addr string) {
			server, _ := servers.Load(addr)
			server.(*engine.Server).Restart(tb)
		},
		Steal: func(tb testing.TB, addr, name string) { steal(tb, newClient(tb, addr), name) },
	}
	storetest.Required(t, e)
	storetest.Strict(t, e)
}

// steal takes a lock from who holds it: it deletes the first key of the queue.
func steal(tb testing.TB, client *clientv3.Client, name string) {
	tb.Helper()
	queue := New(client, "test/").lockKey(name) + "/"
	resp, err := client.Get(tb.Context(), queue, clientv3.WithFirstCreate()...)
	if err != nil || len(resp.Kvs) != 1 {
		tb.Fatalf("the holder of %q: %v, %v", name, resp, err)
	}
	if _, err := client.Delete(tb.Context(), string(resp.Kvs[0].Key)); err != nil {
		tb.Fatal(err)
	}
}
