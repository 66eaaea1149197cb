package shared

import (
	"bytes"
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.com/letsencrypt/internal/journal"
)

const directory = "https://acme-v02.api.letsencrypt.org/directory"

// names are those of hosts, accounts and leaves, and what is hard on a storage.
// Those that are plain stay as they are.
var names = []struct {
	name  string
	plain bool
}{
	{"example.com", true},
	{"www.example.com", true},
	{"example.com.evil.example", true},
	{"xn--bcher-kva.example", true},
	{"192.0.2.1", true},
	{"a", true},
	{"-", true},
	{"a..b", true},
	{"con.example", true},
	{strings.Repeat("a", 200), true},
	{strings.Repeat("a.", 99) + "bc", true},

	{strings.Repeat("a", 201), false},
	{strings.Repeat("a.", 100) + "b", false},
	{"", false},
	{".", false},
	{"..", false},
	{".example.com", false},
	{"example.com.", false},
	{"*.example.com", false},
	{"2001:db8::1", false},
	{directory, false},
	{directory + "/", false},
	{"https://127.0.0.1:14000/dir?a=b#c", false},
	{"../../etc/passwd", false},
	{"a/b", false},
	{"a\\b", false},
	{"Example.com", false},
	{"EXAMPLE.COM", false},
	{"_dmarc.example.com", false},
	{"_4oymiquy7qobjgx36tejs35zeqt24qpemsnzgtfeswmrw6csxbkq", false},
	{"b\u00fccher.example", false},
	{"a b", false},
	{"a\x00b", false},
	{"a\nb", false},
	{"\xff", false},
}

var hashed = regexp.MustCompile(`^_[a-z2-7]{52}$`)

func TestKey(t *testing.T) {
	for _, tt := range names {
		key, ok := strings.CutPrefix(Key("cert", tt.name), "letsencrypt/cert/")
		if !ok || tt.plain && key != tt.name || !tt.plain && !hashed.MatchString(key) {
			t.Errorf("Key(cert, %q) = %q, want the name as it is: %v", tt.name, Key("cert", tt.name), tt.plain)
		}
		lock, ok := strings.CutPrefix(Lock("host", tt.name), "letsencrypt-host-")
		if !ok || lock != key {
			t.Errorf("Lock(host, %q) = %q, want the name to be %q there", tt.name, Lock("host", tt.name), key)
		}
	}
}

// A name that a fleet has used is one that it must find again.
func TestHashStays(t *testing.T) {
	const want = "letsencrypt/account/_lz3ngfix5tlgidstzelo2n4i5oesj6hbyax7ckcdzybr25e36q7a"
	if got := Key("account", directory); got != want {
		t.Errorf("Key(account, %q) = %q, want %q", directory, got, want)
	}
}

// Every storage can take the names, and none that it makes of them gets too long.
func TestNamesSuitStorages(t *testing.T) {
	for _, tt := range names {
		checkNames(t, tt.name)
	}
}

func checkNames(t *testing.T, name string) {
	t.Helper()
	key, lock := Key("register", name), Lock("register", name)
	base := key[strings.LastIndexByte(key, '/')+1:]
	if !fs.ValidPath(key) || strings.Count(key, "/") != 2 || len(base) > maxName || strings.Trim(base, allowed) != "" {
		t.Errorf("Key(register, %q) = %q, want a path of three elements, the last at most %d bytes of %s", name, key, maxName, allowed)
	}
	if !fs.ValidPath(lock) || len(lock) > maxName+40 || strings.Trim(lock, allowed) != "" {
		t.Errorf("Lock(register, %q) = %q, want a file's name with room for a suffix, of %s", name, lock, allowed)
	}
}

const allowed = "abcdefghijklmnopqrstuvwxyz0123456789.-_"

// A storage may keep keys as files: none is another's, or the folder that
// another is in.
func TestNamesApart(t *testing.T) {
	keys, locks := make(map[string]bool), make(map[string]bool)
	n := 0
	for _, kind := range []string{"account", "c", "cert", "certs", "host"} {
		for _, tt := range names {
			keys[Key(kind, tt.name)] = true
			locks[Lock(kind, tt.name)] = true
			n++
		}
	}
	if len(keys) != n || len(locks) != n {
		t.Errorf("%d kinds and names have %d keys and %d locks", n, len(keys), len(locks))
	}
	for key := range keys {
		for i := range len(key) {
			if key[i] == '/' && keys[key[:i]] {
				t.Errorf("the key %q is a folder of the key %q", key[:i], key)
			}
		}
	}
}

func FuzzKey(f *testing.F) {
	f.Add("example.com", "example.com.")
	f.Add("", "*.example.com")
	f.Fuzz(func(t *testing.T, a, b string) {
		checkNames(t, a)
		if got := Key("cert", b); a != b && got == Key("cert", a) {
			t.Errorf("Key(cert, %q) = Key(cert, %q) = %q", a, b, got)
		}
	})
}

var (
	chain = journal.Format("chain", "abc", nil, []byte(`["AAAA"]`))
	cert  = journal.Format("cert", "example.com", []int64{1, 2}, []byte(`{"chain":"abc"}`))
	newer = journal.Format("cert", "example.com", []int64{3, 4}, []byte(`{"chain":"abc"}`))
	other = journal.Format("cert", "www.example.com", []int64{1, 2}, []byte(`{}`))
	order = journal.Format("order", "example.com", nil, []byte(`{}`))
)

// value returns what a program of any kind may have stored: the records as they
// are, in their order.
func value(records ...journal.Record) string {
	text := "letsencrypt 1\n"
	for _, r := range records {
		text += string(r) + "\n"
	}
	return text
}

// What was encoded is decoded, the record that was asked for last.
func TestRoundTrip(t *testing.T) {
	above := journal.Format("above", "example.com", nil, []byte("1"))
	tests := []struct{ in, want []journal.Record }{
		{[]journal.Record{cert}, []journal.Record{cert}},
		{[]journal.Record{chain, cert}, []journal.Record{chain, cert}},
		{[]journal.Record{cert, chain}, []journal.Record{chain, cert}},
		{[]journal.Record{cert, order, above, chain}, []journal.Record{above, chain, order, cert}},
	}
	for _, tt := range tests {
		got, err := Decode(Encode(tt.in...), "cert", "example.com")
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("Decode(Encode(%q)) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
}

// The format is one that earlier and later members of a fleet have to read.
func TestEncode(t *testing.T) {
	if got, want := string(Encode(chain, cert)), value(chain, cert); got != want {
		t.Errorf("Encode = %q, want %q", got, want)
	}
}

func TestDecode(t *testing.T) {
	deleted := journal.Delete("cert", "example.com")
	tests := []struct {
		what, value string
		want        []journal.Record // nil for ErrDamaged
	}{
		{"what is encoded", value(chain, cert), []journal.Record{chain, cert}},
		{"in another order", value(cert, chain), []journal.Record{chain, cert}},
		{"no newline at the end", strings.TrimSuffix(value(chain, cert), "\n"), []journal.Record{chain, cert}},
		{"a later record after an earlier", value(cert, newer), []journal.Record{newer}},
		{"one that was deleted and set again", value(cert, deleted, newer), []journal.Record{newer}},
		{"two of another kind", value(chain, cert, chain), []journal.Record{chain, cert}},
		{"a deleted one of another kind", value(chain, cert, journal.Delete("chain", "abc")), []journal.Record{cert}},
		{"another host's, too", value(cert, other), []journal.Record{cert}},

		{"nothing", "", nil},
		{"the header alone", value(), nil},
		{"what a torn write left", "letsen", nil},
		{"what a crash left", "\x00\x00\x00", nil},
		{"another kind", value(order), nil},
		{"another name", value(other), nil},
		{"a deleted one", value(deleted), nil},
		{"one that is deleted later", value(cert, deleted), nil},
		{"a damaged line", value(chain[1:], cert), nil},
		{"a line of something", value(cert) + "something\n", nil},
		{"a wrong checksum", strings.Replace(value(cert), "abc", "abd", 1), nil},
	}
	for _, tt := range tests {
		got, err := Decode([]byte(tt.value), "cert", "example.com")
		if tt.want == nil && (!errors.Is(err, ErrDamaged) || errors.Is(err, journal.ErrVersion) || got != nil) {
			t.Errorf("%s: Decode = %q, %v, want ErrDamaged", tt.what, got, err)
		}
		if tt.want != nil && (err != nil || !slices.Equal(got, tt.want)) {
			t.Errorf("%s: Decode = %q, %v, want %q", tt.what, got, err, tt.want)
		}
	}
}

// What is sealed, or another program's, must not be taken for nothing, and then
// be replaced.
func TestDecodeForeign(t *testing.T) {
	for _, v := range []string{"\x01\x02sealed", "\n", `{"cert":"example.com"}`, "certificates 1\n" + string(cert) + "\n", string(cert) + "\n"} {
		if got, err := Decode([]byte(v), "cert", "example.com"); !errors.Is(err, ErrForeign) || errors.Is(err, ErrDamaged) || got != nil {
			t.Errorf("Decode(%q) = %q, %v, want ErrForeign", v, got, err)
		}
	}
}

// What a later version wrote is not damaged: it must not be taken for nothing,
// and overwritten.
func TestDecodeLaterVersion(t *testing.T) {
	for _, header := range []string{"letsencrypt 2\n", "letsencrypt 10", "letsencrypt 2\nwhatever that has\n"} {
		got, err := Decode([]byte(header), "cert", "example.com")
		if !errors.Is(err, journal.ErrVersion) || errors.Is(err, ErrDamaged) || got != nil {
			t.Errorf("Decode(%q) = %q, %v, want journal.ErrVersion", header, got, err)
		}
	}
}

// A value that was cut off or has a bit wrong, wherever that is, is none.
func TestDecodeDamaged(t *testing.T) {
	whole := Encode(chain, cert)
	for i := range len(whole) - 1 { // the last newline is of no account
		if got, err := Decode(whole[:i], "cert", "example.com"); err == nil {
			t.Errorf("Decode of the first %d of %d bytes = %q, want an error", i, len(whole), got)
		}
		for bit := range 8 {
			wrong := bytes.Clone(whole)
			wrong[i] ^= 1 << bit
			if got, err := Decode(wrong, "cert", "example.com"); err == nil {
				t.Errorf("Decode(%q) = %q, want an error", wrong, got)
			}
		}
	}
}

// The errors go to a log, and a value has private keys.
func TestDecodeTellsNoSecret(t *testing.T) {
	secret := journal.Format("account", directory, nil, []byte(`{"key":"secret"}`))
	for _, text := range []string{value(secret), value(secret[1:]), "letsencrypt 2\n" + string(secret), string(secret)} {
		if _, err := Decode([]byte(text), "cert", "example.com"); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("Decode(%q) = %v, want an error without the value", text, err)
		}
	}
}

func TestSplit(t *testing.T) {
	if kind, name := Split(cert.Key()); kind != "cert" || name != "example.com" {
		t.Errorf("Split(%q) = %q, %q, want cert, example.com", cert.Key(), kind, name)
	}
}

// FuzzDecode: what decodes is encoded again, and then the same.
func FuzzDecode(f *testing.F) {
	f.Add(Encode(chain, cert), "cert", "example.com")
	f.Add([]byte(value(cert, chain, newer, other, chain)), "cert", "example.com")
	f.Add([]byte(value(cert, journal.Delete("cert", "example.com"))), "cert", "example.com")
	f.Add([]byte("letsencrypt 2\n"), "cert", "example.com")
	f.Add([]byte{}, "", "")
	f.Fuzz(func(t *testing.T, value []byte, kind, name string) {
		rs, err := Decode(value, kind, name)
		if err != nil {
			return
		}
		if own := rs[len(rs)-1]; own.Kind() != kind || own.Name() != name {
			t.Errorf("Decode(%q, %q, %q) has at its end %q", value, kind, name, own)
		}
		again, err := Decode(Encode(rs...), kind, name)
		if err != nil || !slices.Equal(again, rs) {
			t.Errorf("Decode(Encode(%q)) = %q, %v", rs, again, err)
		}
	})
}
