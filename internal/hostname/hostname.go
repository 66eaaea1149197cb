// Package hostname turns a host name as people and clients write it into the
// one name that certificates are kept under, and says what kind of name it is.
//
// A host is a DNS name, a wildcard (*.example.com) or an IP address. Canonical
// is the only way in; every other function takes a canonical host and does not
// check it again.
package hostname

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// MaxLen is the length of the longest canonical host, in bytes: RFC 1035
// allows 255 octets on the wire, which leaves 253 characters of text.
const MaxLen = 253

const (
	maxLabel = 63         // RFC 1035 section 2.3.4
	maxInput = 4 * MaxLen // no character of the result comes from more than four bytes of UTF-8
)

// profile is idna.Lookup less its rule against "--" in the third and fourth
// place: names such as r3---sn-x.example.com are in use.
var profile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.CheckHyphens(false))

var (
	errEmpty    = errors.New("empty host name")
	errTooLong  = fmt.Errorf("longer than the %d characters of a host name", MaxLen)
	errNotUTF8  = errors.New("not valid UTF-8")
	errDots     = errors.New("a dot too many: a label of a host name cannot be empty")
	errStar     = errors.New("a wildcard stands for the whole first label, as in *.example.com")
	errNumber   = errors.New("not an IP address, and no host name ends in a number")
	errStarAddr = errors.New("a wildcard stands for names, not for addresses")
)

// Canonical returns the one spelling of a host: a DNS name or wildcard in lower
// case and Punycode without its trailing dot, an IP address as
// [netip.Addr.String] prints it, without brackets. An address has no zone, and
// an IPv4 address mapped into IPv6 is the IPv4 address.
//
// The error says what is wrong in words for whoever typed the name. It does not
// repeat the name, which the caller has, and quotes little enough of it to be
// logged.
//
// Canonical does not allocate if s is canonical already, Punycode aside.
func Canonical(s string) (string, error) {
	var buf [MaxLen]byte
	b, err := AppendCanonical(buf[:0], s)
	if err != nil {
		return "", err
	}
	if string(b) == s {
		return s, nil
	}
	return string(b), nil
}

// AppendCanonical appends the canonical spelling of s, at most [MaxLen] bytes,
// to dst. It is Canonical for those who keep a buffer: it allocates only for
// names outside ASCII or in Punycode, for a dst that is too short, and for
// errors.
func AppendCanonical(dst []byte, s string) ([]byte, error) {
	if b, ok := appendPlain(dst, s); ok {
		return b, nil
	}
	return appendAny(dst, s)
}

// appendAny is AppendCanonical for any host, the long way.
func appendAny(dst []byte, s string) ([]byte, error) {
	if s == "" {
		return dst, errEmpty
	}
	if len(s) > maxInput {
		return dst, errTooLong
	}
	if strings.Contains(s, ":") {
		return appendIPv6(dst, s)
	}
	name, wild := strings.CutPrefix(s, "*.")
	name = cutDot(name)
	if err := checkCharacters(name); err != nil {
		return dst, err
	}
	if needsIDNA(name) {
		ascii, err := profile.ToASCII(name)
		if err != nil {
			return dst, fmt.Errorf("not an internationalized host name: %w", err)
		}
		name = ascii
	}
	if err := checkName(name, wild); err != nil {
		return dst, err
	}
	if wild {
		dst = append(dst, "*."...)
	}
	return appendLower(dst, name), nil
}

// cutDot cuts the trailing dot, which says that name is absolute, or one of the
// three others that UTS 46 takes for it. Cutting it before IDNA maps the name
// keeps apart a label that IDNA maps to nothing.
func cutDot(name string) string {
	for _, dot := range [...]string{".", "\u3002", "\uff0e", "\uff61"} {
		if cut, ok := strings.CutSuffix(name, dot); ok {
			return cut
		}
	}
	return name
}

// checkCharacters refuses the ASCII characters that have no place in a name
// before IDNA sees them: ours are the better words. What is not ASCII, IDNA
// judges.
func checkCharacters(name string) error {
	for i := range len(name) {
		switch c := name[i]; {
		case c == '*':
			return errStar
		case c < utf8.RuneSelf && !isNameByte(c):
			return fmt.Errorf("%q is not allowed in a host name, only letters, digits, '-' and '.' are", c)
		}
	}
	if !utf8.ValidString(name) {
		return errNotUTF8
	}
	return nil
}

func isNameByte(c byte) bool {
	return isLetter(c) || isDigit(c) || c == '-' || c == '.'
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// needsIDNA reports whether name has a label that is not ASCII, or that claims
// to be Punycode and must show that it is.
func needsIDNA(name string) bool {
	for i := range len(name) {
		if name[i] >= utf8.RuneSelf {
			return true
		}
		atLabel := i == 0 || name[i-1] == '.'
		if atLabel && len(name) >= i+4 && strings.EqualFold(name[i:i+4], "xn--") {
			return true
		}
	}
	return false
}

// checkName checks the shape of name, which is ASCII and has lost its wildcard
// and its trailing dot.
func checkName(name string, wild bool) error {
	if len(name) > MaxLen || wild && len(name) > MaxLen-len("*.") {
		return errTooLong
	}
	// Again, because IDNA maps characters: that its result has none of those that
	// would be refused as typed is its promise, and file names rely on it.
	if err := checkCharacters(name); err != nil {
		return err
	}
	for label := range strings.SplitSeq(name, ".") {
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	if !endsInNumber(name) {
		return nil
	}
	// No top-level domain is a number, so that 1.2.3.4 can be told from a name
	// (RFC 3696 section 2); one that ends so is a mistyped address.
	if _, err := netip.ParseAddr(name); err != nil {
		return errNumber
	}
	if wild {
		return errStarAddr
	}
	return nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errDots
	case len(label) > maxLabel:
		return fmt.Errorf("label %.20q... is longer than %d characters", label, maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("label %q begins or ends with a hyphen", label)
	}
	return nil
}

// endsInNumber reports whether the last label of name has digits only.
func endsInNumber(name string) bool {
	for i := len(name) - 1; i >= 0; i-- {
		if !isDigit(name[i]) {
			return name[i] == '.' && i < len(name)-1
		}
	}
	return name != ""
}

func appendLower(dst []byte, name string) []byte {
	for i := range len(name) {
		dst = append(dst, toLower(name[i]))
	}
	return dst
}

// appendIPv6 appends the canonical text of s, which has a colon and therefore
// is an IPv6 address or a mistake.
func appendIPv6(dst []byte, s string) ([]byte, error) {
	text := s
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			text = inner
		}
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return dst, explainColon(s)
	}
	if addr.Zone() != "" {
		return dst, fmt.Errorf("a zone is not part of a host: leave out %.40q", "%"+addr.Zone())
	}
	return addr.Unmap().AppendTo(dst), nil
}

// explainColon says why s, which has a colon, is not a host.
func explainColon(s string) error {
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return fmt.Errorf("a URL is not a host name: leave out %.40q and what follows the name", scheme+"://")
	}
	if host, port := cutPort(s); endsInNumber(port) {
		return fmt.Errorf("a port is not part of a host name: leave out %.40q", s[len(host):])
	}
	return errors.New("':' is allowed in an IPv6 address only, and this is none")
}

// cutPort cuts s at the colon before its port, if that colon can be no other.
func cutPort(s string) (host, port string) {
	i := strings.LastIndexByte(s, ':')
	host = s[:i]
	if host == "" || strings.Contains(host, ":") && host[len(host)-1] != ']' {
		return s, ""
	}
	return host, s[i+1:]
}
