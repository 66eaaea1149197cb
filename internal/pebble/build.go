package pebble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
)

// built is the path that Build returned last. Callers that come before the
// first has returned build too; the go command sees to it that only one works.
var built atomic.Pointer[string]

// Build returns the path of the Pebble program of the version that the module
// in folder server pins. The go command builds it and keeps it in its cache;
// modules that are not there yet are fetched.
func Build(ctx context.Context) (string, error) {
	if path := built.Load(); path != nil {
		return *path, nil
	}
	dir, err := sourceDir(ctx)
	if err != nil {
		return "", fmt.Errorf("building pebble: %w", err)
	}
	// With -n the tool is built and its path printed, but it is not run.
	path, err := goCommand(ctx, dir, "tool", "-n", "pebble")
	if err != nil {
		return "", fmt.Errorf("building pebble: %w\n"+
			"(where there is no network, run \"GOWORK=off go mod download\" in %s beforehand, with one)", err, dir)
	}
	built.Store(&path)
	return path, nil
}

// sourceDir returns the folder of the module that pins Pebble. It is in none of
// our module's packages, so that the go command does not know of it, but it
// lies beside this file.
func sourceDir(ctx context.Context) (string, error) {
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		dir := filepath.Join(filepath.Dir(file), "server")
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	// The path in the binary is no file's: it was built with -trimpath.
	root, err := goCommand(ctx, "", "list", "-m", "-f", "{{.Dir}}", "example.com/letsencrypt")
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "internal", "pebble", "server"), nil
}

// goCommand returns what the go command prints, trimmed. In a folder given by
// name it works with the module there alone.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	if dir != "" {
		cmd.Env = append(os.Environ(), "GOWORK=off")
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: the Go toolchain is needed, with its go command in PATH", err)
	}
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}
