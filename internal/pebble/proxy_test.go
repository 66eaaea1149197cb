package pebble

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// newProxy returns a proxy before a Pebble that is always content, and a
// client with an account there.
func newProxy(t *testing.T) (*Server, *Proxy, *client) {
	t.Helper()
	s := New(t, Config{AlwaysValid: true})
	p, err := s.Proxy(nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, p, newClient(t, s, p.Directory())
}

// on puts a reply to the requests to one endpoint.
func on(endpoint Endpoint, reply Reply) Fault {
	return func(_ *http.Request, e Endpoint, _ int) Reply {
		if e == endpoint {
			return reply
		}
		return nil
	}
}

func TestProxyRequests(t *testing.T) {
	s, p, c := newProxy(t)
	start := time.Now()
	c.issue("a.test")
	if n := len(s.Issued()); n != 1 {
		t.Errorf("Issued = %d certificates, want 1", n)
	}
	all := p.Requests()
	if all[0].Endpoint != Directory || all[0].Method != "GET" || all[0].Status != http.StatusOK {
		t.Errorf("first request = %+v, want one for the directory", all[0])
	}
	if !slices.IsSortedFunc(all, func(a, b Request) int { return a.Time.Compare(b.Time) }) {
		t.Errorf("Requests = %v, want them in order", all)
	}
	for e, status := range map[Endpoint]int{NewAccount: 201, NewOrder: 201, Finalize: 200, Certificate: 200} {
		i := slices.IndexFunc(all, func(r Request) bool { return r.Endpoint == e })
		if i < 0 || all[i].Status != status {
			t.Errorf("no request for %s with status %d in %v", e, status, all)
		}
		if p.Count(e) != 1 {
			t.Errorf("Count(%s) = %d, want 1", e, p.Count(e))
		}
	}
	if last := all[len(all)-1].Time; last.Before(start) || last.After(time.Now()) {
		t.Errorf("last request came at %v, want after %v", last, start)
	}
}

func TestProxyCountsFromOne(t *testing.T) {
	s, p, c := newProxy(t)
	p.SetFault(func(_ *http.Request, e Endpoint, n int) Reply {
		if e == NewOrder && n == 2 {
			return Problem(http.StatusInternalServerError, "serverInternal", "two", "")
		}
		return nil
	})
	for n := 1; n <= 3; n++ {
		_, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.test"))
		if want := n == 2; want != (problem(err) == "serverInternal") {
			t.Errorf("order %d: %v, want a failure: %v", n, err, want)
		}
	}
	if n := s.Orders(); n != 2 {
		t.Errorf("Orders = %d, want 2: the second is not Pebble's", n)
	}
}

func TestProblem(t *testing.T) {
	_, p, c := newProxy(t)
	p.SetFault(on(NewOrder, Problem(http.StatusTooManyRequests, "rateLimited", "too many", "3600")))
	_, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.test"))
	e, ok := errors.AsType[*acme.Error](err)
	if !ok || e.StatusCode != http.StatusTooManyRequests || problem(err) != "rateLimited" || e.Detail != "too many" {
		t.Fatalf("AuthorizeOrder = %v, want the problem", err)
	}
	if got := e.Header.Get("Retry-After"); got != "3600" {
		t.Errorf("Retry-After = %q, want 3600", got)
	}
	p.SetFault(on(NewOrder, Problem(http.StatusTooManyRequests, "rateLimited", "too many", "")))
	c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.test"))
	if values, ok := c.headers[NewOrder]["Retry-After"]; ok {
		t.Errorf("Retry-After = %q, want none", values)
	}
}

func TestHTML(t *testing.T) {
	s, p, _ := newProxy(t)
	p.SetFault(on(Directory, HTML(http.StatusServiceUnavailable)))
	res, err := s.Client().Get(p.Directory())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") ||
		!strings.Contains(string(body), "Service Unavailable") || err != nil {
		t.Errorf("Get = %s %v %q, %v, want a web page of status 503", res.Status, res.Header, body, err)
	}
}

func TestHang(t *testing.T) {
	s, p, c := newProxy(t)
	p.SetFault(on(NewOrder, Hang))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.AuthorizeOrder(ctx, acme.DomainIDs("a.test"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AuthorizeOrder = %v, want it to last as long as the context", err)
	}
	if n := s.Orders(); n != 0 {
		t.Errorf("Orders = %d, want 0", n)
	}
}

// A request that hangs must end with the proxy.
func TestHangClose(t *testing.T) {
	_, p, c := newProxy(t)
	came := make(chan struct{})
	var ended atomic.Bool
	p.SetFault(on(NewOrder, func(w http.ResponseWriter, r *http.Request, ca http.Handler) {
		defer func() {
			for range 1000 {
				runtime.Gosched() // give a Close that does not wait its chance
			}
			ended.Store(true)
		}()
		close(came)
		Hang(w, r, ca)
	}))
	var ordering sync.WaitGroup
	ordering.Go(func() {
		if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.test")); err == nil {
			t.Error("AuthorizeOrder succeeds, want the connection closed")
		}
	})
	<-came
	p.Close()
	if !ended.Load() {
		t.Error("Close returned before a request's end")
	}
	ordering.Wait()
}

func TestDrop(t *testing.T) {
	s, p, c := newProxy(t)
	p.SetFault(on(NewOrder, Drop))
	_, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.test"))
	if err == nil || problem(err) != "" {
		t.Errorf("AuthorizeOrder = %v, want the connection closed", err)
	}
	if n := s.Orders(); n != 0 {
		t.Errorf("Orders = %d, want 0", n)
	}
	if all := p.Requests(); all[len(all)-1].Status != 0 {
		t.Errorf("last request = %v, want no status", all[len(all)-1])
	}
}

func TestLoseReply(t *testing.T) {
	s, p, c := newProxy(t)
	p.SetFault(on(NewOrder, LoseReply))
	_, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("a.test"))
	if err == nil || problem(err) != "" {
		t.Errorf("AuthorizeOrder = %v, want the connection closed", err)
	}
	if n := s.Orders(); n != 1 {
		t.Errorf("Orders = %d, want 1: Pebble heard it", n)
	}
}

func TestTruncate(t *testing.T) {
	s, p, _ := newProxy(t)
	whole := get(t, s, p)
	p.SetFault(on(Directory, Truncate))
	res, err := s.Client().Get(p.Directory())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(body) != len(whole)/2 {
		t.Errorf("body of %d bytes, %v, want %d, io.ErrUnexpectedEOF", len(body), err, len(whole)/2)
	}
}

func TestEdit(t *testing.T) {
	s, p, _ := newProxy(t)
	p.SetFault(on(Directory, Edit(func(a *Answer) {
		var directory map[string]any
		if err := json.Unmarshal(a.Body, &directory); err != nil {
			t.Error(err)
		}
		delete(directory, "renewalInfo")
		a.Body, _ = json.Marshal(directory)
		a.Header.Set("X-Edited", "yes")
	})))
	res, err := s.Client().Get(p.Directory())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if strings.Contains(string(body), "renewalInfo") || !strings.Contains(string(body), "newOrder") || err != nil {
		t.Errorf("directory = %s, %v, want one without renewalInfo", body, err)
	}
	if res.Header.Get("X-Edited") != "yes" {
		t.Errorf("header = %v, want it edited", res.Header)
	}
}

func TestProxyWithoutPebble(t *testing.T) {
	s, p, _ := newProxy(t)
	s.Stop()
	res, err := s.Client().Get(p.Directory())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusBadGateway {
		t.Errorf("Get = %s, want 502", res.Status)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	newClient(t, s, p.Directory()).issue("a.test")
}

// get returns the directory at p.
func get(t *testing.T, s *Server, p *Proxy) []byte {
	t.Helper()
	res, err := s.Client().Get(p.Directory())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
