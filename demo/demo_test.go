package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain has this binary do a member's job in the processes that a fleet starts.
func TestMain(m *testing.M) {
	if j := os.Getenv(jobVar); j != "" {
		beMember(j)
		return
	}
	os.Exit(m.Run())
}

// runOnce runs the demo and returns what it prints.
func runOnce(t *testing.T, o options) string {
	t.Helper()
	o.once = true
	var out bytes.Buffer
	if err := run(t.Context(), &out, o); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	return out.String()
}

func TestOnce(t *testing.T) {
	o := options{dir: t.TempDir()}
	first, second := runOnce(t, o), runOnce(t, o)
	for _, out := range []string{first, second} {
		if n := strings.Count(out, "\nok "); n != 4 {
			t.Errorf("%d checks passed, want 4:\n%s", n, out)
		}
	}
	if !strings.Contains(first, ", obtained\n") {
		t.Errorf("the first start obtained no certificate:\n%s", first)
	}
	if !strings.Contains(second, "no order was made\n") {
		t.Errorf("the second start in the same folder made an order:\n%s", second)
	}
}

func TestFleetOnce(t *testing.T) {
	o := options{dir: t.TempDir(), fleet: true}
	first, second := runOnce(t, o), runOnce(t, o)
	for _, out := range []string{first, second} {
		if n := strings.Count(out, "\nok "); n != 6 {
			t.Errorf("%d checks passed, want 6:\n%s", n, out)
		}
	}
	if !strings.Contains(first, "Pebble counts one order") {
		t.Errorf("the first fleet obtained no certificate:\n%s", first)
	}
	if !strings.Contains(second, "Pebble counts no order:") {
		t.Errorf("the second fleet in the same folder made an order:\n%s", second)
	}
}

// TestOrphan closes a member's input, as happens when the process that started
// it ends in whatever way.
func TestOrphan(t *testing.T) {
	m, err := startMember(job{Member: 1, Folder: t.TempDir()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.stdin.Close()
	select {
	case <-m.done:
	case <-time.After(time.Minute):
		t.Error("a minute later the member has not ended")
		m.kill()
	}
}

func TestInterrupted(t *testing.T) {
	for _, o := range []options{{}, {fleet: true}} {
		ctx, cancel := context.WithCancel(t.Context())
		out := &waiter{substr: "Serving until interrupted.", found: cancel}
		if err := run(ctx, out, o); err != nil {
			t.Errorf("run with %+v = %v, want no error", o, err)
		}
		if !strings.Contains(out.text.String(), "\n  curl --cacert ") {
			t.Errorf("run with %+v prints no command to visit it with:\n%s", o, &out.text)
		}
	}
}

// A waiter calls found when substr was written to it.
type waiter struct {
	text   bytes.Buffer
	substr string
	found  func()
}

func (w *waiter) Write(p []byte) (int, error) {
	w.text.Write(p)
	if strings.Contains(w.text.String(), w.substr) {
		w.found()
	}
	return len(p), nil
}
