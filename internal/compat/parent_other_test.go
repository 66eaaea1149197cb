//go:build !linux && !freebsd

package compat

import "os/exec"

// dieWithParent does nothing where the kernel offers nothing.
func dieWithParent(*exec.Cmd) {}
