package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// runOnce runs the demo in a folder and returns what it prints.
func runOnce(t *testing.T, dir string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), &out, dir, true); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	return out.String()
}

func TestOnce(t *testing.T) {
	dir := t.TempDir()
	first, second := runOnce(t, dir), runOnce(t, dir)
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

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := &waiter{substr: "Serving until interrupted.", found: cancel}
	if err := run(ctx, out, "", false); err != nil {
		t.Errorf("%v, want no error", err)
	}
	if !strings.Contains(out.text.String(), "\n  curl --cacert ") {
		t.Errorf("no command to visit it with:\n%s", &out.text)
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
