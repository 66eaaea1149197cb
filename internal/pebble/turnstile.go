package pebble

import (
	"net/http"
	"sync"
)

// A turnstile keeps newOrder requests apart from requests for authorizations.
// When they meet in an unlucky moment, as they do when dozens of orders are under
// way, Pebble 2.10.1 stands still for good: the one holds the lock of its store and
// waits for those of all authorizations, the other holds the lock of one of these
// and waits for the store's.
type turnstile struct{ orders sync.RWMutex }

// enter returns when a request for a path may be made, and what to call when it was
// answered.
func (s *turnstile) enter(path string) (leave func()) {
	switch endpointOf(path) {
	case NewOrder:
		s.orders.Lock()
		return s.orders.Unlock
	case Authz:
		s.orders.RLock()
		return s.orders.RUnlock
	}
	return func() {}
}

// before returns a handler that passes requests on to ca when they may.
func (s *turnstile) before(ca http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.enter(r.URL.Path)()
		ca.ServeHTTP(w, r)
	})
}

// A guarded transport makes requests to Pebble itself when they may be made. A
// proxy sees to that itself.
type guarded struct{ s *Server }

func (g guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == loopback(g.s.ports.api()) {
		defer g.s.turnstile.enter(r.URL.Path)()
	}
	return g.s.transport.RoundTrip(r)
}

func (g guarded) CloseIdleConnections() { g.s.transport.CloseIdleConnections() }
