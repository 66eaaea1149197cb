package journal

import (
	"os"
	"syscall"
	"unsafe"
)

var lockFileEx = syscall.NewLazyDLL("kernel32.dll").NewProc("LockFileEx")

// lockFile waits for the exclusive lock on f, which ends when f is closed. It
// belongs to the open file, so that it also keeps two Logs of one process apart.
func lockFile(f *os.File) error {
	const exclusive = 2 // LOCKFILE_EXCLUSIVE_LOCK
	var at syscall.Overlapped
	ok, _, err := lockFileEx.Call(f.Fd(), exclusive, 0, 1, 0, uintptr(unsafe.Pointer(&at)))
	if ok == 0 {
		return os.NewSyscallError("LockFileEx", err)
	}
	return nil
}
