package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/store/dir"
)

// jobVar is the variable in the environment of a member's process that has its
// job, in JSON.
const jobVar = "LETSENCRYPT_DEMO_JOB"

// A job is what a member has to know.
type job struct {
	Member              int
	Folder              string // which all members share
	Directory           string // of the CA
	Trusted             []byte // the certificate of the CA's API, in PEM
	HTTPAddr, HTTPSAddr string // where clients come, that is the balancer's
}

// A member is a process that does a job, as the one that started it sees it.
type member struct {
	number              int
	httpAddr, httpsAddr string // where it listens

	cmd   *exec.Cmd
	stdin io.Closer     // it ends when this is closed
	done  chan struct{} // closed when it has ended
}

// startMember starts a member, and returns when it listens. When it obtains a
// certificate its number is sent to heard, if there is room.
func startMember(j job, heard chan<- int) (*member, error) {
	encoded, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m := &member{number: j.Member, cmd: exec.Command(self), done: make(chan struct{})}
	m.cmd.Env = append(os.Environ(), jobVar+"="+string(encoded))
	m.cmd.Stderr = os.Stderr
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	_, err = fmt.Fscanln(stdout, &m.httpAddr, &m.httpsAddr)
	go m.listen(stdout, heard)
	if err != nil {
		m.kill()
		return nil, err
	}
	return m, nil
}

// listen hears what a member says until it has ended.
func (m *member) listen(stdout io.Reader, heard chan<- int) {
	defer close(m.done)
	for in := bufio.NewScanner(stdout); in.Scan(); {
		if in.Text() != obtained {
			continue
		}
		select {
		case heard <- m.number:
		default:
		}
	}
	m.cmd.Wait() // it does not matter how it ended
}

// stop ends the member, in good order if that is soon.
func (m *member) stop() {
	m.stdin.Close()
	select {
	case <-m.done:
	case <-time.After(2 * shutdownTimeout):
		m.kill()
	}
}

// kill ends the member as a crash does.
func (m *member) kill() {
	m.cmd.Process.Kill() // an error means that it has ended
	<-m.done
}

// beMember is the whole program in a process that the demo started.
func beMember(encoded string) {
	signal.Ignore(os.Interrupt) // which is for who started us, and comes to all of us
	var j job
	err := json.Unmarshal([]byte(encoded), &j)
	if err == nil {
		err = j.do()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: member %d: %v\n", j.Member, err)
		os.Exit(1)
	}
}

// do serves until standard input ends, as it does with the process that started
// this one, however that ends. On standard output it says where it serves.
func (j *job) do() error {
	storage, err := dir.Open(j.Folder)
	if err != nil {
		return err
	}
	m := &letsencrypt.Manager{
		Storage:   storage,
		CAs:       []letsencrypt.CA{{Directory: j.Directory, Client: j.client()}},
		Allow:     j.allow,
		HTTPAddr:  j.HTTPAddr,
		HTTPSAddr: j.HTTPSAddr,
		Logger:    logger.With("member", j.Member),
		OnEvent:   say,
	}
	http1, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	https, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	page := &http.Server{
		Handler:   http.HandlerFunc(j.hello),
		TLSConfig: m.TLSConfig(),
		ErrorLog:  slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 3)
	go func() { ended <- http.Serve(http1, m.HTTPHandler(nil)) }()
	go func() { ended <- page.ServeTLS(https, "", "") }()
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	fmt.Println(http1.Addr(), https.Addr())
	err = <-ended
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	return errors.Join(err, m.Shutdown(ctx))
}

// obtained is the line that a member prints when it has obtained a certificate.
const obtained = "obtained"

func say(e letsencrypt.Event) {
	if e.Kind == letsencrypt.EventObtained {
		fmt.Println(obtained)
	}
}

// client returns one that trusts the CA's API.
func (j *job) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(j.Trusted)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
}

// allow lets a client ask for the host. A list would have each member obtain
// it at the start, and nobody would see them asked at the same moment.
func (j *job) allow(_ context.Context, name string) error {
	if name != host {
		return letsencrypt.ErrHostNotAllowed
	}
	return nil
}

func (j *job) hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "Hello, %s, from member %d of the fleet.\n", r.Host, j.Member)
}
