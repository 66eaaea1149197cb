package letsencrypt_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/format"
	"go/parser"
	"go/token"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt"
)

// The quick start, a whole server.
func Example() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "Hello, TLS!")
	})
	var m letsencrypt.Manager
	if err := m.CacheFile("letsencrypt.cache"); err != nil {
		log.Fatal(err)
	}
	m.SetHosts([]string{"example.com"})
	log.Fatal(m.Serve())
}

// A server of the program's own.
func ExampleManager_TLSConfig() {
	var m letsencrypt.Manager
	m.SetHosts([]string{"example.com"})
	srv := &http.Server{
		Addr:              ":https",
		TLSConfig:         m.TLSConfig(),
		ReadHeaderTimeout: 10 * time.Second,
	}
	go http.ListenAndServe(":http", m.HTTPHandler(nil))
	log.Fatal(srv.ListenAndServeTLS("", ""))
}

// A server that another one, which can't obtain certificates itself, asks for
// them. The other passes on what its clients' hellos say, those of the CA's
// validations included.
func ExampleManager_GetCertificate() {
	var m letsencrypt.Manager
	certificate := func(name string, protos []string) (chain [][]byte, key []byte, err error) {
		cert, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedProtos: protos})
		if err != nil {
			return nil, nil, err
		}
		key, err = x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		return cert.Certificate, key, err
	}
	_ = certificate // to be called over a network that is trusted with the keys
}

// Validations are answered on the way; all else is the program's own.
func ExampleManager_HTTPHandler() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "not encrypted, and meant to be")
	})
	var m letsencrypt.Manager
	srv := httptest.NewServer(m.HTTPHandler(mux))
	defer srv.Close()

	res, err := http.Get(srv.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer res.Body.Close()
	fmt.Println(res.Status)
	// Output: 200 OK
}

func ExampleRedirectHTTP() {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "http://www.example.com:8080/search?q=tls", nil)
	letsencrypt.RedirectHTTP(w, r)
	fmt.Println(w.Code, w.Header().Get("Location"))
	// Output: 302 https://www.example.com/search?q=tls
}

// A web service that knows which hosts there are decides.
func ExampleAskURL() {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("domain") != "shop.example.com" {
			http.Error(w, "no customer of ours", http.StatusForbidden)
		}
	}))
	defer service.Close()

	m := letsencrypt.Manager{Allow: letsencrypt.AskURL(service.URL)}
	fmt.Println(m.Allow(context.Background(), "shop.example.com"))
	err := m.Allow(context.Background(), "other.example.com")
	fmt.Println(errors.Is(err, letsencrypt.ErrHostNotAllowed))
	// Output:
	// <nil>
	// true
}

func ExampleHostError() {
	var m letsencrypt.Manager
	defer m.Shutdown(context.Background())
	m.SetHosts([]string{"example.com"})

	_, err := m.Cert("www.example.com")
	if e, ok := errors.AsType[*letsencrypt.HostError](err); ok {
		fmt.Println(e.Host)
	}
	switch {
	case errors.Is(err, letsencrypt.ErrHostNotAllowed):
		fmt.Println("it is not on the list")
	case errors.Is(err, letsencrypt.ErrRateLimited):
		fmt.Println("later")
	}
	// Output:
	// www.example.com
	// it is not on the list
}

// What is no host on a list is told by Status, and keeps nobody else from a
// certificate.
func ExampleManager_Status() {
	m := letsencrypt.Manager{Logger: slog.New(slog.DiscardHandler)}
	m.SetHosts([]string{"EXAMPLE.com.", "www.example.com:443"})
	for _, s := range m.Status() {
		fmt.Println(s.Host, s.Err == nil)
	}
	// Output:
	// example.com true
	// www.example.com:443 false
}

// A program that keeps the state itself saves it after each notification.
func ExampleManager_Watch() {
	var m letsencrypt.Manager
	m.SetHosts([]string{"example.com"})
	<-m.Watch()
	saved := m.Marshal()

	var next letsencrypt.Manager
	if err := next.Unmarshal(saved); err != nil {
		log.Fatal(err)
	}
	fmt.Println(next.Status()[0].Host)
	// Output: example.com
}

// TestQuickStart: the program that README.md and the package's documentation
// begin with is the Example.
func TestQuickStart(t *testing.T) {
	_, readme, _ := strings.Cut(read(t, "README.md"), "```go\n")
	readme, _, _ = strings.Cut(readme, "```")
	want := body(t, read(t, "example_test.go"), "Example")
	for name, program := range map[string]string{
		"README.md":  readme,
		"manager.go": firstCode(t, read(t, "manager.go")),
	} {
		if got := body(t, program, "main"); got != want {
			t.Errorf("%s has\n%s\nwant\n%s", name, got, want)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// firstCode returns the first block of code in a file's package comment.
func firstCode(t *testing.T, file string) string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "", file, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range new(comment.Parser).Parse(f.Doc.Text()).Content {
		if code, ok := b.(*comment.Code); ok {
			return code.Text
		}
	}
	t.Fatal("no code in the package comment")
	return ""
}

// body returns the body of a function in a file, as gofmt would have it.
func body(t *testing.T, file, name string) string {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "", file, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, decl := range f.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Name.Name == name {
			if err := format.Node(&b, fset, fn.Body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if b.Len() == 0 {
		t.Fatalf("no function %s", name)
	}
	return b.String()
}
