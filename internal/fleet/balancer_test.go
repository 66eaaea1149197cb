package fleet

import (
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
)

// A balancer passes each connection on to a member at random, or to another if
// that is not there. It knows nothing of what they speak.
type balancer struct {
	mu      sync.Mutex // guards the fields below
	members []*member
	passed  map[*member]int // connections
	held    int             // connections that had to wait for gate
	gate    chan struct{}   // closed while connections are passed on
}

func newBalancer() *balancer {
	b := &balancer{passed: make(map[*member]int), gate: make(chan struct{})}
	close(b.gate)
	return b
}

// listen passes on what comes to an address until the test ends.
func (b *balancer) listen(t *testing.T, addr string, to func(*member) string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { b.serve(conn, to) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		b.open()
		running.Wait() // the members are gone, and with them all connections
	})
}

// add has the balancer pick m, too.
func (b *balancer) add(m *member) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members = append(b.members, m)
}

// remove has the balancer pick m no more.
func (b *balancer) remove(m *member) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members = slices.DeleteFunc(b.members, func(other *member) bool { return other == m })
}

// hold keeps connections waiting from now on.
func (b *balancer) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gate = make(chan struct{})
}

// open passes on those that wait, and those to come.
func (b *balancer) open() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !isClosed(b.gate) {
		close(b.gate)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// waited returns how many connections had to wait so far.
func (b *balancer) waited() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

// to returns how many connections went to m.
func (b *balancer) to(m *member) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.passed[m]
}

// choose returns the members in the order to try them, when it is time to.
func (b *balancer) choose() []*member {
	b.mu.Lock()
	gate := b.gate
	if !isClosed(gate) {
		b.held++
	}
	b.mu.Unlock()
	<-gate
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.Clone(b.members)
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

func (b *balancer) serve(client net.Conn, to func(*member) string) {
	defer client.Close()
	for _, m := range b.choose() {
		server, err := net.Dial("tcp", to(m))
		if err != nil {
			continue
		}
		b.mu.Lock()
		b.passed[m]++
		b.mu.Unlock()
		pass(client, server.(*net.TCPConn))
		return
	}
}

// pass copies both ways until the server has ended.
func pass(client net.Conn, server *net.TCPConn) {
	defer server.Close()
	var back sync.WaitGroup
	back.Go(func() {
		io.Copy(client, server) // an error is the end as well
		client.Close()
	})
	io.Copy(server, client)
	server.CloseWrite() // an error means that it has ended
	back.Wait()
}
