package engine

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestServers(t *testing.T) {
	starts := map[string]func(testing.TB) *Server{
		"redis":    func(tb testing.TB) *Server { return Redis(tb) },
		"postgres": Postgres,
		"etcd":     Etcd,
	}
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			var s *Server
			t.Run("run", func(t *testing.T) {
				s = start(t)
				addr := s.Addr
				s.Kill(t)
				if err := s.kind.ready(s); err == nil {
					t.Error("it answers after Kill")
				}
				s.Restart(t)
				s.Restart(t)
				if err := s.kind.ready(s); err != nil || s.Addr != addr {
					t.Errorf("after Restart it is at %s, %v, want %s", s.Addr, err, addr)
				}
			})
			if s == nil {
				t.SkipNow()
			}
			if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its data outlive the test: %v", err)
			}
			if conn, err := net.Dial("tcp", s.Addr); err == nil {
				conn.Close()
				t.Error("it outlives the test")
			}
		})
	}
}

// TestRelay has an echo at the other end.
func TestRelay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	r := NewRelay(t, l.Addr().String())
	conn, err := net.Dial("tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	echo := func(what, line string) {
		t.Helper()
		conn.SetReadDeadline(time.Now().Add(patience))
		if got, err := in.ReadString('\n'); got != line || err != nil {
			t.Errorf("%s: read %q, %v, want %q", what, got, err, line)
		}
	}
	io.WriteString(conn, "one\n")
	echo("at first", "one\n")
	r.Stall()
	io.WriteString(conn, "two\n")
	conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := in.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("while it stalls: read %v, want a timeout", err)
	}
	r.Resume()
	echo("after it", "two\n")
	r.Cut()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Cut: read %v, want the end", err)
	}
}
