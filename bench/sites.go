package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"golang.org/x/crypto/acme"
	xautocert "golang.org/x/crypto/acme/autocert"
	"golang.org/x/time/rate"
)

// A site is a TLS server, where Pebble validates, whose certificates a contestant
// obtains.
type site struct {
	ca        *pebble.Server
	proxy     *pebble.Proxy
	directory string // of the CA, or of proxy before it
	folder    string // for what the contestant keeps
	onDemand  bool   // certificates are obtained when clients ask for them

	obtain  func(hosts []string) error
	written func() (int64, error) // how many bytes went into files
	stop    func() error

	listener net.Listener // nil if it is CertMagic that listens
	conns    sync.WaitGroup
}

// atOnce is how many certificates are asked for at a time of those who leave
// that to the program. It is as many as we ask for.
const atOnce = 32

func (s *site) open(contestant string) (err error) {
	var config *tls.Config
	switch contestant {
	case autocert:
		config = s.openAutocert()
	case certMagic:
		config = s.openCertMagic()
	case ours:
		config, err = s.openOurs()
	}
	if err != nil {
		return err
	}
	// CertMagic, while it obtains certificates, listens by itself if nobody does,
	// as when a program obtains them before it serves. If somebody does, it loses
	// a tenth of a second over each, one after the other.
	if contestant == certMagic && !s.onDemand {
		return nil
	}
	if s.listener, err = net.Listen("tcp", s.addr()); err != nil {
		return err
	}
	s.conns.Go(func() { s.serve(config) })
	return nil
}

func (s *site) addr() string { return fmt.Sprintf("127.0.0.1:%d", s.ca.TLSPort()) }

// serve makes handshakes till the listener is closed.
func (s *site) serve(config *tls.Config) {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.conns.Go(func() {
			defer conn.Close()
			tls.Server(conn, config).Handshake() // the client has its error, too
		})
	}
}

func (s *site) close() error {
	if s.listener != nil {
		s.listener.Close()
	}
	err := s.stop()
	s.conns.Wait()
	return err
}

// visit makes a handshake as a client of the host's.
func (s *site) visit(host string) error {
	conn, err := tls.Dial("tcp", s.addr(), &tls.Config{ServerName: host, InsecureSkipVerify: true}) // Pebble's roots are nobody's
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].VerifyHostname(host)
}

func (s *site) openOurs() (*tls.Config, error) {
	m := &letsencrypt.Manager{
		CAs:          []letsencrypt.CA{{Directory: s.directory, Client: s.ca.Client()}},
		Limit:        rate.NewLimiter(rate.Inf, 1),
		NewHostLimit: rate.NewLimiter(rate.Inf, 1),
		Logger:       slog.New(slog.DiscardHandler),
	}
	name := filepath.Join(s.folder, "letsencrypt.cache")
	if err := m.CacheFile(name); err != nil {
		return nil, err
	}
	followed := follow(name)
	s.obtain = func(hosts []string) error { return m.Manage(context.Background(), hosts...) }
	s.written = func() (int64, error) { return followed.written() }
	s.stop = func() error {
		followed.close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return m.Shutdown(ctx)
	}
	return m.TLSConfig(), nil
}

func (s *site) openAutocert() *tls.Config {
	cache := &countingCache{DirCache: xautocert.DirCache(filepath.Join(s.folder, "autocert"))}
	m := &xautocert.Manager{
		Prompt: xautocert.AcceptTOS,
		Cache:  cache,
		Client: &acme.Client{DirectoryURL: s.directory, HTTPClient: s.ca.Client()},
	}
	s.obtain = func(hosts []string) error {
		return inParallel(hosts, func(host string) error {
			hello := &tls.ClientHelloInfo{ServerName: host, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
			_, err := m.GetCertificate(hello)
			return err
		})
	}
	s.written = func() (int64, error) { return cache.n.Load(), nil }
	s.stop = func() error { return nil }
	return m.TLSConfig()
}

func (s *site) openCertMagic() *tls.Config {
	certmagic.RateLimitEvents, certmagic.RateLimitEventsWindow = 0, 0 // which lifts its limit
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.ca.APICert())
	storage := &countingStorage{FileStorage: &certmagic.FileStorage{Path: filepath.Join(s.folder, "certmagic")}}
	var config *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil },
		Logger:           zap.NewNop(),
	})
	config = certmagic.New(cache, certmagic.Config{Storage: storage, Logger: zap.NewNop()})
	if s.onDemand {
		config.OnDemand = &certmagic.OnDemandConfig{DecisionFunc: func(context.Context, string) error { return nil }}
	}
	config.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(config, certmagic.ACMEIssuer{
		CA:                   s.directory,
		Email:                "bench@example.com", // or it asks the person at the terminal
		Agreed:               true,
		TrustedRoots:         roots,
		DisableHTTPChallenge: true,
		AltTLSALPNPort:       s.ca.TLSPort(), // where it finds us
		Logger:               zap.NewNop(),
	})}
	s.obtain = func(hosts []string) error {
		return inParallel(hosts, func(host string) error { return config.ManageSync(context.Background(), []string{host}) })
	}
	s.written = func() (int64, error) { return storage.n.Load(), nil }
	s.stop = func() error { cache.Stop(); return nil }
	return config.TLSConfig()
}

// inParallel calls f for the hosts, atOnce at a time.
func inParallel(hosts []string, f func(host string) error) error {
	var wg sync.WaitGroup
	errs := make([]error, atOnce)
	next := make(chan string)
	for i := range errs {
		wg.Go(func() {
			for host := range next {
				errs[i] = errors.Join(errs[i], f(host))
			}
		})
	}
	for _, host := range hosts {
		next <- host
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// A countingCache is a DirCache that counts the bytes put into it.
type countingCache struct {
	xautocert.DirCache
	n atomic.Int64
}

func (c *countingCache) Put(ctx context.Context, name string, data []byte) error {
	c.n.Add(int64(len(data)))
	return c.DirCache.Put(ctx, name, data)
}

// A countingStorage is a FileStorage that counts the bytes put into it.
type countingStorage struct {
	*certmagic.FileStorage
	n atomic.Int64
}

func (s *countingStorage) Store(ctx context.Context, key string, value []byte) error {
	s.n.Add(int64(len(value)))
	return s.FileStorage.Store(ctx, key, value)
}

// A follower counts what is written to a file that is appended to and, now and
// then, replaced by another: it keeps all of them open.
type follower struct {
	files []*os.File
	err   error
	quit  chan struct{}
	done  chan struct{}
}

// followEvery is far less than it takes to write a file so full that it is
// replaced.
const followEvery = time.Millisecond

func newFollower() *follower {
	return &follower{quit: make(chan struct{}), done: make(chan struct{})}
}

func follow(name string) *follower {
	f := newFollower()
	go func() {
		defer close(f.done)
		for f.err == nil {
			f.err = f.look(name)
			select {
			case <-f.quit:
				return
			case <-time.After(followEvery):
			}
		}
	}()
	return f
}

// look opens the file if it is another.
func (f *follower) look(name string) error {
	if len(f.files) > 0 {
		now, err := os.Stat(name)
		if err != nil {
			return err
		}
		last, err := f.files[len(f.files)-1].Stat()
		if err != nil || os.SameFile(now, last) {
			return err
		}
	}
	file, err := os.Open(name)
	if err == nil {
		f.files = append(f.files, file)
	}
	return err
}

// written ends the following and returns the size of all the files that there
// were.
func (f *follower) written() (n int64, err error) {
	close(f.quit)
	<-f.done
	for _, file := range f.files {
		info, err := file.Stat()
		if err != nil {
			return 0, err
		}
		n += info.Size()
	}
	return n, f.err
}

func (f *follower) close() {
	select {
	case <-f.quit:
	default:
		close(f.quit)
		<-f.done
	}
	for _, file := range f.files {
		file.Close()
	}
}
