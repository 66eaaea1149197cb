package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// What is measured of programs.
var builds = []*figure{
	{
		name:   "binary",
		about:  "added to the binary of an HTTPS server that says hello",
		unit:   "kB",
		target: "at most 1.3x autocert's and below CertMagic's; its modules and x/time",
		met: func(v values) bool {
			return v[ours] <= 1.3*v[autocert] && v[ours] < v[certMagic] && v[modulesTooMany] == 0
		},
		run: measureBinaries,
	},
}

// What else the values of binary have.
const modulesTooMany = "modules beside autocert's and x/time"

// A program is an HTTPS server that says hello to all who come.
type program struct {
	imports string
	serve   string // the statement that does it
}

// plain is what the others are compared with: certificates from two files.
var plain = program{"", `log.Fatal(http.ListenAndServeTLS(":443", "cert.pem", "key.pem", nil))`}

// programs are as short as the contestants' documentation has them.
var programs = map[string]program{
	autocert:  {`"golang.org/x/crypto/acme/autocert"`, `log.Fatal(http.Serve(autocert.NewListener("example.com"), nil))`},
	certMagic: {`"github.com/caddyserver/certmagic"`, `log.Fatal(certmagic.HTTPS([]string{"example.com"}, http.DefaultServeMux))`},
	ours: {`"example.com/letsencrypt"`, `var m letsencrypt.Manager
	if err := m.CacheFile("letsencrypt.cache"); err != nil {
		log.Fatal(err)
	}
	m.SetHosts([]string{"example.com"})
	log.Fatal(m.Serve())`},
}

const source = `package main

import (
	"fmt"
	"log"
	"net/http"
	%s
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "Hello, TLS!") })
	%s
}
`

// measureBinaries builds a program for each contestant, as go build does unasked
// and, for a note, without the symbols.
func measureBinaries(r *run) (values, error) {
	bench, err := goCommand("", "list", "-m", "-f", "{{.Dir}}", "example.com/letsencrypt/bench")
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	if err := module(folder, bench); err != nil {
		return nil, err
	}
	r.progress("building without")
	before, _, err := plain.build(folder)
	if err != nil {
		return nil, err
	}
	r.note("%.1f MB without, %.1f with -ldflags=-s", before[0]/1000, before[1]/1000)
	v := make(values)
	modules := make(map[string][]string)
	for _, c := range []string{autocert, certMagic, ours} {
		if r.quick && c == certMagic {
			continue // it takes half a minute
		}
		r.progress("building with %s", c)
		size, mods, err := programs[c].build(folder)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c, err)
		}
		v[c], modules[c] = size[0]-before[0], mods
		r.note("%s: %.0f kB with -ldflags=-s; %d modules: %s", c, size[1]-before[1], len(mods), strings.Join(mods, ", "))
	}
	v[modulesTooMany] = 0
	for _, m := range modules[ours] {
		if !strings.HasPrefix(m, "example.com/letsencrypt ") && !allowed(m, modules[autocert]) {
			v[modulesTooMany]++
		}
	}
	return v, nil
}

// module makes a module that needs what bench does, in the same versions.
func module(folder, bench string) error {
	mod, err := os.ReadFile(filepath.Join(bench, "go.mod"))
	if err != nil {
		return err
	}
	sum, err := os.ReadFile(filepath.Join(bench, "go.sum"))
	if err != nil {
		return err
	}
	mod = bytes.Replace(mod, []byte("module example.com/letsencrypt/bench"), []byte("module hello"), 1)
	mod = bytes.Replace(mod, []byte("=> ../"), []byte("=> "+filepath.ToSlash(filepath.Dir(bench))), 1)
	if err := os.WriteFile(filepath.Join(folder, "go.mod"), mod, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "go.sum"), sum, 0o600)
}

// build returns the program's size in kB, with symbols and without, and the
// modules that are in it.
func (p program) build(folder string) (size [2]float64, modules []string, err error) {
	text := fmt.Sprintf(source, p.imports, p.serve)
	if err := os.WriteFile(filepath.Join(folder, "main.go"), []byte(text), 0o600); err != nil {
		return size, nil, err
	}
	binary := filepath.Join(folder, "hello.exe")
	for i, flags := range []string{"", "-s"} {
		if _, err := goCommand(folder, "build", "-trimpath", "-ldflags="+flags, "-o", binary); err != nil {
			return size, nil, err
		}
		info, err := os.Stat(binary)
		if err != nil {
			return size, nil, err
		}
		size[i] = float64(info.Size()) / 1000
	}
	out, err := goCommand(folder, "version", "-m", binary)
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "dep" {
			modules = append(modules, f[1]+" "+f[2])
		}
	}
	return size, modules, err
}

// allowed reports whether we may need a module that autocert's program needs or
// does not.
func allowed(module string, autocerts []string) bool {
	for _, m := range append(autocerts, "golang.org/x/time ") {
		if path, _, _ := strings.Cut(m, " "); strings.HasPrefix(module, path+" ") {
			return true
		}
	}
	return false
}

// goCommand returns what the go command prints, trimmed. In a folder given by
// name it works with the module there alone.
func goCommand(folder string, args ...string) (string, error) {
	cmd := exec.CommandContext(context.Background(), "go", args...)
	cmd.Dir = folder
	if folder != "" {
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}
