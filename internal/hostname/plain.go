package hostname

import (
	"slices"
	"strings"
)

// lower has what each byte of a plain name becomes, and 0 for those that have no
// place in one.
var lower = func() (t [256]byte) {
	for c := range len(t) {
		if isNameByte(byte(c)) {
			t[c] = toLower(byte(c))
		}
	}
	return t
}()

func toLower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// appendPlain is AppendCanonical for plain names, which nearly all are: letters,
// digits and single hyphens, with a letter at the end. Two hyphens may be
// Punycode, and what ends in a digit may be an address. If it reports false, s
// is another name or a mistake, and spare room of dst is overwritten.
func appendPlain(dst []byte, s string) ([]byte, bool) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > MaxLen || !isLetter(s[len(s)-1]) {
		return dst, false
	}
	n := len(dst)
	dst = slices.Grow(dst, len(s))[:n+len(s)]
	return dst, lowerPlain(dst[n:], s)
}

// lowerPlain copies name to dst, of the same length, in lower case, and reports
// whether it is plain. Lowering a copy in place would take half as long again.
func lowerPlain(dst []byte, name string) bool {
	label := 0 // where it begins
	if strings.HasPrefix(name, "*.") {
		label = copy(dst, "*.")
	}
	dst = dst[:len(name)] // spares the loop its check
	for i := label; i < len(name); i++ {
		c := lower[name[i]]
		dst[i] = c
		if c > '.' { // a letter or a digit: all else must follow one
			continue
		}
		if c == 0 || i == label || name[i-1] == '-' || i-label > maxLabel {
			return false
		}
		if c == '.' {
			label = i + 1
		}
	}
	return len(name)-label <= maxLabel
}
