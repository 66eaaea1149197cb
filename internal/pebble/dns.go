package pebble

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// maxUDP is the longest answer that every client takes by UDP. It asks again
// by TCP for a longer one.
const maxUDP = 512

// dnsIdle is how long a TCP connection may be silent.
const dnsIdle = time.Minute

// DNS is a name server that answers by UDP and TCP. Every name there is has
// the address 127.0.0.1 and no IPv6 address; SetTXT gives a name TXT records,
// and Handle makes it answer anything else.
type DNS struct {
	tcp net.Listener
	udp net.PacketConn

	ctx     context.Context // ends when the server is closed
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	handle func(*dnsmessage.Message)
	txt    map[string][]string
	counts map[dnsQuestion]int
}

type dnsQuestion struct {
	name string // as dnsName returns it
	typ  dnsmessage.Type
}

// ListenDNS starts a name server at addr, a host:port.
func ListenDNS(addr string) (*DNS, error) {
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		tcp.Close()
		return nil, err
	}
	d := &DNS{tcp: tcp, udp: udp, txt: map[string][]string{}, counts: map[dnsQuestion]int{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.running.Go(d.serveTCP)
	d.running.Go(d.serveUDP)
	return d, nil
}

// Addr returns the host:port of the server, for UDP and TCP.
func (d *DNS) Addr() string { return d.tcp.Addr().String() }

// Resolver returns a resolver that asks this server, whatever server it means
// to ask.
func (d *DNS) Resolver() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, d.Addr())
		},
	}
}

// SetTXT makes values the TXT records of a name, in place of those it has.
func (d *DNS) SetTXT(name string, values ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.txt[dnsName(name)] = values
}

// Handle has f see each reply before it is sent, and change it: the answers,
// the authorities, the response code. The reply has one question, and is
// authoritative. F is called by many goroutines; nil means no function.
func (d *DNS) Handle(f func(reply *dnsmessage.Message)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handle = f
}

// Queries returns how often the server was asked for a type of record of a
// name.
func (d *DNS) Queries(name string, typ dnsmessage.Type) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[dnsQuestion{dnsName(name), typ}]
}

// Close stops the server and waits until it has stopped.
func (d *DNS) Close() {
	d.cancel()
	d.tcp.Close()
	d.udp.Close()
	d.running.Wait()
}

// dnsName returns a name in the form under which it is kept.
func dnsName(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

func (d *DNS) serveUDP() {
	buf := make([]byte, 1<<16)
	for {
		n, addr, err := d.udp.ReadFrom(buf)
		if d.ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // on Windows, an earlier reply that nobody took
		}
		if reply, ok := d.reply(buf[:n], maxUDP); ok {
			d.udp.WriteTo(reply, addr) // one that is lost is asked for again
		}
	}
}

func (d *DNS) serveTCP() {
	for {
		conn, err := d.tcp.Accept()
		if err != nil {
			return
		}
		d.running.Go(func() { d.serveConn(conn) })
	}
}

// serveConn answers the questions of a TCP connection, each after its length.
func (d *DNS) serveConn(conn net.Conn) {
	stop := context.AfterFunc(d.ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	for {
		conn.SetDeadline(time.Now().Add(dnsIdle))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		reply, ok := d.reply(query, 1<<16-1)
		if !ok {
			return
		}
		reply = append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)
		if _, err := conn.Write(reply); err != nil {
			return
		}
	}
}

// reply answers a query in at most limit bytes; not at all, if it is none.
func (d *DNS) reply(query []byte, limit int) ([]byte, bool) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil || header.Response {
		return nil, false
	}
	question, err := p.Question()
	if err != nil {
		return nil, false
	}
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, OpCode: header.OpCode, RecursionDesired: header.RecursionDesired,
			Response: true, Authoritative: true, RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{question},
	}
	d.answer(&m)
	reply, err := m.Pack()
	if err != nil {
		reply, err = failure(m, dnsmessage.RCodeServerFailure).Pack()
	} else if len(reply) > limit {
		m.Truncated = true
		reply, err = failure(m, m.RCode).Pack()
	}
	return reply, err == nil
}

// failure returns a message without its records.
func failure(m dnsmessage.Message, code dnsmessage.RCode) *dnsmessage.Message {
	m.RCode = code
	m.Answers, m.Authorities, m.Additionals = nil, nil, nil
	return &m
}

// answer fills in the answers to m's question.
func (d *DNS) answer(m *dnsmessage.Message) {
	q := m.Questions[0]
	name := dnsName(q.Name.String())
	d.mu.Lock()
	d.counts[dnsQuestion{name, q.Type}]++
	values, handle := d.txt[name], d.handle
	d.mu.Unlock()
	head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
	switch q.Type {
	case dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
	case dnsmessage.TypeTXT:
		for _, v := range values {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.TXTResource{TXT: pieces(v)}})
		}
	}
	if handle != nil {
		handle(m)
	}
}

// pieces cuts a TXT record's value into strings of the 255 bytes they may have
// (RFC 1035 section 3.3).
func pieces(value string) []string {
	var all []string
	for len(value) > 255 {
		all = append(all, value[:255])
		value = value[255:]
	}
	return append(all, value)
}
