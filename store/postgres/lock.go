package postgres

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	firstPoll = 20 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
	patience  = 15 * time.Second // with a server that does not answer
)

// A lock is one that this process holds or waits for.
type lock struct {
	name    string
	held    bool          // guarded by Storage.mu
	session *session      // that took it
	dropped chan struct{} // closed when another may have it
}

// id returns the number by which PostgreSQL knows the lock. Should two names
// have the same, one process may hold both, since a session may take a lock
// twice: it never waits for itself.
func (l *lock) id() int64 { return number("lock " + l.name) }

// Lock returns when no other holds the lock of that name any more, or ctx ends.
// Every Lock that succeeds must be followed by an Unlock.
func (s *Storage) Lock(ctx context.Context, name string) error {
	s.enter()
	l, err := s.claim(ctx, name)
	if err != nil {
		s.leave()
		return describe("lock", name, err)
	}
	done := make(chan error)
	go func() {
		err := s.acquire(ctx, l)
		select {
		case done <- err:
		case <-ctx.Done():
			if err == nil {
				l.session.unlock(l.id())
			}
			err = ctx.Err()
		}
		if err != nil {
			s.drop(l)
		}
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		s.mu.Lock()
		l.held = true
		s.mu.Unlock()
	}
	return describe("lock", name, err)
}

// Unlock releases a lock. Its error is ErrLockLost if the lock was not held to
// the end. Whatever Unlock returns, the lock is not held any more.
func (s *Storage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	l := s.locks[name]
	ours := l != nil && l.held
	if ours {
		l.held = false
	}
	s.mu.Unlock()
	if !ours {
		return describe("unlock", name, errors.New("not locked"))
	}
	done := make(chan error, 1)
	go func() {
		done <- l.session.unlock(l.id()) // also after ctx
		s.drop(l)
	}()
	select {
	case err := <-done:
		return describe("unlock", name, err)
	case <-ctx.Done():
		return describe("unlock", name, ctx.Err())
	}
}

// claim returns a lock for this goroutine when no other of this process holds
// or awaits it. To PostgreSQL they are all one session, which may take a lock
// twice. And so Unlock's name says whose lock is meant even if it was lost.
func (s *Storage) claim(ctx context.Context, name string) (*lock, error) {
	l := &lock{name: name, dropped: make(chan struct{})}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		other := s.locks[name]
		if other == nil {
			s.locks[name] = l
		}
		s.mu.Unlock()
		if other == nil {
			return l, nil
		}
		select {
		case <-other.dropped:
		case <-ctx.Done():
		}
	}
}

// drop lets other goroutines of this process have the lock.
func (s *Storage) drop(l *lock) {
	s.mu.Lock()
	delete(s.locks, l.name)
	s.mu.Unlock()
	close(l.dropped)
	s.leave()
}

// acquire asks for the lock until it is ours or ctx ends. It does not wait in
// the server, where each that waits takes a connection.
func (s *Storage) acquire(ctx context.Context, l *lock) error {
	for wait := firstPoll; ; wait = min(2*wait, lastPoll) {
		l.session = s.current()
		got, err := l.session.query(`SELECT pg_try_advisory_lock($1)`, l.id())
		if got || err != nil && !l.session.ended.Load() { // else there may be a new one
			return err
		}
		select {
		case <-time.After(wait/2 + mathrand.N(wait/2)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Storage) enter() {
	s.mu.Lock()
	s.lockers++
	s.mu.Unlock()
}

// leave closes the session when nobody needs it.
func (s *Storage) leave() {
	s.mu.Lock()
	s.lockers--
	var unused *session
	if s.lockers == 0 {
		unused, s.session = s.session, nil
	}
	s.mu.Unlock()
	if unused != nil {
		go unused.close()
	}
}

// current returns the session, or a new one if that has ended.
func (s *Storage) current() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil || s.session.ended.Load() {
		s.session = &session{connect: s.connect, turn: make(chan struct{}, 1)}
	}
	return s.session
}

// connect returns a new connection, as the pool would make it. None of the pool's
// is as good: it may be waited for, or have died unnoticed.
func (s *Storage) connect(ctx context.Context) (*pgx.Conn, error) {
	config := s.pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, err
	}
	// The server is to notice soon that we are gone, and not to mind silence. Of
	// these settings it has those that its version knows.
	_, err = conn.Exec(ctx, `SELECT set_config(name, value, false) FROM pg_settings JOIN (VALUES
		('idle_session_timeout', '0'), ('tcp_keepalives_idle', '5'),
		('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '2')) AS ours (name, value) USING (name)`)
	if err != nil {
		conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

// A session is a connection that takes locks. They are lost when it ends. A
// query that is interrupted ends it: so none is by the context of a Lock.
type session struct {
	connect func(ctx context.Context) (*pgx.Conn, error)
	turn    chan struct{} // capacity 1; full while conn is in use
	conn    *pgx.Conn     // nil before the first query
	ended   atomic.Bool
}

// query asks the server a question about a lock.
func (c *session) query(sql string, id int64) (yes bool, err error) {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if c.conn == nil {
		if c.conn, err = c.connect(ctx); err != nil {
			return false, err
		}
	}
	err = c.conn.QueryRow(ctx, sql, id).Scan(&yes)
	if c.conn.IsClosed() {
		c.ended.Store(true)
	}
	return yes, err
}

func (c *session) unlock(id int64) error {
	ours, err := c.query(`SELECT pg_advisory_unlock($1)`, id)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLockLost, err)
	}
	if !ours {
		return ErrLockLost
	}
	return nil
}

func (c *session) close() {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.conn.Close(ctx) // an error means that it is closed already
}
