package journal

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	maxLinks    = 40      // symbolic links followed from the name we are given
	readBuffer  = 1 << 20 // bytes
	writeBuffer = 1 << 20 // bytes; a batch that fits is one write call
	tempSuffix  = ".tmp"
)

// A file is what a log keeps its records in, together with other processes.
type file struct {
	name string // absolute, the end of all symbolic links
	opts Options

	// fail, if not nil, is asked before each step and stands in for its
	// failure. Tests set it.
	fail func(step string) error

	handle // belongs to the one who has the log's turn
}

// A handle is the open file and how far we know it.
type handle struct {
	f   *os.File // nil: to be opened (again) before the next use
	end int64    // what stands before it was read, or written, by us

	// ragged says that the byte before end is no newline, so that the next
	// write begins with one.
	ragged bool

	// unlisted says that the folder's entry for the file may not be durable
	// yet: the file is new, or somebody else made it.
	unlisted bool
}

func (fl *file) warn(err error) {
	if fl.opts.Warn != nil {
		fl.opts.Warn(err)
	}
}

// step does one step that may fail.
func (fl *file) step(name string, do func() error) error {
	if fl.fail != nil {
		if err := fl.fail(name); err != nil {
			return err
		}
	}
	return do()
}

// resolve returns the absolute name of what name refers to, there or not:
// rename would replace a symbolic link, and the lock's name must be one for all.
func resolve(name string) (string, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	for range maxLinks {
		target, err := os.Readlink(name)
		if err != nil {
			return name, nil // no link, or nothing there
		}
		if !filepath.IsAbs(target) {
			dir := filepath.Dir(name)
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				dir = real // what ".." in target starts from
			}
			target = filepath.Join(dir, target)
		}
		name = target
	}
	return "", &fs.PathError{Op: "readlink", Path: name, Err: errors.New("too many links")}
}

// makeDir makes dir and its missing parents, durably.
func makeDir(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

// syncDir makes the names in dir durable, where that can be asked for: some
// file systems have no such notion, Windows cannot open a folder for it, and a
// folder that we may not read we cannot open either.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// checkType refuses a folder or a device before anything is made beside it.
func (fl *file) checkType() error {
	fi, err := os.Stat(fl.name)
	switch {
	case err != nil:
		return nil // missing, or open will tell
	case fi.IsDir():
		return &fs.PathError{Op: "open", Path: fl.name, Err: errors.New("is a directory")}
	case !fi.Mode().IsRegular():
		return &fs.PathError{Op: "open", Path: fl.name, Err: errors.New("not a regular file")}
	}
	return nil
}

// checkMode warns of a file that others may look into or write to.
func (fl *file) checkMode() {
	fi, err := os.Stat(fl.name)
	if err == nil && runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0 {
		fl.warn(fmt.Errorf("%s holds private keys and has mode %v", fl.name, fi.Mode()))
	}
}

// lock waits until no other process uses the file, and makes its folder if
// that is gone. The lock is on a file beside it, which is opened each time: if
// somebody removed the folder, a lock that we still held open would be one
// that nobody else can see.
func (fl *file) lock() (unlock func(), err error) {
	for {
		f, err := fl.openLock()
		if err != nil {
			return nil, err
		}
		if err := fl.step("lock", func() error { return lockFile(f) }); err != nil {
			f.Close()
			return nil, err
		}
		if same(f, f.Name()) {
			return func() { f.Close() }, nil
		}
		f.Close()
	}
}

func (fl *file) openLock() (*os.File, error) {
	name := fl.name + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := makeDir(filepath.Dir(name)); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
}

// same reports whether f is the file that name leads to.
func same(f *os.File, name string) bool {
	open, err1 := f.Stat()
	there, err2 := os.Stat(name)
	return err1 == nil && err2 == nil && os.SameFile(open, there)
}

// current reports whether the open file still is the one under its name, and
// not cut below what we read of it.
func (fl *file) current() bool {
	if fl.f == nil || !same(fl.f, fl.name) {
		return false
	}
	fi, err := fl.f.Stat()
	return err == nil && fi.Size() >= fl.end
}

// open returns a handle on what is under the file's name now, with nothing
// read yet.
func (fl *file) open() (*file, error) {
	f, err := os.OpenFile(fl.name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &file{name: fl.name, opts: fl.opts, fail: fl.fail, handle: handle{f: f, unlisted: true}}, nil
}

// close closes the handle. All that matters was synced.
func (fl *file) close() {
	if fl.f != nil {
		fl.f.Close()
		fl.f = nil
	}
}

// readHeader reads the header and sets end behind it. It reports whether the
// file is blank: empty, or torn inside the header by the crash of its maker.
func (fl *file) readHeader() (blank bool, err error) {
	buf := make([]byte, 64)
	n, err := fl.f.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	head := string(buf[:n])
	if len(head) < len(header) && strings.HasPrefix(header, head) {
		return true, nil
	}
	fl.end = int64(len(header))
	return false, checkHeader(head)
}

// read returns the records behind end, the replaced ones left out, counts the
// damaged lines there, and moves end to the end of the file. The caller holds
// the lock, so that a last line without a newline is no write under way but
// what a crash or a full disk left of one. The records share memory with the
// buffers that they were read into.
func (fl *file) read() (found *set, damaged int, err error) {
	found = new(set)
	fi, err := fl.f.Stat()
	if err != nil || fi.Size() <= fl.end {
		return found, 0, err
	}
	size := fi.Size() - fl.end
	pieces := make(chan chan piece, runtime.GOMAXPROCS(0))
	go readPieces(fl.f, fl.end, size, pieces)
	var line []byte // the one that goes on in the next piece
	for ahead := range pieces {
		p := <-ahead
		if err = cmp.Or(err, p.err); err != nil {
			continue // till all are read
		}
		line = append(line, p.first...)
		if p.ends {
			if r, err := parse(string(line)); err == nil {
				found.push(r)
			} else if len(line) > 0 {
				damaged++
			}
			line = append(line[:0], p.last...)
		}
		damaged += p.damaged
		for _, r := range p.records {
			found.push(r)
		}
		if found.read == 0 && 0 < p.size && p.size < size {
			found.reserve(int(float64(found.places) * float64(size) / float64(p.size)))
		}
		found.read += p.size
	}
	if err != nil {
		return new(set), 0, err
	}
	fl.end, fl.ragged = fl.end+found.read-int64(len(line)), false
	if r, ok := fl.tornLine(string(line)); ok {
		found.push(r)
	}
	return found, damaged, nil
}

// A piece is what stands in a part of a file, which may begin and end within a
// line, or the error that kept us from it.
type piece struct {
	split              // of the lines between
	first, last string // of the lines at both ends
	ends        bool   // the first does; else there is no other
	size        int64  // bytes read
}

// readPieces has the file read from an offset, and parsed, by several goroutines
// while its caller does what is to be done in order. It closes pieces when there is
// no more.
func readPieces(r io.ReaderAt, from, size int64, pieces chan<- chan piece) {
	defer close(pieces)
	for at := int64(0); at < size; at += readBuffer {
		next := make(chan piece, 1)
		pieces <- next
		go func() { next <- readPiece(io.NewSectionReader(r, from+at, min(readBuffer, size-at))) }()
	}
}

// readPiece reads a piece into a buffer that nobody writes to again. It has less
// than it should if somebody cut the file.
func readPiece(r *io.SectionReader) (p piece) {
	buf := make([]byte, r.Size())
	n, err := io.ReadFull(r, buf)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		p.err = err
		return p
	}
	p.size = int64(n)
	var lines string
	p.first, lines, p.ends = strings.Cut(unsafe.String(unsafe.SliceData(buf), n), "\n")
	end := strings.LastIndexByte(lines, '\n') + 1
	p.split, p.last = splitPiece(lines[:end], nil), lines[end:]
	return p
}

// tornLine deals with a last line that has no newline: it is cut off, unless
// only the newline is missing.
func (fl *file) tornLine(line string) (Record, bool) {
	if line == "" {
		return "", false
	}
	r, err := Parse(line)
	if err != nil && fl.truncate() == nil {
		return "", false
	}
	fl.end += int64(len(line))
	fl.ragged = true
	return r, err == nil
}

// truncate cuts off what stands behind end.
func (fl *file) truncate() error {
	return fl.step("truncate", func() error { return fl.f.Truncate(fl.end) })
}

// append writes rs at the end and makes them durable, or leaves the file as
// it was.
func (fl *file) append(rs []Record) error {
	if len(rs) == 0 && !fl.unlisted {
		return nil
	}
	size, err := fl.write(rs)
	if err == nil {
		err = fl.sync()
	}
	if err != nil {
		// What cannot be cut off now, the next read will find and cut off.
		_ = fl.truncate()
		return err
	}
	fl.end += size
	if size > 0 {
		fl.ragged = false
	}
	return nil
}

// write writes rs at the end, in one call if they are not too many.
func (fl *file) write(rs []Record) (size int64, err error) {
	if len(rs) == 0 {
		return 0, nil
	}
	for _, r := range rs {
		size += int64(len(r)) + 1
	}
	if fl.ragged {
		size++
	}
	w := bufio.NewWriterSize(io.NewOffsetWriter(fl.f, fl.end), int(min(size, writeBuffer)))
	if fl.ragged {
		w.WriteByte('\n')
	}
	writeLines(w, rs) // an error stays with w
	return size, fl.step("write", w.Flush)
}

func writeLines(w *bufio.Writer, rs []Record) (size int64) {
	for _, r := range rs {
		w.WriteString(string(r))
		w.WriteByte('\n')
		size += int64(len(r)) + 1
	}
	return size
}

// sync makes the file durable, and its name if that is not durable yet.
func (fl *file) sync() error {
	if err := fl.step("fsync", fl.f.Sync); err != nil {
		return err
	}
	if !fl.unlisted {
		return nil
	}
	err := fl.step("syncdir", func() error { return syncDir(filepath.Dir(fl.name)) })
	if err == nil {
		fl.unlisted = false
	}
	return err
}

// temp makes a new empty file beside the file, of its mode.
func (fl *file) temp() (tmp *os.File, err error) {
	dir, base := filepath.Split(fl.name)
	err = fl.step("temp", func() error {
		if err := makeDir(filepath.Clean(dir)); err != nil {
			return err
		}
		tmp, err = os.CreateTemp(dir, base+".*"+tempSuffix)
		return err
	})
	if err != nil || runtime.GOOS == "windows" {
		return tmp, err
	}
	if fi, err := os.Stat(fl.name); err == nil && fi.Mode().Perm() != 0o600 {
		// Somebody meant it; Open warned of it. Ours to keep, not to mend.
		_ = tmp.Chmod(fi.Mode().Perm())
	}
	return tmp, nil
}

// replace puts tmp, which has size bytes and is durable, under the file's
// name, and closes it in any case. Both are closed before the rename and
// opened after, since Windows renames no open file and replaces none; there it
// also fails while another process has the file open.
func (fl *file) replace(tmp *os.File, size int64) error {
	tmp.Close()
	fl.close()
	err := fl.step("rename", func() error { return os.Rename(tmp.Name(), fl.name) })
	if err != nil {
		os.Remove(tmp.Name())
	}
	// Without a handle, the next to come reads the file as if it were another's.
	if f, openErr := os.OpenFile(fl.name, os.O_RDWR, 0); openErr == nil {
		fl.f = f
	}
	if err != nil {
		return err
	}
	fl.end, fl.ragged, fl.unlisted = size, false, true
	return fl.step("syncdir", func() error {
		err := syncDir(filepath.Dir(fl.name))
		fl.unlisted = err != nil
		return err
	})
}

// removeTemps removes what rewrites that crashed left behind. One that another
// process is at work on may be among them: its rename will fail, and it copies
// again.
func (fl *file) removeTemps() {
	dir, base := filepath.Split(fl.name)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		random, ok := strings.CutPrefix(e.Name(), base+".")
		random, ok2 := strings.CutSuffix(random, tempSuffix)
		if _, err := strconv.ParseUint(random, 10, 64); ok && ok2 && err == nil {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// setAside keeps a copy of the whole file under another name, which it returns.
func (fl *file) setAside(now time.Time) (name string, err error) {
	fi, err := fl.f.Stat()
	if err != nil {
		return "", err
	}
	var f *os.File
	for t := now.Unix(); ; t++ {
		name = fmt.Sprintf("%s.damaged-%d", fl.name, t)
		f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return "", err
	}
	err = fl.step("aside", func() error {
		_, err := io.Copy(f, io.NewSectionReader(fl.f, 0, fi.Size()))
		return err
	})
	if err == nil {
		err = f.Sync()
	}
	f.Close()
	if err == nil {
		err = syncDir(filepath.Dir(name))
	}
	if err != nil {
		os.Remove(name)
	}
	return name, err
}
