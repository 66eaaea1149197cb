package policy

import (
	"encoding/json"
	"go/parser"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A goMod is what go mod edit prints of a go.mod.
type goMod struct {
	Module  struct{ Path string }
	Go      string
	Require []struct {
		Path     string
		Indirect bool
	}
	Toolchain                               string
	Replace, Exclude, Retract, Tool, Ignore []any
}

// TestRootModule: whoever uses the library gets it and a few packages of Go's
// authors, and builds it with the Go that it has.
func TestRootModule(t *testing.T) {
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod goMod
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if mod.Module.Path != module || mod.Go != "1.26.0" {
		t.Errorf("go.mod is of %s for go %s, want %s for go 1.26.0", mod.Module.Path, mod.Go, module)
	}
	if mod.Toolchain != "" {
		t.Errorf("go.mod has toolchain %s, want none", mod.Toolchain)
	}
	if n := len(mod.Replace) + len(mod.Exclude) + len(mod.Retract) + len(mod.Tool) + len(mod.Ignore); n > 0 {
		t.Errorf("go.mod has %d lines beside module, go and require, want none", n)
	}
	checkRequired(t, mod)
}

func checkRequired(t *testing.T, mod goMod) {
	direct := []string{"golang.org/x/crypto", "golang.org/x/net", "golang.org/x/time"}
	indirect := []string{"golang.org/x/sys", "golang.org/x/text"}
	for _, req := range mod.Require {
		allowed := direct
		if req.Indirect {
			allowed = indirect
		}
		if !slices.Contains(allowed, req.Path) {
			t.Errorf("go.mod requires %s (indirect: %v), want none but %v and indirectly %v",
				req.Path, req.Indirect, direct, indirect)
		}
	}
}

// TestRootFolder: the root holds what touches the Manager, in one file for each
// thing it does; all else has a package below.
func TestRootFolder(t *testing.T) {
	allowed := []string{
		"manager.go", "marshal.go", "ratelimit.go", "serve.go",
		"manager_test.go", "example_test.go",
	}
	for _, src := range sources(t, parser.PackageClauseOnly) {
		if src.pkg == module && !slices.Contains(allowed, src.name) {
			t.Errorf("%s is in the root folder, want only %s there", src.name, strings.Join(allowed, ", "))
		}
	}
}

// TestManagerFile: a manager.go that takes longer than a sitting to read has
// something in it that belongs below.
func TestManagerFile(t *testing.T) {
	const most = 600
	text, err := os.ReadFile(filepath.Join(root, "manager.go"))
	if err != nil {
		t.Fatal(err)
	}
	_, code, ok := strings.Cut("\n"+string(text), "\npackage ") // the doc comment goes before
	if !ok {
		t.Fatal("manager.go has no package clause")
	}
	if n := strings.Count(code, "\n"); n >= most {
		t.Errorf("manager.go has %d lines from its package clause on, want fewer than %d", n, most)
	}
}
