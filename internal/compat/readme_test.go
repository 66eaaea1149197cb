package compat

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	_ "example.com/letsencrypt/store/etcd" // what blocks import go.mod is to require
	_ "example.com/letsencrypt/store/postgres"
	_ "example.com/letsencrypt/store/redis"
	_ "github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/redis/go-redis/v9"
	_ "go.etcd.io/etcd/client/v3"
)

// TestREADME compiles the blocks of Go in README.md that begin with imports, of
// modules of others mostly. After a blank line come statements.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for _, b := range strings.Split(string(text), "```go\n")[1:] {
		code, _, _ := strings.Cut(b, "```")
		if !strings.HasPrefix(code, "import ") {
			continue
		}
		blocks++
		if out, err := compile(t, code); err != nil {
			t.Errorf("%v: %s\n%s", err, out, code)
		}
	}
	if blocks != 7 {
		t.Errorf("%d blocks begin with imports, want 7: lego, libdns, four engines of a fleet, certmagic", blocks)
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
	imports, statements, _ := strings.Cut(code, "\n\n")
	src := "package readme\n\n" + imports + `

import (
	"context"
	"log"
	"os"

	"example.com/letsencrypt"
)

var _, _ = log.Print, os.Getenv

func _(ctx context.Context, m *letsencrypt.Manager) {
` + statements + "}\n"
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
