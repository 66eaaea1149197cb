//go:build linux || freebsd

package compat

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the child when we die, however that
// happens.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
