package redis

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

// The client repeats what was not answered. A lock that was got without our
// hearing of it is got again.
var acquireScript = redis.NewScript(`
if redis.call("SET", KEYS[1], ARGV[1], "NX", "PX", ARGV[2]) or redis.call("GET", KEYS[1]) == ARGV[1] then
	return 1
end
return 0`)

var renewScript = redis.NewScript(`
if redis.call("GET", KEYS[1]) == ARGV[1] then
	return redis.call("PEXPIRE", KEYS[1], ARGV[2])
end
return 0`)

var releaseScript = redis.NewScript(`
if redis.call("GET", KEYS[1]) == ARGV[1] then
	return redis.call("DEL", KEYS[1])
end
return 0`)

// Lock returns when no other holds the lock of that name any more, or ctx ends.
// Every Lock that succeeds must be followed by an Unlock.
func (s *Storage) Lock(ctx context.Context, name string) error {
	l, err := s.claim(ctx, name)
	if err != nil {
		return describe("lock", name, err)
	}
	done := make(chan error)
	go func() {
		err := s.acquire(ctx, l)
		select {
		case done <- err:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err == nil {
			s.renew(l)
			return
		}
		s.release(l) // it may be ours without our having heard of it
		s.drop(l)
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
// the end, and also if the server released it but the client, not hearing of
// that, asked again. After any other error the lock expires by itself.
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
	l.stop()
	done := make(chan error, 1)
	go func() {
		done <- s.release(l) // also after ctx
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
// or awaits it. So only one of them asks the server, and Unlock's name says
// whose lock is meant even if it was lost.
func (s *Storage) claim(ctx context.Context, name string) (*lock, error) {
	l := &lock{name: name, token: rand.Text(), dropped: make(chan struct{})}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		other := s.locks[name]
		if other == nil {
			l.ctx, l.stop = context.WithCancel(context.Background())
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
	l.stop()
	s.mu.Lock()
	delete(s.locks, l.name)
	s.mu.Unlock()
	close(l.dropped)
}

// acquire asks for the lock until it is ours or ctx ends.
func (s *Storage) acquire(ctx context.Context, l *lock) error {
	for wait := firstPoll; ; wait = min(2*wait, lastPoll) {
		if got, err := s.run(ctx, acquireScript, l); got || err != nil {
			return err
		}
		select {
		case <-time.After(wait/2 + mathrand.N(wait/2)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// renew keeps the lock from expiring until it is unlocked or lost. While the
// server can't be reached it is not known which: only the server can tell.
func (s *Storage) renew(l *lock) {
	every := time.NewTicker(s.ttl / 3)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-l.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(l.ctx, s.ttl/3)
		ours, err := s.run(ctx, renewScript, l)
		cancel()
		if err == nil && !ours {
			return // Unlock will find out, too
		}
	}
}

// release gives the lock back, whatever has become of the context that it was
// locked or unlocked with.
func (s *Storage) release(l *lock) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.ttl)
	defer cancel()
	ours, err := s.run(ctx, releaseScript, l)
	if err == nil && !ours {
		err = ErrLockLost
	}
	return err
}

// run runs a script, which returns 1 if the lock is, or was, ours.
func (s *Storage) run(ctx context.Context, script *redis.Script, l *lock) (bool, error) {
	n, err := script.Run(ctx, s.client, []string{s.lockKey(l.name)}, l.token, s.ttl.Milliseconds()).Int64()
	return n == 1, err
}
