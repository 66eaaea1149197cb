package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/pebble"
)

func TestSmoke(t *testing.T) {
	p := pebble.New(t, pebble.Config{})
	m := &letsencrypt.Manager{
		CAs:       []letsencrypt.CA{{Directory: p.Directory(), Client: p.Client()}},
		HTTPAddr:  fmt.Sprintf("127.0.0.1:%d", p.HTTPPort()),
		HTTPSAddr: fmt.Sprintf("127.0.0.1:%d", p.TLSPort()),
		OnEvent:   func(e letsencrypt.Event) { t.Logf("%+v", e) },
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") }),
	}
	if err := m.CacheFile(filepath.Join(t.TempDir(), "cache")); err != nil {
		t.Fatal(err)
	}
	go m.Serve()
	defer m.Shutdown(context.Background())
	m.SetHosts([]string{"a.example.com"})
	start := time.Now()
	if err := m.Manage(t.Context(), "a.example.com"); err != nil {
		t.Fatal(err)
	}
	t.Log("took", time.Since(start))
	conn, err := tls.Dial("tcp", m.HTTPSAddr, &tls.Config{ServerName: "a.example.com", RootCAs: must(p.Roots(t.Context()))})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	t.Log(m.Status())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
