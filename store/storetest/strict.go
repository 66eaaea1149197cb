package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt"
)

// hostile are names that mean something to file systems, shells, globs or
// protocols, and pairs that one of them takes for the same.
var hostile = []string{
	"", ".", "..", "/", "../x", "../../x", "a/../../x", "/abs", "a//b", "a/./b", "a/../b", "a/", "..\\x", "C:\\x", "C:x",
	"a\x00b", "a\nb", "a\r\nb", "a\tb", "a\\b", "a:b", "a*", "a?", "a[b]", "*", "^", "%", "_", "a%", "%41", "%2e%2e/x", "'; --", "$x",
	"A", "a", "CON", "con", "nul.txt", "aux/com1", "lpt1.", "a.", "a ", " a", ".a", "-rf", "~", "#", "{a}b",
	"\u00fc", "u\u0308", "\u212a", "k", "\u202e", "\xff\xfe", "\xc3", "\u65e5\u672c",
	"x", "x/y", "x/y/z", "x.value", "x.lock", "x~", "x,v", "values/x", "locks/x", "temp/x", ".lock",
	strings.Repeat("k", 300), strings.Repeat("k", 4096), strings.Repeat("\u00fc", 150), strings.Repeat("d/", 600) + "x",
}

// accept calls op for each hostile name and returns those that it took. It may
// refuse some, and then must say which.
func accept(t *testing.T, what string, op func(name string) error) []string {
	t.Helper()
	var accepted []string
	for _, name := range hostile {
		err := op(name)
		if err == nil {
			accepted = append(accepted, name)
			continue
		}
		quoted := strconv.Quote(name)
		quoted = quoted[1 : len(quoted)-1]
		if text := err.Error(); !strings.Contains(text, name) && !strings.Contains(text, quoted) {
			t.Errorf("%s(%.50q) = %.200q, want no error or one that names it", what, name, text)
		}
	}
	return accepted
}

// testHostileKeys: any string is a key like all others, or refused.
func testHostileKeys(t *testing.T, s suite) {
	s.addr = s.Start(t) // nothing else is in it
	a, b := s.open(t), s.open(t)
	ctx := within(t, 2*patience)
	accepted := accept(t, "Store", func(key string) error { return a.Store(ctx, key, []byte("value of "+key)) })
	t.Logf("takes %d of %d", len(accepted), len(hostile))
	for _, key := range accepted {
		wantValue(t, b, key, []byte("value of "+key))
	}
	for _, key := range hostile {
		if slices.Contains(accepted, key) {
			continue
		}
		if got, err := b.Load(ctx, key); err == nil {
			t.Errorf("Load(%.50q), which was not stored = %.50q, want an error", key, got)
		}
	}
	got, err := b.List(ctx, "", true)
	slices.Sort(got)
	if want := slices.Sorted(slices.Values(accepted)); err != nil || !slices.Equal(got, want) {
		t.Errorf(`List("", true) = %.50q, %v, want %.50q`, got, err, want)
	}
	for i, key := range accepted {
		if err := b.Delete(ctx, key); err != nil {
			t.Errorf("Delete(%.50q) = %v", key, err)
		}
		wantMissing(t, a, key)
		for _, other := range accepted[i+1:] {
			wantValue(t, a, other, []byte("value of "+other))
		}
	}
}

// testHostileLocks: any string is the name of a lock like all others, or refused.
func testHostileLocks(t *testing.T, s suite) {
	a, b := s.open(t), s.open(t)
	accepted := accept(t, "Lock", func(name string) error { return a.Lock(within(t, promptly), name) })
	t.Logf("takes %d of %d", len(accepted), len(hostile))
	for _, name := range accepted {
		unlock(t, a, name)
	}
	for _, name := range accepted {
		lock(t, b, name, promptly)
		unlock(t, b, name)
	}
}

// testListExactly: List returns keys and, if it is not recursive, the next
// level of them, each once and nothing else.
func testListExactly(t *testing.T, s suite) {
	s.addr = s.Start(t) // nothing else is in it
	c := s.open(t)
	for _, recursive := range []bool{true, false} {
		wantList(t, c, "", recursive)
		wantList(t, c, "none", recursive)
	}
	keys := []string{"a", "b/c", "b/d/e", "b/d/f", "bb", "d/e"}
	for _, key := range keys {
		store(t, c, key, nil)
	}
	wantList(t, c, "", true, keys...)
	wantList(t, c, "", false, "a", "b", "bb", "d")
	wantList(t, c, "b", true, "b/c", "b/d/e", "b/d/f")
	wantList(t, c, "b", false, "b/c", "b/d")
	wantList(t, c, "a", true)
	wantList(t, c, "a", false)
	remove(t, c, "b/d/e")
	remove(t, c, "b/d/f")
	wantList(t, c, "b", false, "b/c")
}

// testEndedContext: an operation whose context has ended says so, and that
// is not that there is nothing.
func testEndedContext(t *testing.T, s suite) {
	const key = "letsencrypt/ended/example.com"
	c := s.open(t)
	store(t, c, key, []byte("value"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, loading := c.Load(ctx, key)
	_, listing := c.List(ctx, "letsencrypt/ended", true)
	for what, err := range map[string]error{
		"Load":   loading,
		"List":   listing,
		"Store":  c.Store(ctx, key, []byte("another")),
		"Delete": c.Delete(ctx, key),
		"Lock":   c.Lock(ctx, "ended.example"),
	} {
		if !errors.Is(err, context.Canceled) || isMissing(err) {
			t.Errorf("%s with a context that has ended = %v, want context.Canceled", what, err)
		}
	}
	wantValue(t, c, key, []byte("value"))
	lock(t, s.open(t), "ended.example", promptly)
}

// testUnlockUnheld: who gives back what it does not have is told, and takes
// nothing from anybody.
func testUnlockUnheld(t *testing.T, s suite) {
	const name = "unheld.example"
	a, b := s.open(t), s.open(t)
	if err := a.Unlock(within(t, patience), name); err == nil {
		t.Errorf("Unlock(%q) of what nobody has = nil, want an error", name)
	}
	lock(t, a, name, patience)
	if err := b.Unlock(within(t, patience), name); err == nil {
		t.Errorf("Unlock(%q) of what another has = nil, want an error", name)
	}
	wantHeld(t, b, name)
	unlock(t, a, name)
	if err := a.Unlock(within(t, patience), name); err == nil {
		t.Errorf("Unlock(%q) once more = nil, want an error", name)
	}
}

// testLostLock: a holder whose lock was taken from it learns of it from Unlock,
// and that Unlock does not take it from its new holder.
func testLostLock(t *testing.T, s suite) {
	if s.Steal == nil {
		t.Log("not tested: the engine has no Steal")
		return
	}
	const name = "lost.example"
	a, b, c := s.open(t), s.open(t), s.open(t)
	lock(t, a, name, patience)
	s.Steal(t, s.addr, name)
	lock(t, b, name, s.CrashTTL)
	if err := a.Unlock(within(t, patience), name); err == nil {
		t.Errorf("Unlock(%q) of a lost lock = nil, want an error", name)
	}
	wantHeld(t, c, name)
	unlock(t, b, name)
	lock(t, a, name, promptly) // who lost it once can have it again
	unlock(t, a, name)

	lock(t, a, name, promptly)
	s.Steal(t, s.addr, name)
	if err := a.Unlock(within(t, patience), name); err == nil {
		t.Errorf("Unlock(%q) of a lost lock that nobody else took = nil, want an error", name)
	}
}

// testLongHold: a holder that lives keeps its lock for longer than a dead one,
// and who waits gets it soon after.
func testLongHold(t *testing.T, s suite) {
	const name = "long.example"
	a, b := s.open(t), s.open(t)
	hold := s.CrashTTL + promptly
	lock(t, a, name, patience)
	waiting := make(chan error, 1)
	go func() { waiting <- b.Lock(within(t, hold+patience), name) }()
	select {
	case err := <-waiting:
		t.Fatalf("Lock(%q) while another holds it = %v, want it to wait", name, err)
	case <-time.After(hold):
	}
	unlock(t, a, name)
	select {
	case err := <-waiting:
		if err != nil {
			t.Fatalf("Lock(%q) = %v", name, err)
		}
	case <-time.After(promptly):
		t.Fatalf("Lock(%q) still waits %v after the lock was given back", name, promptly)
	}
	unlock(t, b, name)
}

// testDeath: processes count under a lock, and one dies while it has it. The
// others go on, and none counts what another did.
func testDeath(t *testing.T, s suite, die string) {
	name := die + ".example"
	said := make(map[string]bool)
	note := func(lines ...string) {
		for _, line := range lines {
			if said[line] {
				t.Errorf("two processes say %q", line)
			}
			said[line] = true
		}
	}
	c := s.open(t)
	living := s.start(t, "count", name)
	note(living.says(t, patience))
	note(s.start(t, "die", die, name).finish()...)
	dead, err := number(within(t, patience), c, name)
	if err != nil {
		t.Fatal(err)
	}
	for !said[fmt.Sprint("counted ", dead+1)] {
		note(living.says(t, patience+s.CrashTTL))
	}
	note(living.finish()...)
	want := len(said)
	if die == "stored" {
		want++ // it did not live to say so
	}
	if n, err := number(within(t, patience), c, name); err != nil || n != want {
		t.Errorf("a counter under a lock is at %d (%v), want %d", n, err, want)
	}
}

// testRestart: what Store had returned of is there after a power cut, and locks
// work again, whoever held them.
func testRestart(t *testing.T, s suite) {
	if s.Restart == nil {
		t.Log("not tested: the engine has no Restart")
		return
	}
	s.addr = s.Start(t)
	a, b := s.open(t), s.open(t)
	lock(t, a, "living.example", patience)
	p := s.start(t, "hold", "dead.example")
	p.says(t, patience)
	p.kill()
	key := func(i int) string { return fmt.Sprintf("letsencrypt/restart/%d.example", i) }
	const keys = 20
	for i := range keys {
		store(t, a, key(i), pattern(byte(i)))
	}
	s.Restart(t, s.addr)
	settle(t, b)
	for i := range keys {
		wantValue(t, b, key(i), pattern(byte(i)))
	}
	settle(t, a)
	a.Unlock(within(t, patience), "living.example") // lost or not
	for _, name := range []string{"living.example", "dead.example"} {
		lock(t, b, name, s.CrashTTL+patience)
		unlock(t, b, name)
	}
}

// settle waits until a client has found the engine again.
func settle(t *testing.T, c letsencrypt.Storage) {
	t.Helper()
	ctx := within(t, patience)
	for {
		attempt, cancel := context.WithTimeout(ctx, promptly)
		err := c.Store(attempt, "letsencrypt/restart/settled", nil)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-time.After(moment):
		case <-ctx.Done():
			t.Fatalf("Store after the restart = %v", err)
		}
	}
}
