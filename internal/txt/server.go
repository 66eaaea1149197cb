package txt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// A server is one of a zone's name servers.
type server struct {
	host  string
	addrs []netip.Addr // at least one, or err is set
	err   error
}

// A zone is a part of the name space and its servers.
type zone struct {
	name    string
	servers []server
}

// A sighting is what a server has at a name, or why that is not known.
type sighting struct {
	server string
	name   string
	reply
	err error
}

var errNoAnswer = errors.New("no answer")

// An asker asks servers. It belongs to one call of the Client.
type asker struct {
	resolver *net.Resolver // dials with dial, too
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
}

func newAsker(r *net.Resolver) *asker {
	if r == nil {
		r = net.DefaultResolver
	}
	dial := r.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	// A connection ends with the context that it was made for. The resolver has
	// only an eye on the deadline, and would keep a caller that gave up waiting.
	bound := func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		conn, err := dial(ctx, network, address)
		if err == nil {
			context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}
	return &asker{
		resolver: &net.Resolver{PreferGo: r.PreferGo, StrictErrors: r.StrictErrors, Dial: bound},
		dial:     bound,
	}
}

// ask returns what each of a zone's servers has at name, in their order.
func (a *asker) ask(ctx context.Context, z zone, name string) []sighting {
	seen := make([]sighting, len(z.servers))
	var wg sync.WaitGroup
	for i, srv := range z.servers {
		wg.Go(func() {
			r, err := a.askServer(ctx, srv, z.name, name)
			seen[i] = sighting{srv.host, name, r, err}
		})
	}
	wg.Wait()
	return seen
}

// askServer asks at all of a server's addresses at once; the first to tell
// tells for all.
func (a *asker) askServer(ctx context.Context, srv server, zone, name string) (reply, error) {
	if srv.err != nil {
		return reply{}, srv.err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	replies := make([]reply, len(srv.addrs))
	errs := make([]error, len(srv.addrs))
	var wg sync.WaitGroup
	for i, addr := range srv.addrs {
		wg.Go(func() {
			replies[i], errs[i] = a.askAddr(ctx, addr, zone, name)
			if errs[i] == nil {
				cancel()
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			return replies[i], nil
		}
	}
	return reply{}, worst(errs)
}

// worst returns the error that tells most: what the server said, or else the
// first.
func worst(errs []error) error {
	if i := slices.IndexFunc(errs, isRefusal); i >= 0 {
		return errs[i]
	}
	return errs[0]
}

func isRefusal(err error) bool {
	_, ok := errors.AsType[refusal](err)
	return ok
}

// askAddr asks at one address. Packets get lost, so it asks twice; the second
// time without EDNS0, which old servers refuse and boxes on the way may drop.
func (a *asker) askAddr(ctx context.Context, addr netip.Addr, zone, name string) (reply, error) {
	var errs []error
	for try := range maxTries {
		r, err := a.exchange(ctx, addr, name, try == 0)
		if err == nil {
			var rep reply
			if rep, err = r.reply(zone, name); err == nil {
				return rep, nil
			}
		}
		errs = append(errs, err)
	}
	return reply{}, worst(errs)
}

// exchange sends one question and returns the response to it.
func (a *asker) exchange(ctx context.Context, addr netip.Addr, name string, edns bool) (*response, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	server := netip.AddrPortFrom(addr, serverPort).String()
	r, err := a.exchangeOver(ctx, "udp", server, name, edns)
	if err == errGarbled || err == nil && r.truncated {
		r, err = a.exchangeOver(ctx, "tcp", server, name, edns)
	}
	if err != nil && ctx.Err() != nil {
		err = errNoAnswer
	}
	return r, err
}

func (a *asker) exchangeOver(ctx context.Context, network, server, name string, edns bool) (*response, error) {
	id := uint16(rand.Uint32()) // from a generator that can't be predicted
	msg, err := newQuery(id, name, edns)
	if err != nil {
		return nil, err
	}
	conn, err := a.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, ok := conn.(net.PacketConn); ok {
		return packets(conn, msg[2:], id, name)
	}
	return stream(conn, msg, id, name)
}

// packets asks on a connection that keeps messages apart. What is not the
// response may be a forgery that came before it, and is passed over.
func packets(conn net.Conn, msg []byte, id uint16, name string) (*response, error) {
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, ednsSize)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		r, err := parse(buf[:n], id, name)
		if err != errForeign {
			return r, err
		}
	}
}

// stream asks on a connection that is a stream of bytes, whatever network it
// was dialed as, as package net does.
func stream(conn net.Conn, msg []byte, id uint16, name string) (*response, error) {
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, 2)
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	buf = make([]byte, binary.BigEndian.Uint16(buf))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	return parse(buf, id, name)
}

// told reports whether any server could tell.
func told(seen []sighting) bool {
	return slices.ContainsFunc(seen, func(s sighting) bool { return s.err == nil })
}

// refused reports whether any server said that it does not answer for the name.
func refused(seen []sighting) bool {
	return slices.ContainsFunc(seen, func(s sighting) bool { return isRefusal(s.err) })
}

// report says in words what was seen, most of it at name.
func report(seen []sighting, name string) string {
	var b strings.Builder
	for i, s := range seen {
		if i == maxShownServers {
			fmt.Fprintf(&b, "; and %d more servers", len(seen)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(display(s.server) + ": " + s.String())
		if s.name != name {
			b.WriteString(" at " + display(s.name))
		}
	}
	return b.String()
}

// String says what the server has. Whoever writes the zone chooses the values;
// they are quoted, and cut.
func (s sighting) String() string {
	switch {
	case s.err != nil:
		return s.err.Error()
	case s.alias != "":
		return "a CNAME to " + display(s.alias)
	case s.below != nil:
		return "a referral to the servers of " + display(s.below.zone)
	case len(s.values) == 0:
		return "no such record"
	}
	var b strings.Builder
	for i, v := range s.values {
		if i == maxShownValues {
			fmt.Fprintf(&b, " and %d more", len(s.values)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(v))
	}
	return b.String()
}

func quote(v string) string {
	if len(v) > maxShownLen {
		return fmt.Sprintf("%q...", v[:maxShownLen])
	}
	return fmt.Sprintf("%q", v)
}
