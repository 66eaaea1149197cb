package e2e

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"example.com/letsencrypt/internal/journal"
	"example.com/letsencrypt/internal/pebble"
)

// A crash is a moment to die at.
type crash struct {
	name   string
	step   pebble.Endpoint // dies at the first request to it
	acted  bool            // when the CA has done what it was asked, and not before
	kept   string          // kind of the last record that the file has by then
	orders int             // made in the end
	wait   bool            // the CA validates when we are back
}

// A process that is killed at any step of its first order is followed by one
// that ends with one account and one certificate, and with one order if the
// first one's URL was kept.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, test := range []crash{
		{name: "account key kept", step: pebble.NewAccount, kept: "account", orders: 1},
		{name: "account made", step: pebble.NewAccount, acted: true, kept: "account", orders: 1},
		{name: "account kept", step: pebble.NewOrder, kept: "account", orders: 1},
		{name: "order made", step: pebble.NewOrder, acted: true, kept: "account", orders: 2},
		{name: "order kept", step: pebble.Authz, kept: "order", orders: 1},
		{name: "authorization read", step: pebble.Authz, acted: true, kept: "order", orders: 1},
		{name: "challenge chosen", step: pebble.Challenge, kept: "order", orders: 1},
		{name: "challenge accepted", step: pebble.Challenge, acted: true, kept: "order", orders: 1, wait: true},
		{name: "being validated", step: pebble.Order, kept: "order", orders: 1, wait: true},
		{name: "validated", step: pebble.Finalize, kept: "order", orders: 1},
		{name: "finalized", step: pebble.Finalize, acted: true, kept: "order", orders: 1},
		{name: "issued", step: pebble.Certificate, kept: "order", orders: 1},
		{name: "downloaded", step: pebble.Certificate, acted: true, kept: "order", orders: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const host = "a.example.com"
			r, open := newRig(t, pebble.Config{}), func() {}
			if test.wait {
				r, open = newGatedRig(t)
			}
			cache := filepath.Join(t.TempDir(), "cache")
			r.dieAt(test, cache, host)
			if kinds := kindsIn(t, cache); !kinds[test.kept] || kinds["cert"] {
				t.Errorf("the file has records %v, want %q and no certificate", kinds, test.kept)
			}

			second := startChild(t, "serve", r.serveArgs(cache, host))
			if test.wait {
				eventually(t, "an answer to the challenge that is being validated", r.tookUp)
			}
			open()
			r.endsWell(second, cache, host, test.orders)
		})
	}
}

func TestKilledWhenTheCertificateIsWritten(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r := newRig(t, pebble.Config{})
	cache := filepath.Join(t.TempDir(), "cache")
	first := startChild(t, "serve", r.serveArgs(cache, host))
	eventually(t, "the certificate in the file", func() bool { return kindsIn(t, cache)["cert"] })
	first.kill()
	second := startChild(t, "serve", r.serveArgs(cache, host))
	r.endsWell(second, cache, host, 1)
}

// Shutdown ends at once although the CA has not validated yet, and the next
// Manager takes the order up.
func TestShutdownParksTheOrder(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r, open := newGatedRig(t)
	first, _ := r.manager()
	cache := cacheFile(t, first)
	r.serve(first)
	ended := make(chan error, 1)
	go func() {
		_, err := first.Cert(host)
		ended <- err
	}()
	eventually(t, "a challenge that is accepted", func() bool { return r.proxy.Count(pebble.Challenge) > 0 })
	shutdown(t, first)
	if err := <-ended; err == nil {
		t.Error("Cert = nil after Shutdown, want an error")
	}
	if kinds := kindsIn(t, cache); !kinds["order"] {
		t.Errorf("the file has records %v, want an order", kinds)
	}

	second, _ := r.manager()
	if err := second.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	r.serve(second)
	second.Registered() // first use
	eventually(t, "an answer to the challenge that is being validated", r.tookUp)
	open()
	r.served(host)
	if orders, issued := r.Orders(), len(r.Issued()); orders != 1 || issued != 1 {
		t.Errorf("%d orders and %d certificates, want 1 of each", orders, issued)
	}
}

// newGatedRig returns a rig whose CA validates at a gate, where its connections
// stand until open is called, and then go where the rig's Managers serve.
func newGatedRig(t *testing.T) (_ *rig, open func()) {
	t.Helper()
	ports := newRig(t, pebble.Config{}) // we serve where this one would validate
	opened := make(chan struct{})
	open = sync.OnceFunc(func() { close(opened) })
	r := newRig(t, pebble.Config{
		HTTPPort: gate(t, opened, ports.httpAddr()),
		TLSPort:  gate(t, opened, ports.tlsAddr()),
	})
	r.validatesAt = ports.Server
	t.Cleanup(open)
	return r, open
}

// gate returns a port from where connections lead to addr, once it is opened.
func gate(t *testing.T, opened <-chan struct{}, addr string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			running.Go(func() {
				<-opened
				pipe(in, addr)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// pipe connects in with addr, until both have said all.
func pipe(in net.Conn, addr string) {
	defer in.Close()
	out, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	var running sync.WaitGroup
	running.Go(func() {
		io.Copy(out, in)
		out.(*net.TCPConn).CloseWrite()
	})
	io.Copy(in, out)
	in.(*net.TCPConn).CloseWrite()
	running.Wait()
}

// tookUp reports whether the authorization was read again and something asked
// after that, when its answer is in place.
func (r *rig) tookUp() bool {
	reads := 0
	for _, q := range r.proxy.Requests() {
		if reads == 2 {
			return true
		}
		if q.Endpoint == pebble.Authz {
			reads++
		}
	}
	return false
}

// dieAt runs a process that is to obtain a certificate and kills it on the way.
func (r *rig) dieAt(test crash, cache, host string) {
	r.t.Helper()
	victim, dead := make(chan *child, 1), make(chan struct{})
	die := func() {
		c := <-victim
		c.kill()
		close(dead)
	}
	r.proxy.SetFault(nth(test.step, 1, func(w http.ResponseWriter, q *http.Request, ca http.Handler) {
		defer die() // before the connection is closed
		if test.acted {
			pebble.LoseReply(w, q, ca)
		}
		pebble.Drop(w, q, ca)
	}))
	victim <- startChild(r.t, "serve", r.serveArgs(cache, host))
	eventually(r.t, "a request to "+string(test.step), func() bool {
		select {
		case <-dead:
			return true
		default:
			return false
		}
	})
}

// kindsIn returns the kinds of the living records in a cache file.
func kindsIn(t *testing.T, name string) map[string]bool {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil || !strings.Contains(string(data), "\n") {
		return nil // it is not there yet
	}
	records, _, err := journal.Split(string(data))
	if err != nil {
		t.Fatal(err)
	}
	last := make(map[string]journal.Record)
	for _, rec := range records {
		last[rec.Key()] = rec
	}
	kinds := make(map[string]bool)
	for _, rec := range last {
		if !rec.Deleted() {
			kinds[rec.Kind()] = true
		}
	}
	return kinds
}

// endsWell checks that the host comes to be served by the process, with the one
// certificate that was issued, and that this is in the cache file.
func (r *rig) endsWell(c *child, cache, host string, orders int) {
	r.t.Helper()
	listening(r.t, r.httpAddr(), r.tlsAddr())
	leaf := r.served(host)
	eventually(r.t, "an end of the order in the file", func() bool { return !kindsIn(r.t, cache)["order"] })
	c.kill()

	issued := r.Issued()
	if len(issued) != 1 || strings.TrimLeft(issued[0].Serial, "0") != leaf.SerialNumber.Text(16) {
		r.t.Errorf("the CA issued %v, want %x alone", issued, leaf.SerialNumber)
	}
	if n := r.Orders(); n != orders {
		r.t.Errorf("%d orders, want %d", n, orders)
	}
	if n := r.Accounts(); n != 1 {
		r.t.Errorf("%d accounts, want 1", n)
	}
	m, _ := r.manager()
	if err := m.CacheFile(cache); err != nil {
		r.t.Fatal(err)
	}
	cert, err := m.Cert(host)
	if err != nil {
		r.t.Fatal(err)
	}
	if !cert.Leaf.Equal(leaf) {
		r.t.Error("the file has another certificate")
	}
}
