package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestREADME type-checks every block of Go in README.md against the packages as
// they are. A block is a file if it begins with a package clause; else it is a
// list of declarations or of statements, to which the imports that it needs and
// a few variables are given. A block that begins with imports, which the root
// module may not have, is for module internal/compat to compile.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range checkMarkdown("README.md", string(text)) {
		t.Error(err)
	}
}

// imports are the packages that a block may use, by name: with or without
// importing them.
var imports = byName(
	"context", "crypto", "crypto/ecdsa", "crypto/elliptic", "crypto/rand", "crypto/rsa", "crypto/tls", "crypto/x509",
	"encoding/base64", "encoding/json", "errors", "fmt", "hash/crc32", "io", "log", "log/slog", "net", "net/http", "os", "os/signal", "strings", "sync", "syscall", "testing", "time",
	"golang.org/x/crypto/acme", "golang.org/x/time/rate",
	module, module+"/store/dir", module+"/store/sealed", module+"/store/storetest",
)

func byName(paths ...string) map[string]string {
	names := make(map[string]string)
	for _, p := range paths {
		names[path.Base(p)] = p
	}
	return names
}

// variables are those that a block may use without declaring them.
var variables = map[string]string{
	"m":        "*letsencrypt.Manager",
	"ctx":      "context.Context",
	"mux":      "*http.ServeMux",
	"internal": "*http.Client",
	"account":  "func(state, directory string) (*acme.Client, error)",
	"storage":  "letsencrypt.Storage",
	"start":    "func(testing.TB) (addr string)",
	"dial":     "func(tb testing.TB, addr string) letsencrypt.Storage",
}

// checkMarkdown returns what is wrong with the Go code in a Markdown text.
func checkMarkdown(name, text string) []error {
	blocks := goBlocks(text)
	if len(blocks) == 0 {
		return []error{fmt.Errorf("%s: no block of Go code", name)}
	}
	c := checker{name: name, fset: token.NewFileSet()}
	for _, b := range blocks {
		if !strings.HasPrefix(b.code, "import ") {
			c.parse(b)
		}
	}
	c.importer = importer.ForCompiler(c.fset, "gc", openExport)
	for _, f := range c.files {
		c.check(f)
	}
	return c.errs
}

// A block is fenced Go code in Markdown.
type block struct {
	line int // of the first line of code
	code string
}

func goBlocks(text string) []block {
	var blocks []block
	inGo, inOther := false, false
	n := 0
	for line := range strings.Lines(text) {
		n++
		switch fence := strings.TrimSpace(line); {
		case inGo && fence == "```":
			inGo = false
		case inGo:
			blocks[len(blocks)-1].code += line
		case inOther:
			inOther = fence != "```"
		case fence == "```go":
			inGo = true
			blocks = append(blocks, block{line: n + 1})
		case strings.HasPrefix(fence, "```"):
			inOther = true
		}
	}
	return blocks
}

// A checker type-checks blocks and collects what is wrong with them.
type checker struct {
	name     string // of the Markdown file
	fset     *token.FileSet
	files    []file
	importer types.Importer
	errs     []error
}

type file struct {
	syntax *ast.File
	whole  bool // as written, nothing was added
}

// parse turns a block into a file, in whichever way it is Go.
func (c *checker) parse(b block) {
	at := fmt.Sprintf("//line %s:%d:1\n", c.name, b.line)
	if f, err := c.parseFile(at + b.code); err == nil {
		c.files = append(c.files, file{f, true})
		return
	} else if strings.Contains("\n"+b.code, "\npackage ") {
		c.errs = append(c.errs, err)
		return
	}
	f, err := c.complete(at + b.code)
	if err != nil {
		f, err = c.complete("func _() {\n" + at + b.code + "}\n")
	}
	if err != nil {
		c.errs = append(c.errs, err)
		return
	}
	c.files = append(c.files, file{f, false})
}

func (c *checker) parseFile(code string) (*ast.File, error) {
	return parser.ParseFile(c.fset, c.name, code, 0)
}

// complete parses declarations with the package clause, the variables and the
// imports that they lack.
func (c *checker) complete(decls string) (*ast.File, error) {
	const head = "package readme\n"
	f, err := c.parseFile(head + decls)
	if err != nil {
		return nil, err
	}
	var vars, imps string
	for _, name := range lacking(f, variables) {
		vars += "var " + name + " " + variables[name] + "\n"
	}
	if f, err = c.parseFile(head + vars + decls); err != nil {
		return nil, err
	}
	for _, name := range lacking(f, imports) {
		imps += "import " + strconv.Quote(imports[name]) + "\n"
	}
	return c.parseFile(head + imps + vars + decls)
}

// lacking returns the names that f uses without declaring them and table has.
func lacking(f *ast.File, table map[string]string) []string {
	names := make(map[string]bool)
	for _, id := range f.Unresolved {
		if _, ok := table[id.Name]; ok {
			names[id.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// openExport opens the compiled form of a package that a block imports.
func openExport(to string) (io.ReadCloser, error) {
	files, err := exports()
	if err != nil {
		return nil, err
	}
	name := files[to]
	if name == "" {
		return nil, errors.New("it does not compile, or is not one of the imports in readme_test.go")
	}
	return os.Open(name)
}

// exports compiles the packages in imports, in the root module alone, and
// returns for each of them and of what they import the file with its types.
var exports = sync.OnceValues(func() (map[string]string, error) {
	args := []string{"list", "-e", "-deps", "-export", "-json=ImportPath,Export", "--"}
	cmd := exec.Command("go", slices.AppendSeq(args, maps.Values(imports))...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.String())
	}
	files := make(map[string]string)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var pkg struct{ ImportPath, Export string }
		if err := dec.Decode(&pkg); err == io.EOF {
			return files, nil
		} else if err != nil {
			return nil, err
		}
		files[pkg.ImportPath] = pkg.Export
	}
})

func (c *checker) check(f file) {
	conf := types.Config{
		Importer: c.importer,
		Error: func(err error) {
			// A block of statements may end before its variables are used.
			unused := strings.Contains(err.Error(), "declared and not used")
			if f.whole || !unused {
				c.errs = append(c.errs, err)
			}
		},
	}
	// The error is the first of those that Error was told.
	_, _ = conf.Check("readme", c.fset, []*ast.File{f.syntax}, nil)
}

// TestMarkdownChecker: code that does not compile is found, where it is.
func TestMarkdownChecker(t *testing.T) {
	tests := []struct{ code, want string }{ // want "" if the code is right
		{"package main\n\nfunc main() {}\n", ""},
		{"package main\n\nfunc main() { x := 1 }\n", "README.md:6:15: declared and not used: x"},
		{"// Doc.\npackage main\n\nfunc main() { log.Print() }\n", "README.md:7:15: undefined: log"},
		{"package main\n\nimport \"log\"\n\nfunc main() {}\n", "README.md:6:8: \"log\" imported and not used"},
		{"package main\n\nimport \"no.such/thing\"\n\nfunc main() { thing.F() }\n", "README.md:6:8: could not import no.such/thing"},
		{"package main\n\nfunc main() {\n", "README.md:6:15: expected '}'"},

		{"var m letsencrypt.Manager\n", ""},
		{"func f() { m.Serve() }\n", ""},
		{"var client = http.Client{Timeout: time.Minute}\n", ""},
		{"func f(w http.ResponseWriter) { log.Print(w) }\n", ""},
		{"func f(w http.ResponseWriter) { log.Prin(w) }\n", "README.md:4:37: undefined: log.Prin"},

		{"x := &http.Server{}\n", ""},
		{"if err := mux; err != nil {\n\tlog.Fatal(err)\n}\n", ""},
		{"limiter := rate.NewLimiter(0, 5)\nlog := 1\n", ""},
		{"log.Print(1)\nhttp.Nothing()\n", "README.md:5:6: undefined: http.Nothing"},
		{"var m letsencrypt.Manager\nm.Nothing()\n", "README.md:5:3: m.Nothing undefined"},
		{"for {\n", "README.md:"},

		{"import \"github.com/someone/something\"\n\nwhatever\n", ""},
	}
	for _, tt := range tests {
		errs := checkMarkdown("README.md", "Text.\n\n```go\n"+tt.code+"```\n")
		switch {
		case tt.want == "" && len(errs) > 0:
			t.Errorf("%q: %v, want it right", tt.code, errs)
		case tt.want != "" && (len(errs) == 0 || !strings.Contains(errs[0].Error(), tt.want)):
			t.Errorf("%q: %v, want %s", tt.code, errs, tt.want)
		}
	}
}

func TestGoBlocks(t *testing.T) {
	const text = "a\n```\nno\n```\n```go\nb\n\nc\n```\n```sh\n```go\n```\n\n  ```go\n  d\n  ```\n"
	want := []block{{6, "b\n\nc\n"}, {15, "  d\n"}}
	if got := goBlocks(text); !slices.Equal(got, want) {
		t.Errorf("goBlocks(%q) = %v, want %v", text, got, want)
	}
	if errs := checkMarkdown("README.md", "# Nothing\n"); len(errs) == 0 {
		t.Error("a text without Go code passes, want an error")
	}
}
