package main

import (
	"math/rand/v2"
	"time"

	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/queue"
	"golang.org/x/time/rate"
)

// What else the values of year have.
const (
	tooFast = "orders past the limits"
	expired = "certificates that expired"
	polling = "s of it to choose when to ask for renewal information"
)

const (
	day          = 24 * time.Hour
	yearLimit    = 3 // a second
	yearBurst    = 20
	yearFlights  = 32               // orders under way
	yearOrder    = 10 * time.Second // what one takes
	yearPoll     = 6 * time.Hour    // between questions for renewal information
	yearLook     = time.Minute      // at the clock, whatever the queues say
	yearWait     = time.Millisecond // before a host is looked at again
	yearWarnings = 10 * time.Minute // between looks whether the limit will do
)

// lives are the certificates' lifetimes, one for each twentieth of the hosts.
var lives = func() (l [20]time.Duration) {
	for i := range l {
		switch {
		case i < 14:
			l[i] = 90 * day
		case i < 19:
			l[i] = 45 * day
		default:
			l[i] = 6 * day
		}
	}
	return l
}()

// A year is a Manager's choosing of what to renew when, and no more of it: its
// queue of all hosts by what is next due, its queue of those past their moment by
// when their certificates expire, the moments that it chooses, its limit, the
// orders that it has under way, and its look at whether the limit will do, in the
// steps of Manager.dispatch. Instead of a clock there is now; bucket.Set, which
// reads the machine's, is therefore not in it, but what that does with a
// rate.Limiter is. Not in it either are what surrounds the choosing: the mutex and
// the wait for the clock, the list, which all hosts are on, the orders and the
// certificates, which take ten seconds and no CPU time.
type year struct {
	now      time.Time
	due      queue.Queue[*yearHost]
	renewals queue.Queue[*yearHost]
	flights  queue.Queue[*yearHost] // by when they land
	limiter  *rate.Limiter
	random   *rand.Rand
	polls    bool
	warned   time.Time

	level    float64 // what the orders so far leave of the burst, negated; see count
	counted  time.Time
	tooFast  int
	expired  int
	renewed  int
	polled   int
	shortage bool
}

type yearHost struct {
	place, flight       queue.Item[*yearHost] // in due; in renewals or flights
	life                time.Duration
	expiry, moment, ask time.Time
}

// simulateYear simulates a year without questions for renewal information, which
// are 1,460 a host, and a day with and one without them.
func simulateYear(r *run) (values, error) {
	length := 365 * day
	if r.quick {
		length = 10 * day
	}
	y := newYear(r.n, false)
	took := y.run(r, length)
	with, without := newYear(r.n, true), newYear(r.n, false)
	questions := (with.run(r, day) - without.run(r, day)) * 365
	r.note("%d renewals, %d orders past the limits, %d certificates expired; a limit too low: %v", y.renewed, y.tooFast, y.expired, y.shortage)
	r.note("choosing takes %.1f s; moving a host for its questions for renewal information, of which %d were made in a day, %.0f s a year",
		took.Seconds(), with.polled, questions.Seconds())
	return values{ours: (took + max(0, questions)).Seconds(), tooFast: float64(y.tooFast), expired: float64(y.expired), polling: questions.Seconds()}, nil
}

// newYear returns n hosts whose certificates are of any age, but for the last hour
// of their lives: whom a Manager finds with seconds to live when it starts, that
// expires however it chooses.
func newYear(n int, polls bool) *year {
	y := &year{
		now:     time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
		limiter: rate.NewLimiter(yearLimit, yearBurst),
		random:  rand.New(rand.NewPCG(1, 2)),
		polls:   polls,
	}
	y.counted = y.now
	all := make([]yearHost, n)
	for i := range all {
		h := &all[i]
		h.place.Value, h.flight.Value = h, h
		h.life = lives[i%len(lives)]
		y.hold(h, y.now.Add(-time.Duration(y.random.Float64()*float64(h.life-time.Hour))))
		h.ask = y.now.Add(time.Duration(y.random.Float64() * float64(yearPoll)))
		y.requeue(h)
	}
	return y
}

// run lets time pass and returns how much CPU time that took, or time, where that
// can't be told.
func (y *year) run(r *run, length time.Duration) time.Duration {
	before, _ := cpuTimes()
	began := time.Now()
	end := y.now.Add(length)
	for steps := 0; y.now.Before(end); steps++ {
		if steps%(1<<20) == 0 {
			r.progress("%.0f %% of %v", 100*(1-end.Sub(y.now).Hours()/length.Hours()), length)
		}
		y.now = y.dispatch()
	}
	if after, _ := cpuTimes(); after > 0 {
		return after - before
	}
	return time.Since(began)
}

// dispatch does all that is due, and returns when there is more to do.
func (y *year) dispatch() (next time.Time) {
	next = y.now.Add(yearLook)
	for item := y.flights.Pop(y.now); item != nil; item = y.flights.Pop(y.now) {
		y.hold(item.Value, y.now)
		y.requeue(item.Value)
		y.renewed++
	}
	for item := y.due.Pop(y.now); item != nil; item = y.due.Pop(y.now) {
		y.dueNow(item.Value)
	}
	next = sooner(next, y.launch())
	if item, at := y.due.Next(); item != nil {
		next = sooner(next, at)
	}
	if item, at := y.flights.Next(); item != nil {
		next = sooner(next, at)
	}
	return next
}

func sooner(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}

// dueNow is Manager.dueLocked.
func (y *year) dueNow(h *yearHost) {
	switch {
	case !y.now.Before(h.expiry):
		y.expired++
		h.expiry = h.expiry.Add(365 * day) // once is enough
	case h.flight.Queued(): // only its expiry was due
	case !y.now.Before(h.moment):
		y.renewals.Set(&h.flight, h.expiry)
	case y.polls && !y.now.Before(h.ask):
		h.ask = y.now.Add(yearPoll)
		y.polled++
	}
	y.requeue(h)
}

// requeue is Manager.requeueLocked.
func (y *year) requeue(h *yearHost) {
	next := h.expiry
	if !h.flight.Queued() {
		next = sooner(next, h.moment)
		if y.polls {
			next = sooner(next, h.ask)
		}
	}
	if soon := y.now.Add(yearWait); next.Before(soon) {
		next = soon
	}
	y.due.Set(&h.place, next)
}

// hold gives a host a certificate.
func (y *year) hold(h *yearHost, from time.Time) {
	h.expiry = from.Add(h.life)
	h.moment = certs.RenewAt(from, h.expiry, y.random.Float64())
}

// launch is Manager.launchLocked.
func (y *year) launch() time.Time {
	for item, _ := y.renewals.Next(); item != nil; item, _ = y.renewals.Next() {
		if y.flights.Len() >= yearFlights {
			return time.Time{} // a landing goes on here
		}
		if retry, ok := y.take(); !ok {
			y.warn()
			return retry
		}
		y.count()
		y.renewals.Remove(item)
		y.flights.Set(item, y.now.Add(yearOrder))
	}
	return time.Time{}
}

// take is bucket.Set.Take.
func (y *year) take() (retry time.Time, ok bool) {
	if missing := 1 - y.limiter.TokensAt(y.now); missing > 0 {
		wait := missing / float64(y.limiter.Limit()) * float64(time.Second)
		return y.now.Add(time.Duration(wait) + 1), false
	}
	y.limiter.AllowN(y.now, 1)
	return time.Time{}, true
}

// count checks the limit by another reckoning: in no window that ends now, however
// long, are there more orders than the burst and what the window's length adds.
// Level is how many there are in the window that has the most beyond the latter.
func (y *year) count() {
	y.level = max(0, y.level-yearLimit*y.now.Sub(y.counted).Seconds()) + 1
	y.counted = y.now
	if y.level > yearBurst+1e-6 {
		y.tooFast++
	}
}

// warn is Manager.warnLocked.
func (y *year) warn() {
	if y.now.Sub(y.warned) < yearWarnings {
		return
	}
	y.warned = y.now
	for i, expiry := range y.renewals.Times() {
		if float64(i+1)/max(1, expiry.Sub(y.now).Seconds()) > yearLimit {
			y.shortage = true
		}
	}
}
