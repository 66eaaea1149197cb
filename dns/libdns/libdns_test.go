package libdns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libdns/libdns"
)

// The key authorization of RFC 8555 section 8.1, with some thumbprint, and the
// value of its TXT record as openssl has it.
const (
	keyAuth = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
	value   = "lCM7cZyQXcVHK2nnW3jjAhNT3Fvm18UN-kWZZknKoYM"
	token   = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
)

// A provider has records and notes what it is asked. Unlike some, it finds a
// record by its number alone if that has one.
type provider struct {
	err    error                  // what it replies, if not nil
	answer func() []libdns.Record // what it says it added; nil means the truth

	mu      sync.Mutex
	last    int
	records map[int]string // "zone name type value"
	deleted []libdns.Record
}

func (p *provider) AppendRecords(_ context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	if p.records == nil {
		p.records = make(map[int]string)
	}
	var added []libdns.Record
	for _, r := range records {
		p.last++
		p.records[p.last] = text(zone, r)
		added = append(added, libdns.TXT{Name: r.RR().Name, Text: r.RR().Data, TTL: time.Hour, ProviderData: p.last})
	}
	if p.answer != nil {
		return p.answer(), nil
	}
	return added, nil
}

func (p *provider) DeleteRecords(_ context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	for _, r := range records {
		p.deleted = append(p.deleted, r)
		for id, have := range p.records {
			txt, _ := r.(libdns.TXT)
			if txt.ProviderData == id || txt.ProviderData == nil && have == text(zone, r) {
				delete(p.records, id)
			}
		}
	}
	return records, nil
}

// all returns the records, sorted.
func (p *provider) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, r := range p.records {
		all = append(all, r)
	}
	slices.Sort(all)
	return all
}

func text(zone string, r libdns.Record) string {
	rr := r.RR()
	return fmt.Sprintf("%s %s %s %s", zone, rr.Name, rr.Type, rr.Data)
}

// start returns a DNS with a provider, and a name server that has the test's
// zones.
func start(t *testing.T) (*DNS, *provider) {
	p := new(provider)
	d := New(p)
	d.Resolver = newServer(t, zones, well).resolver()
	return d, p
}

var zones = map[string]string{
	"test.":                             "SOA",
	"example.test.":                     "SOA",
	"sub.example.test.":                 "SOA",
	"_acme-challenge.own.example.test.": "SOA",
	"other.test.":                       "SOA",
	"apex.other.test.":                  "SOA",

	"www.example.test.":                     "CNAME other.test.",
	"_acme-challenge.c.example.test.":       "CNAME c.other.test.",
	"_acme-challenge.cc.example.test.":      "CNAME _ACME-challenge.C.example.TEST.",
	"_acme-challenge.a.example.test.":       "CNAME apex.other.test.",
	"_acme-challenge.loop.example.test.":    "CNAME _acme-challenge.pool.example.test.",
	"_acme-challenge.pool.example.test.":    "CNAME _acme-challenge.loop.example.test.",
	"*.wild.example.test.":                  "CNAME balancer.other.test.",
	"_acme-challenge.central.example.test.": "CNAME hosts.wild.example.test.",
	"_acme-challenge.lost.example.test.":    "CNAME lost.nowhere.",

	"refused.test.":                  "REFUSED",
	"x.refused.test.":                "REFUSED",
	"_acme-challenge.refused2.test.": "CNAME x.refused.test.",
}

func TestPlace(t *testing.T) {
	for _, tt := range []struct{ domain, zone, name string }{
		{"example.test", "example.test.", "_acme-challenge"},
		{"Example.TEST", "example.test.", "_acme-challenge"},
		{"a.b.c.example.test", "example.test.", "_acme-challenge.a.b.c"},
		{"sub.example.test", "sub.example.test.", "_acme-challenge"},
		{"deep.sub.example.test", "sub.example.test.", "_acme-challenge.deep"},
		{"notexample.test", "test.", "_acme-challenge.notexample"},
		{"own.example.test", "_acme-challenge.own.example.test.", "@"},
		{"www.example.test", "example.test.", "_acme-challenge.www"},
		{"c.example.test", "other.test.", "c"},
		{"cc.example.test", "other.test.", "c"},
		{"a.example.test", "apex.other.test.", "@"},
		{"x.wild.example.test", "example.test.", "_acme-challenge.x.wild"},
		{"wild.example.test", "example.test.", "_acme-challenge.wild"},
		{"central.example.test", "other.test.", "balancer"},
	} {
		d, p := start(t)
		if err := d.Present(t.Context(), tt.domain, token, keyAuth); err != nil {
			t.Errorf("Present(%s): %v", tt.domain, err)
		}
		want := []string{tt.zone + " " + tt.name + " TXT " + value}
		if got := p.all(); !slices.Equal(got, want) {
			t.Errorf("Present(%s) adds %q, want %q", tt.domain, got, want)
		}
		if err := d.CleanUp(t.Context(), tt.domain, token, keyAuth); err != nil {
			t.Errorf("CleanUp(%s): %v", tt.domain, err)
		}
		if got := p.all(); len(got) > 0 {
			t.Errorf("CleanUp(%s) leaves %q", tt.domain, got)
		}
	}
}

func TestCleanUpDeletesWhatTheProviderAdded(t *testing.T) {
	d, p := start(t)
	for _, keyAuth := range []string{"1", "2"} {
		if err := d.Present(t.Context(), "example.test", token, keyAuth); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.CleanUp(t.Context(), "example.test", token, "2"); err != nil {
		t.Fatal(err)
	}
	if len(p.deleted) != 1 || p.deleted[0].(libdns.TXT).ProviderData != 2 {
		t.Errorf("CleanUp deletes %v, want the record that came of the second Present", p.deleted)
	}
}

// TestCleanUpAfterRestart has nothing but the challenge to know the record by.
func TestCleanUpAfterRestart(t *testing.T) {
	before, p := start(t)
	for _, keyAuth := range []string{"theirs", keyAuth} {
		if err := before.Present(t.Context(), "c.example.test", token, keyAuth); err != nil {
			t.Fatal(err)
		}
	}
	after := New(p)
	after.Resolver = before.Resolver
	if err := after.CleanUp(t.Context(), "c.example.test", token, keyAuth); err != nil {
		t.Fatal(err)
	}
	want := libdns.RR{Name: "c", Type: "TXT", Data: value}
	if len(p.deleted) != 1 || p.deleted[0] != want {
		t.Errorf("CleanUp deletes %v, want %v", p.deleted, want)
	}
	if got := p.all(); len(got) != 1 || strings.Contains(got[0], value) {
		t.Errorf("CleanUp leaves %q, want the other's record", got)
	}
}

// TestCleanUpAsksNobody: what was added is deleted where it was added, however
// the DNS has changed since.
func TestCleanUpAsksNobody(t *testing.T) {
	d, p := start(t)
	if err := d.Present(t.Context(), "c.example.test", token, keyAuth); err != nil {
		t.Fatal(err)
	}
	d.Resolver = newServer(t, nil, well).resolver()
	if err := d.CleanUp(t.Context(), "c.example.test", token, keyAuth); err != nil || len(p.all()) > 0 {
		t.Errorf("CleanUp leaves %q: %v", p.all(), err)
	}
	if err := d.CleanUp(t.Context(), "c.example.test", token, keyAuth); err == nil {
		t.Error("a second CleanUp still knows where the record was")
	}
}

func TestCleanUpAgain(t *testing.T) {
	d, p := start(t)
	if err := d.Present(t.Context(), "example.test", token, keyAuth); err != nil {
		t.Fatal(err)
	}
	p.err = errors.New("try later")
	if err := d.CleanUp(t.Context(), "example.test", token, keyAuth); !errors.Is(err, p.err) {
		t.Errorf("CleanUp = %v, want %v", err, p.err)
	}
	p.err = nil
	if err := d.CleanUp(t.Context(), "example.test", token, keyAuth); err != nil || len(p.all()) > 0 {
		t.Errorf("CleanUp after one that was refused leaves %q: %v", p.all(), err)
	}
	if got := p.deleted[0].(libdns.TXT).ProviderData; got != 1 {
		t.Errorf("CleanUp after one that was refused deletes number %v, want 1", got)
	}
}

// TestProviderSays tries what providers say they added. CleanUp must delete
// ours and nothing else, even if they say too much.
func TestProviderSays(t *testing.T) {
	txt := func(name, text string) libdns.Record {
		return libdns.TXT{Name: name, Text: text, ProviderData: "id"}
	}
	for _, tt := range []struct {
		says []libdns.Record
		back bool // CleanUp gives the provider its own record
	}{
		{nil, false},
		{[]libdns.Record{txt("_acme-challenge", value)}, true},
		{[]libdns.Record{txt("_acme-challenge", "theirs"), txt("_acme-challenge", value)}, true},
		{[]libdns.Record{txt("_acme-challenge.example.test", value)}, true},
		{[]libdns.Record{txt("_acme-challenge.example.test.", value)}, true},
		{[]libdns.Record{txt("_acme-challenge", `"`+value+`"`)}, true},
		{[]libdns.Record{txt("_acme-challenge", "theirs")}, false},
		{[]libdns.Record{txt("_acme-challenge", "")}, false},
		{[]libdns.Record{txt("", value)}, false},
		{[]libdns.Record{txt("www", value)}, false},
		{[]libdns.Record{libdns.RR{Name: "_acme-challenge", Data: value}}, false},
	} {
		d, p := start(t)
		p.answer = func() []libdns.Record { return tt.says }
		if err := d.Present(t.Context(), "example.test", token, keyAuth); err != nil {
			t.Fatal(err)
		}
		if err := d.CleanUp(t.Context(), "example.test", token, keyAuth); err != nil {
			t.Fatal(err)
		}
		want := libdns.Record(libdns.RR{Name: "_acme-challenge", Type: "TXT", Data: value})
		if tt.back {
			want = tt.says[len(tt.says)-1]
		}
		if len(p.deleted) != 1 || p.deleted[0] != want {
			t.Errorf("a provider that says it added %v is to delete %v, want %v", tt.says, p.deleted, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ domain, want string }{
		{"gone.example", "finding the zone of _acme-challenge.gone.example.: there is none"},
		{"lost.example.test", "finding the zone of lost.nowhere.: there is none"},
		{"loop.example.test", "following the CNAME records of _acme-challenge.loop.example.test.: more than 10"},
		{"refused.test", " for refused.test. SOA: REFUSED"},
		{"refused2.test", "x.refused.test. CNAME: REFUSED"},
	} {
		d, p := start(t)
		for call, f := range map[string]func(context.Context, string, string, string) error{
			"Present": d.Present, "CleanUp": d.CleanUp,
		} {
			err := f(t.Context(), tt.domain, token, keyAuth)
			if err == nil || !strings.HasPrefix(err.Error(), "libdns: "+tt.domain+": ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s(%s) = %v, want %q in it", call, tt.domain, err, tt.want)
			}
		}
		if got := p.all(); len(got) > 0 || len(p.deleted) > 0 {
			t.Errorf("%s: the provider was asked, and has %q", tt.domain, got)
		}
	}
}

// TestProviderFails checks that a person can tell from the error what to do.
func TestProviderFails(t *testing.T) {
	d, p := start(t)
	p.err = errors.New("bad token")
	for _, tt := range []struct {
		f    func(context.Context, string, string, string) error
		want string
	}{
		{d.Present, `adding the record c TXT "` + value + `" to zone other.test. (is the provider configured right, and may it change the zone?): bad token`},
		{d.CleanUp, `deleting the record c TXT "` + value + `" from zone other.test. (if it stays, delete it by hand): bad token`},
	} {
		err := tt.f(t.Context(), "c.example.test", token, keyAuth)
		if want := "libdns: c.example.test: " + tt.want; !errors.Is(err, p.err) || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	d, p := start(t)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			domain, keyAuth := fmt.Sprintf("%d.example.test", i/2), fmt.Sprint(i)
			if err := d.Present(t.Context(), domain, token, keyAuth); err != nil {
				t.Errorf("Present: %v", err)
			}
			if err := d.CleanUp(t.Context(), domain, token, keyAuth); err != nil {
				t.Errorf("CleanUp: %v", err)
			}
		})
	}
	all.Wait()
	if got := p.all(); len(got) > 0 || len(p.deleted) != 20 {
		t.Errorf("after 20 were deleted, %d by the provider, there are %q", len(p.deleted), got)
	}
	if len(d.added) > 0 {
		t.Errorf("after all were deleted, %d are remembered", len(d.added))
	}
}
