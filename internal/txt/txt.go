// Package txt reads TXT records at a zone's own name servers.
//
// Resolvers remember what they were told, that there was no record too, for as
// long as the zone lets them. Who has just changed a record and wants to know
// whether the world can see it must ask the servers that the answer comes from.
package txt

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"
)

// The path from a name to its records: the resolver finds the servers of the
// closest zone above the name (zone.go), each of them is asked by UDP or TCP
// (server.go), and what they say (message.go) is the records, a CNAME, which
// starts the path anew, or a zone further down.
//
// What the resolver finds is only where to ask. A name with a CNAME to the apex
// of another zone seems to have that zone's servers; these refuse to answer for
// it, and then the servers further up are asked.

const (
	maxAliases   = 10 // CNAMEs on the way to the records
	maxReferrals = 10 // zones on the way down, from where one name's search began
	maxServers   = 16 // of one zone
	maxAddrs     = 2  // of one server, for each of IPv4 and IPv6

	lookupTimeout = 10 * time.Second // of what the resolver does
	queryTimeout  = 3 * time.Second  // of one question to one address, TCP after UDP included
	maxTries      = 2                // of a question to an address

	ednsSize   = 1232 // UDP payload that gets through everywhere (dnsflagday.net/2020)
	maxLabel   = 63   // RFC 1035, section 2.3.4
	maxName    = 254  // the same, as text with the last dot
	serverPort = 53

	defaultInterval = 2 * time.Second // of Await, if none is given
	maxReuse        = 5               // rounds of Await with the same servers

	maxShownServers = 16 // in an error
	maxShownValues  = 4  // of a server
	maxShownLen     = 100
)

// A Client asks name servers. The zero Client is ready; it is safe for
// concurrent use.
type Client struct {
	// Resolver finds name servers and their addresses; nil means
	// net.DefaultResolver. If it has a Dial, the questions to those servers go
	// through it as well, each to port 53 of an address. It may lead them all to
	// one recursive server, whose answers then count as the zone's own. Without
	// PreferGo some systems look up addresses without it.
	Resolver *net.Resolver
}

// Target returns the name whose TXT records count for name: name itself or,
// where it has a CNAME, the name that this and further ones lead to, whatever
// is there. It is in lower case and without a dot at the end. Where the servers
// of a zone lead to different names, any of these is returned.
//
// It is an error if no server can tell.
func (c *Client) Target(ctx context.Context, name string) (string, error) {
	t, err := c.follow(ctx, name)
	if err != nil {
		return "", fmt.Errorf("following the CNAME of %.100q: %w", name, err)
	}
	return display(t.name), nil
}

// Lookup returns the TXT records at name, its CNAMEs followed, sorted. If there
// are none, it returns nil and no error.
//
// While a change spreads, the servers of a zone differ. Lookup returns what any
// of them has. It is an error if none can tell.
func (c *Client) Lookup(ctx context.Context, name string) ([]string, error) {
	t, err := c.follow(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("looking up the TXT records of %.100q: %w", name, err)
	}
	var values []string
	for _, s := range t.all() {
		values = append(values, s.values...)
	}
	slices.Sort(values)
	return slices.Compact(values), nil
}

// follow is asker.follow for a name as callers write it. It has the reason if
// it was the context's end that kept the servers from telling.
func (c *Client) follow(ctx context.Context, name string) (trail, error) {
	abs, err := absolute(name)
	if err != nil {
		return trail{}, err
	}
	t, err := newAsker(c.Resolver).follow(ctx, abs)
	if err != nil && ended(ctx) {
		// The text only: what it wraps ended for reasons of its own.
		err = fmt.Errorf("%w: %v", context.Cause(ctx), err)
	}
	return t, err
}

// ended reports whether ctx has ended. The resolver's connections have its
// deadline, too, and may end a moment before it does.
func ended(ctx context.Context) bool {
	if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
		<-ctx.Done()
	}
	return ctx.Err() != nil
}

// Await returns nil once value is among the TXT records at name, its CNAMEs
// followed, at all of the zone's name servers that answer, and at least one. A
// server that is down or refuses does not count.
//
// It asks again each interval until ctx ends; zero means every two seconds. The
// error then wraps the context's cause and has in words what each server was
// last seen to have.
func (c *Client) Await(ctx context.Context, name, value string, interval time.Duration) error {
	abs, err := absolute(name)
	if err != nil {
		return fmt.Errorf("awaiting a TXT record: %w", err)
	}
	if interval <= 0 {
		interval = defaultInterval
	}
	w := watch{asker: newAsker(c.Resolver), name: abs}
	for {
		if w.round(ctx, value) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("awaiting the TXT record of %s: %w: %s", display(abs), context.Cause(ctx), w.last)
		case <-time.After(interval):
		}
	}
}

// A watch is one call of Await.
type watch struct {
	*asker
	name string
	last string // what the latest round that was not cut short has seen

	trail trail
	reuse int // rounds that may still ask where trail ends
}

// round asks all servers once and reports whether value is where it should be.
func (w *watch) round(ctx context.Context, value string) bool {
	seen, err := w.look(ctx)
	cut := ended(ctx)
	if cut && w.last != "" {
		return false
	}
	if err != nil {
		w.last = err.Error()
		return false
	}
	w.last = report(seen, w.trail.name)
	if w.trail.name != w.name {
		w.last = "its CNAME leads to " + display(w.trail.name) + ": " + w.last
	}
	return !cut && agreed(seen, value)
}

// look returns what the servers have now. Finding them each time would cost the
// resolver more than it tells; but servers and CNAMEs do change, at times for
// the sake of the very record.
func (w *watch) look(ctx context.Context) ([]sighting, error) {
	if w.reuse > 0 {
		w.reuse--
		w.trail.seen = w.ask(ctx, w.trail.zone, w.trail.name)
		if told(w.trail.seen) && !w.trail.lead().leads() {
			return w.trail.seen, nil
		}
	}
	var err error
	w.reuse = 0
	w.trail, err = w.follow(ctx, w.name)
	if err == nil && w.trail.strays == nil {
		w.reuse = maxReuse
	}
	return w.trail.all(), err
}

// agreed reports whether all that can tell, and at least one, have value.
func agreed(seen []sighting, value string) bool {
	for _, s := range seen {
		if s.err == nil && !slices.Contains(s.values, value) {
			return false
		}
	}
	return told(seen)
}
