package txt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// A trail is where the way from a name to its TXT records has led.
type trail struct {
	name   string
	zone   zone       // of the name
	seen   []sighting // by the zone's servers
	strays []sighting // by servers on the way that do not lead the same way
}

// lead returns what leads on from here, with nothing in it if all of it is here.
func (t trail) lead() reply {
	for _, s := range t.seen {
		if s.leads() {
			return s.reply
		}
	}
	return reply{}
}

// leave returns the strays for who goes on where lead says.
func (t trail) leave() []sighting {
	lead := t.lead()
	strays := t.strays
	for _, s := range t.seen {
		if s.err == nil && !s.leadsLike(lead) {
			strays = append(strays, s)
		}
	}
	return strays
}

// all returns what was seen by all servers that lead nowhere else.
func (t trail) all() []sighting { return slices.Concat(t.strays, t.seen) }

// follow goes from name to where its TXT records are: from zone to zone as the
// servers refer, and along CNAMEs.
func (a *asker) follow(ctx context.Context, name string) (trail, error) {
	passed := []string{name}
	t, err := a.descend(ctx, name)
	for err == nil && t.lead().alias != "" {
		next, strays := t.lead().alias, t.leave()
		if slices.Contains(passed, next) {
			return trail{}, fmt.Errorf("the CNAME at %s leads back to %s", display(t.name), display(next))
		}
		if len(passed) > maxAliases {
			return trail{}, fmt.Errorf("more than %d CNAMEs", maxAliases)
		}
		passed = append(passed, next)
		t, err = a.descend(ctx, next)
		t.strays = append(strays, t.strays...)
	}
	return t, err
}

// descend goes to the servers that have the name itself.
func (a *asker) descend(ctx context.Context, name string) (trail, error) {
	t, err := a.find(ctx, name)
	for n := 0; err == nil && t.lead().below != nil; n++ {
		if n == maxReferrals {
			return trail{}, fmt.Errorf("more than %d referrals", maxReferrals)
		}
		strays := t.leave()
		t, err = a.enter(ctx, t)
		t.strays = strays
	}
	return t, err
}

// enter asks the servers of the zone that t leads to. Those of the zone above
// may each know some of them.
func (a *asker) enter(ctx context.Context, t trail) (trail, error) {
	below := delegation{zone: t.lead().below.zone, glue: make(map[string][]netip.Addr)}
	for _, s := range t.seen {
		if s.leadsLike(t.lead()) {
			below.hosts = append(below.hosts, s.below.hosts...)
			maps.Copy(below.glue, s.below.glue)
		}
	}
	z := a.zone(ctx, below)
	seen := a.ask(ctx, z, t.name)
	if !told(seen) {
		return trail{}, fmt.Errorf("no server of %s tells: %s", display(z.name), report(seen, t.name))
	}
	return trail{name: t.name, zone: z, seen: seen}, nil
}

// find asks the servers of the closest zone above name that has any who answer
// for it.
func (a *asker) find(ctx context.Context, name string) (trail, error) {
	var failures []string
	for n := name; n != "." && ctx.Err() == nil; n = parent(n) {
		hosts, err := a.lookupNS(ctx, n)
		if err != nil {
			failures = append(failures, err.Error())
		}
		if len(hosts) == 0 {
			continue
		}
		z := a.zone(ctx, delegation{zone: n, hosts: hosts})
		seen := a.ask(ctx, z, name)
		if told(seen) {
			return trail{name: name, zone: z, seen: seen}, nil
		}
		failures = append(failures, fmt.Sprintf("no server of %s tells: %s", display(n), report(seen, name)))
		if !refused(seen) {
			break // they are the right ones, for all that is known
		}
	}
	if failures == nil {
		return trail{}, fmt.Errorf("no name servers found for %s", display(name))
	}
	return trail{}, errors.New(strings.Join(failures, "; "))
}

// lookupNS returns the hosts that the resolver has as servers of a zone, with an
// error if some records are unfit, but none if there are no records.
func (a *asker) lookupNS(ctx context.Context, zone string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	records, err := a.resolver.LookupNS(ctx, zone)
	var hosts []string
	for _, ns := range records {
		hosts = append(hosts, fold(display(ns.Host))+".")
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		err = nil
	}
	return hosts, err
}

// zone finds the addresses of a zone's servers. Sorted, they stand in every
// report in the same order.
func (a *asker) zone(ctx context.Context, d delegation) zone {
	hosts := slices.DeleteFunc(slices.Clone(d.hosts), func(h string) bool { return !valid(h) })
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	hosts = hosts[:min(len(hosts), maxServers)]
	z := zone{d.zone, make([]server, len(hosts))}
	var wg sync.WaitGroup
	for i, host := range hosts {
		wg.Go(func() { z.servers[i] = a.server(ctx, host, d.glue[host]) })
	}
	wg.Wait()
	return z
}

// server finds the addresses of a server. Those that came with a referral, often
// of one family only, are for when there are no others.
func (a *asker) server(ctx context.Context, host string, glue []netip.Addr) server {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := a.resolver.LookupNetIP(ctx, "ip", host)
	if len(addrs) == 0 {
		addrs = glue
	}
	if addrs = pick(addrs); len(addrs) == 0 {
		if err == nil {
			err = errors.New("no address")
		}
		return server{host: host, err: err}
	}
	return server{host: host, addrs: addrs}
}

// pick returns at most maxAddrs addresses of each family.
func pick(addrs []netip.Addr) []netip.Addr {
	var v4, v6 []netip.Addr
	for _, addr := range addrs {
		if addr = addr.Unmap(); addr.Is4() {
			v4 = append(v4, addr)
		} else {
			v6 = append(v6, addr)
		}
	}
	return slices.Concat(v4[:min(len(v4), maxAddrs)], v6[:min(len(v6), maxAddrs)])
}
