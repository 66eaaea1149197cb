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
		retry, ok := s.Take(names...)
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
				retry, ok := s.Take("a")
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
