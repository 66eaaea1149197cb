package catest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Client returns a client that reaches this CA and nothing else. A request is
// served in the goroutine that makes it, and ends when its context does.
func (ca *CA) Client() *http.Client {
	return &http.Client{Transport: transport{ca}}
}

type transport struct{ ca *CA }

// An endpoint is a kind of resource.
type endpoint struct {
	name  string
	auth  auth
	serve func(*CA, *request) (*reply, *Error)
}

// auth says how a request to an endpoint is made and signed (RFC 8555 section 6.2).
type auth int

const (
	unsigned         auth = iota // GET or HEAD, by anybody
	withKey                      // the public key is in the request
	withAccount                  // the account's URL is
	withKeyOrAccount             // either
)

// endpoints are the kinds of resources by the first segment of their path;
// the second names the resource.
var endpoints = map[string]endpoint{
	"dir":          {"directory", unsigned, (*CA).directory},
	"nonce":        {"newNonce", unsigned, (*CA).newNonce},
	"new-account":  {"newAccount", withKey, (*CA).newAccount},
	"new-order":    {"newOrder", withAccount, (*CA).newOrder},
	"revoke":       {"revokeCert", withKeyOrAccount, (*CA).revoke},
	"key-change":   {"keyChange", withAccount, (*CA).keyChange},
	"renewal-info": {"renewalInfo", unsigned, (*CA).renewalInfo},
	"account":      {"account", withAccount, (*CA).account},
	"orders":       {"orders", withAccount, (*CA).orderList},
	"order":        {"order", withAccount, (*CA).order},
	"authz":        {"authz", withAccount, (*CA).authz},
	"challenge":    {"challenge", withAccount, (*CA).challenge},
	"finalize":     {"finalize", withAccount, (*CA).finalize},
	"cert":         {"certificate", withAccount, (*CA).certificate},
}

// A request is what a handler is given.
type request struct {
	cfg      Config
	http     *http.Request
	endpoint endpoint
	url      string
	id       string // which resource, the path after the endpoint's segment
	body     []byte
	sent     time.Time // by the client
	now      time.Time // when the CA has it

	// Of a signed request, see verify.
	key     publicKey
	account *account // nil if it was signed with a key of no account
	payload []byte   // empty for a POST-as-GET

	after      func()   // called without mu before the reply is returned, if set; see finish
	violations []string // why the test fails
}

// violate notes that a conforming client would not have sent this request.
func (rq *request) violate(status int, typ, format string, args ...any) *Error {
	e := &Error{Status: status, Type: typ, Detail: fmt.Sprintf(format, args...)}
	rq.violations = append(rq.violations, e.Detail)
	return e
}

// A reply is what a handler answers.
type reply struct {
	status int
	header http.Header
	body   any // sent as it is if it is a []byte, nothing if nil, else as JSON
}

// RoundTrip implements [http.RoundTripper].
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ca := t.ca
	rq, err := ca.receive(r)
	if err != nil {
		return nil, err
	}
	entry, fault := ca.enter(rq)
	if fault == nil {
		fault = genuine
	}
	defer ca.report(rq)
	res, err := fault(r, func() *http.Response { return ca.answer(rq) })
	if err == nil {
		err = context.Cause(r.Context())
	}
	if err != nil {
		return nil, err
	}
	ca.leave(rq, entry, res)
	return res, nil
}

// receive reads a request as it comes in.
func (ca *CA) receive(r *http.Request) (*request, error) {
	rq := &request{cfg: ca.config(), http: r, url: r.URL.String(), sent: time.Now()}
	if r.Body != nil {
		defer r.Body.Close()
		var err error
		if rq.body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	if ca.ctx.Err() != nil {
		return nil, errors.New("catest: request after the end of the test")
	}
	if err := sleep(r.Context(), rq.cfg.Latency); err != nil {
		return nil, err
	}
	rq.now = time.Now()
	first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	rq.endpoint, rq.id = endpoints[first], rest
	if r.URL.Scheme != "https" || r.URL.Host != rq.cfg.Host || r.URL.RawQuery != "" {
		rq.endpoint = endpoint{}
	}
	return rq, nil
}

// sleep waits for d, or for the end of ctx and returns its cause.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 || ctx.Err() != nil {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// enter logs a request and returns the fault that befalls it, if any. It takes mu.
func (ca *CA) enter(rq *request) (*Request, Response) {
	ca.mu.Lock()
	entry := &Request{Time: rq.now, Endpoint: rq.endpoint.name, URL: rq.url}
	ca.log = append(ca.log, entry)
	ca.count[rq.endpoint.name]++
	if !rq.cfg.Impolite {
		ca.checkPolite(rq)
	}
	script, n := ca.faults.next(rq.endpoint.name)
	ca.mu.Unlock()
	if script == nil {
		return entry, nil
	}
	return entry, script(rq.endpoint.name, n, rq.http)
}

// leave completes a reply and notes what the client was told by it. It takes mu.
func (ca *CA) leave(rq *request, entry *Request, res *http.Response) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if res.Header.Get("Date") == "" {
		res.Header.Set("Date", time.Now().Add(rq.cfg.Skew).UTC().Format(http.TimeFormat))
	}
	isProblem := res.Header.Get("Content-Type") == "application/problem+json"
	if isProblem && rq.http.Method == http.MethodPost && res.Header.Get("Replay-Nonce") == "" {
		res.Header.Set("Replay-Nonce", ca.makeNonce())
	}
	entry.Status = res.StatusCode
	ca.noteRetryAfter(rq, res)
}

// report fails the test if the request was one that it should not have been.
func (ca *CA) report(rq *request) {
	for _, v := range rq.violations {
		ca.tb.Errorf("catest: %s %s: %s", rq.http.Method, rq.url, v)
	}
}

// answer is what the CA does with a request when no fault interferes. It takes mu.
func (ca *CA) answer(rq *request) *http.Response {
	rq.now = time.Now() // a fault may have kept the request waiting
	rep, problem := ca.handle(rq)
	if rq.after != nil {
		ca.finish(rq)
	}
	if problem != nil {
		return problem.response(rq.http)
	}
	if rep.header == nil {
		rep.header = make(http.Header)
	}
	body, ok := rep.body.([]byte)
	if !ok && rep.body != nil {
		rep.header.Set("Content-Type", "application/json")
		body = mustJSON(rep.body)
	}
	if rq.endpoint.name != "directory" {
		rep.header.Add("Link", "<"+rq.cfg.url("dir")+`>;rel="index"`)
	}
	if rq.http.Method == http.MethodPost {
		ca.mu.Lock()
		rep.header.Set("Replay-Nonce", ca.makeNonce())
		ca.mu.Unlock()
	}
	return newResponse(rq.http, rep.status, rep.header, body)
}

// finish does what is left to do after a request, and waits for it as long as
// the client does.
func (ca *CA) finish(rq *request) {
	done := make(chan struct{})
	ca.running.Go(func() {
		defer close(done)
		rq.after()
	})
	select {
	case <-done:
	case <-rq.http.Context().Done():
	}
}

// handle checks a request and has it handled. It takes mu.
func (ca *CA) handle(rq *request) (*reply, *Error) {
	if rq.http.Header.Get("User-Agent") == "" {
		return nil, rq.violate(http.StatusBadRequest, "malformed", "no User-Agent (RFC 8555 section 6.1)")
	}
	if rq.endpoint.serve == nil {
		return nil, rq.violate(http.StatusNotFound, "malformed", "the CA never gave out this URL")
	}
	if problem := ca.verify(rq); problem != nil {
		return nil, problem
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return rq.endpoint.serve(ca, rq)
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("catest: internal error: " + err.Error())
	}
	return b
}

func newResponse(r *http.Request, status int, header http.Header, body []byte) *http.Response {
	res := &http.Response{
		Status:        strconv.Itoa(status) + " " + http.StatusText(status),
		StatusCode:    status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        header,
		ContentLength: int64(len(body)),
		Body:          http.NoBody,
		Request:       r,
	}
	if len(body) > 0 && r.Method != http.MethodHead {
		res.Body = io.NopCloser(bytes.NewReader(body))
	}
	return res
}

// checkPolite notes a violation if the client had been told to come later.
//
// Several requests for what many orders share, newOrder say, may leave at the
// moment when the first of them is told so. Those are forgiven.
func (ca *CA) checkPolite(rq *request) {
	for _, resource := range rq.resources() {
		until, since := ca.waits[resource], ca.waitsSince[resource]
		shared := resource == rq.url && !rq.endpoint.single()
		untold := rq.sent.Before(since) || shared && rq.sent.Equal(since)
		if rq.sent.Before(until) && !untold {
			rq.violate(0, "", "this request was due in %v, says the Retry-After of %v ago", until.Sub(rq.sent), rq.sent.Sub(since))
			return
		}
	}
}

// noteRetryAfter keeps a reply's Retry-After for checkPolite.
func (ca *CA) noteRetryAfter(rq *request, res *http.Response) {
	resources := rq.resources()
	limited := res.StatusCode == http.StatusTooManyRequests && res.Header.Get("Content-Type") == "application/problem+json"
	if limited && rq.endpoint.name == "newOrder" {
		resources = resources[1:] // the limit is these names', not everybody's
	}
	if location := res.Header.Get("Location"); location != "" {
		resources = []string{location}
	}
	now := time.Now()
	until := now
	value := res.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil {
		until = now.Add(time.Duration(seconds) * time.Second)
	} else if t, err := http.ParseTime(value); err == nil {
		until = t.Add(-rq.cfg.Skew)
	}
	for _, resource := range resources {
		if until.After(now) {
			ca.waits[resource], ca.waitsSince[resource] = until, now
		} else if !now.Before(ca.waits[resource]) {
			delete(ca.waits, resource)
			delete(ca.waitsSince, resource)
		}
	}
}

// single reports whether the endpoint's URLs name one resource each.
func (e endpoint) single() bool {
	switch e.name {
	case "directory", "newNonce", "newAccount", "newOrder", "revokeCert", "keyChange":
		return false
	}
	return true
}

// resources returns what a Retry-After in the reply to this request is about:
// its URL and, for a new order, the names in particular.
func (rq *request) resources() []string {
	if rq.endpoint.name != "newOrder" {
		return []string{rq.url}
	}
	names := peekNames(rq.body)
	slices.Sort(names)
	return []string{rq.url, rq.url + " " + strings.Join(names, " ")}
}
