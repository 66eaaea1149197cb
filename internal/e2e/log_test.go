package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
)

// secrets collects what no log line may have in it.
type secrets struct {
	t *testing.T

	mu      sync.Mutex        // guards what follows
	all     map[string]string // and what each is
	details []string          // what the CA said of validations that failed
}

func (s *secrets) add(what, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[string]string)
	}
	s.all[secret] = what
}

// addKeys adds the private keys of a Manager's state.
func (s *secrets) addKeys(m *letsencrypt.Manager) {
	s.t.Helper()
	for key, r := range records(s.t, m.Marshal()) {
		var v struct{ Key []byte }
		if json.Unmarshal([]byte(r.JSON()), &v) != nil || len(v.Key) == 0 {
			continue
		}
		const shown = 20 // bytes of a key that would be too many, those that tell it from others
		tail := v.Key[len(v.Key)-3*shown:]
		s.add("the key of "+key, hex.EncodeToString(tail))
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawURLEncoding} {
			text := enc.EncodeToString(v.Key)
			s.add("the key of "+key, text[len(text)-3*shown:len(text)-shown])
		}
	}
}

// see adds what is secret of the CA's replies about authorizations and
// challenges.
func (s *secrets) see(a *pebble.Answer) {
	type challenge struct {
		Token string
		Error struct{ Detail string }
	}
	var authz struct {
		challenge
		Challenges []challenge
	}
	if json.Unmarshal(a.Body, &authz) != nil {
		return
	}
	for _, c := range append(authz.Challenges, authz.challenge) {
		if c.Token != "" {
			s.add("a token", c.Token)
		}
		if c.Error.Detail != "" {
			s.mu.Lock()
			s.details = append(s.details, c.Error.Detail)
			s.mu.Unlock()
		}
	}
}

// during returns the fault, with replies that see has seen.
func (s *secrets) during(fault pebble.Fault) pebble.Fault {
	return func(r *http.Request, e pebble.Endpoint, n int) pebble.Reply {
		if fault != nil {
			if reply := fault(r, e, n); reply != nil {
				return reply
			}
		}
		if e == pebble.Authz || e == pebble.Challenge {
			return pebble.Edit(s.see)
		}
		return nil
	}
}

// check checks that nothing secret is in the text.
func (s *secrets) check(what, text string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for secret, name := range s.all {
		if i := strings.Index(text, secret); i >= 0 {
			s.t.Errorf("%s is in the %s: %s", name, what, text[max(0, i-200):min(len(text), i+200)])
		}
	}
	if m := regexp.MustCompile(`PRIVATE KEY|[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{43}\b`).FindString(text); m != "" {
		s.t.Errorf("%s is in the %s", m, what)
	}
}

// said is all that the CA said in an error, for what it is worth.
const (
	portal = "https://portal.test/unpause?jwt=eyJhbGciOi.c2VjcmV0.x"
	said   = "Your account is temporarily prevented from requesting certificates. Visit: " + portal
)

// TestNothingSecretIsLogged goes through all that may go wrong and reads what
// was said of it: the log has no key, token or key authorization and no link
// that lets whoever has it act for the account, at any level, while the errors
// have the CA's words whole.
func TestNothingSecretIsLogged(t *testing.T) {
	t.Parallel()
	r := newRig(t, pebble.Config{})
	s := &secrets{t: t}
	s.add("the portal's link", "jwt=")
	s.add("the portal's link", "c2VjcmV0")
	var logs []*told

	// manager returns a Manager whose words are read in the end.
	manager := func(fault pebble.Fault) *letsencrypt.Manager {
		r.proxy.SetFault(s.during(fault))
		m, told := r.manager()
		cacheFile(t, m)
		logs = append(logs, told)
		return m
	}

	well := manager(nil)
	r.serve(well)
	for _, host := range []string{"a.example.com", "b.example.com"} {
		r.served(host)
	}
	if err := well.Renew(t.Context(), "a.example.com"); err != nil {
		t.Fatal(err)
	}
	s.addKeys(well)

	for i, f := range []struct {
		at    pebble.Endpoint
		reply pebble.Reply
	}{
		{pebble.NewAccount, pebble.Problem(403, "unauthorized", said, "")},
		{pebble.NewOrder, pebble.Problem(429, "rateLimited", said, "")},
		{pebble.NewOrder, pebble.Problem(429, "rateLimited", said, "3600")},
		{pebble.NewOrder, pebble.Problem(503, "serverInternal", said, "")},
		{pebble.NewOrder, pebble.Problem(400, "rejectedIdentifier", said, "")},
		{pebble.NewOrder, pebble.HTML(500)},
		{pebble.Authz, pebble.Problem(403, "unauthorized", said, "")},
		{pebble.Challenge, pebble.Problem(403, "unauthorized", said, "")},
		{pebble.Finalize, pebble.Problem(403, "badCSR", said, "")},
		{pebble.Certificate, pebble.Problem(500, "serverInternal", said, "")},
		{pebble.Certificate, pebble.Truncate},
	} {
		m := manager(nth(f.at, always, f.reply))
		host := fmt.Sprintf("c%d.example.com", i)
		// It listens nowhere, and answers validations by the well one's server.
		err := m.Manage(t.Context(), host)
		if err == nil {
			t.Errorf("%s: no error", f.at)
		}
		s.addKeys(m)
	}

	m := manager(nth(pebble.NewOrder, always, pebble.Problem(429, "rateLimited", said, "")))
	checkWhole(t, m, "d.example.com", said)

	shutdown(t, well)
	for i, wrong := range []http.HandlerFunc{
		http.NotFound,
		func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "something else") },
		func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) },
		func(w http.ResponseWriter, r *http.Request) {
			token := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
			io.WriteString(w, token+"."+strings.Repeat("A", 43))
		},
	} {
		m := manager(nil)
		m.HTTPHandler(nil) // is said to be in use, but is not
		server := &http.Server{Addr: r.httpAddr(), Handler: wrong}
		stop := serveHTTP(t, server, server.ListenAndServe)
		s.details = nil
		checkWhole(t, m, fmt.Sprintf("e%d.example.com", i), "")
		if len(s.details) == 0 {
			t.Error("the CA gave no reason")
		}
		for _, detail := range s.details {
			checkWhole(t, m, fmt.Sprintf("e%d.example.com", i), detail)
		}
		s.addKeys(m)
		stop()
	}

	all := 0
	for _, told := range logs {
		s.check("log", told.log.String())
		all += len(told.log.String())
	}
	if len(s.all) < 30 || all < 5000 {
		t.Errorf("%d secrets looked for in %d bytes of log: that proves nothing", len(s.all), all)
	}
}

// checkWhole checks that the errors about a host have the CA's words whole.
func checkWhole(t *testing.T, m *letsencrypt.Manager, host, words string) {
	t.Helper()
	err := m.Manage(t.Context(), host)
	var failed *letsencrypt.HostError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), words) {
		t.Errorf("Manage = %v, want a HostError with %q", err, words)
	}
	if err := m.Status(host)[0].Err; err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("Status has %v, want %q", err, words)
	}
}
