// Package postgres keeps what a fleet shares in PostgreSQL, version 12 or later:
// a letsencrypt.Storage over the client of [github.com/jackc/pgx/v5].
//
//	pool, err := pgxpool.New(ctx, "postgres://letsencrypt@db.example.com/letsencrypt")
//	if err != nil {
//		log.Fatal(err)
//	}
//	m.Storage = postgres.New(pool)
//
// The table, letsencrypt, is made on first use, in the schema that is first in
// the search path. Who may not create it must find it there:
//
//	CREATE TABLE letsencrypt (key text COLLATE "C" PRIMARY KEY, value bytea NOT NULL)
//
// Two fleets in one database need two schemas. Store returns when the server has
// committed, which by default, "synchronous_commit = on", is when it is on disk.
//
// # Locks
//
// A lock is an advisory lock, which dies with the connection that took it. While
// a Storage holds locks or waits for some it has one connection for them all,
// beside those of the pool: locks, however many, take none from those who Load
// and Store, and the lock of a process that crashed is free at once. That of a
// machine that vanished is free when the server has missed it for some 15
// seconds. Who lost the connection lost all its locks, and learns of that from
// Unlock.
//
// An advisory lock belongs to a session of the server. So between it and the
// members there must be no pooler that shares sessions out by transaction or
// statement, as PgBouncer may.
package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrLockLost is what Unlock's error is when the lock was not held to the end:
// another may have had it meanwhile.
var ErrLockLost = errors.New("the lock was lost")

// A Storage is a place in a database that processes share. It is safe for
// concurrent use.
type Storage struct {
	pool *pgxpool.Pool

	mu      sync.Mutex
	locks   map[string]*lock // those that this process holds or waits for, by name
	lockers int              // between the beginning of Lock and the end of Unlock
	session *session         // takes the locks; nil: none is needed
}

// New returns a Storage in the pool's database. Closing the pool is left to the
// caller.
func New(pool *pgxpool.Pool) *Storage {
	return &Storage{pool: pool, locks: make(map[string]*lock)}
}

// Store keeps a value under a key, in the place of any other. A key is at most
// 2048 bytes of valid UTF-8 without a zero byte; that goes for all methods.
func (s *Storage) Store(ctx context.Context, key string, value []byte) error {
	if value == nil {
		value = []byte{} // nil would be NULL
	}
	return s.do(ctx, "store", key, func() error {
		_, err := s.pool.Exec(ctx, `INSERT INTO letsencrypt (key, value) VALUES ($1, $2)
			ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value`, key, value)
		return err
	})
}

// Load returns the value of a key. Its error is fs.ErrNotExist if there is none,
// and only then.
func (s *Storage) Load(ctx context.Context, key string) (value []byte, err error) {
	err = s.do(ctx, "load", key, func() error {
		err := s.pool.QueryRow(ctx, `SELECT value FROM letsencrypt WHERE key = $1`, key).Scan(&value)
		if errors.Is(err, pgx.ErrNoRows) {
			err = fs.ErrNotExist
		}
		return err
	})
	return value, err
}

// Delete removes a key, if it is there, and its value.
func (s *Storage) Delete(ctx context.Context, key string) error {
	return s.do(ctx, "delete", key, func() error {
		_, err := s.pool.Exec(ctx, `DELETE FROM letsencrypt WHERE key = $1`, key)
		return err
	})
}

// List returns, in order, the keys that begin with the prefix and a slash or, if
// the prefix is empty, all keys. If it is not recursive, it cuts them at the next
// slash.
func (s *Storage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	query, args := `SELECT key FROM letsencrypt`, []any(nil)
	below := prefix
	if below != "" {
		below = strings.TrimSuffix(below, "/") + "/"
		// In the order of bytes, 0 is next to the slash.
		query, args = query+` WHERE key >= $1 AND key < $2`, []any{below, strings.TrimSuffix(below, "/") + "0"}
	}
	var found []string
	err := s.do(ctx, "list", prefix, func() error {
		rows, err := s.pool.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	keys := make(map[string]bool)
	for _, key := range found {
		rest := key[len(below):]
		if !recursive {
			rest, _, _ = strings.Cut(rest, "/")
		}
		keys[below+rest] = true
	}
	return slices.Sorted(maps.Keys(keys)), err
}

// do does f, which is for a key or prefix, and if it finds no table makes one
// and does it again.
func (s *Storage) do(ctx context.Context, op, key string, f func() error) error {
	err := check(key)
	if err == nil {
		err = f()
	}
	if said, ok := errors.AsType[*pgconn.PgError](err); ok && said.Code == undefinedTable {
		if err = s.makeTable(ctx); err == nil {
			err = f()
		}
	}
	return describe(op, key, err)
}

// check returns an error for what is no text to PostgreSQL, or too long for an
// index of it.
func check(key string) error {
	switch {
	case len(key) > 2048:
		return errors.New("a key may have 2048 bytes at most")
	case !utf8.ValidString(key) || strings.Contains(key, "\x00"):
		return errors.New("a key must be UTF-8 without a zero byte")
	}
	return nil
}

// makeTable makes the table if nobody else does, which CREATE TABLE IF NOT EXISTS
// alone can't tell while they are at it. The order of bytes makes prefixes ranges
// of the index, and is the same in every database.
func (s *Storage) makeTable(ctx context.Context) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, number("table")); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS letsencrypt (key text COLLATE "C" PRIMARY KEY, value bytea NOT NULL)`)
		return err
	})
}

// number returns the number of the advisory lock for a purpose. Should two have
// the same, they wait for each other.
func number(purpose string) int64 {
	sum := sha256.Sum256([]byte("letsencrypt " + purpose))
	return int64(binary.BigEndian.Uint64(sum[:]))
}

// undefinedTable is a SQLSTATE code of PostgreSQL's documentation, appendix A.
const undefinedTable = "42P01"

func describe(op, key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("postgres: %s %q: %w", op, key, err)
}
