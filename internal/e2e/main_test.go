// Package e2e tests the whole Manager against Pebble, Let's Encrypt's test CA:
// what a certificate costs, what becomes of faults and crashes, what clients
// see of renewals. What the CA was asked, and what it issued, is counted by
// Pebble and by a proxy in front of it, never by the Manager's word.
package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
)

// The environment of a process that startChild started.
const (
	childProgram = "E2E_CHILD"
	childArgs    = "E2E_CHILD_ARGS"
)

// childPrograms are what this test binary can be in a process that startChild
// started. Each gets its arguments in JSON.
var childPrograms = map[string]func(args []byte) error{
	"serve": serveChild,
}

// TestMain checks that the package leaves no goroutine behind, whatever its
// tests did.
func TestMain(m *testing.M) {
	if name := os.Getenv(childProgram); name != "" {
		runChild(name)
	}
	flag.Parse()
	flag.Set("test.parallel", "8") // these tests wait more than they work
	before := runtime.NumGoroutine()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // fuzzing leaves a goroutine of os/signal's
	}
	// Connections whose other end is gone take a moment to notice.
	if code == 0 && !became(func() bool { return runtime.NumGoroutine() <= before }) {
		fmt.Fprintf(os.Stderr, "%d goroutines after all tests, want %d:\n", runtime.NumGoroutine(), before)
		pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		code = 1
	}
	os.Exit(code)
}

func runChild(name string) {
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with the parent, however that ends
		os.Exit(1)
	}()
	if err := childPrograms[name]([]byte(os.Getenv(childArgs))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A child is a process of this test's.
type child struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	output lockedBuffer
	done   chan struct{} // closed when it has ended
}

// startChild runs one of childPrograms in a process that ends with the test at
// the latest. What it printed is logged if the test fails.
func startChild(t *testing.T, program string, args any) *child {
	t.Helper()
	data, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childProgram+"="+program, childArgs+"="+string(data))
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		c.cmd.Wait() // how it ended is in cmd.ProcessState
	}()
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			t.Logf("%s child:\n%s", program, c.output.String())
		}
	})
	return c
}

// kill ends the process as a crash does, and returns when it is gone.
func (c *child) kill() {
	c.cmd.Process.Kill() // an error means that it is gone
	<-c.done
}

// patience is how long to wait for what is sure to come, on the slowest machine.
const patience = 30 * time.Second

// became reports whether ok becomes true in good time.
func became(ok func() bool) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if ok() {
			return true
		}
		<-time.After(2 * time.Millisecond)
	}
	return ok()
}

// eventually ends the test if ok does not become true in good time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !became(ok) {
		t.Fatalf("after %v still not: %s", patience, what)
	}
}
