package challenge

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Persistent is a TXT record by which a domain's owner lets an account at a CA
// issue for it, once and for all (dns-persist-01,
// draft-ietf-acme-dns-persist).
type Persistent struct {
	Issuers  []string // domain names that the CA goes by, any of which will do
	Account  string   // URL
	Wildcard bool     // wildcards too
}

// PersistentName returns the name of the record for a host, which may be a
// wildcard.
func PersistentName(host string) string {
	return "_validation-persist." + strings.TrimPrefix(host, "*.")
}

// Value returns the record's value, as a person is to set it.
func (p Persistent) Value() string {
	issuer := "<the CA's issuer domain name>"
	if len(p.Issuers) > 0 {
		issuer = p.Issuers[0]
	}
	value := issuer + "; accounturi=" + p.Account
	if p.Wildcard {
		value += "; policy=wildcard"
	}
	return value
}

// In reports whether one of the values does what p's would at the time now.
// With no Issuers it is one of any CA's.
func (p Persistent) In(values []string, now time.Time) bool {
	for _, v := range values {
		if p.is(v, now) {
			return true
		}
	}
	return false
}

// is reads a value as section 4.2 of RFC 8659 has it for CAA records: the
// issuer and then tags, each with a value. Tags that it does not know don't
// matter; where the syntax is wrong it is as strict as CAs are.
func (p Persistent) is(value string, now time.Time) bool {
	issuer, rest, _ := strings.Cut(value, ";")
	issuer = trimSpace(issuer)
	if issuer == "" || len(p.Issuers) > 0 && !slices.Contains(p.Issuers, issuer) {
		return false
	}
	tags, ok := parseTags(rest)
	if !ok {
		return false
	}
	if until, ok := tags["persistuntil"]; ok {
		unix, err := strconv.ParseInt(until, 10, 64)
		if err != nil || now.After(time.Unix(unix, 0)) {
			return false
		}
	}
	account := tags["accounturi"]
	return account != "" && account == p.Account && (!p.Wildcard || strings.EqualFold(tags["policy"], "wildcard"))
}

// parseTags returns the values by their tag in lower case, and whether all of
// s is well-formed.
func parseTags(s string) (tags map[string]string, ok bool) {
	tags = make(map[string]string)
	for field := range strings.SplitSeq(s, ";") {
		tag, v, ok := strings.Cut(field, "=")
		tag, v = strings.ToLower(trimSpace(tag)), trimSpace(v)
		if _, twice := tags[tag]; !ok || tag == "" || twice || strings.ContainsFunc(v, notInValue) {
			return nil, false
		}
		tags[tag] = v
	}
	return tags, true
}

// trimSpace takes off what is white space in RFC 8659, and no more.
func trimSpace(s string) string { return strings.Trim(s, " \t") }

// notInValue reports whether a value can't have r, which is no semicolon.
func notInValue(r rune) bool { return r <= ' ' || r > '~' }
