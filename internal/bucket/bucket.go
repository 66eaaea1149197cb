// Package bucket takes from token buckets, several at a time, by a clock that
// never goes back.
package bucket

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// A Level is what a bucket held.
type Level struct {
	Tokens float64   `json:"tokens"`
	At     time.Time `json:"at"`
}

// A Set of token buckets, by name. A nil bucket, like one that fills at
// [rate.Inf], always has a token. A Set has no lock: its owner has.
//
// It reads a bucket and takes from it with TokensAt and AllowN and one time for
// both: Reserve and Wait would take tokens that nobody uses in the end.
type Set struct {
	Buckets map[string]*rate.Limiter

	wall  time.Time // the latest there was
	spent bool      // tokens were taken since Levels
}

// maxAhead is how far ahead of the clock the last time may be and be believed.
const maxAhead = 24 * time.Hour

// at returns the time on the wall, and never one before the last: a clock set
// back must not fill the buckets. But a clock that was far ahead for a while
// must not keep them from ever filling again.
func (s *Set) at(now time.Time) time.Time {
	now = now.Round(0)
	if s.wall.Sub(now) > maxAhead {
		s.back(now)
	}
	if now.After(s.wall) {
		s.wall = now
	}
	return s.wall
}

// Back has the buckets go by the clock again, which is known to have been ahead.
// It fills none of them.
func (s *Set) Back() { s.back(time.Now().Round(0)) }

func (s *Set) back(now time.Time) {
	s.wall = now
	for _, lim := range s.Buckets {
		if lim != nil {
			lim.SetBurstAt(now, lim.Burst()) // which has it count from now on
		}
	}
}

// Restore lowers the buckets to what they held before, as Levels told. It is
// for new buckets, which are full.
func (s *Set) Restore(levels map[string]Level) {
	for name, l := range levels {
		lim := s.Buckets[name]
		if lim == nil {
			continue
		}
		if time.Until(l.At) > maxAhead {
			l.At = time.Now().Round(0)
		}
		if l.At.After(s.wall) {
			s.wall = l.At
		}
		if spent := lim.Burst() - int(math.Floor(l.Tokens)); spent > 0 {
			lim.AllowN(l.At, spent)
		}
	}
}

// Spent reports whether tokens were taken since Levels was last called.
func (s *Set) Spent() bool { return s.spent }

// Levels returns what the buckets hold. One that fills at [rate.Inf] is full.
func (s *Set) Levels() map[string]Level {
	now, levels := s.at(time.Now()), make(map[string]Level)
	for name, lim := range s.Buckets {
		switch {
		case lim == nil:
		case lim.Limit() == rate.Inf:
			levels[name] = Level{float64(lim.Burst()), now}
		default:
			levels[name] = Level{lim.TokensAt(now), now}
		}
	}
	s.spent = false
	return levels
}

// Take takes a token from each of the named buckets, all or none. If it takes
// none it returns when there will be one in each, zero if never.
func (s *Set) Take(now time.Time, names ...string) (retry time.Time, ok bool) {
	if retry, ok = s.Ready(now, 1, names...); !ok {
		return retry, false
	}
	for _, name := range names {
		if lim := s.Buckets[name]; lim != nil {
			lim.AllowN(s.wall, 1)
		}
	}
	s.spent = true
	return time.Time{}, true
}

// Ready reports whether there are n tokens in each of the named buckets now. If
// not it returns when there will be, zero if never. That is not remembered: the
// limiters are the program's, which may change their rates or give tokens back.
func (s *Set) Ready(now time.Time, n int, names ...string) (retry time.Time, ok bool) {
	now = s.at(now)
	var wait time.Duration
	for _, name := range names {
		w, never := lacks(s.Buckets[name], n, now)
		if never {
			return time.Time{}, false
		}
		wait = max(wait, w)
	}
	if wait > 0 {
		return now.Add(wait), false
	}
	return time.Time{}, true
}

// lacks returns how long the bucket lacks n tokens yet. It looks at the limiter
// no more often than it must: each look takes a lock.
func lacks(lim *rate.Limiter, n int, now time.Time) (wait time.Duration, never bool) {
	if lim == nil {
		return 0, false
	}
	tokens := lim.TokensAt(now)
	if tokens >= float64(n) {
		return 0, false
	}
	limit := lim.Limit()
	switch {
	case limit == rate.Inf:
		return 0, false
	case limit <= 0 || tokens <= 0 && lim.Burst() < 1: // it holds no more than its burst
		return 0, true
	}
	nanos := (float64(n) - tokens) / float64(limit) * float64(time.Second)
	if nanos > math.MaxInt64/2 {
		return 0, true
	}
	return time.Duration(nanos) + 1, false // TokensAt rounds; a nanosecond more makes sure
}
