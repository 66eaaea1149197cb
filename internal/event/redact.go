package event

import "strings"

// Redact returns an error's text, fit for a log; "" for nil. What a CA's error
// may repeat and no log shall is cut out: the token and the key authorization
// of a challenge, and the query of a link, which may let whoever has it act for
// the account.
func Redact(err error) string {
	if err == nil {
		return ""
	}
	s := cutOut(err.Error(), keyAuth)
	s = cutOut(s, token)
	return cutOut(s, query)
}

// cutOut puts "..." in the place of all that find finds: the first s[from:to]
// that is to go, which is empty if nothing is.
func cutOut(s string, find func(s string) (from, to int)) string {
	var b strings.Builder
	for {
		from, to := find(s)
		if from == to {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:from])
		b.WriteString("...")
		s = s[to:]
	}
}

// keyAuth finds a token of 16 characters or more, a dot and a thumbprint.
func keyAuth(s string) (from, to int) {
	for i := range len(s) {
		if isBase64URL(s[i]) {
			continue
		}
		if s[i] == '.' && i-from >= 16 && startsWithThumbprint(s[i+1:]) {
			return from, i + 1 + thumbprintLen
		}
		from = i + 1
	}
	return 0, 0
}

// thumbprintLen is the length of a SHA-256 in base64url (RFC 8555, section 8.1).
const thumbprintLen = 43

// startsWithThumbprint reports whether s starts with what may be the thumbprint
// of a key and is not the start of a longer word, where a hyphen is in no word.
func startsWithThumbprint(s string) bool {
	if base64URLLen(s) < thumbprintLen {
		return false
	}
	isWord := func(s string) bool { return base64URLLen(s) > 0 && s[0] != '-' }
	return isWord(s[thumbprintLen-1:]) != isWord(s[thumbprintLen:])
}

// token finds the token in the path of an http-01 challenge.
func token(s string) (from, to int) {
	const folder = "acme-challenge/"
	for {
		i := strings.Index(s[from:], folder)
		if i < 0 {
			return 0, 0
		}
		from += i + len(folder)
		if to = from + base64URLLen(s[from:]); to > from {
			return from, to
		}
	}
}

// query finds what follows the question mark of a link.
func query(s string) (from, to int) {
	const ends = " \t\n\f\r\"'" // what a link ends before
	for {
		i := strings.Index(s[from:], "://")
		if i < 0 {
			return 0, 0
		}
		from += i + len("://")
		if !strings.HasSuffix(s[:from], "http://") && !strings.HasSuffix(s[:from], "https://") {
			continue
		}
		from += lenUntil(s[from:], ends+"?")
		if !strings.HasPrefix(s[from:], "?") {
			continue
		}
		from++
		if to = from + lenUntil(s[from:], ends); to > from {
			return from, to
		}
	}
}

// lenUntil returns the length of what is in s before any of the characters.
func lenUntil(s, any string) int {
	if i := strings.IndexAny(s, any); i >= 0 {
		return i
	}
	return len(s)
}

// base64URLLen returns the length of the base64url that s starts with.
func base64URLLen(s string) int {
	for i := range len(s) {
		if !isBase64URL(s[i]) {
			return i
		}
	}
	return len(s)
}

func isBase64URL(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
