package txt

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// TestMain has package net make what it keeps for good before a bubble could:
// channels of a bubble are of no use outside.
func TestMain(m *testing.M) {
	r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, io.ErrUnexpectedEOF
	}}
	r.LookupHost(context.Background(), "warm.example.") // fails, which is all right
	os.Exit(m.Run())
}

// A world is a handful of name servers, and a recursive one that knows all
// records there are. Each address that is not one of theirs is the recursive
// one's, whatever this machine is configured to use.
type world struct {
	t       testing.TB
	servers map[netip.Addr]*nameServer

	mu      sync.Mutex // guards the fields below
	records []record
	hidden  map[string]bool // names of which the recursive server does not tell the servers or their addresses
	down    bool            // whether the recursive server is
	silent  string          // a name of which it says nothing
	asked   []string        // each question, as note has it
	dials   int             // to name servers
	late    int             // of these, with a context that had ended
}

// A record is a line of a zone: "example.com. NS ns.example.net.".
type record struct{ name, typ, data string }

// A nameServer has some zones, with all records of the world in them, as far as
// it has not a record of its own of the same name and type.
type nameServer struct {
	zones []string
	own   []record
	off   bool

	// hook sees each response before it is sent, if set, and may change it. If it
	// returns false, nothing is sent.
	hook func(network string, m *dnsmessage.Message) bool

	// raw returns what is sent in place of the response, if set.
	raw func(network string, resp []byte) [][]byte
}

// newWorld makes a world of lines. One that begins with an address is a name
// server and its zones, the others are records.
func newWorld(t testing.TB, lines string) *world {
	w := &world{t: t, servers: make(map[netip.Addr]*nameServer), hidden: make(map[string]bool)}
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if _, err := netip.ParseAddr(f[0]); err == nil {
			w.addServer(f[0], f[1:]...)
			continue
		}
		w.records = append(w.records, parseRecord(line))
	}
	return w
}

func parseRecord(line string) record {
	f := strings.SplitN(strings.TrimSpace(line), " ", 3)
	return record{f[0], f[1], strings.TrimSpace(f[2])}
}

func (w *world) server(addr string) *nameServer { return w.servers[netip.MustParseAddr(addr)] }

func (w *world) addServer(addr string, zones ...string) {
	w.servers[netip.MustParseAddr(addr)] = &nameServer{zones: zones}
}

// add adds a record that all servers of its zone have at once.
func (w *world) add(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, parseRecord(line))
}

// addAt adds a record that the server at addr has, in place of the others'.
func (w *world) addAt(addr, line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	srv := w.server(addr)
	srv.own = append(srv.own, parseRecord(line))
}

// off turns the server at addr off.
func (w *world) off(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server(addr).off = true
}

// remove removes all records of the name and type.
func (w *world) remove(name, typ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = slices.DeleteFunc(w.records, func(r record) bool { return r.name == name && r.typ == typ })
}

// client returns a Client that lives in the world, over streams in memory.
func (w *world) client() *Client {
	return &Client{Resolver: &net.Resolver{PreferGo: true, Dial: w.dial}}
}

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	if w.servers[netip.MustParseAddrPort(address).Addr()] != nil {
		w.dials++
		if ctx.Err() != nil {
			w.late++
		}
	}
	w.mu.Unlock()
	conn, served := net.Pipe()
	go w.serveStream(served, network, address)
	return conn, nil
}

// packetClient is client with packets for UDP.
func (w *world) packetClient() *Client {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "udp" {
			return w.dial(ctx, network, address)
		}
		conn, served := net.Pipe()
		go w.servePackets(served, address)
		return packetConn{conn}, nil
	}
	return &Client{Resolver: &net.Resolver{PreferGo: true, Dial: dial}}
}

// A packetConn is a pipe, whose every write is a read, as a connection for
// packets.
type packetConn struct{ net.Conn }

func (c packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}

func (c packetConn) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// socketClient is client with sockets on the loopback interface, a pair for
// each connection.
func (w *world) socketClient() *Client {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		var at net.Addr
		if network == "udp" {
			at = w.listenUDP(address)
		} else {
			at = w.listenTCP(address)
		}
		return new(net.Dialer).DialContext(ctx, network, at.String())
	}
	return &Client{Resolver: &net.Resolver{PreferGo: true, Dial: dial}}
}

func (w *world) listenUDP(address string) net.Addr {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		w.t.Error(err)
		return &net.UDPAddr{}
	}
	w.t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, resp := range w.serve("udp", address, buf[:n]) {
				pc.WriteTo(resp, from)
			}
		}
	}()
	return pc.LocalAddr()
}

func (w *world) listenTCP(address string) net.Addr {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Error(err)
		return &net.TCPAddr{}
	}
	w.t.Cleanup(func() { ln.Close() })
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			w.serveStream(conn, "tcp", address)
		}
	}()
	return ln.Addr()
}

// serveStream answers what comes in on conn until its end.
func (w *world) serveStream(conn net.Conn, network, address string) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, msg); err != nil {
			return
		}
		for _, resp := range w.serve(network, address, msg) {
			conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(resp))), resp...))
		}
	}
}

func (w *world) servePackets(conn net.Conn, address string) {
	defer conn.Close()
	buf := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		for _, resp := range w.serve("udp", address, buf[:n]) {
			conn.Write(resp)
		}
	}
}

// serve returns the responses of the server at address, most often one.
func (w *world) serve(network, address string, msg []byte) [][]byte {
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		w.t.Errorf("query to %s: %v", address, err)
		return nil
	}
	addr := netip.MustParseAddrPort(address).Addr()
	w.note(network, addr, &m)
	m.Response, m.Additionals = true, nil
	name := strings.ToLower(m.Questions[0].Name.String())
	w.mu.Lock()
	srv := w.servers[addr]
	if srv == nil {
		w.recurse(name, &m)
	} else {
		w.answer(srv, name, &m)
	}
	lost := srv == nil && (w.down || w.silent == name) || srv != nil && srv.off
	w.mu.Unlock()
	if lost {
		return nil
	}
	if srv != nil && srv.hook != nil && !srv.hook(network, &m) {
		return nil
	}
	resp, err := m.Pack()
	if err != nil {
		w.t.Errorf("response of %s: %v", address, err)
		return nil
	}
	if srv != nil && srv.raw != nil {
		return srv.raw(network, resp)
	}
	return [][]byte{resp}
}

// note keeps a line about a question: "udp 192.0.2.1 TXT example.com.".
func (w *world) note(network string, addr netip.Addr, m *dnsmessage.Message) {
	q := m.Questions[0]
	who := addr.String()
	if w.servers[addr] == nil {
		who = "resolver"
	}
	line := network + " " + who + " " + typeName(q.Type) + " " + q.Name.String()
	if len(m.Additionals) > 0 {
		line += " EDNS0"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, line)
}

func typeName(t dnsmessage.Type) string { return strings.TrimPrefix(t.String(), "Type") }

// recurse answers as a recursive server does: with all it takes to get from the
// name to the records.
func (w *world) recurse(name string, m *dnsmessage.Message) {
	m.RecursionAvailable = true
	typ := typeName(m.Questions[0].Type)
	for range 20 {
		if (typ == "NS" || typ == "A") && w.hidden[name] {
			return
		}
		if m.Answers = w.find(w.records, m.Answers, name, typ); w.has(w.records, name, typ) {
			return
		}
		n := len(m.Answers)
		if m.Answers = w.find(w.records, m.Answers, name, "CNAME"); len(m.Answers) == n {
			m.RCode = dnsmessage.RCodeNameError
			return
		}
		name = strings.ToLower(m.Answers[n].Body.(*dnsmessage.CNAMEResource).CNAME.String())
	}
	m.RCode = dnsmessage.RCodeServerFailure
}

// answer answers as a zone's server does.
func (w *world) answer(srv *nameServer, name string, m *dnsmessage.Message) {
	zone := srv.zone(name)
	if zone == "" {
		m.RCode = dnsmessage.RCodeRefused
		return
	}
	if cut := w.cut(srv, zone, name); cut != "" {
		m.Authorities = w.find(w.records, nil, cut, "NS")
		for _, ns := range m.Authorities {
			host := ns.Body.(*dnsmessage.NSResource).NS.String()
			m.Additionals = w.find(w.records, m.Additionals, host, "A")
		}
		return
	}
	m.Authoritative = true
	for _, typ := range []string{typeName(m.Questions[0].Type), "CNAME"} {
		records := w.records
		if w.has(srv.own, name, typ) {
			records = srv.own
		}
		if m.Answers = w.find(records, nil, name, typ); len(m.Answers) > 0 {
			return
		}
	}
	m.RCode = dnsmessage.RCodeNameError
	m.Authorities = []dnsmessage.Resource{soa(zone)}
}

// zone returns the server's closest zone above the name, "" if it has none.
func (srv *nameServer) zone(name string) string {
	for n := name; n != "."; n = parent(n) {
		if slices.Contains(srv.zones, n) {
			return n
		}
	}
	return ""
}

// cut returns the zone that is delegated on the way from zone to name.
func (w *world) cut(srv *nameServer, zone, name string) string {
	cut := ""
	for n := name; n != zone; n = parent(n) {
		if w.has(w.records, n, "NS") {
			cut = n
		}
	}
	return cut
}

func (w *world) has(records []record, name, typ string) bool {
	return slices.ContainsFunc(records, func(r record) bool { return r.name == name && r.typ == typ })
}

func (w *world) find(records []record, found []dnsmessage.Resource, name, typ string) []dnsmessage.Resource {
	for _, r := range records {
		if r.name == name && r.typ == typ {
			found = append(found, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET},
				Body:   r.body(),
			})
		}
	}
	return found
}

func (r record) body() dnsmessage.ResourceBody {
	switch r.typ {
	case "A":
		return &dnsmessage.AResource{A: netip.MustParseAddr(r.data).As4()}
	case "AAAA":
		return &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(r.data).As16()}
	case "NS":
		return &dnsmessage.NSResource{NS: dnsmessage.MustNewName(r.data)}
	case "CNAME":
		return &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(r.data)}
	case "TXT":
		return &dnsmessage.TXTResource{TXT: strings.Split(r.data, "|")} // of several strings
	}
	panic("no such type: " + r.typ)
}

func soa(zone string) dnsmessage.Resource {
	name := dnsmessage.MustNewName(zone)
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET},
		Body:   &dnsmessage.SOAResource{NS: name, MBox: name},
	}
}

// log returns the questions so far that have all the words in them.
func (w *world) log(words ...string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	for _, line := range w.asked {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			lines = append(lines, line)
		}
	}
	return lines
}

// dead is the hook of a server that never answers.
func dead(string, *dnsmessage.Message) bool { return false }

// code returns the hook of a server that always answers with a response code.
func code(c dnsmessage.RCode) func(string, *dnsmessage.Message) bool {
	return func(_ string, m *dnsmessage.Message) bool {
		m.Answers, m.Authorities, m.Additionals, m.RCode = nil, nil, nil, c
		return true
	}
}

// limit returns t's context with an end, so that a test that waits for ever
// fails soon.
func limit(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
