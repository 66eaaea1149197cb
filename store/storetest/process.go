package storetest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt"
)

// What another process is to do, and with which engine, it reads from its
// environment. What it did it says on lines of its output that begin with said.
const (
	roleVar = "STORETEST_ROLE"
	addrVar = "STORETEST_ADDR"
	said    = "storetest: "
)

// playRole does what this process was started for, if a test started it, and
// ends the test that called it.
func playRole(t *testing.T, e Engine) {
	role := strings.Fields(os.Getenv(roleVar))
	if len(role) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // whoever started us closes our input, at the latest when it dies
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	s := e.Open(t, os.Getenv(addrVar))
	switch role[0] {
	case "hold":
		hold(ctx, t, s, role[1])
	case "count":
		for ctx.Err() == nil {
			count(t, s, role[1], "")
		}
	case "die":
		count(t, s, role[2], "")
		count(t, s, role[2], role[1])
	default:
		t.Fatalf("no such role: %q", role)
	}
	t.SkipNow()
}

// hold takes a lock and keeps it.
func hold(ctx context.Context, t *testing.T, s letsencrypt.Storage, name string) {
	if err := s.Lock(ctx, name); err != nil {
		t.Fatalf("Lock(%q) = %v", name, err)
	}
	fmt.Println(said + "held")
	<-ctx.Done()
}

// count adds one to a number under its lock, and says so. It dies on the way if
// it is told where: when it has locked, or when it has stored.
func count(t *testing.T, s letsencrypt.Storage, name, die string) {
	ctx := within(t, 2*time.Minute) // who died with the lock must be waited for
	if err := s.Lock(ctx, name); err != nil {
		t.Fatalf("Lock(%q) = %v", name, err)
	}
	if die == "locked" {
		kill(t)
	}
	n, err := add(ctx, s, name)
	if err != nil {
		t.Fatal(err)
	}
	if die == "stored" {
		kill(t)
	}
	if err := s.Unlock(ctx, name); err != nil {
		t.Fatalf("Unlock(%q) = %v", name, err)
	}
	fmt.Println(said+"counted", n)
}

// kill ends this process as if another killed it.
func kill(t *testing.T) {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	t.Fatalf("still alive: %v", err)
}

// add adds one to the number at a counter's key, which is 0 if there is none.
func add(ctx context.Context, s letsencrypt.Storage, name string) (int, error) {
	n, err := number(ctx, s, name)
	if err != nil {
		return 0, err
	}
	n++
	if err := s.Store(ctx, counterKey(name), []byte(strconv.Itoa(n))); err != nil {
		return 0, fmt.Errorf("Store(%q) = %w", counterKey(name), err)
	}
	return n, nil
}

func number(ctx context.Context, s letsencrypt.Storage, name string) (int, error) {
	data, err := s.Load(ctx, counterKey(name))
	if isMissing(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("Load(%q) = %w", counterKey(name), err)
	}
	return strconv.Atoi(string(data))
}

func counterKey(name string) string { return "letsencrypt/counter/" + name }

// A process is another one that uses the same engine.
type process struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	lines  chan string  // what it said; closed when it has ended
	output bytes.Buffer // what else it printed; complete when lines is closed
}

// start starts this test binary again, for a role. The process is killed when
// the test ends.
func (s suite) start(t *testing.T, role ...string) *process {
	t.Helper()
	caller := strings.Split(s.caller, "/")
	for i := range caller {
		caller[i] = "^" + regexp.QuoteMeta(caller[i]) + "$"
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{lines: make(chan string, 100)}
	p.cmd = exec.Command(exe, "-test.run="+strings.Join(caller, "/"), "-test.count=1")
	p.cmd.Env = append(os.Environ(), roleVar+"="+strings.Join(role, " "), addrVar+"="+s.addr)
	p.cmd.Stderr = &p.output
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.read(stdout)
	t.Cleanup(func() { p.kill() })
	return p
}

// read passes on what the process says until it has ended.
func (p *process) read(stdout io.Reader) {
	defer close(p.lines)
	var rest []string
	for in := bufio.NewScanner(stdout); in.Scan(); {
		if line, ok := strings.CutPrefix(in.Text(), said); ok {
			p.lines <- line
		} else {
			rest = append(rest, in.Text())
		}
	}
	p.cmd.Wait() // how it ended shows in what it printed
	p.output.WriteString(strings.Join(rest, "\n"))
}

// says waits for the next line that the process says.
func (p *process) says(t *testing.T, d time.Duration) string {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			t.Fatalf("the other process ended: %s", &p.output)
		}
		return line
	case <-time.After(d):
		t.Fatalf("the other process said nothing for %v", d)
	}
	return ""
}

// kill kills the process, as SIGKILL does. It returns when the process is dead,
// with what it said that nobody has read yet.
func (p *process) kill() []string {
	p.cmd.Process.Kill() // an error says that it has ended already
	return p.rest()
}

// finish has the process end by itself, and returns what it said meanwhile.
func (p *process) finish() []string {
	defer time.AfterFunc(patience, func() { p.cmd.Process.Kill() }).Stop()
	p.stdin.Close()
	return p.rest()
}

func (p *process) rest() []string {
	var lines []string
	for line := range p.lines {
		lines = append(lines, line)
	}
	return lines
}
