// Package storetest checks that a Storage keeps its promises.
//
// The test of an engine is a test function of its own that says how to start
// the engine and how to reach it:
//
//	func TestStorage(t *testing.T) {
//		engine := storetest.Engine{
//			Start:    func(tb testing.TB) string { return startServer(tb) },
//			Open:     func(tb testing.TB, addr string) letsencrypt.Storage { return dial(tb, addr) },
//			CrashTTL: time.Minute,
//		}
//		storetest.Required(t, engine)
//		storetest.Strict(t, engine)
//	}
//
// Required is what a Manager leans on; every storage of a fleet must pass it.
// Strict is what it is better off with.
//
// Both run the test binary again, as another process that is killed while it
// holds a lock: the function that calls them is entered there too, up to the
// call. So it should do nothing before it that takes long or changes anything.
package storetest

import (
	"context"
	"sync"
	"testing"
	"time"

	"example.com/letsencrypt"
)

// An Engine says how the tests reach what they test.
type Engine struct {
	// Start makes an engine with nothing in it, which ends with the test, and
	// returns what Open needs to find it: a folder, a URL. It is called
	// more than once; what it makes is apart from what it made before.
	Start func(tb testing.TB) (addr string)

	// Open returns a new client of the engine at addr, as another process has
	// it, and closes it when the test ends. It is called in other processes too.
	Open func(tb testing.TB, addr string) letsencrypt.Storage

	// CrashTTL is how long the lock of a process that was killed stays taken,
	// at most, while somebody waits for it.
	CrashTTL time.Duration

	// Restart kills the engine at addr as a power cut would, and starts it again
	// with what it had on its disk. If nil, that is not tested.
	Restart func(tb testing.TB, addr string)

	// Steal takes a lock away from its holder, as an operator would or the
	// engine does with one that it has not heard of for long. If nil, that is
	// not tested.
	Steal func(tb testing.TB, addr, lock string)
}

const (
	patience = 30 * time.Second       // what should just work has it this long
	promptly = 5 * time.Second        // and what should be quick this long
	moment   = 300 * time.Millisecond // what should not happen has had its chance
)

// A suite is an engine that was started.
type suite struct {
	Engine
	addr   string
	caller string // the test that called Required or Strict
}

// Required tests what a Manager leans on: values, and locks that exclude.
func Required(t *testing.T, e Engine) {
	run(t, e, "Required", []test{
		{"Values", testValues},
		{"Keys", testKeys},
		{"Isolation", testIsolation},
		{"List", testList},
		{"Overwrite", testOverwrite},
		{"Cancel", testCancel},
		{"Exclusion", testExclusion},
		{"Independence", testIndependence},
		{"LockCancel", testLockCancel},
		{"LockOutlivesContext", testLockOutlivesContext},
		{"Crash", testCrash},
	})
}

// Strict tests what makes a Storage good beyond that: it takes any key or says
// no, a lost lock does not go unnoticed, and no power cut loses anything.
func Strict(t *testing.T, e Engine) {
	run(t, e, "Strict", []test{
		{"HostileKeys", testHostileKeys},
		{"HostileLocks", testHostileLocks},
		{"ListExactly", testListExactly},
		{"EndedContext", testEndedContext},
		{"UnlockUnheld", testUnlockUnheld},
		{"LostLock", testLostLock},
		{"LongHold", testLongHold},
		{"DeathLocked", func(t *testing.T, s suite) { testDeath(t, s, "locked") }},
		{"DeathStored", func(t *testing.T, s suite) { testDeath(t, s, "stored") }},
		{"Restart", testRestart},
	})
}

type test struct {
	name string
	f    func(t *testing.T, s suite)
}

// run runs tests at the same time. Most of it is waiting, which t.Parallel
// would have them do in turns, as many at a time as there are processors.
func run(t *testing.T, e Engine, group string, tests []test) {
	playRole(t, e)
	caller := t.Name()
	t.Run(group, func(t *testing.T) {
		s := suite{e, e.Start(t), caller}
		var wg sync.WaitGroup
		defer wg.Wait()
		for _, tt := range tests {
			wg.Go(func() { t.Run(tt.name, func(t *testing.T) { tt.f(t, s) }) })
		}
	})
}

func (s suite) open(t *testing.T) letsencrypt.Storage {
	t.Helper()
	return s.Open(t, s.addr)
}

// within returns a context that ends after d.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
