package pebble

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Issued is a certificate that Pebble issued.
type Issued struct {
	Serial string // in hexadecimal
	Order  string // the last element of the order's URL
}

// keptLines bounds how much of Pebble's output Logged can look at.
const keptLines = 20_000

// A logbook is what Pebble prints, and what there is to be learned from it.
// Pebble tells all that we count in no other way.
type logbook struct {
	out     io.Writer // may be nil
	partial []byte    // a line's beginning; Write's alone

	mu       sync.Mutex // guards the fields below
	lines    []string   // without date, at most keptLines
	requests map[Endpoint]int
	issued   []Issued
	orders   int
	accounts int
	waiters  []*waiter
}

// A waiter waits for a line.
type waiter struct {
	substr string
	found  chan struct{} // closed when the line was seen
}

func newLogbook(out io.Writer) *logbook {
	return &logbook{out: out, requests: map[Endpoint]int{}}
}

// Write takes a piece of the output. One goroutine calls it.
func (l *logbook) Write(p []byte) (int, error) {
	if l.out != nil {
		l.out.Write(p) // its errors are its owner's: Pebble must not block for them
	}
	l.partial = append(l.partial, p...)
	for {
		line, rest, ok := bytes.Cut(l.partial, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.add(string(line))
		l.partial = rest
	}
}

// add takes a line. Its beginning is log.Logger's: "Pebble 2006/01/02 15:04:05 ".
func (l *logbook) add(line string) {
	if fields := strings.SplitN(line, " ", 4); len(fields) == 4 && fields[0] == "Pebble" {
		line = fields[3]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == keptLines {
		l.lines = slices.Clone(l.lines[keptLines/2:])
	}
	l.lines = append(l.lines, line)
	l.countLocked(line)
	l.waiters = slices.DeleteFunc(l.waiters, func(w *waiter) bool {
		if !strings.Contains(line, w.substr) {
			return false
		}
		close(w.found)
		return true
	})
}

// flushLine is what Pebble prints about our own requests, which no client
// makes: see flush.
const flushLine = "HEAD /dir -> calling handler()"

func (l *logbook) countLocked(line string) {
	var i Issued
	switch {
	case line == flushLine:
	case strings.HasSuffix(line, " -> calling handler()"):
		if e := endpointOf(strings.Fields(line)[1]); e != Unknown {
			l.requests[e]++
		}
	case strings.HasPrefix(line, "Added order "):
		l.orders++
	case strings.HasPrefix(line, "There are now ") && strings.HasSuffix(line, " accounts in memory"):
		l.accounts++
	case scan(line, "Issued certificate serial %s for order %s", &i.Serial, &i.Order):
		l.issued = append(l.issued, i)
	}
}

func scan(line, format string, args ...any) bool {
	n, err := fmt.Sscanf(line, format, args...)
	return err == nil && n == len(args)
}

// tail returns the last lines, for an error's text.
func (l *logbook) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines[max(0, len(l.lines)-10):], "\n")
}

// await returns a waiter for the next line that contains substr or, if past is
// set, for one there has been. It is to be forgotten.
func (l *logbook) await(substr string, past bool) *waiter {
	w := &waiter{substr, make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if past && l.countLinesLocked(substr) > 0 {
		close(w.found)
		return w
	}
	l.waiters = append(l.waiters, w)
	return w
}

// forget ends a wait.
func (l *logbook) forget(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters = slices.DeleteFunc(l.waiters, func(other *waiter) bool { return other == w })
}

func (l *logbook) countLinesLocked(substr string) (n int) {
	for _, line := range l.lines {
		if strings.Contains(line, substr) {
			n++
		}
	}
	return n
}

// flush waits until all that Pebble has printed so far was read, so that a
// client that has its answer finds it counted. It makes a request that Pebble
// prints a line about, and waits for that line: one flush at a time, lest it
// take another's line for its own. A Pebble that is stopped has no more to say.
func (s *Server) flush() {
	s.flushes <- struct{}{}
	defer func() { <-s.flushes }()
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	w := s.log.await(flushLine, false)
	defer s.log.forget(w)
	if !s.answers(ctx, s.Directory()) {
		return
	}
	select {
	case <-w.found:
	case <-ctx.Done():
	}
}

// Issued returns the certificates that Pebble issued, the oldest first.
func (s *Server) Issued() []Issued {
	s.flush()
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return slices.Clone(s.log.issued)
}

// Orders returns how many orders were made.
func (s *Server) Orders() int {
	s.flush()
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.orders
}

// Accounts returns how many accounts were made.
func (s *Server) Accounts() int {
	s.flush()
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.accounts
}

// Requests returns how many requests Pebble got, those it refused included.
// HEAD requests for the directory, which only a Server makes, are not counted.
func (s *Server) Requests() map[Endpoint]int {
	s.flush()
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return maps.Clone(s.log.requests)
}

// Logged returns how many of the latest lines that Pebble printed, some
// thousands, contain substr.
func (s *Server) Logged(substr string) int {
	s.flush()
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.countLinesLocked(substr)
}

// WaitLog waits until Pebble has printed a line that contains substr, now or
// earlier.
func (s *Server) WaitLog(ctx context.Context, substr string) error {
	w := s.log.await(substr, true)
	defer s.log.forget(w)
	select {
	case <-w.found:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for pebble to print %q: %w", substr, context.Cause(ctx))
	}
}

// answers reports whether a HEAD request for url succeeds.
func (s *Server) answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return false
	}
	res, err := s.Client().Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}
