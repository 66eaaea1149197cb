package hostname_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"example.com/letsencrypt/internal/hostname"
)

var (
	label63 = strings.Repeat("a", 63)
	name253 = strings.Join([]string{label63, label63, label63, strings.Repeat("a", 61)}, ".")
	name251 = name253[2:]
)

var canonicalTests = []struct{ in, want string }{
	{"example.com", "example.com"},
	{"EXAMPLE.Com", "example.com"},
	{"example.com.", "example.com"},
	{"localhost", "localhost"},
	{"a-b.example.com", "a-b.example.com"},
	{"1a.2b.example.com", "1a.2b.example.com"},
	{"1.example", "1.example"},
	{"r3---sn-x.example.com", "r3---sn-x.example.com"},
	{name253, name253},
	{name253 + ".", name253},

	{"*.example.com", "*.example.com"},
	{"*.EXAMPLE.com.", "*.example.com"},
	{"*.lan", "*.lan"},
	{"*." + name251, "*." + name251},

	{"bücher.example", "xn--bcher-kva.example"},
	{"BÜCHER.example.", "xn--bcher-kva.example"},
	{"bu\u0308cher.example", "xn--bcher-kva.example"},
	{"xn--bcher-kva.example", "xn--bcher-kva.example"},
	{"XN--BCHER-KVA.example", "xn--bcher-kva.example"},
	{"*.bücher.example", "*.xn--bcher-kva.example"},
	{"straße.example", "xn--strae-oqa.example"},
	{"例え。テスト", "xn--r8jz45g.xn--zckzah"},
	{"例え。テスト。", "xn--r8jz45g.xn--zckzah"},
	{"ｅｘａｍｐｌｅ.com", "example.com"},
	{"r3---sn-x.bücher.example", "r3---sn-x.xn--bcher-kva.example"},
	{"אב.example", "xn--4dbc.example"},

	{"192.0.2.1", "192.0.2.1"},
	{"192.0.2.1.", "192.0.2.1"},
	{"１９２.0.2.1", "192.0.2.1"},
	{"2001:DB8:0::1", "2001:db8::1"},
	{"[2001:db8::1]", "2001:db8::1"},
	{"::ffff:192.0.2.1", "192.0.2.1"},
	{"[::ffff:c000:201]", "192.0.2.1"},
	{"::", "::"},
}

func TestCanonical(t *testing.T) {
	for _, tt := range canonicalTests {
		got, err := hostname.Canonical(tt.in)
		if got != tt.want || err != nil {
			t.Errorf("Canonical(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestAppendCanonicalKeepsPrefix(t *testing.T) {
	for _, tt := range canonicalTests {
		got, err := hostname.AppendCanonical([]byte("|"), tt.in)
		if string(got) != "|"+tt.want || err != nil {
			t.Errorf("AppendCanonical(|, %q) = %q, %v, want %q", tt.in, got, err, "|"+tt.want)
		}
	}
}

// Each row is a name and the words of its refusal that tell what to mend.
var refusals = []struct{ in, want string }{
	{"", "empty"},
	{".", "dot too many"},
	{"example.com:443", `port is not part of a host name: leave out ":443"`},
	{"192.0.2.1:80", `port is not part of a host name: leave out ":80"`},
	{"[2001:db8::1]:443", `port is not part of a host name: leave out ":443"`},
	{"https://example.com", `URL is not a host name: leave out "https://"`},
	{"https://example.com:8443/", `URL is not a host name: leave out "https://"`},
	{"fe80::1%eth0", `zone is not part of a host: leave out "%eth0"`},
	{"fe80::%\x00", "zone"},
	{"example.com:", "':' is allowed in an IPv6 address only"},
	{":443", "':' is allowed in an IPv6 address only"},
	{"2001:db8::1.", "':' is allowed in an IPv6 address only"},
	{"[2001:db8::1", "':' is allowed in an IPv6 address only"},
	{"mailto:me@example.com", "':' is allowed in an IPv6 address only"},

	{"exa_mple.com", "'_' is not allowed"},
	{"example.com/", "'/' is not allowed"},
	{"example.com\x00", `'\x00' is not allowed`},
	{"%65xample.com", "'%' is not allowed"},
	{"example .com", "' ' is not allowed"},
	{" example.com", "' ' is not allowed"},
	{`a\b`, `'\\' is not allowed`},
	{"[192.0.2.1]", "'[' is not allowed"},
	{"me@example.com", "'@' is not allowed"},
	{"bücher_.example", "'_' is not allowed"},
	{"../../etc/passwd", "'/' is not allowed"},

	{"..", "dot too many"},
	{"a..b", "dot too many"},
	{".example.com", "dot too many"},
	{"example.com..", "dot too many"},
	{"example.com.。", "dot too many"},
	{"*.", "dot too many"},
	{"xn--.example", "dot too many"},
	{"example.xn--", "dot too many"},
	{"example.\u00ad", "dot too many"},

	{"*", "wildcard stands for the whole first label"},
	{"*a.example.com", "wildcard stands for the whole first label"},
	{"a.*.example.com", "wildcard stands for the whole first label"},
	{"*.*.example.com", "wildcard stands for the whole first label"},
	{"*.192.0.2.1", "not for addresses"},

	{"192.0.2.256", "not an IP address"},
	{"192.0.2.01", "not an IP address"},
	{"1.2.3", "not an IP address"},
	{"123", "not an IP address"},
	{"example.123", "not an IP address"},

	{"-a.example", "hyphen"},
	{"a-.example", "hyphen"},
	{"a.-", "hyphen"},

	{"x" + label63 + ".example", "longer than 63"},
	{"a" + name253, "longer than the 253"},
	{"*.a" + name251, "longer than the 253"},
	{strings.Repeat("a.", 10000), "longer than the 253"},
	{strings.Repeat("\u00ad", 10000) + "a", "longer than the 253"}, // IDNA maps soft hyphens to nothing

	{"\xff.example", "UTF-8"},
	{"אa.example", "not an internationalized host name"}, // RFC 5893: both directions in a label
	{"XN--A.example", "not an internationalized host name"},
	{"www.xn--a.example", "not an internationalized host name"},
	{"xn--a.example", "not an internationalized host name"},
	{"xn--example-.com", "not an internationalized host name"},
	{"xn--Bücher.example", "not an internationalized host name"},
	{"＊.example.com", "not an internationalized host name"},
	{"a\u200db.example", "not an internationalized host name"},
}

func TestCanonicalRefuses(t *testing.T) {
	for _, tt := range refusals {
		got, err := hostname.Canonical(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Canonical(%.80q) = %q, %v, want an error with %q", tt.in, got, err, tt.want)
		}
		if got != "" {
			t.Errorf("Canonical(%.80q) = %q beside an error, want nothing", tt.in, got)
		}
	}
}

func TestAppendCanonicalRefusalLeavesBuffer(t *testing.T) {
	for _, tt := range refusals {
		got, err := hostname.AppendCanonical([]byte("|"), tt.in)
		if string(got) != "|" || err == nil {
			t.Errorf("AppendCanonical(|, %.80q) = %q, %v, want | and an error", tt.in, got, err)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, tt := range canonicalTests {
		f.Add(tt.in)
	}
	for _, tt := range refusals {
		f.Add(tt.in)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, err := hostname.Canonical(s)
		if err != nil {
			checkRefusal(t, s, err)
			return
		}
		checkHost(t, host)
		checkKinds(t, host)
	})
}

// checkRefusal: an error is one short printable line, whatever the client sent.
func checkRefusal(t *testing.T, s string, err error) {
	msg := err.Error()
	if len(msg) > 500 && len(s) <= 2*hostname.MaxLen || !utf8.ValidString(msg) || strings.ContainsAny(msg, "\x00\n\r") {
		t.Errorf("Canonical(%q): unfit for a log: %q", s, msg)
	}
}

func checkHost(t *testing.T, host string) {
	if again, err := hostname.Canonical(host); again != host || err != nil {
		t.Errorf("Canonical(%q) = %q, %v, want it unchanged", host, again, err)
	}
	if host == "" || len(host) > hostname.MaxLen {
		t.Errorf("canonical host %q has %d bytes, want 1 to %d", host, len(host), hostname.MaxLen)
	}
	if addr, ok := hostname.IsAddr(host); ok {
		if addr.String() != host || addr.Is4In6() {
			t.Errorf("IsAddr(%q) = %v, want the same text", host, addr)
		}
		return
	}
	if bad := strings.Trim(strings.TrimPrefix(host, "*."), "abcdefghijklmnopqrstuvwxyz0123456789-."); bad != "" {
		t.Errorf("canonical host %q has %q in it", host, bad)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		t.Errorf("IsAddr(%q) = false, but it is an address", host)
	}
}

// checkKinds: the functions of canonical hosts lead to canonical hosts.
func checkKinds(t *testing.T, host string) {
	if wild, ok := hostname.Wildcard(host); ok {
		if again, err := hostname.Canonical(wild); again != wild || err != nil {
			t.Errorf("Wildcard(%q) = %q, not canonical: %q, %v", host, wild, again, err)
		}
		if len(wild) > len(host)+1 {
			t.Errorf("Wildcard(%q) = %q, longer by more than the star", host, wild)
		}
	}
	if addr, ok := hostname.IsAddr(host); ok {
		name := hostname.ReverseAddr(addr)
		if back, ok := hostname.FromReverse(name); back != addr || !ok {
			t.Errorf("FromReverse(%q) = %v, %v, want %v", name, back, ok, addr)
		}
	} else if reg := hostname.Registered(host); !strings.HasSuffix(host, reg) || reg == "" {
		t.Errorf("Registered(%q) = %q, want the end of it", host, reg)
	}
	hostname.Plausible(host)
}

func TestCanonicalDoesNotAllocate(t *testing.T) {
	for _, s := range []string{"www.example.com", "*.example.com", "192.0.2.1", "2001:db8::1", name253} {
		n := testing.AllocsPerRun(100, func() { hostname.Canonical(s) })
		if n != 0 {
			t.Errorf("Canonical(%q) allocates %v times, want 0", s, n)
		}
	}
}

func TestAppendCanonicalDoesNotAllocate(t *testing.T) {
	var buf [hostname.MaxLen]byte
	for _, s := range []string{"WWW.Example.com.", "[2001:DB8::1]", strings.ToUpper(name253)} {
		n := testing.AllocsPerRun(100, func() { hostname.AppendCanonical(buf[:0], s) })
		if n != 0 {
			t.Errorf("AppendCanonical(buf, %q) allocates %v times, want 0", s, n)
		}
	}
}

func BenchmarkCanonical(b *testing.B) {
	for _, s := range []string{"www.example.com", "WWW.Example.com.", "bücher.example", "192.0.2.1", "a_b.example.com"} {
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				hostname.Canonical(s)
			}
		})
	}
}

func BenchmarkAppendCanonical(b *testing.B) {
	var buf [hostname.MaxLen]byte
	b.ReportAllocs()
	for b.Loop() {
		hostname.AppendCanonical(buf[:0], "WWW.Example.com.")
	}
}

func BenchmarkAppendWildcard(b *testing.B) {
	var buf [hostname.MaxLen]byte
	b.ReportAllocs()
	for b.Loop() {
		hostname.AppendWildcard(buf[:0], "www.example.com")
	}
}

func BenchmarkPlausible(b *testing.B) {
	for b.Loop() {
		hostname.Plausible("www.example.com")
	}
}

func BenchmarkFromReverse(b *testing.B) {
	for _, s := range []string{"www.example.com", "1.2.0.192.in-addr.arpa"} {
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				hostname.FromReverse(s)
			}
		})
	}
}

func TestPlausible(t *testing.T) {
	tests := []struct {
		host string
		want bool
	}{
		{"example.com", true},
		{"a.test", true},
		{"a.example", true},
		{"xn--bcher-kva.example", true},
		{"1.example", true},
		{"localhost.example.com", true},
		{"com", false},
		{"localhost", false},
		{"*.example.com", false},
		{"192.0.2.1", false},
		{"2001:db8::1", false},
		{"a.localhost", false},
		{"printer.local", false},
		{"db.internal", false},
		{"a.invalid", false},
		{"router.home.arpa", false},
		{"1.2.0.192.in-addr.arpa", false},
		{"abc.onion", false},
		{"a.alt", false},
		{"nas.lan", false},
		{"r3---sn-x.example.com", false},
		{"a.ab--c.example.com", false},
	}
	for _, tt := range tests {
		if got := hostname.Plausible(tt.host); got != tt.want {
			t.Errorf("Plausible(%q) = %v, want %v", tt.host, got, tt.want)
		}
	}
}

func TestWildcard(t *testing.T) {
	tests := []struct{ host, want string }{
		{"a.b.c", "*.b.c"},
		{"a.b.c.d", "*.b.c.d"},
		{"nas.lan", "*.lan"},
		{"localhost", ""},
		{"*.b.c", ""},
		{"192.0.2.1", ""},
		{"::ffff:1.2.3.4", ""},
		{"2001:db8::1", ""},
	}
	for _, tt := range tests {
		got, ok := hostname.Wildcard(tt.host)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("Wildcard(%q) = %q, %v, want %q", tt.host, got, ok, tt.want)
		}
		buf, ok := hostname.AppendWildcard([]byte("|"), tt.host)
		if string(buf) != "|"+tt.want || ok != (tt.want != "") {
			t.Errorf("AppendWildcard(|, %q) = %q, %v, want %q", tt.host, buf, ok, "|"+tt.want)
		}
		switch wild, _ := hostname.WildcardInPlace([]byte(tt.host)); {
		case tt.want != "" && string(wild) != tt.want:
			t.Errorf("WildcardInPlace(%q) = %q, want %q", tt.host, wild, tt.want)
		case tt.want == "" && len(wild) > 0 && string(wild) != tt.host:
			if host, err := hostname.Canonical(string(wild)); err == nil {
				t.Errorf("WildcardInPlace(%q) = %q, which is a host", tt.host, host)
			}
		}
	}
}

func TestRegistered(t *testing.T) {
	tests := []struct{ host, want string }{
		{"example.com", "example.com"},
		{"www.example.com", "example.com"},
		{"a.b.example.com", "example.com"},
		{"*.example.com", "example.com"},
		{"com", "com"},
		{"uk", "uk"},
		{"www.x.com", "x.com"},
		{"example.co.uk", "example.co.uk"},
		{"www.example.co.uk", "example.co.uk"},
		{"www.example.com.au", "example.com.au"},
		{"co.uk", "co.uk"},
		{"*.co.uk", "co.uk"},
		{"www.example.de", "example.de"},
		{"192.0.2.1", "192.0.2.1"},
		{"2001:db8:1:2:3::4", "2001:db8:1:2::/64"},
	}
	for _, tt := range tests {
		if got := hostname.Registered(tt.host); got != tt.want {
			t.Errorf("Registered(%q) = %q, want %q", tt.host, got, tt.want)
		}
	}
}

func TestReverseAddr(t *testing.T) {
	tests := []struct{ addr, want string }{
		{"192.0.2.1", "1.2.0.192.in-addr.arpa"},
		{"::ffff:192.0.2.1", "1.2.0.192.in-addr.arpa"},
		{"2001:db8::567:89ab", "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"}, // RFC 3596 section 2.5, with the documentation prefix
	}
	for _, tt := range tests {
		addr := netip.MustParseAddr(tt.addr)
		if got := hostname.ReverseAddr(addr); got != tt.want {
			t.Errorf("ReverseAddr(%v) = %q, want %q", addr, got, tt.want)
		}
		for _, name := range []string{tt.want, tt.want + ".", strings.ToUpper(tt.want)} {
			if got, ok := hostname.FromReverse(name); got != addr.Unmap() || !ok {
				t.Errorf("FromReverse(%q) = %v, %v, want %v", name, got, ok, addr.Unmap())
			}
		}
	}
}

func TestFromReverseRefuses(t *testing.T) {
	mapped := "1.0.2.0.0.0.0.c.f.f.f.f." + strings.Repeat("0.", 20) + "ip6.arpa"
	names := []string{
		"", ".", "example.com", "in-addr.arpa", ".in-addr.arpa", "ip6.arpa",
		"2.0.192.in-addr.arpa",
		"9.1.2.0.192.in-addr.arpa",
		"01.2.0.192.in-addr.arpa",
		"256.2.0.192.in-addr.arpa",
		"+1.2.0.192.in-addr.arpa",
		"1.2.0.192.in-addr.arpa..",
		"1.2.0.192.ip6.arpa",
		"x" + mapped[1:],
		mapped,
	}
	for _, name := range names {
		if got, ok := hostname.FromReverse(name); ok {
			t.Errorf("FromReverse(%q) = %v, want none", name, got)
		}
	}
	if len(mapped) != 72 || slices.Contains(names[:len(names)-1], mapped) {
		t.Fatalf("the mapped address is spelled wrong: %q", mapped)
	}
}

func FuzzFromReverse(f *testing.F) {
	f.Add("1.2.0.192.in-addr.arpa")
	f.Add(hostname.ReverseAddr(netip.IPv6LinkLocalAllNodes()))
	f.Fuzz(func(t *testing.T, name string) {
		addr, ok := hostname.FromReverse(name)
		if ok && !strings.EqualFold(hostname.ReverseAddr(addr), strings.TrimSuffix(name, ".")) {
			t.Errorf("FromReverse(%q) = %v, whose name is %q", name, addr, hostname.ReverseAddr(addr))
		}
	})
}
