package hostname

import (
	"net/netip"
	"strconv"
	"strings"
)

const (
	reverse4 = ".in-addr.arpa"
	reverse6 = ".ip6.arpa"
)

// IsAddr returns the IP address that host is, and whether it is one. It does
// not allocate.
func IsAddr(host string) (netip.Addr, bool) {
	if !isAddrText(host) {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(host)
	return addr, err == nil
}

// isAddrText reports whether the canonical host is an address: no name has a
// colon or ends in a number.
func isAddrText(host string) bool {
	return endsInNumber(host) || strings.Contains(host, ":")
}

// ReverseAddr returns the name of addr under in-addr.arpa or ip6.arpa, without
// a trailing dot. It is the server name by which a CA that validates an address
// with tls-alpn-01 asks for it (RFC 8738 section 6).
func ReverseAddr(addr netip.Addr) string {
	addr = addr.Unmap()
	if addr.Is4() {
		return string(appendReverse4(nil, addr.As4()))
	}
	return string(appendReverse6(nil, addr.As16()))
}

func appendReverse4(dst []byte, ip [4]byte) []byte {
	for i := range ip {
		if i > 0 {
			dst = append(dst, '.')
		}
		dst = strconv.AppendUint(dst, uint64(ip[3-i]), 10)
	}
	return append(dst, reverse4...)
}

func appendReverse6(dst []byte, ip [16]byte) []byte {
	const hex = "0123456789abcdef"
	for i := range ip {
		if i > 0 {
			dst = append(dst, '.')
		}
		b := ip[15-i]
		dst = append(dst, hex[b&0xf], '.', hex[b>>4])
	}
	return append(dst, reverse6...)
}

// FromReverse returns the address whose [ReverseAddr] is name, in whatever case
// and with or without a trailing dot, and whether there is one.
func FromReverse(name string) (netip.Addr, bool) {
	if len(name) > MaxLen {
		return netip.Addr{}, false
	}
	name = strings.TrimSuffix(name, ".")
	if !underARPA(name) {
		return netip.Addr{}, false
	}
	name = strings.ToLower(name)
	var addr netip.Addr
	if digits, ok := strings.CutSuffix(name, reverse4); ok {
		addr = parseReverse4(digits)
	} else if digits, ok := strings.CutSuffix(name, reverse6); ok {
		addr = parseReverse6(digits)
	}
	// Printing it again is the whole check of the spelling, and refuses an IPv4
	// address mapped into IPv6, which has another name.
	return addr, addr.IsValid() && ReverseAddr(addr) == name
}

// underARPA tells the names that reverse zones may have from nearly all others.
func underARPA(name string) bool {
	n := len(name) - len(".arpa")
	return n >= 0 && name[n] == '.' && strings.EqualFold(name[n:], ".arpa")
}

func parseReverse4(digits string) netip.Addr {
	var ip [4]byte
	i := len(ip)
	for part := range strings.SplitSeq(digits, ".") {
		n, err := strconv.ParseUint(part, 10, 8)
		if err != nil || i == 0 {
			return netip.Addr{}
		}
		i--
		ip[i] = byte(n)
	}
	return netip.AddrFrom4(ip)
}

func parseReverse6(digits string) netip.Addr {
	var ip [16]byte
	i := 2 * len(ip)
	for part := range strings.SplitSeq(digits, ".") {
		n, err := strconv.ParseUint(part, 16, 4)
		if err != nil || i == 0 {
			return netip.Addr{}
		}
		i--
		ip[i/2] |= byte(n) << (4 * (1 - i%2))
	}
	return netip.AddrFrom16(ip)
}
