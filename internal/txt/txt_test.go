package txt

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
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

// lookup checks what Lookup returns for the name _acme-challenge.example.com.
func lookup(t *testing.T, c *Client, want ...string) {
	t.Helper()
	got, err := c.Lookup(limit(t), acme)
	if !slices.Equal(got, want) || err != nil {
		t.Errorf("Lookup = %q, %v, want %q", got, err, want)
	}
}

// lookupFails checks that the error of Lookup has all the words.
func lookupFails(t *testing.T, c *Client, words ...string) {
	t.Helper()
	got, err := c.Lookup(limit(t), acme)
	if err == nil {
		t.Errorf("Lookup = %q, want an error", got)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("Lookup = %v, want %q in it", err, word)
		}
	}
}

func TestNoRecordIsNil(t *testing.T) {
	got, err := newWorld(t, plain).client().Lookup(limit(t), acme)
	if got != nil || err != nil {
		t.Errorf("Lookup = %q, %v, want nil, nil", got, err)
	}
}

func TestEmptyRecord(t *testing.T) {
	lookup(t, newWorld(t, plain+acme+". TXT |").client(), "")
}

func TestUnionOfServers(t *testing.T) {
	w := newWorld(t, plain)
	w.addAt("192.0.2.1", acme+". TXT b")
	w.addAt("192.0.2.2", acme+". TXT a")
	w.addAt("192.0.2.2", acme+". TXT b")
	lookup(t, w.client(), "a", "b")
}

func TestDeadServerBesideGoodOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain+acme+". TXT a")
		w.server("192.0.2.1").hook = dead
		start := time.Now()
		lookup(t, w.client(), "a")
		if took := time.Since(start); took != maxTries*queryTimeout {
			t.Errorf("Lookup took %v, want %v", took, maxTries*queryTimeout)
		}
	})
}

func TestLostPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain+acme+". TXT a")
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			w.server(addr).hook = func(string, *dnsmessage.Message) bool { return len(w.log(addr)) > 1 }
		}
		lookup(t, w.client(), "a")
	})
}

func TestAllServersDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		w.server("192.0.2.1").hook = dead
		w.server("192.0.2.2").hook = dead
		lookupFails(t, w.client(), "no server of example.com tells", "ns1.example.com: no answer; ns2.example.com: no answer")
		if got := w.log("resolver NS com."); len(got) > 0 {
			t.Errorf("asked %q, where the servers are known", got)
		}
	})
}

// TestResolverDown has a resolver that never answers, and a caller that gives
// it a minute.
func TestResolverDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		w.down = true
		_, err := w.client().Target(limit(t), acme)
		if err == nil || !strings.Contains(err.Error(), "lookup example.com.") {
			t.Errorf("Target = %v, want what the resolver said of example.com", err)
		}
	})
}

func TestNoNameServers(t *testing.T) {
	lookupFails(t, newWorld(t, "").client(), "no name servers found for "+acme)
}

func TestServerWithoutAddress(t *testing.T) {
	w := newWorld(t, plain+acme+". TXT a")
	w.remove("ns1.example.com.", "A")
	lookup(t, w.client(), "a")
	w.remove("ns2.example.com.", "A")
	lookupFails(t, w.client(), "ns1.example.com: lookup ns1.example.com.")
}

// TestServerOfTwoAddresses has a server that can be reached at one of its two
// addresses, and another one that has an old view: one word counts for both.
func TestServerOfTwoAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain+`
			2001:db8::1 example.com.
			ns1.example.com. AAAA 2001:db8::1
			`+acme+". TXT a")
		w.server("192.0.2.1").hook = dead
		w.server("192.0.2.2").hook = code(dnsmessage.RCodeRefused)
		start := time.Now()
		lookup(t, w.client(), "a")
		if took := time.Since(start); took != 0 {
			t.Errorf("Lookup took %v, want no waiting for the dead address", took)
		}
		if w.late > 0 {
			t.Errorf("%d connections made after the answer, want none", w.late)
		}
		w.server("2001:db8::1").hook = code(dnsmessage.RCodeServerFailure)
		lookupFails(t, w.client(), "ns1.example.com: SERVFAIL; ns2.example.com: REFUSED")
	})
}

func TestConcurrentUse(t *testing.T) {
	c := newWorld(t, plain+acme+". TXT a").client()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			lookup(t, c, "a")
			if err := c.Await(limit(t), acme, "a", time.Second); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestZeroClient can't ask the real servers, but it can begin.
func TestZeroClient(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("no time")
	cancel(cause)
	var c Client
	if _, err := c.Target(ctx, acme); !errors.Is(err, cause) {
		t.Errorf("Target = %v, want the context's cause", err)
	}
	if _, err := c.Lookup(ctx, acme); !errors.Is(err, cause) {
		t.Errorf("Lookup = %v, want the context's cause", err)
	}
	if err := c.Await(ctx, acme, "a", time.Second); !errors.Is(err, cause) {
		t.Errorf("Await = %v, want the context's cause", err)
	}
}

func TestCanceledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dial := func(context.Context, string, string) (net.Conn, error) {
		t.Error("a connection is made")
		return nil, io.ErrUnexpectedEOF
	}
	c := &Client{Resolver: &net.Resolver{PreferGo: true, Dial: dial}}
	_, err := c.Lookup(ctx, acme)
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "lookup example.com.") {
		t.Errorf("Lookup = %v, want %v and nothing of look-ups that were not made", err, context.Canceled)
	}
}

// TestCancel ends the context while each of those that are asked keeps silent,
// and nobody waits any longer.
func TestCancel(t *testing.T) {
	tests := []struct {
		name string
		set  func(w *world)
	}{
		{"servers", func(w *world) { w.server("192.0.2.1").hook, w.server("192.0.2.2").hook = dead, dead }},
		{"resolver", func(w *world) { w.down = true }},
		{"resolver of addresses", func(w *world) { w.silent = "ns1.example.com." }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, plain)
				test.set(w)
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				start := time.Now()
				if _, err := w.client().Lookup(ctx, acme); !errors.Is(err, context.Canceled) {
					t.Errorf("Lookup = %v, want %v", err, context.Canceled)
				}
				if took := time.Since(start); took != time.Second {
					t.Errorf("Lookup took %v, want the second until it was canceled", took)
				}
				if w.late > 0 {
					t.Errorf("%d connections made after the end, want none", w.late)
				}
			})
		})
	}
}

// TestDeadlineKeepsAnswers ends the context when one server has told and the
// other has not.
func TestDeadlineKeepsAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain+acme+". TXT a")
		w.server("192.0.2.2").hook = dead
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got, err := w.client().Lookup(ctx, acme); len(got) != 1 || err != nil {
			t.Errorf("Lookup = %q, %v, want a", got, err)
		}
	})
}
