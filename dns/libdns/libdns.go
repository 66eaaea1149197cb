// Package libdns makes any provider of [github.com/libdns/libdns] a
// DNSProvider of a letsencrypt.Manager, so that certificates for wildcards, and
// for hosts that no CA can reach, are obtained by dns-01.
//
// There is a provider package for nearly every DNS service at
// https://github.com/libdns. With Cloudflare's:
//
//	m.DNS = libdns.New(&cloudflare.Provider{APIToken: token})
//	m.SetHosts([]string{"example.com", "*.example.com"})
//
// With a name server that takes dynamic updates (RFC 2136), such as BIND, Knot
// or PowerDNS:
//
//	m.DNS = libdns.New(&rfc2136.Provider{
//		Server:  "192.0.2.53:53",
//		KeyName: "letsencrypt",
//		KeyAlg:  "hmac-sha256",
//		Key:     key, // in base64, as in the server's configuration
//	})
//
// # Delegation
//
// Where _acme-challenge.example.com is a CNAME record, the TXT record is put
// where it leads. Credentials that can change the zone of the target alone are
// then enough, and those for example.com need not be on a web server. The
// target need not exist before. A record that *.example.com has, and so every
// name below, is no such delegation and not followed: the TXT record is put in
// its way.
//
// # What is changed
//
// A TXT record is added beside those that are there, and that one is removed
// again. Nothing else is read, changed or removed.
package libdns

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

// A Provider adds records to zones and deletes them. Every provider of libdns
// v1 is one.
type Provider interface {
	libdns.RecordAppender
	libdns.RecordDeleter
}

// DNS answers dns-01 challenges through a libdns provider. Its methods are safe
// for concurrent use.
type DNS struct {
	// Resolver tells where a TXT record belongs. Nil means the system's. If it
	// has Dial, questions go through that, addressed to the name servers of
	// /etc/resolv.conf. It is set before the first use.
	Resolver *net.Resolver

	provider Provider

	mu    sync.Mutex
	added map[answer]place // by Present, until CleanUp has deleted it
}

// New returns a DNS that changes zones through p.
func New(p Provider) *DNS {
	return &DNS{provider: p, added: make(map[answer]place)}
}

// An answer is the TXT record that a CA looks for.
type answer struct{ name, value string }

// A place is where an answer is: in a zone, as a record of the provider's.
type place struct {
	zone   string // with its trailing dot
	record libdns.Record
}

// answerTo returns the answer of RFC 8555 section 8.4.
func answerTo(domain, keyAuth string) answer {
	sum := sha256.Sum256([]byte(keyAuth))
	return answer{
		name:  dns.CanonicalName("_acme-challenge." + domain),
		value: base64.RawURLEncoding.EncodeToString(sum[:]),
	}
}

// Present adds the TXT record that answers a challenge for domain, a name
// without "*.". It does not wait until name servers know it.
func (d *DNS) Present(ctx context.Context, domain, token, keyAuth string) error {
	a := answerTo(domain, keyAuth)
	p, err := d.find(ctx, a)
	if err != nil {
		return fmt.Errorf("libdns: %s: %w", domain, err)
	}
	records, err := d.provider.AppendRecords(ctx, p.zone, []libdns.Record{p.record})
	if err != nil {
		return fmt.Errorf("libdns: %s: adding %s to zone %s (is the provider configured right, and may it change the zone?): %w",
			domain, p, p.zone, err)
	}
	p.record = p.as(records)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.added[a] = p
	return nil
}

// CleanUp removes the TXT record that Present added, in this process or in one
// before it.
func (d *DNS) CleanUp(ctx context.Context, domain, token, keyAuth string) error {
	a := answerTo(domain, keyAuth)
	d.mu.Lock()
	p, ok := d.added[a]
	d.mu.Unlock()
	if !ok {
		var err error
		if p, err = d.find(ctx, a); err != nil {
			return fmt.Errorf("libdns: %s: %w", domain, err)
		}
	}
	if _, err := d.provider.DeleteRecords(ctx, p.zone, []libdns.Record{p.record}); err != nil {
		return fmt.Errorf("libdns: %s: deleting %s from zone %s (if it stays, delete it by hand): %w",
			domain, p, p.zone, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.added, a)
	return nil
}

// find returns the place where an answer belongs.
func (d *DNS) find(ctx context.Context, a answer) (place, error) {
	zone, name, err := locate(ctx, newAsker(d.Resolver), a.name)
	if err != nil {
		return place{}, err
	}
	// An RR is what most providers were tried with. Its TTL is zero: that of the
	// provider's choice when it is added, any when it is deleted.
	return place{zone, libdns.RR{Name: libdns.RelativeName(name, zone), Type: "TXT", Data: a.value}}, nil
}

func (p place) String() string {
	rr := p.record.RR()
	return fmt.Sprintf("the record %s TXT %q", rr.Name, rr.Data)
}

// as returns the record of p as it is among those that the provider says it
// added. Some providers write an identifier of their own into it, and are
// quicker or more exact when they get that back.
func (p place) as(added []libdns.Record) libdns.Record {
	want := p.record.RR()
	for _, record := range added {
		got := record.RR()
		if got.Type == want.Type && libdns.RelativeName(got.Name, p.zone) == want.Name &&
			strings.Trim(got.Data, `"`) == want.Data {
			return record
		}
	}
	return p.record // a provider that says nothing, or nothing that we know again
}
