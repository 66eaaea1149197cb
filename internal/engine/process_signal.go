//go:build linux || freebsd

package engine

import (
	"os/exec"
	"syscall"
)

// setAttributes has the kernel kill the child when we die, however that happens.
func setAttributes(cmd *exec.Cmd, as *user) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if as != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(as.uid), Gid: uint32(as.gid)}
	}
}
