package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A call is what a client is to do: to get a page that says hello, from a
// server whose certificate verifies for the host.
type call struct {
	addr  string // where to connect to
	host  string // a name, or an address: that is not sent
	rsa12 bool   // offer nothing but TLS 1.2 with an RSA certificate, as old clients do
	cert  *tls.Certificate
	roots []byte // PEM
}

// clients are the programs that make calls: ours, and those of the machine. The
// latter are other implementations of TLS, which the CI has; without them the
// tests are the same but for whom they are seen by.
var clients = sync.OnceValue(func() map[string]func(context.Context, call) error {
	all := map[string]func(context.Context, call) error{"Go": callGo}
	if out, err := exec.Command("openssl", "version").Output(); err == nil && strings.HasPrefix(string(out), "OpenSSL ") {
		all["openssl"] = callOpenSSL // LibreSSL's is another
	}
	if _, err := exec.LookPath("curl"); err == nil {
		all["curl"] = callCurl
	}
	return all
})

// answered ends the test unless all clients get their page.
func answered(t *testing.T, c call) {
	t.Helper()
	for name, do := range clients() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := do(ctx, c); err != nil {
			t.Errorf("%s, for %s at %s: %v", name, c.host, c.addr, err)
		}
		cancel()
	}
}

// refused ends the test unless no client gets its page.
func refused(t *testing.T, c call) {
	t.Helper()
	for name, do := range clients() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := do(ctx, c); err == nil || ctx.Err() != nil {
			t.Errorf("%s, for %s at %s: %v, want it refused", name, c.host, c.addr, err)
		}
		cancel()
	}
}

// call returns a call for a host at the rig's TLS port.
func (r *rig) call(host string) call {
	r.t.Helper()
	roots, err := r.RootPEM(r.t.Context())
	return call{addr: r.tlsAddr(), host: host, roots: must(r.t, roots, err)}
}

// url returns the URL of a call's page. Its port is the one to connect to.
func (c call) url() string {
	_, port, _ := net.SplitHostPort(c.addr)
	return "https://" + net.JoinHostPort(c.host, port) + "/"
}

func isAddr(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

func saysHello(page []byte) error {
	if !strings.HasSuffix(string(page), "hello\n") {
		return fmt.Errorf("no hello: %q", page)
	}
	return nil
}

func callGo(ctx context.Context, c call) error {
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(c.roots)
	if c.rsa12 {
		config.MaxVersion = tls.VersionTLS12
		config.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	}
	if c.cert != nil {
		config.Certificates = []tls.Certificate{*c.cert}
	}
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, c.addr)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, TLSClientConfig: config, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url(), nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	page, err := io.ReadAll(res.Body)
	return errors.Join(err, saysHello(page))
}

func callOpenSSL(ctx context.Context, c call) error {
	args := []string{"s_client", "-connect", c.addr, "-verify_return_error", "-brief", "-ign_eof"}
	if isAddr(c.host) {
		args = append(args, "-noservername", "-verify_ip", c.host)
	} else {
		args = append(args, "-servername", c.host, "-verify_hostname", c.host)
	}
	if c.rsa12 {
		args = append(args, "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256")
	}
	return c.run(ctx, "openssl", "-CAfile", args)
}

func callCurl(ctx context.Context, c call) error {
	args := []string{"--silent", "--show-error", "--noproxy", "*", "--connect-to", "::" + c.addr, c.url()}
	if c.rsa12 {
		args = append(args, "--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES128-GCM-SHA256")
	}
	return c.run(ctx, "curl", "--cacert", args)
}

// run runs a client with the roots and the client's certificate in files. Both
// programs call the latter's the same.
func (c call) run(ctx context.Context, program, rootsFlag string, args []string) error {
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	roots, mine := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "client.pem")
	if err := os.WriteFile(roots, c.roots, 0o600); err != nil {
		return err
	}
	args = append(args, rootsFlag, roots)
	if c.cert != nil {
		key, err := x509.MarshalPKCS8PrivateKey(c.cert.PrivateKey)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Certificate[0]})
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
		if err := os.WriteFile(mine, text, 0o600); err != nil {
			return err
		}
		flag := map[string]string{"openssl": "-", "curl": "--"}[program]
		args = append(args, flag+"cert", mine, flag+"key", mine)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n") // for openssl
	var stderr strings.Builder
	cmd.Stderr = &stderr
	page, err := cmd.Output()
	if err == nil {
		err = saysHello(page)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, &stderr)
	}
	return nil
}
