package txt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	patience = 2 * time.Minute // of await
	interval = 5 * time.Second
	later    = 66 * time.Second // not when the servers are found again
)

// await calls Await for the value "new" of _acme-challenge.example.com, and
// returns how long it took.
func await(t *testing.T, c *Client) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	start := time.Now()
	err := c.Await(ctx, acme, "new", interval)
	return time.Since(start), err
}

func TestAwait(t *testing.T) {
	tests := []struct {
		name, lines string
		set         func(w *world) // at the start
		then        func(w *world) // later
		rounds      int            // that it may take to be seen, if more than one
	}{{
		name: "record",
		then: func(w *world) { w.add(acme + ". TXT new") },
	}, {
		name:  "record beside others",
		lines: acme + ". TXT old",
		then:  func(w *world) { w.add(acme + ". TXT new") },
	}, {
		name: "one server is late",
		set:  func(w *world) { w.addAt("192.0.2.1", acme+". TXT new") },
		then: func(w *world) { w.addAt("192.0.2.2", acme+". TXT new") },
	}, {
		name:   "one server is dead",
		rounds: 4, // that it makes slower
		lines:  acme + ". TXT old",
		set:    func(w *world) { w.server("192.0.2.1").hook = dead },
		then:   func(w *world) { w.addAt("192.0.2.2", acme+". TXT new") },
	}, {
		name:  "one server refuses",
		lines: acme + ". TXT old",
		set:   func(w *world) { w.server("192.0.2.2").hook = code(dnsmessage.RCodeRefused) },
		then:  func(w *world) { w.addAt("192.0.2.1", acme+". TXT new") },
	}, {
		name: "zone without servers",
		set:  func(w *world) { w.remove("example.com.", "NS") },
		then: func(w *world) { w.add(acme + ". TXT new"); w.add("example.com. NS ns1.example.com.") },
	}, {
		name:   "zone moves",
		rounds: 1 + maxReuse,
		lines:  "example.net. TXT -\n192.0.2.8 example.com.\nns8.example.com. A 192.0.2.8",
		then: func(w *world) {
			w.addAt("192.0.2.8", acme+". TXT new")
			w.remove("example.com.", "NS")
			w.add("example.com. NS ns8.example.com.")
		},
	}, {
		name:   "zone moves, old servers go",
		rounds: 4, // they are waited for
		lines:  "192.0.2.8 example.com.\nns8.example.com. A 192.0.2.8",
		then: func(w *world) {
			w.addAt("192.0.2.8", acme+". TXT new")
			w.remove("example.com.", "NS")
			w.add("example.com. NS ns8.example.com.")
			w.off("192.0.2.1")
			w.off("192.0.2.2")
		},
	}, {
		name:  "CNAME is made",
		lines: "x.example.net. TXT new",
		then:  func(w *world) { w.add(acme + ". CNAME x.example.net.") },
	}, {
		name:   "CNAME changes",
		rounds: 1 + maxReuse,
		lines:  acme + ". CNAME x.example.net.\ny.example.net. TXT new",
		then: func(w *world) {
			w.remove(acme+".", "CNAME")
			w.add(acme + ". CNAME y.example.net.")
		},
	}, {
		name:  "CNAME at one server only",
		lines: "x.example.net. TXT new",
		set:   func(w *world) { w.addAt("192.0.2.2", acme+". CNAME x.example.net.") },
		then:  func(w *world) { w.addAt("192.0.2.1", acme+". CNAME x.example.net.") },
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, plain+test.lines)
				if test.set != nil {
					test.set(w)
				}
				time.AfterFunc(later, func() { test.then(w) })
				took, err := await(t, w.client())
				from, to := later, later+interval*time.Duration(max(test.rounds, 1))
				if err != nil || took < from || took > to {
					t.Errorf("Await = %v after %v, want nil after %v to %v", err, took, from, to)
				}
			})
		})
	}
}

// TestAwaitIsFast has the value where it should be from the start.
func TestAwaitIsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took, err := await(t, newWorld(t, plain+acme+". TXT new").client())
		if took != 0 || err != nil {
			t.Errorf("Await = %v after %v, want nil at once", err, took)
		}
	})
}

// TestAwaitReport has what the error says when the time is over.
func TestAwaitReport(t *testing.T) {
	long := strings.Repeat("v", 200)
	tests := []struct {
		name, lines string
		set         func(w *world)
		want        string
	}{{
		name: "nothing there",
		want: "ns1.example.com: no such record; ns2.example.com: no such record",
	}, {
		name:  "other values",
		lines: acme + ". TXT a\"b\n" + acme + ". TXT c",
		want:  `ns1.example.com: "a\"b", "c"; ns2.example.com: "a\"b", "c"`,
	}, {
		name:  "many values",
		lines: acme + ". TXT 1\n" + acme + ". TXT 2\n" + acme + ". TXT 3\n" + acme + ". TXT 4\n" + acme + ". TXT 5\n" + acme + ". TXT 6",
		set:   func(w *world) { w.server("192.0.2.2").hook = dead },
		want:  `ns1.example.com: "1", "2", "3", "4" and 2 more; ns2.example.com: no answer`,
	}, {
		name:  "long value",
		lines: acme + ". TXT " + long,
		set:   func(w *world) { w.server("192.0.2.2").hook = code(dnsmessage.RCodeServerFailure) },
		want:  `ns1.example.com: "` + long[:100] + `"...; ns2.example.com: SERVFAIL`,
	}, {
		name:  "CNAME",
		lines: acme + ". CNAME x.example.net.\nx.example.net. TXT a",
		want:  `its CNAME leads to x.example.net: ns.example.net: "a"`,
	}, {
		name:  "CNAME, and a dead server",
		lines: acme + ". CNAME x.example.net.\nx.example.net. TXT a",
		set:   func(w *world) { w.server("192.0.2.1").hook = dead },
		want:  `its CNAME leads to x.example.net: ns.example.net: "a"`,
	}, {
		name: "in order",
		set: func(w *world) {
			w.remove("example.com.", "NS")
			w.add("example.com. NS ns2.example.com.")
			w.add("example.com. NS ns1.example.com.")
		},
		want: "ns1.example.com: no such record; ns2.example.com: no such record",
	}, {
		name:  "CNAME at one server only",
		lines: "x.example.net. TXT a",
		set:   func(w *world) { w.addAt("192.0.2.2", acme+". CNAME x.example.net.") },
		want:  `its CNAME leads to x.example.net: ns1.example.com: no such record at ` + acme + `; ns.example.net: "a"`,
	}, {
		name: "CNAMEs differ",
		set: func(w *world) {
			w.addAt("192.0.2.1", acme+". CNAME x.example.net.")
			w.addAt("192.0.2.2", acme+". CNAME y.example.net.")
		},
		want: `its CNAME leads to x.example.net: ns2.example.com: a CNAME to y.example.net at ` + acme + `; ns.example.net: no such record`,
	}, {
		name:  "loop",
		lines: acme + ". CNAME x.example.net.\nx.example.net. CNAME " + acme + ".",
		want:  "the CNAME at x.example.net leads back to " + acme,
	}, {
		name: "no address",
		set:  func(w *world) { w.remove("ns1.example.com.", "A"); w.server("192.0.2.2").hook = dead },
		want: "no server of example.com tells: ns1.example.com: lookup ns1.example.com. on ",
	}, {
		name: "refused",
		set: func(w *world) {
			w.server("192.0.2.1").hook, w.server("192.0.2.2").hook = code(9), code(dnsmessage.RCodeRefused)
		},
		want: "no server of example.com tells: ns1.example.com: NOTAUTH; ns2.example.com: REFUSED",
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, plain+test.lines)
				if test.set != nil {
					test.set(w)
				}
				took, err := await(t, w.client())
				want := "awaiting the TXT record of " + acme + ": context deadline exceeded: " + test.want
				if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), want) {
					t.Errorf("Await = %v\nwant %s", err, want)
				}
				if took != patience {
					t.Errorf("Await took %v, want the %v it had", took, patience)
				}
			})
		})
	}
}

// TestAwaitReportsLastWholeRound ends while the servers, which have told before,
// are silent.
func TestAwaitReportsLastWholeRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain+acme+". TXT old")
		var silent atomic.Bool
		for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
			w.server(addr).hook = func(string, *dnsmessage.Message) bool { return !silent.Load() }
		}
		time.AfterFunc(patience-6*time.Second, func() { silent.Store(true) })
		_, err := await(t, w.client())
		if want := `ns1.example.com: "old"; ns2.example.com: "old"`; err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("Await = %v, want %s at its end", err, want)
		}
	})
}

// TestAwaitCutShort ends while one server has told what is wanted and the other
// has not told yet.
func TestAwaitCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain+acme+". TXT new")
		w.server("192.0.2.2").hook = dead
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("changed my mind")
		time.AfterFunc(time.Second, func() { cancel(cause) })
		start := time.Now()
		err := w.client().Await(ctx, acme, "new", time.Second)
		want := "awaiting the TXT record of " + acme + `: changed my mind: ns1.example.com: "new"; ns2.example.com: no answer`
		if !errors.Is(err, cause) || err.Error() != want {
			t.Errorf("Await = %v\nwant %s", err, want)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("Await took %v, want the second until it was canceled", took)
		}
	})
}

// TestAwaitAsksServersOnly counts what the resolver is asked while a record is
// slow to appear.
func TestAwaitAsksServersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		if _, err := await(t, w.client()); err == nil {
			t.Error("Await = nil, want an error")
		}
		rounds := len(w.log("192.0.2.1"))
		finds := len(w.log("resolver NS example.com."))
		if want := int(patience / interval); rounds != want {
			t.Errorf("%d questions to a server, want %d", rounds, want)
		}
		if want := rounds / (1 + maxReuse); finds != want {
			t.Errorf("%d searches for the servers in %d rounds, want %d", finds, rounds, want)
		}
	})
}

// TestAwaitDefaultInterval asks for no pause and must not flood the servers.
func TestAwaitDefaultInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		w.client().Await(ctx, acme, "new", 0)
		if got, want := len(w.log("192.0.2.1")), int(time.Minute/defaultInterval); got != want {
			t.Errorf("%d questions to a server in a minute, want %d", got, want)
		}
	})
}

// TestAwaitManyServers has more servers than are asked or named.
func TestAwaitManyServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, plain)
		w.remove("example.com.", "NS")
		for i := range 30 {
			w.add(fmt.Sprintf("example.com. NS a%02d.example.com.", i))
			w.add(fmt.Sprintf("a%02d.example.com. A 192.0.2.1", i))
		}
		_, err := await(t, w.client())
		if got := strings.Count(fmt.Sprint(err), "no such record"); got != maxServers {
			t.Errorf("Await names %d servers, want %d: %v", got, maxServers, err)
		}
	})
}

func TestAgreed(t *testing.T) {
	has := func(values ...string) sighting { return sighting{reply: reply{values: values}} }
	down := sighting{err: errNoAnswer}
	tests := []struct {
		seen []sighting
		want bool
	}{
		{nil, false},
		{[]sighting{down}, false},
		{[]sighting{has("new")}, true},
		{[]sighting{has("old", "new"), has("new", "old")}, true},
		{[]sighting{down, has("new")}, true},
		{[]sighting{has("new"), has("old")}, false},
		{[]sighting{has("new"), has()}, false},
		{[]sighting{has("new"), {reply: reply{alias: "x."}}}, false},
	}
	for _, test := range tests {
		if got := agreed(test.seen, "new"); got != test.want {
			t.Errorf("agreed(%v) = %t, want %t", test.seen, got, test.want)
		}
	}
}
