package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/letsencrypt"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"golang.org/x/crypto/acme"
	xautocert "golang.org/x/crypto/acme/autocert"
)

// A server is a contestant that has certificates.
type server struct {
	get  func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	stop func()

	ours      *letsencrypt.Manager // whichever it is
	autocert  *xautocert.Manager
	certMagic *certmagic.Config
	cache     *certmagic.Cache
	stored    *stored
	dead      *deadCA
}

// load returns a contestant with n hosts of a family in memory, as it has them
// when it was started and no client has come.
func load(who string, f *family, n int) (*server, error) {
	switch who {
	case floor:
		return loadFloor(f, n)
	case autocert:
		return loadAutocert(f, n)
	case certMagic:
		return loadCertMagic(f, n)
	}
	return loadOurs(f, n)
}

var errUnknown = errors.New("unknown name")

// loadFloor returns a map of ready certificates.
func loadFloor(f *family, n int) (*server, error) {
	certs := make(map[string]*tls.Certificate)
	for i := range n {
		certs[f.name(i)] = f.tlsCert(i)
	}
	return newFloor(certs), nil
}

func newFloor(certs map[string]*tls.Certificate) *server {
	return &server{
		get: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if cert, ok := certs[hello.ServerName]; ok {
				return cert, nil
			}
			return nil, errUnknown
		},
		stop: func() {},
	}
}

// loadAutocert returns autocert with a HostPolicy and a Cache, as its
// documentation would have it. It reads a certificate from the Cache when the
// first client comes and keeps it, so that each has one.
func loadAutocert(f *family, n int) (*server, error) {
	s := newAutocert(f, n, xautocert.HostWhitelist(names(f, n)...))
	return s, visit(s, f, n)
}

func newAutocert(f *family, n int, policy xautocert.HostPolicy) *server {
	dead := new(deadCA)
	stored := &stored{family: f, n: n}
	m := &xautocert.Manager{
		Prompt:     xautocert.AcceptTOS,
		Cache:      autocertCache{stored},
		HostPolicy: policy,
		Client:     &acme.Client{DirectoryURL: directory, HTTPClient: dead.client()},
	}
	return &server{get: m.GetCertificate, stop: func() {}, autocert: m, stored: stored, dead: dead}
}

// loadCertMagic returns CertMagic with certificates that it manages: ManageSync
// loads them from Storage and has nothing to ask a CA for. Its maintenance comes
// every ten minutes, and not here.
func loadCertMagic(f *family, n int) (*server, error) {
	s := newCertMagic(f, n, nil)
	if err := s.certMagic.ManageSync(context.Background(), names(f, n)); err != nil {
		return nil, err
	}
	return s, nil
}

func newCertMagic(f *family, n int, onDemand *certmagic.OnDemandConfig) *server {
	dead := new(deadCA)
	stored := &stored{family: f, n: n}
	var config *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil },
		RenewCheckInterval: 24 * time.Hour,
		OCSPCheckInterval:  24 * time.Hour,
		Logger:             zap.NewNop(),
	})
	config = certmagic.New(cache, certmagic.Config{Storage: certMagicStorage{stored}, OnDemand: onDemand, Logger: zap.NewNop()})
	config.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(config, certmagic.ACMEIssuer{
		CA: directory, Agreed: true, HTTPProxy: dead.proxy, Logger: zap.NewNop(),
	})}
	return &server{get: config.GetCertificate, stop: cache.Stop, certMagic: config, cache: cache, stored: stored, dead: dead}
}

func loadOurs(f *family, n int) (*server, error) {
	s := newOurs()
	return s, s.ours.Unmarshal(f.state(n))
}

func newOurs() *server {
	dead := new(deadCA)
	m := &letsencrypt.Manager{
		CAs:    []letsencrypt.CA{{Client: dead.client()}},
		Logger: slog.New(slog.DiscardHandler),
	}
	return &server{get: m.GetCertificate, stop: func() { m.Shutdown(context.Background()) }, ours: m, dead: dead}
}

// visit has a client ask for every host.
func visit(s *server, f *family, n int) error {
	for i := range n {
		if cert, err := s.get(newHello(f.name(i))); err != nil || cert == nil {
			return fmt.Errorf("%s, which is known, gets no certificate: %w", f.name(i), err)
		}
	}
	return nil
}

func names(f *family, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = f.name(i)
	}
	return all
}

// A deadCA is one that can't be reached. It counts how often it was tried.
type deadCA struct{ requests atomic.Int64 }

var errDead = errors.New("the CA is dead")

func (d *deadCA) RoundTrip(*http.Request) (*http.Response, error) {
	d.requests.Add(1)
	return nil, errDead
}

func (d *deadCA) client() *http.Client { return &http.Client{Transport: d} }

// proxy is for CertMagic, which makes its http.Client itself.
func (d *deadCA) proxy(*http.Request) (*url.URL, error) {
	d.requests.Add(1)
	return nil, errDead
}

// stored is where autocert and CertMagic find the first n hosts of a family. It
// makes what they load when they load it: what a disk has takes no memory. What
// they store it keeps.
type stored struct {
	*family
	n     int
	times atomic.Int64 // that all were renewed

	mu   sync.Mutex
	kept map[string][]byte
}

// number returns which host has a name.
func (s *stored) number(name string) (int, bool) {
	head, ok := strings.CutSuffix(name, s.tail)
	if !ok || len(head) < digits {
		return 0, false
	}
	i, err := strconv.Atoi(head[len(head)-digits:])
	return i, err == nil && i < s.n
}

func (s *stored) load(key string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.kept[key]
	return data, ok
}

func (s *stored) store(key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		s.kept = make(map[string][]byte)
	}
	s.kept[key] = data
}

func (s *stored) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kept, key)
}

// An autocertCache has stored in autocert's format.
type autocertCache struct{ *stored }

func (c autocertCache) Get(_ context.Context, key string) ([]byte, error) {
	if i, ok := c.number(key); ok {
		chain, key := c.renewedPEMs(i, int(c.times.Load()))
		return append(key, chain...), nil
	}
	if data, ok := c.load(key); ok {
		return data, nil
	}
	return nil, xautocert.ErrCacheMiss
}

func (c autocertCache) Put(_ context.Context, key string, data []byte) error {
	c.store(key, data)
	return nil
}

func (c autocertCache) Delete(_ context.Context, key string) error {
	c.remove(key)
	return nil
}

// A certMagicStorage has stored in CertMagic's format, three values a host.
type certMagicStorage struct{ *stored }

func (s certMagicStorage) Load(_ context.Context, key string) ([]byte, error) {
	ext := path.Ext(key)
	if i, ok := s.number(strings.TrimSuffix(path.Base(key), ext)); ok {
		chain, private := s.renewedPEMs(i, int(s.times.Load()))
		switch ext {
		case ".crt":
			return chain, nil
		case ".key":
			return private, nil
		case ".json":
			return s.meta(i), nil
		}
	}
	if data, ok := s.load(key); ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}

// meta returns what CertMagic keeps beside a certificate. The CA has told when
// to renew it, and is not to be asked again for a day.
func (s certMagicStorage) meta(i int) []byte {
	a := authority()
	window := map[string]time.Time{"start": a.notBefore.AddDate(0, 0, 60), "end": a.notBefore.AddDate(0, 0, 62)}
	return marshal(map[string]any{
		"sans": []string{s.name(i)},
		"issuer_data": map[string]any{
			"url": "https://acme-v02.api.letsencrypt.org/acme/cert/" + fmt.Sprintf("%036d", i),
			"ca":  directory,
			"renewal_info": map[string]any{
				"suggestedWindow":   window,
				"_uniqueIdentifier": "rB2bPMSUzKLeNMVwI4PoZzUgdEM." + fmt.Sprintf("%024d", i),
				"_retryAfter":       a.notBefore.AddDate(0, 0, 1),
				"_selectedTime":     a.notBefore.AddDate(0, 0, 61),
			},
		},
	})
}

func (s certMagicStorage) Store(_ context.Context, key string, data []byte) error {
	s.store(key, data)
	return nil
}

func (s certMagicStorage) Delete(_ context.Context, key string) error {
	s.remove(key)
	return nil
}

func (s certMagicStorage) Exists(ctx context.Context, key string) bool {
	_, err := s.Load(ctx, key)
	return err == nil
}

func (s certMagicStorage) List(context.Context, string, bool) ([]string, error) { return nil, nil }

func (s certMagicStorage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	data, err := s.Load(ctx, key)
	return certmagic.KeyInfo{Key: key, Size: int64(len(data)), IsTerminal: true}, err
}

func (certMagicStorage) Lock(context.Context, string) error   { return nil }
func (certMagicStorage) Unlock(context.Context, string) error { return nil }
