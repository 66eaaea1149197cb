package event

import (
	"errors"
	"regexp"
	"strings"
	"testing"
)

const thumb = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"

func TestRedact(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"connection refused", "connection refused"},
		{"fetching http://a.example.com:80/.well-known/acme-challenge/DGyRejmCefe7v4NfDGDKfA: 404", "fetching http://a.example.com:80/.well-known/acme-challenge/...: 404"},
		{"acme-challenge/ and acme-challenge/abc", "acme-challenge/ and acme-challenge/..."},
		{`did not match "DGyRejmCefe7v4NfDGDKfA.` + thumb + `" != "x"`, `did not match "..." != "x"`},
		{"abcdefghijklmnop." + thumb, "..."},
		{"abcdefghijklmno." + thumb, "abcdefghijklmno." + thumb},
		{"abcdefghijklmnop." + thumb + "x", "abcdefghijklmnop." + thumb + "x"},
		{"abcdefghijklmnop." + thumb + "-x", "...-x"},
		{"visit https://portal.example/unpause?jwt=eyJhbGci.x.y now", "visit https://portal.example/unpause?... now"},
		{`"http://a?b" ftp://a?b http://a? http://a'?b`, `"http://a?..." ftp://a?b http://a? http://a'?b`},
		{"https://ca.example/dir: 429 urn:ietf:params:acme:error:rateLimited: too many", "https://ca.example/dir: 429 urn:ietf:params:acme:error:rateLimited: too many"},
	} {
		if got := Redact(errors.New(tt.in)); got != tt.want {
			t.Errorf("Redact(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
	if got := Redact(nil); got != "" {
		t.Errorf("Redact(nil) = %q", got)
	}
}

// What Redact is defined by. The package regexp is too large for every program
// that serves HTTPS.
var (
	keyAuths = regexp.MustCompile(`[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{43}\b`)
	tokens   = regexp.MustCompile(`(acme-challenge/)[A-Za-z0-9_-]+`)
	queries  = regexp.MustCompile(`(https?://[^\s"'?]*\?)[^\s"']+`)
)

func FuzzRedact(f *testing.F) {
	f.Add("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13")
	f.Add("visit https://portal.example/unpause?jwt=eyJhbGci.x.y now")
	f.Add("http://a?b\fc http://a\f?b http://a\v?b\vc\nd https://é?\xff\re")
	f.Add("/acme-challenge/DGyRejmCefe7v4NfDGDKfA." + thumb + "\v?\xff")
	f.Fuzz(func(t *testing.T, s string) {
		for _, s := range []string{s, inPieces(s)} {
			want := keyAuths.ReplaceAllString(s, "...")
			want = tokens.ReplaceAllString(want, "${1}...")
			want = queries.ReplaceAllString(want, "${1}...")
			if got := Redact(errors.New(s)); got != want {
				t.Errorf("Redact(%q) = %q, want %q", s, got, want)
			}
		}
	})
}

// inPieces makes of each character a piece of what Redact looks for.
func inPieces(s string) string {
	pieces := []string{
		"http", "https", "://", "?", "acme-challenge", "/", " ", "\n", "\f", "\v", `"`, "'", "é", "\xff",
		"_", "-", ".", "x", thumb[:15], thumb[:42],
	}
	var b strings.Builder
	for i := range len(s) {
		b.WriteString(pieces[int(s[i])%len(pieces)])
	}
	return b.String()
}
