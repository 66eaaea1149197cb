package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strings"
)

const (
	valueSuffix = ".value"
	lockSuffix  = ".lock"
	maxName     = 255 // bytes in a name, on most file systems
)

var errTooLong = errors.New("a part of it is too long for a file name")

// valueName returns the name of the file for the value at key. No other key has
// it, also where case is ignored, and it is never above another's: folders have
// no dot, files have one.
func valueName(key string) (string, error) {
	if !isPath(key) {
		return "", errNotPath
	}
	dir, last := path.Split(key)
	folder, err := folderName(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return "", err
	}
	return join(folder, escape(last, true)+valueSuffix)
}

// folderName returns the name of the folder for the keys below prefix.
func folderName(prefix string) (string, error) {
	folder := valuesDir
	if prefix == "" {
		return folder, nil
	}
	if !isPath(prefix) {
		return "", errNotPath
	}
	for elem := range strings.SplitSeq(prefix, "/") {
		var err error
		if folder, err = join(folder, escape(elem, false)); err != nil {
			return "", err
		}
	}
	return folder, nil
}

// lockName returns the name of the folder that is there while the lock is held.
func lockName(name string) (string, error) {
	return join(locksDir, escape(name, true)+lockSuffix)
}

func join(folder, name string) (string, error) {
	if len(name) > maxName {
		return "", errTooLong
	}
	return path.Join(folder, name), nil
}

var errNotPath = errors.New("it is not elements between slashes, as fs.ValidPath has it")

func isPath(key string) bool { return fs.ValidPath(key) && key != "." }

// escape returns elem as a name that no file system takes for anything else:
// small letters, digits, - and _ stay, dots only if they may, and all other
// bytes become % and two hex digits. So does the first of a Windows device.
func escape(elem string, dots bool) string {
	var b strings.Builder
	for i := range len(elem) {
		switch c := elem[i]; {
		case i == 0 && isDevice(elem):
			fmt.Fprintf(&b, "%%%02x", c)
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.' && dots:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}

// isDevice reports whether Windows takes a file of that name, in lower case,
// for a device, whatever follows a dot in it.
func isDevice(name string) bool {
	base, _, _ := strings.Cut(name, ".")
	switch base {
	case "con", "prn", "aux", "nul":
		return true
	}
	return len(base) == 4 && (base[:3] == "com" || base[:3] == "lpt") && '0' <= base[3] && base[3] <= '9'
}

// unescape returns what escape was given. It reports whether there is such a thing.
func unescape(name string, dots bool) (string, bool) {
	elem, err := url.PathUnescape(name)
	return elem, err == nil && escape(elem, dots) == name
}

// keyOf returns the key whose value is in the file of that name. It reports
// whether there is one: others may have put files into our folder.
func keyOf(name string) (string, bool) {
	elems := strings.Split(name, "/")[1:]
	last := len(elems) - 1
	for i, elem := range elems {
		elem, isValue := strings.CutSuffix(elem, valueSuffix)
		key, ok := unescape(elem, i == last)
		if !ok || isValue != (i == last) {
			return "", false
		}
		elems[i] = key
	}
	key := strings.Join(elems, "/")
	return key, isPath(key)
}

// keysBelow returns the keys whose files are below the folder for prefix. If
// short, they are cut before the slash that follows on the prefix's, and then
// one may be there more than once.
func keysBelow(ctx context.Context, root *os.Root, prefix, folder string, short bool) ([]string, error) {
	var keys []string
	err := fs.WalkDir(root.FS(), folder, func(name string, d fs.DirEntry, err error) error {
		switch {
		case name == folder && errors.Is(err, fs.ErrNotExist) && isStore(root):
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case d.IsDir():
			return nil
		}
		key, ok := keyOf(name)
		if !ok {
			return nil
		}
		level := strings.Count(prefix, "/") + 1
		if prefix == "" {
			level = 0
		}
		if elems := strings.Split(key, "/"); short && len(elems) > level+1 {
			keys = append(keys, strings.Join(elems[:level+1], "/"))
			return fs.SkipDir // it is not the better for another below it
		}
		keys = append(keys, key)
		return nil
	})
	return keys, err
}
