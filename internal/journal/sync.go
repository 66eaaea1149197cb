package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Options are how a Log deals with its file. Its functions are called without
// a lock of this process held, but with the file's: they must not call Open,
// Sync, Compact or Close.
type Options struct {
	// Apply is given the records read from the file, in their order, the
	// replaced ones left out, some thousands at a time: all of them during
	// Open, and later, before this process writes, those that others wrote.
	// It calls Adopt for those it takes, or Put for what should replace them.
	// One that it does neither for goes with the next rewriting of the file.
	// nil adopts them all.
	//
	// After Open, what was in memory before and is not in the file, or
	// differs, is written too.
	Apply func([]Record)

	// Expect is told, before Apply is given all of a file, how many records that
	// are. nil: nobody is.
	Expect func(records int)

	// Import turns a file that is not in our format into records, which are
	// given to Apply; then the file is rewritten. An error leaves it
	// untouched and is returned by Open. nil: such a file is an error.
	Import func(data []byte) ([]Record, error)

	// Warn is told of trouble that was survived. nil: nobody is.
	Warn func(error)
}

// applyBatch is how many records Apply is given at a time.
const applyBatch = 5000

// A flight is one turn at the file. Its owner sets err and last, then closes
// done; nobody writes after that.
type flight struct {
	done chan struct{}
	last uint64 // the records up to this number share its fate
	err  error
}

// turn waits until nobody else is at the file, and begins a flight.
func (l *Log) turn() *flight {
	for {
		l.mu.Lock()
		before := l.flight
		if before == nil {
			f := &flight{done: make(chan struct{})}
			l.flight = f
			l.mu.Unlock()
			return f
		}
		l.mu.Unlock()
		<-before.done
	}
}

func (l *Log) endTurn(f *flight) {
	l.mu.Lock()
	l.flight = nil
	l.mu.Unlock()
	close(f.done)
}

// attached returns the file, or nil.
func (l *Log) attached() *file {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file
}

// Open names the file that keeps the records from now on, reads it, and writes
// what it lacks. The file, and folders on the way to it, are made if missing.
// If Open fails nothing is attached, and what Apply adopted stays. A file that
// can be read but not written is no failure: Warn is told, and Sync will be.
func (l *Log) Open(name string, o Options) error {
	return l.openFile(&file{name: name, opts: o})
}

func (l *Log) openFile(fl *file) (err error) {
	if fl.name, err = resolve(fl.name); err != nil {
		return err
	}
	f := l.turn()
	defer l.endTurn(f)
	if err := l.startFile(fl); err != nil {
		return err
	}
	if err := l.load(fl); err != nil {
		l.detach()
		fl.close()
		return err
	}
	if f.last, f.err = l.flush(fl); f.err != nil {
		fl.warn(fmt.Errorf("writing %s: %w", fl.name, f.err))
	}
	return nil
}

// startFile makes Puts from now on wait for the file.
func (l *Log) startFile(fl *file) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		return fmt.Errorf("%s is open already", l.file.name)
	}
	l.file = fl
	return nil
}

// detach makes the log one in memory only.
func (l *Log) detach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.detachLocked()
}

func (l *Log) detachLocked() {
	l.file, l.queue, l.pending, l.durable, l.refused = nil, nil, nil, 0, 0
}

// load reads the file for the first time. The caller has the turn.
func (l *Log) load(fl *file) error {
	if err := fl.checkType(); err != nil {
		return err
	}
	unlock, err := fl.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.attach(fl, true); err != nil {
		return err
	}
	fl.removeTemps()
	fl.checkMode()
	return nil
}

// Sync returns when the records up to number seq, as Put returned it, are
// durable, or with the error that kept them out of the file. They stay queued
// then, and the next Sync tries again. Without a file it has nothing to wait for.
//
// Records that share memory with the text or the file that they came in keep
// all of that in memory. When as much has been replaced or deleted as there is,
// one Sync gives those that are left memory of their own.
//
// Of many callers one writes what all of them wait for.
func (l *Log) Sync(seq uint64) error {
	for {
		l.mu.Lock()
		fl, f := l.file, l.flight
		if fl == nil || seq <= l.durable {
			l.mu.Unlock()
			l.tidy(nil, 0)
			return nil
		}
		if f == nil {
			f = &flight{done: make(chan struct{})}
			l.flight = f
			l.mu.Unlock()
			l.lead(fl, f)
			return f.err
		}
		l.mu.Unlock()
		<-f.done
		if f.err != nil && seq <= f.last {
			return f.err
		}
	}
}

// lead writes what is queued, releases those who wait for it, and has what is
// mostly dead tidied up.
func (l *Log) lead(fl *file, f *flight) {
	size := l.leadTurn(fl, f)
	if f.err != nil {
		fl = nil // it is not to be rewritten now
	}
	l.tidy(fl, size)
}

// tidy rewrites a file of the given size, if there is one that is mostly dead, and
// lets go of memory that is. That may take seconds, in which nobody is to wait; Close
// ends it.
func (l *Log) tidy(fl *file, size int64) {
	bloated := fl != nil && l.bloated(size)
	if !bloated && !l.mostlyDead() || !l.takeSlot(false) {
		return
	}
	go func() {
		defer l.freeSlot()
		if bloated {
			l.compactInPassing(fl, size)
		}
		l.release()
	}()
}

// leadTurn ends the turn even if one of Options' functions panics: whoever
// recovers that would leave everybody else waiting.
func (l *Log) leadTurn(fl *file, f *flight) (size int64) {
	defer l.endTurn(f)
	f.last, f.err = l.flush(fl)
	return fl.end
}

// flush reads what others wrote and writes what is queued. It returns the
// number of the last record that it wrote, or that its error is about. The
// caller has the turn.
func (l *Log) flush(fl *file) (last uint64, err error) {
	unlock, err := fl.lock()
	if err == nil {
		defer unlock()
		err = l.catchUp(fl)
	}
	l.mu.Lock()
	batch, last := l.queue[:len(l.queue):len(l.queue)], l.seq
	l.mu.Unlock()
	if err == nil {
		err = fl.append(batch)
	}
	if err != nil {
		l.squeeze(batch)
		return last, err
	}
	l.written(len(batch), last)
	return last, nil
}

// written records that the first n of the queue, and all records up to number
// last, are durable. Only who has the turn takes from the queue.
func (l *Log) written(n int, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable = max(l.durable, last)
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue, l.pending = nil, nil
	}
}

// squeeze drops from the queue, whose beginning is batch, the records that
// later ones of batch replace, lest it grow without bounds while the disk is
// full.
func (l *Log) squeeze(batch []Record) {
	kept := latest(batch)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(kept, l.queue[len(batch):]...)
}

// catchUp makes the log know what other processes did to the file. The caller
// has the turn and the file's lock.
func (l *Log) catchUp(fl *file) error {
	if fl.f != nil {
		// If the file was replaced, what stands here unread is what was
		// appended before: deletions among it are found nowhere else.
		found, damaged, err := fl.read()
		l.apply(fl, found, false)
		if fl.current() {
			l.heal(fl, damaged)
			return err
		}
		// An error does not matter then: NFS gives one for any file replaced.
	}
	return l.attach(fl, false)
}

// attach opens what is under the file's name, which is not what was read
// before, reads all of it, and queues what it lacks. The caller has the turn
// and the file's lock.
func (l *Log) attach(fl *file, all bool) error {
	next, err := fl.open()
	if errors.Is(err, fs.ErrNotExist) {
		return l.rewrite(fl)
	}
	if err != nil {
		return err
	}
	damaged, err := l.readAll(next, all)
	if err != nil {
		next.close()
		return err
	}
	fl.close()
	fl.handle = next.handle
	l.heal(fl, damaged)
	return nil
}

// readAll makes the log and a newly opened file know each other.
func (l *Log) readAll(fl *file, all bool) (damaged int, err error) {
	blank, err := fl.readHeader()
	switch {
	case blank:
		return 0, l.fill(fl)
	case errors.Is(err, ErrFormat) && fl.opts.Import != nil:
		return 0, l.importFile(fl)
	case err != nil:
		return 0, fmt.Errorf("%s: %w", fl.name, err)
	}
	found, damaged, err := fl.read()
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", fl.name, err)
	}
	l.apply(fl, found, all)
	l.queueMissing(found)
	return damaged, nil
}

func (l *Log) importFile(fl *file) error {
	data, err := io.ReadAll(io.NewSectionReader(fl.f, 0, 1<<62))
	if err != nil {
		return fmt.Errorf("reading %s: %w", fl.name, err)
	}
	rs, err := fl.opts.Import(data)
	if err != nil {
		return fmt.Errorf("importing %s: %w", fl.name, err)
	}
	l.apply(fl, setOf(rs), true)
	return l.rewrite(fl)
}

// apply gives records read from the file to Apply: all of them, or those that
// the log does not hold.
func (l *Log) apply(fl *file, found *set, all bool) {
	apply := fl.opts.Apply
	if apply == nil {
		apply = func(rs []Record) { l.Adopt(rs...) }
	}
	if all && found.places > blockSize {
		l.reserve(found.places)
	}
	if all && fl.opts.Expect != nil {
		fl.opts.Expect(found.places)
	}
	rs := make([]Record, 0, min(found.places, applyBatch))
	for r := range found.all() {
		if !all && !l.lacks(r) {
			continue
		}
		if rs = append(rs, r); len(rs) == applyBatch {
			apply(rs)
			rs = make([]Record, 0, applyBatch)
		}
	}
	if len(rs) > 0 {
		apply(rs)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead += found.read // of which Adopt has taken off what lives
}

// reserve makes room for n records, if there are none yet.
func (l *Log) reserve(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live.places == 0 {
		l.live.reserve(n)
	}
}

// lacks reports whether the record changes what the log holds.
func (l *Log) lacks(r Record) bool {
	l.mu.Lock()
	have := l.live.get(bytesOf(r.Key()))
	l.mu.Unlock()
	return have != r && (have != "" || !r.Deleted())
}

// queueMissing queues the live records that the file, where found was, does not
// hold.
func (l *Log) queueMissing(found *set) {
	next := 0 // where in found the next record is, if all of them were adopted
	for batch := range l.batches() {
		var missing []Record
		for _, r := range batch {
			if next >= found.places || *found.at(next) != r {
				place, ok := found.find(bytesOf(r.Key()))
				if !ok || *found.at(place) != r {
					missing = append(missing, r)
					continue
				}
				next = place
			}
			next++
		}
		l.requeue(missing)
	}
}

// requeue queues rs, which were live, but for those that a Put has replaced or
// queued since.
func (l *Log) requeue(rs []Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range rs {
		if !l.pendingLocked(r.Key()) {
			l.queueLocked(r)
		}
	}
}

// heal keeps a damaged file aside and writes a clean one. If it cannot, the
// damage stays where it is, skipped by whoever reads the file.
func (l *Log) heal(fl *file, damaged int) {
	if damaged == 0 {
		return
	}
	aside, err := fl.setAside(time.Now())
	if err != nil {
		fl.warn(fmt.Errorf("%s: skipped %d damaged records, keeping the file aside: %w", fl.name, damaged, err))
		return
	}
	fl.warn(fmt.Errorf("%s: skipped %d damaged records, kept the file as it was as %s", fl.name, damaged, aside))
	if err := l.rewrite(fl); err != nil {
		fl.warn(fmt.Errorf("rewriting %s: %w", fl.name, err))
	}
}

// Close writes what is queued, closes the file and returns the error that kept
// records out of it, if any. All records stay in memory, and those put from
// then on are in memory only. Close may be called twice, and Open after it.
func (l *Log) Close() error {
	l.closing.Store(true)
	l.takeSlot(true)
	defer l.freeSlot()
	l.closing.Store(false)
	f := l.turn()
	defer l.endTurn(f)
	fl := l.attached()
	if fl == nil {
		return nil
	}
	for f.err == nil && !l.detachIfDone() {
		f.last, f.err = l.flush(fl)
	}
	l.detach()
	fl.close()
	return f.err
}

// detachIfDone detaches the file if nothing waits to be written.
func (l *Log) detachIfDone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 {
		return false
	}
	l.detachLocked()
	return true
}
