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

// now returns the time on the wall, and never one before the last: a clock set
// back must not fill the buckets. But a clock that was far ahead for a while
// must not keep them from ever filling again.
func (s *Set) now() time.Time {
	now := time.Now().Round(0)
	if s.wall.Sub(now) > maxAhead {
		s.Back()
	}
	if now.After(s.wall) {
		s.wall = now
	}
	return s.wall
}

// Back has the buckets go by the clock again, which is known to have been ahead.
// It fills none of them.
func (s *Set) Back() {
	s.wall = time.Now().Round(0)
	for _, lim := range s.Buckets {
		if lim != nil {
			lim.SetBurstAt(s.wall, lim.Burst()) // which has it count from now on
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
	now, levels := s.now(), make(map[string]Level)
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
func (s *Set) Take(names ...string) (retry time.Time, ok bool) {
	if retry, ok = s.Ready(1, names...); !ok {
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

// Ready reports whether there are n tokens in each of the named buckets. If not
// it returns when there will be, zero if never.
func (s *Set) Ready(n int, names ...string) (retry time.Time, ok bool) {
	now := s.now()
	for _, name := range names {
		at, never := ready(s.Buckets[name], n, now)
		if never {
			return time.Time{}, false
		}
		if at.After(retry) {
			retry = at
		}
	}
	if retry.After(now) {
		return retry, false
	}
	return time.Time{}, true
}

// ready returns when the bucket has n tokens.
func ready(lim *rate.Limiter, n int, now time.Time) (at time.Time, never bool) {
	if lim == nil || lim.Limit() == rate.Inf {
		return now, false
	}
	missing := float64(n) - lim.TokensAt(now)
	switch {
	case missing <= 0:
		return now, false
	case lim.Limit() <= 0 || lim.Burst() < 1:
		return time.Time{}, true
	}
	wait := missing / float64(lim.Limit()) * float64(time.Second)
	if wait > math.MaxInt64/2 {
		return time.Time{}, true
	}
	return now.Add(time.Duration(wait) + 1), false // TokensAt rounds; a nanosecond more makes sure
}
