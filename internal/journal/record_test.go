package journal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// The format is a promise to files on disk: this line must never change.
const golden = `host example.com 34934ddc 1700000000 -5 {"key":"k","chain":["a b"]}`

func TestFormatGolden(t *testing.T) {
	got := Format("host", "example.com", []int64{1700000000, -5}, []byte("{\"key\": \"k\",\n \"chain\": [\"a b\"]}"))
	if got != golden {
		t.Errorf("Format = %s, want %s", got, golden)
	}
	covered := []byte(`host example.com 1700000000 -5 {"key":"k","chain":["a b"]}`)
	crc := crc32.Checksum(covered, crc32.MakeTable(crc32.Castagnoli))
	if want := fmt.Sprintf(" %08x ", crc); !strings.Contains(golden, want) {
		t.Errorf("golden line's checksum is not %q, that of all but itself", want)
	}
}

func TestRecordParts(t *testing.T) {
	tests := []struct {
		fields []int64
		json   string
	}{
		{nil, `{"a":[1,2]}`},
		{nil, `5`},
		{nil, `-5`},
		{nil, `12e3`},
		{[]int64{7}, `1.5`},
		{[]int64{0}, `5`},
		{[]int64{1, -2, 1<<63 - 1, -1 << 63}, `"1 2 3"`},
		{[]int64{1}, `null`},
		{nil, `null`},
	}
	for _, tt := range tests {
		r := Format("order", "https://ca.example/order/1?a=b", tt.fields, []byte(tt.json))
		var fields []int64
		for i := 0; ; i++ {
			f, ok := r.Field(i)
			if !ok {
				break
			}
			fields = append(fields, f)
		}
		if r.Kind() != "order" || r.Name() != "https://ca.example/order/1?a=b" || r.Key() != "order https://ca.example/order/1?a=b" {
			t.Errorf("%s: Kind, Name, Key = %q, %q, %q", r, r.Kind(), r.Name(), r.Key())
		}
		if !slices.Equal(fields, tt.fields) || r.JSON() != tt.json {
			t.Errorf("%s: fields, JSON = %v, %s, want %v, %s", r, fields, r.JSON(), tt.fields, tt.json)
		}
		if want := tt.fields == nil && tt.json == "null"; r.Deleted() != want {
			t.Errorf("%s: Deleted = %v, want %v", r, r.Deleted(), want)
		}
		if p, err := Parse(string(r)); p != r || err != nil {
			t.Errorf("Parse(%s) = %s, %v", r, p, err)
		}
	}
}

func TestFieldOfAnotherVersion(t *testing.T) {
	r := sealed("host x ", "2026-01-02 7 {}")
	if _, ok := r.Field(0); ok {
		t.Errorf("%s: Field(0) is a number, want none", r)
	}
	if n, ok := r.Field(1); n != 7 || !ok {
		t.Errorf("%s: Field(1) = %d, %v, want 7", r, n, ok)
	}
}

// sealed returns head and rest with the right checksum between them, whatever
// else may be wrong.
func sealed(head, rest string) Record {
	return Record(fmt.Sprintf("%s%08x %s", head, crc32.Checksum([]byte(head+rest), castagnoli), rest))
}

func TestParseRefuses(t *testing.T) {
	good := string(Format("host", "a", nil, []byte(`"value"`)))
	tests := []string{
		"",
		" ",
		"host",
		"host a",
		"host a 00000000",
		"host a 00000000 ",
		good + " ",
		" " + good,
		good[:len(good)-1],
		strings.ToUpper(good),
		strings.Replace(good, "host a ", "host a  ", 1),
		string(sealed("Host a ", "{}")),
		string(sealed("host1 a ", "{}")),
		string(sealed(" a ", "{}")),
		string(sealed("host  ", "{}")),
		string(sealed("host ä ", "{}")),
		string(sealed("host a\tb ", "{}")),
		string(sealed("host a\x7f ", "{}")),
		string(sealed("host a ", "")),
		string(sealed("host a ", "1 ")),
		string(sealed("host a ", "{\n}")),
		"host a " + strings.ToUpper(string(sealed("host a ", "{}"))[7:]),
		"host a 0" + string(sealed("host a ", "{}"))[7:],
	}
	for _, line := range tests {
		if r, err := Parse(line); err == nil {
			t.Errorf("Parse(%q) = %q, want an error", line, r)
		}
	}
}

func TestParseNoticesEveryFlippedBit(t *testing.T) {
	for i := range len(golden) {
		for bit := range 8 {
			line := []byte(golden)
			line[i] ^= 1 << bit
			if r, err := Parse(string(line)); err == nil {
				t.Errorf("Parse(%q) = %q, want an error", line, r)
			}
		}
	}
}

func TestFormatPanics(t *testing.T) {
	tests := []struct{ kind, name, json string }{
		{"", "a", "{}"},
		{"Host", "a", "{}"},
		{"host", "", "{}"},
		{"host", "a b", "{}"},
		{"host", "a\n", "{}"},
		{"host", "ä", "{}"},
		{"host", "a", ""},
		{"host", "a", "{} secret"},
	}
	for _, tt := range tests {
		func() {
			defer func() {
				msg, _ := recover().(string)
				if !strings.HasPrefix(msg, "letsencrypt: internal error:") || strings.Contains(msg, "secret") {
					t.Errorf("Format(%q, %q, %q) panics with %q, want an internal error without the value", tt.kind, tt.name, tt.json, msg)
				}
			}()
			Format(tt.kind, tt.name, nil, []byte(tt.json))
		}()
	}
}

func TestSplit(t *testing.T) {
	a, b := Format("host", "a", nil, []byte("1")), Format("later", "b", []int64{1}, []byte("{}"))
	tests := []struct {
		text    string
		records []Record
		damaged int
	}{
		{"letsencrypt 1", nil, 0},
		{"letsencrypt 1\n", nil, 0},
		{"letsencrypt 1\n\n\n", nil, 0},
		{"letsencrypt 1\n" + string(a), []Record{a}, 0},
		{"letsencrypt 1\n" + string(a+"\n"+b+"\n"+a+"\n"), []Record{a, b, a}, 0},
		{"letsencrypt 1\n" + string(a+"\nx\n"+b+"x\n"), []Record{a}, 2},
	}
	for _, tt := range tests {
		records, damaged, err := Split(tt.text)
		if !slices.Equal(records, tt.records) || damaged != tt.damaged || err != nil {
			t.Errorf("Split(%q) = %q, %d, %v, want %q, %d", tt.text, records, damaged, err, tt.records, tt.damaged)
		}
	}
}

func TestSplitRefuses(t *testing.T) {
	tests := []struct {
		text string
		err  error
	}{
		{"", ErrFormat},
		{"{}", ErrFormat},
		{"letsencrypt", ErrFormat},
		{"letsencrypt \n", ErrFormat},
		{"letsencrypt 1 \n", ErrFormat},
		{"letsencrypt 1\r\n", ErrFormat},
		{"letsencrypt 2", ErrVersion},
		{"letsencrypt 2\nanything", ErrVersion},
		{"letsencrypt 10\n", ErrVersion},
	}
	for _, tt := range tests {
		if rs, n, err := Split(tt.text); rs != nil || n != 0 || !errors.Is(err, tt.err) {
			t.Errorf("Split(%q) = %q, %d, %v, want %v", tt.text, rs, n, err, tt.err)
		}
	}
	if _, _, err := Split("letsencrypt 17\n"); err == nil || !strings.Contains(err.Error(), "17") {
		t.Errorf("Split of version 17: %v, want an error that says which version", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(golden)
	f.Add(string(Delete("host", "a")))
	f.Add(string(sealed("host a ", "1 2 3")))
	f.Add(string(sealed("host a ", "--- 2-3 {")))
	f.Fuzz(func(t *testing.T, line string) {
		// Most lines fail at the checksum: try the right one too.
		head, rest, ok := cutChecksum(line)
		if ok {
			checkParse(t, string(sealed(head, rest)))
		}
		checkParse(t, line)
	})
}

func cutChecksum(line string) (head, rest string, ok bool) {
	parts := strings.SplitN(line, " ", 4)
	if len(parts) < 4 {
		return "", "", false
	}
	return parts[0] + " " + parts[1] + " ", parts[3], true
}

func checkParse(t *testing.T, line string) {
	r, err := Parse(line)
	if err != nil {
		if r != "" {
			t.Errorf("Parse(%q) = %q, %v, want no record", line, r, err)
		}
		return
	}
	head, rest, _ := cutChecksum(line)
	if string(r) != line || r.Kind()+" "+r.Name()+" " != head || r.Key()+" " != head || !strings.HasSuffix(rest, r.JSON()) {
		t.Errorf("Parse(%q): Kind, Name, Key, JSON = %q, %q, %q, %q", line, r.Kind(), r.Name(), r.Key(), r.JSON())
	}
	r.Field(0)
	if r.Deleted() {
		if want := Delete(r.Kind(), r.Name()); r != want {
			t.Errorf("Parse(%q): deletes, and is not %q", line, want)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add("letsencrypt 1\n" + golden + "\n")
	f.Add("letsencrypt 1\n\nx\n" + golden)
	f.Add("letsencrypt 2\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		records, damaged, err := Split(text)
		if err != nil {
			if records != nil || damaged != 0 {
				t.Errorf("Split(%q) = %q, %d, %v, want nothing but the error", text, records, damaged, err)
			}
			return
		}
		var l Log
		var lines int
		for line := range strings.Lines(text) {
			if line != "\n" {
				lines++
			}
		}
		if lines != 1+len(records)+damaged {
			t.Errorf("Split(%q): %d records, %d damaged, want %d together", text, len(records), damaged, lines-1)
		}
		l.Put(records...)
		again, damaged, err := Split(l.Text())
		if damaged != 0 || err != nil {
			t.Fatalf("Split(Text()) = %q, %d, %v", again, damaged, err)
		}
		var l2 Log
		l2.Put(again...)
		if l.Text() != l2.Text() {
			t.Errorf("Split(%q): Text changes from %q to %q", text, l.Text(), l2.Text())
		}
	})
}

// TestSplitInPieces splits blobs whose last line, which has no newline, takes up
// most of them, or whose first does.
func TestSplitInPieces(t *testing.T) {
	long := Format("hosts", "-", nil, []byte(`["`+strings.Repeat("a", 9<<20)+`"]`))
	short := []Record{Format("limit", "a", nil, []byte("1")), Format("limit", "b", nil, []byte("2"))}
	for _, rs := range [][]Record{{long}, append([]Record{long}, short...), append(slices.Clone(short), long)} {
		for _, procs := range []int{1, 2, 3, 8} {
			before := runtime.GOMAXPROCS(procs)
			text := header
			for _, r := range rs {
				text += string(r) + "\n"
			}
			got, damaged, err := Split(strings.TrimSpace(text))
			runtime.GOMAXPROCS(before)
			if !slices.Equal(got, rs) || damaged != 0 || err != nil {
				t.Errorf("Split = %d records, %d damaged, %v by %d processors, want %d", len(got), damaged, err, procs, len(rs))
			}
		}
	}
}
