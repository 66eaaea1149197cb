// Package etcd keeps what a fleet shares in etcd: a letsencrypt.Storage over the
// client of [go.etcd.io/etcd/client/v3].
//
//	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://etcd.example.com:2379"}})
//	if err != nil {
//		log.Fatal(err)
//	}
//	m.Storage = etcd.New(client, "fleet/")
//
// Store returns when a majority of etcd's members have the value on disk. etcd
// takes values of up to 1.5 MiB, less a little, and keeps every old one until it
// is told to compact its history: set --auto-compaction-retention.
//
// # Locks
//
// A lock is held by a lease of 15 seconds, which is kept alive until Unlock: so
// long a crashed owner keeps the lock. Who waits is served in order. An owner that
// lost its lock, because it was stopped or cut off for longer, can't notice at
// once. It learns of it from Unlock.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrLockLost is what Unlock's error is when the lock was not held to the end:
// another may have had it meanwhile.
var ErrLockLost = errors.New("the lock was lost")

const lockTTL = 15 // seconds that a lock lasts which is not kept alive

// A Storage is a place in etcd that processes share. It is safe for concurrent
// use.
type Storage struct {
	client *clientv3.Client
	prefix string
	ttl    int // seconds

	mu    sync.Mutex
	locks map[string]*lock // those that this process holds or waits for, by name
}

// New returns a Storage whose keys in etcd all begin with the prefix. The members
// of a fleet must use the same; another fleet in the same etcd, and whoever else
// uses it, must use one that is not the beginning of this or has this for its
// beginning. Closing the client is left to the caller.
func New(client *clientv3.Client, prefix string) *Storage {
	return &Storage{client: client, prefix: prefix, ttl: lockTTL, locks: make(map[string]*lock)}
}

func (s *Storage) valueKey(key string) string { return s.prefix + "value/" + key }

// lockKey returns the key below which those who want a lock queue up. No name
// may put another's queue below its own.
func (s *Storage) lockKey(name string) string { return s.prefix + "lock/" + url.PathEscape(name) }

// Store keeps a value under a key, in the place of any other.
func (s *Storage) Store(ctx context.Context, key string, value []byte) error {
	_, err := s.client.Put(ctx, s.valueKey(key), string(value))
	return describe("store", key, err)
}

// Load returns the value of a key. Its error is fs.ErrNotExist if there is none,
// and only then.
func (s *Storage) Load(ctx context.Context, key string) ([]byte, error) {
	resp, err := s.client.Get(ctx, s.valueKey(key))
	if err == nil && len(resp.Kvs) == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, describe("load", key, err)
	}
	return resp.Kvs[0].Value, nil
}

// Delete removes a key, if it is there, and its value.
func (s *Storage) Delete(ctx context.Context, key string) error {
	_, err := s.client.Delete(ctx, s.valueKey(key))
	return describe("delete", key, err)
}

// List returns, in order, the keys that begin with the prefix and a slash or, if
// the prefix is empty, all keys. If it is not recursive, it cuts them at the next
// slash.
func (s *Storage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	below := prefix
	if below != "" {
		below = strings.TrimSuffix(below, "/") + "/"
	}
	resp, err := s.client.Get(ctx, s.valueKey(below), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, describe("list", prefix, err)
	}
	keys := make(map[string]bool)
	for _, kv := range resp.Kvs {
		rest := string(kv.Key[len(s.valueKey(below)):])
		if !recursive {
			rest, _, _ = strings.Cut(rest, "/")
		}
		keys[below+rest] = true
	}
	return slices.Sorted(maps.Keys(keys)), nil
}

func describe(op, key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("etcd: %s %q: %w", op, key, err)
}
