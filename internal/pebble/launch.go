package pebble

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// errPortTaken is Pebble's end by a port that another program listens on.
var errPortTaken = errors.New("port in use by another program")

// A child is a running process. One goroutine owns it, locked to one thread:
// the signal that Linux sends a child when its parent dies is tied to the
// thread that started it, and an idle thread may end (golang.org/issue/27505).
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process is gone and all its output was read
	err  error         // why it ended; after done
}

func startChild(cmd *exec.Cmd) (*child, error) {
	dieWithParent(cmd)
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	return c, <-started
}

// kill ends the process, if it runs, and waits for its last output.
func (c *child) kill() {
	c.cmd.Process.Kill() // fails only for a process that has ended
	<-c.done
}

// launch runs Pebble and waits until it answers. Pebble reads its files before
// it does, so that they can go at once.
func (s *Server) launch(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("pebble does not answer"))
	defer cancel()
	dir, err := os.MkdirTemp("", "pebble-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := s.writeFiles(dir); err != nil {
		return err
	}
	cmd := exec.Command(s.program, s.args(dir)...)
	cmd.Dir = dir
	cmd.Env = append(environ(), s.config.env()...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	c, err := startChild(cmd)
	if err != nil {
		return err
	}
	s.child = c
	if err := s.await(ctx); err != nil {
		s.Stop()
		return err
	}
	return nil
}

func (s *Server) args(dir string) []string {
	dns := s.config.DNSServer
	if s.dns != nil {
		dns = s.dns.Addr()
	}
	args := []string{"-config", filepath.Join(dir, "config.json"), "-dnsserver", dns}
	if s.config.Strict {
		args = append(args, "-strict")
	}
	return args
}

// await returns when both of Pebble's interfaces answer.
func (s *Server) await(ctx context.Context) error {
	for {
		if s.answers(ctx, s.Directory()) && s.answers(ctx, s.management("/roots/0")) {
			return nil
		}
		select {
		case <-time.After(startPoll):
		case <-ctx.Done():
			return fmt.Errorf("%w\n%s", context.Cause(ctx), s.log.tail())
		case <-s.child.done:
			tail := s.log.tail()
			if strings.Contains(tail, ": bind: ") {
				return fmt.Errorf("%w\n%s", errPortTaken, tail)
			}
			return fmt.Errorf("pebble ended: %w\n%s", s.child.err, tail)
		}
	}
}

// writeFiles writes what Pebble reads when it starts.
func (s *Server) writeFiles(dir string) error {
	keyPEM, err := marshalKey(s.cert.PrivateKey)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{"pebble": s.settings(dir)})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"cert.pem": s.certPEM, "key.pem": keyPEM, "config.json": config} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// settings returns Pebble's configuration file, with Pebble's names.
func (s *Server) settings(dir string) map[string]any {
	c := &s.config
	profiles := map[string]any{}
	for name, life := range c.profiles() {
		profiles[name] = map[string]any{
			"description":    fmt.Sprintf("certificates of %v", life),
			"validityPeriod": int64(life / time.Second),
		}
	}
	eab := map[string]string{}
	for kid, key := range c.EAB {
		eab[kid] = base64.RawURLEncoding.EncodeToString(key)
	}
	return map[string]any{
		"listenAddress":                  loopback(s.ports.api()),
		"managementListenAddress":        loopback(s.ports.management()),
		"certificate":                    filepath.Join(dir, "cert.pem"),
		"privateKey":                     filepath.Join(dir, "key.pem"),
		"httpPort":                       s.HTTPPort(),
		"tlsPort":                        s.TLSPort(),
		"ocspResponderURL":               c.OCSPResponder,
		"externalAccountBindingRequired": len(eab) > 0,
		"externalAccountMACKeys":         eab,
		"domainBlocklist":                c.Blocklist,
		"keyAlgorithm":                   cmp.Or(c.KeyAlgorithm, "ecdsa"),
		"profiles":                       profiles,
		"retryAfter":                     map[string]int{"authz": c.RetryAfterAuthz, "order": c.RetryAfterOrder},
	}
}

func (c *Config) profiles() map[string]time.Duration {
	if len(c.Profiles) == 0 {
		return map[string]time.Duration{"default": 90 * 24 * time.Hour}
	}
	return c.Profiles
}

// env returns the settings that Pebble takes from its environment alone.
func (c *Config) env() []string {
	env := []string{
		"PEBBLE_WFE_NONCEREJECT=" + strconv.Itoa(c.NonceReject),
		"PEBBLE_AUTHZREUSE=" + strconv.Itoa(c.AuthzReuse),
		"PEBBLE_ALTERNATE_ROOTS=" + strconv.Itoa(c.AlternateRoots),
		"PEBBLE_CHAIN_LENGTH=" + strconv.Itoa(max(1, c.ChainLength)),
	}
	if c.ValidationSleep > 0 {
		env = append(env, "PEBBLE_VA_SLEEPTIME="+strconv.Itoa(c.ValidationSleep))
	} else {
		env = append(env, "PEBBLE_VA_NOSLEEP=1")
	}
	if c.AlwaysValid {
		env = append(env, "PEBBLE_VA_ALWAYS_VALID=1")
	}
	return env
}

// environ returns our environment without settings meant for another Pebble.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PEBBLE_") {
			env = append(env, kv)
		}
	}
	return env
}
