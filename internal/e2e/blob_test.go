package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/catest"
	"example.com/letsencrypt/internal/journal"
)

// stateV1 is what the first version of this package wrote, in a bubble, where
// it is always the year 2000. It is never written again: every later version
// must read it.
const stateV1 = "../../testdata/state-v1.txt"

// TestStateOfVersion1IsKeptWordForWord takes over every record there can be,
// one of a kind that only a later version knows among them.
func TestStateOfVersion1IsKeptWordForWord(t *testing.T) {
	blob := read(t, stateV1)
	want := []string{
		"account https://ca.test/dir",
		"ari a.example.com",
		"backoff b.example.com",
		"backoff c.example.com",
		"backoff d.example.com",
		"cert a.example.com",
		"chain 9c9587614e9052fa603fe1abc1cff10d9283aa411d2b54c19c45b4c2e102761e",
		"future x",
		"hosts -",
		"limit certificates",
		"limit hosts",
		"order b.example.com",
		"pause https://ca.test/dir",
		"register -",
	}
	if got := keys(records(t, blob)); !slices.Equal(got, want) {
		t.Fatalf("the blob has %q, want %q", got, want)
	}
	var m letsencrypt.Manager
	defer shutdown(t, &m)
	if err := m.Unmarshal(blob); err != nil {
		t.Fatal(err)
	}
	if got := m.Marshal(); got != blob {
		t.Errorf("Marshal returns\n%s\nafter Unmarshal of\n%s", got, blob)
	}

	file := filepath.Join(t.TempDir(), "cache")
	write(t, file, blob)
	var kept letsencrypt.Manager
	if err := kept.CacheFile(file); err != nil {
		t.Fatal(err)
	}
	kept.SetHosts([]string{"z.example.com"})
	shutdown(t, &kept)
	if got := records(t, read(t, file))["future x"]; got != records(t, blob)["future x"] {
		t.Errorf("in the file the record of a later version is %q now", got)
	}
}

// TestStateOfVersion1IsUnderstood has a Manager carry on where that of the
// first version was.
func TestStateOfVersion1IsUnderstood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Fault(catest.Down)
		m := customer(ca)
		m.HTTPHandler(nil)
		defer shutdown(t, m)
		time.Sleep(time.Until(time.Date(2000, 1, 1, 2, 0, 0, 0, time.UTC)))
		if err := m.Unmarshal(read(t, stateV1)); err != nil {
			t.Fatal(err)
		}
		if !m.Registered() {
			t.Error("the account is lost")
		}
		if got := serial(t, m, "a.example.com"); got != "35f49746d619791a856614f3c8be20b" {
			t.Errorf("certificate %s is served", got)
		}
		var hosts []string
		for _, s := range m.Status() {
			hosts = append(hosts, s.Host)
		}
		if want := []string{"*.e.example.com", "192.0.2.1", "a.example.com", "b.example.com", "c.example.com", "d.example.com", "xn--bcher-kva.example"}; !slices.Equal(hosts, want) {
			t.Errorf("hosts %q, want %q", hosts, want)
		}
		a := m.Status("a.example.com")[0]
		if a.CA != ca.Directory() || a.Challenge != "http-01" || a.Err != nil {
			t.Errorf("status %+v of what was all well", a)
		}
		if want := "2000-03-01T00:04:09.135224114Z"; a.Renewal.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("renewal at %v, want %s", a.Renewal, want)
		}
		for host, want := range map[string]struct{ words, retry string }{
			"b.example.com": {"down for maintenance", "03:00"},
			"c.example.com": {"connection refused", "01:01"},
			"d.example.com": {"too many certificates for d.example.com", "11:00"},
		} {
			s := m.Status(host)[0]
			if s.Err == nil || !strings.Contains(s.Err.Error(), want.words) || s.Retry.UTC().Format("15:04") != want.retry {
				t.Errorf("status %+v, want %q and to try again at %s", s, want.words, want.retry)
			}
		}
		if _, err := m.Cert("b.example.com"); err == nil || !strings.Contains(err.Error(), "down for maintenance") {
			t.Errorf("Cert of what failed before = %v, want why", err)
		}
		if n := ca.Count(""); n > 0 {
			t.Errorf("a CA that is paused till 3:00 has %d requests at 2:00", n)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := ca.Count(""); n == 0 {
			t.Error("a CA that was paused till 3:00 has no request by 4:00")
		}
	})
}

// TestUnmarshalOfRubbish changes nothing.
func TestUnmarshalOfRubbish(t *testing.T) {
	const header = "letsencrypt 1\n"
	good := read(t, stateV1)
	rec := func(kind, name, value string, fields ...int64) string {
		return header + string(journal.Format(kind, name, fields, []byte(value))) + "\n"
	}
	var m letsencrypt.Manager
	defer shutdown(t, &m)
	if err := m.Unmarshal(good); err != nil {
		t.Fatal(err)
	}
	_, otherKey := pemPair(t, "a.example.com", time.Hour)
	chain, key := pemPair(t, "a.example.com", time.Hour)
	for name, enc := range map[string]string{
		"nothing":              "",
		"a space":              " ",
		"words":                "hello, world",
		"HTML":                 "<!DOCTYPE html>",
		"NULs":                 strings.Repeat("\x00", 100),
		"no header":            strings.TrimPrefix(good, header),
		"later version":        strings.Replace(good, "letsencrypt 1", "letsencrypt 2", 1),
		"damaged record":       strings.Replace(good, "a.example.com", "o.example.com", 1),
		"torn record":          good[:len(good)-20],
		"line too many":        good + "x\n",
		"account no account":   rec("account", "https://ca.test/dir", `[]`),
		"hosts no list":        rec("hosts", "-", `{"a":"b"}`),
		"back-off no back-off": rec("backoff", "a.example.com", `"x"`),
		"bad time":             rec("pause", "https://ca.test/dir", `{"until":"tomorrow"}`),
		"order no order":       rec("order", "a.example.com", `17`),
		"moment no moment":     rec("ari", "a.example.com", `{"moment":1}`),
		"level no level":       rec("limit", "certificates", `{"tokens":"many"}`),
		"no times":             rec("cert", "b.example.com", `{}`),
		"bad JSON":             `{"Email": "x@example.com"`,
		"more after JSON":      `{"Email":"x@example.com","Hosts":null,"Certs":{}} and more`,
		"other JSON":           `{"name":"left-pad","version":"1.3.0"}`,
		"no object":            `{}`,
		"rsc, other type":      `{"Email":"","Hosts":"a.example.com","Certs":{}}`,
		"rsc, no PEM":          rscState(t, "", nil, map[string][2]string{"a.example.com": {"x", "y"}}),
		"rsc, other key":       rscState(t, "", nil, map[string][2]string{"a.example.com": {chain, otherKey}}),
		"rsc, other host":      rscState(t, "", nil, map[string][2]string{"b.example.com": {chain, key}}),
		"rsc, no host":         rscState(t, "", nil, map[string][2]string{"a..b": {chain, key}}),
	} {
		if err := m.Unmarshal(enc); err == nil || !strings.HasPrefix(err.Error(), "letsencrypt: ") {
			t.Errorf("Unmarshal of %s = %v, want an error of ours", name, err)
		}
		if m.Marshal() != good {
			t.Fatalf("Unmarshal of %s changes the state to\n%s", name, m.Marshal())
		}
	}
}

// FuzzUnmarshal: what is refused changes nothing, and what is accepted stays
// the same from then on.
func FuzzUnmarshal(f *testing.F) {
	good, err := os.ReadFile(stateV1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add("letsencrypt 1\n")
	f.Add("letsencrypt 1\n" + string(journal.Format("cert", "a.example.com", []int64{1, 1 << 40}, []byte(`{"leaf":"AAAA"}`))))
	f.Add("letsencrypt 1\n" + string(journal.Delete("hosts", "-")))
	f.Add(`{"Email":"x@example.com","Reg":null,"Key":"","Hosts":["a.example.com"],"Certs":{}}`)
	f.Fuzz(func(t *testing.T, enc string) {
		checkUnmarshal(t, enc)
		checkUnmarshal(t, summed(enc))
	})
}

func checkUnmarshal(t *testing.T, enc string) {
	var m, again letsencrypt.Manager
	m.SetHosts([]string{"before.example.com"})
	before := m.Marshal()
	if m.Unmarshal(enc) != nil {
		if got := m.Marshal(); got != before {
			t.Errorf("a blob that is refused changes the state to %q", got)
		}
		return
	}
	enc = m.Marshal()
	if err := again.Unmarshal(enc); err != nil {
		t.Fatalf("Unmarshal(%q) = %v", enc, err)
	}
	if got := again.Marshal(); got != enc {
		t.Errorf("%q became %q", enc, got)
	}
	m.Status()
}

// summed returns the blob with the checksums that its lines should have, which
// no fuzzing finds.
func summed(enc string) string {
	var b strings.Builder
	for line := range strings.Lines(enc) {
		text, end := strings.CutSuffix(line, "\n")
		if parts := strings.SplitN(text, " ", 4); len(parts) == 4 {
			sum := crc32.Checksum([]byte(parts[0]+" "+parts[1]+" "+parts[3]), crc32.MakeTable(crc32.Castagnoli))
			line = fmt.Sprintf("%s %s %08x %s", parts[0], parts[1], sum, parts[3])
			if end {
				line += "\n"
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

// TestUnmarshalKeepsTheLaterCertificate merges the states of two Managers in
// either order.
func TestUnmarshalKeepsTheLaterCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		var blobs []string
		var serials []string
		for _, list := range []string{"early.example.com", "late.example.com"} {
			m := customer(ca)
			m.SetHosts([]string{"a.example.com", list})
			serials = append(serials, serial(t, m, "a.example.com"))
			blobs = append(blobs, m.Marshal())
			shutdown(t, m)
			time.Sleep(24 * time.Hour)
		}
		for _, order := range [][2]int{{0, 1}, {1, 0}} {
			m := customer(ca)
			for _, i := range order {
				if err := m.Unmarshal(blobs[i]); err != nil {
					t.Fatal(err)
				}
			}
			if got := serial(t, m, "a.example.com"); got != serials[1] {
				t.Errorf("order %v: certificate %s is served, want the later one", order, got)
			}
			last := records(t, blobs[order[1]])
			for _, key := range []string{"hosts -", "account " + ca.Directory()} {
				if got := records(t, m.Marshal())[key]; got != last[key] {
					t.Errorf("order %v: %q is kept, want that of the blob, %q", order, got, last[key])
				}
			}
			shutdown(t, m)
		}
		if n := len(ca.Orders()); n != 2 {
			t.Errorf("%d orders, want 2", n)
		}
	})
}

// TestUnmarshalDropsNothingObtained takes over the state of a Manager that has
// less.
func TestUnmarshalDropsNothingObtained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		m := customer(ca)
		defer shutdown(t, m)
		want := serial(t, m, "a.example.com")
		if err := m.Unmarshal("letsencrypt 1\n"); err != nil {
			t.Fatal(err)
		}
		if m.Registered() {
			t.Error("the account is not the blob's")
		}
		if got := serial(t, m, "a.example.com"); got != want {
			t.Errorf("certificate %s is served, want %s", got, want)
		}
	})
}

// TestMovingFromRSC takes over a file of rsc.io/letsencrypt's.
func TestMovingFromRSC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(24 * time.Hour) // so that there is a time before
		chain, key := pemPair(t, "live.example.com", 60*24*time.Hour)
		oldChain, oldKey := pemPair(t, "dead.example.com", -time.Hour)
		state := rscState(t, "admin@example.com", []string{"Live.example.com", "dead.example.com"}, map[string][2]string{
			"live.example.com": {chain, key},
			"dead.example.com": {oldChain, oldKey},
		})
		ca := catest.New(t)
		file := filepath.Join(t.TempDir(), "letsencrypt.cache")
		write(t, file, state)
		m := cached(t, ca, file)
		if m.Registered() {
			t.Error("an account of ACME v1 reads as one")
		}
		if got := serial(t, m, "live.example.com"); got != "7b" {
			t.Errorf("certificate %s is served for live.example.com, want its old one", got)
		}
		if n := ca.Count(""); n > 0 {
			t.Errorf("%d requests to the CA for what is there", n)
		}
		if got := serial(t, m, "dead.example.com"); got == "7b" {
			t.Error("an expired certificate is served")
		}
		if _, err := m.Cert("other.example.com"); err == nil {
			t.Error("a host that is not on the old list gets a certificate")
		}
		shutdown(t, m)
		if as := ca.Accounts(); len(as) != 1 || !slices.Equal(as[0].Contact, []string{"mailto:admin@example.com"}) {
			t.Errorf("accounts %v, want one with the old address", as)
		}
		rs := records(t, read(t, file))
		if got := rs["register -"].JSON(); got != `{"email":"admin@example.com"}` {
			t.Errorf("the address is kept as %s", got)
		}
		m = cached(t, ca, file)
		defer shutdown(t, m)
		if got := serial(t, m, "live.example.com"); got != "7b" {
			t.Errorf("certificate %s is served after a restart, want the old one", got)
		}
	})
}

// TestMovingFromRSCByUnmarshal does the same for a program that keeps the
// state by itself.
func TestMovingFromRSCByUnmarshal(t *testing.T) {
	chain, key := pemPair(t, "live.example.com", time.Hour)
	var m letsencrypt.Manager
	defer shutdown(t, &m)
	if err := m.Unmarshal(rscState(t, "admin@example.com", nil, map[string][2]string{"live.example.com": {chain, key}})); err != nil {
		t.Fatal(err)
	}
	got := records(t, m.Marshal())
	maps.DeleteFunc(got, func(_ string, r journal.Record) bool { return r.Kind() == "chain" })
	if want := []string{"cert live.example.com", "register -"}; !slices.Equal(keys(got), want) {
		t.Errorf("%q is kept, want %q", keys(got), want)
	}
}

// rscState returns a state as rsc.io/letsencrypt writes it, with a chain and
// a key for each host.
func rscState(t *testing.T, email string, hosts []string, certs map[string][2]string) string {
	t.Helper()
	type cert struct{ Cert, Key string }
	type reg struct {
		Body map[string]any `json:"body"`
		URI  string         `json:"uri"`
	}
	state := struct {
		Email string
		Reg   reg
		Key   string
		Hosts []string
		Certs map[string]cert
	}{
		Email: email,
		Reg:   reg{map[string]any{"contact": []string{"mailto:" + email}}, "https://acme-v01.api.letsencrypt.org/acme/reg/1"},
		Hosts: hosts,
		Certs: make(map[string]cert),
	}
	_, state.Key = pemPair(t, "account", time.Hour)
	for host, c := range certs {
		state.Certs[host] = cert{c[0], c[1]}
	}
	data, err := json.MarshalIndent(state, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// pemPair returns a certificate with serial number 0x7b that expires after the
// given time, its issuer behind it, and its key, in PEM.
func pemPair(t *testing.T, host string, expires time.Duration) (chain, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x7b),
		DNSNames:     []string{host},
		NotBefore:    now.Add(expires - 90*24*time.Hour),
		NotAfter:     now.Add(expires),
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	block := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}))
	return block + block, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}
