package journal

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
)

const (
	minCompact = 64 << 10 // bytes; a smaller file is never rewritten for being dead
	maxCopies  = 4        // tries of one compaction whose copy others remove
	copyAhead  = 1 << 20  // bytes of a copy not yet durable, which the fsync of a Sync may have to wait for
)

var errClosing = errors.New("log is being closed")

// bloated reports whether more than half of a file of the given size is dead,
// unless a compaction failed when the file was not much smaller.
func (l *Log) bloated(size int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return size > minCompact && int64(len(header))+l.bytes < size/2 && size/3 > l.refused/2
}

// compactInPassing rewrites the file, or puts it off until the file, of the
// given size now, has grown by half. The caller has the compaction slot.
func (l *Log) compactInPassing(fl *file, size int64) {
	err := l.compactFile(fl)
	if err == nil {
		size = 0
	} else if !errors.Is(err, errClosing) {
		fl.warn(fmt.Errorf("compacting %s: %w", fl.name, err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = size
}

// Compact rewrites the file now, so that nothing replaced or deleted before
// the call is left in it. Without a file it does nothing.
func (l *Log) Compact() error {
	l.takeSlot(true)
	defer l.freeSlot()
	if fl := l.attached(); fl != nil {
		return l.compactFile(fl)
	}
	return nil
}

// compactFile is rewriteBeside, again if the copy was gone when it was done:
// another process, opening the file, cannot tell it from one that a crash left.
func (l *Log) compactFile(fl *file) (err error) {
	for range maxCopies {
		if l.attached() != fl { // it was closed before we had the slot
			return nil
		}
		if err = l.rewriteBeside(fl); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

// takeSlot takes the place of the one compaction that may run at a time. It
// waits for it, or reports whether it was free.
func (l *Log) takeSlot(wait bool) bool {
	for {
		l.mu.Lock()
		busy := l.compact
		if busy == nil {
			l.compact = make(chan struct{})
		}
		l.mu.Unlock()
		if busy == nil || !wait {
			return busy == nil
		}
		<-busy
	}
}

func (l *Log) freeSlot() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.compact)
	l.compact = nil
}

// rewriteBeside rewrites the file while others go on putting records and
// appending them to the old one: it copies the live records and makes the copy
// durable, and only then takes the turn and the file's lock for what changed
// meanwhile. A crash at any instant leaves the old file or the new one. The
// caller has the compaction slot.
func (l *Log) rewriteBeside(fl *file) (err error) {
	tmp, err := fl.temp()
	if err != nil {
		return err
	}
	c := l.startCopy(fl, tmp)
	defer c.stop()
	c.beside = true
	if err := c.copyLive(); err != nil {
		return c.abandon(err)
	}
	if err := fl.step("fsync copy", tmp.Sync); err != nil {
		return c.abandon(err)
	}
	if err := c.copyChanges(); err != nil {
		return c.abandon(err)
	}
	f := l.turn()
	defer l.endTurn(f)
	if l.attached() != fl {
		return c.abandon(nil)
	}
	unlock, err := fl.lock()
	if err != nil {
		return c.abandon(err)
	}
	defer unlock()
	if err := l.catchUp(fl); err != nil {
		return c.abandon(err)
	}
	return c.finish(true)
}

// rewrite is rewriteBeside for who has the turn and the file's lock already,
// and for a file that is not there.
func (l *Log) rewrite(fl *file) error {
	tmp, err := fl.temp()
	if err != nil {
		return err
	}
	c := l.startCopy(fl, tmp)
	defer c.stop()
	if err := c.copyLive(); err != nil {
		return c.abandon(err)
	}
	return c.finish(true)
}

// fill writes the header and all records into a blank file. The caller has the
// turn and the file's lock.
func (l *Log) fill(fl *file) error {
	fl.end = 0
	if err := fl.truncate(); err != nil {
		return err
	}
	c := l.startCopy(fl, fl.f)
	defer c.stop()
	if err := c.copyLive(); err != nil {
		return err
	}
	return c.finish(false)
}

// A rewriting is a copy of the live records under way.
type rewriting struct {
	l    *Log
	fl   *file
	f    *os.File
	w    *bufio.Writer
	v    *view
	size int64

	beside bool     // appends go on: Close need not wait for the end
	ahead  int64    // bytes not yet durable
	old    *os.File // what was replaced; to free a big one takes long
}

func (l *Log) startCopy(fl *file, f *os.File) *rewriting {
	return &rewriting{l: l, fl: fl, f: f, w: bufio.NewWriterSize(f, writeBuffer), v: l.startView()}
}

func (c *rewriting) stop() {
	c.l.endView(c.v)
	if c.old != nil {
		c.old.Close()
	}
}

// abandon removes the temporary file and returns err.
func (c *rewriting) abandon(err error) error {
	c.f.Close()
	os.Remove(c.f.Name())
	return err
}

// copyLive writes the header and the records as they are found.
func (c *rewriting) copyLive() error {
	c.w.WriteString(header)
	c.size = int64(len(header))
	for batch := range c.l.batches() {
		c.write(batch)
		if !c.beside {
			continue
		}
		if c.l.closing.Load() {
			return errClosing
		}
		if err := c.keepUp(); err != nil {
			return err
		}
	}
	return c.fl.step("copy", c.w.Flush)
}

func (c *rewriting) write(rs []Record) {
	n := writeLines(c.w, rs)
	c.size += n
	c.ahead += n
}

// keepUp makes the copy durable piece by piece: where one fsync brings along
// what others wrote, as in ext4, that of a Sync has no more than a piece to wait
// for.
func (c *rewriting) keepUp() error {
	if c.ahead < copyAhead {
		return nil
	}
	c.ahead = 0
	return cmp.Or(c.w.Flush(), c.f.Sync())
}

// copyChanges copies what changed during the copy, while that is much, so that
// little is left to do when everybody waits.
func (c *rewriting) copyChanges() error {
	for range maxCopies {
		changed := c.takeChanges()
		if changed == nil {
			break
		}
		c.write(latest(changed))
		if err := cmp.Or(c.w.Flush(), c.f.Sync()); err != nil {
			return err
		}
	}
	return nil
}

// takeChanges takes the changes from the view if they are many.
func (c *rewriting) takeChanges() (changed []Record) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if len(c.v.changed) >= blockSize {
		changed, c.v.changed = c.v.changed, nil
	}
	return changed
}

// finish adds what changed since the copy began, makes the file durable and,
// if it is a temporary one, puts it in place. All that is queued is durable
// then.
func (c *rewriting) finish(replace bool) error {
	n, last := c.settle()
	c.write(latest(c.v.changed))
	err := c.fl.step("write rest", c.w.Flush)
	if err == nil {
		err = c.fl.step("fsync rest", c.f.Sync)
	}
	switch {
	case err != nil && replace:
		err = c.abandon(err)
	case replace:
		if c.beside && runtime.GOOS != "windows" {
			c.old, c.fl.f = c.fl.f, nil
		}
		err = c.fl.replace(c.f, c.size)
	case err == nil:
		c.fl.end = c.size
		err = c.fl.sync()
	}
	if err == nil {
		c.l.written(n, last)
	}
	return err
}

// settle ends the view, so that the copy and the changes are the state of this
// moment, and says how much of the queue, and up to which number, that holds.
func (c *rewriting) settle() (n int, last uint64) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	delete(c.l.views, c.v)
	return len(c.l.queue), c.l.seq
}
