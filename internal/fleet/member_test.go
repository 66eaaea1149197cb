package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"example.com/letsencrypt"
	"golang.org/x/time/rate"
)

// memberHeader says in a member's requests to the CA which one it is.
const memberHeader = "Fleet-Member"

// memberArgs are what a member is told.
type memberArgs struct {
	Number       int
	Engine, Addr string
	Directory    string
	APICert      []byte // PEM
	Profile      string
	Challenge    string // the only type that it can pass; "" means all
	Hosts        []string
}

// memberAddrs are where a member listens. It prints them, in JSON, when it does.
type memberAddrs struct{ HTTPS, HTTP string }

// beMember serves.
func beMember(data []byte) error {
	var args memberArgs
	if err := json.Unmarshal(data, &args); err != nil {
		return err
	}
	storage, err := engineNamed(args.Engine).open(args.Addr)
	if err != nil {
		return err
	}
	m := args.manager()
	m.Storage = storage
	m.SetHosts(args.Hosts)
	return args.serve(m)
}

// manager returns a Manager without limits, and without a Storage yet.
func (args memberArgs) manager() *letsencrypt.Manager {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(args.APICert)
	ca := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 100}
	return &letsencrypt.Manager{
		CAs: []letsencrypt.CA{{
			Directory: args.Directory,
			Profile:   args.Profile,
			Client:    &http.Client{Transport: signer{args.Number, ca}},
		}},
		Limit:        rate.NewLimiter(rate.Inf, 0),
		NewHostLimit: rate.NewLimiter(rate.Inf, 0),
		Logger:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// A signer sends requests that say whose they are.
type signer struct {
	number int
	base   http.RoundTripper
}

func (s signer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(memberHeader, strconv.Itoa(s.number))
	return s.base.RoundTrip(r)
}

// serve serves with servers of the program's own, so that nothing is obtained
// before a client asks for it.
func (args memberArgs) serve(m *letsencrypt.Manager) error {
	config := &tls.Config{GetCertificate: m.GetCertificate} // can't pass tls-alpn-01
	if args.Challenge != "http-01" {
		config = m.TLSConfig()
	}
	plain := http.NotFoundHandler()
	if args.Challenge != "tls-alpn-01" {
		plain = m.HTTPHandler(plain)
	}
	secure := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	var listeners []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	addrs := memberAddrs{HTTPS: listeners[0].Addr().String(), HTTP: listeners[1].Addr().String()}
	if err := ready(addrs); err != nil {
		return err
	}
	ended := make(chan error)
	go func() { ended <- newServer(secure).Serve(tls.NewListener(listeners[0], config)) }()
	go func() { ended <- newServer(plain).Serve(listeners[1]) }()
	return <-ended
}

func newServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(os.Stderr, "", log.Ltime|log.Lmicroseconds),
	}
}

// A member is a process that does beMember.
type member struct {
	*process
	memberAddrs
	number int
}

// startMember returns a member that serves. What it has to say goes to said.
func startMember(ctx context.Context, args memberArgs, said *memberLog) (*member, error) {
	m := &member{number: args.Number}
	stderr := &lines{to: func(line string) { said.add(m.number, line) }}
	var err error
	if m.process, err = startProcess(ctx, "member", args, &m.memberAddrs, stderr); err != nil {
		return nil, fmt.Errorf("member %d: %w", args.Number, err)
	}
	return m, nil
}

// A memberLog is what members said.
type memberLog struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *memberLog) add(number int, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, "member %d: %s\n", number, line)
}

func (l *memberLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
