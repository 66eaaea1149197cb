package policy

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata/api.txt")

// TestAPI compares the exported names of all packages that others may import
// with testdata/api.txt, so that a change of the surface is a change that
// somebody reads. After a change that is wanted:
//
//	go test ./internal/policy -run TestAPI -update
func TestAPI(t *testing.T) {
	const golden = "testdata/api.txt"
	got := api(sources(t, parser.SkipObjectResolution))
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(string(text), "\r\n", "\n") // as Windows checks it out
	for _, line := range missing(got, want) {
		t.Errorf("not in %s: %s", golden, line)
	}
	for _, line := range missing(want, got) {
		t.Errorf("only in %s: %s", golden, line)
	}
}

// missing returns the lines of a that b has not.
func missing(a, b string) []string {
	have := make(map[string]bool)
	for line := range strings.Lines(b) {
		have[line] = true
	}
	var lines []string
	for line := range strings.Lines(a) {
		if !have[line] {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// api lists the exported names of the public packages among files, sorted, a
// line each: "package: kind declaration".
func api(files []source) string {
	lines := make(map[string]bool) // one name may be declared for several platforms
	for _, src := range files {
		if src.isTest() || !src.isPublic() {
			continue
		}
		pkg := strings.TrimPrefix(src.pkg, path.Dir(module)+"/")
		for _, decl := range src.syntax.Decls {
			for _, line := range exported(decl) {
				lines[pkg+": "+line+"\n"] = true
			}
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(lines)), "")
}

// exported returns a line for each exported name that decl declares.
func exported(decl ast.Decl) []string {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		return function(d)
	case *ast.GenDecl:
		var lines []string
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				lines = append(lines, typeLines(s)...)
			case *ast.ValueSpec:
				lines = append(lines, values(d.Tok, s)...)
			}
		}
		return lines
	}
	return nil
}

func function(d *ast.FuncDecl) []string {
	if !d.Name.IsExported() || d.Recv != nil && !ast.IsExported(receiver(d.Recv.List[0].Type)) {
		return nil
	}
	return []string{show(&ast.FuncDecl{Recv: unnamed(d.Recv), Name: d.Name, Type: d.Type})}
}

// receiver returns the name of the type that has a method.
func receiver(expr ast.Expr) string {
	switch x := expr.(type) {
	case *ast.StarExpr:
		return receiver(x.X)
	case *ast.IndexExpr:
		return receiver(x.X)
	case *ast.IndexListExpr:
		return receiver(x.X)
	case *ast.Ident:
		return x.Name
	}
	return ""
}

// unnamed returns recv without its name, which callers do not see.
func unnamed(recv *ast.FieldList) *ast.FieldList {
	if recv == nil {
		return nil
	}
	return &ast.FieldList{List: []*ast.Field{{Type: recv.List[0].Type}}}
}

// values returns a line for each exported constant or variable; constants have
// their value where it is written.
func values(tok token.Token, s *ast.ValueSpec) []string {
	var lines []string
	for i, name := range s.Names {
		if !name.IsExported() {
			continue
		}
		line := tok.String() + " " + name.Name
		if s.Type != nil {
			line += " " + show(s.Type)
		}
		if tok == token.CONST && i < len(s.Values) {
			line += " = " + show(s.Values[i])
		}
		lines = append(lines, line)
	}
	return lines
}

func typeLines(s *ast.TypeSpec) []string {
	if !s.Name.IsExported() {
		return nil
	}
	head := "type " + s.Name.Name + typeParams(s.TypeParams)
	if s.Assign.IsValid() {
		return []string{head + " = " + show(s.Type)}
	}
	switch x := s.Type.(type) {
	case *ast.StructType:
		return append([]string{head + " struct"}, members(head+" struct, ", "", x.Fields)...)
	case *ast.InterfaceType:
		return append([]string{head + " interface"}, members(head+" interface, ", " func", x.Methods)...)
	}
	return []string{head + " " + show(s.Type)}
}

func typeParams(list *ast.FieldList) string {
	if list == nil {
		return ""
	}
	var params []string
	for _, f := range list.List {
		for _, name := range f.Names {
			params = append(params, name.Name+" "+show(f.Type))
		}
	}
	return "[" + strings.Join(params, ", ") + "]"
}

// members returns a line for each exported field or method, and for whatever is
// embedded: its exported members are the type's too. Of a member's type cut is
// left out.
func members(head, cut string, list *ast.FieldList) []string {
	var lines []string
	for _, f := range list.List {
		if len(f.Names) == 0 {
			lines = append(lines, head+show(f.Type))
		}
		for _, name := range f.Names {
			if name.IsExported() {
				lines = append(lines, head+name.Name+strings.TrimPrefix(" "+show(f.Type), cut))
			}
		}
	}
	return lines
}

// show prints node on one line.
func show(node ast.Node) string {
	var buf bytes.Buffer
	// Positions of no file set and no comments: the printer breaks lines only
	// where the syntax demands it.
	if err := printer.Fprint(&buf, token.NewFileSet(), node); err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(buf.String()), " ")
}

// TestAPILines: every way to export a name has its line, and nothing else has.
func TestAPILines(t *testing.T) {
	const code = `// Package p is documented.
package p

const A, b = "a", "b"

const (
	C Kind = iota // first
	D
)

var E, f = 1, 2

// Kind is documented.
type Kind int

type hidden struct{ X int }

type Struct struct {
	A, B, c int // three
	F func(
		x int,
	) error ` + "`tag`" + `
	*hidden
	mu  int
}

type Iface[T any, U comparable] interface {
	M(ctx int) error
	m()
	Kind
}

type Alias = Kind

func Func[T any](x T) (n int, err error) { return 0, nil }
func fn()                             {}

func (s *Struct) Method()           {}
func (Iface2[T, U]) Method(x, y int) {}
func (s *Struct) method()           {}
func (h hidden) Method()            {}
`
	want := []string{
		`const A = "a"`,
		`const C Kind = iota`,
		`const D`,
		`func (*Struct) Method()`,
		`func (Iface2[T, U]) Method(x, y int)`,
		`func Func[T any](x T) (n int, err error)`,
		`type Alias = Kind`,
		`type Iface[T any, U comparable] interface`,
		`type Iface[T any, U comparable] interface, Kind`,
		`type Iface[T any, U comparable] interface, M(ctx int) error`,
		`type Kind int`,
		`type Struct struct`,
		`type Struct struct, *hidden`,
		`type Struct struct, A int`,
		`type Struct struct, B int`,
		`type Struct struct, F func(x int) error`,
		`var E`,
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "p.go", code, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	got := api([]source{{pkg: "p", name: "p.go", fset: fset, syntax: file}})
	if want := "p: " + strings.Join(want, "\np: ") + "\n"; got != want {
		t.Errorf("api of the code above =\n%s\nwant\n%s", got, want)
	}
}
