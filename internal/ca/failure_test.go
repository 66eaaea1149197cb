package ca

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// problem is what x/crypto makes of a reply with a problem document; typ is
// the part of its type after urn:ietf:params:acme:error:.
func problem(status int, typ, retryAfter, detail string) error {
	e := &acme.Error{StatusCode: status, Detail: detail, Header: make(http.Header)}
	if typ != "" {
		e.ProblemType = "urn:ietf:params:acme:error:" + typ
	}
	if retryAfter != "" {
		e.Header.Set("Retry-After", retryAfter)
	}
	return e
}

func TestFail(t *testing.T) {
	const page = "https://portal.letsencrypt.org/sfe/v1/unpause?jwt=x.y"
	tests := []struct {
		status           int
		typ, retry, text string
		class            Class
		wide, resumable  bool
	}{
		{429, "rateLimited", "3600", "too many certificates: see https://letsencrypt.org/docs/", Limited, false, true},
		{429, "rateLimited", "", "too many", Limited, false, true},
		{403, "rateLimited", "60", "", Limited, false, true},
		{429, "rateLimited", "", "visit " + page + ".", Paused, false, true},
		{429, "", "60", "<html>", Fault, true, true},
		{429, "malformed", "", "", Fault, true, true},
		{500, "serverInternal", "", "", Fault, true, true},
		{503, "", "30", "", Fault, true, true},
		{502, "", "", "<html>", Fault, true, true},
		{500, "unauthorized", "", "", Fault, true, true},
		{400, "badNonce", "", "", Fault, true, true},
		{403, "", "", "<html>", Fault, true, true},
		{404, "", "", "", Fault, true, true},
		{400, "serverInternal", "", "", Fault, true, true},
		{400, "malformed", "", "", Policy, false, false},
		{404, "malformed", "", "", Policy, false, false},
		{403, "unauthorized", "", "", Policy, false, false},
		{400, "rejectedIdentifier", "", "", Policy, false, false},
		{403, "userActionRequired", "", "", Terms, true, true},
		{403, "externalAccountRequired", "", "", Policy, false, false},
		{400, "invalidProfile", "", "", Policy, false, false},
		{400, "badCSR", "", "", Policy, false, false},
		{409, "alreadyReplaced", "", "", Policy, false, false},
		{400, "accountDoesNotExist", "", "", NoAccount, false, false},
		{400, "AccountDoesNotExist", "", "", NoAccount, false, false},
		{403, "caa", "", "", Validation, false, false},
		{400, "connection", "", "", Validation, false, false},
		{400, "dns", "", "", Validation, false, false},
		{403, "incorrectResponse", "", "", Validation, false, false},
		{400, "tls", "", "", Validation, false, false},
	}
	for _, test := range tests {
		name := fmt.Sprintf("%d %q, Retry-After %q, %q", test.status, test.typ, test.retry, test.text)
		err := problem(test.status, test.typ, test.retry, test.text)
		f := fail("making the order", fmt.Errorf("wrapped: %w", err)).(*Failure)
		if f.Class != test.class || f.CAWide() != test.wide || f.Resumable() != test.resumable {
			t.Errorf("%s: class %v, of the whole CA %v, resumable %v; want %v, %v, %v",
				name, f.Class, f.CAWide(), f.Resumable(), test.class, test.wide, test.resumable)
		}
		if want, _ := time.ParseDuration("0" + test.retry + "s"); f.Retry != want {
			t.Errorf("%s: Retry = %v, want %v", name, f.Retry, want)
		}
		if want := map[bool]string{true: page}[test.class == Paused]; f.Action != want {
			t.Errorf("%s: Action = %q, want %q", name, f.Action, want)
		}
		if !errors.Is(f, err) || !strings.HasPrefix(f.Error(), "making the order: ") {
			t.Errorf("%s: %v, want the step and the CA's error", name, f)
		}

		// On the directory, a nonce or the account a limit is everybody's.
		account := failAccount("making the account", err).(*Failure)
		want := test.class
		switch want {
		case Limited, Paused:
			want = Fault
		case Policy, Terms:
			want = Refused
		}
		if account.Class != want {
			t.Errorf("%s, of the account: class %v, want %v", name, account.Class, want)
		}
	}
}

func TestFailOtherErrors(t *testing.T) {
	f := fail("reading", io.ErrUnexpectedEOF).(*Failure)
	if f.Class != Network || !f.CAWide() || !f.Resumable() {
		t.Errorf("EOF: %v, of the whole CA %v, resumable %v, want network, true, true", f.Class, f.CAWide(), f.Resumable())
	}
	inner := &Failure{Class: Policy, Step: "first", Err: io.EOF}
	if got := fail("second", fmt.Errorf("wrapped: %w", inner)); got != error(inner) {
		t.Errorf("a Failure classed again is %v, want it as it was", got)
	}
	bad := &Failure{Class: Fault, Step: "checking", Err: &badCertificate{io.EOF}}
	if bad.Resumable() || !errors.Is(bad, io.EOF) {
		t.Errorf("a bad certificate: resumable %v, is its cause %v; want false, true", bad.Resumable(), errors.Is(bad, io.EOF))
	}
}

// The text of a pause, as Let's Encrypt words it.
func TestActionURL(t *testing.T) {
	tests := []struct{ text, want string }{
		{"Please visit: https://portal.test/unpause?jwt=a.b-c_d", "https://portal.test/unpause?jwt=a.b-c_d"},
		{"(see https://portal.test/x).", "https://portal.test/x"},
		{`at "https://portal.test/x", now`, "https://portal.test/x"},
		{"http://portal.test/x", ""},
		{"<a href='https://portal.test/x'>", "https://portal.test/x"},
		{"nowhere", ""},
	}
	for _, test := range tests {
		f := fail("making the order", problem(429, "rateLimited", "", test.text)).(*Failure)
		if f.Action != test.want {
			t.Errorf("Action of %q = %q, want %q", test.text, f.Action, test.want)
		}
	}
}

func TestParseProblem(t *testing.T) {
	for _, none := range []string{"", "null"} {
		if p := parseProblem([]byte(none)); p != nil {
			t.Errorf("parseProblem(%q) = %v, want nil", none, p)
		}
	}
	p := parseProblem([]byte(`{"type":"urn:ietf:params:acme:error:compound","detail":"two things","status":403,"instance":"https://ca.test/x",
		"subproblems":[{"type":"urn:ietf:params:acme:error:caa","detail":"no","identifier":{"type":"dns","value":"a.example.com"}}]}`))
	if p.StatusCode != 403 || p.Detail != "two things" || p.Instance != "https://ca.test/x" || len(p.Subproblems) != 1 || p.Subproblems[0].Identifier.Value != "a.example.com" {
		t.Errorf("parseProblem = %+v, want all of it", p)
	}
	if p := parseProblem([]byte(`"just words"`)); p == nil || !strings.Contains(p.Detail, "just words") {
		t.Errorf(`parseProblem("just words") = %v, want the words`, p)
	}
}

func TestClassString(t *testing.T) {
	seen := make(map[string]bool)
	for c := Ours; c <= Unset; c++ {
		if seen[c.String()] || c.String() == "" {
			t.Errorf("Class %d is %q, which is not its own", c, c)
		}
		seen[c.String()] = true
	}
}
