package engine

import (
	"net"
	"sync"
	"testing"
)

// A Relay passes connections on to a server until it is told to stall. Then it
// keeps what it gets, as a network does that loses packets: nobody is told.
type Relay struct {
	Addr string // host:port

	to     string
	closed chan struct{}

	mu    sync.Mutex
	open  chan struct{} // closed while it passes on
	conns []net.Conn
}

// NewRelay starts a relay that ends with the test.
func NewRelay(tb testing.TB, to string) *Relay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &Relay{Addr: l.Addr().String(), to: to, closed: make(chan struct{}), open: make(chan struct{})}
	close(r.open)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { r.serve(conn) })
		}
	})
	tb.Cleanup(func() {
		l.Close()
		close(r.closed)
		r.Cut()
		running.Wait()
	})
	return r
}

// Stall has the relay keep what it gets.
func (r *Relay) Stall() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = make(chan struct{})
}

// Resume has it pass on again, first of all what it kept.
func (r *Relay) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.open)
}

// Cut closes all connections.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.conns {
		conn.Close()
	}
	r.conns = nil
}

func (r *Relay) serve(client net.Conn) {
	defer client.Close()
	r.keep(client)
	if !r.wait() {
		return
	}
	server, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer server.Close()
	r.keep(server)
	var back sync.WaitGroup
	back.Go(func() { r.pass(client, server) })
	r.pass(server, client)
	back.Wait()
}

func (r *Relay) keep(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, conn)
}

// pass copies until one end is closed, and then closes the other.
func (r *Relay) pass(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !r.wait() {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// wait waits while the relay stalls. It returns false if it has ended.
func (r *Relay) wait() bool {
	r.mu.Lock()
	open := r.open
	r.mu.Unlock()
	select {
	case <-open:
		return true
	case <-r.closed:
		return false
	}
}
