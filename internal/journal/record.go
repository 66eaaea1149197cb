package journal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"
)

// header is the first line of every file and every blob.
const header = "letsencrypt 1\n"

// null is all that stands behind the checksum of a record that deletes.
const null = "null"

var (
	// ErrVersion is returned, wrapped with the version found, for a file or
	// a blob that a later version of this package wrote.
	ErrVersion = errors.New("unknown format version")

	// ErrFormat is returned for what does not begin with our header at all.
	ErrFormat = errors.New("not in the letsencrypt format")
)

var (
	errSyntax   = errors.New("malformed record")
	errChecksum = errors.New("record with a wrong checksum")
)

const crcSize = len("00000000 ")

// A Record is one checked line, without its newline:
//
//	kind name crc32c fields... json
//
// Records come from [Format], [Delete], [Parse] and [Split] only.
type Record string

// Format returns the record of the given kind and name. It panics if kind is
// not of a-z, name is not of printable ASCII without spaces, or value is not
// one JSON value: our own code makes all three.
func Format(kind, name string, fields []int64, value []byte) Record {
	if !validKind(kind) || !validName(name) {
		panic(fmt.Sprintf("letsencrypt: internal error: bad record key %q %q", kind, name))
	}
	var b bytes.Buffer
	b.Grow(len(kind) + len(name) + 2 + crcSize + 21*len(fields) + len(value))
	b.WriteString(kind + " " + name + " ")
	at := b.Len()
	b.WriteString("00000000 ")
	for _, f := range fields {
		b.Write(append(strconv.AppendInt(b.AvailableBuffer(), f, 10), ' '))
	}
	// Compact is what makes any JSON value fit into one line.
	if err := json.Compact(&b, value); err != nil {
		// The value may hold a private key: the message must not.
		panic(fmt.Sprintf("letsencrypt: internal error: record %q %q: value is not JSON", kind, name))
	}
	line := b.Bytes()
	crc := crc32.Update(crc32.Checksum(line[:at], castagnoli), castagnoli, line[at+crcSize:])
	copy(line[at:], fmt.Sprintf("%08x", crc))
	return Record(line)
}

// Delete returns the record that deletes the one of the given kind and name.
func Delete(kind, name string) Record {
	return Format(kind, name, nil, []byte(null))
}

// Parse checks one line, without its newline. It looks at the syntax around
// the JSON value and at the checksum, not at the value itself, so that a
// million lines are soon read. The record returned is line itself.
func Parse(line string) (Record, error) {
	if strings.IndexByte(line, '\n') >= 0 {
		return "", errSyntax
	}
	return parse(line)
}

// parse is Parse for what is known to have no newline.
func parse(line string) (Record, error) {
	kind, rest, ok1 := strings.Cut(line, " ")
	name, rest, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || !validKind(kind) || !validName(name) || len(rest) < crcSize || rest[crcSize-1] != ' ' {
		return "", errSyntax
	}
	want, ok := parseHex(rest[:crcSize-1])
	if rest = rest[crcSize:]; !ok || skipFields(rest) == "" {
		return "", errSyntax
	}
	head := line[:len(kind)+1+len(name)+1]
	if crc32.Update(crc32.Checksum(bytesOf(head), castagnoli), castagnoli, bytesOf(rest)) != want {
		return "", errChecksum
	}
	return Record(line), nil
}

// Key returns "kind name", by which later records replace earlier ones.
func (r Record) Key() string {
	_, key := r.ends()
	return string(r[:key])
}

// Kind returns the record's kind.
func (r Record) Kind() string {
	kind, _ := r.ends()
	return string(r[:kind])
}

// Name returns the record's name.
func (r Record) Name() string {
	kind, key := r.ends()
	return string(r[kind+1 : key])
}

// ends returns where the kind and the key end.
func (r Record) ends() (kind, key int) {
	for kind < len(r) && r[kind] != ' ' { // a few letters
		kind++
	}
	return kind, kind + 1 + strings.IndexByte(string(r[kind+1:]), ' ')
}

// Field returns the i'th of the numbers before the JSON value, and whether
// there is one.
func (r Record) Field(i int) (int64, bool) {
	rest := r.rest()
	for ; i > 0 && fieldLen(rest) > 0; i-- {
		rest = rest[fieldLen(rest)+1:]
	}
	n, _, ok := cutField(rest)
	return n, ok && i == 0
}

// Fields sets the numbers to those before the JSON value, and reports whether there
// are as many.
func (r Record) Fields(numbers ...*int64) bool {
	rest, ok := r.rest(), false
	for _, to := range numbers {
		if *to, rest, ok = cutField(rest); !ok {
			return false
		}
	}
	return true
}

// cutField returns the number in the field that s begins with, and what follows it.
func cutField(s string) (n int64, rest string, ok bool) {
	for i := range len(s) {
		digit := s[i] - '0'
		if digit <= 9 && i < 18 {
			n = 10*n + int64(digit)
			continue
		}
		if digit <= 9 || s[i] != ' ' || i == 0 {
			break
		}
		return n, s[i+1:], true
	}
	return cutAnyField(s)
}

// cutAnyField is cutField for those that are not just of a few digits.
func cutAnyField(s string) (n int64, rest string, ok bool) {
	l := fieldLen(s)
	n, err := strconv.ParseInt(s[:l], 10, 64)
	if err != nil {
		return 0, s, false
	}
	return n, s[l+1:], true
}

// JSON returns the record's value.
func (r Record) JSON() string { return skipFields(r.rest()) }

// Deleted reports whether r deletes the records of its kind and name.
func (r Record) Deleted() bool { return r.rest() == null }

// size returns the bytes of the line, its newline included.
func (r Record) size() int64 { return int64(len(r)) + 1 }

// rest returns what stands behind the checksum.
func (r Record) rest() string { return r.restAfter(r.Key()) }

func (r Record) restAfter(key string) string { return string(r[len(key)+len(" 00000000 "):]) }

// Split returns the records of a blob that [Log.Text] made, in its order, and
// how many lines were damaged. It refuses one of another version
// ([ErrVersion]) or origin ([ErrFormat]) whole. The last line needs no
// newline: blobs travel through programs that trim them.
//
// The records share memory with text. A Log lets go of it as it changes, at the
// latest when it has changed by what it holds: see [Log.Sync].
func Split(text string) (records []Record, damaged int, err error) {
	return SplitChecked(text, nil)
}

// SplitChecked is Split that returns the error if check finds one in a record. It
// may call check from several goroutines, all of which end before it returns.
func SplitChecked(text string, check func(Record) error) (records []Record, damaged int, err error) {
	if err := checkHeader(text); err != nil {
		return nil, 0, err
	}
	_, text, _ = strings.Cut(text, "\n")
	pieces := cut(text, min(runtime.GOMAXPROCS(0), len(text)/readBuffer+1))
	found := make([]split, len(pieces))
	var others sync.WaitGroup
	for i, piece := range pieces[1:] {
		others.Go(func() { found[i+1] = splitPiece(piece, check) })
	}
	found[0] = splitPiece(pieces[0], check)
	others.Wait()
	for _, s := range found {
		records = append(records, s.records...)
		damaged += s.damaged
		err = cmp.Or(err, s.err)
	}
	if err != nil {
		return nil, 0, err
	}
	return records, damaged, nil
}

// cut cuts text into so many pieces, or fewer, of whole lines.
func cut(text string, n int) (pieces []string) {
	for ; n > 1; n-- {
		at := len(text) / n
		end := strings.IndexByte(text[at:], '\n') + 1
		if at += end; end == 0 {
			break
		}
		pieces, text = append(pieces, text[:at]), text[at:]
	}
	return append(pieces, text)
}

// A split is what was found in a piece.
type split struct {
	records []Record
	damaged int
	err     error
}

func splitPiece(text string, check func(Record) error) (s split) {
	if text == "" {
		return s
	}
	start := text[:min(len(text), readBuffer)] // as long as others lines are
	s.records = make([]Record, 0, (strings.Count(start, "\n")+1)*(len(text)/readBuffer+1))
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" {
			continue
		}
		r, err := parse(line)
		if err != nil {
			s.damaged++
			continue
		}
		if check != nil && s.err == nil {
			s.err = check(r)
		}
		s.records = append(s.records, r)
	}
	return s
}

// checkHeader returns nil if text begins with our header, else ErrVersion or
// ErrFormat. A header is complete without its newline if nothing follows.
func checkHeader(text string) error {
	line, _, _ := strings.Cut(text, "\n")
	if line+"\n" == header {
		return nil
	}
	version, ok := strings.CutPrefix(line, "letsencrypt ")
	if !ok || version == "" || strings.Trim(version, "0123456789") != "" {
		return ErrFormat
	}
	return fmt.Errorf("%w: %s", ErrVersion, version)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// bytesOf returns the bytes of s without copying them: crc32 only reads its
// argument, but lets it escape, and a copy would cost more than the checksum.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// skipFields returns what follows the fields: the JSON value. A field is
// followed by a space, so that a number alone is a value.
func skipFields(s string) string {
	for n := fieldLen(s); n > 0; n = fieldLen(s) {
		s = s[n+1:]
	}
	return s
}

// fieldLen returns the length of the field that s begins with, 0 if it begins
// with none.
func fieldLen(s string) int {
	n := 0
	for n < len(s) && (s[n] == '-' || '0' <= s[n] && s[n] <= '9') {
		n++
	}
	if n == len(s) || s[n] != ' ' {
		return 0
	}
	return n
}

func validKind(s string) bool {
	for i := range len(s) {
		if s[i] < 'a' || s[i] > 'z' {
			return false
		}
	}
	return s != ""
}

func validName(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}

// parseHex parses a checksum as Format writes it, lower-case, so that there is
// one way only to write a record.
func parseHex(s string) (n uint32, ok bool) {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			n = n<<4 | uint32(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | uint32(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, len(s) == 8
}
