// Package policy holds the rules of this repository that no compiler knows, as
// tests: who may import whom, what the module requires, which names are
// exported, and that the code in README.md compiles.
package policy

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const (
	root   = "../.." // the folder of the repository
	module = "example.com/letsencrypt"
)

// A source is a Go file of the repository.
type source struct {
	pkg    string // the import path of its package
	nested string // the path of the nested module that has it, "" in the root module
	name   string // below the root, with slashes
	fset   *token.FileSet
	syntax *ast.File
}

func (s source) isTest() bool { return strings.HasSuffix(s.name, "_test.go") }

// isPublic reports whether others may import the package of s.
func (s source) isPublic() bool {
	return !strings.Contains(s.pkg+"/", "/internal/") && s.syntax.Name.Name != "main"
}

// importPath returns the import path of a package as rules write it: ours by
// their folder, whose first element has no dot unless it is the root, ".".
func importPath(pkg string) string {
	if first, _, _ := strings.Cut(pkg, "/"); strings.Contains(first, ".") && pkg != "." {
		return pkg
	}
	return path.Join(module, pkg)
}

// sources parses all Go files of the repository, for whatever platform they are.
func sources(t *testing.T, mode parser.Mode) []source {
	t.Helper()
	var all []source
	modules := make(map[string]string) // folder to the nested module it is in
	fset := token.NewFileSet()
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if isIgnored(name) {
				return fs.SkipDir
			}
			modules[name], err = nestedModule(name, modules[path.Dir(name)])
			return err
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		file, err := parser.ParseFile(fset, filepath.Join(root, filepath.FromSlash(name)), nil, mode)
		if err != nil {
			return err
		}
		dir := path.Dir(name)
		all = append(all, source{importPath(dir), modules[dir], name, fset, file})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// isIgnored reports whether the go command passes the folder over.
func isIgnored(name string) bool {
	base := path.Base(name)
	return base == "testdata" || name != "." && strings.ContainsAny(base[:1], "._")
}

// nestedModule returns the nested module that the folder name is in: one of its
// own if it has a go.mod, or else its parent's.
func nestedModule(name, parents string) (string, error) {
	if name == "." {
		return "", nil
	}
	_, err := os.Stat(filepath.Join(root, filepath.FromSlash(name), "go.mod"))
	if errors.Is(err, fs.ErrNotExist) {
		return parents, nil
	}
	return importPath(name), err
}
