package pebble

import (
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func newDNS(t *testing.T) *DNS {
	t.Helper()
	d, err := ListenDNS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestDNSDefault(t *testing.T) {
	d := newDNS(t)
	addrs, err := d.Resolver().LookupHost(t.Context(), "Any.Name.test")
	if err != nil || !slices.Equal(addrs, []string{"127.0.0.1"}) {
		t.Errorf("LookupHost = %q, %v, want 127.0.0.1", addrs, err)
	}
	if a, aaaa := d.Queries("any.name.test", dnsmessage.TypeA), d.Queries("any.name.test", dnsmessage.TypeAAAA); a != 1 || aaaa != 1 {
		t.Errorf("Queries = %d for A, %d for AAAA, want 1 each", a, aaaa)
	}
	if txts, err := d.Resolver().LookupTXT(t.Context(), "any.name.test"); len(txts) != 0 {
		t.Errorf("LookupTXT = %q, %v, want none", txts, err)
	}
}

func TestDNSSetTXT(t *testing.T) {
	d := newDNS(t)
	long := strings.Repeat("a", 300)
	for _, want := range [][]string{{"one"}, {"two", long}, {strings.Repeat("b", 3*maxUDP)}, nil} {
		d.SetTXT("A.test.", want...)
		txts, err := d.Resolver().LookupTXT(t.Context(), "a.test")
		if !slices.Equal(txts, want) {
			t.Errorf("LookupTXT = %.20q, %v, want %.20q", txts, err, want)
		}
	}
}

func TestDNSHandle(t *testing.T) {
	d := newDNS(t)
	ns := dnsmessage.MustNewName("ns.test.")
	d.Handle(func(m *dnsmessage.Message) {
		switch q := m.Questions[0]; {
		case q.Type == dnsmessage.TypeNS:
			head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.NSResource{NS: ns}}}
		case q.Name.String() == "gone.test.":
			m.Answers, m.RCode = nil, dnsmessage.RCodeNameError
		}
	})
	servers, err := d.Resolver().LookupNS(t.Context(), "a.test")
	if err != nil || len(servers) != 1 || servers[0].Host != "ns.test." {
		t.Errorf("LookupNS = %v, %v, want ns.test.", servers, err)
	}
	_, err = d.Resolver().LookupHost(t.Context(), "gone.test")
	if e, ok := err.(*net.DNSError); !ok || !e.IsNotFound {
		t.Errorf("LookupHost = %v, want not found", err)
	}
	d.Handle(nil)
	if _, err := d.Resolver().LookupHost(t.Context(), "gone.test"); err != nil {
		t.Errorf("LookupHost without the function = %v", err)
	}
}

// Close must not wait for a client that keeps its connection open.
func TestDNSCloseConn(t *testing.T) {
	d := newDNS(t)
	conn, err := net.Dial("tcp", d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte{0})
	d.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("after Close, the connection is open")
	}
}

func FuzzDNSReply(f *testing.F) {
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}},
	}
	query, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(query)
	f.Fuzz(func(t *testing.T, query []byte) {
		d := &DNS{txt: map[string][]string{"a.test": {strings.Repeat("a", 600)}}, counts: map[dnsQuestion]int{}}
		reply, ok := d.reply(query, maxUDP)
		if !ok {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(reply); err != nil || len(reply) > maxUDP {
			t.Fatalf("reply of %d bytes: %v", len(reply), err)
		}
		if id := uint16(query[0])<<8 | uint16(query[1]); m.ID != id || !m.Response {
			t.Errorf("reply = %v, want one to %d", m.Header, id)
		}
	})
}
