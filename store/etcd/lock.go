package etcd

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// A lock is one that this process holds or waits for.
type lock struct {
	name    string
	held    bool                 // guarded by Storage.mu
	session *concurrency.Session // keeps the lease alive; nil before there is one
	mutex   *concurrency.Mutex
	dropped chan struct{} // closed when another may have it
}

// Lock returns when no other holds the lock of that name any more, or ctx ends.
// Every Lock that succeeds must be followed by an Unlock.
func (s *Storage) Lock(ctx context.Context, name string) error {
	l, err := s.claim(ctx, name)
	if err != nil {
		return describe("lock", name, err)
	}
	done := make(chan error)
	go func() { // the client may go on for a while after ctx
		err := s.acquire(ctx, l)
		select {
		case done <- err:
		case <-ctx.Done():
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
// the end. After any other error the lock expires by itself, if etcd has not
// released it.
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
// or awaits it. So Unlock's name says whose lock is meant even if it was lost.
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

// drop gives up the lease, and with it what it holds, and lets other goroutines
// of this process have the lock.
func (s *Storage) drop(l *lock) {
	if l.session != nil {
		l.session.Close() // if it fails, the lease expires
	}
	s.mu.Lock()
	delete(s.locks, l.name)
	s.mu.Unlock()
	close(l.dropped)
}

// acquire queues up for the lock. The lease outlives ctx.
func (s *Storage) acquire(ctx context.Context, l *lock) error {
	lease, err := s.client.Grant(ctx, int64(s.ttl))
	if err != nil {
		return err
	}
	l.session, err = concurrency.NewSession(s.client, concurrency.WithLease(lease.ID), concurrency.WithTTL(s.ttl))
	if err != nil {
		return err
	}
	l.mutex = concurrency.NewMutex(l.session, s.lockKey(l.name))
	return l.mutex.Lock(ctx)
}

// release gives the lock back, whatever has become of the context that it was
// unlocked with. A lost lock has no key any more, or not the one that was made
// for it: then another came before it.
func (s *Storage) release(l *lock) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.ttl)*time.Second)
	defer cancel()
	resp, err := s.client.Txn(ctx).If(l.mutex.IsOwner()).Then(clientv3.OpDelete(l.mutex.Key())).Commit()
	if err == nil && !resp.Succeeded {
		err = ErrLockLost
	}
	return err
}
