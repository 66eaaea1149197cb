package hostname

import (
	"bytes"
	"net/netip"
	"strings"
)

// Plausible reports whether a public CA could certify host for a stranger: it
// is a name of at least two labels that can exist in the public DNS. Wildcards
// and addresses are not plausible; those must be asked for by name.
func Plausible(host string) bool {
	dot := strings.LastIndexByte(host, '.') // an IPv6 address has none
	if dot < 0 || host[0] == '*' || endsInNumber(host) {
		return false
	}
	if isSpecialUse(host[dot+1:]) {
		return false
	}
	return !hasReservedLabel(host)
}

// isSpecialUse reports whether the top-level domain tld is set aside for other
// uses than the public DNS, or is in wide private use and will not be
// delegated. The domains for documentation and testing, example and test, are
// not here: programs are tried out under them, and nobody else holds them.
func isSpecialUse(tld string) bool {
	switch tld {
	case "localhost", "invalid": // RFC 6761
		return true
	case "local": // RFC 6762
		return true
	case "onion": // RFC 7686
		return true
	case "alt": // RFC 9476
		return true
	case "internal": // ICANN, 2024
		return true
	case "arpa": // home.arpa (RFC 8375) and reverse zones, which CAs have stopped certifying
		return true
	case "corp", "home", "lan", "localdomain", "mail", "private", "intranet": // RFC 6762 appendix G; ICANN, 2018
		return true
	}
	return false
}

// hasReservedLabel reports whether a label of name has "--" where only Punycode
// may have it (RFC 5890 section 2.3.1). The Baseline Requirements forbid such
// names.
func hasReservedLabel(name string) bool {
	if !strings.Contains(name, "--") {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) >= 4 && label[2:4] == "--" && label[:2] != "xn" {
			return true
		}
	}
	return false
}

// Wildcard returns the wildcard that covers host: *.b.c for a.b.c. It reports
// false for wildcards, addresses and names of one label, which have none.
//
// The parent may have one label. No public CA issues *.com, but a private one
// issues *.lan, and whether such a certificate is there is not ours to decide.
func Wildcard(host string) (string, bool) {
	parent, ok := cutFirst(host)
	if !ok {
		return "", false
	}
	return "*" + parent, true
}

// AppendWildcard appends what [Wildcard] returns to dst. It does not allocate
// if dst has room for [MaxLen] bytes.
func AppendWildcard(dst []byte, host string) ([]byte, bool) {
	parent, ok := cutFirst(host)
	if !ok {
		return dst, false
	}
	return append(append(dst, '*'), parent...), true
}

// WildcardInPlace makes what [Wildcard] returns of a canonical name, whose bytes
// it overwrites. Of an address it makes what no host is named.
func WildcardInPlace(name []byte) ([]byte, bool) {
	dot := bytes.IndexByte(name, '.')
	if dot <= 0 {
		return nil, false
	}
	name[dot-1] = '*'
	return name[dot-1:], true
}

// cutFirst returns what a wildcard stands before to cover host: .b.c for a.b.c.
func cutFirst(host string) (parent string, ok bool) {
	dot := strings.IndexByte(host, '.')
	if dot < 0 || host[:dot] == "*" || isAddrText(host) {
		return "", false
	}
	return host[dot:], true
}

// Registered returns about the domain that somebody registered to have host:
// its last two labels, or three if those two look like co.uk. It is right for
// most names and needs no public suffix list; use it to see whether failures
// are spread over several owners, and for nothing that must be exact. An IPv4
// address is its own owner, an IPv6 address belongs to its /64.
func Registered(host string) string {
	if addr, ok := IsAddr(host); ok {
		if addr.Is4() {
			return host
		}
		return netip.PrefixFrom(addr, 64).Masked().String()
	}
	labels := strings.Split(strings.TrimPrefix(host, "*."), ".")
	n := len(labels)
	keep := 2
	if n >= 3 && len(labels[n-1]) == 2 && len(labels[n-2]) <= 3 {
		keep = 3
	}
	return strings.Join(labels[max(0, n-keep):], ".")
}
