package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/crypto/acme"
)

// The functions account and rollOver are README's, to the letter.

// account returns a client with the account that a Manager's state has at a CA.
func account(state, directory string) (*acme.Client, error) {
	var data string
	for line := range strings.Lines(state) {
		f := strings.Fields(line) // "account", the directory, a checksum and JSON
		if len(f) == 4 && f[0] == "account" && f[1] == directory {
			data = f[3] // in place of what an earlier line had
		}
	}
	var a struct {
		URL string
		Key []byte // PKCS #8
	}
	if err := json.Unmarshal([]byte(data), &a); err != nil {
		return nil, fmt.Errorf("no account at %s: %w", directory, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(a.Key)
	if err != nil {
		return nil, fmt.Errorf("no account at %s: %w", directory, err)
	}
	return &acme.Client{DirectoryURL: directory, KID: acme.KeyID(a.URL), Key: key.(crypto.Signer)}, nil
}

// rollOver gives the account a new key, and returns the line that says so.
func rollOver(ctx context.Context, client *acme.Client, key *ecdsa.PrivateKey) (line string, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(map[string]any{"url": client.KID, "key": der})
	if err != nil {
		return "", err
	}
	head := "account " + client.DirectoryURL + " "
	sum := crc32.Checksum([]byte(head+string(data)), crc32.MakeTable(crc32.Castagnoli))
	line = fmt.Sprintf("%s%08x %s\n", head, sum, data)
	return line, client.AccountKeyRollover(ctx, key)
}

// TestCopiesOfREADME checks that what is tested here is what README advises.
func TestCopiesOfREADME(t *testing.T) {
	readme, here := read(t, "../../README.md"), read(t, "rollover_test.go")
	for _, begin := range []string{"// account returns", "// rollOver gives"} {
		_, rest, _ := strings.Cut(here, "\n"+begin)
		body, _, _ := strings.Cut(rest, "\n}\n")
		text := begin + body + "\n}\n"
		if !strings.Contains(readme, "\n"+text) {
			t.Errorf("README.md has no longer what is tested:\n%s", text)
		}
	}
}

// holder returns a Manager that has obtained for a host and been shut down, and
// its cache file.
func (r *rig) holder(host string) (cache string) {
	r.t.Helper()
	m, _ := r.manager()
	cache = cacheFile(r.t, m)
	r.serve(m)
	if err := m.Manage(r.t.Context(), host); err != nil {
		r.t.Fatal(err)
	}
	shutdown(r.t, m)
	return cache
}

// successor returns a Manager that serves with a cache file.
func (r *rig) successor(cache string) (*letsencrypt.Manager, *told) {
	r.t.Helper()
	m, told := r.manager()
	if err := m.CacheFile(cache); err != nil {
		r.t.Fatal(err)
	}
	r.serve(m)
	return m, told
}

// account returns a client with the account in a cache file.
func (r *rig) account(cache string) *acme.Client {
	r.t.Helper()
	client, err := account(read(r.t, cache), r.proxy.Directory())
	if err != nil {
		r.t.Fatal(err)
	}
	client.HTTPClient = r.Client()
	return client
}

// A key that was rolled over is used by the next process, for the same account,
// whatever became of the CA's reply.
func TestRollOver(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault pebble.Reply
		keep  bool // the line
	}{
		"all goes well":        {nil, true},
		"the reply is lost":    {pebble.LoseReply, true},
		"the CA never heard":   {pebble.Drop, false},
		"the CA does not want": {pebble.Problem(http.StatusForbidden, "unauthorized", "no", ""), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const host = "a.example.com"
			r := newRig(t, pebble.Config{})
			cache := r.holder(host)
			client, old := r.account(cache), r.account(cache)
			r.proxy.SetFault(nth(pebble.KeyChange, 1, test.fault))
			line, err := rollOver(t.Context(), client, newKey())
			if (err == nil) != (test.fault == nil) || line == "" {
				t.Fatalf("rollOver = %q, %v", line, err)
			}
			if test.keep {
				appendTo(t, cache, line)
			}
			asked := r.proxy.Count(pebble.NewAccount)

			m, _ := r.successor(cache)
			if err := m.Renew(t.Context(), host); err != nil {
				t.Fatal(err)
			}
			r.served(host)
			shutdown(t, m)
			if n := r.proxy.Count(pebble.NewAccount) - asked; n != 0 || r.Accounts() != 1 {
				t.Errorf("%d requests for an account, %d accounts; want none, and the one from before", n, r.Accounts())
			}
			now := r.account(cache)
			if now.KID != old.KID {
				t.Errorf("account %s, want still %s", now.KID, old.KID)
			}
			if _, err := now.GetReg(t.Context(), ""); err != nil {
				t.Errorf("the CA does not know the key in the state: %v", err)
			}
			if _, err := old.GetReg(t.Context(), ""); (err == nil) == test.keep {
				t.Errorf("an account by the key from before: %v, want one only if nothing changed", err)
			}
		})
	}
}

func appendTo(t *testing.T, file, line string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(line)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestNoAccountToRollOver(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	cache := r.holder("a.example.com")
	if _, err := account(read(t, cache), letsencrypt.LetsEncrypt); err == nil {
		t.Error("an account at a CA that was never asked for one")
	}
}

// A deactivated account is of no use any more, and a Manager that still has it
// says so and serves on. One with a new cache file makes another.
func TestDeactivate(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r := newRig(t, pebble.Config{})
	cache := r.holder(host)
	var mu sync.Mutex // guards status
	var status string
	r.proxy.SetFault(func(_ *http.Request, e pebble.Endpoint, _ int) pebble.Reply {
		if e != pebble.Account {
			return nil
		}
		return pebble.Edit(func(a *pebble.Answer) {
			var account struct{ Status string }
			json.Unmarshal(a.Body, &account) // a reply without a status is wrong below
			mu.Lock()
			defer mu.Unlock()
			status = account.Status
		})
	})
	if err := r.account(cache).DeactivateReg(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if status != acme.StatusDeactivated {
		t.Errorf("the account's status is %q, want %q", status, acme.StatusDeactivated)
	}
	r.proxy.SetFault(nil)

	m, told := r.successor(cache)
	old := r.served(host)
	err := m.Renew(t.Context(), host)
	r.failed(m, told, err, host, "deactivated")
	if leaf := r.served(host); !leaf.Equal(old) {
		t.Errorf("serial %x is served, want %x still", leaf.SerialNumber, old.SerialNumber)
	}
	shutdown(t, m)
	if n := r.Accounts(); n != 1 {
		t.Errorf("%d accounts, want no other by itself", n)
	}

	r.holder(host)
	if n := r.Accounts(); n != 2 {
		t.Errorf("%d accounts, want another for the new cache file", n)
	}
}
