package pebble

import (
	"strings"
	"testing"
)

func TestLogbookPieces(t *testing.T) {
	const text = "Pebble 2026/11/21 20:00:00 POST /order-plz -> calling handler()\n" +
		"Pebble 2026/11/21 20:00:00 HEAD /dir -> calling handler()\n" +
		"Pebble 2026/11/21 20:00:00 Issued certificate serial 0f for order abc\n"
	for size := range len(text) {
		l := newLogbook(nil)
		for rest := text; rest != ""; {
			n := min(size+1, len(rest))
			l.Write([]byte(rest[:n]))
			rest = rest[n:]
		}
		if len(l.requests) != 1 || l.requests[NewOrder] != 1 {
			t.Errorf("in pieces of %d: requests = %v, want one for %s", size+1, l.requests, NewOrder)
		}
		if len(l.issued) != 1 || l.issued[0] != (Issued{"0f", "abc"}) {
			t.Errorf("in pieces of %d: issued = %v, want 0f of abc", size+1, l.issued)
		}
	}
}

func TestLogbookIsBounded(t *testing.T) {
	l := newLogbook(nil)
	for range keptLines + 1 {
		l.Write([]byte("a line\n"))
	}
	l.Write([]byte("the last\n"))
	if n := len(l.lines); n > keptLines {
		t.Errorf("%d lines are kept, want at most %d", n, keptLines)
	}
	if !strings.HasSuffix(l.tail(), "a line\nthe last") {
		t.Errorf("tail = %q, want the last lines", l.tail())
	}
}

func FuzzLogbook(f *testing.F) {
	f.Add([]byte("Pebble 2026/11/21 20:00:00 POST /order-plz -> calling handler()\n"))
	f.Add([]byte(" -> calling handler()\n"))
	f.Add([]byte("Pebble a b Issued certificate serial x for order\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newLogbook(nil)
		if n, err := l.Write(data); n != len(data) || err != nil {
			t.Errorf("Write = %d, %v, want %d", n, err, len(data))
		}
		if got, want := len(l.lines), strings.Count(string(data), "\n"); got != want {
			t.Errorf("%d lines, want %d", got, want)
		}
	})
}

func TestEndpointOf(t *testing.T) {
	for path, want := range map[string]Endpoint{
		"/dir":                     Directory,
		"/my-order/abc":            Order,
		"/certZ/abc":               Certificate,
		"/certZ/abc/alternate/1":   Certificate,
		"/dir/":                    Unknown,
		"/my-order":                Unknown,
		"":                         Unknown,
		"/draft-ietf-acme-ari-03/": Unknown,
		"/draft-ietf-acme-ari-03/renewalInfo/a.b": RenewalInfo,
	} {
		if got := endpointOf(path); got != want {
			t.Errorf("endpointOf(%q) = %s, want %s", path, got, want)
		}
	}
}
