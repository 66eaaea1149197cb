//go:build linux || freebsd

package fleet

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the child when we die, however that
// happens.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// stop has a process stand still until goOn.
func (p *process) stop() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) goOn() error { return p.cmd.Process.Signal(syscall.SIGCONT) }
