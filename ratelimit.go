package letsencrypt

// In this file, from the top: the buckets; flights, the attempts at a certificate;
// which hosts may have one, and Allow; what a failure costs a host and a CA; the loop
// that sees to what is due; renewal information.

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"

	"example.com/letsencrypt/internal/bucket"
	"example.com/letsencrypt/internal/ca"
	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/challenge"
	"example.com/letsencrypt/internal/hostname"
	"example.com/letsencrypt/internal/journal"
	"example.com/letsencrypt/internal/queue"
	"example.com/letsencrypt/internal/shared"
	"golang.org/x/time/rate"
)

// Every bound on what the Manager does at once, and how long.
const (
	maxFlights   = 32               // attempts under way that no client waits for, and orders at one CA
	maxUnseen    = 1000             // flights that wait for a DNS record to be seen
	maxPolls     = 8                // questions for renewal information under way
	maxStaplings = 8                // questions to OCSP responders under way
	maxWaiters   = 1000             // handshakes and Cert calls that wait for an order
	maxPerHost   = 20               // of those, for one host
	maxWait      = 60 * time.Second // one of those
	maxEvents    = 1000             // not yet given to OnEvent
	maxRefusals  = 10000            // names that Allow refused, remembered
	refusalAge   = time.Minute      // how long
	undecidedAge = 5 * time.Second  // the same, where Allow could not tell

	backoffFirst = time.Minute // after a host's first failure; doubles
	backoffMost  = 24 * time.Hour
	maxGuesses   = 100                    // questions to Allow about hosts that a CA may have come to validate
	maxTurns     = 5                      // in a row that other members may have been at a host: then that is a failure
	storageWait  = 20 * time.Second       // for one thing that Storage is to do
	lockWait     = 2 * time.Minute        // for a lock that another member holds
	lookFirst    = 5 * time.Second        // between looks into Storage for a host that fails and that clients ask for
	lockFirst    = 250 * time.Millisecond // after Storage first did not give a lock; doubles
	lockMost     = 5 * time.Second
	unlocks      = 6                      // tries to give a lock back
	looks        = 4                      // for the certificate of another member that has finalized our order
	writeFirst   = 5 * time.Second        // after the state could first not be written, or Storage failed otherwise; doubles
	pollSoon     = time.Hour              // after another member of the fleet made a certificate
	catchUpEvery = 6 * time.Hour          // with what other members did for a host
	catchUpApart = 100 * time.Millisecond // between two hosts, at a start
	fleetSpread  = time.Minute            // over which the members of a fleet come to a renewal that is due, at most
	revokeLater  = 10 * time.Minute       // then a revocation that another process began is ours to finish, too
	revokeAgain  = time.Hour              // after a CA refused to revoke
	revokeFirst  = time.Second            // after a CA's first failure to revoke; doubles
	stapleWait   = 15 * time.Second       // for the first staple of a certificate that needs one
	stapleFirst  = time.Minute            // after an OCSP responder's first failure; doubles
	stapleMost   = time.Hour
	pauseFirst   = time.Minute // after a CA's first failure; doubles
	pauseMost    = time.Hour
	personMost   = 24 * time.Hour      // between tries of a host that a person must unpause
	troubleAge   = 7 * 24 * time.Hour  // then a host that nobody wants is forgotten
	clockSlack   = time.Hour           // how far back a clock may be set before it is called wrong
	maxAhead     = 15 * 24 * time.Hour // a day more than any Retry-After that is heeded
	coverLead    = 24 * time.Hour      // before a certificate of the program's own expires
	spreadPolls  = 6 * time.Hour       // over which a Manager that starts asks for all its certificates' renewal information, at most
	pollApart    = 10 * time.Second    // between two of those, where there are few
	lookEvery    = time.Minute         // at the clock, whatever timers say: a suspended machine stops them
	leastWait    = time.Millisecond    // before a host is looked at again
	levelEvery   = time.Minute         // between records of the buckets' levels

	spreadHosts = 3 // hosts of different owners refused in a row that pause their CA
)

// A schedule is what is due when, and what waits for what. It is guarded by
// Manager.mu.
type schedule struct {
	due        queue.Queue[*host]    // all that something is due for, by when
	renewals   queue.Queue[*flight]  // of certificates past their moment, waiting for a token; by expiry
	lacking    queue.Queue[*flight]  // for hosts without a certificate, waiting for a token; in turn
	turn       time.Time             // the last in lacking
	awaited    map[*flight]int       // flights that Manage or Renew wait for, and how many do
	background int                   // flights under way that started from a queue
	pledges    int                   // those of them that are to take their token yet
	unseen     int                   // those of them that wait for a DNS record to be seen
	waiters    int                   // handshakes and Cert calls that wait for a flight
	clients    int                   // flights that one of those started
	questions  int                   // to Allow, about hosts that are due
	guesses    int                   // to Allow, about hosts that a CA may have come to validate
	polls      int                   // questions for renewal information under way
	staples    queue.Queue[*stapled] // by when to see to them
	staplings  int                   // questions to OCSP responders under way

	buckets  bucket.Set
	leveled  time.Time // when their levels were last recorded
	warned   time.Time // when the renewals were last held against Limit
	shortage error     // what came of it
	need     float64   // the rate that it last said would do, per second
	looked   time.Time // when dispatch last looked at the clock
	newest   int64     // the latest notBefore there was, in Unix seconds
	wrong    bool      // the clock is before that
}

// The names of the buckets' records.
const (
	bucketAll = "certificates"
	bucketNew = "hosts"
)

// fillBucketsLocked sets the buckets up, at the levels that were kept.
func (m *Manager) fillBucketsLocked() {
	m.buckets.Buckets = map[string]*rate.Limiter{bucketAll: m.Limit, bucketNew: m.NewHostLimit}
	if m.Limit == nil {
		m.buckets.Buckets[bucketAll] = rate.NewLimiter(rate.Every(time.Minute), 20)
	}
	if m.NewHostLimit == nil && m.Allow == nil {
		m.buckets.Buckets[bucketNew] = rate.NewLimiter(rate.Every(3*time.Hour), 20)
	}
	m.buckets.Restore(m.levels)
}

// levelRecordsLocked returns the records of what the buckets hold.
func (m *Manager) levelRecordsLocked() []journal.Record {
	m.leveled = time.Now()
	var rs []journal.Record
	for name, l := range m.buckets.Levels() {
		rs = append(rs, record(kindLimit, name, l))
	}
	return rs
}

// takeLocked takes a token for one more certificate. If there is none it
// returns when there will be one, zero if never.
func (m *Manager) takeLocked(now time.Time, unseenHost bool) (retry time.Time, ok bool) {
	if unseenHost {
		return m.buckets.Take(now, bucketAll, bucketNew)
	}
	return m.buckets.Take(now, bucketAll)
}

// takeNowLocked takes a token for a client that will not wait for one. While a
// renewal past its moment does, the next is not the client's.
func (m *Manager) takeNowLocked(now time.Time, unseenHost bool) (retry time.Time, ok bool) {
	if m.renewals.Len() > 0 {
		return now.Add(time.Minute), false
	}
	return m.takeLocked(now, unseenHost)
}

// takeAnother takes a token for another try with another type of challenge, if
// there is one.
func (m *Manager) takeAnother() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.takeNowLocked(time.Now(), false)
	return ok
}

// A flight is one attempt to obtain a certificate, from when it waits for its
// token. It is landed once: cert and err are set and then done closed.
type flight struct {
	host   *host
	queue  *queue.Queue[*flight] // where it waits for its token; nil once it has it
	place  queue.Item[*flight]   // there
	parked chan struct{}         // while Allow is asked: closed if it has to wait for its token then
	done   chan struct{}
	cert   *tls.Certificate
	err    error

	notAfter   int64 // of the certificate that it is to replace
	verdict    verdict
	renew      bool // whatever there is already
	waiters    int  // clients; guarded by m.mu
	client     bool // one started it
	owing      bool // and it is to see whether it may, and take its token, on the way
	marked     bool // and was the first to ask for the host
	pledged    bool // it is to take its token when it has the lock of the fleet
	background bool
}

// newFlight returns the host's flight.
func newFlight(h *host) *flight {
	f := &flight{host: h, notAfter: h.notAfter, done: make(chan struct{})}
	f.place.Value, h.flight = f, f
	return f
}

// wait returns what the flight came to, or that it waits for a token if parked
// says so.
func (f *flight) wait(ctx context.Context, parked <-chan struct{}) (*tls.Certificate, error) {
	select {
	case <-parked:
		return nil, &HostError{Host: f.host.name, Err: ErrRateLimited}
	case <-f.done:
		return f.cert, f.err
	case <-ctx.Done():
		return nil, &HostError{Host: f.host.name, Err: context.Cause(ctx)}
	}
}

// hosted is which hosts may have certificates, and which of them were refused
// lately. It is guarded by Manager.mu.
type hosted struct {
	listed   bool             // there is a list
	onList   int              // how many hosts are on it
	listSet  bool             // it is this process's, not the file's
	badHosts map[string]error // entries of the list that are no hosts
	onlyAddr string           // the one address on the list, if there is one
	onlyHost string           // the one host on the list, if there is one
	refusals map[string]refusal
}

// hostLocked returns the host with a canonical name, made if need be.
func (m *Manager) hostLocked(name string) *host {
	h := m.hosts.Get(name)
	if h == nil {
		h = new(host)
		m.nameHost(h, strings.Clone(name)) // it may be a part of something larger
		m.hosts.Set(h.name, h)
	}
	return h
}

// nameHost makes a new host ready to be added.
func (m *Manager) nameHost(h *host, name string) {
	h.name, h.place.Value = name, h
	if isWildcard(name) {
		m.wild.Store(true)
	}
}

// The marks of a host. Both are set together when a client is served.
const (
	asked uint32 = 1 << iota // a client did ask for it, since the last issuance
	used                     // one did since we last looked for certificates to put out of memory
)

// mark sets marks, and reports whether asked was not among those before.
func (h *host) mark(marks uint32) (first bool) { return h.marks.Or(marks)&asked == 0 }

func (h *host) unmark(marks uint32) { h.marks.And(^marks) }

// An instant is a time in Unix nanoseconds, zero if there is none.
type instant int64

func at(t time.Time) instant {
	if t.IsZero() {
		return 0
	}
	return instant(t.UnixNano())
}

func (i instant) time() time.Time {
	if i == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(i))
}

func (h *host) held() bool { return h.notAfter != 0 }

// expiry returns when the certificate expires, zero if there is none.
func (h *host) expiry() time.Time {
	if !h.held() {
		return time.Time{}
	}
	return time.Unix(h.notAfter, 0)
}

// retry returns when the host may be tried again after it failed.
func (h *host) retry(now time.Time) time.Time {
	if h.trouble == nil || h.trouble.Error == "" {
		return time.Time{} // it failed, if at all, in part
	}
	return believe(h.trouble.Retry, h.trouble.Noted, now)
}

// lastError returns why the last attempt failed, nil if it did not.
func (h *host) lastError() error {
	if h.trouble == nil || h.trouble.Error == "" {
		return nil
	}
	return &HostError{Host: h.name, CA: h.trouble.CA, Err: h.trouble.cause(), Retry: h.trouble.Retry}
}

func hostsRecord(hosts []string) journal.Record {
	if hosts == nil {
		return journal.Delete(kindHosts, onlyOne)
	}
	return record(kindHosts, onlyOne, hosts)
}

// listLocked returns the record of the list, one that deletes it if there is none.
func (m *Manager) listLocked() journal.Record {
	if r, ok := m.log.Get(kindHosts, onlyOne); ok {
		return r
	}
	return hostsRecord(nil)
}

// relistLocked marks the hosts that are on the list.
func (m *Manager) relistLocked() {
	m.badHosts, m.onlyAddr, m.onlyHost = nil, "", ""
	list, _ := parseList(m.listLocked().JSON()) // it was checked when it came in
	m.hosts.Grow(max(0, len(list)-m.hosts.Len()))
	hosts, addrs, stay := make([]*host, 0, len(list)), 0, 0
	for names := range slices.Chunk(list, putBatch) {
		for i, h := range m.hosts.GetAll(names) { // most are canonical, and known
			if h == nil {
				h = m.listedLocked(names[i])
			}
			if h == nil || h.read {
				continue
			}
			h.read = true
			hosts = append(hosts, h)
			if h.listed {
				stay++
			}
			if _, ok := hostname.IsAddr(h.name); ok {
				m.onlyAddr = h.name
				addrs++
			}
		}
	}
	if len(hosts) == 1 {
		m.onlyHost = hosts[0].name
	}
	if addrs != 1 {
		m.onlyAddr = ""
	}
	m.strict.Store(m.listed && !m.closed)
	for _, h := range hosts {
		if !h.listed {
			h.listed = true
			m.requeueLocked(h)
		}
	}
	if stay < m.onList {
		m.unlistLocked()
	}
	m.onList = len(hosts)
	for _, h := range hosts {
		h.read = false
	}
}

// listedLocked returns the host that an entry of the list is: nil if it is none.
func (m *Manager) listedLocked(s string) *host {
	name, err := hostname.Canonical(s)
	if err != nil {
		m.badHostLocked(strings.Clone(s), err)
		return nil
	}
	return m.hostLocked(name)
}

// unlistLocked takes the hosts off the list that were not read of it.
func (m *Manager) unlistLocked() {
	for _, h := range m.hosts.All() {
		if h.listed && !h.read {
			h.listed = false
			m.requeueLocked(h)
			m.tidyLocked(h)
		}
	}
}

func (m *Manager) badHostLocked(s string, err error) {
	if m.badHosts == nil {
		m.badHosts = make(map[string]error)
	}
	m.badHosts[s] = &HostError{Host: s, Err: err}
	m.reportLocked(Event{Kind: EventFailed, Host: s, Err: m.badHosts[s], logged: true})
}

func isWildcard(name string) bool { return strings.HasPrefix(name, "*.") }

// coverLocked returns the wildcard that serves a name which the program did not
// name itself, or else the name.
func (m *Manager) coverLocked(name string) string {
	if !m.wild.Load() {
		return name
	}
	if h := m.hosts.Get(name); h != nil && (h.listed || h.managed) {
		return name
	}
	var buf [hostname.MaxLen + len("*.")]byte
	wild, _ := hostname.AppendWildcard(buf[:0], name)
	if h := m.hosts.GetBytes(wild); h != nil && (h.listed || h.managed) {
		return h.name
	}
	return name
}

// A verdict is what the program's settings say of a host.
type verdict int

const (
	refused  verdict = iota
	stranger         // any plausible name will do, within NewHostLimit
	asking           // it is for Allow to say
	vouched          // the program named it
)

// judgeLocked returns what the program's settings say of a canonical host.
func (m *Manager) judgeLocked(name string, h *host) verdict {
	switch {
	case h != nil && h.listed:
		return vouched
	case m.Allow != nil:
		return asking
	case m.listed:
		return refused
	case h != nil && h.managed:
		return vouched
	case h != nil && (h.held() || h.trouble != nil):
		return vouched // it was let in before, and counted then
	case hostname.Plausible(name):
		return stranger
	}
	return refused
}

// wantedLocked reports whether a host is to have a certificate at all times.
func (m *Manager) wantedLocked(h *host, now time.Time) bool {
	if now.Before(m.coveredUntil(h.name)) {
		return false
	}
	clients := h.marks.Load()&asked != 0
	if !h.listed && !h.managed && (!clients || m.coverLocked(h.name) != h.name) || m.judgeLocked(h.name, h) == refused {
		return false
	}
	if h.held() || h.managed || m.begunLocked(h) {
		return true
	}
	return h.listed && (m.eager || clients)
}

// coveredUntil returns until when a certificate of the program's own spares us
// the host, zero if there is none. That is a little before it expires, lest its
// end be the beginning of a wait.
func (m *Manager) coveredUntil(name string) time.Time {
	cert := m.own.Get(name)
	if cert == nil {
		return time.Time{}
	}
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	return cert.Leaf.NotAfter.Add(-min(coverLead, life/10))
}

// A refusal is an answer of Allow's, remembered lest strangers make us ask
// again at their pace.
type refusal struct {
	err   error
	until time.Time
}

// allow asks Allow about a host. The error refuses it, for now.
func (m *Manager) allow(ctx context.Context, host string) error {
	m.mu.Lock()
	r, ok := m.refusals[host]
	m.mu.Unlock()
	if ok && time.Now().Before(r.until) {
		return r.err
	}
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	err := m.Allow(ctx, host)
	if err == nil {
		return nil
	}
	until := time.Now().Add(refusalAge)
	if undecided(err) {
		until = time.Now().Add(undecidedAge)
	} else if !errors.Is(err, ErrHostNotAllowed) {
		err = fmt.Errorf("%w: %w", ErrHostNotAllowed, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refusals == nil || len(m.refusals) >= maxRefusals {
		m.refusals = make(map[string]refusal) // simpler than choosing, and as good against a flood
	}
	m.refusals[host] = refusal{err, until}
	return err
}

// undecided reports whether an error of Allow's says that it could not tell,
// rather than no: a time-out or a failure of the network. Such an error stops
// a new host for now, but no renewal.
func undecided(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok
}

// admitted asks Allow about a client's host, and looks whether another member of
// the fleet has its certificate. That of a host which is held, but out of memory,
// is served whatever the settings say.
func (m *Manager) admitted(f *flight, hello *tls.ClientHelloInfo) error {
	m.mu.Lock()
	evicted := f.host.evicted
	m.mu.Unlock()
	if evicted {
		if err := m.pull(m.ctx, kindCert, f.host.name); err != nil || m.overtaken(f) != nil {
			return err
		}
	}
	switch f.verdict {
	case refused:
		return ErrHostNotAllowed
	case asking:
		ctx := m.ctx
		if hello != nil && hello.Conn != nil {
			ctx = context.WithValue(ctx, clientKey{}, hello.Conn.RemoteAddr())
		}
		if err := m.allow(ctx, f.host.name); err != nil {
			return err
		}
	}
	return m.pull(m.ctx, kindCert, f.host.name)
}

// hindrance returns why no CA is to be asked for the host now, nil if nothing
// speaks against it.
func (m *Manager) hindrance(f *flight) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, now := f.host, time.Now().Round(0)
	if !f.renew && now.Before(h.retry(now)) {
		return h.lastError()
	}
	if until, err := m.openLocked(h, f, now); err != nil {
		return &HostError{Host: h.name, Err: err, Retry: until}
	}
	if !f.owing {
		return nil
	}
	retry, ok := m.buckets.Ready(now, 1, m.tollLocked(f)...)
	if m.renewals.Len() > 0 { // which go first
		retry, ok = now.Add(time.Minute), false
	}
	if !ok {
		return &HostError{Host: h.name, Err: ErrRateLimited, Retry: retry}
	}
	return nil
}

// tollLocked returns the buckets that a client's flight takes tokens from.
func (m *Manager) tollLocked(f *flight) []string {
	if f.verdict == stranger || f.verdict == asking && !f.host.held() && f.host.trouble == nil {
		return []string{bucketAll, bucketNew}
	}
	return []string{bucketAll}
}

// lookLocked reports whether a host that a client asks for is looked for in
// Storage, whatever speaks against an order. One that fails is every few seconds.
func (m *Manager) lookLocked(h *host, now time.Time) bool {
	switch {
	case m.Storage == nil:
		return false
	case h == nil || h.trouble == nil || h.evicted:
		return true
	case now.Before(h.trouble.looked.Add(lookFirst)):
		return false
	}
	h.trouble.looked = now
	return true
}

// pay takes a flight's token, if it has none yet.
func (m *Manager) pay(f *flight) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var retry time.Time
	ok := true
	switch {
	case f.owing:
		retry, ok = m.takeNowLocked(time.Now(), len(m.tollLocked(f)) > 1)
	case f.pledged:
		m.redeemLocked(f)
		retry, ok = m.takeLocked(time.Now(), false)
	}
	if !ok {
		return &HostError{Host: f.host.name, Err: ErrRateLimited, Retry: retry}
	}
	return nil
}

// redeemLocked ends a flight's claim to a token.
func (m *Manager) redeemLocked(f *flight) {
	if f.pledged {
		f.pledged = false
		m.pledges--
	}
}

// ClientAddr returns the address of the client whose handshake asks, in the
// context that Allow is called with. It is nil if no client does: before a
// renewal, for Cert and Manage, and in a fleet when a CA may have come to validate
// the host.
func ClientAddr(ctx context.Context) net.Addr {
	addr, _ := ctx.Value(clientKey{}).(net.Addr)
	return addr
}

type clientKey struct{}

// AskURL returns an Allow that asks a web service: it sends GET to the URL with
// domain=host added to its query, and allows the host if the status is 2xx. A
// service that can't be reached, answers with 5xx, 408 or 429, or takes more than
// ten seconds refuses for now, which stops a new host but no renewal. Redirects are
// not followed.
func AskURL(url string) func(ctx context.Context, host string) error {
	client := &http.Client{
		Timeout:       askTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context, host string) error { return ask(ctx, client, url, host) }
}

const askTimeout = 10 * time.Second

func ask(ctx context.Context, client *http.Client, service, host string) error {
	u, err := url.Parse(service)
	if err != nil {
		return err
	}
	q := u.Query()
	q.Set("domain", host)
	u.RawQuery = q.Encode()
	plain := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path} // what errors say: the query may hold a secret
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if e, ok := errors.AsType[*url.Error](err); ok {
		return &url.Error{Op: e.Op, URL: plain.String(), Err: e.Err} // which is a net.Error
	}
	if err != nil {
		return err
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, 4<<10)) // so that the connection can be used again
	switch {
	case res.StatusCode/100 == 2:
		return nil
	case res.StatusCode >= 500, res.StatusCode == http.StatusRequestTimeout, res.StatusCode == http.StatusTooManyRequests:
		return &url.Error{Op: "Get", URL: plain.String(), Err: errors.New(res.Status)}
	}
	return fmt.Errorf("%w: %s answered %s", ErrHostNotAllowed, plain.String(), res.Status)
}

// An authority is a CA as we deal with it.
type authority struct {
	CA
	account *ca.Account
	slots   chan struct{} // a token each for the orders under way

	prober  *flight   // guarded by m.mu, as is what follows: sees whether the CA works again
	limited []limited // hosts it refused, since it last did not
	issuers []string  // the names it goes by in records of dns-persist-01; nil: not known
}

// A trouble is what is known of a host's failures since it last succeeded.
type trouble struct {
	Failures int                  `json:"failures,omitempty"`
	Early    int                  `json:"early,omitempty"` // certificates in a row that were due at once
	Noted    time.Time            `json:"noted"`           // when all this was
	Retry    time.Time            `json:"retry"`           // not before then, but for Renew
	CA       string               `json:"ca,omitempty"`
	Error    string               `json:"err,omitempty"`
	Failed   map[string]time.Time `json:"failed,omitempty"` // challenge types, and when they failed last
	Limits   map[string]time.Time `json:"limits,omitempty"` // CAs that limit this host, and until when
	Paused   map[string]time.Time `json:"paused,omitempty"` // CAs that a person must ask, and when we try again
	Said     string               `json:"said,omitempty"`   // what the last of those CAs said

	err    error     // as it came; after a restart what Error says
	looked time.Time // when a client last had us look for the host in Storage
}

func (t *trouble) cause() error {
	if t.err == nil {
		t.err = errors.New(t.Error)
	}
	return t.err
}

// A pause is what is known of a CA's failures since it last worked.
type pause struct {
	Failures int       `json:"failures"`
	Noted    time.Time `json:"noted"`
	Until    time.Time `json:"until"`
	Error    string    `json:"err"`
}

// backoff returns how long to wait after the nth failure in a row, a tenth
// more or less, so that what failed together is not tried again together.
func backoff(n int, first, most time.Duration) time.Duration {
	d := most
	if n < 20 {
		d = min(most, first<<(n-1))
	}
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

// errPaused goes before the reason why a CA is not asked.
var errPaused = errors.New("not asked for now")

// admitLocked returns an error and a time if f may not order at the CA now.
// After a pause one flight goes ahead to see whether the CA works again, the
// one that claims to, and all others wait for what becomes of it. A nil f asks
// for a flight to come.
func (m *Manager) admitLocked(a *authority, h *host, f *flight, now time.Time) (until time.Time, err error) {
	switch p, ok := m.pauses[a.Directory]; {
	case !ok:
	case now.Before(believe(p.Until, p.Noted, now)):
		return p.Until, &pausedError{p.Error}
	case p.Failures > 0 && a.prober != nil && a.prober != f:
		return now.Add(pauseFirst), &pausedError{p.Error}
	}
	if h == nil || h.trouble == nil {
		return time.Time{}, nil
	}
	if until := believe(h.trouble.Limits[a.Directory], h.trouble.Noted, now); now.Before(until) {
		return until, &pausedError{h.trouble.Said}
	}
	if until := believe(h.trouble.Paused[a.Directory], h.trouble.Noted, now); now.Before(until) && (f == nil || !f.renew) {
		return until, &pausedError{h.trouble.Said}
	}
	return time.Time{}, nil
}

// claimLocked makes f the flight that sees whether the CA works again, if it
// is not known to.
func (m *Manager) claimLocked(a *authority, f *flight) {
	if a.prober == nil && m.pauses[a.Directory].Failures > 0 {
		a.prober = f
	}
}

// openLocked returns nil if some CA takes f's order for the host now. Else it
// returns when the first will, and why none does. A nil h asks for hosts in
// general, a nil f for a flight to come.
func (m *Manager) openLocked(h *host, f *flight, now time.Time) (until time.Time, err error) {
	if m.clockWrongLocked(now) {
		return now.Add(lookEvery), clockError(now, m.newest)
	}
	if m.unwritten != nil {
		return now.Add(lookEvery), fmt.Errorf("%w: %w", errUnwritten, m.unwritten)
	}
	var errs []error
	for _, a := range m.authorities {
		at, err := m.admitLocked(a, h, f, now)
		if err == nil {
			return time.Time{}, nil
		}
		until = earliest(at, until)
		if err = (&caError{a.Directory, err}); len(m.authorities) == 1 {
			return until, err
		}
		errs = append(errs, err)
	}
	return until, errors.Join(errs...)
}

// A pausedError says that a CA is left alone, and a caError which. They are put
// into words by who reads them: many who come at such a time do not.
type (
	pausedError struct{ why string }
	caError     struct {
		directory string
		error
	}
)

func (e *pausedError) Error() string { return errPaused.Error() + ": " + e.why }
func (e *pausedError) Unwrap() error { return errPaused }
func (e *caError) Error() string     { return e.directory + ": " + e.error.Error() }
func (e *caError) Unwrap() error     { return e.error }

// A failure is what an attempt came to that obtained nothing.
type failure struct {
	HostError
	own   bool // some of it is the host's, rather than everybody's
	ours  bool // it is this program's or this machine's
	unset bool // with some CA it was for want of a DNS record that a person sets
}

// settle notes how the CA did, adds that to what failed before, and reports
// whether another CA may do better.
func (m *Manager) settle(f *flight, a *authority, err error, failed *failure) (another bool) {
	if len(m.authorities) > 1 {
		err = fmt.Errorf("%s: %w", a.Directory, err)
	}
	if failed.Err == nil {
		failed.Err = err
	} else {
		failed.Err = errors.Join(failed.Err, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now().Round(0)
	var retry time.Time
	fault, own := faultsIn(err)
	switch {
	case errors.Is(err, errPaused):
		retry, _ = m.admitLocked(a, f.host, f, now)
		another = true
	case fault == nil:
		failed.ours = true
	default:
		failed.CA = a.Directory
		failed.own = failed.own || own
		failed.unset = failed.unset || fault.Class == ca.Unset
		failed.ours = fault.Class == ca.Ours
		m.settleLocked(a, f.host, fault, now)
		retry, _ = m.admitLocked(a, f.host, f, now)
		another = fault.Class != ca.Ours && fault.Class != ca.Validation
	}
	if failed.Retry.IsZero() || !retry.IsZero() && retry.Before(failed.Retry) {
		failed.Retry = retry
	}
	return another
}

// faultsIn returns the last of the failures that err is made of, nil if there
// is none, and whether any of them is the host's.
func faultsIn(err error) (last *ca.Failure, own bool) {
	switch e := err.(type) {
	case *ca.Failure:
		return e, !e.CAWide() && e.Class != ca.Ours && e.Class != ca.NoAccount
	case interface{ Unwrap() error }:
		return faultsIn(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			if f, o := faultsIn(err); f != nil {
				last, own = f, own || o
			}
		}
	}
	return last, own
}

// admit is admitLocked for a flight that is at the CA's door.
func (m *Manager) admit(f *flight, a *authority) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.admitLocked(a, f.host, f, time.Now().Round(0))
	if err == nil {
		m.claimLocked(a, f)
	}
	return err
}

// settleLocked notes how a CA did: whether it works, and whether it limits us.
func (m *Manager) settleLocked(a *authority, h *host, f *ca.Failure, now time.Time) {
	if a.prober == h.flight {
		a.prober = nil
	}
	p := m.pauses[a.Directory]
	switch {
	case f == nil, f.Class == ca.Validation, f.Class == ca.Policy, f.Class == ca.Paused:
		a.limited = nil
		m.resumeLocked(a)
	case f.CAWide():
		if now.Before(believe(p.Until, p.Noted, now)) { // it is one of those that were under way
			return
		}
		p.Failures++
		p.Until = now.Add(max(backoff(p.Failures, pauseFirst, pauseMost), f.Retry))
		m.pauseLocked(a, p, f)
	case f.Class == ca.Limited:
		m.limitedLocked(a, h, f, now)
	}
	if f != nil && f.Class == ca.Paused {
		h.trouble = h.trouble.with(func(t *trouble) {
			put(&t.Paused, a.Directory, now.Add(personMost))
			t.Said = f.Error()
		})
	}
}

// resumeLocked notes that a CA works.
func (m *Manager) resumeLocked(a *authority) {
	if _, paused := m.pauses[a.Directory]; paused {
		m.setLocked(journal.Delete(kindPause, a.Directory))
		m.reportLocked(Event{Kind: EventResumed, CA: a.Directory})
	}
}

// with returns a copy of t, which may be nil, as change leaves it. It is kept
// with the failure of the whole attempt, or with the certificate.
func (t *trouble) with(change func(*trouble)) *trouble {
	c := new(trouble)
	if t != nil {
		*c = *t
	}
	change(c)
	c.Noted = time.Now().Round(0)
	return c
}

// put sets a key of a map that others may hold: they keep theirs.
func put(m *map[string]time.Time, key string, t time.Time) {
	c := maps.Clone(*m)
	if c == nil {
		c = make(map[string]time.Time)
	}
	c[key] = t
	*m = c
}

func (m *Manager) pauseLocked(a *authority, p pause, err error) {
	p.Noted, p.Error = time.Now().Round(0), err.Error()
	m.setLocked(record(kindPause, a.Directory, p))
	m.reportLocked(Event{Kind: EventPaused, CA: a.Directory, Err: err, Next: p.Until})
}

// A limited host is one that a CA has enough of.
type limited struct {
	owner string
	until time.Time
}

// limitedLocked keeps a host from a CA that has enough of it. Several hosts of
// different owners in a row mean that it has enough of us.
func (m *Manager) limitedLocked(a *authority, h *host, f *ca.Failure, now time.Time) {
	until := now.Add(max(f.Retry, backoffFirst))
	h.trouble = h.trouble.with(func(t *trouble) {
		put(&t.Limits, a.Directory, until)
		t.Said = f.Error()
	})
	if p, ok := m.pauses[a.Directory]; ok {
		// It was to see whether the CA has enough of us still. That it has
		// enough of this host need not mean so: another is to see, and soon.
		p.Failures++
		p.Until = now.Add(backoff(p.Failures, pauseFirst, pauseMost))
		m.pauseLocked(a, p, f)
		return
	}
	owner := hostname.Registered(h.name)
	for _, l := range a.limited {
		if l.owner == owner {
			return
		}
	}
	a.limited = append(a.limited, limited{owner, until})
	if len(a.limited) < spreadHosts {
		return
	}
	first := until
	for _, l := range a.limited {
		if l.until.Before(first) {
			first = l.until
		}
	}
	a.limited = nil
	m.pauseLocked(a, pause{Failures: 1, Until: first}, f)
}

// orderFailed notes that an order failed, and with what type of challenge, and
// adds to the CA's words what we saw of it.
func (m *Manager) orderFailed(h *host, typ string, f *ca.Failure, late error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, begun := m.orders[h.name]; begun && !f.Resumable() {
		m.setLocked(journal.Delete(kindOrder, h.name))
	}
	if typ == "" || f.Class != ca.Validation {
		return f
	}
	h.trouble = h.trouble.with(func(t *trouble) { put(&t.Failed, typ, time.Now().Round(0)) })
	if late != nil {
		return fmt.Errorf("%w; %w", f, late)
	}
	seen := typ == challenge.TLSALPN01 || typ == challenge.HTTP01
	if v, ok := errors.AsType[*ca.ValidationError](f); ok && seen && !v.Arrived && m.Storage == nil { // it may have arrived at another member
		return fmt.Errorf("%w; %s", f, challenge.Advice(typ, h.name, m.tlsReady))
	}
	return f
}

// failedLocked notes that an attempt for a host failed, and when to try again.
func (m *Manager) failedLocked(h *host, f *failure, now time.Time) {
	t := &trouble{Noted: now, Early: int(h.early)}
	if h.trouble != nil {
		t.Failures, t.Failed = h.trouble.Failures, h.trouble.Failed
		t.Limits, t.Paused, t.Said = h.trouble.Limits, h.trouble.Paused, h.trouble.Said
	}
	if f.own || f.ours {
		t.Failures++
	}
	n, most := max(1, t.Failures), backoffMost
	if errors.Is(f.Err, errTooSoon) {
		n = int(h.early)
	}
	if !f.own && f.ours || f.unset {
		most = pauseMost // what is wrong with us may be put right any moment
	}
	t.Retry = now.Add(backoff(n, backoffFirst, most))
	if f.Retry.After(now) && (!f.own || f.Retry.After(t.Retry)) {
		t.Retry = f.Retry.Add(rand.N(backoffFirst / 4))
	}
	f.Retry = t.Retry
	t.CA, t.err, t.Error = f.CA, f.Err, f.Err.Error()
	if last, _ := faultsIn(f.Err); last == nil && errors.Is(f.Err, errPaused) && h.lastError() != nil {
		// Nobody was asked: what was said last is what there is to know.
		t.CA, t.err, t.Error = h.trouble.CA, h.trouble.cause(), h.trouble.Error
	}
	m.setLocked(record(kindBackoff, h.name, t))
	h.trouble = t // with err whole
	m.requeueLocked(h)
	m.reportLocked(Event{Kind: EventFailed, Host: h.name, CA: f.CA, Err: &f.HostError, NotAfter: h.expiry(), Next: t.Retry})
}

// joinLocked has a client wait for the flight that obtains a host's
// certificate, and starts it if there is none. Whatever speaks against that is
// told at once: no client waits for a token, nor goes on waiting once parked,
// if it is not nil, is closed.
func (m *Manager) joinLocked(name string, hello *tls.ClientHelloInfo) (f *flight, parked <-chan struct{}, err error) {
	name = m.coverLocked(name)
	h, now := m.hosts.Get(name), time.Now().Round(0)
	v := m.judgeLocked(name, h)
	if v == refused && hello == nil && !m.listed {
		v = stranger // the program itself named it to Cert
	}
	if v == asking && hello != nil && isWildcard(name) {
		v = refused // nobody's browser says that
	}
	fail := func(err error, retry time.Time) (*flight, <-chan struct{}, error) {
		return nil, nil, &HostError{Host: name, Err: err, Retry: retry}
	}
	switch {
	case m.closed:
		return nil, nil, http.ErrServerClosed
	case v == refused && !(h != nil && h.evicted && now.Before(h.expiry())):
		return fail(ErrHostNotAllowed, time.Time{})
	case m.waiters >= maxWaiters, m.clients >= maxWaiters, h != nil && h.flight != nil && h.flight.waiters >= maxPerHost:
		return fail(errBusy, now.Add(time.Second))
	}
	if h != nil && h.flight != nil && h.flight.queue == nil {
		return m.countedLocked(h.flight), h.flight.parked, nil
	}
	look := m.lookLocked(h, now)
	if h != nil && now.Before(h.retry(now)) && !look {
		return nil, nil, h.lastError()
	}
	if r, ok := m.refusals[name]; ok && v == asking && now.Before(r.until) && !(h != nil && h.evicted) {
		return fail(r.err, r.until)
	}
	if until, err := m.openLocked(h, nil, now); err != nil && !look {
		return fail(err, until)
	}
	owing := v == asking || look
	if !owing || h != nil && h.flight != nil { // else the flight asks and looks, and then takes it
		if retry, ok := m.takeNowLocked(now, v == stranger); !ok {
			return fail(ErrRateLimited, retry)
		}
	}
	h = m.hostLocked(name)
	marked := h.mark(asked)
	if f := h.flight; f != nil {
		m.startLocked(f)
		return m.countedLocked(f), nil, nil
	}
	first := newFlight(h)
	first.client, first.owing, first.marked, first.verdict = true, owing, marked, v
	m.clients++
	m.requeueLocked(h)
	m.goLocked(func() { m.fly(first, hello) })
	return m.countedLocked(first), nil, nil
}

func (m *Manager) countedLocked(f *flight) *flight {
	f.waiters++
	m.waiters++
	return f
}

var (
	errWait = errors.New("the order takes longer than a client may wait; it goes on")
	errBusy = errors.New("too many clients wait for certificates")
)

// manage returns the flight that obtains a certificate for a host of the
// program's naming, nil if it has one and that is not to be replaced.
func (m *Manager) manage(name string, renew bool) (*flight, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, &HostError{Host: name, Err: http.ErrServerClosed}
	}
	h := m.hostLocked(name)
	was := h.managed
	h.managed = h.managed || !renew
	now := time.Now().Round(0)
	switch {
	case m.judgeLocked(name, h) == refused:
		h.managed = was
		m.tidyLocked(h)
		return nil, &HostError{Host: name, Err: ErrHostNotAllowed}
	case h.flight != nil:
	case !renew && (now.Before(h.expiry()) || m.own.Get(name) != nil):
		m.requeueLocked(h)
		return nil, nil
	case !renew && now.Before(h.retry(now)) && !m.lookLocked(h, now):
		m.requeueLocked(h)
		return nil, h.lastError()
	default:
		m.readyLocked(h, now)
	}
	h.flight.renew = h.flight.renew || renew
	if m.awaited == nil {
		m.awaited = make(map[*flight]int)
	}
	m.awaited[h.flight]++
	m.pokeLocked()
	return h.flight, nil
}

func (m *Manager) await(ctx context.Context, f *flight) error {
	_, err := f.wait(ctx, nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.queue != nil && ctx.Err() != nil {
		err = &HostError{Host: f.host.name, Err: fmt.Errorf("%w: waiting for a token of Limit, or for other orders to end: %w", ErrRateLimited, context.Cause(ctx))}
	}
	if m.awaited[f]--; m.awaited[f] <= 0 {
		delete(m.awaited, f)
	}
	return err
}

// goLocked runs f in a goroutine that Shutdown waits for, and reports whether
// it does: after Shutdown nothing starts.
func (m *Manager) goLocked(f func()) bool {
	if m.closed {
		return false
	}
	m.running.Go(f)
	return true
}

// pokeLocked has loop look at the queues again.
func (m *Manager) pokeLocked() {
	select {
	case m.poke <- struct{}{}: // never blocks; before begin it is nil
	default:
	}
}

// loop is the Manager's one goroutine that lives as long as the Manager does.
func (m *Manager) loop() {
	m.queueAll()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.poke:
		case <-timer.C:
		}
		timer.Reset(m.dispatch(time.Now().Round(0)))
	}
}

// dispatch does all that is due now, as far as the limits let it, and returns
// how long there will be nothing more to do.
func (m *Manager) dispatch(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := now.Add(lookEvery)
	if m.closed {
		return lookEvery
	}
	if m.owed {
		m.tellLocked(false)
		next = earliest(next, m.notified.Add(watchEvery))
	}
	m.housekeepLocked(now)
	room := true
	for room {
		item := m.due.Pop(now)
		if item == nil {
			break
		}
		room = m.dueLocked(item.Value, now)
	}
	for item := m.staples.Pop(now); item != nil; item = m.staples.Pop(now) {
		m.seeToStapleLocked(item.Value, now)
	}
	next = earliest(next, m.launchLocked(now))
	if item, at := m.due.Next(); item != nil && room { // else who leaves pokes
		next = earliest(next, at)
	}
	if item, at := m.staples.Next(); item != nil {
		next = earliest(next, at)
	}
	if m.dirty && m.writeAgain.After(now) {
		next = earliest(next, m.writeAgain)
	}
	next = earliest(next, m.own.Next())
	return max(0, next.Sub(now))
}

func earliest(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// housekeepLocked does what is done by the minute.
func (m *Manager) housekeepLocked(now time.Time) {
	expiry := m.own.Next()
	for _, name := range m.own.Expire(now) {
		m.reportLocked(Event{Kind: EventExpired, Host: name, NotAfter: expiry, Err: errors.New("the program's own certificate")})
	}
	if now.Before(m.looked.Add(-clockSlack)) {
		m.clockBackLocked(now, m.looked)
	}
	m.looked = now
	m.seeToRevocationsLocked(now)
	if now.Sub(m.leveled) >= levelEvery && m.buckets.Spent() {
		m.putLocked(m.levelRecordsLocked()...)
	}
	if m.dirty && !m.flushing && !now.Before(m.writeAgain) {
		m.flushing = m.goLocked(func() {
			m.flush() // reports its error
			m.mu.Lock()
			m.flushing = false
			m.mu.Unlock()
		})
	}
}

// clockBackLocked makes up for a clock that was ahead, at was, for a while:
// what was to be waited for by it is to be waited for as long by the right one.
func (m *Manager) clockBackLocked(now, was time.Time) {
	back := func(t time.Time) time.Time {
		if t.After(was) {
			return t.Add(now.Sub(was))
		}
		return t
	}
	m.refusals = nil
	m.leveled, m.warned, m.notified = time.Time{}, time.Time{}, time.Time{}
	m.buckets.Back()
	for url, p := range m.pauses {
		p.Noted, p.Until = now, back(p.Until)
		m.pauses[url] = p
	}
	for _, h := range m.hosts.All() {
		h.shut = 0
		if h.trouble != nil {
			h.trouble = h.trouble.with(func(t *trouble) {
				t.Retry = back(t.Retry)
				for ca, until := range t.Limits {
					put(&t.Limits, ca, back(until))
				}
			})
		}
		h.poll = min(h.poll, now.Add(rand.N(spreadPolls)).UnixNano())
		m.requeueLocked(h)
	}
}

// believe returns t, a time to wait for that was noted at the time noted, or zero
// if the clock was ahead then: when that is still to come, or t further off
// than anything we were ever told to wait for.
func believe(t, noted, now time.Time) time.Time {
	if noted.Sub(now) > clockSlack || t.Sub(now) > maxAhead {
		return time.Time{}
	}
	return t
}

// clockWrongLocked reports whether the clock stands before certificates that
// we hold were made. Nothing is ordered by such a clock.
func (m *Manager) clockWrongLocked(now time.Time) bool {
	wrong := now.Unix() < m.newest-int64(clockSlack/time.Second)
	if wrong && !m.wrong {
		m.reportLocked(Event{Kind: EventFailed, Err: clockError(now, m.newest)})
	}
	m.wrong = wrong
	return wrong
}

func clockError(now time.Time, newest int64) error {
	return fmt.Errorf("the clock says %s, but a certificate was made after that, on %s: nothing is ordered until the clock is right",
		now.UTC().Format(time.RFC3339), time.Unix(newest, 0).UTC().Format(time.RFC3339))
}

// dueLocked does what is due for one host, which is in no queue, and queues it
// for what comes next. It reports whether there is room for another.
func (m *Manager) dueLocked(h *host, now time.Time) (room bool) {
	alive := now.Before(h.expiry())
	if !alive && h.leaf.Swap(nil) != nil || !alive && h.held() && !h.dead {
		h.dead = true
		m.reportLocked(Event{Kind: EventExpired, Host: h.name, NotAfter: h.expiry(), Err: h.lastError()})
	}
	wanted := m.wantedLocked(h, now)
	switch {
	case h.flight != nil: // what is due then is seen to when it lands
	case !wanted && !alive && !h.listed && !h.managed && now.Sub(h.expiry()) > troubleAge && (h.trouble == nil || now.Sub(h.trouble.Retry) > troubleAge):
		m.dropLocked(h)
		return true
	case wanted && (!alive || now.UnixNano() >= h.renewal) && !now.Before(later(h.shut.time(), h.retry(now))):
		switch v := m.judgeLocked(h.name, h); {
		case m.Storage != nil && m.unwritten != nil:
			h.shut = at(later(now, m.writeAgain).Add(rand.N(writeFirst)))
		case m.questions < maxFlights || v != asking && m.Storage == nil:
			m.readyLocked(h, now)
			return true
		case v == asking:
			h.shut = at(now.Add(time.Second)) // there are questions enough
		default: // those to Storage are soon answered, and then it goes on here
			m.due.Set(&h.place, now)
			return false
		}
	case (wanted || m.Storage != nil && !h.evicted) && alive && !h.polling && now.UnixNano() >= h.poll:
		m.pollLocked(h, wanted)
	}
	m.requeueLocked(h)
	return true
}

// nextLocked returns when something is next due for a host, zero if nothing is.
func (m *Manager) nextLocked(h *host, now time.Time) time.Time {
	wanted, expiry, covered := m.wantedLocked(h, now), h.expiry(), m.coveredUntil(h.name)
	switch alive := now.Before(expiry); {
	case h.flight != nil && alive:
		return expiry // the rest is for when it lands
	case h.flight != nil:
		return time.Time{}
	case wanted && alive:
		next := earliest(expiry, later(time.Unix(0, h.renewal), later(h.shut.time(), h.retry(now))))
		if !h.polling {
			next = earliest(next, time.Unix(0, h.poll))
		}
		return next
	case wanted:
		return later(now, later(h.shut.time(), h.retry(now)))
	case now.Before(covered):
		return covered
	case alive && m.Storage != nil && !h.evicted && !h.polling: // it may be revoked elsewhere
		return earliest(expiry, time.Unix(0, h.poll))
	case alive:
		return expiry
	case h.listed:
		return time.Time{} // until somebody asks for it
	}
	return later(later(expiry, h.retry(now)), now).Add(troubleAge + time.Second)
}

// queueBegunLocked queues what was begun before the Manager started.
func (m *Manager) queueBegunLocked() {
	for name := range m.orders { // unfinished ones are finished
		if h := m.hostLocked(name); m.begunLocked(h) {
			h.mark(asked)
		}
	}
	m.offerAllLocked()
	for _, cert := range m.own.Certificates() {
		m.stapleOwnLocked(cert)
	}
}

// queueAll queues all hosts that there were when the Manager started. What the
// state has of each is old news: that is asked for, one by one. There may be a
// million, and clients wait for none of it.
func (m *Manager) queueAll() {
	apart := pollApart
	if m.Storage != nil {
		apart = catchUpApart // most need not ask the CA
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	spread, n := min(spreadPolls, time.Duration(m.hosts.Len())*apart), 0
	for name, h := range m.hosts.All() {
		if m.hosts.Get(name) != h {
			continue // it was forgotten while others had the lock
		}
		if h.poll == 0 {
			h.poll = time.Now().Add(rand.N(spread + 1)).UnixNano()
		}
		m.requeueLocked(h)
		if n++; n%putBatch == 0 {
			m.mu.Unlock()
			runtime.Gosched()
			m.mu.Lock()
		}
	}
}

// requeueLocked puts a host in the queue for what is next due for it.
func (m *Manager) requeueLocked(h *host) {
	if !m.started {
		return // queueAll does it, for all
	}
	now := time.Now().Round(0)
	next := m.nextLocked(h, now)
	if next.IsZero() {
		m.due.Remove(&h.place)
		return
	}
	m.due.Set(&h.place, later(next, now.Add(leastWait)))
	m.pokeLocked()
}

// readyLocked makes the flight for a host that is due. It waits for its token:
// renewals by when the old certificate dies, and behind all of them, in turn,
// those for hosts that have none.
func (m *Manager) readyLocked(h *host, now time.Time) {
	f := newFlight(h)
	f.verdict = m.judgeLocked(h.name, h)
	if f.verdict == asking || m.Storage != nil {
		m.questions++
		f.parked = make(chan struct{})
		m.goLocked(func() { m.askFirst(f) })
	} else {
		m.waitForTokenLocked(f, now)
	}
	m.requeueLocked(h) // for its certificate's expiry
}

func (m *Manager) waitForTokenLocked(f *flight, now time.Time) {
	if m.closed {
		m.landLocked(f, nil, &HostError{Host: f.host.name, Err: http.ErrServerClosed})
		return
	}
	if f.waiters > 0 { // clients that came while Allow was asked
		if _, ok := m.takeNowLocked(now, false); ok {
			m.startLocked(f)
			return
		}
	}
	if f.parked != nil {
		close(f.parked)
		f.parked = nil
	}
	if expiry := f.host.expiry(); now.Before(expiry) {
		f.queue = &m.renewals
		f.queue.Set(&f.place, expiry)
	} else {
		m.turn = later(now, m.turn.Add(time.Microsecond)) // as fine as queues are
		f.queue = &m.lacking
		f.queue.Set(&f.place, m.turn)
	}
	m.pokeLocked()
}

// askFirst asks Allow about a host that is due, and looks what other members of
// the fleet did for it, before it may have a token.
func (m *Manager) askFirst(f *flight) {
	var err error
	if f.verdict == asking {
		err = m.allow(m.ctx, f.host.name)
	}
	unread := m.pull(m.ctx, kindCert, f.host.name)
	if unread == nil && f.notAfter != 0 && m.overtaken(f) == nil {
		unread = m.pull(m.ctx, kindMoment, f.host.name) // the CA may want it replaced later
	}
	if errors.Is(unread, errAway) {
		err = unread
	} else if unread == nil {
		m.recovered()
	}
	cert := m.overtaken(f)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.questions--
	m.pokeLocked()
	now := time.Now().Round(0)
	h := f.host
	switch {
	case err == nil && cert != nil:
		m.landLocked(f, cert, nil)
		return
	case errors.Is(err, errAway):
		m.turnBackLocked(f, err, now)
		return
	case unread != nil && err == nil:
		m.turnBackLocked(f, unread, now)
		return
	case err == nil && !f.renew && now.Before(h.retry(now)): // Manage only had us look
		m.turnBackLocked(f, h.lastError(), now)
		return
	case err == nil, undecided(err) && now.Before(h.expiry()):
		m.waitForTokenLocked(f, now)
		return
	case undecided(err):
		m.failedLocked(h, &failure{HostError: HostError{Host: h.name, Err: err}}, now)
	default: // what Allow refuses is not wanted, until somebody asks again
		h.unmark(asked | used)
		h.managed = false
	}
	m.landLocked(f, nil, &HostError{Host: h.name, Err: err, Retry: h.retry(now)})
}

// launchLocked starts the flights that wait for a token, as long as there are
// tokens and CAs to go to, and returns when there will be again, zero if
// nothing waits for that.
func (m *Manager) launchLocked(now time.Time) time.Time {
	if until, err := m.openLocked(nil, nil, now); err != nil {
		for f := range m.awaited {
			if f.queue != nil { // who called Manage is to know
				m.landLocked(f, nil, &HostError{Host: f.host.name, Err: err, Retry: until})
			}
		}
		return until
	}
	if m.renewals.Len() == 0 {
		m.shortage, m.need = nil, 0
	}
	for _, q := range []*queue.Queue[*flight]{&m.renewals, &m.lacking} {
		for item, _ := q.Next(); item != nil; item, _ = q.Next() {
			if m.background-m.unseen >= maxFlights || m.unseen >= maxUnseen {
				return time.Time{} // a landing pokes, and so does a record that is seen
			}
			f := item.Value
			if !m.dueStillLocked(f, now) {
				m.landLocked(f, nil, &HostError{Host: f.host.name, Err: ErrHostNotAllowed})
				continue
			}
			if until, err := m.openLocked(f.host, f, now); err != nil {
				f.host.shut = at(until)
				m.landLocked(f, nil, &HostError{Host: f.host.name, Err: err, Retry: until})
				continue
			}
			if retry, ok := m.launchableLocked(f); !ok {
				m.warnLocked(now)
				return retry
			}
			for _, a := range m.authorities { // before the next is let go, that is
				if _, err := m.admitLocked(a, f.host, f, now); err == nil {
					m.claimLocked(a, f)
				}
			}
			m.startLocked(f)
		}
	}
	return time.Time{}
}

// launchableLocked takes the token of a flight that waited for it. In a fleet
// another member may be faster yet, and so it is taken later.
func (m *Manager) launchableLocked(f *flight) (retry time.Time, ok bool) {
	if m.Storage == nil {
		return m.takeLocked(time.Now(), false)
	}
	if retry, ok = m.buckets.Ready(time.Now(), m.pledges+1, bucketAll); ok {
		f.pledged = true
		m.pledges++
	}
	return retry, ok
}

// dueStillLocked reports whether a flight that waited for its token is still
// to be made: the list may have changed since, or another process that shares
// the state may have renewed the certificate.
func (m *Manager) dueStillLocked(f *flight, now time.Time) bool {
	h := f.host
	if m.awaited[f] > 0 {
		return m.judgeLocked(h.name, h) != refused
	}
	return m.wantedLocked(h, now) && (h.notAfter == f.notAfter || !now.Before(h.expiry()))
}

// overtaken returns the host's certificate if there is nothing left to do for
// the flight: another process has made it, or the CA wants it replaced later.
func (m *Manager) overtaken(f *flight) *tls.Certificate {
	m.mu.Lock()
	h, now := f.host, time.Now()
	over := !f.renew && now.Before(h.expiry()) && (f.client || h.notAfter != f.notAfter || now.UnixNano() < h.renewal)
	m.mu.Unlock()
	if !over {
		return nil
	}
	if leaf := f.host.leaf.Load(); leaf != nil {
		return leaf
	}
	return m.firstUse(f.host)
}

// warnEvery is how often the renewals that wait are held against Limit.
const warnEvery = 10 * time.Minute

// warnLocked says so if the renewals that wait can't all fit into Limit before
// the certificates die: when it first finds that, and when it has become twice
// as bad.
func (m *Manager) warnLocked(now time.Time) {
	if now.Sub(m.warned) < warnEvery {
		return
	}
	m.warned = now
	need := 0.0 // renewals a second
	for i, expiry := range m.renewals.Times() {
		need = max(need, float64(i+1)/max(1, expiry.Sub(now).Seconds()))
	}
	if need <= float64(m.buckets.Buckets[bucketAll].Limit()) {
		m.shortage, m.need = nil, 0
		return
	}
	m.shortage = fmt.Errorf("%w: %d of the renewals wait, and some certificates will die first: set Limit to one every %v or faster, within what the CA allows",
		ErrRateLimited, m.renewals.Len(), time.Duration(float64(time.Second)/need).Truncate(time.Millisecond))
	if need >= 2*m.need {
		m.need = need
		m.reportLocked(Event{Kind: EventLimit, Err: m.shortage})
	}
}

// startLocked starts a flight that has its token and waited for it in a queue.
func (m *Manager) startLocked(f *flight) {
	if f.queue != nil {
		f.queue.Remove(&f.place)
	}
	f.queue, f.background = nil, true
	m.background++
	m.goLocked(func() { m.fly(f, nil) })
}

// fly is a flight: it asks Allow, if it must, and the CAs.
func (m *Manager) fly(f *flight, hello *tls.ClientHelloInfo) {
	release, err := m.takeOff(f, hello)
	defer release()
	cert := m.overtaken(f)
	var failed *failure
	if err == nil && cert == nil {
		cert, failed = m.obtain(f)
		if failed != nil && m.pull(m.ctx, kindCert, f.host.name) == nil {
			cert = m.overtaken(f) // another member, that has the lock as well, did better
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case cert != nil:
		m.landLocked(f, cert, nil)
	case m.ctx.Err() != nil:
		m.landLocked(f, nil, &HostError{Host: f.host.name, Err: http.ErrServerClosed})
	case err != nil:
		m.turnBackLocked(f, err, time.Now().Round(0))
	case errors.Is(failed.Err, errAway) || errors.Is(failed.Err, errElsewhere):
		m.turnBackLocked(f, failed.Err, time.Now().Round(0))
	default:
		m.failedLocked(f.host, failed, time.Now().Round(0))
		m.landLocked(f, nil, &failed.HostError)
	}
}

// takeOff sees that a flight may order, and keeps the other members of the fleet
// from doing so till release. If it was overtaken it need not.
func (m *Manager) takeOff(f *flight, hello *tls.ClientHelloInfo) (release func(), err error) {
	release = func() {}
	if f.owing {
		if err := m.admitted(f, hello); err != nil || m.overtaken(f) != nil {
			return release, err
		}
		m.recovered()
		if err := m.hindrance(f); err != nil {
			return release, err
		}
	}
	if m.Storage != nil {
		release, err = m.alone(f)
		if err != nil || m.overtaken(f) != nil {
			return release, err
		}
		if err := m.hindrance(f); err != nil { // another member may have failed
			return release, err
		}
	}
	return release, m.pay(f)
}

// turnBackLocked ends a flight that asked no CA for anything. If Storage as a whole
// fails, or another member is at it, the host is not to blame, for a while; if it
// is for want of one thing in Storage, that is a failure like any other.
func (m *Manager) turnBackLocked(f *flight, err error, now time.Time) {
	h := f.host
	if errors.Is(err, ErrHostNotAllowed) || f.marked && !h.held() && h.trouble == nil {
		h.unmark(asked | used)
	}
	he, ok := errors.AsType[*HostError](err)
	if !ok {
		he = &HostError{Host: h.name, Err: err}
	}
	_, unread := errors.AsType[*storageError](err)
	elsewhere := errors.Is(err, errElsewhere)
	if elsewhere && h.turnedBack < maxTurns {
		h.turnedBack++
	}
	switch {
	case errors.Is(err, errAway), elsewhere && h.turnedBack < maxTurns:
		he.Retry = later(now.Add(writeFirst), m.writeAgain).Add(rand.N(writeFirst))
		h.shut = at(he.Retry)
	case elsewhere, unread && !ok:
		failed := &failure{HostError: *he, ours: !elsewhere}
		m.failedLocked(h, failed, now)
		he = &failed.HostError
	case errors.Is(err, ErrRateLimited):
		h.shut = at(he.Retry)
	}
	m.landLocked(f, nil, he)
}

// landLocked ends a flight, whether it ever started or not.
func (m *Manager) landLocked(f *flight, cert *tls.Certificate, err *HostError) {
	h := f.host
	if f.queue != nil {
		f.queue.Remove(&f.place)
		f.queue = nil
	}
	m.redeemLocked(f)
	if f.background {
		m.background--
	}
	if f.client {
		m.clients--
	}
	for _, a := range m.authorities {
		if a.prober == f {
			a.prober = nil
		}
	}
	delete(m.awaited, f)
	h.flight = nil
	if f.cert = cert; err != nil {
		f.err = err
	}
	close(f.done)
	m.requeueLocked(h)
	m.tidyLocked(h)
	m.pokeLocked()
}

// tidyLocked forgets a host that there is nothing to know of any more.
func (m *Manager) tidyLocked(h *host) {
	if h.held() || h.listed || h.managed || h.trouble != nil || h.flight != nil || m.begunLocked(h) {
		return
	}
	m.removeLocked(h)
}

// dropLocked forgets a host that nobody wants.
func (m *Manager) dropLocked(h *host) {
	m.hereLocked(func() { // what other members want is not for this one to say
		for _, kind := range hostKinds {
			m.forgetLocked(kind, h.name)
			delete(m.unstored, journal.Delete(kind, h.name).Key())
		}
	})
	delete(m.orders, h.name)
	delete(m.befores, h)
	if m.Storage != nil && m.polls < maxFlights && m.goLocked(func() { m.sweep(h.name) }) {
		m.polls++
	}
	m.removeLocked(h)
}

// removeLocked takes a host out of the table, unless another has its name.
func (m *Manager) removeLocked(h *host) {
	m.due.Remove(&h.place)
	if m.hosts.Get(h.name) == h {
		m.hosts.Delete(h.name)
	}
}

// hostKinds are the kinds of records by host.
var hostKinds = []string{kindCert, kindBackoff, kindMoment, kindOrder, kindStaple}

// sweep deletes what Storage has of a host whose certificate expired so long ago
// that no member wants it.
func (m *Manager) sweep(host string) {
	records, err := m.load(m.ctx, kindCert, host)
	if err == nil && len(records) > 0 {
		notAfter, _ := records[len(records)-1].Field(1)
		if time.Since(time.Unix(notAfter, 0)) > troubleAge {
			for _, kind := range hostKinds {
				m.client.Delete(m.ctx, shared.Key(kind, host)) // an error leaves it for another day
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.polls--
}

// pollLocked asks the CA that issued a host's certificate when to renew it, if
// that is wanted, and the other members of the fleet first.
func (m *Manager) pollLocked(h *host, wanted bool) {
	if m.polls >= maxPolls && (m.Storage == nil || m.polls >= maxFlights) { // most polls of a fleet ask no CA
		h.poll = time.Now().Add(time.Second + rand.N(time.Second)).UnixNano()
		return
	}
	notAfter := h.notAfter
	h.polling = m.goLocked(func() {
		next, err := m.catchUp(h)
		var info ca.RenewalInfo
		var issuer, id string
		if err == nil && wanted && !time.Now().Before(next) {
			info, issuer, id, err = m.renewalInfo(h.name)
			next = time.Now().Round(0).Add(info.Again)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.polls--
		h.polling = false
		if h.notAfter == notAfter { // else the answer is about a certificate of the past
			h.poll = m.nextPoll(next, wanted).UnixNano()
			if err == nil && id != "" {
				m.chooseLocked(h, issuer, id, info, next)
			}
		}
		m.requeueLocked(h)
	})
	if h.polling {
		m.polls++
	}
}

// renewalInfo asks for what RFC 9773 has for the certificate that is kept for
// a host. Where a CA offers nothing, our own schedule is all there is.
func (m *Manager) renewalInfo(name string) (info ca.RenewalInfo, issuer, id string, err error) {
	info.Again = levelAgain
	rec, cert, err := m.readCert(name)
	if err != nil {
		return info, "", "", err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return info, "", "", err
	}
	if id, err = certs.ID(leaf); err != nil {
		return info, "", "", err
	}
	if a := m.authority(rec.CA); a != nil {
		info, err = a.account.Reader().RenewalInfo(m.ctx, id)
		return info, rec.CA, id, err
	}
	return info, rec.CA, id, ca.ErrNoRenewalInfo
}

// nextPoll returns when to look again at a certificate about which the CA is next
// to be asked at the time next. In a fleet what other members did for the host
// is looked up more often, and one of them asks.
func (m *Manager) nextPoll(next time.Time, wanted bool) time.Time {
	if m.Storage == nil {
		return next
	}
	if !wanted {
		next = time.Now().Add(catchUpEvery)
	}
	return earliest(next, time.Now().Add(catchUpEvery)).Add(rand.N(fleetSpread))
}

// levelAgain is when a certificate that no CA can be asked about is looked at
// again.
const levelAgain = 24 * time.Hour

// chooseLocked chooses the moment of a host's renewal in the window that the
// CA suggests, or keeps the one that it chose in that window before.
func (m *Manager) chooseLocked(h *host, issuer, id string, info ca.RenewalInfo, next time.Time) {
	now := time.Now().Round(0)
	was := m.moment(h.name)
	if h.revoked {
		return // it is to be replaced whatever the CA suggests
	}
	if was.ID == id && was.Start.Equal(info.Start) && was.End.Equal(info.End) {
		h.renewal = was.Moment.UnixNano()
		if m.Storage != nil { // so that others need not ask till then
			was.Next = next
			m.putLocked(record(kindMoment, h.name, was))
		}
		return
	}
	start, end := certs.Clip(info.Start, info.End, time.Unix(h.notBefore, 0), h.expiry(), now)
	moment := certs.Moment(start, end, rand.Float64())
	if h.renewal > now.UnixNano() && info.End.Before(now) {
		m.reportLocked(Event{Kind: EventRecalled, Host: h.name, CA: issuer, NotAfter: h.expiry(), Err: errors.New(cmp.Or(info.Explanation, "the CA does not say why"))})
	}
	rec := momentRecord{ID: id, NotAfter: h.notAfter, Start: info.Start, End: info.End, Moment: moment}
	if m.Storage != nil {
		rec.Next = next
	}
	m.setLocked(record(kindMoment, h.name, rec))
	if h.renewal = moment.UnixNano(); moment.After(now) && !h.redone {
		h.early = 0
	}
	m.tooSoonLocked(h, now)
}

// tooSoonLocked keeps a certificate that is due for renewal as soon as it is
// there from being renewed in a loop: that is a failure, and backs off, ever
// longer until a certificate is not due at once.
func (m *Manager) tooSoonLocked(h *host, now time.Time) {
	if h.renewal > now.UnixNano() || h.since == 0 || time.Duration(int32(uint32(now.Unix())-h.since))*time.Second > freshFor {
		return
	}
	h.early++
	m.failedLocked(h, &failure{HostError: HostError{Host: h.name, Err: errTooSoon}}, now)
}

// freshFor is how long a certificate is new: until the CA has said when to
// renew it, or did not answer.
const freshFor = time.Minute

var errTooSoon = errors.New("the new certificate is due for renewal at once")
