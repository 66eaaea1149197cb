// ML-KEM takes much of the time, under the race detector, and is not our subject.
//
//go:debug tlsmlkem=0

// Package fleet tests Managers that share a Storage: processes of their own, on
// each engine, behind a balancer that picks one at random, with one CA that
// counts what they cost. In short what a fleet is for, with all that may happen
// to it.
//
// Its long form takes some ten minutes:
//
//	go test -timeout 30m ./internal/fleet -args -long
package fleet

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

var (
	long = flag.Bool("long", false, "take two minutes of load each, and more trouble")
	seed = flag.Uint64("seed", rand.Uint64(), "of what is at random in the tests")
)

// What a fleet is.
const (
	members = 8
	hosts   = 50
)

const (
	patience = 60 * time.Second // with what is sure to come, on the slowest machine
	recovery = 2 * time.Minute  // until all must be well, whatever happened
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		fmt.Fprintln(os.Stderr, play(role))
		os.Exit(1)
	}
	flag.Parse()
	flag.Set("test.parallel", "8") // these tests wait more than they work
	os.Exit(m.Run())
}

// each runs a test on every engine, side by side.
func each(t *testing.T, test func(t *testing.T, e engine)) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			test(t, e)
		})
	}
}

// span returns the duration of a load: one for every day, or the long one.
func span(short, longer time.Duration) time.Duration {
	if *long {
		return longer
	}
	return short
}

// eventually ends the test if ok does not become true in good time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if ok() {
			return
		}
		<-time.After(2 * time.Millisecond)
	}
	t.Fatalf("after %v still not: %s", patience, what)
}
