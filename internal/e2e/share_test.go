package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/journal"
	"example.com/letsencrypt/internal/pebble"
)

// TestTwoProcessesOnOneFile has two processes, each with a CA of its own,
// obtain certificates and keep them in one file, while a third rewrites that
// file all the time. Nothing of anybody's is lost.
func TestTwoProcessesOnOneFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "cache")
	const each = 8
	var rigs []*rig
	var lists [][]string
	var all []string
	for i := range 2 {
		var list []string
		for j := range each {
			list = append(list, fmt.Sprintf("h%d.p%d.example.com", j, i))
		}
		rigs, lists, all = append(rigs, newRig(t, pebble.Config{})), append(lists, list), append(all, list...)
	}

	var children []*child
	churn := startChurn(t, file)
	for i, r := range rigs {
		children = append(children, startChild(t, "serve", r.serveArgs(file, lists[i]...)))
	}
	obtained := func() bool {
		rs, err := live(read(t, file))
		return err == nil && !slices.ContainsFunc(all, func(host string) bool { return rs["cert "+host] == "" })
	}
	eventually(t, "all certificates in the file", obtained)
	rewritten, last := churn()
	for _, c := range children {
		c.kill()
	}
	if rewritten < 3 {
		t.Errorf("the file was rewritten %d times meanwhile, too few to prove anything", rewritten)
	}
	if got := records(t, read(t, file))[last.Key()]; got != last {
		t.Errorf("the third process's last record is %.40q, want %.40q", got, last)
	}
	if !obtained() {
		t.Error("not all certificates are in the file in the end")
	}

	for i, r := range rigs {
		m, told := r.manager()
		if err := m.CacheFile(file); err != nil {
			t.Fatal(err)
		}
		m.SetHosts(lists[i])
		r.serve(m)
		for _, host := range lists[i] {
			r.served(host)
		}
		shutdown(t, m)
		for _, host := range lists[i] {
			if es := told.of(letsencrypt.EventRenewed, host); len(es) > 0 {
				t.Errorf("the finished order for %s was taken up again", host)
			}
		}
		if orders, issued, accounts := r.Orders(), len(r.Issued()), r.Accounts(); orders != each || issued != each || accounts != 1 {
			t.Errorf("CA %d: %d orders, %d certificates, %d accounts, want %d, %d and 1", i, orders, issued, accounts, each, each)
		}
	}
}

// startChurn replaces a record of the file and rewrites it, again and again,
// until the function that it returns is called: how often it was done, and
// which record was the last.
func startChurn(t *testing.T, file string) (stop func() (int, journal.Record)) {
	t.Helper()
	var l journal.Log
	if err := l.Open(file, journal.Options{Warn: func(err error) { t.Errorf("churn: %v", err) }}); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	stopping := make(chan struct{})
	n, last := 0, journal.Record("")
	running.Go(func() {
		for {
			select {
			case <-stopping:
				return
			default:
			}
			last = journal.Format("churn", "x", nil, fmt.Appendf(nil, `"%d %s"`, n, strings.Repeat("x", 20_000)))
			if err := l.Sync(l.Put(last)); err != nil {
				t.Errorf("churn: %v", err)
				return
			}
			if err := l.Compact(); err != nil {
				t.Errorf("churn: %v", err)
				return
			}
			n++
		}
	})
	return sync.OnceValues(func() (int, journal.Record) {
		close(stopping)
		running.Wait()
		if err := l.Close(); err != nil {
			t.Errorf("churn: %v", err)
		}
		return n, last
	})
}
