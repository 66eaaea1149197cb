package challenge

import (
	"context"
	"crypto/tls"
	"sync"
	"time"
)

// What bounds the questions about other processes' answers: anybody can send
// what looks like a validation.
const (
	lookAgain  = 500 * time.Millisecond // after one that found nothing, for the same host
	maxLooking = 1000                   // who wait for one
	maxLooks   = 1000                   // remembered, or a few more
)

// A Pending is an answer as other processes learn of it.
type Pending struct {
	Type    string `json:"type"`
	Token   string `json:"token"`
	KeyAuth string `json:"keyAuth"`
}

// Elsewhere are the answers that other processes have set up. Load must be set
// before the first use. It is safe for concurrent use.
//
// Of one host Load is asked once at a time, for all who came before it was asked;
// and if it found nothing not again for a while, which who comes then waits. So a
// stranger who asks all the time can neither load what Load asks nor hide an
// answer behind a miss that is remembered.
type Elsewhere struct {
	Load func(host string) (p Pending, ok bool) // may block

	mu      sync.Mutex // guards what follows; held for memory only
	looks   map[string]*look
	looking int
}

// A look is a question to Load.
type look struct {
	began   time.Time
	done    chan struct{} // closed when the rest is there
	pending Pending
	found   bool
	cert    func() *tls.Certificate // of a tls-alpn-01 answer
}

// TLSALPN returns the certificate that answers a validation of the host, nil if
// none is pending.
func (e *Elsewhere) TLSALPN(ctx context.Context, host string) *tls.Certificate {
	l := e.look(ctx, host)
	if l == nil || l.pending.Type != TLSALPN01 {
		return nil
	}
	return l.cert()
}

// HTTP returns the key authorization that answers a validation of the host with
// the token, and whether one is pending.
func (e *Elsewhere) HTTP(ctx context.Context, host, token string) (keyAuth string, ok bool) {
	l := e.look(ctx, host)
	if l == nil || l.pending.Type != HTTP01 || l.pending.Token != token {
		return "", false
	}
	return l.pending.KeyAuth, true
}

// look returns a look that began after the call did, nil if there is none or it
// found nothing.
func (e *Elsewhere) look(ctx context.Context, host string) *look {
	if !e.enter() {
		return nil
	}
	defer e.leave()
	came := time.Now()
	for ctx.Err() == nil {
		l, ours := e.next(host)
		if ours {
			e.fill(l, host)
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil
		}
		switch fresh := !l.began.Before(came); {
		case fresh && l.found:
			return l
		case fresh:
			return nil
		case !l.found:
			sleep(ctx, time.Until(l.began.Add(lookAgain)))
		}
	}
	return nil
}

func (e *Elsewhere) enter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.looking >= maxLooking {
		return false
	}
	e.looking++
	return true
}

func (e *Elsewhere) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.looking--
}

// next returns the look to wait for. If it is ours the caller is to fill it.
func (e *Elsewhere) next(host string) (l *look, ours bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l = e.looks[host]; l != nil && !l.over() {
		return l, false
	}
	if e.looks == nil {
		e.looks = make(map[string]*look)
	}
	if len(e.looks) >= maxLooks {
		for host, l := range e.looks {
			if l.over() {
				delete(e.looks, host)
			}
		}
	}
	l = &look{began: time.Now(), done: make(chan struct{})}
	e.looks[host] = l
	return l, true
}

// over reports whether the next who comes may look again.
func (l *look) over() bool {
	select {
	case <-l.done:
		return l.found || time.Since(l.began) >= lookAgain
	default:
		return false
	}
}

func (e *Elsewhere) fill(l *look, host string) {
	l.pending, l.found = e.Load(host)
	l.cert = sync.OnceValue(func() *tls.Certificate {
		cert, err := newCertificate(host, l.pending.KeyAuth)
		if err != nil {
			return nil
		}
		return cert
	})
	close(l.done)
}
