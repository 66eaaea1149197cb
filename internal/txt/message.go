package txt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Names are absolute inside this package, with the dot at the end, and in lower
// case.

// absolute returns the name that a caller means.
func absolute(name string) (string, error) {
	abs := fold(strings.TrimSuffix(name, ".")) + "."
	if !valid(abs) {
		return "", fmt.Errorf("%.100q is no DNS name", name)
	}
	return abs, nil
}

// display returns a name as callers and readers know it.
func display(name string) string { return strings.TrimSuffix(name, ".") }

// fold returns s in lower case. Only ASCII letters have a case in DNS (RFC 4343).
func fold(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// valid reports whether a name can be asked for and printed. The DNS itself
// allows any byte.
func valid(name string) bool {
	if len(name) > maxName {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" || len(label) > maxLabel {
			return false
		}
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}

// parent returns the name without its first label, "." for the last.
func parent(name string) string {
	_, rest, _ := strings.Cut(name, ".")
	if rest == "" {
		return "."
	}
	return rest
}

// within reports whether a name is a zone's apex or below it.
func within(name, zone string) bool {
	return zone == "." || name == zone || strings.HasSuffix(name, "."+zone)
}

// newQuery returns the question for the TXT records at name, with the two bytes
// of its length in front that TCP wants. It asks for recursion: a zone's server
// takes no notice, and a recursive one in its place would else tell only what
// it knows by chance.
func newQuery(id uint16, name string, edns bool) ([]byte, error) {
	qname, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: qname, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}},
	}
	if edns {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(ednsSize, dnsmessage.RCodeSuccess, false); err != nil {
			return nil, err
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	msg, err := m.AppendPack(make([]byte, 2, 512))
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(msg, uint16(len(msg)-2))
	return msg, nil
}

var (
	errForeign = errors.New("not a response to our question")
	errGarbled = errors.New("unreadable response")
)

// A response is what counts of a response to the question for a name's TXT
// records.
type response struct {
	code      dnsmessage.RCode
	truncated bool
	vouched   bool // by an authoritative server, or a recursive one that asked it

	values []string // the name's own records
	alias  string   // the target of its CNAME
	soa    string   // the zone that has no such record
	cut    string   // the zone that the hosts serve
	hosts  []string
	glue   map[string][]netip.Addr // addresses of hosts
}

// parse reads the response to the question with the id for name's TXT records.
// The error is errForeign if it is something else, errGarbled if it can't be
// read to its end.
func parse(msg []byte, id uint16, name string) (*response, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != id {
		return nil, errForeign
	}
	q, err := p.Question()
	if err != nil || q.Type != dnsmessage.TypeTXT || q.Class != dnsmessage.ClassINET || fold(q.Name.String()) != name {
		return nil, errForeign
	}
	r := &response{
		code:      h.RCode,
		truncated: h.Truncated,
		vouched:   h.Authoritative || h.RecursionAvailable,
	}
	if p.SkipAllQuestions() != nil || r.answers(&p, name) != nil || r.authorities(&p) != nil || r.additionals(&p) != nil {
		return nil, errGarbled
	}
	return r, nil
}

// answers reads the records of name. Those of other names, where its CNAME
// leads, are left to those who answer for them.
func (r *response) answers(p *dnsmessage.Parser, name string) error {
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return done(err)
		}
		own := h.Class == dnsmessage.ClassINET && fold(h.Name.String()) == name
		switch {
		case own && h.Type == dnsmessage.TypeTXT:
			var txt dnsmessage.TXTResource
			txt, err = p.TXTResource()
			r.values = append(r.values, strings.Join(txt.TXT, ""))
		case own && h.Type == dnsmessage.TypeCNAME:
			var cname dnsmessage.CNAMEResource
			cname, err = p.CNAMEResource()
			r.alias = fold(cname.CNAME.String())
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return err
		}
	}
}

func (r *response) authorities(p *dnsmessage.Parser) error {
	for {
		h, err := p.AuthorityHeader()
		if err != nil {
			return done(err)
		}
		owner := fold(h.Name.String())
		switch {
		case h.Type == dnsmessage.TypeNS && (r.cut == "" || r.cut == owner):
			var ns dnsmessage.NSResource
			ns, err = p.NSResource()
			r.cut = owner
			r.hosts = append(r.hosts, fold(ns.NS.String()))
		case h.Type == dnsmessage.TypeSOA:
			r.soa = owner
			err = p.SkipAuthority()
		default:
			err = p.SkipAuthority()
		}
		if err != nil {
			return err
		}
	}
}

func (r *response) additionals(p *dnsmessage.Parser) error {
	r.glue = make(map[string][]netip.Addr)
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return done(err)
		}
		owner := fold(h.Name.String())
		switch h.Type {
		case dnsmessage.TypeA:
			var a dnsmessage.AResource
			a, err = p.AResource()
			r.glue[owner] = append(r.glue[owner], netip.AddrFrom4(a.A))
		case dnsmessage.TypeAAAA:
			var a dnsmessage.AAAAResource
			a, err = p.AAAAResource()
			r.glue[owner] = append(r.glue[owner], netip.AddrFrom16(a.AAAA).Unmap())
		case dnsmessage.TypeOPT:
			r.code = h.ExtendedRCode(r.code)
			err = p.SkipAdditional()
		default:
			err = p.SkipAdditional()
		}
		if err != nil {
			return err
		}
	}
}

// done returns nil for the regular end of a section.
func done(err error) error {
	if err == dnsmessage.ErrSectionDone {
		return nil
	}
	return err
}

// A reply is what a server tells about a name: its TXT records, if there are
// any, or else where to go on.
type reply struct {
	values []string
	alias  string      // the target of the name's CNAME
	below  *delegation // the zone that has the name
}

// A delegation is a zone and its servers, as a server of a zone above it tells.
type delegation struct {
	zone  string
	hosts []string
	glue  map[string][]netip.Addr // addresses of hosts
}

// leads reports whether the records, if there are any, are elsewhere.
func (r reply) leads() bool { return r.alias != "" || r.below != nil }

// leadsLike reports whether r leads to where other leads.
func (r reply) leadsLike(other reply) bool {
	if r.below == nil || other.below == nil {
		return r.below == other.below && r.alias == other.alias
	}
	return r.below.zone == other.below.zone
}

// A refusal says how a server showed that it does not answer for a name.
type refusal string

func (r refusal) Error() string { return string(r) }

var codes = map[dnsmessage.RCode]string{
	dnsmessage.RCodeFormatError:    "FORMERR",
	dnsmessage.RCodeServerFailure:  "SERVFAIL",
	dnsmessage.RCodeNotImplemented: "NOTIMP",
	dnsmessage.RCodeRefused:        "REFUSED",
	9:                              "NOTAUTH", // RFC 2136
	16:                             "BADVERS", // RFC 6891
}

// reply says what the response of a server of zone means for name. The error
// is a refusal.
//
// That a name has no record is believed of those who should know. A server that
// is asked about a zone it does not have may well say that there is nothing, in
// the name of another zone or without any authority, or refer to servers that
// are no closer to the name than it should be itself.
func (r *response) reply(zone, name string) (reply, error) {
	switch {
	case r.code != dnsmessage.RCodeSuccess && r.code != dnsmessage.RCodeNameError:
		if s, ok := codes[r.code]; ok {
			return reply{}, refusal(s)
		}
		return reply{}, refusal(fmt.Sprintf("response code %d", r.code))
	case len(r.values) > 0:
		return reply{values: r.values}, nil
	case r.alias != "" && !valid(r.alias):
		return reply{}, refusal(fmt.Sprintf("a CNAME to %.100q, which is no DNS name", r.alias))
	case r.alias != "":
		return reply{alias: r.alias}, nil
	case r.soa != "" && within(name, r.soa):
		return reply{}, nil
	case r.soa != "":
		return reply{}, refusal("answers for another zone")
	}
	if r.code == dnsmessage.RCodeNameError || r.cut == "" || r.cut == zone {
		if r.vouched {
			return reply{}, nil
		}
		return reply{}, refusal("answers without authority")
	}
	if !within(r.cut, zone) || !within(name, r.cut) {
		return reply{}, refusal("refers to servers elsewhere")
	}
	// NS without SOA is a referral (RFC 2308, section 2.2), whether or not the
	// server claims authority, as some do.
	return reply{below: &delegation{r.cut, r.hosts, r.glue}}, nil
}
