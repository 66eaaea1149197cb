package pebble

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestBuild(t *testing.T) {
	path, err := Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, "-version").Output()
	if err != nil || !strings.HasPrefix(string(out), "Pebble version") {
		t.Errorf("%s -version = %q, %v", path, out, err)
	}
}

// The names of files in a binary built with -trimpath begin with a module.
func TestSourceDirTrimmed(t *testing.T) {
	_, file, _, _ := runtime.Caller(0)
	for _, file := range []string{file, "example.com/letsencrypt/internal/pebble/build.go", "/moved/internal/pebble/build.go"} {
		dir, err := sourceDir(t.Context(), file)
		want, absErr := filepath.Abs("server")
		if err != nil || absErr != nil || dir != want {
			t.Errorf("sourceDir(%q) = %q, %v, want %q", file, dir, err, want)
		}
	}
}

func TestBuildNoGo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := build(t.Context()); err == nil || !strings.Contains(err.Error(), "go command") {
		t.Errorf("build = %v, want one about the go command", err)
	}
}

func TestBuildNoModules(t *testing.T) {
	t.Setenv("GOMODCACHE", t.TempDir())
	t.Setenv("GOPROXY", "off")
	if _, err := build(t.Context()); err == nil || !strings.Contains(err.Error(), "go mod download") {
		t.Errorf("build = %v, want one about go mod download", err)
	}
}
