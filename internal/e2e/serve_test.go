package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/catest"
	"example.com/letsencrypt/internal/pebble"
)

// browser returns a client that finds every host at 127.0.0.1, as the rig's
// CA does, and trusts that CA. It keeps no connection.
func (r *rig) browser() *http.Client {
	r.t.Helper()
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
	transport := &http.Transport{
		DialContext:       dial,
		TLSClientConfig:   &tls.Config{RootCAs: r.roots()},
		ForceAttemptHTTP2: true,
	}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// get returns the reply to a GET, and its body.
func get(t *testing.T, client *http.Client, url string) (*http.Response, string) {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// serveHTTP runs a server of the test's own until the test ends or stop is
// called, and returns when it listens.
func serveHTTP(t *testing.T, s *http.Server, serve func() error) (stop func()) {
	t.Helper()
	s.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	ended := make(chan error, 1)
	go func() { ended <- serve() }()
	stop = sync.OnceFunc(func() {
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("server: %v", err)
		}
	})
	t.Cleanup(stop)
	if s.Addr != "" {
		listening(t, s.Addr)
	}
	return stop
}

// checkHello checks that a host is served over HTTP/2 with a certificate that
// verifies.
func (r *rig) checkHello(host string) {
	r.t.Helper()
	res, body := get(r.t, r.browser(), fmt.Sprintf("https://%s:%d/", host, r.TLSPort()))
	if body != "hello\n" || res.ProtoMajor != 2 {
		r.t.Errorf("https://%s says %q in %s, want hello in HTTP/2", host, body, res.Proto)
	}
}

// TestServe does what the quick start does, and follows the redirect.
func TestServe(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.server()
	m.SetHosts([]string{"a.example.com"})
	r.checkHello("a.example.com")
	res, body := get(t, r.browser(), fmt.Sprintf("http://a.example.com:%d/x?y=z", r.HTTPPort()))
	want := fmt.Sprintf("https://a.example.com:%d/x?y=z", r.TLSPort())
	if got := res.Request.URL.String(); got != want || body != "hello\n" {
		t.Errorf("a redirect led to %s and %q, want %s and hello", got, body, want)
	}
}

// TestServeObtainsTheList has nobody ask for anything.
func TestServeObtainsTheList(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	m.SetHosts([]string{"a.example.com", "b.example.com", "http://c.example.com/", "d.example.com:443", ""})
	r.serve(m)
	eventually(t, "two certificates", func() bool { return len(r.Issued()) == 2 })
	for _, bad := range []string{"http://c.example.com/", "d.example.com:443", ""} {
		i := slices.IndexFunc(m.Status(), func(s letsencrypt.HostStatus) bool { return s.Host == bad })
		if i < 0 || m.Status()[i].Err == nil {
			t.Errorf("Status does not say what is wrong with %q", bad)
		}
	}
}

// TestServeHTTPSBesideOwnServer has a program that serves port 80 by itself,
// and passes on from inside its own handler.
func TestServeHTTPSBesideOwnServer(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	background(t, m, m.ServeHTTPS)
	fallback := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "mine\n") })
	s := &http.Server{Addr: r.httpAddr(), Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		m.HTTPHandler(fallback).ServeHTTP(w, req)
	})}
	serveHTTP(t, s, s.ListenAndServe)
	listening(t, r.tlsAddr())
	r.checkHello("a.example.com")
	for _, path := range []string{"/", "/.well-known/acme-challenge/unknown"} {
		if _, body := get(t, r.browser(), fmt.Sprintf("http://a.example.com:%d%s", r.HTTPPort(), path)); body != "mine\n" {
			t.Errorf("%s says %q, want what the fallback does", path, body)
		}
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	m.SetHosts([]string{"a.example.com"})
	ln, err := m.Listen()
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: m.Handler, ReadHeaderTimeout: patience}
	serveHTTP(t, s, func() error { return s.Serve(ln) })
	eventually(t, "a certificate for the list", func() bool { return len(r.Issued()) == 1 })
	r.checkHello("a.example.com")
}

// TestValidationPassesWhateverTLSConfigDemands has a server that demands
// certificates of its clients, which a CA does not have.
func TestValidationPassesWhateverTLSConfigDemands(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	config := m.TLSConfig()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = x509.NewCertPool()
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{"h2"}
	s := &http.Server{Addr: r.tlsAddr(), Handler: m.Handler, TLSConfig: config}
	serveHTTP(t, s, func() error { return s.ListenAndServeTLS("", "") })
	if err := m.Manage(t.Context(), "a.example.com"); err != nil {
		t.Fatal(err)
	}
	if got := m.Status("a.example.com")[0].Challenge; got != "tls-alpn-01" {
		t.Errorf("passed %s, want tls-alpn-01", got)
	}
	client := r.browser()
	if res, err := client.Get(fmt.Sprintf("https://a.example.com:%d/", r.TLSPort())); err == nil {
		res.Body.Close()
		t.Error("a client without a certificate is served")
	}
}

// TestGetCertificateAlone has a server that can't be asked by tls-alpn-01, as
// those for rsc.io/letsencrypt were: the error says what to add, and with that
// added it works.
func TestGetCertificateAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	s := &http.Server{Addr: r.tlsAddr(), Handler: m.Handler, TLSConfig: &tls.Config{GetCertificate: m.GetCertificate}}
	serveHTTP(t, s, func() error { return s.ListenAndServeTLS("", "") })
	err := m.Manage(t.Context(), "a.example.com")
	if err == nil {
		t.Fatal("a validation passes that can't reach us")
	}
	for _, advice := range []string{"acme-tls/1", "NextProtos", "HTTPHandler"} {
		if !strings.Contains(err.Error(), advice) {
			t.Errorf("the error does not advise %s: %v", advice, err)
		}
	}

	plain := &http.Server{Addr: r.httpAddr(), Handler: m.HTTPHandler(nil)}
	serveHTTP(t, plain, plain.ListenAndServe)
	for i := range 5 {
		host := fmt.Sprintf("b%d.example.com", i)
		if err := m.Manage(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		if got := m.Status(host)[0].Challenge; got != "http-01" {
			t.Errorf("passed %s, want http-01", got)
		}
	}
	r.checkHello("b0.example.com")
}

// TestOtherClientsGetNoValidation connects during a validation with all that
// a validation offers, and more.
func TestOtherClientsGetNoValidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		m := customer(ca)
		defer shutdown(t, m)
		config := m.TLSConfig()
		want := serial(t, m, "a.example.com")
		checked := 0
		ca.Change(func(c *catest.Config) {
			c.Challenges = []string{"tls-alpn-01"}
			c.TLS = func(string) *tls.Config {
				for _, protos := range [][]string{{"acme-tls/1", "h2"}, {"h2", "acme-tls/1"}, {"acme-tls/1", "http/1.1"}, {"acme-tls/1", "acme-tls/1"}, {"h2"}, nil} {
					checked++
					state, err := greet(config, &tls.Config{ServerName: "a.example.com", NextProtos: protos})
					if err != nil {
						t.Errorf("a client that offers %q: %v", protos, err)
					} else if got := state.PeerCertificates[0].SerialNumber.Text(16); got != want {
						t.Errorf("a client that offers %q is shown certificate %s, want %s", protos, got, want)
					}
				}
				return config
			}
		})
		if err := m.Renew(t.Context(), "a.example.com"); err != nil {
			t.Fatal(err)
		}
		if checked == 0 {
			t.Error("no validation came")
		}
		if _, err := greet(config, &tls.Config{ServerName: "a.example.com", NextProtos: []string{"acme-tls/1"}}); err == nil {
			t.Error("a validation passes while none is pending")
		}
	})
}

// greet shakes hands with a server over a pipe.
func greet(server, client *tls.Config) (tls.ConnectionState, error) {
	client.InsecureSkipVerify = true
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		defer far.Close()
		conn := tls.Server(far, server)
		if conn.Handshake() == nil {
			io.Copy(io.Discard, conn)
		}
	}()
	conn := tls.Client(near, client)
	err := conn.Handshake()
	return conn.ConnectionState(), err
}

// TestBadServerNames are refused without a question to the CA, and without a
// word that the log could not print.
func TestBadServerNames(t *testing.T) {
	ca := catest.New(t)
	m := customer(ca)
	told := overhear(t, m)
	defer shutdown(t, m)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", m.TLSConfig())
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer ln.Close()
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake() // its outcome is the client's to judge
			conn.Close()
		}
	})
	connect := func(name string) error {
		_, err := hello(ln.Addr().String(), name)
		return err
	}
	bad := []string{
		"", "localhost", "example", "com", "a..example.com", ".example.com", "-a.example.com", "a_b.example.com",
		"a.example.com:443", "https://a.example.com", "a.example.com/", "*.example.com", "a.*.example.com",
		strings.Repeat("a", 64) + ".example.com", strings.Repeat("a.", 127) + "com", strings.Repeat("a", 5000),
		"\xff\xfe.example.com", "b\u00fccher..example", "%61.example.com", "a%00.example.com", "a\x00.example.com", "\x00", "a\r\nb.example.com", "a b.example.com",
		"192.0.2.1.", "1.2.3.4.5", "256.0.0.1", "a.123",
		"xn--a.example.com", "a.local", "a.internal", "a.onion", "4.3.2.1.in-addr.arpa",
	}
	for _, list := range [][]string{nil, {"only.example.com", "second.example.com"}} {
		m.SetHosts(list)
		for _, name := range bad {
			if err := connect(name); err == nil {
				t.Errorf("list %q: a client that asks for %q is served", list, name)
			}
		}
	}
	if err := connect("unlisted.example.com"); err == nil {
		t.Error("a client that asks for a host not on the list is served")
	}
	if n := ca.Count(""); n > 0 {
		t.Errorf("%d requests to the CA for names that are none", n)
	}
	if err := connect("ONLY.example.COM"); err != nil {
		t.Errorf("a client that asks in capitals: %v", err)
	}
	for _, c := range told.log.String() {
		if c != '\n' && (c < ' ' || c > '~') {
			t.Fatalf("the log has %q in it", c)
		}
	}
}

// hello connects with a server name as it stands and returns the leaf's names.
func hello(addr, name string) ([]string, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	client := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := client.Handshake(); err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0].DNSNames, nil
}

// TestClientsThatNameNoHost are served DefaultHost or, without one, the only
// host there is.
func TestClientsThatNameNoHost(t *testing.T) {
	for _, tt := range []struct {
		byDefault string
		list      []string
		want      string
	}{
		{"", nil, ""},
		{"", []string{"a.example.com", "b.example.com"}, ""},
		{"", []string{"a.example.com"}, "a.example.com"},
		{"B.example.com.", []string{"a.example.com", "b.example.com"}, "b.example.com"},
		{"b.example.com", nil, "b.example.com"},
		{"c.example.com", []string{"a.example.com", "b.example.com"}, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := customer(catest.New(t))
			m.DefaultHost = tt.byDefault
			m.SetHosts(tt.list)
			defer shutdown(t, m)
			state, err := greet(m.TLSConfig(), &tls.Config{})
			got := ""
			if err == nil {
				got = state.PeerCertificates[0].DNSNames[0]
			}
			if got != tt.want {
				t.Errorf("DefaultHost %q, list %q: served %q (%v), want %q", tt.byDefault, tt.list, got, err, tt.want)
			}
		})
	}
}

func TestServeWhenAPortIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	for name, m := range map[string]*letsencrypt.Manager{
		"HTTP":  {HTTPAddr: taken.Addr().String(), HTTPSAddr: free.Addr().String()},
		"HTTPS": {HTTPAddr: free.Addr().String(), HTTPSAddr: taken.Addr().String()},
	} {
		err := m.Serve()
		var op *net.OpError
		if !errors.As(err, &op) || !strings.Contains(err.Error(), taken.Addr().String()) {
			t.Errorf("%s is taken: Serve = %v, want an error with the address", name, err)
		}
		again, err := net.Listen("tcp", free.Addr().String())
		if err != nil {
			t.Fatalf("%s is taken: Serve keeps the other port: %v", name, err)
		}
		again.Close()
		shutdown(t, m)
	}
}

// TestShutdownDrains ends a Manager while a client is served.
func TestShutdownDrains(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	arrived, leave := make(chan struct{}), make(chan struct{})
	m.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-leave
		io.WriteString(w, "hello\n")
	})
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	listening(t, r.httpAddr(), r.tlsAddr())
	type reply struct {
		body string
		err  error
	}
	replied := make(chan reply, 1)
	client := r.browser()
	go func() {
		res, err := client.Get(fmt.Sprintf("https://a.example.com:%d/", r.TLSPort()))
		if err != nil {
			replied <- reply{err: err}
			return
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		replied <- reply{string(body), err}
	}()
	<-arrived
	ended := make(chan error, 1)
	go func() { ended <- m.Shutdown(context.Background()) }()
	eventually(t, "no new connection", func() bool {
		conn, err := net.Dial("tcp", r.tlsAddr())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve = %v, want ErrServerClosed", err)
	}
	if len(ended) > 0 {
		t.Error("Shutdown returns while a request is served")
	}
	close(leave)
	if got := <-replied; got.err != nil || got.body != "hello\n" {
		t.Errorf("the request under way was answered with %q, %v", got.body, got.err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// TestShutdownEndsWithItsContext has a request that never ends.
func TestShutdownEndsWithItsContext(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	arrived, leave := make(chan struct{}), make(chan struct{})
	m.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-leave
	})
	r.serve(m)
	client := r.browser()
	var running sync.WaitGroup
	running.Go(func() {
		if res, err := client.Get(fmt.Sprintf("https://a.example.com:%d/", r.TLSPort())); err == nil {
			res.Body.Close()
		}
	})
	<-arrived
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown = %v, want %v", err, context.Canceled)
	}
	close(leave)
	running.Wait()
}

// TestAfterShutdown nothing starts again, and what is there is served.
func TestAfterShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		m := customer(ca)
		m.HTTPAddr, m.HTTPSAddr = "127.0.0.1:0", "127.0.0.1:0"
		want := serial(t, m, "a.example.com")
		shutdown(t, m)
		shutdown(t, m)
		n := ca.Count("")
		if got := serial(t, m, "a.example.com"); got != want {
			t.Errorf("certificate %s is served, want %s", got, want)
		}
		_, listen := m.Listen()
		_, cert := m.Cert("b.example.com")
		_, greeted := m.GetCertificate(&tls.ClientHelloInfo{ServerName: "c.example.com"})
		for call, err := range map[string]error{
			"Serve":          m.Serve(),
			"ServeHTTPS":     m.ServeHTTPS(),
			"Listen":         listen,
			"Cert":           cert,
			"GetCertificate": greeted,
			"Manage":         m.Manage(t.Context(), "d.example.com"),
			"Renew":          m.Renew(t.Context(), "a.example.com"),
			"Register":       m.Register("", nil),
		} {
			if !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("%s = %v, want %v", call, err, http.ErrServerClosed)
			}
		}
		time.Sleep(100 * 24 * time.Hour)
		if ca.Count("") > n {
			t.Errorf("%d requests to the CA after Shutdown", ca.Count("")-n)
		}
	})
}

// A pipeListener accepts the connections of Dial, in memory.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

// TestHandshakeOutlastsTheServersTimeout has an order that takes longer than
// an http.Server gives a handshake, and a connection that is used for longer
// than the handshake was given more.
func TestHandshakeOutlastsTheServersTimeout(t *testing.T) {
	for _, proto := range []string{"h2", "http/1.1"} {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			ca.FinalizeTakes = 45 * time.Second
			m := customer(ca)
			ln := newPipeListener()
			s := &http.Server{
				Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }),
				TLSConfig:         m.TLSConfig(),
				ReadHeaderTimeout: 10 * time.Second,
				IdleTimeout:       time.Hour,
			}
			ended := make(chan error, 1)
			go func() { ended <- s.ServeTLS(ln, "", "") }()
			transport := &http.Transport{
				DialContext:       ln.Dial,
				TLSClientConfig:   &tls.Config{RootCAs: ca.Roots()},
				ForceAttemptHTTP2: proto == "h2",
			}
			client := &http.Client{Transport: transport}
			start := time.Now()
			for i := range 4 {
				res, body := get(t, client, "https://a.example.com/")
				if body != "hello" || (proto == "h2") != (res.ProtoMajor == 2) {
					t.Errorf("%s: request %d: %q in %s", proto, i, body, res.Proto)
				}
				if i == 0 && time.Since(start) < 40*time.Second {
					t.Fatalf("%s: the handshake took %v, too little to prove anything", proto, time.Since(start))
				}
				time.Sleep(11 * time.Second)
			}
			transport.CloseIdleConnections()
			s.Close()
			<-ended
			shutdown(t, m)
			if n := len(ca.Issued("")); n != 1 {
				t.Errorf("%d certificates, want 1", n)
			}
		})
	}
}

// TestConnectionOutlastsItsHandshake has a server that is none of net/http's:
// the time that a handshake which waited is given ends with the handshake.
func TestConnectionOutlastsItsHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.FinalizeTakes = 45 * time.Second
		m := customer(ca)
		defer shutdown(t, m)
		near, far := net.Pipe()
		defer near.Close()
		server := tls.Server(far, m.TLSConfig())
		go func() {
			defer far.Close()
			io.Copy(server, server) // ends with the connection
		}()
		client := tls.Client(near, &tls.Config{ServerName: "a.example.com", RootCAs: ca.Roots()})
		for range 3 {
			if _, err := io.WriteString(client, "hello"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(client, make([]byte, len("hello"))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
	})
}

// TestClientThatNamesNoHostReachesAnAddress connects to a listed address among
// several hosts.
func TestClientThatNamesNoHostReachesAnAddress(t *testing.T) {
	m := customer(catest.New(t))
	defer shutdown(t, m)
	m.DefaultHost = "a.example.com"
	m.SetHosts([]string{"a.example.com", "192.0.2.1", "127.0.0.1"})
	ln, err := tls.Listen("tcp", "127.0.0.1:0", m.TLSConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		conn, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.(*tls.Conn).Handshake() // its outcome is the client's to judge
	})
	conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.ConnectionState().PeerCertificates[0].VerifyHostname("127.0.0.1"); err != nil {
		t.Errorf("served at 127.0.0.1: %v", err)
	}
}

// TestServeHTTPServesValidations has a program that mounts the Manager itself
// as its HTTP side: from its first request on it is relied upon for http-01.
func TestServeHTTPServesValidations(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	s := &http.Server{Addr: r.httpAddr(), Handler: m}
	serveHTTP(t, s, s.ListenAndServe)
	if err := m.Manage(t.Context(), "a.example.com"); err == nil {
		t.Error("a certificate is obtained though nothing says that validations can arrive")
	}
	get(t, &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, "http://"+r.httpAddr())
	if err := m.Manage(t.Context(), "b.example.com"); err != nil {
		t.Fatal(err)
	}
	if got := m.Status("b.example.com")[0].Challenge; got != "http-01" {
		t.Errorf("passed %s, want http-01", got)
	}
}
