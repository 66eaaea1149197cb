package ca

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
)

// A ledger keeps credentials, and how many accounts the CA had when each came.
type ledger struct {
	ca   *catest.CA
	kept []Credentials
	had  []int
	fail func(Credentials) error
}

func (l *ledger) load() (Credentials, bool) {
	if len(l.kept) == 0 {
		return Credentials{}, false
	}
	return l.kept[len(l.kept)-1], true
}

func (l *ledger) keep(c Credentials) error {
	if l.fail != nil {
		if err := l.fail(c); err != nil {
			return err
		}
	}
	l.kept, l.had = append(l.kept, c), append(l.had, l.ca.Count("newAccount"))
	return nil
}

func inAccount(t *testing.T, f func(t *testing.T, ca *catest.CA, a *Account, l *ledger)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		l := &ledger{ca: ca}
		f(t, ca, newAccount(ca, l), l)
	})
}

func newAccount(ca *catest.CA, l *ledger) *Account {
	return &Account{
		Directory: ca.Directory(), HTTP: ca.Client(), Load: l.load, Keep: l.keep,
		Contact: func() ([]string, error) { return []string{"mailto:a@example.com"}, nil },
	}
}

func mustClient(t *testing.T, a *Account) *Client {
	t.Helper()
	c, err := a.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The key is durable before the CA is asked: an account whose key is lost is
// lost with it.
func TestAccountKeyKeptFirst(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		c := mustClient(t, a)
		if len(l.kept) != 2 || l.kept[0].URL != "" || l.had[0] != 0 || l.kept[1].URL != c.KID() || l.had[1] != 1 {
			t.Fatalf("kept %d times, when %v accounts had been asked for; want the key before, the URL after", len(l.kept), l.had)
		}
		if string(l.kept[0].Key) != string(l.kept[1].Key) {
			t.Error("the account has another key than was kept")
		}
		if got := ca.Accounts(); len(got) != 1 || got[0].URL != c.KID() || got[0].Contact[0] != "mailto:a@example.com" {
			t.Errorf("accounts %v, want one with URL %s and the contact", got, c.KID())
		}
		before := ca.Count("")
		if again := mustClient(t, a); again != c || ca.Count("") != before {
			t.Error("a second call made another client, or asked the CA")
		}
		if again := mustClient(t, newAccount(ca, l)); again.KID() != c.KID() || ca.Count("") != before {
			t.Error("an account that was kept was not taken as it is")
		}
	})
}

// A crash after newAccount and before its URL was kept leaves the key, and with
// it the account.
func TestAccountFoundAfterCrash(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		crash := errors.New("crash")
		l.fail = func(c Credentials) error {
			if c.URL != "" {
				return crash
			}
			return nil
		}
		_, err := a.Client(t.Context())
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Ours || !errors.Is(err, crash) {
			t.Errorf("Client = %v, want ours: crash", err)
		}
		l.fail = nil
		c := mustClient(t, newAccount(ca, l))
		if got := ca.Accounts(); len(got) != 1 || got[0].URL != c.KID() || l.kept[len(l.kept)-1].URL != c.KID() {
			t.Errorf("accounts %v, want the first one found", got)
		}
	})
}

func TestAccountAsksNothing(t *testing.T) {
	no := errors.New("no")
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mute, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		spoil func(a *Account, l *ledger)
		want  string
	}{
		{"terms refused", func(a *Account, l *ledger) { a.Contact = func() ([]string, error) { return nil, no } }, "no"},
		{"key not kept", func(a *Account, l *ledger) { l.fail = func(Credentials) error { return no } }, "no"},
		{"key damaged", func(a *Account, l *ledger) { l.kept = []Credentials{{Key: []byte("rubbish")}} }, "reading the account's key"},
		{"key that can't sign", func(a *Account, l *ledger) { l.kept = []Credentials{{Key: mute}} }, "can't sign"},
	}
	for _, test := range tests {
		inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
			test.spoil(a, l)
			_, err := a.Client(t.Context())
			if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Ours || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v, want ours: %s", test.name, err, test.want)
			}
			if n := ca.Count(""); n != 0 {
				t.Errorf("%s: the CA was asked %d times", test.name, n)
			}
		})
	}
}

// The CA was set up anew: the account is made again, with the same key.
func TestAccountForget(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		old := mustClient(t, a)
		ca.ForgetAccounts()
		if err := a.Forget(old); err != nil {
			t.Fatal(err)
		}
		c := mustClient(t, a)
		if c.KID() == old.KID() || string(l.kept[0].Key) != string(l.kept[len(l.kept)-1].Key) {
			t.Errorf("account %s after %s, want another with the same key", c.KID(), old.KID())
		}
		// Others who held the old client are late.
		if err := a.Forget(old); err != nil || mustClient(t, a) != c {
			t.Errorf("Forget of a client that was forgotten = %v, and the account was made anew", err)
		}
		l.kept = nil
		if err := a.Forget(c); err == nil {
			t.Error("Forget of an account that is not kept = nil")
		}
	})
}

func TestAccountReset(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		first := mustClient(t, a)
		other := &ledger{ca: ca}
		want := mustClient(t, newAccount(ca, other))
		l.kept = other.kept
		if mustClient(t, a) != first {
			t.Error("what is kept was read again without a Reset")
		}
		a.Reset()
		if got := mustClient(t, a); got.KID() != want.KID() {
			t.Errorf("after Reset the account is %s, want %s", got.KID(), want.KID())
		}
	})
}

// sharing has an account shared, and returns what was done with it, in order.
func sharing(a *Account, l *ledger, share func() error) (done func() string) {
	var log []string
	load, keep := a.Load, a.Keep
	a.Load = func() (Credentials, bool) { log = append(log, "load"); return load() }
	a.Keep = func(c Credentials) error { log = append(log, "keep"); return keep(c) }
	a.Share = func(context.Context) (func(), error) {
		log = append(log, "share")
		asked := l.ca.Count("newAccount")
		return func() {
			if l.ca.Count("newAccount") > asked {
				log = append(log, "after the CA was asked")
			}
			log = append(log, "release")
		}, share()
	}
	return func() string { return strings.Join(log, ", ") }
}

// Nobody else makes an account from before ours is looked for until it is kept.
func TestAccountShare(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		done := sharing(a, l, func() error { return nil })
		first := mustClient(t, a)
		want := "share, load, keep, keep, after the CA was asked, release"
		if got := done(); got != want {
			t.Errorf("an account is made by %s, want %s", got, want)
		}
		if mustClient(t, a) != first || done() != want {
			t.Errorf("a client that is there is had by %s, want nothing after %s", done(), want)
		}
		a.Reset()
		if want += ", share, load, release"; mustClient(t, a).KID() != first.KID() || done() != want {
			t.Errorf("an account that is kept is had by %s, want %s", done(), want)
		}
	})
}

// Whatever goes wrong, the others may try.
func TestAccountShareIsReleased(t *testing.T) {
	no := errors.New("no")
	tests := []struct {
		name  string
		spoil func(ca *catest.CA, l *ledger)
		want  string
	}{
		{"key damaged", func(_ *catest.CA, l *ledger) { l.kept = []Credentials{{Key: []byte("rubbish")}} }, "share, load, release"},
		{"key not kept", func(_ *catest.CA, l *ledger) { l.fail = func(Credentials) error { return no } }, "share, load, keep, release"},
		{"URL not kept", func(_ *catest.CA, l *ledger) {
			l.fail = func(c Credentials) error {
				if c.URL != "" {
					return no
				}
				return nil
			}
		}, "share, load, keep, keep, after the CA was asked, release"},
		{"refused", func(ca *catest.CA, _ *ledger) {
			ca.Fault(catest.On("newAccount", 0, catest.Problem(403, "unauthorized", "no", "")))
		}, "share, load, keep, after the CA was asked, release"},
		{"hangs", func(ca *catest.CA, _ *ledger) { ca.Fault(catest.On("newAccount", 0, catest.Hang)) }, "share, load, keep, after the CA was asked, release"},
		{"down", func(ca *catest.CA, _ *ledger) { ca.Fault(catest.Down) }, "share, load, keep, release"},
	}
	for _, test := range tests {
		inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
			done := sharing(a, l, func() error { return nil })
			test.spoil(ca, l)
			if _, err := a.Client(t.Context()); err == nil {
				t.Errorf("%s: Client = nil, want an error", test.name)
			}
			if got := done(); got != test.want {
				t.Errorf("%s: got %s, want %s", test.name, got, test.want)
			}
		})
	}
}

// An account that can't be shared is not made. That is no fault of the CA, and
// no outcome for others: what failed was ours, and may have been the caller's
// own context.
func TestAccountShareFails(t *testing.T) {
	no := errors.New("no")
	tests := []struct {
		name string
		err  error
	}{
		{"an error", no},
		{"an error with another's class", fmt.Errorf("no: %w", &Failure{Class: Network, Step: "dialing", Err: no})},
	}
	for _, test := range tests {
		inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
			tries := 0
			done := sharing(a, l, func() error {
				if tries++; tries > 1 {
					return nil
				}
				time.Sleep(time.Second)
				return test.err
			})
			failed := make(chan error)
			go func() {
				_, err := a.Client(t.Context())
				failed <- err
			}()
			synctest.Wait()
			other := make(chan error)
			go func() { // came before it failed
				_, err := a.Client(t.Context())
				other <- err
			}()
			err := <-failed
			if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Ours || !errors.Is(err, no) || !strings.Contains(err.Error(), "sharing the account") {
				t.Errorf("%s: Client = %v, want ours: sharing the account: no", test.name, err)
			}
			if err := <-other; err != nil {
				t.Errorf("%s: Client for another = %v, want its own try", test.name, err)
			}
			if got, want := done(), "share, share, load, keep, keep, after the CA was asked, release"; got != want {
				t.Errorf("%s: got %s, want %s", test.name, got, want)
			}
		})
	}
}

// What another process made is ours, too: its account, or if it died on the way
// the key that it had kept.
func TestAccountShareBringsOne(t *testing.T) {
	for _, dead := range []bool{false, true} {
		inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
			theirs := &ledger{ca: ca}
			want := mustClient(t, newAccount(ca, theirs)).KID()
			sharing(a, l, func() error {
				l.kept = theirs.kept[1:]
				if dead {
					l.kept = theirs.kept[:1:1]
				}
				return nil
			})
			asked := ca.Count("")
			if got := mustClient(t, a).KID(); got != want || len(ca.Accounts()) != 1 {
				t.Errorf("dead %v: the account is %s of %d, want %s alone", dead, got, len(ca.Accounts()), want)
			}
			if !dead && ca.Count("") != asked {
				t.Errorf("the CA was asked %d times for an account that is there", ca.Count("")-asked)
			}
		})
	}
}

// Many want the account at once, one makes it, and who can't wait leaves.
func TestAccountManyAtOnce(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		ca.Latency = 5 * time.Second
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if _, err := a.Client(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var err error
		took := elapsed(func() { _, err = a.Client(ctx) })
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Ours || took != time.Second {
			t.Errorf("one who waits a second: %v after %v, want ours after 1s", err, took)
		}
		all.Wait()
		if n := len(ca.Accounts()); n != 1 {
			t.Errorf("%d accounts, want 1", n)
		}
	})
}

func TestAccountReader(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		r := a.Reader()
		if _, err := r.Directory(t.Context()); err != nil || r.KID() != "" || a.Reader() != r {
			t.Errorf("Reader = %p with account %q, then %p, %v; want one without an account", r, r.KID(), a.Reader(), err)
		}
		if len(l.kept) != 0 || ca.Count("newAccount") != 0 {
			t.Error("an account was made")
		}
	})
}

// What the CA says of when to come back goes for all who talk to it.
func TestGate(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		c := mustClient(t, a)
		reader := a.Reader()
		ca.Fault(catest.On("account", 1, catest.Problem(503, "serverInternal", "busy", "3600")))
		if err := c.Update(t.Context(), nil); err == nil {
			t.Fatal("Update = nil")
		}
		before := ca.Count("")
		time.Sleep(10 * time.Minute)
		for name, do := range map[string]func() error{
			"Update":    func() error { return c.Update(t.Context(), nil) },
			"Revoke":    func() error { return c.Revoke(t.Context(), nil, nil, 0) },
			"Directory": func() error { _, err := reader.Directory(t.Context()); return err },
		} {
			err := do()
			if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Fault || f.Retry != 50*time.Minute || !strings.Contains(err.Error(), "busy") {
				t.Errorf("%s: %v, want a fault in the CA's words with 50m to wait", name, err)
			}
		}
		if n := ca.Count("") - before; n != 0 {
			t.Errorf("the CA was asked %d times before it said to", n)
		}
		time.Sleep(50 * time.Minute)
		if err := c.Update(t.Context(), nil); err != nil {
			t.Errorf("an hour later: %v", err)
		}
	})
}

// A limit on accounts is not one host's.
func TestGateHeedsAccountLimit(t *testing.T) {
	inAccount(t, func(t *testing.T, ca *catest.CA, a *Account, l *ledger) {
		ca.Fault(catest.On("newAccount", 1, catest.Problem(429, "rateLimited", "too many accounts", "3600")))
		_, err := a.Client(t.Context())
		if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Fault || f.Retry != time.Hour {
			t.Errorf("Client = %v, want a fault with an hour to wait", err)
		}
		if _, err := a.Reader().Directory(t.Context()); err == nil {
			t.Error("the CA was asked before it said to")
		}
	})
}

func TestGateHeeds(t *testing.T) {
	tests := []struct {
		endpoint string
		response catest.Response
		closed   bool
	}{
		{"newOrder", catest.Problem(429, "rateLimited", "too many for this host", "3600"), false},
		{"finalize", catest.Problem(429, "rateLimited", "too many for this host", "3600"), false},
		{"newOrder", catest.HTML(429, "3600"), true},
		{"newOrder", catest.HTML(503, "3600"), true},
		{"newOrder", catest.HTML(503, ""), false},
		{"newOrder", catest.Problem(403, "unauthorized", "no", "3600"), false},
		{"newNonce", catest.HTML(429, "3600"), true},
	}
	for _, test := range tests {
		inWorld(t, nil, func(t *testing.T, w *world) {
			w.client.nonces = nil
			w.ca.Fault(catest.On(test.endpoint, 1, test.response))
			f := w.refused(w.job("a.example.com"))
			if _, err := w.client.get(t.Context(), w.ca.Directory()); (err != nil) != test.closed {
				t.Errorf("after %s refused with %v: %v, want the CA not asked: %v", test.endpoint, f, err, test.closed)
			}
		})
	}
}

func TestPick(t *testing.T) {
	offer := func(types ...string) *Authorization {
		a := new(Authorization)
		for _, typ := range types {
			typ, status, _ := strings.Cut(typ, " ")
			a.Challenges = append(a.Challenges, Challenge{Type: typ, Status: status})
		}
		return a
	}
	tests := []struct {
		a     *Authorization
		types string
		want  string
	}{
		{offer("http-01", "tls-alpn-01"), "tls-alpn-01 http-01", "tls-alpn-01"},
		{offer("http-01", "dns-01"), "tls-alpn-01 http-01", "http-01"},
		{offer("http-01 processing", "tls-alpn-01 pending"), "tls-alpn-01 http-01", "http-01"},
		{offer("dns-01 processing", "http-01 pending"), "tls-alpn-01 http-01", "http-01"}, // started before the settings changed
		{offer("dns-01"), "tls-alpn-01 http-01", ""},
		{offer(), "http-01", ""},
		{offer("http-01"), "", ""},
	}
	for _, test := range tests {
		ch, err := test.a.Pick(strings.Fields(test.types))
		if test.want == "" {
			if f, ok := errors.AsType[*Failure](err); !ok || f.Class != Policy {
				t.Errorf("%v.Pick(%s) = %v, %v, want a policy error", test.a.Challenges, test.types, ch, err)
			}
			continue
		}
		if err != nil || ch.Type != test.want {
			t.Errorf("%v.Pick(%s) = %v, %v, want %s", test.a.Challenges, test.types, ch, err, test.want)
		}
	}
}
