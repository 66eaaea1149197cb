package shared

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A slow storage does everything after a while, and takes no notice of contexts.
type slow struct {
	takes    time.Duration
	err      error
	calls    []string
	deadline time.Duration // what the context of the last call left it
}

func (s *slow) do(ctx context.Context, call string) error {
	at, ok := ctx.Deadline()
	s.deadline = 0
	if ok {
		s.deadline = time.Until(at)
	}
	time.Sleep(s.takes)
	s.calls = append(s.calls, call)
	return s.err
}

func (s *slow) Lock(ctx context.Context, name string) error   { return s.do(ctx, "lock "+name) }
func (s *slow) Unlock(ctx context.Context, name string) error { return s.do(ctx, "unlock "+name) }
func (s *slow) Delete(ctx context.Context, key string) error  { return s.do(ctx, "delete "+key) }

func (s *slow) Store(ctx context.Context, key string, value []byte) error {
	return s.do(ctx, "store "+key+" "+string(value))
}

func (s *slow) Load(ctx context.Context, key string) ([]byte, error) {
	return []byte("value"), s.do(ctx, "load "+key)
}

const wait = 10 * time.Second

// bubble runs a test in a bubble, and what it left behind to its end.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(t)
		rest()
	})
}

// rest waits for the calls that the client did not wait for.
func rest() {
	time.Sleep(time.Hour)
	synctest.Wait()
}

// everything is all that a Client does but Lock.
var everything = map[string]func(ctx context.Context, c *Client) error{
	"store k v": func(ctx context.Context, c *Client) error { return c.Store(ctx, "k", []byte("v")) },
	"delete k":  func(ctx context.Context, c *Client) error { return c.Delete(ctx, "k") },
	"unlock k":  func(ctx context.Context, c *Client) error { return c.Unlock(ctx, "k") },
	"load k": func(ctx context.Context, c *Client) error {
		_, err := c.Load(ctx, "k")
		return err
	},
}

func TestClientPassesOn(t *testing.T) {
	broken := errors.New("broken")
	for call, f := range everything {
		for _, want := range []error{nil, broken} {
			bubble(t, func(t *testing.T) {
				s := &slow{takes: time.Second, err: want}
				if err := f(t.Context(), &Client{s, wait}); err != want || !slices.Equal(s.calls, []string{call}) {
					t.Errorf("%s: error %v after the calls %q, want %v", call, err, s.calls, want)
				}
				if s.deadline != wait {
					t.Errorf("%s had %v, want %v", call, s.deadline, wait)
				}
			})
		}
	}
}

func TestClientLoads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		if v, err := (&Client{new(slow), wait}).Load(t.Context(), "k"); string(v) != "value" || err != nil {
			t.Errorf("Load = %q, %v, want what the storage has", v, err)
		}
	})
}

// A call that ends within the grace still counts: it ended with its context, or
// nearly so.
func TestClientWaitsNoLonger(t *testing.T) {
	for _, tt := range []struct {
		takes, want time.Duration
		err         error
	}{
		{wait - 1, wait - 1, nil},
		{wait + grace - 1, wait + grace - 1, nil},
		{time.Minute, wait + grace, context.DeadlineExceeded},
	} {
		for call, f := range everything {
			bubble(t, func(t *testing.T) {
				began := time.Now()
				err := f(t.Context(), &Client{&slow{takes: tt.takes}, wait})
				if took := time.Since(began); took != tt.want || !errors.Is(err, tt.err) {
					t.Errorf("%s, which takes %v: %v after %v, want %v after %v", call, tt.takes, err, took, tt.err, tt.want)
				}
			})
		}
	}
}

func TestClientLoadsNothingLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := &Client{&slow{takes: time.Minute}, wait}
		if v, err := c.Load(t.Context(), "k"); v != nil || err == nil {
			t.Errorf("Load = %q, %v, want an error alone", v, err)
		}
	})
}

func TestClientTellsWhyTheContextEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		over := errors.New("over")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(over) })
		for _, f := range everything {
			if err := f(ctx, &Client{&slow{takes: time.Minute}, wait}); !errors.Is(err, over) {
				t.Errorf("error %v, want the context's cause", err)
			}
		}
	})
}

// A lock is waited for as long as the caller wants.
func TestClientLockHasNoTimeOfItsOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &slow{takes: 10 * wait}
		if err := (&Client{s, wait}).Lock(t.Context(), "k"); err != nil || s.deadline != 0 {
			t.Errorf("Lock = %v with %v to wait, want nil with no deadline", err, s.deadline)
		}
	})
}

func TestClientGivesALateLockBack(t *testing.T) {
	for _, tt := range []struct {
		name  string
		takes time.Duration
		err   error
		want  []string
	}{
		{"in time", wait / 2, nil, []string{"lock k"}},
		{"within the grace", wait + grace/2, nil, []string{"lock k"}},
		{"late", wait + 2*grace, nil, []string{"lock k", "unlock k"}},
		{"late, and not taken", wait + 2*grace, errors.New("taken"), []string{"lock k"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := &slow{takes: tt.takes, err: tt.err}
				ctx, cancel := context.WithTimeout(t.Context(), wait)
				defer cancel()
				err := (&Client{s, wait}).Lock(ctx, "k")
				if late := tt.takes > wait+grace; late != (err != nil) {
					t.Errorf("Lock = %v", err)
				}
				rest()
				if !slices.Equal(s.calls, tt.want) {
					t.Errorf("calls %q, want %q", s.calls, tt.want)
				}
			})
		})
	}
}
