package engine

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Redis starts a Redis that writes every change to disk before it answers, with
// more arguments on its command line.
func Redis(tb testing.TB, more ...string) *Server {
	tb.Helper()
	return start(tb, kind{
		name: "redis-server",
		args: func(s *Server) []string {
			return append([]string{"--bind", "127.0.0.1", "--port", port(s.Addr), "--dir", s.dir,
				"--save", "", "--appendonly", "yes", "--appendfsync", "always"}, more...)
		},
		ready: func(s *Server) error { return ping(s.Addr) },
	})
}

func ping(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprint(conn, "PING\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && line != "+PONG\r\n" { // it is loading
		err = fmt.Errorf("PING: %q", line)
	}
	return err
}

// Postgres starts a PostgreSQL that believes whoever says to be postgres, which
// has the database postgres.
func Postgres(tb testing.TB) *Server {
	tb.Helper()
	return start(tb, kind{
		name: "postgres",
		prepare: func(s *Server) error {
			cmd := s.helper("initdb", "--no-sync", "--auth", "trust",
				"--username", "postgres", "--encoding", "UTF8", "--locale", "C", "--pgdata", filepath.Join(s.dir, "data"))
			return s.run(cmd)
		},
		args: func(s *Server) []string {
			return []string{"-D", filepath.Join(s.dir, "data"), "-h", "127.0.0.1", "-p", port(s.Addr), "-k", ""}
		},
		ready: func(s *Server) error {
			cmd := s.helper("pg_isready", "-q", "-h", "127.0.0.1", "-p", port(s.Addr))
			return s.run(cmd)
		},
		stop:    syscall.SIGQUIT,
		notRoot: true,
	})
}

// helper returns a command to run a program that is where the engine really is.
func (s *Server) helper(name string, args ...string) *exec.Cmd {
	path, err := filepath.EvalSymlinks(s.program)
	if err != nil {
		path = s.program
	}
	return exec.Command(filepath.Join(filepath.Dir(path), name), args...)
}

// run runs a command as the user that the engine runs as.
func (s *Server) run(cmd *exec.Cmd) error {
	var out strings.Builder
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &out, &out
	ended, err := launch(cmd, s.user)
	if err != nil {
		return err
	}
	if <-ended; !cmd.ProcessState.Success() {
		return fmt.Errorf("%s: %s: %s", filepath.Base(cmd.Path), cmd.ProcessState, strings.TrimSpace(out.String()))
	}
	return nil
}

// Etcd starts an etcd of one member.
func Etcd(tb testing.TB) *Server {
	tb.Helper()
	peer, err := freeAddr()
	if err != nil {
		tb.Fatal(err)
	}
	return start(tb, kind{
		name: "etcd",
		args: func(s *Server) []string {
			client, peer := "http://"+s.Addr, "http://"+peer
			return []string{"--data-dir", filepath.Join(s.dir, "data"), "--logger", "zap", "--log-level", "warn",
				"--listen-client-urls", client, "--advertise-client-urls", client,
				"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer}
		},
		ready: func(s *Server) error { return health("http://" + s.Addr + "/health") },
	})
}

func health(url string) error {
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
