package pebble

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

func TestTurnstile(t *testing.T) {
	for _, test := range []struct {
		first, second string
		together      bool
	}{
		{"/order-plz", "/authZ/1", false},
		{"/authZ/1", "/order-plz", false},
		{"/order-plz", "/order-plz", false},
		{"/authZ/1", "/authZ/1", true},
		{"/order-plz", "/chalZ/1", true},
	} {
		if got := meet(test.first, test.second); got != test.together {
			t.Errorf("meet(%s, %s) = %v, want %v", test.first, test.second, got, test.together)
		}
	}
}

// meet reports whether two requests get past a turnstile at the same time.
func meet(first, second string) bool {
	var s turnstile
	var running sync.WaitGroup
	passed := make(chan bool, 2)
	ca := s.before(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		passed <- true
		for began := time.Now(); len(passed) < 2 && time.Since(began) < 100*time.Millisecond; {
			<-time.After(time.Millisecond)
		}
		if len(passed) == 1 {
			<-passed // we were alone
		}
	}))
	for _, path := range []string{first, second} {
		running.Go(func() {
			ca.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, path, nil))
		})
	}
	running.Wait()
	return len(passed) == 2
}
