// Package redis keeps what a fleet shares in Redis, or in what speaks its
// protocol, such as Valkey: a letsencrypt.Storage over the client of
// [github.com/redis/go-redis/v9].
//
//	client := redis.NewClient(&redis.Options{Addr: "redis.example.com:6379"})
//	m.Storage = store.New(client, "fleet/")
//
// where store is this package and redis the client's. A client for a cluster or
// for sentinels does as well; it must not be told to read from replicas, which
// lag behind.
//
// # What the server must be
//
// What is stored here are accounts, private keys and orders, which nobody wants
// to lose: the server needs "appendonly yes", "appendfsync always" and
// "maxmemory-policy noeviction". Store returns when the server answers, and with
// other settings it answers before the value is on its disk. A replica that is
// promoted lacks what had not reached it; the members of a fleet then see an old
// state, and may find two of them under one lock.
//
// # Locks
//
// A lock is a key with the owner's random token, which expires 15 seconds after
// the owner last renewed it: so long a crashed owner keeps it. An owner that lost
// its lock, because it was stopped or cut off for longer or the server forgot,
// can't notice at once. It learns of it from Unlock.
package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrLockLost is what Unlock's error is when the lock was not held to the end:
// another may have had it meanwhile.
var ErrLockLost = errors.New("the lock was lost")

const (
	lockTTL   = 15 * time.Second // how long a lock lasts that is not renewed
	firstPoll = 20 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
)

// A Storage is a place in Redis that processes share. It is safe for concurrent
// use. Its methods return when their context ends, whatever the client waits for
// then; what a Store was about to store may be stored nevertheless.
type Storage struct {
	client redis.UniversalClient
	prefix string
	ttl    time.Duration

	mu    sync.Mutex
	locks map[string]*lock // those that this process holds or waits for, by name
}

// A lock is one that this process holds or waits for.
type lock struct {
	name    string
	token   string // tells its key from that of any other owner
	held    bool   // guarded by Storage.mu
	ctx     context.Context
	stop    func()        // ends ctx, and so renewing
	dropped chan struct{} // closed when another may have it
}

// New returns a Storage whose keys in Redis all begin with the prefix. The
// members of a fleet must use the same; another fleet on the same server, and
// whoever else uses it, must use one that is not the beginning of this or has
// this for its beginning. Closing the client is left to the caller.
func New(client redis.UniversalClient, prefix string) *Storage {
	return &Storage{client: client, prefix: prefix, ttl: lockTTL, locks: make(map[string]*lock)}
}

// Every operation is on one key, so that the keys may be in any slot of a cluster.

func (s *Storage) valueKey(key string) string { return s.prefix + "value/" + key }
func (s *Storage) lockKey(name string) string { return s.prefix + "lock/" + name }

// Store keeps a value under a key, in the place of any other.
func (s *Storage) Store(ctx context.Context, key string, value []byte) error {
	value = bytes.Clone(value) // the caller's again when we return, which may be too early
	_, err := await(ctx, func() (string, error) {
		return s.client.Set(ctx, s.valueKey(key), value, 0).Result()
	})
	return describe("store", key, err)
}

// Load returns the value of a key. Its error is fs.ErrNotExist if there is none,
// and only then.
func (s *Storage) Load(ctx context.Context, key string) ([]byte, error) {
	value, err := await(ctx, func() ([]byte, error) { return s.client.Get(ctx, s.valueKey(key)).Bytes() })
	if errors.Is(err, redis.Nil) {
		err = fs.ErrNotExist
	}
	return value, describe("load", key, err)
}

// Delete removes a key, if it is there, and its value.
func (s *Storage) Delete(ctx context.Context, key string) error {
	_, err := await(ctx, func() (int64, error) {
		return s.client.Del(ctx, s.valueKey(key)).Result()
	})
	return describe("delete", key, err)
}

// List returns, in order, the keys that begin with the prefix and a slash or, if
// the prefix is empty, all keys. If it is not recursive, it cuts them at the next
// slash. It goes through all keys on the server, of whomever they are.
func (s *Storage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	below := prefix
	if below != "" {
		below = strings.TrimSuffix(below, "/") + "/"
	}
	found, err := await(ctx, func() (map[string]bool, error) { return s.scan(ctx, s.valueKey(below)) })
	if err != nil {
		return nil, describe("list", prefix, err)
	}
	keys := make(map[string]bool)
	for key := range found {
		rest := key[len(s.valueKey(below)):]
		if !recursive {
			rest, _, _ = strings.Cut(rest, "/")
		}
		keys[below+rest] = true
	}
	return slices.Sorted(maps.Keys(keys)), nil
}

// scan returns all keys in Redis that begin with a prefix. SCAN, unlike KEYS,
// lets the server do other things in between, and may tell of a key twice.
func (s *Storage) scan(ctx context.Context, prefix string) (map[string]bool, error) {
	found := make(map[string]bool)
	var mu sync.Mutex // guards found: the nodes of a cluster are asked side by side
	node := func(ctx context.Context, c redis.Cmdable) error {
		all := c.Scan(ctx, 0, globEscaper.Replace(prefix)+"*", 1000).Iterator()
		for all.Next(ctx) {
			mu.Lock()
			found[all.Val()] = true
			mu.Unlock()
		}
		return all.Err()
	}
	each := func(ctx context.Context, c *redis.Client) error { return node(ctx, c) }
	var err error
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		err = c.ForEachMaster(ctx, each)
	case *redis.Ring:
		err = c.ForEachShard(ctx, each)
	default:
		err = node(ctx, c)
	}
	return found, err
}

var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// await returns what f returns or, if ctx ends before that, ctx's error. The
// client itself may look at a context only between its tries.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

func describe(op, key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redis: %s %q: %w", op, key, err)
}
