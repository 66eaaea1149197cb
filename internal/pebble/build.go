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
	path, err := build(ctx)
	if err != nil {
		return "", fmt.Errorf("building pebble: %w", err)
	}
	built.Store(&path)
	return path, nil
}

func build(ctx context.Context) (string, error) {
	_, file, _, _ := runtime.Caller(0)
	dir, err := sourceDir(ctx, file)
	if err != nil {
		return "", err
	}
	// With -n the tool is built and its path printed, but it is not run.
	path, err := goCommand(ctx, dir, "tool", "-n", "pebble")
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w\nwithout a network, run GOWORK=off go mod download in %s beforehand, with one", err, dir)
	}
	return path, err
}

// sourceDir returns the folder of the module that pins Pebble, which lies
// beside this file. A binary that was built with -trimpath knows no file by its
// real name; then the go command is asked for the module that we are in.
func sourceDir(ctx context.Context, file string) (string, error) {
	if filepath.IsAbs(file) {
		dir := filepath.Join(filepath.Dir(file), "server")
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
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
