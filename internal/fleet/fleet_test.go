package fleet

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	servers "example.com/letsencrypt/internal/engine"
	"example.com/letsencrypt/internal/pebble"
)

// A fleet is members that share an engine, and a CA that validates by way of a
// balancer.
type fleet struct {
	t         *testing.T
	ca        *pebble.Server
	proxy     *pebble.Proxy // before the CA
	roots     *x509.CertPool
	engine    engine
	addr      string          // the engine's
	server    *servers.Server // nil for a folder
	balancer  *balancer
	said      memberLog
	trail     trail
	hosts     []string
	profile   string
	challenge string       // the only type that members can pass; "" means all
	failed    atomic.Int64 // visits that persistently had to repeat

	mu      sync.Mutex // guards members
	members []*member  // by number, those that there are now
}

// newFleet returns a fleet without members yet.
func newFleet(t *testing.T, e engine, config pebble.Config) *fleet {
	t.Helper()
	config.DNSServer = startNames(t)
	f := &fleet{t: t, ca: pebble.New(t, config), engine: e, balancer: newBalancer()}
	var err error
	if f.proxy, err = f.ca.Proxy(f.trail.note(nil)); err != nil {
		t.Fatal(err)
	}
	if f.roots, err = f.ca.Roots(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e.start == nil {
		f.addr = t.TempDir()
	} else {
		f.server = e.start(t)
		f.addr = f.server.Addr
	}
	f.balancer.listen(t, f.tlsAddr(), func(m *member) string { return m.HTTPS })
	f.balancer.listen(t, fmt.Sprintf("127.0.0.1:%d", f.ca.HTTPPort()), func(m *member) string { return m.HTTP })
	for i := range hosts {
		f.hosts = append(f.hosts, fmt.Sprintf("h%d.example.com", i))
	}
	t.Cleanup(f.end)
	return f
}

// tlsAddr returns where clients reach the balancer, and the CA's validations.
func (f *fleet) tlsAddr() string { return fmt.Sprintf("127.0.0.1:%d", f.ca.TLSPort()) }

// end kills all members. None must have ended by itself.
func (f *fleet) end() {
	for _, m := range f.all() {
		if isClosed(m.done) {
			f.t.Errorf("member %d has ended by itself: %v", m.number, m.cmd.ProcessState)
		}
		m.kill()
	}
	text := f.said.String()
	if strings.Contains(text, "DATA RACE") {
		f.t.Error("a member has a data race")
	}
	if f.t.Failed() {
		f.t.Logf("what the members said:\n%s", text[max(0, len(text)-200_000):])
	}
}

// all returns the members that there are now.
func (f *fleet) all() []*member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.members)
}

// member returns the member with a number that there is now.
func (f *fleet) member(number int) *member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[number]
}

func (f *fleet) args(number int) memberArgs {
	return memberArgs{
		Number:    number,
		Engine:    f.engine.name,
		Addr:      f.addr,
		Directory: f.proxy.Directory(),
		APICert:   f.ca.APICert(),
		Profile:   f.profile,
		Challenge: f.challenge,
		Hosts:     f.hosts,
	}
}

// start starts so many members, side by side.
func (f *fleet) start(n int) {
	f.t.Helper()
	f.members = make([]*member, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() { f.launch(i) })
	}
	running.Wait()
	if f.members = slices.DeleteFunc(f.members, func(m *member) bool { return m == nil }); len(f.members) < n {
		f.t.FailNow()
	}
}

// launch starts a member, in the place of the one that had its number.
func (f *fleet) launch(number int) {
	f.t.Helper()
	m, err := startMember(f.t.Context(), f.args(number), &f.said)
	if err != nil {
		f.t.Error(err)
		return
	}
	f.mu.Lock()
	f.members[number] = m
	f.mu.Unlock()
	f.balancer.add(m)
}

// A served is what a member serves for a host.
type served struct {
	member int
	host   string
}

// visitAll visits all members for all hosts at the same moment, each until it is
// served, and returns the serial numbers of what it is served.
func (f *fleet) visitAll(deadline time.Time) map[served]string {
	var mu sync.Mutex // guards serials
	serials := make(map[served]string)
	var running sync.WaitGroup
	begin := make(chan struct{})
	for _, m := range f.all() {
		for _, host := range f.hosts {
			running.Go(func() {
				<-begin
				s := served{m.number, host}
				leaf, err := f.persistently(s, deadline)
				if err != nil {
					f.t.Errorf("member %d, %s: %v", s.member, host, err)
					return
				}
				mu.Lock()
				serials[s] = hex.EncodeToString(leaf.SerialNumber.Bytes()) // as Pebble does
				mu.Unlock()
			})
		}
	}
	close(begin)
	running.Wait()
	return serials
}

// persistently visits a member again and again until it serves the host.
func (f *fleet) persistently(s served, deadline time.Time) (leaf *x509.Certificate, err error) {
	ctx, cancel := context.WithDeadline(f.t.Context(), deadline)
	defer cancel()
	for ctx.Err() == nil {
		if leaf, err = f.once(ctx, s); err == nil {
			return leaf, nil
		}
		f.failed.Add(1)
		wait(ctx, time.Second/2+rand.N(time.Second))
	}
	return nil, cmp.Or(err, ctx.Err())
}

// once visits a member as a client does that has patience.
func (f *fleet) once(ctx context.Context, s served) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return f.visit(ctx, f.member(s.member).HTTPS, s.host)
}

// visit makes a connection, verifies the chain for the host and returns the leaf.
func (f *fleet) visit(ctx context.Context, addr, host string) (*x509.Certificate, error) {
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{},
		Config: &tls.Config{
			ServerName: host,
			RootCAs:    f.roots,
			// Other curves are not in assembly, and slow under the race detector.
			CurvePreferences: []tls.CurveID{tls.CurveP256},
		},
	}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// wait lets time pass, while ctx lasts.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// agree checks that all members serve one and the same certificate for a host,
// and that the CA issued no others.
func (f *fleet) agree(serials map[served]string) {
	f.t.Helper()
	of := make(map[string]string) // serial number to host
	for _, host := range f.hosts {
		all := make(map[string][]int) // serial number to who serves it
		for _, m := range f.all() {
			serial := serials[served{m.number, host}]
			all[serial] = append(all[serial], m.number)
			of[serial] = host
		}
		if len(all) != 1 {
			f.t.Errorf("%s has certificates by serial number and member %v, want one", host, all)
		}
	}
	for _, issued := range f.ca.Issued() {
		if of[issued.Serial] == "" {
			f.t.Errorf("certificate %s was issued, and nobody serves it", issued.Serial)
		}
	}
}

// TestFleet has all members asked for all hosts at the same moment. The CA is
// asked once.
func TestFleet(t *testing.T) {
	each(t, func(t *testing.T, e engine) {
		sleep := 3
		if *long {
			sleep = 15 // as Pebble does unless it is told
		}
		f := newFleet(t, e, pebble.Config{ValidationSleep: sleep})
		f.start(members)
		began := time.Now()
		serials := f.visitAll(began.Add(recovery))
		t.Logf("%d hosts at %d members in %v, %d handshakes had to be repeated; %d orders",
			hosts, members, time.Since(began).Round(time.Millisecond), f.failed.Load(), f.ca.Orders())
		f.agree(serials)
		if issued, accounts := len(f.ca.Issued()), f.ca.Accounts(); issued != hosts || accounts != 1 {
			t.Errorf("%d certificates and %d accounts, want %d and 1", issued, accounts, hosts)
		}
	})
}
