package challenge

import (
	"strings"
	"testing"
	"time"
)

const (
	issuer    = "authority.example"
	accountID = "https://ca.example/acct/123"
	good      = issuer + "; accounturi=" + accountID
)

func TestPersistentName(t *testing.T) {
	for host, want := range map[string]string{
		"example.com":     "_validation-persist.example.com",
		"*.example.com":   "_validation-persist.example.com",
		"a.b.example.com": "_validation-persist.a.b.example.com",
	} {
		if got := PersistentName(host); got != want {
			t.Errorf("PersistentName(%s) = %s, want %s", host, got, want)
		}
	}
}

func TestPersistentValue(t *testing.T) {
	for _, tt := range []struct {
		p    Persistent
		want string
	}{
		{Persistent{Issuers: []string{issuer, "other.example"}, Account: accountID}, good},
		{Persistent{Issuers: []string{issuer}, Account: accountID, Wildcard: true}, good + "; policy=wildcard"},
		{Persistent{Account: accountID}, "<the CA's issuer domain name>; accounturi=" + accountID},
	} {
		got := tt.p.Value()
		if got != tt.want {
			t.Errorf("%+v.Value() = %q, want %q", tt.p, got, tt.want)
		}
		if !tt.p.In([]string{got}, time.Now()) {
			t.Errorf("%+v: its own Value %q is not In", tt.p, got)
		}
	}
}

// TestPersistentIn has what Pebble, the CA that shows how the draft is meant,
// tests its own reading with, and what that reading says besides.
func TestPersistentIn(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 500, time.UTC) // 1793534400
	const uri = ";accounturi=" + accountID
	for _, tt := range []struct {
		value       string
		host, wilds bool // whether it lets a host, a wildcard have certificates
	}{
		{good, true, false},
		{issuer + uri, true, false},
		{"second.example" + uri, true, false}, // the CA goes by it too
		{"   " + issuer + "   ;   accounturi   =   " + accountID + "   ;   policy   =   wildcard   ;   persistUntil   =   4102444800   ", true, true},
		{"\t" + issuer + "\t;\taccounturi\t=\t" + accountID + "\t", true, false},

		// The issuer.
		{"", false, false},
		{issuer, false, false},
		{"other.example" + uri, false, false},
		{"AUTHORITY.example" + uri, false, false},
		{issuer + "." + uri, false, false},
		{uri, false, false},
		{"  " + uri, false, false},
		{issuer + "\n" + uri, false, false}, // white space is what RFC 8659 calls so
		{"\u00a0" + issuer + uri, false, false},
		{strings.Replace(good, ";", ",", 1), false, false},

		// The account.
		{issuer + ";accounturi=https://ca.example/acct/999", false, false},
		{issuer + ";accounturi=https://ca.example/acct/1234", false, false},
		{issuer + ";accounturi=HTTPS://ca.example/acct/123", false, false},
		{issuer + ";ACCOUNTURI=" + accountID, true, false},
		{issuer + ";accounturi=", false, false},
		{issuer + ";policy=wildcard", false, false},
		{issuer + uri + uri, false, false},
		{issuer + uri + ";accounturi=https://ca.example/acct/456", false, false},
		{issuer + ";ACCOUNTURI=" + accountID + uri, false, false},

		// Wildcards.
		{issuer + uri + ";policy=wildcard", true, true},
		{issuer + ";policy=wildcard" + uri, true, true},
		{issuer + uri + ";policy=wIlDcArD", true, true},
		{issuer + uri + ";pOlIcY=wildcard", true, true},
		{issuer + uri + ";policy=", true, false},
		{issuer + uri + ";policy=notwildcard", true, false},
		{issuer + uri + ";policy=wildcard;policy=wildcard", false, false},
		{issuer + uri + ";policy=wild card", false, false},

		// Time.
		{issuer + uri + ";persistUntil=4102444800", true, false},
		{issuer + uri + ";PERSISTUNTIL=1793534401", true, false},
		{issuer + uri + ";persistUntil=1793534400", false, false}, // half a microsecond ago
		{issuer + uri + ";persistUntil=1", false, false},
		{issuer + uri + ";persistUntil=-1", false, false},
		{issuer + uri + ";persistUntil=", false, false},
		{issuer + uri + ";persistUntil=never", false, false},
		{issuer + uri + ";persistUntil=2030-01-01T00:00:00Z", false, false},
		{issuer + uri + ";persistUntil=4102444800.5", false, false},
		{issuer + uri + ";persistUntil=99999999999999999999", false, false},
		{issuer + uri + ";persistUntil=9223372036854775807", false, false}, // more than time.Time can tell from the past
		{issuer + uri + ";persistUntil=4102444800;persistuntil=1", false, false},

		// Other tags don't matter, unless they can't be read.
		{issuer + uri + ";foo=", true, false},
		{issuer + uri + ";foo=a=b", true, false},
		{issuer + uri + `;bad tag=value;` + "\nweird=\\x01337", true, false},
		{issuer + uri + ";foo=bar;foo=baz", false, false},
		{issuer + uri + ";foo=bar;FOO=baz", false, false},
		{issuer + uri + ";foo=b r", false, false},
		{issuer + uri + ";foo=b\x7fr", false, false},
		{issuer + uri + ";foo=\u00fc", false, false},
		{issuer + uri + ";foo=\xff", false, false},
		{issuer + uri + ";invalidparam", false, false},
		{issuer + uri + ";=abc", false, false},
		{issuer + uri + "; =abc", false, false},
		{issuer + uri + ";", false, false},
		{issuer + uri + "; ", false, false},
		{issuer + ";" + uri, false, false},
	} {
		p := Persistent{Issuers: []string{issuer, "second.example"}, Account: accountID}
		if got := p.In([]string{tt.value}, now); got != tt.host {
			t.Errorf("In(%q) = %v for a host, want %v", tt.value, got, tt.host)
		}
		p.Wildcard = true
		if got := p.In([]string{tt.value}, now); got != tt.wilds {
			t.Errorf("In(%q) = %v for a wildcard, want %v", tt.value, got, tt.wilds)
		}
	}
}

func TestPersistentInOneOfMany(t *testing.T) {
	p := Persistent{Issuers: []string{issuer}, Account: accountID}
	for _, others := range [][]string{
		{good + ";accounturi=https://ca.example/acct/456"},
		{issuer + ";accounturi=https://ca.example/acct/999"},
		{"v=spf1 -all", "", "other.example;accounturi=x;"},
	} {
		if p.In(others, time.Now()) {
			t.Errorf("In(%q) = true, want false", others)
		}
		if values := append(others, good); !p.In(values, time.Now()) {
			t.Errorf("In(%q) = false, want true", values)
		}
	}
	if p.In(nil, time.Now()) {
		t.Error("In(nil) = true, want false")
	}
}

// Before the CA was asked, nobody knows what names it goes by.
func TestPersistentInOfAnyIssuer(t *testing.T) {
	p := Persistent{Account: accountID}
	for value, want := range map[string]bool{
		good: true,
		"whoever.example;accounturi=" + accountID:              true,
		";accounturi=" + accountID:                             false,
		" \t;accounturi=" + accountID:                          false,
		"whoever.example;accounturi=https://ca.example/acct/9": false,
		"whoever.example;accounturi=":                          false,
	} {
		if got := p.In([]string{value}, time.Now()); got != want {
			t.Errorf("In(%q) = %v, want %v", value, got, want)
		}
	}
	if (Persistent{}).In([]string{"whoever.example", "whoever.example;accounturi="}, time.Now()) {
		t.Error("a record without an account is one of no account's")
	}
}

// Whatever a zone has, it is read without a panic, and what lets the account in
// still does with its fields in another order and with space between them.
// What we would have a person set is always what we look for.
func FuzzPersistent(f *testing.F) {
	f.Add(good, issuer, accountID, true)
	f.Add(good+";policy=wildcard;persistUntil=4102444800;x=", issuer, accountID, false)
	f.Add(";=;;", "", "", false)
	f.Add("a;accounturi=\u00a0b", "a", "b", true)
	f.Fuzz(func(t *testing.T, value, name, account string, wildcard bool) {
		now := time.Unix(1793534400, 0)
		p := Persistent{Issuers: []string{name}, Account: account, Wildcard: wildcard}
		if p.In([]string{value}, now) {
			head, tags, _ := strings.Cut(value, ";")
			again := " " + head + " ;other= ; " + strings.ReplaceAll(tags, ";", " ; ") + " "
			if !strings.Contains(strings.ToLower(tags), "other") && !p.In([]string{again}, now) {
				t.Errorf("%+v: %q is in, and %q is not", p, value, again)
			}
			if p.Wildcard = false; !p.In([]string{value}, now) {
				t.Errorf("%q is for the wildcard, and not for the host", value)
			}
			if p.Account += "0"; p.In([]string{value}, now) {
				t.Errorf("%q is for any account", value)
			}
			return
		}
		if name == "" || strings.Contains(name, ";") || strings.TrimSpace(name) != name {
			return // no CA goes by such a name
		}
		if account == "" || strings.Contains(account, ";") || strings.ContainsFunc(account, notInValue) {
			return // no URL
		}
		if !p.In([]string{p.Value()}, now) {
			t.Errorf("%+v: its own Value %q is not In", p, p.Value())
		}
	})
}
