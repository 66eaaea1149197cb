package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt"
	servers "example.com/letsencrypt/internal/engine"
	"example.com/letsencrypt/internal/pebble"
)

// TestOutage takes the engine from a member for a while. It serves what it has,
// says what is wrong, asks the CA for nothing, and goes on when all is well.
func TestOutage(t *testing.T) {
	e := engineNamed("redis")
	for name, outage := range map[string]func(l *loner) (over func()){
		"crash": func(l *loner) func() {
			l.server.Kill(l.t)
			return func() { l.server.Restart(l.t) }
		},
		"silence": func(l *loner) func() {
			l.relay.Stall()
			return l.relay.Resume
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLoner(t, e)
			held, lacked := l.hosts[0], l.hosts[1]
			l.handshake(held, patience)
			over := outage(l)

			if err := l.handshake(lacked, patience); err == nil {
				t.Errorf("%s is served, and its certificate can't be kept", lacked)
			}
			eventually(t, "an EventState with an error", func() bool { return l.state() != nil })
			began := time.Now()
			if err := l.handshake(held, patience); err != nil {
				t.Errorf("%s, which is in memory: %v", held, err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("%s, which is in memory, took %v", held, took)
			}
			l.says(lacked)
			if n := l.ca.Orders(); n != 1 {
				t.Errorf("%d orders, want that of before alone", n)
			}

			over()
			eventually(t, "an EventState without an error", func() bool { return l.state() == nil })
			eventually(t, lacked+" served", func() bool { return l.handshake(lacked, time.Second) == nil })
			if s := l.m.Status(lacked)[0]; s.Err != nil {
				t.Errorf("Status(%s).Err = %v after all is well", lacked, s.Err)
			}
			if n := len(l.ca.Issued()); n != 2 {
				t.Errorf("%d certificates issued, want 2", n)
			}
		})
	}
}

// A loner is a member in the test's own process.
type loner struct {
	*fleet
	relay *servers.Relay // before the engine
	m     *letsencrypt.Manager
	addr  string

	mu     sync.Mutex // guards the fields below
	log    bytes.Buffer
	states []letsencrypt.Event
}

func newLoner(t *testing.T, e engine) *loner {
	t.Helper()
	l := &loner{fleet: newFleet(t, e, pebble.Config{})}
	l.relay = servers.NewRelay(t, l.server.Addr)
	storage, err := e.open(l.relay.Addr)
	if err != nil {
		t.Fatal(err)
	}
	args := l.args(0)
	l.m = args.manager()
	l.m.Storage = storage
	l.m.Logger = slog.New(slog.NewTextHandler(l, nil))
	l.m.OnEvent = l.event
	l.m.SetHosts(args.Hosts)
	l.serve()
	t.Cleanup(func() {
		if t.Failed() {
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Logf("log:\n%s", &l.log)
		}
	})
	return l
}

// serve has the Manager serve until the test ends.
func (l *loner) serve() {
	var running sync.WaitGroup
	var all []*http.Server
	serve := func(ln net.Listener, handler http.Handler) string {
		server := newServer(handler)
		all = append(all, server)
		running.Go(func() { server.Serve(ln) }) // until Close
		return ln.Addr().String()
	}
	listen := func() net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			l.t.Fatal(err)
		}
		return ln
	}
	m := &member{}
	m.HTTPS = serve(tls.NewListener(listen(), l.m.TLSConfig()), http.NotFoundHandler())
	m.HTTP = serve(listen(), l.m.HTTPHandler(http.NotFoundHandler()))
	l.addr = m.HTTPS
	l.balancer.add(m)
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := l.m.Shutdown(ctx); err != nil {
			l.t.Errorf("Shutdown: %v", err)
		}
		for _, server := range all {
			server.Close()
		}
		running.Wait()
	})
}

func (l *loner) handshake(host string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(l.t.Context(), timeout)
	defer cancel()
	_, err := l.visit(ctx, l.addr, host)
	return err
}

func (l *loner) event(e letsencrypt.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Kind == letsencrypt.EventState {
		l.states = append(l.states, e)
	}
}

// state returns the error of the last EventState.
func (l *loner) state() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.states) == 0 {
		return nil
	}
	return l.states[len(l.states)-1].Err
}

// Write takes what is logged.
func (l *loner) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

// says checks that the trouble is told in the words of the engine's client: in
// an event, a line of the log, and Status.
func (l *loner) says(host string) {
	l.t.Helper()
	const words = "redis: "
	if err := l.state(); err == nil || !strings.Contains(err.Error(), words) {
		l.t.Errorf("EventState.Err = %v, want %q in it", err, words)
	}
	_, err := l.m.Cert(host)
	if e, ok := errors.AsType[*letsencrypt.HostError](err); !ok || !strings.Contains(e.Error(), words) {
		l.t.Errorf("Cert(%s) = %v, want a HostError with %q in it", host, err, words)
	}
	if err := l.m.Status(host)[0].Err; err == nil || !strings.Contains(err.Error(), words) {
		l.t.Errorf("Status(%s).Err = %v, want %q in it", host, err, words)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	logged := slices.Collect(strings.Lines(l.log.String()))
	if !slices.ContainsFunc(logged, func(line string) bool {
		return strings.Contains(line, "level=ERROR") && strings.Contains(line, words)
	}) {
		l.t.Errorf("no error in the log with %q in it", words)
	}
}
