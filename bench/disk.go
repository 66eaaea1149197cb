package main

import (
	"os"
	"strings"
)

// diskFolder makes a folder on a disk, as the one for temporary files may be
// memory.
func diskFolder() (string, error) {
	parent := "/var/tmp"
	if _, err := os.Stat(parent); err != nil {
		parent = os.TempDir()
	}
	return os.MkdirTemp(parent, "letsencrypt-bench-")
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
