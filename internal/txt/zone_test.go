package txt

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// host is _acme-challenge.www.example.com, below a name that is a CNAME to the
// apex of another zone. The resolver has that zone's servers for it.
const host = "_acme-challenge.www.example.com"

func TestHostIsCNAME(t *testing.T) {
	elsewhere := plain + "www.example.com. CNAME example.net.\n" + host + ". TXT a\n"
	tests := []struct {
		name string
		set  func(w *world)
	}{
		{"servers there refuse", func(w *world) {}},
		{"servers there have both zones", func(w *world) {
			w.server("192.0.2.9").zones = []string{"example.net.", "example.com."}
			w.server("192.0.2.1").hook = code(dnsmessage.RCodeRefused)
			w.server("192.0.2.2").hook = code(dnsmessage.RCodeRefused)
		}},
		{"servers there fail", func(w *world) { w.server("192.0.2.9").hook = code(dnsmessage.RCodeServerFailure) }},
		{"servers there know no zone", func(w *world) { w.server("192.0.2.9").hook = code(dnsmessage.RCodeNameError) }},
		{"servers there know theirs only", func(w *world) {
			w.server("192.0.2.9").hook = func(_ string, m *dnsmessage.Message) bool {
				m.Authoritative, m.RCode = true, dnsmessage.RCodeSuccess
				m.Authorities = []dnsmessage.Resource{soa("example.net.")}
				return true
			}
		}},
		{"servers there refer upward", func(w *world) {
			w.server("192.0.2.9").hook = func(_ string, m *dnsmessage.Message) bool {
				m.RCode = dnsmessage.RCodeSuccess
				m.Authorities = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Class: dnsmessage.ClassINET},
					Body:   &dnsmessage.NSResource{NS: dnsmessage.MustNewName("a.root-servers.net.")},
				}}
				return true
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, elsewhere)
			test.set(w)
			got, err := w.client().Lookup(limit(t), host)
			if !slices.Equal(got, []string{"a"}) || err != nil {
				t.Errorf("Lookup = %q, %v, want a", got, err)
			}
			if len(w.log("192.0.2.9")) == 0 {
				t.Error("the servers that the resolver told were not asked")
			}
		})
	}
}

// TestReferral has a resolver that does not know of the zone that the records
// are in, as it may have looked when there was none.
func TestReferral(t *testing.T) {
	const below = plain + `
		192.0.2.3 b.example.com.
		b.example.com. NS ns.b.example.com.
		ns.b.example.com. A 192.0.2.3
		x.b.example.com. TXT a
		` + acme + ". CNAME x.b.example.com.\n"
	tests := []struct {
		name string
		set  func(w *world)
	}{
		{"known", func(w *world) {}},
		{"not known", func(w *world) { w.hidden["b.example.com."] = true }},
		{"server's address not known", func(w *world) { w.hidden["b.example.com."] = true; w.hidden["ns.b.example.com."] = true }},
		{"by an authoritative server", func(w *world) {
			w.hidden["b.example.com."] = true
			w.server("192.0.2.1").hook = authoritative
			w.server("192.0.2.2").hook = authoritative
		}},
		{"one server refuses", func(w *world) {
			w.hidden["b.example.com."] = true
			w.server("192.0.2.1").hook = code(dnsmessage.RCodeRefused)
		}},
		{"one server has both zones", func(w *world) {
			w.hidden["b.example.com."] = true
			w.server("192.0.2.1").zones = []string{"example.com.", "b.example.com."}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, below)
			test.set(w)
			lookup(t, w.client(), "a")
			if got := len(w.log("192.0.2.3")); got != 1 {
				t.Errorf("%d questions to the zone's own server, want 1", got)
			}
		})
	}
}

func authoritative(_ string, m *dnsmessage.Message) bool {
	m.Authoritative = true
	return true
}

// TestReferralsJoin has two servers that each know another one of the zone
// below.
func TestReferralsJoin(t *testing.T) {
	w := newWorld(t, plain+`
		192.0.2.3 `+acme+`.
		192.0.2.4 `+acme+`.
		`+acme+`. NS ns3.example.net.
		`+acme+`. NS ns4.example.net.
		ns3.example.net. A 192.0.2.3
		ns4.example.net. A 192.0.2.4`)
	w.hidden[acme+"."] = true
	w.addAt("192.0.2.3", acme+". TXT three")
	w.addAt("192.0.2.4", acme+". TXT four")
	w.server("192.0.2.1").hook = func(_ string, m *dnsmessage.Message) bool {
		m.Authorities = m.Authorities[:1]
		return true
	}
	w.server("192.0.2.2").hook = func(_ string, m *dnsmessage.Message) bool {
		m.Authorities = m.Authorities[1:]
		return true
	}
	lookup(t, w.client(), "four", "three")
}

// TestReferralStray has a server that answers for the zone below, too, and has
// it wrong.
func TestReferralStray(t *testing.T) {
	w := newWorld(t, plain+`
		192.0.2.3 `+acme+`.
		`+acme+`. NS ns3.example.net.
		ns3.example.net. A 192.0.2.3
		`+acme+`. TXT a`)
	w.hidden[acme+"."] = true
	w.server("192.0.2.2").zones = append(w.server("192.0.2.2").zones, acme+".")
	w.addAt("192.0.2.2", acme+". TXT b")
	lookup(t, w.client(), "a", "b")
}

// TestReferralsDiffer has servers that refer to different zones. One way is
// gone, the first.
func TestReferralsDiffer(t *testing.T) {
	w := newWorld(t, plain+`
		192.0.2.3 www.example.com.
		192.0.2.4 `+host+`.
		www.example.com. NS ns3.example.net.
		ns3.example.net. A 192.0.2.3
		ns4.example.net. A 192.0.2.4
		`+host+`. TXT a`)
	w.hidden["www.example.com."] = true
	w.server("192.0.2.2").hook = func(_ string, m *dnsmessage.Message) bool {
		m.Authorities = []dnsmessage.Resource{resource(host + ". NS ns4.example.net.")}
		return true
	}
	got, err := w.client().Lookup(limit(t), host)
	if !slices.Equal(got, []string{"a"}) || err != nil {
		t.Errorf("Lookup = %q, %v, want a", got, err)
	}
	if asked := w.log("192.0.2.4"); len(asked) > 0 {
		t.Errorf("asked %q as a server of www.example.com", asked)
	}
}

// TestUnfitServer has a server's name that is none, as the resolver and as a
// referral tell it.
func TestUnfitServer(t *testing.T) {
	const odd = "a\nb.example.net."
	w := newWorld(t, plain+acme+". TXT a")
	w.records = append(w.records, record{"example.com.", "NS", odd})
	lookup(t, w.client(), "a")

	w = newWorld(t, plain+"192.0.2.3 x.\n"+acme+". NS ns3.example.net.\nns3.example.net. A 192.0.2.3")
	w.records = append(w.records, record{acme + ".", "NS", odd})
	w.hidden[acme+"."] = true
	_, err := w.client().Lookup(limit(t), acme)
	if err == nil || strings.Contains(err.Error(), "b.example.net") {
		t.Errorf("Lookup = %v, want an error that does not repeat %q", err, odd)
	}
}

func TestReferralToDeadServers(t *testing.T) {
	w := newWorld(t, plain+"192.0.2.3 x.\n"+acme+". NS ns3.example.net.\nns3.example.net. A 192.0.2.3")
	w.hidden[acme+"."] = true
	lookupFails(t, w.client(), "no server of "+acme+" tells", "ns3.example.net: REFUSED")
}

// TestReferrals goes from zone to zone.
func TestReferrals(t *testing.T) {
	for _, test := range []struct {
		zones int
		ok    bool
	}{{maxReferrals, true}, {maxReferrals + 1, false}} {
		w := newWorld(t, plain)
		name := "example.com."
		for i := range test.zones {
			name = fmt.Sprintf("z%d.%s", i, name)
			addr := fmt.Sprintf("198.51.100.%d", i)
			w.addServer(addr, name)
			w.add(name + " NS ns." + name)
			w.add("ns." + name + " A " + addr)
			w.hidden[name] = true
		}
		w.add(name + " TXT a")
		got, err := w.client().Lookup(limit(t), name)
		if ok := err == nil && len(got) == 1; ok != test.ok {
			t.Errorf("Lookup over %d zones = %q, %v, want success %t", test.zones, got, err, test.ok)
		}
	}
}

func TestCNAMEs(t *testing.T) {
	for _, test := range []struct {
		aliases int
		ok      bool
	}{{maxAliases, true}, {maxAliases + 1, false}} {
		w := newWorld(t, plain)
		for i := range test.aliases {
			w.add(fmt.Sprintf("c%d.example.com. CNAME c%d.example.com.", i, i+1))
		}
		got, err := w.client().Target(limit(t), "c0.example.com")
		if ok := err == nil && got == fmt.Sprintf("c%d.example.com", test.aliases); ok != test.ok {
			t.Errorf("Target over %d CNAMEs = %q, %v, want success %t", test.aliases, got, err, test.ok)
		}
	}
}

func TestCNAMELoop(t *testing.T) {
	for _, lines := range []string{
		acme + ". CNAME " + acme + ".",
		acme + ". CNAME x.example.net.\nx.example.net. CNAME " + acme + ".",
		acme + ". CNAME x.example.net.\nx.example.net. CNAME y.example.com.\ny.example.com. CNAME x.example.net.",
	} {
		c := newWorld(t, plain+lines).client()
		if got, err := c.Target(limit(t), acme); err == nil || !strings.Contains(err.Error(), "leads back to") {
			t.Errorf("%s: Target = %q, %v, want an error that tells of the loop", lines, got, err)
		}
	}
}

// TestRecursiveServer asks one recursive server whomever it means to ask, as
// programs do to whose resolver the machine's is of no use.
func TestRecursiveServer(t *testing.T) {
	for _, lines := range []string{
		acme + ". TXT a",
		acme + ". CNAME x.example.net.\nx.example.net. CNAME y.example.com.\ny.example.com. TXT a",
	} {
		w := newWorld(t, plain+lines)
		clear(w.servers)
		lookup(t, w.client(), "a")
	}
	w := newWorld(t, plain)
	clear(w.servers)
	lookup(t, w.client())
}

func TestServersAreBounded(t *testing.T) {
	w := newWorld(t, plain)
	for i := range 100 {
		w.add(fmt.Sprintf("example.com. NS ns%d.example.net.", i))
		w.add(fmt.Sprintf("ns%d.example.net. A 192.0.2.%d", i, 100+i))
		for n := range 5 {
			w.add(fmt.Sprintf("ns%d.example.net. A 203.0.113.%d", i, n))
		}
		w.addServer(fmt.Sprintf("192.0.2.%d", 100+i), "example.com.")
	}
	for n := range 5 {
		w.addServer(fmt.Sprintf("203.0.113.%d", n), "example.com.")
	}
	lookup(t, w.client())
	if got, most := len(w.log("TXT")), maxServers*maxAddrs; got > most {
		t.Errorf("%d questions, want at most %d", got, most)
	}
}
