package txt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// plain is example.com at two servers, and example.net at one.
const plain = `
	192.0.2.1 example.com.
	192.0.2.2 example.com.
	192.0.2.9 example.net.
	example.com. NS ns1.example.com.
	example.com. NS ns2.example.com.
	ns1.example.com. A 192.0.2.1
	ns2.example.com. A 192.0.2.2
	example.net. NS ns.example.net.
	ns.example.net. A 192.0.2.9
`

const acme = "_acme-challenge.example.com"

// TestFollow has worlds in which the records of _acme-challenge.example.com are
// reached in different ways.
func TestFollow(t *testing.T) {
	tests := []struct {
		name, lines string
		target      string // "" for the name itself
		values      string // joined by spaces
	}{
		{"none", "", "", ""},
		{"one", acme + ". TXT a", "", "a"},
		{"sorted, once each", acme + ". TXT b\n" + acme + ". TXT a\n" + acme + ". TXT b", "", "a b"},
		{"of several strings", acme + ". TXT a|b|c", "", "abc"},
		{"empty", acme + ". TXT |", "", ""},
		{"beside others", "other.example.com. TXT b\n" + acme + ". TXT a", "", "a"},
		{
			"CNAME within the zone",
			acme + ". CNAME x.example.com.\nx.example.com. TXT a",
			"x.example.com", "a",
		}, {
			"CNAME to another zone",
			acme + ". CNAME x.example.net.\nx.example.net. TXT a",
			"x.example.net", "a",
		}, {
			"CNAME to another zone's apex",
			acme + ". CNAME example.net.\nexample.net. TXT a",
			"example.net", "a",
		}, {
			"CNAME in capitals",
			acme + ". CNAME X.Example.NET.\nx.example.net. TXT a",
			"x.example.net", "a",
		}, {
			"CNAMEs to and fro",
			acme + ". CNAME x.example.net.\nx.example.net. CNAME y.example.com.\n" +
				"y.example.com. CNAME z.example.com.\nz.example.com. TXT a",
			"z.example.com", "a",
		}, {
			"CNAME to nothing",
			acme + ". CNAME x.example.net.",
			"x.example.net", "",
		}, {
			"delegation of the name",
			acme + ". NS ns.example.net.\n192.0.2.9 example.net. " + acme + ".\n" + acme + ". TXT a",
			"", "a",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newWorld(t, plain+test.lines).client()
			want := test.target
			if want == "" {
				want = acme
			}
			if got, err := c.Target(limit(t), acme); got != want || err != nil {
				t.Errorf("Target = %q, %v, want %q", got, err, want)
			}
			got, err := c.Lookup(limit(t), acme)
			if strings.Join(got, " ") != test.values || err != nil {
				t.Errorf("Lookup = %q, %v, want %q", got, err, test.values)
			}
		})
	}
}

func TestNameIsFolded(t *testing.T) {
	w := newWorld(t, plain+acme+". TXT a")
	for _, name := range []string{"_ACME-challenge.Example.com", acme + "."} {
		if got, err := w.client().Target(limit(t), name); got != acme || err != nil {
			t.Errorf("Target(%q) = %q, %v, want %q", name, got, err, acme)
		}
		if got, err := w.client().Lookup(limit(t), name); len(got) != 1 || err != nil {
			t.Errorf("Lookup(%q) = %q, %v, want one value", name, got, err)
		}
	}
}

func TestNoName(t *testing.T) {
	c := newWorld(t, plain).client()
	for _, name := range []string{"", ".", "a..b", ".a", "a b", "ü.example", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a"} {
		if got, err := c.Target(t.Context(), name); err == nil {
			t.Errorf("Target(%q) = %q, want an error", name, got)
		}
		if got, err := c.Lookup(t.Context(), name); err == nil {
			t.Errorf("Lookup(%q) = %q, want an error", name, got)
		}
		if err := c.Await(t.Context(), name, "v", time.Second); err == nil {
			t.Errorf("Await(%q) = nil, want an error", name)
		}
	}
}

func TestAwaitInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain+acme+". TXT old")
		time.AfterFunc(10*time.Minute, func() { w.add(acme + ". TXT new") })
		start := time.Now()
		if err := w.client().Await(t.Context(), acme, "new", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 10*time.Minute || took > 10*time.Minute+5*time.Second {
			t.Errorf("Await took %v, want the 10m until the record is there and up to 5s", took)
		}
	})
}

func TestAwaitFailureNamesServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain+acme+". TXT old")
		w.server("192.0.2.2").hook = dead
		cause := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, cause)
		defer cancel()
		err := w.client().Await(ctx, acme, "new", 5*time.Second)
		if !errors.Is(err, cause) {
			t.Errorf("Await = %v, want the cause in it", err)
		}
		want := `awaiting the TXT record of _acme-challenge.example.com: enough: ns1.example.com: "old"; ns2.example.com: no answer`
		if fmt.Sprint(err) != want {
			t.Errorf("Await = %v\nwant %s", err, want)
		}
	})
}

func TestSERVFAIL(t *testing.T) {
	w := newWorld(t, plain+acme+". TXT a")
	w.server("192.0.2.1").hook = code(dnsmessage.RCodeServerFailure)
	got, err := w.client().Lookup(limit(t), acme)
	if !slices.Equal(got, []string{"a"}) || err != nil {
		t.Errorf("Lookup = %q, %v, want a from the other server", got, err)
	}
}
