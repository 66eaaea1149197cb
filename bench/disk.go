package main

import (
	"errors"
	"os"
	"strings"
)

// workFolder makes a folder for all temporary files of this process and of those
// that it starts. It is on a disk, as the usual one may be memory.
func workFolder() (string, error) {
	parent := "/var/tmp"
	if _, err := os.Stat(parent); err != nil {
		parent = os.TempDir()
	}
	folder, err := os.MkdirTemp(parent, "letsencrypt-bench-")
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.Setenv("TMPDIR", folder), os.Setenv("TMP", folder)); err != nil { // Windows has the latter
		return "", errors.Join(err, os.Remove(folder))
	}
	return folder, nil
}

// fileSystem returns the kind of file system that a folder is on, "" where that
// can't be told.
func fileSystem(folder string) string {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return ""
	}
	kind, longest := "", ""
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line) // device, mount point, kind
		if len(f) > 2 && len(f[1]) >= len(longest) && strings.HasPrefix(folder, f[1]) {
			kind, longest = f[2], f[1]
		}
	}
	return kind
}
