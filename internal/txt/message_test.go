package txt

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// pack returns a response to the question with id 7 for acme's TXT records.
func pack(t testing.TB, change func(m *dnsmessage.Message)) []byte {
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: 7, Response: true},
		Questions: []dnsmessage.Question{{
			Name:  dnsmessage.MustNewName(acme + "."),
			Type:  dnsmessage.TypeTXT,
			Class: dnsmessage.ClassINET,
		}},
	}
	change(&m)
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// resource returns a record like "example.com. TXT a".
func resource(line string) dnsmessage.Resource {
	r := parseRecord(line)
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(r.name), Class: dnsmessage.ClassINET},
		Body:   r.body(),
	}
}

func TestParseForeign(t *testing.T) {
	tests := []struct {
		name   string
		change func(m *dnsmessage.Message)
	}{
		{"query", func(m *dnsmessage.Message) { m.Response = false }},
		{"id", func(m *dnsmessage.Message) { m.ID = 8 }},
		{"no question", func(m *dnsmessage.Message) { m.Questions = nil }},
		{"name", func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("example.com.") }},
		{"type", func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeA }},
		{"class", func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }},
	}
	for _, test := range tests {
		if _, err := parse(pack(t, test.change), 7, acme+"."); err != errForeign {
			t.Errorf("parse of another %s = %v, want %v", test.name, err, errForeign)
		}
	}
	if _, err := parse([]byte("garbage"), 7, acme+"."); err != errForeign {
		t.Errorf("parse of garbage = %v, want %v", err, errForeign)
	}
}

func TestParseGarbled(t *testing.T) {
	whole := pack(t, func(m *dnsmessage.Message) {
		m.Answers = []dnsmessage.Resource{resource(acme + ". TXT a"), resource(acme + ". CNAME b.")}
		m.Authorities = []dnsmessage.Resource{resource("example.com. NS ns.example.com."), soa("example.com.")}
		m.Additionals = []dnsmessage.Resource{resource("ns.example.com. A 192.0.2.1"), resource("ns.example.com. AAAA 2001:db8::1")}
	})
	if _, err := parse(whole, 7, acme+"."); err != nil {
		t.Fatalf("parse = %v", err)
	}
	head := len(pack(t, func(*dnsmessage.Message) {}))
	for n := head; n < len(whole); n++ {
		if _, err := parse(whole[:n], 7, acme+"."); err != errGarbled {
			t.Errorf("parse of %d bytes of %d = %v, want %v", n, len(whole), err, errGarbled)
		}
	}
}

// TestReply has responses of a server of example.com.
func TestReply(t *testing.T) {
	ns := func(zone string) dnsmessage.Resource { return resource(zone + " NS ns.example.com.") }
	ext := func(code dnsmessage.RCode) dnsmessage.Resource {
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(ednsSize, code, false)
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}}
	}
	const own = acme + "."
	tests := []struct {
		name   string
		change func(m *dnsmessage.Message)
		want   string // as a sighting says
	}{
		{"TXT", func(m *dnsmessage.Message) { m.Answers = []dnsmessage.Resource{resource(own + " TXT a")} }, `"a"`},
		{"TXT in capitals", func(m *dnsmessage.Message) {
			m.Questions[0].Name = dnsmessage.MustNewName(strings.ToUpper(own))
			m.Answers = []dnsmessage.Resource{resource(strings.ToUpper(own) + " TXT a")}
		}, `"a"`},
		{"TXT of another name", func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{resource("example.com. TXT a")}
			m.Authoritative = true
		}, "no such record"},
		{"TXT of another class", func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{resource(own + " TXT a")}
			m.Answers[0].Header.Class = dnsmessage.ClassCHAOS
			m.Authoritative = true
		}, "no such record"},
		{"TXT where the CNAME leads", func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{resource(own + " CNAME x."), resource("x. TXT a")}
		}, "a CNAME to x"},
		{"CNAME to nothing", func(m *dnsmessage.Message) {
			m.RCode = dnsmessage.RCodeNameError
			m.Answers = []dnsmessage.Resource{resource(own + " CNAME x.")}
			m.Authorities = []dnsmessage.Resource{soa("x.")}
		}, "a CNAME to x"},
		{"CNAME to the root", func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{resource(own + " CNAME .")}
		}, `a CNAME to ".", which is no DNS name`},
		{"CNAME of odd bytes", func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{resource(own + " CNAME a\nb.")}
		}, `a CNAME to "a\nb.", which is no DNS name`},

		{"SOA", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{soa("example.com.")} }, "no such record"},
		{"SOA of the name", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{soa(own)} }, "no such record"},
		{"SOA and NS", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{ns("com."), soa("com.")} }, "no such record"},
		{"SOA of another", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{soa("ample.com.")} }, "answers for another zone"},
		{"authority", func(m *dnsmessage.Message) { m.Authoritative = true }, "no such record"},
		{"recursion", func(m *dnsmessage.Message) { m.RecursionAvailable = true }, "no such record"},
		{"nothing", func(m *dnsmessage.Message) {}, "answers without authority"},
		{"NXDOMAIN", func(m *dnsmessage.Message) { m.RCode, m.Authoritative = dnsmessage.RCodeNameError, true }, "no such record"},
		{"NXDOMAIN without authority", func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }, "answers without authority"},
		{"NXDOMAIN with the zone's NS", func(m *dnsmessage.Message) {
			m.RCode, m.Authoritative = dnsmessage.RCodeNameError, true
			m.Authorities = []dnsmessage.Resource{ns("example.com.")}
		}, "no such record"},
		{"NXDOMAIN with NS above", func(m *dnsmessage.Message) {
			m.RCode, m.Authoritative = dnsmessage.RCodeNameError, true
			m.Authorities = []dnsmessage.Resource{ns("com.")}
		}, "no such record"},

		{"referral", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{ns(own)} }, "a referral to the servers of " + acme},
		{"referral to the zone itself", func(m *dnsmessage.Message) {
			m.Authorities = []dnsmessage.Resource{ns("example.com.")}
		}, "answers without authority"},
		{"the zone's NS", func(m *dnsmessage.Message) {
			m.Authoritative = true
			m.Authorities = []dnsmessage.Resource{ns("example.com.")}
		}, "no such record"},
		{"referral upward", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{ns(".")} }, "refers to servers elsewhere"},
		{"referral to the zone above", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{ns("com.")} }, "refers to servers elsewhere"},
		{"referral aside", func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{ns("x.example.com.")} }, "refers to servers elsewhere"},

		{"SERVFAIL", func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeServerFailure }, "SERVFAIL"},
		{"REFUSED", func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeRefused }, "REFUSED"},
		{"code of no name", func(m *dnsmessage.Message) { m.RCode = 11 }, "response code 11"},
		{"code with EDNS0", func(m *dnsmessage.Message) {
			m.Authoritative = true
			m.Additionals = []dnsmessage.Resource{ext(16)}
		}, "BADVERS"},
	}
	for _, test := range tests {
		r, err := parse(pack(t, test.change), 7, own)
		if err != nil {
			t.Errorf("%s: parse = %v", test.name, err)
			continue
		}
		rep, err := r.reply("example.com.", own)
		if got := (sighting{reply: rep, err: err}).String(); got != test.want {
			t.Errorf("%s: reply = %s, want %s", test.name, got, test.want)
		}
		if _, ok := errors.AsType[refusal](err); err != nil && !ok {
			t.Errorf("%s: error is a %T, want a refusal", test.name, err)
		}
	}
}

func TestReferralHasGlue(t *testing.T) {
	r, err := parse(pack(t, func(m *dnsmessage.Message) {
		m.Authorities = []dnsmessage.Resource{
			resource(acme + ". NS NS1.example.com."),
			resource("other.example.com. NS ns9.example.com."),
			resource(acme + ". NS ns2.example.com."),
		}
		m.Additionals = []dnsmessage.Resource{
			resource("ns1.example.com. A 192.0.2.1"),
			resource("Ns1.example.com. AAAA 2001:db8::1"),
			resource("ns2.example.com. AAAA ::ffff:192.0.2.2"),
		}
	}), 7, acme+".")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"ns1.example.com.", "ns2.example.com."}; !slices.Equal(r.hosts, want) {
		t.Errorf("hosts = %q, want %q", r.hosts, want)
	}
	want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	if got := r.glue["ns1.example.com."]; !slices.Equal(got, want) {
		t.Errorf("glue of ns1 = %v, want %v", got, want)
	}
	if got, want := r.glue["ns2.example.com."], netip.MustParseAddr("192.0.2.2"); len(got) != 1 || got[0] != want {
		t.Errorf("glue of ns2 = %v, want %v", got, want)
	}
}

func TestWithin(t *testing.T) {
	tests := []struct {
		name, zone string
		want       bool
	}{
		{"example.com.", "example.com.", true},
		{"a.example.com.", "example.com.", true},
		{"a.example.com.", ".", true},
		{"example.com.", "a.example.com.", false},
		{"ample.com.", "example.com.", false},
		{"example.com.", "ample.com.", false},
	}
	for _, test := range tests {
		if got := within(test.name, test.zone); got != test.want {
			t.Errorf("within(%q, %q) = %t, want %t", test.name, test.zone, got, test.want)
		}
	}
}

func TestPick(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"192.0.2.1", "192.0.2.1"},
		{"2001:db8::1 2001:db8::2 2001:db8::3 192.0.2.1", "192.0.2.1 2001:db8::1 2001:db8::2"},
		{"192.0.2.1 ::ffff:192.0.2.2 192.0.2.3", "192.0.2.1 192.0.2.2"},
	}
	for _, test := range tests {
		var addrs []netip.Addr
		for f := range strings.FieldsSeq(test.in) {
			addrs = append(addrs, netip.MustParseAddr(f))
		}
		var got []string
		for _, addr := range pick(addrs) {
			got = append(got, addr.String())
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("pick(%s) = %s, want %s", test.in, got, test.want)
		}
	}
}

// FuzzParse reads anything as a response, and what it makes of it must be good
// enough to ask with and to print.
func FuzzParse(f *testing.F) {
	own := acme + "."
	add := func(change func(m *dnsmessage.Message)) { f.Add(pack(f, change), "example.com.") }
	add(func(m *dnsmessage.Message) { m.Answers = []dnsmessage.Resource{resource(own + " TXT a|b")} })
	add(func(m *dnsmessage.Message) { m.Answers = []dnsmessage.Resource{resource(own + " CNAME x.")} })
	add(func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{soa("example.com.")} })
	add(func(m *dnsmessage.Message) { m.RCode, m.RecursionAvailable = dnsmessage.RCodeNameError, true })
	add(func(m *dnsmessage.Message) {
		m.Authorities = []dnsmessage.Resource{resource(own + " NS ns.example.com.")}
		m.Additionals = []dnsmessage.Resource{resource("ns.example.com. A 192.0.2.1"), resource("ns.example.com. AAAA 2001:db8::1")}
	})
	f.Fuzz(func(t *testing.T, msg []byte, zone string) {
		r, err := parse(msg, 7, own)
		if err != nil {
			if err != errForeign && err != errGarbled || r != nil {
				t.Fatalf("parse = %v, %v", r, err)
			}
			return
		}
		rep, err := r.reply(zone, own)
		if err != nil {
			if !isRefusal(err) {
				t.Fatalf("reply = %v, want a refusal", err)
			}
			return
		}
		if len(rep.values) > 0 && rep.leads() || rep.alias != "" && rep.below != nil {
			t.Fatalf("reply = %+v, want one thing", rep)
		}
		if rep.alias != "" && !valid(rep.alias) {
			t.Fatalf("reply leads to %q, which is no name", rep.alias)
		}
		if d := rep.below; d != nil && (d.zone == zone || !within(d.zone, zone) || !within(own, d.zone)) {
			t.Fatalf("a server of %q refers to %q for %q", zone, d.zone, own)
		}
		if text := (sighting{reply: rep}).String(); strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
			t.Fatalf("text is %q", text)
		}
	})
}
