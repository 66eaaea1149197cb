package platforms

import "syscall"

var _ = syscall.Kill // which Windows has not
