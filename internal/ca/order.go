package ca

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"example.com/letsencrypt/internal/certs"
	"golang.org/x/crypto/acme"
)

// Between two looks at an order.
const (
	quietTime  = 30 * time.Millisecond // after a validation arrived; doubles
	pollFirst  = 1 * time.Second       // without such a sign; doubles
	pollMost   = 5 * time.Second
	pollSeen   = 1 * time.Second  // the most between looks once validations have arrived
	retryFirst = 1 * time.Second  // after a passing fault; doubles
	retryMost  = 10 * time.Second // a fault that asks for more ends the attempt
	retries    = 3                // passing faults survived in a row

	// How many arrivals count. Whoever knows the host can make a connection
	// that looks like a validation, and is not to set our pace for long.
	maxArrivals = 20
)

// A Job is what it takes to obtain one certificate.
type Job struct {
	Host       string        // a canonical name, wildcard or address
	Key        crypto.Signer // the certificate's
	OrderURL   string        // an order that was made before; "" for a new one
	Profile    string        // "" for the CA's choice
	Chain      string        // common name of the topmost issuer of the chain wanted; "" for the CA's choice
	Replaces   string        // certificate identifier of RFC 9773; "" if none is replaced
	MustStaple bool

	// Keep makes the order's URL durable. Nothing is asked of the CA for
	// the order before Keep returns nil.
	Keep func(orderURL string) error
	// Solve chooses one of the authorization's challenges and sets its answer
	// up. It may take its time, a record has to spread through the DNS perhaps:
	// that is none of the CA's. Whenever a validation arrives it sends on
	// arrived, without waiting.
	Solve func(ctx context.Context, a *Authorization, arrived chan<- struct{}) (*Answer, error)
	// Finalizing, if it is set, is asked before the order is finalized: with an
	// error it is not.
	Finalizing func(ctx context.Context) error
}

// An Authorization is the CA's demand for proof of control of one name.
type Authorization struct {
	Status     string
	Identifier acme.AuthzID
	Wildcard   bool
	Challenges []Challenge
}

// Pick returns the challenge to answer: of the types, the first that the CA
// offers. One that it was told to validate before we were restarted goes first.
func (a *Authorization) Pick(types []string) (*Challenge, error) {
	var offered []string
	for i, ch := range a.Challenges {
		if ch.Status == acme.StatusProcessing && slices.Contains(types, ch.Type) {
			return &a.Challenges[i], nil
		}
		offered = append(offered, ch.Type)
	}
	for _, typ := range types {
		if i := slices.Index(offered, typ); i >= 0 {
			return &a.Challenges[i], nil
		}
	}
	return nil, &Failure{Class: Policy, Step: "choosing a challenge", Err: fmt.Errorf(
		"the CA offers %s, and we can pass %s", strings.Join(offered, ", "), strings.Join(types, ", "))}
}

// A Challenge is one way to give that proof.
type Challenge struct {
	Type              string
	URL               string
	Token             string
	Status            string
	IssuerDomainNames []string `json:"issuer-domain-names"` // of dns-persist-01
	Error             json.RawMessage
}

// An Answer stands ready for the CA's validation.
type Answer struct {
	Challenge *Challenge // the one that was chosen
	Remove    func()     // takes the answer down

	accepted bool // the CA was told to validate it
}

// A Certificate is what a Job came to.
type Certificate struct {
	Chain     [][]byte // DER, the leaf first
	Leaf      *x509.Certificate
	Profile   string // what the order says it has
	Challenge string // the type that was passed; "" if the CA asked for none
}

type order struct {
	URL            string `json:"-"`
	Status         string
	Authorizations []string
	Finalize       string
	Certificate    string
	Profile        string
	Error          json.RawMessage
	retryAfter     time.Duration
}

// Obtain takes the order from wherever it stands to a certificate that has
// been checked against the key, the host and the clock. Any fault that passes
// is survived by asking the CA where the order stands. The error is a *Failure.
func (c *Client) Obtain(ctx context.Context, j Job) (*Certificate, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{Client: c, Job: j, pace: pollFirst, answers: make(map[string]*Answer), arrived: make(chan struct{}, 1)}
	r.clock.start(orderTimeout, func() { cancel(fmt.Errorf("the CA did not come to an end within %v", orderTimeout)) })
	defer r.clock.stop()
	defer r.removeAnswers()
	cert, err := r.obtain(ctx)
	if err == nil {
		return cert, nil
	}
	if ctx.Err() != nil {
		err = r.timedOut(context.WithoutCancel(ctx), context.Cause(ctx), err)
	}
	return nil, fail("obtaining the certificate", err)
}

// A run is one Obtain under way.
type run struct {
	*Client
	Job
	clock    clock // ends the run
	order    *order
	answers  map[string]*Answer // by the authorization's URL
	arrived  chan struct{}      // receives when a validation arrives
	seen     bool               // one has
	arrivals int                // how many have, up to maxArrivals
	pace     time.Duration      // until the next look at the order
	faults   int                // passing ones, since the order last moved
}

func (r *run) obtain(ctx context.Context) (*Certificate, error) {
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	for {
		var err error
		switch r.order.Status {
		case acme.StatusPending:
			err = r.authorize(ctx)
		case acme.StatusReady:
			err = r.finalize(ctx)
		case acme.StatusProcessing:
			err = r.look(ctx)
		case acme.StatusValid:
			var cert *Certificate
			if cert, err = r.download(ctx); err == nil {
				return cert, nil
			}
		case acme.StatusInvalid:
			return nil, r.refused(ctx)
		default:
			return nil, &Failure{Class: Fault, Step: "reading the order", Err: fmt.Errorf("unknown status %q", r.order.Status)}
		}
		if err != nil {
			if err = r.survive(ctx, err); err != nil {
				return nil, err
			}
		}
	}
}

// survive waits after a fault that may pass and reads the order again, since
// the CA may have acted on what it did not answer. It returns the fault if
// that is not one to wait for.
func (r *run) survive(ctx context.Context, err error) error {
	for err != nil {
		if err := r.pause(ctx, err); err != nil {
			return err
		}
		err = r.read(ctx)
	}
	return nil
}

// pause sleeps off a fault that may pass, or returns it.
func (r *run) pause(ctx context.Context, err error) error {
	f := fail("talking to the CA", err).(*Failure)
	wait := max(f.Retry, retryFirst<<r.faults)
	passing := f.Passing() && !f.unusable() || problemIs(err, "orderNotReady")
	if r.faults++; !passing || r.faults > retries || wait > retryMost {
		return err
	}
	return sleep(ctx, wait)
}

// open takes the order up where there is one that the CA still knows, and
// makes one otherwise.
func (r *run) open(ctx context.Context) error {
	if r.OrderURL != "" {
		if ok, err := r.resume(ctx); ok || err != nil {
			return err
		}
	}
	if err := r.checkProfile(ctx, r.Profile); err != nil {
		return err
	}
	if err := r.checkClock(ctx); err != nil {
		return err
	}
	err := r.make(ctx)
	if f, ok := errors.AsType[*Failure](err); ok && (f.Class == Network || f.Retry > 0) {
		// An idle connection that the CA closed is the usual reason, or a CA
		// that is busy and says for how long.
		if err = r.pause(ctx, err); err == nil {
			err = r.make(ctx)
		}
	}
	if err != nil {
		return err
	}
	if err := r.Keep(r.order.URL); err != nil {
		return &Failure{Class: Ours, Step: "keeping the order", Err: err}
	}
	return nil
}

// resume reads an order that was made before, and reports whether it is of use.
func (r *run) resume(ctx context.Context) (bool, error) {
	r.order = &order{URL: r.OrderURL}
	err := r.read(ctx)
	for err != nil {
		if gone(err) {
			return false, nil
		}
		if err := r.pause(ctx, err); err != nil {
			return false, err
		}
		err = r.read(ctx)
	}
	return r.order.Status != acme.StatusInvalid, nil
}

// gone reports whether err says that an order is no longer there, or is
// another account's.
func gone(err error) bool {
	e, ok := errors.AsType[*acme.Error](err)
	return ok && (e.StatusCode == http.StatusNotFound || e.StatusCode/100 == 4 && classOf(e) == Policy)
}

// make makes a new order. If the CA does not want it as the replacement of a
// certificate, for whatever reason, it is made again as an order like any
// other: what counts is the certificate.
func (r *run) make(ctx context.Context) error {
	d, err := r.Directory(ctx)
	if err != nil {
		return err
	}
	if d.RenewalInfo == "" {
		r.Replaces = "" // the member is RFC 9773's, as the resource is
	}
	err = r.newOrder(ctx, d, r.Replaces)
	if r.Replaces != "" && unwanted(err) {
		err = r.newOrder(ctx, d, "")
	}
	if e, ok := errors.AsType[*acme.Error](err); ok && (e.StatusCode == http.StatusNotFound || problemIs(err, "invalidProfile")) {
		r.forget()
	}
	return err
}

// unwanted reports whether err may be about an order's "replaces". A limit is
// not, and neither is a 502 or 503, nor what is wrong with our account: nobody
// has read the order yet.
func unwanted(err error) bool {
	e, ok := errors.AsType[*acme.Error](err)
	if !ok || e.StatusCode == http.StatusTooManyRequests || e.StatusCode > http.StatusInternalServerError {
		return false
	}
	switch classOf(e) {
	case Limited, NoAccount, Terms:
		return false
	}
	return true
}

func (r *run) newOrder(ctx context.Context, d *Directory, replaces string) error {
	type identifier struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	}
	id := identifier{"dns", r.Host}
	if _, err := netip.ParseAddr(r.Host); err == nil {
		id.Type = "ip"
	}
	ex, err := r.post(ctx, d.NewOrder, struct {
		Identifiers []identifier `json:"identifiers"`
		Profile     string       `json:"profile,omitempty"`
		Replaces    string       `json:"replaces,omitempty"`
	}{[]identifier{id}, r.Profile, replaces})
	if err != nil {
		return fail("making the order", err)
	}
	r.order = &order{URL: ex.header.Get("Location")}
	if r.order.URL == "" {
		return &Failure{Class: Fault, Step: "making the order", Err: errors.New("the CA named no URL for the order")}
	}
	return r.note(ex, "making the order")
}

// note takes the order's state from the reply.
func (r *run) note(ex *exchange, step string) error {
	o := &order{URL: r.order.URL, retryAfter: retryAfter(ex.header)}
	if err := json.Unmarshal(ex.body, o); err != nil {
		return &Failure{Class: Fault, Step: step, Err: fmt.Errorf("the reply is no order: %w", err)}
	}
	if o.Status != r.order.Status {
		r.faults = 0
	}
	r.order = o
	return nil
}

// read asks the CA where the order stands.
func (r *run) read(ctx context.Context) error {
	ex, err := r.post(ctx, r.order.URL, nil)
	if err != nil {
		return fail("reading the order", err)
	}
	return r.note(ex, "reading the order")
}

// authorize accepts a challenge of each authorization, once, and looks at the
// order when the CA may have come to a decision.
func (r *run) authorize(ctx context.Context) error {
	for _, url := range r.order.Authorizations {
		if ans := r.answers[url]; ans != nil && ans.accepted {
			continue
		}
		if err := r.accept(ctx, url); err != nil {
			return err
		}
	}
	return r.look(ctx)
}

// accept sets up the answer for one authorization and has the CA validate it.
func (r *run) accept(ctx context.Context, url string) error {
	a, err := r.authorization(ctx, url)
	if err != nil || a.Status != acme.StatusPending {
		return err
	}
	ans := r.answers[url]
	if ans == nil {
		if !r.clock.stop() {
			<-ctx.Done() // any moment now
			return context.Cause(ctx)
		}
		ans, err = r.Solve(ctx, a, r.arrived)
		r.clock.resume()
		if err != nil {
			return failOurs("setting up the answer", err)
		}
		r.answers[url] = ans
	}
	if a.knows(ans.Challenge) {
		ans.accepted = true
		return nil
	}
	_, err = r.post(ctx, ans.Challenge.URL, struct{}{})
	if problemIs(err, "malformed") { // another process has the same order, and was faster
		if a, again := r.authorization(ctx, url); again == nil && a.knows(ans.Challenge) {
			err = nil
		}
	}
	if err != nil {
		return fail("accepting the "+ans.Challenge.Type+" challenge", err)
	}
	ans.accepted = true
	return nil
}

// knows reports whether the CA has been told to validate the challenge: we were
// restarted, or its reply was lost.
func (a *Authorization) knows(ch *Challenge) bool {
	return slices.ContainsFunc(a.Challenges, func(c Challenge) bool { return c.URL == ch.URL && c.Status != acme.StatusPending })
}

// A clock calls a function when it has run for as long as it was set to.
type clock struct {
	timer *time.Timer
	left  time.Duration
	since time.Time
}

func (c *clock) start(d time.Duration, f func()) {
	c.timer, c.left, c.since = time.AfterFunc(d, f), d, time.Now()
}

// stop stops the clock, and reports whether it was running.
func (c *clock) stop() bool {
	c.left -= time.Since(c.since)
	return c.timer.Stop()
}

func (c *clock) resume() {
	c.since = time.Now()
	c.timer.Reset(max(c.left, 0))
}

// isToken reports whether s may be the token of a challenge (RFC 8555, section
// 8.1). It ends up in paths and file names, so nothing but base64url gets past
// here.
func isToken(s string) bool {
	const base64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return 0 < len(s) && len(s) <= 256 && strings.Trim(s, base64URL) == ""
}

func (r *run) authorization(ctx context.Context, url string) (*Authorization, error) {
	const step = "reading the authorization"
	ex, err := r.post(ctx, url, nil)
	if err != nil {
		return nil, fail(step, err)
	}
	a := new(Authorization)
	if err := json.Unmarshal(ex.body, a); err != nil {
		return nil, &Failure{Class: Fault, Step: step, Err: fmt.Errorf("the reply is no authorization: %w", err)}
	}
	for i := range a.Challenges {
		ch := &a.Challenges[i]
		ch.Status = cmp.Or(ch.Status, acme.StatusPending)
		if ch.Token != "" && !isToken(ch.Token) {
			return nil, &Failure{Class: Fault, Step: step, Err: fmt.Errorf("the %s challenge's token is not base64url", ch.Type)}
		}
	}
	return a, nil
}

func (r *run) removeAnswers() {
	for _, ans := range r.answers {
		ans.Remove()
	}
}

// look waits until it is worth asking and asks where the order stands.
//
// The CA's validations are seen to arrive. It decides soon after the last, so
// the order is asked a short quiet time after each, and then ever more seldom.
// Where nothing is seen to arrive (dns-01, another member of a fleet), and
// after finalize, it is asked at a steady pace. A Retry-After is honoured.
func (r *run) look(ctx context.Context) error {
	most := cmp.Or(r.order.retryAfter, pollSeen)
	wait := max(r.pace, r.order.retryAfter)
	if r.order.Status == acme.StatusProcessing && r.order.retryAfter == 0 {
		wait = min(wait, pollSeen)
	}
	earliest := time.Now().Add(r.order.retryAfter)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for waiting := true; waiting; {
		arrived := r.arrived
		if r.arrivals == maxArrivals {
			arrived = nil
		}
		select {
		case <-arrived:
			r.arrivals++
			r.seen, r.pace = true, quietTime
			timer.Reset(max(quietTime, time.Until(earliest)))
		case <-timer.C:
			waiting = false
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if r.seen {
		r.pace = min(2*r.pace, most)
	} else {
		r.pace = min(2*r.pace, pollMost)
	}
	return r.read(ctx)
}

// finalize sends the CSR.
func (r *run) finalize(ctx context.Context) error {
	if r.Finalizing != nil {
		if err := r.Finalizing(ctx); err != nil {
			return &Failure{Class: Ours, Step: "finalizing the order", Err: err}
		}
	}
	csr, err := newCSR(r.Host, r.Key, r.MustStaple)
	if err != nil {
		return &Failure{Class: Ours, Step: "making the certificate request", Err: err}
	}
	ex, err := r.post(ctx, r.order.Finalize, struct {
		CSR string `json:"csr"`
	}{base64.RawURLEncoding.EncodeToString(csr)})
	if err != nil {
		err = fail("finalizing the order", err)
		if f := err.(*Failure); r.MustStaple && f.Class == Policy {
			f.Err = fmt.Errorf("%w; the request was for a must-staple certificate (RFC 7633), which many CAs do not issue", f.Err)
		}
		return err
	}
	r.seen, r.pace = true, quietTime // issuance takes a CA a moment, like a validation seen
	if err := r.note(ex, "finalizing the order"); err != nil {
		return err
	}
	if r.order.Status == acme.StatusReady {
		return &Failure{Class: Fault, Step: "finalizing the order", Err: errors.New("the CA agreed and left the order as it was")}
	}
	return nil
}

// mustStaple is the TLS feature extension with status_request (RFC 7633).
var mustStaple = pkix.Extension{
	Id:    asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24},
	Value: []byte{0x30, 0x03, 0x02, 0x01, 0x05},
}

func newCSR(host string, key crypto.Signer, staple bool) ([]byte, error) {
	t := new(x509.CertificateRequest)
	if ip, err := netip.ParseAddr(host); err == nil {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	} else {
		t.DNSNames = []string{host}
	}
	if staple {
		t.ExtraExtensions = []pkix.Extension{mustStaple}
	}
	return x509.CreateCertificateRequest(rand.Reader, t, key)
}

// download fetches the certificate, with the chain that was asked for if the
// CA has it, and checks it. A chain that can't be had costs no certificate.
func (r *run) download(ctx context.Context) (*Certificate, error) {
	chain, alternates, err := r.fetch(ctx, r.order.Certificate)
	if err != nil {
		return nil, err
	}
	for _, url := range alternates {
		if r.Chain == "" || certs.TopIssuer(chain) == r.Chain {
			break
		}
		alt, _, err := r.fetch(ctx, url)
		if f, ok := errors.AsType[*Failure](err); ok && f.Passing() && r.faults < retries {
			return nil, err
		}
		if err == nil && certs.TopIssuer(alt) == r.Chain {
			chain = alt
		}
	}
	leaf, err := certs.Check(chain, r.Key.Public(), r.Host, time.Now())
	if err != nil {
		return nil, &Failure{Class: Fault, Step: "checking the certificate", Err: &badCertificate{err}}
	}
	cert := &Certificate{Chain: chain, Leaf: leaf, Profile: cmp.Or(r.order.Profile, r.Profile)}
	for _, ans := range r.answers {
		cert.Challenge = ans.Challenge.Type
	}
	return cert, nil
}

func (r *run) fetch(ctx context.Context, url string) (chain [][]byte, alternates []string, err error) {
	const step = "downloading the certificate"
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ex := &exchange{method: http.MethodPost}
	chain, err = r.acme().FetchCert(context.WithValue(ctx, exchangeKey{}, ex), url, true)
	switch {
	case err == nil:
		return chain, links(ex.header, "alternate"), nil
	case ex.status/100 == 2: // the reply was no chain
		return nil, nil, &Failure{Class: Fault, Step: step, Err: err}
	}
	return nil, nil, fail(step, err)
}

// links returns the URLs that the reply's Link headers name for a relation
// (RFC 8288).
func links(h http.Header, rel string) []string {
	var urls []string
	for _, v := range h.Values("Link") {
		_, v, _ = strings.Cut(v, "<")
		for l := range strings.SplitSeq(v, "<") { // a comma may be part of a URL
			url, params, ok := strings.Cut(l, ">")
			params = strings.ReplaceAll(strings.TrimRight(params, ", "), `"`, "") + ";"
			if ok && strings.Contains(params, "rel="+rel+";") {
				urls = append(urls, url)
			}
		}
	}
	return urls
}

// refused returns why the CA made the order invalid: the errors of its
// challenges, else its own.
func (r *run) refused(ctx context.Context) error {
	for _, url := range r.order.Authorizations {
		a, err := r.authorization(ctx, url)
		if err != nil {
			continue // the order's own error will do
		}
		if err := r.challengeError(a); err != nil {
			return err
		}
	}
	err := error(&acme.OrderError{OrderURL: r.order.URL, Status: r.order.Status, Problem: parseProblem(r.order.Error)})
	if p := parseProblem(r.order.Error); p != nil {
		return &Failure{Class: classOf(p), Step: "validating", Err: fmt.Errorf("%w: %w", err, p)}
	}
	return &Failure{Class: Validation, Step: "validating", Err: err}
}

// challengeError returns the errors that the authorization's challenges carry.
func (r *run) challengeError(a *Authorization) error {
	var errs []error
	for _, ch := range a.Challenges {
		if p := parseProblem(ch.Error); p != nil {
			errs = append(errs, &ValidationError{Challenge: ch.Type, Arrived: r.seen, Err: p})
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return &Failure{Class: Validation, Step: "validating", Err: errors.Join(errs...)}
}

func parseProblem(raw json.RawMessage) *acme.Error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	e := (&exchange{body: raw}).problem()
	var p struct{ Status int }
	if json.Unmarshal(raw, &p) == nil {
		e.StatusCode = p.Status
	}
	return e
}

// timedOut returns what to make of an attempt that our own clock or our caller
// ended. A challenge that some CAs leave pending after they failed to validate
// it carries its error all the same.
func (r *run) timedOut(ctx context.Context, cause, err error) error {
	const step = "obtaining the certificate"
	if errors.Is(cause, context.Canceled) {
		return &Failure{Class: Ours, Step: step, Err: cause}
	}
	if r.order == nil || r.order.Status != acme.StatusPending || len(r.answers) == 0 {
		if f, ok := errors.AsType[*Failure](err); ok && f.Class != Network {
			return f
		}
		if !errors.Is(err, cause) {
			cause = fmt.Errorf("%w: %w", cause, err)
		}
		return &Failure{Class: Network, Step: step, Err: cause}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var errs []error
	for _, url := range r.order.Authorizations {
		a, err := r.authorization(ctx, url)
		if err != nil { // the CA is away: nobody can say that the host is at fault
			return &Failure{Class: Network, Step: step, Err: fmt.Errorf("%w: %w", cause, err)}
		}
		errs = append(errs, r.challengeError(a))
	}
	if err := errors.Join(errs...); err != nil {
		return &Failure{Class: Validation, Step: "validating", Err: err}
	}
	var types []string
	for _, ans := range r.answers {
		types = append(types, ans.Challenge.Type)
	}
	return &Failure{Class: Validation, Step: "validating", Err: &ValidationError{
		Challenge: strings.Join(types, ", "), Arrived: r.seen, Err: cause}}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
