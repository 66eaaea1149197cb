package engine

import (
	"fmt"
	"os/exec"
	osuser "os/user"
	"runtime"
	"strconv"
)

// launch starts a process that dies with this one, as another user unless that
// is nil. The returned channel is closed when it has ended.
func launch(cmd *exec.Cmd, as *user) (<-chan struct{}, error) {
	setAttributes(cmd, as)
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// Linux sends the child its signal when the thread that started it is
		// gone (golang.org/issue/27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() // how it ended is in its log
		}
	}()
	return ended, <-started
}

// A user is one that processes can run as.
type user struct{ uid, gid int }

// unprivileged returns a user to run as what refuses to run as root.
func unprivileged() (*user, error) {
	var err error
	for _, name := range []string{"postgres", "nobody"} {
		var u *osuser.User
		if u, err = osuser.Lookup(name); err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil {
			return &user{uid, gid}, nil
		}
	}
	return nil, fmt.Errorf("no user but root: %w", err)
}
