package challenge

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// failedAge is how long a type of challenge that failed is tried last.
const failedAge = 7 * 24 * time.Hour

// Past is what is known of a host's challenges.
type Past struct {
	Worked string               // the type that was passed last, "" if none was
	Failed map[string]time.Time // the types that could not be passed, and when last
}

// Order returns the types to try, the best first: what worked last, then what
// is sure to reach us, then what may, then what failed within a week. Equals
// are tried in any order, as u in [0,1) has it, lest one of them be relied upon
// unnoticed. The keys of sure are the types that there are.
func Order(sure map[string]bool, past Past, now time.Time, u func() float64) []string {
	types, rank := make([]string, 0, len(sure)), make(map[string]float64)
	for typ := range sure {
		types = append(types, typ)
		switch failed, ok := past.Failed[typ]; {
		case typ == past.Worked:
			rank[typ] = 0
		case ok && now.Sub(failed) < failedAge:
			rank[typ] = 3
		case !sure[typ]:
			rank[typ] = 2
		default:
			rank[typ] = 1
		}
		rank[typ] += u()
	}
	slices.SortFunc(types, func(a, b string) int { return cmp.Compare(rank[a], rank[b]) })
	return types
}

// Advice returns what to look at when a type of challenge failed and no
// validation was seen to arrive.
func Advice(typ, host string, sure bool) string {
	switch {
	case typ == HTTP01:
		return fmt.Sprintf("no http-01 validation arrived here: does %s lead here, to port 80?", host)
	case sure:
		return fmt.Sprintf("no tls-alpn-01 validation arrived here: does %s lead here, to port 443?", host)
	}
	return fmt.Sprintf(`no tls-alpn-01 validation arrived here: does %s lead here, to port 443? `+
		`And a tls.Config of the program's own must list %q in NextProtos, as TLSConfig's does, or HTTPHandler answer at port 80`, host, ALPNProto)
}
