package libdns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A server is a name server on the loopback interface.
type server struct {
	udp, tcp string // where it is
	zones    map[string]string
	mood     mood
	queries  atomic.Int32
}

// A mood is how a server replies.
type mood int

const (
	well      mood = iota
	silent         // not at all
	truncated      // by UDP that the reply is too long
	confused       // to a question that nobody asked
)

// newServer starts a server that has, under some names, a zone ("SOA"), a CNAME
// record ("CNAME y.example.test."), or nothing that it would tell ("REFUSED").
func newServer(t *testing.T, zones map[string]string, mood mood) *server {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{udp: conn.LocalAddr().String(), tcp: listener.Addr().String(), zones: zones, mood: mood}
	for _, server := range []*dns.Server{{PacketConn: conn, Handler: s}, {Listener: listener, Handler: s}} {
		started, ended := make(chan struct{}), make(chan error)
		server.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := errors.Join(server.Shutdown(), <-ended); err != nil {
				t.Error(err)
			}
		})
	}
	return s
}

// resolver returns a resolver that asks s alone.
func (s *server) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: s.dial}
}

func (s *server) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	addr := s.udp
	if network == "tcp" {
		addr = s.tcp
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// wireTo returns an asker of some servers, in their order.
func wireTo(servers ...*server) *wire {
	w := &wire{config: &dns.ClientConfig{Port: "53", Timeout: 1, Attempts: 2}}
	at := make(map[string]*server)
	for i, s := range servers {
		name := fmt.Sprint(i)
		w.config.Servers = append(w.config.Servers, name)
		at[name+":53"] = s
	}
	w.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return at[addr].dial(ctx, network, addr)
	}
	return w
}

func (s *server) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	s.queries.Add(1)
	reply := new(dns.Msg).SetReply(query)
	reply.RecursionAvailable = true
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	switch {
	case s.mood == silent:
		return
	case s.mood == confused:
		reply.Question[0].Name = "confused.test."
	case s.mood == truncated && udp:
		reply.Truncated = true
	default:
		s.answer(reply, query.Question[0])
	}
	w.WriteMsg(reply)
}

// answer adds what the server has to a reply, and where that leads to.
func (s *server) answer(reply *dns.Msg, q dns.Question) {
	name := strings.ToLower(q.Name)
	_, parent, _ := strings.Cut(name, ".")
	has := cmp.Or(s.zones[name], s.zones["*."+parent])
	target, isCNAME := strings.CutPrefix(has, "CNAME ")
	switch {
	case has == "":
		reply.Rcode = dns.RcodeNameError
	case has == "REFUSED":
		reply.Rcode = dns.RcodeRefused
	case isCNAME:
		reply.Answer = append(reply.Answer, record(q.Name+" "+has))
		if q.Qtype != dns.TypeCNAME && len(reply.Answer) < 5 {
			q.Name = target
			s.answer(reply, q)
		}
	case q.Qtype == dns.TypeSOA:
		reply.Answer = append(reply.Answer, record(q.Name+" SOA ns.test. root.test. 1 1 1 1 1"))
	case q.Qtype == dns.TypeNS:
		reply.Answer = append(reply.Answer, record(q.Name+" NS ns.test."))
	}
}

func record(line string) dns.RR {
	rr, err := dns.NewRR(line)
	if err != nil {
		panic(err)
	}
	return rr
}

func TestTarget(t *testing.T) {
	for _, tt := range []struct{ records, want string }{
		{"", ""},
		{"a.test. CNAME b.test.", "b.test."},
		{"A.test. CNAME B.test.", "b.test."},
		{"test. DNAME example., a.test. CNAME a.example.", "a.example."},
		{"b.test. CNAME c.test., a.test. CNAME b.test.", "b.test."},
		{"b.test. CNAME c.test.", ""},
		{"a.test. TXT b.test.", ""},
	} {
		m := new(dns.Msg)
		for line := range strings.SplitSeq(tt.records, ", ") {
			if line != "" {
				m.Answer = append(m.Answer, record(line))
			}
		}
		if got := target(m, "a.test."); got != tt.want {
			t.Errorf("target(%s) = %q, want %q", tt.records, got, tt.want)
		}
	}
}

func TestOtherServers(t *testing.T) {
	good := newServer(t, zones, well)
	for name, bad := range map[string]*server{
		"refuses":     newServer(t, map[string]string{"example.test.": "REFUSED"}, well),
		"is silent":   newServer(t, zones, silent),
		"is confused": newServer(t, zones, confused),
	} {
		ok, err := wireTo(bad, good).isZone(t.Context(), "example.test.")
		if !ok || err != nil {
			t.Errorf("isZone = %v, %v when the first server %s, want what the second says", ok, err, name)
		}
		if n := bad.queries.Swap(0); n != 1 {
			t.Errorf("a server that %s was asked %d times, want once", name, n)
		}
		if _, err := wireTo(bad).isZone(t.Context(), "example.test."); err == nil {
			t.Errorf("isZone = nil when the only server %s, want an error", name)
		}
		if n := bad.queries.Load(); n != 2 {
			t.Errorf("the only server, one that %s, was asked %d times, want twice", name, n)
		}
	}
}

func TestTruncated(t *testing.T) {
	s := newServer(t, zones, truncated)
	got, err := wireTo(s).cname(t.Context(), "_acme-challenge.c.example.test.")
	if got != "c.other.test." || err != nil {
		t.Errorf("cname = %q, %v by TCP, want c.other.test.", got, err)
	}
}

func TestContextEnds(t *testing.T) {
	s := newServer(t, nil, silent)
	w := wireTo(s)
	w.config.Timeout = 3600
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	ended := make(chan error)
	go func() {
		_, err := w.cname(ctx, "example.test.")
		ended <- err
	}()
	for s.queries.Load() == 0 {
		<-time.After(time.Millisecond)
	}
	cancel(enough)
	if err := <-ended; !errors.Is(err, enough) {
		t.Errorf("cname = %v, want %v", err, enough)
	}
}

// TestSystem tries what is done where nobody tells which name servers to ask.
func TestSystem(t *testing.T) {
	ask := system{newServer(t, zones, well).resolver()}
	for _, tt := range []struct{ name, zone, target string }{
		{"_acme-challenge.example.test.", "example.test.", "_acme-challenge.example.test."},
		{"_acme-challenge.deep.sub.example.test.", "sub.example.test.", "_acme-challenge.deep.sub.example.test."},
		{"_acme-challenge.a.example.test.", "apex.other.test.", "apex.other.test."},
		{"_acme-challenge.x.wild.example.test.", "example.test.", "_acme-challenge.x.wild.example.test."},
	} {
		zone, target, err := locate(t.Context(), ask, tt.name)
		if zone != tt.zone || target != tt.target || err != nil {
			t.Errorf("locate(%s) = %s, %s, %v; want %s, %s", tt.name, zone, target, err, tt.zone, tt.target)
		}
	}
	if zone, _, err := locate(t.Context(), ask, "_acme-challenge.refused.test."); err == nil {
		t.Errorf("locate = %s when the system's resolver fails, want an error", zone)
	}
}

// FuzzReply: whatever a name server replies, nobody panics, and a name that is
// gone on with is one that can be asked for.
func FuzzReply(f *testing.F) {
	for _, line := range []string{
		"a.test. CNAME b.test.", "a.test. CNAME .", "A.test. SOA ns.test. root.test. 1 1 1 1 1",
		`a.test. CNAME \.\000.test.`,
	} {
		rr := record(line)
		m := new(dns.Msg).SetQuestion("a.test.", rr.Header().Rrtype)
		m.Response, m.Answer = true, []dns.RR{rr}
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		m := new(dns.Msg)
		if m.Unpack(packed) != nil {
			return
		}
		isApex(m, "a.test.")
		isReply(m, new(dns.Msg).SetQuestion("a.test.", dns.TypeSOA))
		if next := target(m, "a.test."); next != "" {
			if _, err := new(dns.Msg).SetQuestion(next, dns.TypeCNAME).Pack(); err != nil {
				t.Errorf("target(%v) = %q: %v", m, next, err)
			}
			for off, end := 0, false; !end; off, end = dns.NextLabel(next, off) {
				isApex(m, next[off:])
			}
		}
	})
}
