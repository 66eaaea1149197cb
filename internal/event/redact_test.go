package event

import (
	"errors"
	"testing"
)

func TestRedact(t *testing.T) {
	const thumb = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
	for _, tt := range []struct{ in, want string }{
		{"connection refused", "connection refused"},
		{"fetching http://a.example.com:80/.well-known/acme-challenge/DGyRejmCefe7v4NfDGDKfA: 404", "fetching http://a.example.com:80/.well-known/acme-challenge/...: 404"},
		{`did not match "DGyRejmCefe7v4NfDGDKfA.` + thumb + `" != "x"`, `did not match "..." != "x"`},
		{"visit https://portal.example/unpause?jwt=eyJhbGci.x.y now", "visit https://portal.example/unpause?... now"},
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
