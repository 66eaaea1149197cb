package challenge

import (
	"context"
	"crypto/tls"
	"maps"
	"sync"
	"time"
)

// What bounds the questions about other processes' answers: anybody can send
// what looks like a validation.
const (
	lookAgain = 500 * time.Millisecond // after one that found nothing, for the same host
	maxLooks  = 1000                   // remembered or under way
)

// A Pending is an answer as other processes learn of it.
type Pending struct {
	Type    string `json:"type"`
	Token   string `json:"token"`
	KeyAuth string `json:"keyAuth"`
}

// Elsewhere are the answers that other processes have set up. Load must be set
// before the first use; it may take its time, and goes on if all who asked for it
// have left. It is safe for concurrent use.
//
// Of one host Load is asked once at a time, for all who came before it was asked;
// and if it found nothing not again for a while, which who comes then waits. So a
// stranger who asks all the time can neither load what Load asks nor hide an
// answer behind a miss that is remembered. Who waits costs a connection that is
// there anyway, and so there is no bound on that: it would be the stranger's means
// to keep a validation out.
type Elsewhere struct {
	Load func(host string) (p Pending, ok bool)

	mu    sync.Mutex // guards what follows; held for memory only
	looks map[string]*look
	begun int64 // looks, ever
}

// A look is a question to Load.
type look struct {
	number  int64 // of those that began
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
	e.mu.Lock()
	came := e.begun
	e.mu.Unlock()
	for ctx.Err() == nil {
		l := e.next(host)
		if l == nil {
			return nil
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil
		}
		switch fresh := l.number > came; {
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

// next returns the look to wait for, nil if too many are under way.
func (e *Elsewhere) next(host string) *look {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.looks[host]; l != nil && !l.over() {
		return l
	}
	if e.looks == nil {
		e.looks = make(map[string]*look)
	}
	if len(e.looks) >= maxLooks { // so many hosts cost so many looks, whatever is remembered
		maps.DeleteFunc(e.looks, func(_ string, l *look) bool { return l.ended() })
	}
	if len(e.looks) >= maxLooks {
		return nil
	}
	e.begun++
	l := &look{number: e.begun, began: time.Now(), done: make(chan struct{})}
	e.looks[host] = l
	go e.fill(l, host)
	return l
}

// over reports whether the next who comes may look again.
func (l *look) over() bool {
	return l.ended() && (l.found || time.Since(l.began) >= lookAgain)
}

func (l *look) ended() bool {
	select {
	case <-l.done:
		return true
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
