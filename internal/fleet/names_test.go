package fleet

import (
	"os"
	"testing"

	"example.com/letsencrypt/internal/pebble"
)

// startNames starts a name server that ends with the test, and returns its
// address. In a process of its own it answers also while this one is busy with
// hundreds of handshakes: Pebble waits for two seconds.
func startNames(t *testing.T) string {
	t.Helper()
	var addr string
	p, err := startProcess(t.Context(), "names", nil, &addr, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return addr
}

// beNames is a name server for Pebble.
func beNames([]byte) error {
	dns, err := pebble.ListenDNS("127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := ready(dns.Addr()); err != nil {
		return err
	}
	select {}
}
