// Package catest is a strict certificate authority for tests. It speaks ACME
// (RFC 8555) with tls-alpn-01 (RFC 8737), IP identifiers (RFC 8738), renewal
// information (RFC 9773), profiles and dns-persist-01 (drafts), in memory: no
// socket is opened, all time comes from time.Now, and so a whole year of
// certificates passes in a testing/synctest bubble in no time at all.
//
// A request that a conforming client must not send fails the test at once,
// and is answered with a problem document besides. What a client may
// legitimately run into (a refused nonce, a rate limit, an account that is
// gone) is a problem document and nothing more.
//
// The least that a test needs:
//
//	ca := catest.New(t)
//	ca.TLS = func(host string) *tls.Config { return config }
//	client := &acme.Client{DirectoryURL: ca.Directory(), HTTPClient: ca.Client(), ...}
//
// In a bubble, New is given the bubble's own testing.TB. Nothing of the CA
// outlives the test: it is enough that the test ends.
package catest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Config is what a test can set about a CA: directly before the first request,
// with [CA.Change] after it. Funcs are called from the goroutines of requests
// and validations, several at a time, and may use the CA. Maps and slices are
// replaced, not edited.
type Config struct {
	Host string // the host in the CA's URLs; "ca.test"

	// The world that is validated.

	TLS  func(host string) *tls.Config // who answers at host:443 (asked for each connection); nil, or a nil result: connection refused
	HTTP http.Handler                  // who answers at every host's port 80; nil: connection refused
	TXT  func(name string) []string    // the TXT records of a name without a final dot; nil: no such record

	// Certificates.

	Lifetime   time.Duration            // of a certificate ordered without a profile; 90 days
	Profiles   map[string]time.Duration // the lifetimes of the profiles in the directory; nil: the CA has none
	Backdate   time.Duration            // how long before its issuance a certificate begins (an hour at Let's Encrypt); 0
	OCSPServer string                   // the responder's URL in certificates; "": none
	Alternates bool                     // a second chain, to another root, is linked to as an alternate
	FreshKeys  bool                     // a key that had a certificate already fails the test
	Flaw       Flaw                     // what is wrong with the certificates handed out; "": nothing

	// Orders and authorizations.

	Challenges      []string                                    // the types offered where they fit; tls-alpn-01, http-01, dns-01
	Issuers         []string                                    // the issuer domain names of dns-persist-01; the Host
	ValidationTakes time.Duration                               // from a challenge's acceptance to its outcome; 0: at once, before the acceptance is answered
	Perspectives    int                                         // connections of one validation; 0: three, but one if ValidationTakes is 0
	LeavePending    bool                                        // a failed validation leaves its challenge pending, as some CAs do, not invalid
	FinalizeTakes   time.Duration                               // how long a finalized order is "processing"; 0: not at all
	RetryAfter      time.Duration                               // in replies about an order or authorization that is at work; 0: no such header
	OrderLifetime   time.Duration                               // 7 days
	AuthzLifetime   time.Duration                               // of a pending authorization; 7 days
	AuthzReuse      time.Duration                               // how long a valid authorization serves new orders too (30 days at Let's Encrypt); 0: never
	OrderReuse      bool                                        // a new order for names that have a pending or ready one is that one, as at Let's Encrypt
	RefuseOrder     func(names []string, profile string) *Error // asked before an order is made; nil, or a nil result: not refused
	RefuseReplaces  func(certID string) *Error                  // asked about each order's "replaces", likewise
	FailIssuance    func(names []string) *Error                 // asked when an order is processed; the order ends as invalid with the result
	Limits          *Limits                                     // nil: none; see [LetsEncryptLimits]

	// Accounts.

	Terms   string            // the URL of the terms of service; "": there are none to agree to
	EAB     map[string][]byte // MAC keys of external accounts by key id, one of which a new account must name; nil: not required
	EABOnce bool              // each is good for one account

	// Renewal information.

	ARI func(leaf *x509.Certificate) Window // nil: not offered; see [SuggestedWindow]. A revoked certificate's is over

	// Manners.

	NonceReject   func(n int) bool // whether the n-th signed request, from 1, has its good nonce refused; see [Every], [Percent]
	NonceLifetime time.Duration    // 0: for ever
	Latency       time.Duration    // how long a request is on its way
	Skew          time.Duration    // how far the CA's Date header is ahead of time.Now; certificates are not affected
	Impolite      bool             // a request earlier than a Retry-After allowed does not fail the test
}

// A CA is a certificate authority for one test, made by [New].
// Its methods may be called at any time from any goroutine.
//
// The endpoints' handlers run with mu held, and with them nearly all unexported
// methods that touch the state. Those that take mu themselves say so.
type CA struct {
	Config

	tb      testing.TB
	ctx     context.Context // ends with the test
	running sync.WaitGroup  // validations

	mu     sync.Mutex // guards the fields below and, once there are requests, Config; held for memory access and signing only
	faults faults
	log    []*Request
	count  map[string]int
	state
}

// state is what the CA knows of its clients, guarded by CA.mu.
type state struct {
	lastID      int
	lastNonce   int
	signed      int // signed requests seen, for NonceReject
	nonces      map[string]*nonce
	accountList []*account
	accounts    map[string]*account // by URL
	keys        map[string]*account // by thumbprint
	eabUsed     map[string]bool
	orders      []*order
	orderByID   map[string]*order
	authzs      map[string]*authz
	challenges  map[string]*challenge
	validated   []Validation
	certs       []*certificate
	certByID    map[string]*certificate // by serial number in hex
	certByARI   map[string]*certificate // by CertID
	hadSet      map[string]bool         // sets of names that had a certificate
	certKeys    map[string]bool         // public keys that had a certificate
	blocked     map[string]bool         // public keys that were revoked as compromised
	paused      map[string]bool         // names
	buckets     map[string]time.Time    // see Limits
	waits       map[string]time.Time    // a resource and the earliest time for its next request
	waitsSince  map[string]time.Time    // and when that was said
	hadARI      bool
}

// New returns a CA that works until the test ends.
func New(tb testing.TB) *CA {
	ctx, cancel := context.WithCancel(context.Background())
	ca := &CA{tb: tb, ctx: ctx, count: make(map[string]int), Config: Config{
		Host:          "ca.test",
		Lifetime:      90 * day,
		Challenges:    []string{"tls-alpn-01", "http-01", "dns-01"},
		OrderLifetime: 7 * day,
		AuthzLifetime: 7 * day,
	}}
	ca.state = state{
		nonces:     make(map[string]*nonce),
		accounts:   make(map[string]*account),
		keys:       make(map[string]*account),
		eabUsed:    make(map[string]bool),
		orderByID:  make(map[string]*order),
		authzs:     make(map[string]*authz),
		challenges: make(map[string]*challenge),
		certByID:   make(map[string]*certificate),
		certByARI:  make(map[string]*certificate),
		hadSet:     make(map[string]bool),
		certKeys:   make(map[string]bool),
		blocked:    make(map[string]bool),
		paused:     make(map[string]bool),
		buckets:    make(map[string]time.Time),
		waits:      make(map[string]time.Time),
		waitsSince: make(map[string]time.Time),
	}
	tb.Cleanup(func() {
		cancel()
		ca.running.Wait()
	})
	return ca
}

const day = 24 * time.Hour

// Change lets f change the configuration while requests are served.
// A request sees all of the change or nothing of it.
func (ca *CA) Change(f func(*Config)) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	f(&ca.Config)
}

// config returns the configuration that one request or validation goes by. It takes mu.
func (ca *CA) config() Config {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.Config
}

// Directory returns the URL of the CA's directory.
func (ca *CA) Directory() string {
	c := ca.config()
	return c.url("dir")
}

// url returns the URL of a resource.
func (c *Config) url(segments ...string) string {
	return "https://" + c.Host + "/" + strings.Join(segments, "/")
}

// ask calls one of the test's funcs, which may use the CA, and lets go of mu meanwhile.
func (ca *CA) ask(f func()) {
	ca.mu.Unlock()
	defer ca.mu.Lock()
	f()
}

// A Request is an entry of the CA's log.
type Request struct {
	Time     time.Time
	Endpoint string // see [CA.Count]
	URL      string
	Status   int // of the reply; 0 if there was none, or none yet
}

// Requests returns the requests that reached the CA so far, those answered by
// a fault included.
func (ca *CA) Requests() []Request {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return deref(ca.log)
}

// Count returns how many requests reached an endpoint, one of directory,
// newNonce, newAccount, newOrder, revokeCert, keyChange, renewalInfo, account,
// orders, order, authz, challenge, finalize and certificate; for "" it counts
// them all.
func (ca *CA) Count(endpoint string) int {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if endpoint == "" {
		return len(ca.log)
	}
	return ca.count[endpoint]
}

// Pause makes the CA refuse new orders for a name until Unpause, as Let's
// Encrypt does after many failures in a row: with a 429 whose text has the
// address of a portal, and without Retry-After.
func (ca *CA) Pause(name string) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.paused[name] = true
}

// Unpause ends a Pause.
func (ca *CA) Unpause(name string) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	delete(ca.paused, name)
}

// newID returns a new identifier for a resource.
func (ca *CA) newID() string {
	ca.lastID++
	return strconv.Itoa(ca.lastID)
}

func deref[T any](list []*T) []T {
	copies := make([]T, len(list))
	for i, p := range list {
		copies[i] = *p
	}
	return copies
}

func (ca *CA) directory(rq *request) (*reply, *Error) {
	c := &rq.cfg
	type meta struct {
		Terms    string            `json:"termsOfService,omitempty"`
		Website  string            `json:"website"`
		CAA      []string          `json:"caaIdentities"`
		EAB      bool              `json:"externalAccountRequired,omitempty"`
		Profiles map[string]string `json:"profiles,omitempty"`
	}
	dir := map[string]any{
		"newNonce":   c.url("nonce"),
		"newAccount": c.url("new-account"),
		"newOrder":   c.url("new-order"),
		"revokeCert": c.url("revoke"),
		"keyChange":  c.url("key-change"),
	}
	if c.ARI != nil {
		ca.hadARI = true
		dir["renewalInfo"] = c.url("renewal-info")
	}
	m := meta{Terms: c.Terms, Website: c.url(), CAA: []string{c.Host}, EAB: c.EAB != nil}
	for name := range c.Profiles {
		if m.Profiles == nil {
			m.Profiles = make(map[string]string)
		}
		m.Profiles[name] = c.url("docs", "profiles", name)
	}
	dir["meta"] = m
	return &reply{status: http.StatusOK, body: dir}, nil
}

func (ca *CA) newNonce(rq *request) (*reply, *Error) {
	header := http.Header{"Replay-Nonce": {ca.makeNonce()}, "Cache-Control": {"no-store"}}
	if rq.http.Method == http.MethodHead {
		return &reply{status: http.StatusOK, header: header}, nil
	}
	return &reply{status: http.StatusNoContent, header: header}, nil
}

// profileNames lists the profiles for a person.
func (c *Config) profileNames() string {
	var names []string
	for name := range c.Profiles {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
