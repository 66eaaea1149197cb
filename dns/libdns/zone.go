package libdns

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// maxCNAMEs is how many CNAME records are followed. Resolvers give up at about
// as many.
const maxCNAMEs = 10

// An asker looks up the two facts that say where a record belongs. Names have a
// trailing dot and are in lower case.
type asker interface {
	// cname returns what a CNAME record of name's says, "" if there is none.
	cname(ctx context.Context, name string) (string, error)

	// isZone reports whether a zone begins at name.
	isZone(ctx context.Context, name string) (bool, error)
}

// locate follows the CNAME records of an answer's name, and returns the zone of
// the name that they lead to, and that name.
func locate(ctx context.Context, ask asker, name string) (zone, target string, err error) {
	target, err = follow(ctx, ask, name)
	if err != nil {
		return "", "", err
	}
	for off, end := 0, false; !end; off, end = dns.NextLabel(target, off) {
		ok, err := ask.isZone(ctx, target[off:])
		if err != nil {
			return "", "", fmt.Errorf("finding the zone of %s: %w", target, err)
		}
		if ok {
			return target[off:], target, nil
		}
	}
	return "", "", fmt.Errorf("finding the zone of %s: there is none; is the domain registered?", target)
}

func follow(ctx context.Context, ask asker, name string) (string, error) {
	target := name
	for range maxCNAMEs {
		next, err := ask.cname(ctx, target)
		if err == nil && next != "" && target == name {
			next, err = unlessWildcard(ctx, ask, name, next)
		}
		if err != nil {
			return "", fmt.Errorf("following the CNAME records of %s: %w", name, err)
		}
		if next == "" {
			return target, nil
		}
		target = next
	}
	return "", fmt.Errorf("following the CNAME records of %s: more than %d, the last to %s", name, maxCNAMEs, target)
}

// unlessWildcard returns what the CNAME record of an answer's name says, or ""
// if every name there is has that record. One such as
//
//	*.example.com. CNAME balancer.example.net.
//
// is for visitors, and gives way to the TXT record as soon as that is there.
func unlessWildcard(ctx context.Context, ask asker, name, target string) (string, error) {
	_, domain, _ := strings.Cut(name, ".")
	sibling := "_" + strings.ToLower(rand.Text()) + "." + domain
	of, err := ask.cname(ctx, sibling)
	if err != nil || of == target {
		return "", err
	}
	return target, nil
}

// newAsker returns an asker that asks through r, which may be nil.
func newAsker(r *net.Resolver) asker {
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	dials := r != nil && r.Dial != nil
	if err != nil && !dials {
		return system{r} // Windows, Android
	}
	if err != nil || len(config.Servers) == 0 {
		config = &dns.ClientConfig{Servers: []string{"127.0.0.1"}, Port: "53", Timeout: 5, Attempts: 2} // as package net
	}
	w := &wire{config: config, dial: new(net.Dialer).DialContext}
	if dials {
		w.dial = r.Dial
	}
	return w
}

// A wire is an asker that speaks with recursive name servers itself. The
// functions of package net see no SOA record, and no CNAME record that leads to
// a name without an address.
type wire struct {
	config *dns.ClientConfig
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

func (w *wire) cname(ctx context.Context, name string) (string, error) {
	reply, err := w.ask(ctx, name, dns.TypeCNAME)
	if err != nil {
		return "", err
	}
	return target(reply, name), nil
}

// target returns what the CNAME record of name says in a reply. One may come
// beside a DNAME record that it was made of.
func target(reply *dns.Msg, name string) string {
	for _, rr := range reply.Answer {
		if cname, ok := rr.(*dns.CNAME); ok && dns.CanonicalName(cname.Hdr.Name) == name {
			return dns.CanonicalName(cname.Target)
		}
	}
	return ""
}

func (w *wire) isZone(ctx context.Context, name string) (bool, error) {
	reply, err := w.ask(ctx, name, dns.TypeSOA)
	if err != nil {
		return false, err
	}
	return isApex(reply, name), nil
}

// isApex reports whether a reply has an SOA record of name. That of another
// name is there when name is a CNAME record to a zone.
func isApex(reply *dns.Msg, name string) bool {
	for _, rr := range reply.Answer {
		if soa, ok := rr.(*dns.SOA); ok && dns.CanonicalName(soa.Hdr.Name) == name {
			return true
		}
	}
	return false
}

// ask asks one name server after the other until one knows.
func (w *wire) ask(ctx context.Context, name string, typ uint16) (reply *dns.Msg, err error) {
	for range w.config.Attempts {
		for _, server := range w.config.Servers {
			addr := net.JoinHostPort(server, w.config.Port)
			if reply, err = w.query(ctx, addr, name, typ); err == nil {
				return reply, nil
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			err = fmt.Errorf("asking %s for %s %s: %w", addr, name, dns.TypeToString[typ], err)
		}
	}
	return nil, err
}

// query asks one name server. That a name does not exist is a reply as good as
// any.
func (w *wire) query(ctx context.Context, addr, name string, typ uint16) (*dns.Msg, error) {
	m := new(dns.Msg).SetQuestion(name, typ)
	reply, err := w.exchange(ctx, "udp", addr, m)
	if err == nil && reply.Truncated {
		reply, err = w.exchange(ctx, "tcp", addr, m)
	}
	if err != nil {
		return nil, err
	}
	if reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return nil, errors.New(dns.RcodeToString[reply.Rcode])
	}
	if !isReply(reply, m) {
		return nil, errors.New("the reply is to another question")
	}
	return reply, nil
}

func isReply(reply, m *dns.Msg) bool {
	return reply.Response && len(reply.Question) == 1 && reply.Question[0].Qtype == m.Question[0].Qtype &&
		dns.CanonicalName(reply.Question[0].Name) == m.Question[0].Name
}

// exchange sends m and returns the reply, whatever it is.
func (w *wire) exchange(ctx context.Context, network, addr string, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(w.config.Timeout)*time.Second)
	defer cancel()
	conn, err := w.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// ExchangeWithConnContext heeds the deadline of ctx, but not its end before that.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client := &dns.Client{Timeout: time.Duration(w.config.Timeout) * time.Second}
	reply, _, err := client.ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: conn})
	return reply, err
}

// A system is an asker for systems that do not tell which name servers they
// ask.
type system struct{ *net.Resolver }

func (s system) cname(ctx context.Context, name string) (string, error) {
	target, err := s.LookupCNAME(ctx, name)
	if target = dns.CanonicalName(target); err != nil || target == name {
		return "", unlessNotFound(err)
	}
	return target, nil
}

func (s system) isZone(ctx context.Context, name string) (bool, error) {
	ns, err := s.LookupNS(ctx, name)
	return len(ns) > 0, unlessNotFound(err)
}

// unlessNotFound returns err, or nil if it says that there is no such record.
func unlessNotFound(err error) error {
	if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound {
		return nil
	}
	return err
}
