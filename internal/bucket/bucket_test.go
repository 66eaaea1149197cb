package bucket

import (
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
)

func set(lims map[string]*rate.Limiter) *Set { return &Set{Buckets: lims} }

func takeAll(s *Set, names ...string) (n int, retry time.Time) {
	for {
		retry, ok := s.Take(time.Now(), names...)
		if !ok {
			return n, retry
		}
		n++
	}
}

func TestTakeTellsWhenThereIsAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := set(map[string]*rate.Limiter{"a": rate.NewLimiter(rate.Every(time.Minute), 20)})
		n, retry := takeAll(s, "a")
		if n != 20 {
			t.Errorf("took %d tokens at once, want the burst of 20", n)
		}
		if d := time.Until(retry); d <= 59*time.Second || d > 61*time.Second {
			t.Errorf("the next in %v, want a minute", d)
		}
		time.Sleep(time.Until(retry))
		if n, _ := takeAll(s, "a"); n != 1 {
			t.Errorf("took %d tokens when told to, want 1", n)
		}
	})
}

func TestTakeIsAllOrNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := rate.NewLimiter(rate.Every(time.Minute), 20), rate.NewLimiter(rate.Every(3*time.Hour), 1)
		s := set(map[string]*rate.Limiter{"a": a, "b": b})
		if n, retry := takeAll(s, "a", "b"); n != 1 || time.Until(retry) < 2*time.Hour {
			t.Errorf("took %d, the next in %v, want 1 and three hours", n, time.Until(retry))
		}
		if got := a.TokensAt(time.Now()); got != 19 {
			t.Errorf("bucket a holds %v, want 19: b had none to give", got)
		}
	})
}

func TestBucketsOfAllKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name string
			lim  *rate.Limiter
			want int // of 100
		}{
			{"nil", nil, 100},
			{"inf", rate.NewLimiter(rate.Inf, 0), 100},
			{"five ever", rate.NewLimiter(0, 5), 5},
			{"none ever", rate.NewLimiter(0, 0), 0},
			{"no burst", rate.NewLimiter(1, 0), 0},
		} {
			s, got := set(map[string]*rate.Limiter{"a": tt.lim}), 0
			for range 100 {
				retry, ok := s.Take(time.Now(), "a")
				if ok {
					got++
				} else if !retry.IsZero() {
					t.Errorf("%s: retry %v, want zero: never", tt.name, retry)
				}
			}
			if got != tt.want {
				t.Errorf("%s: took %d of 100, want %d", tt.name, got, tt.want)
			}
		}
	})
}

func TestLevelsSurvive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fresh := func() *Set {
			return set(map[string]*rate.Limiter{"a": rate.NewLimiter(rate.Every(time.Minute), 20), "b": nil})
		}
		old := fresh()
		takeAll(old, "a")
		if !old.Spent() {
			t.Error("Spent() = false after Take")
		}
		levels := old.Levels()
		if old.Spent() {
			t.Error("Spent() = true after Levels")
		}
		s := fresh()
		s.Restore(levels)
		if n, _ := takeAll(s, "a"); n != 0 {
			t.Errorf("took %d tokens after Restore, want 0", n)
		}
		time.Sleep(5 * time.Minute)
		if n, _ := takeAll(s, "a"); n != 5 {
			t.Errorf("took %d tokens after five minutes, want 5", n)
		}
	})
}

func TestClockSetBackFillsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lim := rate.NewLimiter(rate.Every(time.Minute), 20)
		s := set(map[string]*rate.Limiter{"a": lim})
		// A level from a year ahead: the clock was set back since.
		s.Restore(map[string]Level{"a": {Tokens: 0, At: time.Now().AddDate(1, 0, 0)}})
		if n, _ := takeAll(s, "a"); n != 0 {
			t.Errorf("took %d tokens, want 0", n)
		}
	})
}

func TestClockThatWasFarAheadDoesNotStopTheBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := set(map[string]*rate.Limiter{"a": rate.NewLimiter(rate.Every(time.Minute), 20)})
		s.Restore(map[string]Level{"a": {Tokens: 0, At: time.Now().AddDate(10, 0, 0)}})
		time.Sleep(5 * time.Minute)
		if n, _ := takeAll(s, "a"); n != 5 {
			t.Errorf("took %d tokens five minutes after the clock was put right, want 5", n)
		}
	})
}

func TestBackFillsNothingAndCountsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lim := rate.NewLimiter(rate.Every(time.Minute), 20)
		s := set(map[string]*rate.Limiter{"a": lim})
		lim.AllowN(time.Now().Add(10*time.Hour), 20) // taken by a clock that was ahead
		s.wall = time.Now().Add(10 * time.Hour)
		if n, _ := takeAll(s, "a"); n != 0 {
			t.Fatalf("took %d tokens, want 0", n)
		}
		s.Back()
		if n, _ := takeAll(s, "a"); n != 0 {
			t.Errorf("took %d tokens after Back, want 0", n)
		}
		time.Sleep(3 * time.Minute)
		if n, _ := takeAll(s, "a"); n != 3 {
			t.Errorf("took %d tokens three minutes after Back, want 3", n)
		}
	})
}

func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const never, minute = -1, time.Minute
		minutely := func() *rate.Limiter { return rate.NewLimiter(rate.Every(minute), 5) }
		for _, tt := range []struct {
			name string
			lims map[string]*rate.Limiter
			n    int
			want time.Duration // till then; 0: now
		}{
			{"none of none", nil, 0, 0},
			{"some of none", nil, 5, 0},
			{"nil", map[string]*rate.Limiter{"a": nil}, 100, 0},
			{"inf", map[string]*rate.Limiter{"a": rate.NewLimiter(rate.Inf, 0)}, 100, 0},
			{"fewer than there are", map[string]*rate.Limiter{"a": minutely()}, 4, 0},
			{"as many as there are", map[string]*rate.Limiter{"a": minutely()}, 5, 0},
			{"three more", map[string]*rate.Limiter{"a": minutely()}, 8, 3 * minute},
			{"the slower of two", map[string]*rate.Limiter{"a": minutely(), "b": rate.NewLimiter(rate.Every(time.Hour), 7)}, 8, time.Hour},
			{"none ever", map[string]*rate.Limiter{"a": rate.NewLimiter(0, 0)}, 1, never},
			{"no more ever", map[string]*rate.Limiter{"a": rate.NewLimiter(0, 5)}, 6, never},
			{"none ever of one", map[string]*rate.Limiter{"a": minutely(), "b": rate.NewLimiter(0, 0)}, 8, never},
			{"in three hundred years", map[string]*rate.Limiter{"a": rate.NewLimiter(rate.Every(time.Hour), 1)}, 24 * 365 * 300, never},
		} {
			retry, ok := set(tt.lims).Ready(time.Now(), tt.n, "a", "b")
			switch {
			case ok != (tt.want == 0) || (ok || tt.want == never) != retry.IsZero():
				t.Errorf("%s: Ready(%d) = %v, %v, want true: %v", tt.name, tt.n, retry, ok, tt.want == 0)
			case tt.want > 0 && time.Until(retry).Round(time.Second) != tt.want:
				t.Errorf("%s: Ready(%d) tells to come in %v, want %v", tt.name, tt.n, time.Until(retry), tt.want)
			}
		}
	})
}

func TestReadySeesWhatTheProgramDoes(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name string
		do   func(lim *rate.Limiter, last *rate.Reservation)
		want time.Duration // till there is a token; 0: now, -1: never
	}{
		{"nothing", func(*rate.Limiter, *rate.Reservation) {}, time.Minute},
		{"gives back", func(_ *rate.Limiter, last *rate.Reservation) { last.CancelAt(now) }, 0},
		{"takes ahead", func(lim *rate.Limiter, _ *rate.Reservation) { lim.ReserveN(now, 3) }, 4 * time.Minute},
		{"a faster limit", func(lim *rate.Limiter, _ *rate.Reservation) { lim.SetLimitAt(now, 1) }, time.Second},
		{"no limit", func(lim *rate.Limiter, _ *rate.Reservation) { lim.SetLimitAt(now, rate.Inf) }, 0},
		{"no more", func(lim *rate.Limiter, _ *rate.Reservation) { lim.SetLimitAt(now, 0) }, -1},
		{"a negative limit", func(lim *rate.Limiter, _ *rate.Reservation) { lim.SetLimitAt(now, -1) }, -1},
		{"no burst", func(lim *rate.Limiter, _ *rate.Reservation) { lim.SetBurstAt(now, 0) }, -1},
	} {
		lim := rate.NewLimiter(rate.Every(time.Minute), 5)
		s := set(map[string]*rate.Limiter{"a": lim})
		lim.AllowN(now, 4)
		last := lim.ReserveN(now.Add(time.Nanosecond), 1) // one is given back only before it is due
		s.Ready(now, 1, "a")
		tt.do(lim, last)
		retry, ok := s.Ready(now, 1, "a")
		switch {
		case ok != (tt.want == 0) || retry.IsZero() != (tt.want <= 0):
			t.Errorf("%s: Ready = %v, %v, want true: %v", tt.name, retry, ok, tt.want == 0)
		case tt.want > 0 && retry.Sub(now).Round(time.Second) != tt.want:
			t.Errorf("%s: Ready tells to come in %v, want %v", tt.name, retry.Sub(now), tt.want)
		}
	}
}

func TestReadyATimeOfThePast(t *testing.T) {
	now := time.Now()
	s := set(map[string]*rate.Limiter{"a": rate.NewLimiter(rate.Every(time.Minute), 5)})
	want, _ := s.Ready(now, 6, "a")
	if got, ok := s.Ready(now.Add(-time.Hour), 6, "a"); ok || !got.Equal(want) {
		t.Errorf("Ready an hour before = %v, %v, want %v as now", got, ok, want)
	}
	early := now.Add(-2 * maxAhead)
	if got, ok := s.Ready(early, 6, "a"); ok || got.Sub(early).Round(time.Second) != time.Minute {
		t.Errorf("Ready two days before = %v, %v, want a minute later: the clock was wrong", got, ok)
	}
}

func TestReadyTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := set(map[string]*rate.Limiter{"a": rate.NewLimiter(rate.Every(time.Minute), 20)})
		for range 100 {
			s.Ready(time.Now(), 20, "a")
		}
		if n, _ := takeAll(s, "a"); n != 20 {
			t.Errorf("took %d tokens after Ready, want 20", n)
		}
	})
}

func BenchmarkReady(b *testing.B) {
	now := time.Now()
	s := set(map[string]*rate.Limiter{"a": rate.NewLimiter(rate.Every(time.Minute), 20), "b": rate.NewLimiter(rate.Every(time.Hour), 20)})
	takeAll(s, "a", "b")
	now = now.Add(time.Second)
	b.ReportAllocs()
	for b.Loop() {
		s.Ready(now, 1, "a", "b")
	}
}
