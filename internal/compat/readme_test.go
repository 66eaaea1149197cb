package compat

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestREADME compiles the blocks of Go in README.md that import modules of
// others. Each is a list of imports and then of statements.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for _, b := range strings.Split(string(text), "```go\n")[1:] {
		code, _, _ := strings.Cut(b, "```")
		if !strings.Contains(code, `"github.com/`) {
			continue
		}
		blocks++
		if out, err := compile(t, code); err != nil {
			t.Errorf("%v: %s\n%s", err, out, code)
		}
	}
	if blocks != 2 {
		t.Errorf("%d blocks import modules of others, want one for lego and one for libdns", blocks)
	}
}

func TestCompileRefusesWhatIsWrong(t *testing.T) {
	const right = "import \"github.com/libdns/rfc2136\"\n\nvar p rfc2136.Provider\n_ = p\n"
	if out, err := compile(t, right); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := compile(t, strings.ReplaceAll(right, "Provider", "NoSuchThing")); err == nil {
		t.Error("compiled what is not there")
	}
}

// compile compiles a block as a package of this module that is on no disk.
func compile(t *testing.T, code string) (output []byte, err error) {
	t.Helper()
	i := strings.LastIndex(code, `"github.com/`)
	end := i + strings.Index(code[i:], "\n\n") // of the imports
	src := "package readme\n\n" + code[:end] + `

import (
	"log"
	"os"

	"example.com/letsencrypt"
)

var _, _ = log.Print, os.Getenv

func _(m *letsencrypt.Manager) {
` + code[end:] + "}\n"
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "block.go")
	if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(dir, "readme", "block.go"): file}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), "go", "build", "-overlay", list, "./readme").CombinedOutput()
}
