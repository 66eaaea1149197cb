package ca

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
)

// A transport stands between x/crypto and the network. It refuses what is not
// HTTPS, bounds what is read, answers for the directory and for nonces from
// what the Client knows, and notes each reply in the request's exchange.
type transport struct {
	c    *Client
	base http.RoundTripper
}

// An exchange is the last reply from the CA to one call. Of the several
// requests that a call may make of x/crypto (for the directory, for a nonce)
// those with the call's own method count.
type exchange struct {
	method string
	status int // 0 if there was no reply
	header http.Header
	body   []byte
}

type exchangeKey struct{}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ex, ok := req.Context().Value(exchangeKey{}).(*exchange)
	if !ok || req.Method != ex.method {
		ex = new(exchange) // nobody's
	}
	*ex = exchange{method: ex.method}
	if !secure(req.URL) {
		return nil, fmt.Errorf("%s is not HTTPS: a CA is asked over HTTPS only", req.URL)
	}
	if res := t.c.known(req); res != nil {
		return res, nil
	}
	if err := t.c.gate.closed(); err != nil {
		return nil, err
	}
	res, err := t.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := readBody(res)
	if err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	t.c.learn(req, res)
	t.c.gate.heed(t.c.general(req), res.StatusCode, res.Header, body)
	ex.status, ex.header, ex.body = res.StatusCode, res.Header, body
	return res, nil
}

// A gate keeps requests from a CA that has asked us, all of us, to come back
// later. It is shared by the clients of one account.
type gate struct {
	mu    sync.Mutex // guards the fields below; held for memory only
	until time.Time
	why   error
}

// closed returns why the CA may not be asked now, nil if it may.
func (g *gate) closed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if wait := time.Until(g.until); wait > 0 {
		return &Failure{Class: Fault, Step: "not asking the CA before it said to", Retry: wait, Err: g.why}
	}
	return nil
}

// heed closes the gate if the reply asks for that: with a Retry-After, and not
// about one host alone, as rateLimited is but for requests that are no host's.
func (g *gate) heed(general bool, status int, h http.Header, body []byte) {
	wait := retryAfter(h)
	if wait == 0 || status != http.StatusTooManyRequests && status < 500 {
		return
	}
	why := (&exchange{status: status, header: h, body: body}).problem()
	if problemIs(why, "rateLimited") && !general {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if until := time.Now().Add(wait); until.After(g.until) {
		g.until, g.why = until, why
	}
}

// general reports whether a request is one that no host needs more than another:
// for the directory, a nonce or an account.
func (c *Client) general(req *http.Request) bool {
	if req.Method == http.MethodHead || req.URL.String() == c.url {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.directory != nil && req.URL.String() == c.directory.NewAccount
}

// secure reports whether a CA may be asked at u: over HTTPS, or on this very
// machine.
func secure(u *url.URL) bool {
	if u.Scheme == "https" || u.Hostname() == "localhost" {
		return true
	}
	ip := net.ParseIP(u.Hostname())
	return ip != nil && ip.IsLoopback()
}

// readBody reads the whole of a reply. An error that is no problem document,
// a proxy's HTML page perhaps, is cut: it ends up in logs.
func readBody(res *http.Response) ([]byte, error) {
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("reading the CA's reply: %w", err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the CA's reply is longer than %d bytes", maxBody)
	}
	if res.StatusCode >= 400 && len(body) > maxForeignBody && !json.Valid(body) {
		body = append(body[:maxForeignBody:maxForeignBody], " ..."...)
	}
	return body, nil
}

// known returns the reply to a request of x/crypto's for the directory or a
// nonce where the Client has it, else nil.
func (c *Client) known(req *http.Request) *http.Response {
	ex, _ := req.Context().Value(exchangeKey{}).(*exchange)
	ours := ex != nil && ex.method == http.MethodGet
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.directory == nil {
		return nil
	}
	res := &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: http.NoBody, Request: req,
	}
	switch {
	case req.Method == http.MethodHead && req.URL.String() == c.directory.NewNonce && len(c.nonces) > 0:
		last := len(c.nonces) - 1
		res.Header.Set("Replay-Nonce", c.nonces[last])
		c.nonces = c.nonces[:last]
	case req.Method == http.MethodGet && req.URL.String() == c.url && !ours:
		res.Body = io.NopCloser(bytes.NewReader(c.directory.raw))
	default:
		return nil
	}
	return res
}

// learn keeps the reply's nonce, and takes it out of the reply lest x/crypto
// keep it too: that package forgets all its nonces when one is refused.
// A nonce that was asked for is left to who asked.
func (c *Client) learn(req *http.Request, res *http.Response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if date, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		c.skew = time.Until(date)
	}
	nonce := res.Header.Get("Replay-Nonce")
	if nonce == "" || req.Method == http.MethodHead {
		return
	}
	res.Header.Del("Replay-Nonce")
	if len(c.nonces) == maxNonces {
		copy(c.nonces, c.nonces[1:]) // the oldest is the likeliest to be refused
		c.nonces = c.nonces[:maxNonces-1]
	}
	c.nonces = append(c.nonces, nonce)
}

// get sends an unsigned GET.
func (c *Client) get(ctx context.Context, url string) (*exchange, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ex := &exchange{method: http.MethodGet}
	req, err := http.NewRequestWithContext(context.WithValue(ctx, exchangeKey{}, ex), http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent)
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	res.Body.Close()
	if ex.status != http.StatusOK {
		return nil, ex.problem()
	}
	return ex, nil
}

// post sends payload, signed with the account's key; a nil payload is a
// POST-as-GET (RFC 8555, section 6.3). It retries refused nonces only.
//
// Of x/crypto's calls, Accept is the one that posts a payload of the caller's
// to a URL of the caller's, and GetChallenge the plainest POST-as-GET. What
// they make of the reply, and whether they like its status, is of no interest:
// the exchange has it whole.
func (c *Client) post(ctx context.Context, url string, payload any) (*exchange, error) {
	if url == "" {
		return nil, &Failure{Class: Fault, Step: "talking to the CA", Err: errors.New("the CA named no URL to go on at")}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := c.Directory(ctx); err != nil {
		return nil, err
	}
	ex := &exchange{method: http.MethodPost}
	ctx = context.WithValue(ctx, exchangeKey{}, ex)
	var err error
	if payload == nil {
		_, err = c.acme().GetChallenge(ctx, url)
	} else {
		var raw []byte
		if raw, err = json.Marshal(payload); err != nil {
			return nil, err
		}
		_, err = c.acme().Accept(ctx, &acme.Challenge{URI: url, Payload: raw})
	}
	switch {
	case ex.status/100 == 2:
		return ex, nil
	case err == nil:
		return nil, fmt.Errorf("the CA answered %d", ex.status)
	}
	return nil, err
}

// problem returns the error that a reply with an error status is.
func (ex *exchange) problem() *acme.Error {
	e := &acme.Error{StatusCode: ex.status, Header: ex.header}
	var p struct {
		Type, Detail, Instance string
		Subproblems            []acme.Subproblem
	}
	if json.Unmarshal(ex.body, &p) != nil {
		p.Detail = string(ex.body)
	}
	e.ProblemType, e.Detail, e.Instance, e.Subproblems = p.Type, p.Detail, p.Instance, p.Subproblems
	if e.Detail == "" {
		e.Detail = http.StatusText(ex.status)
	}
	return e
}

// retryAfter returns how long the reply asks us to wait, zero if it does not.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil || errors.Is(err, strconv.ErrRange) {
		n = min(max(n, 0), int(maxRetryAfter/time.Second))
		return time.Duration(n) * time.Second
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date")) // by the same clock
	if err != nil {
		now = time.Now()
	}
	return min(max(t.Sub(now), 0), maxRetryAfter)
}

// maxRetryAfter bounds what a CA can ask: nobody means to stop us for longer.
const maxRetryAfter = 14 * 24 * time.Hour
