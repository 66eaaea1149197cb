package certs

import "time"

// shortLived is the longest life of a certificate that is renewed at half of it
// instead of two thirds: with less, a CA that is down for a few days takes the
// site with it.
const shortLived = 10 * 24 * time.Hour

// RenewAt returns when to replace a certificate: when a third of its life is
// left, or half if it lives for ten days or less. So that certificates from the
// same hour are not renewed in the same hour, it is earlier than that by up to a
// thirtieth of the life as u goes from 0 to 1: three days of ninety, five hours
// of a week, a second of half a minute. It is never later.
func RenewAt(notBefore, notAfter time.Time, u float64) time.Time {
	life := notAfter.Sub(notBefore)
	plan := life - life/3
	if life <= shortLived {
		plan = life / 2
	}
	return notBefore.Add(plan - scale(life/30, u))
}

// Clip cuts the window from start to end in which a CA suggests to renew to
// what leaves room. It begins no earlier than a third into the certificate's
// life, or a CA could have us order without end; but a window that is wholly
// past at the time now stays, because so a CA calls for replacement at once. It
// ends no later than half-way from our own schedule to the expiry, or no time
// would be left for failures. A window outside those limits becomes the nearer
// of them; s is never after e.
func Clip(start, end, notBefore, notAfter, now time.Time) (s, e time.Time) {
	if end.Before(start) {
		end = start
	}
	if end.After(now) {
		earliest := notBefore.Add(notAfter.Sub(notBefore) / 3)
		start, end = later(start, earliest), later(end, earliest)
	}
	plan := RenewAt(notBefore, notAfter, 0)
	latest := plan.Add(notAfter.Sub(plan) / 2)
	return earlier(start, latest), earlier(end, latest)
}

// Moment returns a time in the window from start to end: start for a u of 0, end
// for 1. RFC 9773 section 4.2 asks for a u at random.
func Moment(start, end time.Time, u float64) time.Time {
	return start.Add(scale(end.Sub(start), u))
}

func scale(d time.Duration, u float64) time.Duration { return time.Duration(u * float64(d)) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
