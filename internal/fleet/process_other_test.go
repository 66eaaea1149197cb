//go:build !linux && !freebsd

package fleet

import (
	"errors"
	"os/exec"
)

// dieWithParent does nothing where the kernel offers nothing.
func dieWithParent(*exec.Cmd) {}

// Nothing is stopped where it could stay so for ever when the test dies.
func (p *process) stop() error { return errors.ErrUnsupported }
func (p *process) goOn() error { return errors.ErrUnsupported }
