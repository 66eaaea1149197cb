// Demo shows package letsencrypt at work. It is the quick start with a CA of
// its own on this machine, Pebble, which Let's Encrypt tests its clients with:
// no public name is needed, no open port and no privilege.
//
//	go run ./demo [-fleet] [-dir folder] [-once]
//
// It prints what it did, and a command to visit it with, and serves until it is
// interrupted. With -once it makes the visits itself, says how they went, and
// exits with 0 if they went well.
//
// With -fleet the server is three processes behind a balancer, which share a
// folder: asked at the same moment they order one certificate, and all serve it.
//
// All that it keeps is in the folder. Started again with the same one it orders
// nothing, although the Pebble of the new start knows nothing of the old one's
// accounts and certificates and has another root: the certificate that was kept
// is served on, and the old root, beside it in the folder, still vouches for it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
)

func main() {
	if j := os.Getenv(jobVar); j != "" {
		beMember(j)
		return
	}
	var o options
	flag.StringVar(&o.dir, "dir", "", "`folder` to keep everything in, for the next start (default a temporary one)")
	flag.BoolVar(&o.once, "once", false, "visit the server, say how that went, and exit")
	flag.BoolVar(&o.fleet, "fleet", false, "serve with three processes behind a balancer")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// host is a name that nobody has. Pebble's name server sends all names here.
const host = "hello.example"

// options are what the flags say.
type options struct {
	dir         string
	once, fleet bool
}

// run is the demo. The end of ctx interrupts it.
func run(ctx context.Context, out io.Writer, o options) error {
	if o.dir == "" {
		temp, err := os.MkdirTemp("", "letsencrypt-demo-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temp)
		o.dir = temp
	}
	fmt.Fprintln(out, "Pebble is built, which takes a minute or two the first time, and started ...")
	ca, err := pebble.Start(ctx, pebble.Config{})
	if err != nil {
		return err
	}
	defer ca.Close()
	d := &demo{out: out, ca: ca, dir: o.dir}
	if err := d.keepRoots(ctx); err != nil {
		return err
	}
	if o.fleet {
		return d.runFleet(ctx, o.once)
	}
	return d.runServer(ctx, o.once)
}

// A demo is where things are.
type demo struct {
	out io.Writer
	ca  *pebble.Server
	dir string
}

func (d *demo) roots() string { return filepath.Join(d.dir, "roots.pem") }

// httpAddr and httpsAddr are where Pebble validates, and where we serve.
func (d *demo) httpAddr() string  { return local(d.ca.HTTPPort()) }
func (d *demo) httpsAddr() string { return local(d.ca.TLSPort()) }

// keepRoots adds Pebble's roots to those of the Pebbles before, whose
// certificates may still be served.
func (d *demo) keepRoots(ctx context.Context) error {
	roots, err := d.ca.RootPEM(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(d.roots(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(roots)
	return errors.Join(err, f.Close())
}

// runServer runs the quick start.
func (d *demo) runServer(ctx context.Context, once bool) error {
	s, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer func() { s.stop() }() // the last one started
	d.describe(s.m)
	if once {
		s, err = d.visit(ctx, s)
		return err
	}
	fmt.Fprintln(d.out, serving)
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.ended:
		return err
	}
}

// logger is told of trouble alone: what goes well is printed in plainer words.
var logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

// shutdownTimeout is how long a Manager may take to end.
const shutdownTimeout = 10 * time.Second

const serving = "\nServing until interrupted."

// A server is one that was started.
type server struct {
	m     *letsencrypt.Manager
	ended chan error // what Serve returned
}

// start does what the quick start does, and waits until there is a certificate.
func (d *demo) start(ctx context.Context) (*server, error) {
	m := &letsencrypt.Manager{
		CAs:       []letsencrypt.CA{{Directory: d.ca.Directory(), Client: d.ca.Client()}},
		HTTPAddr:  d.httpAddr(),
		HTTPSAddr: d.httpsAddr(),
		Handler:   http.HandlerFunc(hello),
		Logger:    logger,
	}
	if err := m.CacheFile(filepath.Join(d.dir, "letsencrypt.cache")); err != nil {
		return nil, err
	}
	m.SetHosts([]string{host})

	s := &server{m: m, ended: make(chan error, 1)}
	go func() { s.ended <- m.Serve() }()
	err := s.listening(ctx)
	if err == nil {
		err = m.Manage(ctx, host)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "Hello, %s, over TLS with a certificate of your own.\n", r.Host)
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// listening returns when the server is open for connections.
func (s *server) listening(ctx context.Context) error {
	for {
		conn, err := net.Dial("tcp", s.m.HTTPSAddr)
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-s.ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stop ends the server. Once it has been stopped it may be stopped again.
func (s *server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	return s.m.Shutdown(ctx)
}

// describe prints what the Manager and Pebble did, and what can be done now.
func (d *demo) describe(m *letsencrypt.Manager) {
	status := m.Status(host)[0]
	d.line("CA", "%s", d.ca.Directory())
	if d.ca.Orders() > 0 {
		d.line("account", "made, %d in all", d.ca.Accounts())
		d.line("challenge", "%s passed for %s", status.Challenge, host)
		d.line("certificate", "%s, obtained", status.Serial)
	} else {
		d.line("account", "not needed")
		d.line("challenge", "not needed")
		d.line("certificate", "%s, kept since an earlier start; no order was made", status.Serial)
	}
	d.line("expiry", "%s", status.NotAfter.UTC().Format(time.RFC1123))
	d.line("next renewal", "%s", status.Renewal.UTC().Format(time.RFC1123))
	d.line("folder", "%s", d.dir)
	d.invite()
}

func (d *demo) line(what, format string, args ...any) {
	fmt.Fprintf(d.out, "%-14s"+format+"\n", append([]any{what}, args...)...)
}

// invite prints how to visit what serves where Pebble validates.
func (d *demo) invite() {
	fmt.Fprintf(d.out, "\nTo visit it:\n\n  curl --cacert \"%s\" --resolve %s:%d:127.0.0.1 https://%[2]s:%[3]d/\n",
		d.roots(), host, d.ca.TLSPort())
}
