// Package journal keeps a set of records in memory and, once [Log.Open] named
// one, in an append-only file that survives a crash at any instant.
//
// # Format
//
// A file, and the text that [Log.Text] makes and [Split] reads, is the line
// "letsencrypt 1", then one record a line:
//
//	kind name crc32c fields... json
//
// The kind is of a-z; the name of printable ASCII without spaces; the checksum
// is the CRC-32C of the line without its newline, the checksum and the space
// behind it, in eight lower-case hex digits; a field is a number; the value is
// any JSON on one line. A record replaces the earlier ones of the same kind and
// name, and one that ends in null, without fields, deletes them. Nothing here
// knows what a record means: kinds of later versions are kept word for word.
//
// # Promises
//
// What [Log.Sync] returned nil for is in the file, whatever crashes next: the
// process, the machine, or another process that uses the same file. Records
// reach the file in the order of their Puts. A torn last line is cut off; a
// line damaged elsewhere is skipped and the file as it was kept aside; a file
// of a later version, or one that isn't ours, is left alone. A file with more
// dead bytes than living ones is rewritten beside itself and renamed.
//
// Any number of processes may share one file. Each learns what the others
// wrote whenever it writes. A record deleted by another process comes back
// only if the file was rewritten twice since this process last wrote: then
// nothing tells a record that was deleted from one that was lost, and nothing
// is to be lost.
//
// Work is done by those who wait for it, who have goroutines help with what is
// large: those end first. What nobody waits for, the rewriting of a file that is
// mostly dead, is done by a goroutine, of which there is one at most, and
// [Log.Close] ends it.
package journal

import (
	"cmp"
	"encoding/binary"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// A Log is a set of records, at most one of each kind and name. The zero value
// is empty and in memory only. A Log is safe for concurrent use and must not be
// copied.
//
// Lock order: the compaction slot, the turn, the file's lock, mu. The first
// three are held over I/O and waited for on channels or in system calls; none
// of them is needed for Put, Get, All or Text.
type Log struct {
	closing atomic.Bool // tells a compaction under way to give up

	mu      sync.Mutex // guards the fields below; held for memory access only
	live    set
	bytes   int64              // of the live records, newlines included
	dead    int64              // of those replaced or deleted, or read and not adopted, since release
	seq     uint64             // counts the records ever put
	durable uint64             // the records up to this number are in the file
	queue   []Record           // put, not yet known to be in the file
	pending map[string]uint64  // when the keys of queue, and some others, were last put
	views   map[*view]struct{} // those who walk live at the moment
	file    *file              // nil: memory only; what it points to belongs to the turn
	flight  *flight            // the turn taken, or nil
	compact chan struct{}      // the compaction slot taken, or nil; closed when free again
	refused int64              // the size of the file when a compaction last failed
}

// Put adds records, each replacing those of its kind and name, and returns the
// number to Sync. They are seen together or not at all, and all others wait
// meanwhile: put thousands in pieces. Put never waits for I/O.
func (l *Log) Put(rs ...Record) (seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range rs {
		l.setLocked(r)
		l.queueLocked(r)
	}
	return l.seq
}

// Grow makes room for so many records, if there are none yet.
func (l *Log) Grow(records int) { l.reserve(records) }

// Adopt adds records that stand in the file already. It is for [Options.Apply]
// to call. A record whose key was put since, but not yet written, is passed
// over: the one put will follow it in the file.
func (l *Log) Adopt(rs ...Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range rs {
		if len(l.pending) == 0 || !l.pendingLocked(r.Key()) {
			l.setLocked(r)
			l.dead -= r.size()
		}
	}
}

func (l *Log) setLocked(r Record) {
	var old Record
	if key := r.Key(); r.restAfter(key) == null {
		old = l.live.remove(bytesOf(key))
	} else {
		old = l.live.put(key, r)
		l.bytes += r.size()
	}
	if old != "" {
		l.bytes -= old.size()
		l.dead += old.size()
	}
	for v := range l.views {
		v.changed = append(v.changed, r)
	}
}

// queueLocked counts r and queues it for the file, if there is one.
func (l *Log) queueLocked(r Record) {
	l.seq++
	if l.file == nil {
		return
	}
	l.queue = append(l.queue, r)
	if l.pending == nil {
		l.pending = make(map[string]uint64)
	}
	l.pending[r.Key()] = l.seq
}

// pendingLocked reports whether a record of that key is queued.
func (l *Log) pendingLocked(key string) bool { return l.pending[key] > l.durable }

// Get returns the record of the given kind and name.
func (l *Log) Get(kind, name string) (Record, bool) {
	var buf [256]byte // keeps the key of all but the longest URLs off the heap
	key := append(append(append(buf[:0], kind...), ' '), name...)
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.live.get(key)
	return r, r != ""
}

// All returns the records in no particular order. A record that is there all
// the while comes once; one put or deleted meanwhile may or may not come. No
// lock is held while the loop's body runs, which may use l.
func (l *Log) All() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for batch := range l.batches() {
			for _, r := range batch {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// batches returns the live records in pieces, valid for one step each.
func (l *Log) batches() iter.Seq[[]Record] {
	return func(yield func([]Record) bool) {
		var buf [blockSize]Record
		for at := 0; ; at += blockSize {
			batch, ok := l.copyBlock(buf[:0], at)
			if !ok || !yield(batch) {
				return
			}
		}
	}
}

// copyBlock appends the live records of the block at a place to batch, and
// reports whether there is that block.
func (l *Log) copyBlock(batch []Record, at int) ([]Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	block := l.live.block(at)
	for _, r := range block {
		if r != "" {
			batch = append(batch, r)
		}
	}
	return batch, block != nil
}

// A view collects what changes while its owner walks the records. The walk,
// and then the changes, are together the state at the moment the view ends.
type view struct {
	changed []Record
}

func (l *Log) startView() *view {
	v := new(view)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.views == nil {
		l.views = make(map[*view]struct{})
	}
	l.views[v] = struct{}{}
	return v
}

func (l *Log) endView(v *view) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.views, v)
}

// Text returns the header and all records as they were at one moment, sorted
// by kind and name.
func (l *Log) Text() string {
	rs := l.snapshot()
	size := len(header)
	for _, r := range rs {
		size += len(r) + 1
	}
	var b strings.Builder
	b.Grow(size)
	b.WriteString(header)
	for _, r := range rs {
		b.WriteString(string(r))
		b.WriteByte('\n')
	}
	return b.String()
}

// snapshot returns the records as they were at one moment, sorted.
func (l *Log) snapshot() []Record {
	v := l.startView()
	rs := make([]Record, 0, l.places())
	for batch := range l.batches() {
		rs = append(rs, batch...)
	}
	l.endView(v)
	rs = sorted(rs)
	if len(v.changed) == 0 {
		return rs
	}
	changed := latest(v.changed)
	sortRecords(changed)
	return slices.DeleteFunc(merge(rs, changed), Record.Deleted)
}

func (l *Log) places() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.live.places
}

// sorted returns rs, which it changes, sorted by key, and that in one pass over
// those that are in order already: all of them, if a Text or a file that one
// was written to was read and nothing came since.
//
// The order of the lines is the order of their keys: one is followed by a
// space, which is less than what a longer one goes on with.
func sorted(rs []Record) []Record {
	kept := rs[:0]
	var rest []Record
	for _, r := range rs {
		last := len(kept) - 1
		if last < 0 || kept[last] < r {
			kept = append(kept, r)
			continue
		}
		// Either may be the one in the wrong place, so that neither stays.
		rest = append(rest, kept[last], r)
		kept = kept[:last]
	}
	if len(rest) > len(kept) {
		kept, rest = append(rest, kept...), nil
		sortRecords(kept)
	}
	sortRecords(rest)
	return merge(kept, rest)
}

// merge merges two sorted lists. Those of the second replace those of the first.
func merge(rs, changed []Record) []Record {
	if len(changed) == 0 {
		return rs
	}
	merged := make([]Record, 0, len(rs)+len(changed))
	for len(rs) > 0 && len(changed) > 0 {
		key := changed[0].Key()
		for len(rs) > 0 && string(rs[0]) < key {
			merged = append(merged, rs[0])
			rs = rs[1:]
		}
		for len(rs) > 0 && hasKey(rs[0], bytesOf(key)) {
			rs = rs[1:]
		}
		merged = append(merged, changed[0])
		changed = changed[1:]
	}
	merged = append(merged, rs...)
	return append(merged, changed...)
}

// A word is eight bytes of a record, as a number of the same order.
type word struct {
	n uint64
	r Record
}

// sortRecords sorts rs. To compare two records takes two looks at memory that
// no cache holds, and sorting compares each a score of times: so it compares
// the eight bytes behind what all have in common, fetched once, and then, of
// those that have these in common, too, the next.
func sortRecords(rs []Record) {
	ws := make([]word, len(rs))
	for i, r := range rs {
		ws[i].r = r
	}
	sortWords(ws, 0)
	for i, w := range ws {
		rs[i] = w.r
	}
}

// sortWords sorts records that are the same up to a byte.
func sortWords(ws []word, at int) {
	if len(ws) < 12 {
		slices.SortFunc(ws, func(a, b word) int { return strings.Compare(string(a.r), string(b.r)) })
		return
	}
	at = common(ws, at)
	for i := range ws {
		ws[i].n = wordAt(ws[i].r, at)
	}
	slices.SortFunc(ws, func(a, b word) int { return cmp.Compare(a.n, b.n) })
	for len(ws) > 0 {
		same := 1
		for same < len(ws) && ws[same].n == ws[0].n {
			same++
		}
		if at < len(ws[0].r) { // else they are all the same to the end
			sortWords(ws[:same], at+8)
		}
		ws = ws[same:]
	}
}

// common returns up to where records, the same up to a byte, are the same.
func common(ws []word, at int) int {
	first := ws[0].r
	end := len(first)
	for _, w := range ws[1:] {
		end = min(end, len(w.r))
		for i := at; i < end; i++ {
			if w.r[i] != first[i] {
				end = i
			}
		}
	}
	return end
}

func wordAt(r Record, at int) uint64 {
	var b [8]byte
	copy(b[:], r[min(at, len(r)):])
	return binary.BigEndian.Uint64(b[:])
}

// release lets go of what was read into memory for the sake of records that
// are gone: those that live may share it, and are cloned. It copies no more
// than was put since it last did.
func (l *Log) release() {
	if !l.mostlyDead() {
		return
	}
	l.mu.Lock()
	l.dead = 0
	l.mu.Unlock()
	for at := 0; !l.closing.Load() && l.cloneBlock(at); at += blockSize {
	}
}

func (l *Log) mostlyDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead > max(l.bytes, readBuffer)
}

// cloneBlock clones the records of the block at a place, and reports whether
// there is that block. What is cloned stays the same: no view hears of it.
func (l *Log) cloneBlock(at int) bool {
	l.mu.Lock()
	shared := slices.Clone(l.live.block(at))
	l.mu.Unlock()
	cloned := make([]Record, len(shared))
	for i, r := range shared {
		cloned[i] = Record(strings.Clone(string(r)))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, r := range l.live.block(at)[:len(shared)] {
		if r == shared[i] { // else it was put meanwhile
			*l.live.at(at + i) = cloned[i]
		}
	}
	return len(shared) > 0
}
