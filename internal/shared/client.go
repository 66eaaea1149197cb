package shared

import (
	"context"
	"time"
)

// A Storage is what the client needs of one.
type Storage interface {
	Lock(ctx context.Context, name string) error
	Unlock(ctx context.Context, name string) error
	Store(ctx context.Context, key string, value []byte) error
	Load(ctx context.Context, key string) ([]byte, error)
	Delete(ctx context.Context, key string) error
}

// A Client has a Storage do things and waits no longer than Wait for each, even if
// that takes no notice of its context. It is safe for concurrent use.
type Client struct {
	Storage Storage
	Wait    time.Duration
}

// grace is how long after the end of its context a call may still return.
const grace = time.Second

// Store sets the value at a key.
func (c *Client) Store(ctx context.Context, key string, value []byte) error {
	return c.do(ctx, func(ctx context.Context) error { return c.Storage.Store(ctx, key, value) })
}

// Load returns the value at a key.
func (c *Client) Load(ctx context.Context, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	return bound(ctx, func() ([]byte, error) { return c.Storage.Load(ctx, key) })
}

// Delete removes the value at a key.
func (c *Client) Delete(ctx context.Context, key string) error {
	return c.do(ctx, func(ctx context.Context) error { return c.Storage.Delete(ctx, key) })
}

// Lock takes a lock, for which it waits as long as ctx lives. One that comes too
// late is given back.
func (c *Client) Lock(ctx context.Context, name string) error {
	_, err := bound(ctx, func() (struct{}, error) {
		err := c.Storage.Lock(ctx, name)
		return struct{}{}, err
	}, func() { c.Unlock(context.WithoutCancel(ctx), name) })
	return err
}

// Unlock gives a lock back.
func (c *Client) Unlock(ctx context.Context, name string) error {
	return c.do(ctx, func(ctx context.Context) error { return c.Storage.Unlock(ctx, name) })
}

func (c *Client) do(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	_, err := bound(ctx, func() (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// bound returns what f does, or the reason for the end of ctx if f does not end
// with it. If f succeeds after that, undo is called.
func bound[T any](ctx context.Context, f func() (T, error), undo ...func()) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	gone := make(chan struct{})
	go func() {
		v, err := f()
		select {
		case done <- result{v, err}:
		case <-gone:
			for _, undo := range undo {
				if err == nil {
					undo()
				}
			}
		}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.v, r.err
	case <-time.After(grace):
		close(gone)
		var none T
		return none, context.Cause(ctx)
	}
}
