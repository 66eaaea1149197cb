//go:build !linux && !freebsd

package pebble

import "os/exec"

// dieWithParent does nothing where the kernel offers nothing. If we are killed
// before Close, a Pebble on Unix still ends at its next log line, whose
// reader, at the other end of a pipe, is gone.
func dieWithParent(*exec.Cmd) {}
