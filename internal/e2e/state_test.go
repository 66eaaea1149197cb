package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/catest"
	"example.com/letsencrypt/internal/journal"
)

// overhear returns what a Manager says from its first use on.
func overhear(t *testing.T, m *letsencrypt.Manager) *told {
	told := &told{t: t}
	m.Logger = slog.New(slog.NewJSONHandler(&told.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	m.OnEvent = told.event
	return told
}

// customer returns a Manager that gets its certificates from a CA in memory,
// which validates them there, and lets it have as many as it wants.
func customer(ca *catest.CA) *letsencrypt.Manager {
	m := &letsencrypt.Manager{
		CAs:    []letsencrypt.CA{{Directory: ca.Directory(), Client: ca.Client()}},
		Logger: slog.New(slog.DiscardHandler),
	}
	config := m.TLSConfig()
	ca.Change(func(c *catest.Config) {
		c.TLS = func(string) *tls.Config { return config }
		c.HTTP = m
	})
	return m
}

// cached returns a customer with a cache file, and fails the test if it can't
// be had.
func cached(t *testing.T, ca *catest.CA, file string) *letsencrypt.Manager {
	t.Helper()
	m := customer(ca)
	if err := m.CacheFile(file); err != nil {
		t.Fatalf("CacheFile: %v", err)
	}
	return m
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, file, data string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// live returns the live records of a state or a file, by key.
func live(state string) (map[string]journal.Record, error) {
	rs, damaged, err := journal.Split(state)
	if err != nil || damaged > 0 {
		return nil, fmt.Errorf("%d lines damaged, %w", damaged, err)
	}
	byKey := make(map[string]journal.Record)
	for _, r := range rs {
		if byKey[r.Key()] = r; r.Deleted() {
			delete(byKey, r.Key())
		}
	}
	return byKey, nil
}

// records is live for a state that must be right.
func records(t *testing.T, state string) map[string]journal.Record {
	t.Helper()
	rs, err := live(state)
	if err != nil {
		t.Fatalf("%v in the state\n%s", err, state)
	}
	return rs
}

// serial returns the serial number of what is served for the host.
func serial(t *testing.T, m *letsencrypt.Manager, host string) string {
	t.Helper()
	cert, err := m.Cert(host)
	if err != nil {
		t.Fatalf("Cert(%q): %v", host, err)
	}
	return cert.Leaf.SerialNumber.Text(16)
}

func TestEmptyCacheFileIsANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		file := filepath.Join(t.TempDir(), "cache")
		write(t, file, "")
		m := cached(t, ca, file)
		want := serial(t, m, "a.example.com")
		shutdown(t, m)
		m = cached(t, ca, file)
		defer shutdown(t, m)
		if got := serial(t, m, "a.example.com"); got != want {
			t.Errorf("after a restart certificate %s is served, want %s", got, want)
		}
	})
}

// TestTornCacheFile cuts a file at every byte: what stands before the cut is
// there again, a certificate whose order is there is not ordered again, and
// the next record finds its place.
func TestTornCacheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		dir := t.TempDir()
		file := filepath.Join(dir, "cache")
		m := cached(t, ca, file)
		m.SetHosts([]string{"a.example.com"})
		want := serial(t, m, "a.example.com")
		shutdown(t, m)

		whole := read(t, file)
		const workers = 16 // the time goes into waiting for the disk
		var running sync.WaitGroup
		for i := range workers {
			running.Go(func() {
				torn := filepath.Join(dir, fmt.Sprintf("torn-%d", i))
				for cut := i; cut < len(whole); cut += workers {
					if err := checkTorn(customer(ca), torn, whole, cut, want); err != nil {
						t.Errorf("cut at %d: %v", cut, err)
						return
					}
				}
			})
		}
		running.Wait()
		if n := len(ca.Orders()); n != 1 {
			t.Errorf("%d orders, want 1", n)
		}
	})
}

// checkTorn checks what a Manager makes of a file that is cut.
func checkTorn(m *letsencrypt.Manager, torn, whole string, cut int, serial string) error {
	if err := os.WriteFile(torn, []byte(whole[:cut]), 0o600); err != nil {
		return err
	}
	defer m.Shutdown(context.Background())
	if err := m.CacheFile(torn); err != nil {
		return err
	}
	want, err := live(intact(whole, cut))
	if err != nil {
		return err
	}
	if got, err := live(m.Marshal()); err != nil || !maps.Equal(got, want) {
		return fmt.Errorf("%q is there, %v, want %q", keys(got), err, keys(want))
	}
	const cert = "cert a.example.com"
	const step = 7 // of the many cuts within a line some will do to go on from
	if want["order a.example.com"]+want[cert] == "" || cut%step > 0 && whole[cut] != '\n' && whole[cut-1] != '\n' {
		return nil
	}
	c, err := m.Cert("a.example.com")
	if err != nil {
		return err
	}
	if got := c.Leaf.SerialNumber.Text(16); got != serial {
		return fmt.Errorf("certificate %s is served, want %s", got, serial)
	}
	if err := m.Shutdown(context.Background()); err != nil {
		return err
	}
	data, err := os.ReadFile(torn)
	if err != nil {
		return err
	}
	if got, err := live(string(data)); err != nil || got[cert] == "" {
		return fmt.Errorf("the file has %q in the end, %v, want the certificate in it", keys(got), err)
	}
	return nil
}

// intact returns what a cut leaves of a state that is not torn. A last line
// that lacks its newline alone is not.
func intact(whole string, cut int) string {
	const header = "letsencrypt 1\n"
	end := cut
	if whole[cut] != '\n' {
		end = strings.LastIndexByte(whole[:cut], '\n') + 1
	}
	return whole[:max(end, len(header))]
}

// TestFinishedOrderThatComesBack has the record of an order in the file again
// that led to the certificate before the present one, as another process may
// put it there that did not learn of its end.
func TestFinishedOrderThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		file := filepath.Join(t.TempDir(), "cache")
		m := cached(t, ca, file)
		serial(t, m, "a.example.com")
		i := strings.Index(read(t, file), "\norder a.example.com ")
		if i < 0 {
			t.Fatal("no order was written")
		}
		order, _, _ := strings.Cut(read(t, file)[i+1:], "\n")
		time.Sleep(24 * time.Hour)
		if err := m.Renew(t.Context(), "a.example.com"); err != nil {
			t.Fatal(err)
		}
		want := serial(t, m, "a.example.com")
		shutdown(t, m)

		write(t, file, read(t, file)+order+"\n")
		m = cached(t, ca, file)
		defer shutdown(t, m)
		if got := serial(t, m, "a.example.com"); got != want {
			t.Errorf("certificate %s is served, want %s", got, want)
		}
		if err := m.Renew(t.Context(), "a.example.com"); err != nil {
			t.Fatal(err)
		}
		if n := len(ca.Orders()); n != 3 {
			t.Errorf("%d orders for three certificates: an old one is taken for a renewal", n)
		}
	})
}

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// TestDamagedCacheFile damages each line in turn.
func TestDamagedCacheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		dir := t.TempDir()
		file := filepath.Join(dir, "cache")
		m := cached(t, ca, file)
		hosts := []string{"a.example.com", "b.example.com"}
		for _, host := range hosts {
			serial(t, m, host)
		}
		shutdown(t, m)

		lines := strings.SplitAfter(strings.TrimSuffix(read(t, file), "\n"), "\n")
		for i := 1; i < len(lines); i++ { // the header apart
			damaged := slices.Clone(lines)
			damaged[i] = damaged[i][:len(damaged[i])/2] + "~" + damaged[i][len(damaged[i])/2+1:]
			bad := filepath.Join(t.TempDir(), "cache")
			write(t, bad, strings.Join(damaged, "")+"\n")
			checkDamaged(t, ca, bad, strings.Join(slices.Delete(damaged, i, i+1), ""))
		}
		if n := len(ca.Issued("")); n != len(hosts) {
			t.Errorf("%d certificates, want %d", n, len(hosts))
		}
	})
}

// checkDamaged checks that a Manager uses what is right in a damaged file,
// says so, and keeps the file aside.
func checkDamaged(t *testing.T, ca *catest.CA, file, rest string) {
	t.Helper()
	was := read(t, file)
	m := customer(ca)
	told := overhear(t, m)
	if err := m.CacheFile(file); err != nil {
		t.Fatalf("CacheFile: %v", err)
	}
	defer shutdown(t, m)
	want := records(t, rest)
	if got := records(t, m.Marshal()); !maps.Equal(got, want) {
		t.Errorf("%q is there, want %q", keys(got), keys(want))
	}
	aside, _ := filepath.Glob(file + ".damaged-*")
	if len(aside) != 1 || read(t, aside[0]) != was {
		t.Errorf("kept aside: %q, want one file as it was", aside)
	}
	if log := told.log.String(); !strings.Contains(log, `"ERROR"`) || !strings.Contains(log, file) {
		t.Errorf("logged %q, want an error that names %s", log, file)
	}
	for key := range want {
		if host, ok := strings.CutPrefix(key, "cert "); ok && chainOf(want[key], want) {
			serial(t, m, host)
		}
	}
}

// chainOf reports whether the chain of a certificate's record is there too.
func chainOf(cert journal.Record, all map[string]journal.Record) bool {
	for _, r := range all {
		if r.Kind() == "chain" && strings.Contains(cert.JSON(), r.Name()) {
			return true
		}
	}
	return false
}

func TestCacheFileOfALaterVersionIsLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache")
	const data = "letsencrypt 2\nsomething quite different\n"
	write(t, file, data)
	var m letsencrypt.Manager
	if err := m.CacheFile(file); !errors.Is(err, journal.ErrVersion) || !strings.Contains(err.Error(), file) {
		t.Errorf("CacheFile = %v, want ErrVersion with the file's name", err)
	}
	if got := read(t, file); got != data {
		t.Errorf("the file is %q now, want %q as it was", got, data)
	}
	if others, _ := filepath.Glob(file + ".damaged*"); len(others) > 0 {
		t.Errorf("a file that was left alone was copied to %q", others)
	}
	shutdown(t, &m)
}

func TestCacheFileRefusesWhatIsNotItsOwn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "notes.txt")
	for _, data := range []string{"buy milk\n", "<html>", `["json"]`, `{"Certs": 1}`, `{"name": "left-pad"}`, "\x00\x01\x02"} {
		write(t, file, data)
		var m letsencrypt.Manager
		if err := m.CacheFile(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("CacheFile of %q = %v, want an error with the file's name", data, err)
		}
		if got := read(t, file); got != data {
			t.Errorf("CacheFile turned %q into %q", data, got)
		}
		shutdown(t, &m)
	}
}

func TestCacheFileThatIsAFolder(t *testing.T) {
	dir := t.TempDir()
	var m letsencrypt.Manager
	if err := m.CacheFile(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("CacheFile of a folder = %v, want an error with its name", err)
	}
	shutdown(t, &m)
}

func TestCacheFileBelowAFile(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "x")
	file := filepath.Join(dir, "file", "sub", "cache")
	var m letsencrypt.Manager
	if err := m.CacheFile(file); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "file")) {
		t.Errorf("CacheFile below a file = %v, want an error with its name", err)
	}
	shutdown(t, &m)
}

func TestCacheFileTwice(t *testing.T) {
	dir := t.TempDir()
	var m letsencrypt.Manager
	defer shutdown(t, &m)
	if err := m.CacheFile(filepath.Join(dir, "1")); err != nil {
		t.Fatal(err)
	}
	m.SetHosts([]string{"a.example.com"})
	if err := m.CacheFile(filepath.Join(dir, "2")); err == nil {
		t.Error("the second call returns no error")
	}
	m.SetHosts([]string{"b.example.com"})
	shutdown(t, &m)
	if !strings.Contains(read(t, filepath.Join(dir, "1")), "b.example.com") {
		t.Error("after a second call the first file is not written any more")
	}
	if _, err := os.Stat(filepath.Join(dir, "2")); err == nil {
		t.Error("the second file was made")
	}
}

// TestCacheFileAfterAFailedOne asks again after a failure, as a program
// does that has a second place in reserve.
func TestCacheFileAfterAFailedOne(t *testing.T) {
	dir := t.TempDir()
	var m letsencrypt.Manager
	m.SetHosts([]string{"a.example.com"})
	if err := m.CacheFile(dir); err == nil {
		t.Fatal("CacheFile of a folder returns no error")
	}
	file := filepath.Join(dir, "cache")
	if err := m.CacheFile(file); err != nil {
		t.Fatalf("CacheFile: %v", err)
	}
	shutdown(t, &m)
	if !strings.Contains(read(t, file), "a.example.com") {
		t.Error("what was set before is not in the file")
	}
}

func TestSetHostsWinsOverTheFile(t *testing.T) {
	dir := t.TempDir()
	var other letsencrypt.Manager
	other.SetHosts([]string{"old.example.com"})
	blob := other.Marshal()
	shutdown(t, &other)

	for _, tt := range []struct {
		name       string
		set, after []string // before and after CacheFile; nil: not called
		want       string
	}{
		{"file alone", nil, nil, "old.example.com"},
		{"before", []string{"new.example.com"}, nil, "new.example.com"},
		{"after", nil, []string{"new.example.com"}, "new.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(dir, tt.name)
			write(t, file, blob)
			var m letsencrypt.Manager
			if tt.set != nil {
				m.SetHosts(tt.set)
			}
			if err := m.CacheFile(file); err != nil {
				t.Fatal(err)
			}
			if tt.after != nil {
				m.SetHosts(tt.after)
			}
			shutdown(t, &m)
			if s := read(t, file); records(t, s)["hosts -"].JSON() != `["`+tt.want+`"]` {
				t.Errorf("the file lists %s, want %s", records(t, s)["hosts -"].JSON(), tt.want)
			}
		})
	}
}

// TestWatchSavesEveryState saves as the documentation of Watch has it.
func TestWatchSavesEveryState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := customer(catest.New(t))
		m.SetHosts([]string{"a.example.com"})
		var saves []string
		stop := false
		go func() {
			for range m.Watch() {
				if stop {
					return
				}
				saves = append(saves, m.Marshal())
			}
		}()
		saved := func(step string, n int) {
			t.Helper()
			time.Sleep(2 * time.Second) // Watch may be told a second late
			synctest.Wait()
			if len(saves) < n || n == 1 && len(saves) > 1 || saves[len(saves)-1] != m.Marshal() {
				t.Errorf("%s: %d saves, want %d and the last state among them", step, len(saves), n)
			}
		}
		saved("set-up", 1)
		serial(t, m, "a.example.com")
		saved("a certificate", 2)
		n := len(saves)
		m.SetHosts([]string{"a.example.com", "b.example.com"})
		saved("a list", n+1)
		n = len(saves)
		m.SetHosts([]string{"a.example.com", "b.example.com"})
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(saves) != n {
			t.Errorf("%d saves while nothing changes, want none", len(saves)-n)
		}
		stop = true
		m.SetHosts(nil)
		shutdown(t, m)
	})
}

// TestWatchNeverMissesTheLastState has changes come faster than Watch tells of
// them, and a reader that is always left with the latest state in the end.
func TestWatchNeverMissesTheLastState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := customer(catest.New(t))
		serial(t, m, "a.example.com") // so that it is at work, and puts things off
		saved := ""
		read := func() {
			select {
			case <-m.Watch():
				saved = m.Marshal()
			default:
			}
		}
		for i := range 50 {
			for range i%5 + 1 {
				m.SetHosts([]string{fmt.Sprintf("host-%d.example.com", mathrand.N(1000))})
				if i%2 == 0 {
					read()
				}
			}
			time.Sleep(2 * time.Second)
			if read(); saved != m.Marshal() {
				t.Fatalf("round %d: the last state was not told", i)
			}
		}
		shutdown(t, m)
	})
}

// TestCacheFileTakesNothingFromWatch keeps a file and watches: both get
// everything.
func TestCacheFileTakesNothingFromWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		file := filepath.Join(t.TempDir(), "cache")
		m := cached(t, ca, file)
		if first, second := m.Watch(), m.Watch(); first != second {
			t.Error("two calls return two channels")
		}
		<-m.Watch()
		for i := range 20 {
			serial(t, m, fmt.Sprintf("host-%d.example.com", i))
			synctest.Wait()
			select {
			case <-m.Watch():
			default:
				t.Fatalf("Watch is not told of certificate %d", i)
			}
			if got := records(t, read(t, file)); !maps.Equal(certificates(got), certificates(records(t, m.Marshal()))) {
				t.Fatalf("the file holds %q, certificate %d is missing", keys(got), i)
			}
		}
		shutdown(t, m)
	})
}

// certificates returns the records that certificates are made of.
func certificates(rs map[string]journal.Record) map[string]journal.Record {
	rs = maps.Clone(rs)
	maps.DeleteFunc(rs, func(_ string, r journal.Record) bool { return r.Kind() != "cert" && r.Kind() != "chain" })
	return rs
}

// has reports whether a state has a live record of a kind and name.
func has(t *testing.T, state, key string) bool {
	t.Helper()
	_, ok := records(t, state)[key]
	return ok
}

func TestHostThatLeavesTheListIsForgotten(t *testing.T) {
	var m letsencrypt.Manager
	defer shutdown(t, &m)
	m.SetHosts([]string{"old.example.com", "both.example.com"})
	m.SetHosts([]string{"new.example.com", "both.example.com"})
	s := m.Status()
	if len(s) != 2 || s[0].Host != "both.example.com" || s[1].Host != "new.example.com" {
		t.Errorf("Status() = %v, want the two hosts of the list", s)
	}
}
