package dir

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"example.com/letsencrypt/internal/shared"
)

func TestValueName(t *testing.T) {
	tests := []struct{ key, want string }{ // want "" if it is refused
		{"letsencrypt/cert/www.example.com", "values/letsencrypt/cert/www.example.com.value"},
		{"letsencrypt/account/_abc234", "values/letsencrypt/account/_abc234.value"},
		{"x", "values/x.value"},
		{"x/y", "values/x/y.value"},
		{"x.value/y", "values/x%2evalue/y.value"},
		{"A/B", "values/%41/%42.value"},
		{"%41", "values/%2541.value"},
		{"a b", "values/a%20b.value"},
		{"a\x00\n\\:*", "values/a%00%0a%5c%3a%2a.value"},
		{"\u00fc", "values/%c3%bc.value"},
		{"...", "values/....value"},
		{".../a", "values/%2e%2e%2e/a.value"},
		{"a.", "values/a..value"},
		{"con", "values/%63on.value"},
		{"con/nul.txt", "values/%63on/%6eul.txt.value"},
		{"com7.example", "values/%63om7.example.value"},
		{"console/com/comma", "values/console/com/comma.value"},
		{"conin$", "values/conin%24.value"},
		{strings.Repeat("a", 249), "values/" + strings.Repeat("a", 249) + ".value"},

		{"", ""}, {".", ""}, {"..", ""}, {"../x", ""}, {"a/..", ""}, {"/a", ""}, {"a/", ""}, {"a//b", ""}, {"a/./b", ""},
		{"\xff", ""},
		{strings.Repeat("a", 250), ""},
		{strings.Repeat("a", 256) + "/b", ""},
		{strings.Repeat(" ", 100), ""},
	}
	for _, tt := range tests {
		got, err := valueName(tt.key)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("valueName(%q) = %q, %v, want %q", tt.key, got, err, tt.want)
		}
		if key, ok := keyOf(got); err == nil && (key != tt.key || !ok) {
			t.Errorf("keyOf(%q) = %q, %v, want %q", got, key, ok, tt.key)
		}
	}
}

func TestKeyOf(t *testing.T) {
	for _, name := range []string{
		"values/README", "values/x.value~", "values/.x.value.swp", "values/.DS_Store", "values/.nfs0001",
		"values/X.value", "values/%4.value", "values/%zz.value", "values/%61.value", "values/%4A.value", "values/con.value",
		"values/%2e%2e/x.value", "values/a.b/x.value", "values/a.value/x", "values/a.value/x.value",
	} {
		if key, ok := keyOf(name); ok {
			t.Errorf("keyOf(%q) = %q, want none: it is not one of our names", name, key)
		}
	}
}

func TestLockName(t *testing.T) {
	tests := []struct{ name, want string }{
		{"www.example.com", "locks/www.example.com.lock"},
		{"", "locks/.lock"},
		{".", "locks/..lock"},
		{"../x", "locks/..%2fx.lock"},
		{"aux", "locks/%61ux.lock"},
		{strings.Repeat("a", 251), ""},
	}
	for _, tt := range tests {
		got, err := lockName(tt.name)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("lockName(%q) = %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

// TestManagerNames: what a Manager makes of any name is taken, and found in the
// folder as it is.
func TestManagerNames(t *testing.T) {
	for _, name := range []string{
		"example.com", "*.example.com", "2001:db8::1", "https://acme-v02.api.letsencrypt.org/directory", "-", "", "../x",
		strings.Repeat("a", 200), strings.Repeat("a", 201), strings.Repeat("*", 1000),
	} {
		key, lock := shared.Key("register", name), shared.Lock("register", name)
		if got, err := valueName(key); got != "values/"+key+".value" || err != nil {
			t.Errorf("valueName(%q) = %q, %v, want the key to be as it is", key, got, err)
		}
		if got, err := lockName(lock); got != "locks/"+lock+".lock" || err != nil {
			t.Errorf("lockName(%q) = %q, %v, want the name to be as it is", lock, got, err)
		}
	}
}

// FuzzValueName: two keys never share a name, also where case is ignored; no
// name is above another's or outside of the folder; a key comes back from its name.
func FuzzValueName(f *testing.F) {
	f.Add("a", "A")
	f.Add("x", "x/y")
	f.Add("x.value/y", "x.value")
	f.Add("../../x", "%2e")
	f.Add("con", "%63on")
	f.Fuzz(func(t *testing.T, a, b string) {
		nameA, err := valueName(a)
		if err != nil {
			return
		}
		if key, ok := keyOf(nameA); key != a || !ok {
			t.Errorf("keyOf(%q) = %q, %v, want %q", nameA, key, ok, a)
		}
		elems := strings.Split(nameA, "/")
		if elems[0] != "values" || strings.Trim(nameA, "abcdefghijklmnopqrstuvwxyz0123456789-_.%/") != "" ||
			slices.ContainsFunc(elems, func(elem string) bool {
				return elem == "" || elem == "." || elem == ".." || isDevice(elem) || elem[len(elem)-1] == '.'
			}) {
			t.Errorf("valueName(%q) = %q", a, nameA)
		}
		nameB, err := valueName(b)
		if err != nil || a == b {
			return
		}
		if nameA == nameB || strings.HasPrefix(nameA, nameB+"/") {
			t.Errorf("valueName(%q) = %q, and valueName(%q) = %q", a, nameA, b, nameB)
		}
	})
}

// FuzzKeyOf: a file that is listed is the one that its key is loaded from.
func FuzzKeyOf(f *testing.F) {
	f.Add("letsencrypt/cert/example.com.value")
	f.Add("%41/%2541.value")
	f.Fuzz(func(t *testing.T, name string) {
		name = "values/" + name
		key, ok := keyOf(name)
		if !ok {
			return
		}
		if got, err := valueName(key); got != name && !errors.Is(err, errTooLong) {
			t.Errorf("keyOf(%q) = %q, but valueName(%q) = %q, %v", name, key, key, got, err)
		}
	})
}
