package pebble

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports cannot be had by asking the kernel for a free one: Pebble opens its own
// listeners, and so does a test, later and perhaps more than once, and in
// between the kernel may give the number to anyone. We take ours from a range
// below those that Linux, macOS and Windows hand out, in blocks, and hold a
// block by listening on its first port. That lock works between processes and
// is released by the kernel when its holder dies.
const (
	firstPort  = 20000
	portBlock  = 8
	portBlocks = 1500 // up to 31999
)

// ports is a claimed block of ports on 127.0.0.1.
type ports struct {
	guard net.Listener
	base  int
}

func (p *ports) api() int        { return p.base + 1 }
func (p *ports) management() int { return p.base + 2 }
func (p *ports) http() int       { return p.base + 3 }
func (p *ports) tls() int        { return p.base + 4 }
func (p *ports) dns() int        { return p.base + 5 }

// claimPorts claims a block of which nobody uses a port. It begins at random,
// for processes that start together not to try the same ones.
func claimPorts() (*ports, error) {
	first := rand.IntN(portBlocks)
	for i := range portBlocks {
		if p := claimBlock(firstPort + (first+i)%portBlocks*portBlock); p != nil {
			return p, nil
		}
	}
	return nil, errors.New("no free ports on 127.0.0.1")
}

// claimBlock returns nil for a block that somebody else claimed, or uses a port
// of.
func claimBlock(base int) *ports {
	guard, err := net.Listen("tcp", loopback(base))
	if err != nil {
		return nil
	}
	if !allFree(base+1, base+portBlock) {
		guard.Close()
		return nil
	}
	return &ports{guard, base}
}

func (p *ports) release() { p.guard.Close() }

func allFree(from, to int) bool {
	for port := from; port < to; port++ {
		l, err := net.Listen("tcp", loopback(port))
		if err != nil {
			return false
		}
		l.Close()
		u, err := net.ListenPacket("udp", loopback(port))
		if err != nil {
			return false
		}
		u.Close()
	}
	return true
}

func loopback(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}
