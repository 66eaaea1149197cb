package postgres

import (
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/engine"
	"example.com/letsencrypt/store/storetest"
	"github.com/jackc/pgx/v5/pgxpool"
)

var _ letsencrypt.Storage = (*Storage)(nil)

func TestMain(m *testing.M) { engine.Main(m, "postgres") }

func newPool(tb testing.TB, addr string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(tb.Context(), "postgres://postgres@"+addr+"/postgres?pool_max_conns=2")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	return pool
}

// terminate ends the session that holds a lock, as an operator may.
func terminate(tb testing.TB, pool *pgxpool.Pool, name string) {
	tb.Helper()
	id := (&lock{name: name}).id()
	tag, err := pool.Exec(tb.Context(), `SELECT pg_terminate_backend(pid, 10000) FROM pg_locks
		WHERE locktype = 'advisory' AND classid::bigint << 32 | objid::bigint = $1`, id)
	if err != nil || tag.RowsAffected() != 1 {
		tb.Fatalf("%d sessions hold %q, %v, want 1", tag.RowsAffected(), name, err)
	}
}

func TestStorage(t *testing.T) {
	var servers sync.Map // *engine.Server by address
	e := storetest.Engine{
		Start: func(tb testing.TB) string {
			server := engine.Postgres(tb)
			servers.Store(server.Addr, server)
			return server.Addr
		},
		Open:     func(tb testing.TB, addr string) letsencrypt.Storage { return New(newPool(tb, addr)) },
		CrashTTL: 5 * time.Second,
		Restart: func(tb testing.TB, addr string) {
			server, _ := servers.Load(addr)
			server.(*engine.Server).Restart(tb)
		},
		Steal: func(tb testing.TB, addr, name string) { terminate(tb, newPool(tb, addr), name) },
	}
	storetest.Required(t, e)
	storetest.Strict(t, e)
}
