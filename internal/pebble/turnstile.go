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

// before returns a handler that passes requests on to ca when they may.
func (s *turnstile) before(ca http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch endpointOf(r.URL.Path) {
		case NewOrder:
			s.orders.Lock()
			defer s.orders.Unlock()
		case Authz:
			s.orders.RLock()
			defer s.orders.RUnlock()
		}
		ca.ServeHTTP(w, r)
	})
}
