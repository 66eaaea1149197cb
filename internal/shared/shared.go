// Package shared says how the members of a fleet name and write what they keep
// in one storage.
//
// A key is letsencrypt/<kind>/<name>, for a record of that kind and name, and no
// key is a folder of another. The value is in the format of package journal: a
// header line and the record, before a certificate the chain above it.
package shared

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"strings"

	"example.com/letsencrypt/internal/journal"
)

// The errors of Decode.
var (
	ErrDamaged = errors.New("the value is damaged")                                                  // it is not what was stored
	ErrForeign = errors.New("the value is none of ours: perhaps it is sealed, or another program's") // and must not be replaced
)

// Key returns the key of the record of a kind and name.
func Key(kind, name string) string { return "letsencrypt/" + kind + "/" + escape(name) }

// Lock returns the name of the lock for what a kind and name stand for. It has
// no slash: to some storages a lock is a file.
func Lock(kind, name string) string { return "letsencrypt-" + kind + "-" + escape(name) }

// maxName is how long a name may be that stays as it is. What a storage makes of
// it, with a suffix perhaps, is to fit into a file's name of 255 bytes.
const maxName = 200

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// escape returns the name if every storage can take it, or a hash that looks
// like none that it returns as it is.
func escape(name string) string {
	if plain(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "_" + encoding.EncodeToString(sum[:])
}

func plain(name string) bool {
	if name == "" || len(name) > maxName || name[0] == '.' || name[len(name)-1] == '.' {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-') {
			return false
		}
	}
	return true
}

// Encode returns the value for records, none of which deletes. The last is the
// one that the others belong to: what is cut off somewhere lacks that.
func Encode(rs ...journal.Record) []byte {
	var header journal.Log
	value := []byte(header.Text())
	for _, r := range rs {
		value = append(append(value, r...), '\n')
	}
	return value
}

// Decode returns the records of a value that was loaded for a kind and name: that
// one last, before it those of other kinds that belong to it. It returns
// [journal.ErrVersion] for what a later version of this package wrote, ErrDamaged for
// what is left of something of ours, and ErrForeign for anything else.
func Decode(value []byte, kind, name string) ([]journal.Record, error) {
	rs, damaged, err := journal.Split(string(value))
	switch {
	case errors.Is(err, journal.ErrVersion):
		return nil, err
	case err != nil && !isTorn(value):
		return nil, ErrForeign
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case damaged > 0:
		return nil, fmt.Errorf("%w: %d of its lines", ErrDamaged, damaged)
	}
	var l journal.Log
	l.Put(rs...)
	own, ok := l.Get(kind, name)
	if !ok {
		return nil, fmt.Errorf("%w: it has no record %q", ErrDamaged, kind+" "+name)
	}
	rs = slices.Sorted(l.All())
	rs = slices.DeleteFunc(rs, func(r journal.Record) bool { return r.Kind() == kind })
	return append(rs, own), nil
}

// isTorn reports whether a value may be the beginning of one of ours.
func isTorn(value []byte) bool {
	const ours = "letsencrypt "
	return strings.HasPrefix(string(value), ours) || strings.HasPrefix(ours, string(value)) || strings.Trim(string(value), "\x00") == ""
}

// Split returns the kind and the name of a record by its key.
func Split(key string) (kind, name string) {
	kind, name, _ = strings.Cut(key, " ")
	return kind, name
}
