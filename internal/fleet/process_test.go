package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
)

// The environment of a process that startProcess started.
const (
	roleVar = "FLEET_ROLE"
	argsVar = "FLEET_ARGS"
)

// roles are what this test binary can be in a process of its own. Each gets its
// arguments in JSON, and calls ready.
var roles = map[string]func(args []byte) error{
	"member": beMember,
	"names":  beNames,
}

// play plays a role until the process that started this one has ended, or kills
// it.
func play(role string) error {
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with the parent, however that ends
		os.Exit(1)
	}()
	return roles[role]([]byte(os.Getenv(argsVar)))
}

// ready tells who started us that we are ready, and what it needs to know.
func ready(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// A process is one that plays a role.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// startProcess starts a process for a role, and reads into v what it says when
// it is ready.
func startProcess(ctx context.Context, role string, args, v any, stderr io.Writer) (*process, error) {
	data, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), roleVar+"="+role, argsVar+"="+string(data))
	said := make(chan string, 1)
	p.cmd.Stdout, p.cmd.Stderr = &lines{to: func(line string) { said <- line }}, stderr
	if _, err := p.cmd.StdinPipe(); err != nil { // which ends when we do
		return nil, err
	}
	if err := p.start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("it does not get ready"))
	defer cancel()
	select {
	case line := <-said:
		err = json.Unmarshal([]byte(line), v)
	case <-p.done:
		err = errors.New("it has ended")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// start starts the process, from a thread that lives as long: the signal that
// Linux sends a child when its parent dies is tied to that
// (golang.org/issue/27505).
func (p *process) start() error {
	dieWithParent(p.cmd)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait() // how it ended is what it was killed by
			close(p.done)
		}
	}()
	return <-started
}

// kill ends the process as a crash does, and returns when it is gone.
func (p *process) kill() {
	p.cmd.Process.Kill() // an error means that it is gone
	<-p.done
}

// A lines is an io.Writer that passes on whole lines.
type lines struct {
	to      func(line string)
	partial []byte
}

func (w *lines) Write(p []byte) (int, error) {
	w.partial = append(w.partial, p...)
	for {
		line, rest, ok := bytes.Cut(w.partial, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.to(string(line))
		w.partial = rest
	}
}
