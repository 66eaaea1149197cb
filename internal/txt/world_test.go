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
	hidden  map[string]bool // names whose NS records the recursive server does not tell
	asked   []string        // "address name", each question to a server in the order of arrival
	queries int             // to the recursive server
}

// A record is a line of a zone: "example.com. NS ns.example.net.".
type record struct{ name, typ, data string }

// A nameServer has some zones, with all records of the world in them, as far as
// it has not a record of its own of the same name and type.
type nameServer struct {
	zones []string
	own   []record

	// hook sees each response before it is sent, if set, and may change it. If it
	// returns false, nothing is sent.
	hook func(network string, m *dnsmessage.Message) bool
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
		if addr, err := netip.ParseAddr(f[0]); err == nil {
			w.servers[addr] = &nameServer{zones: f[1:]}
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

// remove removes all records of the name and type.
func (w *world) remove(name, typ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = slices.DeleteFunc(w.records, func(r record) bool { return r.name == name && r.typ == typ })
}

// client returns a Client that lives in the world, over connections in memory.
func (w *world) client() *Client {
	return &Client{Resolver: &net.Resolver{PreferGo: true, Dial: w.dial}}
}

func (w *world) dial(_ context.Context, network, address string) (net.Conn, error) {
	conn, served := net.Pipe()
	go func() {
		defer served.Close()
		for {
			var size [2]byte
			if _, err := io.ReadFull(served, size[:]); err != nil {
				return
			}
			msg := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(served, msg); err != nil {
				return
			}
			resp := w.serve(network, address, msg)
			if resp == nil {
				continue
			}
			served.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(resp))), resp...))
		}
	}()
	return conn, nil
}

// serve returns the response of the server at address, nil for none.
func (w *world) serve(network, address string, msg []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		w.t.Errorf("query to %s: %v", address, err)
		return nil
	}
	addr := netip.MustParseAddrPort(address).Addr()
	m.Response, m.Additionals = true, nil
	name := strings.ToLower(m.Questions[0].Name.String())
	w.mu.Lock()
	srv := w.servers[addr]
	if srv == nil {
		w.queries++
		w.recurse(name, &m)
	} else {
		w.asked = append(w.asked, addr.String()+" "+name)
		w.answer(srv, name, &m)
	}
	w.mu.Unlock()
	if srv != nil && srv.hook != nil && !srv.hook(network, &m) {
		return nil
	}
	resp, err := m.Pack()
	if err != nil {
		w.t.Errorf("response of %s: %v", address, err)
		return nil
	}
	return resp
}

// recurse answers as a recursive server does: with all it takes to get from the
// name to the records.
func (w *world) recurse(name string, m *dnsmessage.Message) {
	m.RecursionAvailable = true
	typ := strings.TrimPrefix(m.Questions[0].Type.String(), "Type")
	for range 20 {
		if typ == "NS" && w.hidden[name] {
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
	for _, typ := range []string{strings.TrimPrefix(m.Questions[0].Type.String(), "Type"), "CNAME"} {
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

// log returns the questions to the name servers so far.
func (w *world) log() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.asked)
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
