//go:build unix

package main

import (
	"syscall"
	"time"
)

// cpuTimes returns the CPU time of this process, and of those that it started
// and that have ended. Both are zero where that can't be told.
func cpuTimes() (self, children time.Duration) {
	return cpuTime(syscall.RUSAGE_SELF), cpuTime(syscall.RUSAGE_CHILDREN)
}

func cpuTime(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
