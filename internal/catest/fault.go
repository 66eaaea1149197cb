package catest

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// An Error is a problem document (RFC 7807) of the ACME kind (RFC 8555 section 6.7).
type Error struct {
	Status      int
	Type        string // what follows urn:ietf:params:acme:error:
	Detail      string
	RetryAfter  string   // the Retry-After header, if not ""
	Algorithms  []string // for badSignatureAlgorithm
	Subproblems []Subproblem
}

// A Subproblem is the part of an Error that concerns one name.
type Subproblem struct {
	Type, Detail, Name string
}

// Error implements the error interface.
func (e *Error) Error() string { return e.Type + ": " + e.Detail }

// document returns the problem as it stands in JSON.
func (e *Error) document() map[string]any {
	const ns = "urn:ietf:params:acme:error:"
	doc := map[string]any{"type": ns + e.Type, "detail": e.Detail, "status": e.Status}
	if e.Algorithms != nil {
		doc["algorithms"] = e.Algorithms
	}
	var subs []map[string]any
	for _, s := range e.Subproblems {
		subs = append(subs, map[string]any{
			"type": ns + s.Type, "detail": s.Detail, "identifier": identifierOf(s.Name),
		})
	}
	if subs != nil {
		doc["subproblems"] = subs
	}
	return doc
}

func (e *Error) response(r *http.Request) *http.Response {
	header := http.Header{"Content-Type": {"application/problem+json"}}
	if e.RetryAfter != "" {
		header.Set("Retry-After", e.RetryAfter)
	}
	return newResponse(r, e.Status, header, mustJSON(e.document()))
}

// A Script decides what befalls the n-th request, counted from 1, to an
// endpoint (see [CA.Count]). Nil lets the CA answer.
type Script func(endpoint string, n int, r *http.Request) Response

// A Response makes the reply to a request, or the error that the client sees
// instead of one. It calls serve, at most once, to have the CA act on the request.
type Response func(r *http.Request, serve func() *http.Response) (*http.Response, error)

type faults struct {
	script Script
	count  map[string]int
}

// next returns the script in force and the number of this request in it.
func (f *faults) next(endpoint string) (Script, int) {
	if f.script == nil {
		return nil, 0
	}
	f.count[endpoint]++
	return f.script, f.count[endpoint]
}

// Fault puts a script in force, in place of any before it, and counts the
// requests to each endpoint anew. Nil ends all faults.
func (ca *CA) Fault(script Script) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.faults = faults{script: script, count: make(map[string]int)}
}

// Down is the script of a CA that can't be reached.
func Down(string, int, *http.Request) Response { return Refuse }

// On returns the script in which a response befalls the n-th request to an
// endpoint, or every request to it if n is 0.
func On(endpoint string, n int, response Response) Script {
	return func(e string, i int, _ *http.Request) Response {
		if e == endpoint && (n == 0 || n == i) {
			return response
		}
		return nil
	}
}

// genuine is the CA's own reply.
func genuine(_ *http.Request, serve func() *http.Response) (*http.Response, error) {
	return serve(), nil
}

// Problem returns the response that is a problem document; typ is the part
// of its type after urn:ietf:params:acme:error:, and retryAfter the header of
// that name, if not "". The CA does not act on the request.
func Problem(status int, typ, detail, retryAfter string) Response {
	return func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
		e := &Error{Status: status, Type: typ, Detail: detail, RetryAfter: retryAfter}
		return e.response(r), nil
	}
}

// HTML returns the response of whatever stands before a CA: a page for a
// person. The CA does not act on the request.
func HTML(status int, retryAfter string) Response {
	return func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
		header := http.Header{"Content-Type": {"text/html"}}
		if retryAfter != "" {
			header.Set("Retry-After", retryAfter)
		}
		return newResponse(r, status, header, []byte("<html><h1>"+http.StatusText(status)+"</h1></html>")), nil
	}
}

// Refuse is the connection refused.
func Refuse(*http.Request, func() *http.Response) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

// Drop is the connection reset before the request reached the CA.
func Drop(*http.Request, func() *http.Response) (*http.Response, error) {
	return nil, syscall.ECONNRESET
}

// LoseReply is the connection reset after the CA acted on the request.
func LoseReply(_ *http.Request, serve func() *http.Response) (*http.Response, error) {
	serve()
	return nil, syscall.ECONNRESET
}

// Hang is the reply that never comes: the request ends when its context does.
func Hang(r *http.Request, _ func() *http.Response) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// Slow returns the response of a CA that acts on the request after d.
func Slow(d time.Duration) Response {
	return func(r *http.Request, serve func() *http.Response) (*http.Response, error) {
		if err := sleep(r.Context(), d); err != nil {
			return nil, err
		}
		return serve(), nil
	}
}

// Edit returns the CA's own response as edit changes it. The body that edit
// is given is complete, and so is the one it returns.
func Edit(edit func(res *http.Response, body []byte) []byte) Response {
	return func(_ *http.Request, serve func() *http.Response) (*http.Response, error) {
		res := serve()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return nil, err
		}
		body = edit(res, body)
		res.Body = io.NopCloser(bytes.NewReader(body))
		res.ContentLength = int64(len(body))
		return res, nil
	}
}

// Truncate is the connection reset in the middle of the CA's own reply.
func Truncate(_ *http.Request, serve func() *http.Response) (*http.Response, error) {
	res := serve()
	half := io.LimitReader(res.Body, res.ContentLength/2)
	res.Body = io.NopCloser(io.MultiReader(half, resetReader{}))
	return res, nil
}

type resetReader struct{}

func (resetReader) Read([]byte) (int, error) { return 0, syscall.ECONNRESET }

// Endless is the CA's own reply with a body that never ends.
func Endless(_ *http.Request, serve func() *http.Response) (*http.Response, error) {
	res := serve()
	res.ContentLength = -1
	res.Body = io.NopCloser(io.MultiReader(res.Body, spaceReader{}))
	return res, nil
}

// spaceReader reads as white space, which JSON and PEM may end in.
type spaceReader struct{}

func (spaceReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

// Every returns a NonceReject that refuses every n-th request.
func Every(n int) func(int) bool {
	return func(i int) bool { return i%n == 0 }
}

// Percent returns a NonceReject that refuses that many of a hundred requests,
// at random but the same for the same seed.
func Percent(percent int, seed uint64) func(int) bool {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0))
	return func(int) bool {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(100) < percent
	}
}
