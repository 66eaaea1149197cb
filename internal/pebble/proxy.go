package pebble

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// A Proxy stands between clients and Pebble, writes down what they ask, and
// puts faults where a test wants them. It speaks HTTP/1.1, so that a
// connection is one request's alone while it lasts.
//
// Pebble makes URLs of the name that the client asked for, and those are the
// proxy's when it asked the proxy. An account is known by such a URL: one that
// was made through a proxy is to be used through it.
type Proxy struct {
	server   http.Server
	listener net.Listener
	ca       http.Handler
	stopped  chan struct{}  // closed when no more connections are accepted
	conns    sync.WaitGroup // open connections

	mu       sync.Mutex // guards the fields below
	fault    Fault
	requests []*Request
	counts   map[Endpoint]int
}

// A Request is one that a Proxy got.
type Request struct {
	Time     time.Time // when it came
	Endpoint Endpoint
	Method   string
	Status   int // of the reply, written down before it is sent; 0 if there was none
}

// Proxy starts a proxy in front of Pebble that ends with the Server. A nil
// fault lets all requests pass. Stop and Restart leave it alone: it replies 502
// while Pebble is away.
func (s *Server) Proxy(fault Fault) (*Proxy, error) {
	l, err := net.Listen("tcp", loopback(0))
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		listener: l,
		stopped:  make(chan struct{}),
		fault:    fault,
		counts:   map[Endpoint]int{},
	}
	quiet := log.New(io.Discard, "", 0) // faults are what we are here for
	target := &url.URL{Scheme: "https", Host: loopback(s.ports.api())}
	p.ca = s.turnstile.before(&httputil.ReverseProxy{
		Transport: s.transport,
		ErrorLog:  quiet,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
	})
	p.server = http.Server{
		Handler:   http.HandlerFunc(p.serve),
		ErrorLog:  quiet,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.cert}},
		Protocols: new(http.Protocols),
		ConnState: p.connState,
	}
	p.server.Protocols.SetHTTP1(true)
	go func() {
		defer close(p.stopped)
		p.server.ServeTLS(l, "", "") // returns when the server is closed
	}()
	s.proxies = append(s.proxies, p)
	return p, nil
}

// Directory returns the URL of the CA's directory at the proxy.
func (p *Proxy) Directory() string {
	return "https://" + p.listener.Addr().String() + "/dir"
}

// SetFault replaces the fault.
func (p *Proxy) SetFault(fault Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

// Count returns how many requests to an endpoint there were.
func (p *Proxy) Count(e Endpoint) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[e]
}

// Requests returns all requests, in the order they came.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Request, len(p.requests))
	for i, r := range p.requests {
		all[i] = *r
	}
	return all
}

// Close stops the proxy, with all the requests that it has.
func (p *Proxy) Close() {
	p.server.Close() // nothing to do about a listener that does not close
	<-p.stopped
	p.conns.Wait()
}

// connState counts open connections: server.Close does not wait for handlers.
func (p *Proxy) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		p.conns.Add(1)
	case http.StateClosed:
		p.conns.Done()
	}
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	e := endpointOf(r.URL.Path)
	record := &Request{Time: time.Now(), Endpoint: e, Method: r.Method}
	p.mu.Lock()
	p.requests = append(p.requests, record)
	p.counts[e]++
	n, fault := p.counts[e], p.fault
	p.mu.Unlock()

	w = &recorder{ResponseWriter: w, proxy: p, record: record}
	if fault != nil {
		if reply := fault(r, e, n); reply != nil {
			reply(w, r, p.ca)
			return
		}
	}
	p.ca.ServeHTTP(w, r)
}

// A recorder writes down a reply's status before the client can see it.
type recorder struct {
	http.ResponseWriter
	proxy  *Proxy
	record *Request
}

func (w *recorder) WriteHeader(status int) {
	w.note(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	w.note(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

// note takes down the first status that ends a reply: 1xx does not.
func (w *recorder) note(status int) {
	w.proxy.mu.Lock()
	defer w.proxy.mu.Unlock()
	if w.record.Status == 0 && status >= http.StatusOK {
		w.record.Status = status
	}
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
