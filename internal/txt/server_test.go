package txt

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/dns/dnsmessage"
)

// single is example.com at one server.
const single = `
	192.0.2.1 example.com.
	example.com. NS ns1.example.com.
	ns1.example.com. A 192.0.2.1
	` + acme + `. TXT a
`

func TestQuery(t *testing.T) {
	for _, edns := range []bool{true, false} {
		msg, err := newQuery(7, acme+".", edns)
		if err != nil {
			t.Fatal(err)
		}
		if n := int(binary.BigEndian.Uint16(msg)); n != len(msg)-2 {
			t.Errorf("length is %d, want %d", n, len(msg)-2)
		}
		var m dnsmessage.Message
		if err := m.Unpack(msg[2:]); err != nil {
			t.Fatal(err)
		}
		if m.ID != 7 || m.Response || !m.RecursionDesired || len(m.Questions) != 1 {
			t.Errorf("query is %+v, want a question with id 7 that asks for recursion", m.Header)
		}
		if q := m.Questions[0]; q.Name.String() != acme+"." || q.Type != dnsmessage.TypeTXT || q.Class != dnsmessage.ClassINET {
			t.Errorf("question is %v, want for the TXT records", q)
		}
		if edns && (len(m.Additionals) != 1 || m.Additionals[0].Header.Class != ednsSize) {
			t.Errorf("additionals are %v, want EDNS0 with size %d", m.Additionals, ednsSize)
		}
		if !edns && len(m.Additionals) > 0 {
			t.Errorf("additionals are %v, want none", m.Additionals)
		}
	}
}

func TestIDsDiffer(t *testing.T) {
	w := newWorld(t, single)
	ids := make(map[uint16]bool)
	w.server("192.0.2.1").hook = func(_ string, m *dnsmessage.Message) bool {
		ids[m.ID] = true
		return true
	}
	for range 10 {
		lookup(t, w.packetClient(), "a")
	}
	if len(ids) < 5 {
		t.Errorf("%d different ids in 10 queries", len(ids))
	}
}

func TestTruncated(t *testing.T) {
	for _, client := range []func(*world) *Client{(*world).client, (*world).packetClient} {
		w := newWorld(t, single)
		w.server("192.0.2.1").hook = func(network string, m *dnsmessage.Message) bool {
			if network == "udp" {
				m.Truncated, m.Answers = true, nil
			}
			return true
		}
		lookup(t, client(w), "a")
	}
}

// TestGarbage sends something that can't be the response before it, and then
// what is the response but can't be read.
func TestGarbage(t *testing.T) {
	w := newWorld(t, single)
	w.server("192.0.2.1").raw = func(network string, resp []byte) [][]byte {
		if network == "tcp" {
			return [][]byte{resp}
		}
		return [][]byte{[]byte("garbage"), resp[:len(resp)-1]}
	}
	lookup(t, w.packetClient(), "a")
	if got := len(w.log("tcp 192.0.2.1")); got != 1 {
		t.Errorf("%d questions by TCP, want 1", got)
	}
}

// TestForgery sends records under another id, and for another question, before
// the response.
func TestForgery(t *testing.T) {
	w := newWorld(t, single)
	w.server("192.0.2.1").raw = func(_ string, resp []byte) [][]byte {
		var m dnsmessage.Message
		if err := m.Unpack(resp); err != nil {
			t.Error(err)
		}
		m.Answers[0].Body = &dnsmessage.TXTResource{TXT: []string{"forged"}}
		m.ID++
		id, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		m.ID--
		m.Questions[0].Type = dnsmessage.TypeALL
		question, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return [][]byte{id, question, resp}
	}
	lookup(t, w.packetClient(), "a")
	if got := len(w.log("192.0.2.1")); got != 1 {
		t.Errorf("%d questions, want 1", got)
	}
}

// TestOnlyForgeries waits for the response and does not give up before.
func TestOnlyForgeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, single)
		w.server("192.0.2.1").raw = func(_ string, resp []byte) [][]byte {
			resp[0]++
			return [][]byte{resp}
		}
		lookupFails(t, w.packetClient(), "ns1.example.com: no answer")
		lookupFails(t, w.client(), "ns1.example.com: not a response to our question")
	})
}

// TestLargeResponse is longer than we let UDP take, of a server that sends it
// nevertheless, and as long as it gets by TCP.
func TestLargeResponse(t *testing.T) {
	w := newWorld(t, single)
	long := strings.Repeat("x", 250)
	for range 200 {
		w.add(acme + ". TXT " + long)
	}
	lookup(t, w.packetClient(), "a", long)
}

// TestNoEDNS has a server that does not know EDNS0, and a box before the server
// that drops it.
func TestNoEDNS(t *testing.T) {
	hooks := map[string]func(string, *dnsmessage.Message) bool{
		"refused": code(dnsmessage.RCodeFormatError),
		"dropped": dead,
	}
	for name, hook := range hooks {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, single)
			w.server("192.0.2.1").hook = func(network string, m *dnsmessage.Message) bool {
				asked := w.log("192.0.2.1")
				return !strings.HasSuffix(asked[len(asked)-1], "EDNS0") || hook(network, m)
			}
			lookup(t, w.packetClient(), "a")
			if got := w.log("192.0.2.1"); len(got) != 2 || !strings.HasSuffix(got[0], "EDNS0") {
				t.Errorf("%s: questions are %q, want one with EDNS0 and one without", name, got)
			}
		})
	}
}

func TestConnectionRefused(t *testing.T) {
	w := newWorld(t, plain+acme+". TXT a")
	c := w.client()
	dial := c.Resolver.Dial
	c.Resolver.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "192.0.2.1:53" {
			return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError("nowhere")}
		}
		return dial(ctx, network, address)
	}
	lookup(t, c, "a")
	w.server("192.0.2.2").hook = code(dnsmessage.RCodeServerFailure)
	lookupFails(t, c, "ns1.example.com: dial udp: unknown network nowhere; ns2.example.com: SERVFAIL")
}

func TestReportIsBounded(t *testing.T) {
	seen := make([]sighting, 100)
	for i := range seen {
		seen[i] = sighting{server: "ns.example.com.", name: "x."}
	}
	got := report(seen, "x.")
	if n := strings.Count(got, "ns.example.com: no such record"); n != maxShownServers {
		t.Errorf("report names %d servers, want %d", n, maxShownServers)
	}
	if want := "; and 84 more servers"; !strings.HasSuffix(got, want) {
		t.Errorf("report = %s, want %s at its end", got, want)
	}
}

// TestLoopback asks over sockets.
func TestLoopback(t *testing.T) {
	w := newWorld(t, single)
	long := strings.Repeat("x", 200)
	for range 10 {
		w.add(acme + ". TXT " + long) // by TCP, then
	}
	w.server("192.0.2.1").hook = func(network string, m *dnsmessage.Message) bool {
		if network == "udp" {
			m.Truncated, m.Answers = true, nil
		}
		return true
	}
	lookup(t, w.socketClient(), "a", long)
	if got := len(w.log("192.0.2.1")); got != 2 {
		t.Errorf("%d questions, want one by UDP and one by TCP", got)
	}
}
