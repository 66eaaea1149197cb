package fleet

import (
	"context"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt/internal/pebble"
)

// standstill is how long a member is stopped: its locks last for 15 seconds.
const standstill = 20 * time.Second

// TestFleetSurvives kills members while they have orders under way, and so hold
// locks, stops one for longer than a lock lasts, and restarts the engine, while
// clients ask for more and more hosts. In the end all are served by all, and no
// certificate was issued twice.
func TestFleetSurvives(t *testing.T) {
	each(t, func(t *testing.T, e engine) {
		t.Logf("-seed %d", *seed)
		f := newFleet(t, e, pebble.Config{ValidationSleep: 3})
		c := &chaos{fleet: f, rand: rand.New(rand.NewPCG(*seed, uint64(e.name[0])))}
		// Pebble 2.10.1 stands still for good when a second challenge of an
		// authorization is accepted too late, as by a member that was stopped.
		f.challenge = []string{"tls-alpn-01", "http-01"}[c.rand.IntN(2)]
		f.start(members)
		stopAsking := f.ask(span(15*time.Second, time.Minute))
		last := c.reign()
		stopAsking()

		f.agree(f.visitAll(last.Add(recovery)))
		issued := len(f.ca.Issued())
		t.Logf("%s: %d kills, all well %v after the last of them; %d certificates, %d more than hosts; %d orders",
			f.challenge, c.kills, time.Since(last).Round(time.Second), issued, issued-hosts, f.ca.Orders())
		if issued != hosts {
			t.Errorf("%d certificates issued for %d hosts:\n%s", issued, hosts, f.twice())
		}
	})
}

// ask has clients ask each member for one host after the other, a first time
// within span, again until it is served, and then no more. The function that it
// returns has them give up.
func (f *fleet) ask(span time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(f.t.Context())
	var running sync.WaitGroup
	for i, host := range f.hosts {
		first := time.Now().Add(span * time.Duration(i) / hosts)
		for number := range members {
			running.Go(func() {
				wait(ctx, time.Until(first))
				for ctx.Err() == nil {
					if _, err := f.once(ctx, served{number, host}); err == nil {
						return
					}
					wait(ctx, 2*time.Second)
				}
			})
		}
	}
	return func() {
		cancel()
		running.Wait()
	}
}

// twice returns what is known of hosts for which more certificates were issued
// than one.
func (f *fleet) twice() string {
	leaves, err := f.ca.Certificates(f.t.Context())
	if err != nil {
		f.t.Error(err)
	}
	orders := make(map[string][]string)
	for i, issued := range f.ca.Issued() {
		host := leaves[i].DNSNames[0]
		orders[host] = append(orders[host], issued.Order)
	}
	var all string
	for host, of := range orders {
		if len(of) > 1 {
			all += f.trail.about(host, of)
		}
	}
	return all
}

// A chaos is the trouble that a fleet has.
type chaos struct {
	*fleet
	rand  *rand.Rand
	kills int
}

// reign makes trouble, and returns when there was the last.
func (c *chaos) reign() time.Time {
	kills, pause, outage := 4, 3*time.Second, 2*time.Second
	if *long {
		kills, pause, outage = 12, 5*time.Second, 10*time.Second
	}
	var stopped sync.WaitGroup
	for i := range kills {
		wait(c.t.Context(), pause/2+time.Duration(c.rand.Int64N(int64(pause))))
		switch i {
		case 1:
			m := c.inOrder(c.stop)
			stopped.Go(func() { c.goOn(m) })
		case kills / 2:
			c.restartEngine(outage)
		}
		m := c.inOrder(c.kill)
		c.kills++
		c.balancer.remove(m)
		c.launch(m.number)
	}
	last := time.Now()
	stopped.Wait()
	return last
}

// restartEngine has the engine crash, and be away for a while.
func (c *chaos) restartEngine(outage time.Duration) {
	if c.server == nil {
		return
	}
	c.trail.add("", "the engine is killed")
	c.server.Kill(c.t)
	wait(c.t.Context(), outage)
	c.server.Restart(c.t)
	c.trail.add("", "the engine is there again")
}

// kill kills a member.
func (c *chaos) kill(m *member) {
	c.trail.add("", "member %d is killed", m.number)
	m.kill()
}

// stop has a member stand still. Balancers notice.
func (c *chaos) stop(m *member) {
	c.trail.add("", "member %d is stopped", m.number)
	if err := m.stop(); err != nil {
		c.t.Errorf("stopping member %d: %v", m.number, err)
	}
	c.balancer.remove(m)
}

// goOn lets a member that was stopped go on after a while, unless it was killed.
func (c *chaos) goOn(m *member) {
	select {
	case <-time.After(standstill):
	case <-m.done:
		return
	}
	c.trail.add("", "member %d goes on", m.number)
	if err := m.goOn(); err != nil && !isClosed(m.done) {
		c.t.Errorf("letting member %d go on: %v", m.number, err)
	}
	c.balancer.add(m)
}

// atWork are the endpoints that a member asks while it holds a host's lock.
var atWork = []pebble.Endpoint{
	pebble.NewOrder, pebble.Order, pebble.Authz, pebble.Challenge, pebble.Finalize, pebble.Certificate,
}

// inOrder does something to a member that has an order under way: when it has
// sent a request about it, and the CA has done what that asks for or not. If
// there is none for some seconds it does so to any member.
func (c *chaos) inOrder(do func(*member)) *member {
	done := make(chan *member, 1)
	var mu sync.Mutex // guards countdown
	countdown, acted := 1+c.rand.IntN(20), c.rand.IntN(2) == 0
	hit := func(by int) bool {
		mu.Lock()
		defer mu.Unlock()
		was := countdown
		countdown -= by
		return was > 0 && countdown <= 0
	}
	c.proxy.SetFault(c.trail.note(func(r *http.Request, e pebble.Endpoint, _ int) pebble.Reply {
		if !slices.Contains(atWork, e) || !hit(1) {
			return nil
		}
		return func(w http.ResponseWriter, r *http.Request, ca http.Handler) {
			m := c.sender(r)
			defer func() {
				do(m)
				done <- m
			}()
			if acted {
				pebble.LoseReply(w, r, ca)
			}
			pebble.Drop(w, r, ca)
		}
	}))
	defer c.proxy.SetFault(c.trail.note(nil))
	select {
	case m := <-done:
		return m
	case <-time.After(5 * time.Second):
	}
	if !hit(countless) {
		return <-done // just now
	}
	c.t.Log("no order is under way")
	m := c.member(c.rand.IntN(members))
	do(m)
	return m
}

// countless is more than the requests that inOrder counts.
const countless = 1 << 20

// sender returns the member that sent a request to the CA.
func (c *chaos) sender(r *http.Request) *member {
	number, err := strconv.Atoi(r.Header.Get(memberHeader))
	if err != nil {
		c.t.Errorf("a request to the CA by nobody: %v", err)
	}
	return c.member(number)
}
