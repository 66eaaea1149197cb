package fleet

import (
	"context"
	"testing"

	"example.com/letsencrypt"
	servers "example.com/letsencrypt/internal/engine"
	"example.com/letsencrypt/store/dir"
	"example.com/letsencrypt/store/etcd"
	"example.com/letsencrypt/store/postgres"
	"example.com/letsencrypt/store/redis"
	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// An engine is what the members of a fleet share.
type engine struct {
	name  string
	start func(tb testing.TB) *servers.Server // nil: it is a folder
	open  func(addr string) (letsencrypt.Storage, error)
}

var engines = []engine{
	{"dir", nil, func(addr string) (letsencrypt.Storage, error) { return dir.Open(addr) }},
	{"redis", func(tb testing.TB) *servers.Server { return servers.Redis(tb) }, openRedis},
	{"postgres", servers.Postgres, openPostgres},
	{"etcd", servers.Etcd, openEtcd},
}

func engineNamed(name string) engine {
	for _, e := range engines {
		if e.name == name {
			return e
		}
	}
	panic("no engine " + name)
}

// These leave their clients open: they are for the life of a process.

func openRedis(addr string) (letsencrypt.Storage, error) {
	return redis.New(goredis.NewClient(&goredis.Options{Addr: addr}), "fleet/"), nil
}

func openPostgres(addr string) (letsencrypt.Storage, error) {
	pool, err := pgxpool.New(context.Background(), "postgres://postgres@"+addr+"/postgres")
	if err != nil {
		return nil, err
	}
	return postgres.New(pool), nil
}

func openEtcd(addr string) (letsencrypt.Storage, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	return etcd.New(client, "fleet/"), nil
}
