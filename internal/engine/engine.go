// Package engine runs real storage engines, Redis, PostgreSQL and etcd, as the
// machine has them installed: each on a loopback port, with data of its own that
// is gone when the test ends.
package engine

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// patience is how long to wait for what is sure to come, on the slowest machine.
const patience = 60 * time.Second

// A Server is a running engine. It is killed when the test that started it
// ends, and by the kernel, where that can be had, when the process ends.
type Server struct {
	Addr string // host:port, the same after Restart

	kind    kind
	program string
	dir     string
	user    *user // whom it runs as; nil: us
	cmd     *exec.Cmd
	ended   <-chan struct{}
}

// A kind is what there is to know of an engine.
type kind struct {
	name    string                // of the program
	prepare func(s *Server) error // makes the data in s.dir; nil: the engine does
	args    func(s *Server) []string
	ready   func(s *Server) error
	stop    os.Signal // ends it with all its children
	notRoot bool      // it refuses to run as root
}

// start starts an engine, or skips the test where there is none.
func start(tb testing.TB, k kind) *Server {
	tb.Helper()
	program, err := find(k.name)
	if err != nil {
		tb.Skipf("%s is not installed", k.name)
	}
	s := &Server{kind: k, program: program}
	if err := s.makeDir(tb); err != nil {
		tb.Fatal(err)
	}
	for range 5 {
		if s.Addr, err = freeAddr(); err != nil {
			break
		}
		if err = s.start(); err == nil {
			return s
		}
		tb.Log(err) // the port may have been taken
	}
	tb.Fatalf("%s does not start: %v", k.name, err)
	return nil
}

// makeDir makes the folder for the data. It is not the test's, which is for our
// user alone.
func (s *Server) makeDir(tb testing.TB) error {
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		return err
	}
	s.dir = dir
	tb.Cleanup(func() {
		s.end(s.kind.stop)
		if text, _ := os.ReadFile(s.log()); tb.Failed() {
			tb.Logf("%s:\n%s", s.kind.name, text[max(0, len(text)-20_000):])
		}
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	if s.kind.notRoot && os.Geteuid() == 0 {
		if s.user, err = unprivileged(); err != nil {
			return err
		}
		if err := os.Chown(dir, s.user.uid, s.user.gid); err != nil {
			return err
		}
	}
	if s.kind.prepare == nil {
		return nil
	}
	return s.kind.prepare(s)
}

func (s *Server) log() string { return filepath.Join(s.dir, "log") }

func (s *Server) start() error {
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.program, s.kind.args(s)...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.dir, log, log
	if s.ended, err = launch(s.cmd, s.user); err != nil {
		s.cmd = nil
		return err
	}
	return s.await()
}

// await returns when the engine answers.
func (s *Server) await() error {
	deadline := time.After(patience)
	for {
		err := s.kind.ready(s)
		select {
		case <-s.ended: // another has the port, and may be what is ready
			text, _ := os.ReadFile(s.log())
			return fmt.Errorf("%s has ended: %s", s.kind.name, text[max(0, len(text)-1000):])
		default:
		}
		if err == nil {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-s.ended:
		case <-deadline:
			s.end(os.Kill)
			return fmt.Errorf("%s does not answer: %w", s.kind.name, err)
		}
	}
}

// end sends the engine a signal and returns when it has ended.
func (s *Server) end(sig os.Signal) {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Signal(cmp.Or(sig, os.Kill)) // an error means that it is gone
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.cmd.Process.Kill()
		<-s.ended
	}
	s.cmd = nil
}

// Kill ends the engine as a crash does. It is no longer there when Kill returns.
func (s *Server) Kill(tb testing.TB) {
	tb.Helper()
	s.end(os.Kill)
}

// Restart kills the engine, if it runs, and starts it again on the same data at
// the same address.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	s.end(os.Kill)
	// What the crash left behind may live a moment longer: children of
	// PostgreSQL, connections at the port.
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if err = s.start(); err == nil {
			return
		}
	}
	tb.Fatalf("%s does not start again: %v", s.kind.name, err)
}

// freeAddr returns an address of which TCP is free.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func port(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err) // we made it
	}
	return port
}

// find returns where a program is: in PATH, or where Debian has PostgreSQL's.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if paths, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(paths) > 0 {
		return paths[len(paths)-1], nil
	}
	return "", err
}

// Main is TestMain of a package whose tests all need one engine, by the name of
// its program. Where that is not installed it says so once, and runs none.
func Main(m *testing.M, name string) {
	if _, err := find(name); err != nil {
		fmt.Printf("--- SKIP: all tests: %s is not installed\n", name)
		return
	}
	os.Exit(m.Run())
}
