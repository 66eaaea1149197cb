package challenge

import (
	"slices"
	"testing"
	"time"
)

func TestOrder(t *testing.T) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	half := func() float64 { return 0.5 }
	for _, tt := range []struct {
		name string
		sure map[string]bool
		past Past
		want []string
	}{
		{"one", map[string]bool{TLSALPN01: false}, Past{}, []string{TLSALPN01}},
		{"sure first", map[string]bool{TLSALPN01: false, HTTP01: true}, Past{}, []string{HTTP01, TLSALPN01}},
		{"worked first", map[string]bool{TLSALPN01: false, HTTP01: true}, Past{Worked: TLSALPN01}, []string{TLSALPN01, HTTP01}},
		{"failed last", map[string]bool{TLSALPN01: true, HTTP01: false}, Past{Failed: map[string]time.Time{TLSALPN01: now.Add(-failedAge / 2)}}, []string{HTTP01, TLSALPN01}},
		{"failed long ago", map[string]bool{TLSALPN01: true, HTTP01: false}, Past{Failed: map[string]time.Time{TLSALPN01: now.Add(-2 * failedAge)}}, []string{TLSALPN01, HTTP01}},
		{"worked and failed", map[string]bool{TLSALPN01: true, HTTP01: true}, Past{Worked: HTTP01, Failed: map[string]time.Time{HTTP01: now}}, []string{HTTP01, TLSALPN01}},
	} {
		if got := Order(tt.sure, tt.past, now, half); !slices.Equal(got, tt.want) {
			t.Errorf("%s: Order = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestEqualsAreTriedInAnyOrder(t *testing.T) {
	both := map[string]bool{TLSALPN01: true, HTTP01: true}
	first := make(map[string]bool)
	for range 2 {
		for _, lows := range []bool{true, false} {
			next := lows
			u := func() float64 { next = !next; return map[bool]float64{true: 0.9, false: 0.1}[next] }
			first[Order(both, Past{}, time.Now(), u)[0]] = true
		}
	}
	for range 100 { // the map's own order mixes who gets which number
		n := 0.0
		first[Order(both, Past{}, time.Now(), func() float64 { n += 0.3; return n })[0]] = true
	}
	if len(first) != 2 {
		t.Errorf("only %v ever came first, want both", first)
	}
}
