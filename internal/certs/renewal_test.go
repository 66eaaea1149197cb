package certs_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"example.com/letsencrypt/internal/certs"
)

const day = 24 * time.Hour

// lives are those of the certificates that there are, and their plans: when
// each is renewed, as a share of the life.
var lives = []struct {
	life time.Duration
	plan float64
}{
	{20 * time.Second, 1. / 2},
	{10 * time.Minute, 1. / 2},
	{time.Hour, 1. / 2},
	{day, 1. / 2},
	{160 * time.Hour, 1. / 2},
	{10 * day, 1. / 2},
	{10*day + 1, 2. / 3},
	{45 * day, 2. / 3},
	{90 * day, 2. / 3},
	{200 * day, 2. / 3},
	{398 * day, 2. / 3},
	{20 * 365 * day, 2. / 3},
}

func TestRenewAt(t *testing.T) {
	for _, tt := range lives {
		plan := time.Duration(tt.plan * float64(tt.life))
		for _, u := range []float64{0, 0.5, math.Nextafter(1, 0)} {
			got := certs.RenewAt(now, now.Add(tt.life), u).Sub(now)
			want := plan - time.Duration(u*float64(tt.life/30))
			if d := got - want; d.Abs() > time.Microsecond {
				t.Errorf("RenewAt(life %v, %v) = %v, want %v", tt.life, u, got, want)
			}
		}
	}
}

// TestRenewAtForever: RFC 5280's certificate without end is later than a
// Duration is long.
func TestRenewAtForever(t *testing.T) {
	end := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	if got := certs.RenewAt(now, end, 0.5); !got.After(now) || !got.Before(end) {
		t.Errorf("RenewAt(%v) = %v, want a moment between", end, got)
	}
}

// TestOrdersPerYear renews certificates for a year of each life: the orders are
// within a tenth of the plan's, and none is late.
func TestOrdersPerYear(t *testing.T) {
	const year = 365 * day
	for _, tt := range lives[1:] {
		span := max(year, 10*tt.life)
		orders := 0
		for at := now; at.Sub(now) < span; orders++ {
			next := certs.RenewAt(at, at.Add(tt.life), rand.Float64())
			if next.Sub(at) > time.Duration(tt.plan*float64(tt.life))+1 {
				t.Fatalf("life %v: renewed after %v, want %v of the life at most", tt.life, next.Sub(at), tt.plan)
			}
			at = next
		}
		plan := float64(span) / (tt.plan * float64(tt.life))
		if got := float64(orders); got < plan || got > 1.1*plan+1 {
			t.Errorf("life %v: %v orders in %v, want %.1f to a tenth more", tt.life, orders, span, plan)
		}
	}
}

func TestClip(t *testing.T) {
	at := func(days float64) time.Time { return now.Add(time.Duration(days * float64(day))) }
	tests := []struct{ start, end, now, wantStart, wantEnd float64 }{ // a life from day 0 to day 90: a third is 30, the plan 60, the limit 75
		{58, 60, 1, 58, 60},
		{20, 40, 1, 30, 40},
		{10, 20, 1, 30, 30},
		{10, 20, 19, 30, 30},
		{10, 20, 20, 10, 20},
		{10, 20, 25, 10, 20},
		{-5, -4, 1, -5, -4},
		{70, 80, 1, 70, 75},
		{80, 85, 1, 75, 75},
		{80, 85, 86, 75, 75},
		{10, 100, 1, 30, 75},
		{60, 58, 1, 60, 60},
		{20, 10, 1, 30, 30},
	}
	for _, tt := range tests {
		s, e := certs.Clip(at(tt.start), at(tt.end), at(0), at(90), at(tt.now))
		if !s.Equal(at(tt.wantStart)) || !e.Equal(at(tt.wantEnd)) {
			t.Errorf("Clip(%v to %v) on day %v = %v to %v, want %v to %v", tt.start, tt.end, tt.now,
				s.Sub(now).Hours()/24, e.Sub(now).Hours()/24, tt.wantStart, tt.wantEnd)
		}
	}
}

// TestClipLeavesRoom: for every life and any window, the moment chosen leaves
// at least a sixth of the life, and is no earlier than a third of it unless the
// window was past.
func TestClipLeavesRoom(t *testing.T) {
	for _, tt := range lives {
		somewhen := func() time.Time { return now.Add(scaled(tt.life, 3*rand.Float64()-1)) }
		for range 1000 {
			start, end, at := somewhen(), somewhen(), somewhen()
			s, e := certs.Clip(start, end, now, now.Add(tt.life), at)
			desc := fmt.Sprintf("life %v: Clip(%v to %v at %v) = %v to %v",
				tt.life, start.Sub(now), end.Sub(now), at.Sub(now), s.Sub(now), e.Sub(now))
			if e.Before(s) {
				t.Fatalf("%s, want the start first", desc)
			}
			if e.Sub(now) > scaled(tt.life, (1+tt.plan)/2)+time.Microsecond {
				t.Fatalf("%s, too late", desc)
			}
			past := !start.After(at) && !end.After(at)
			if s.Sub(now) < tt.life/3 && !past {
				t.Fatalf("%s, too early", desc)
			}
		}
	}
}

func scaled(d time.Duration, f float64) time.Duration { return time.Duration(f * float64(d)) }

func TestMoment(t *testing.T) {
	end := now.Add(time.Hour)
	for _, tt := range []struct {
		u    float64
		want time.Duration
	}{{0, 0}, {0.25, 15 * time.Minute}, {0.5, 30 * time.Minute}} {
		if got := certs.Moment(now, end, tt.u).Sub(now); got != tt.want {
			t.Errorf("Moment(an hour, %v) = %v, want %v", tt.u, got, tt.want)
		}
	}
	if got := certs.Moment(now, end, math.Nextafter(1, 0)); got.Before(end.Add(-time.Millisecond)) || got.After(end) {
		t.Errorf("Moment(an hour, almost 1) = %v, want the end", got.Sub(now))
	}
	if got := certs.Moment(now, now, 0.5); !got.Equal(now) {
		t.Errorf("Moment(no time, 0.5) = %v, want %v", got, now)
	}
}
