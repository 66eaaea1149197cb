package catest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Validation is the outcome of one challenge.
type Validation struct {
	Time time.Time
	Name string // without *.
	Type string
	Err  *Error // nil: valid
}

// Validations returns the outcomes of all challenges so far.
func (ca *CA) Validations() []Validation {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return slices.Clone(ca.validated)
}

// attemptTimeout is how long a CA waits for one connection or answer.
const attemptTimeout = 10 * time.Second

// An attempt is what the validation of one challenge goes by.
type attempt struct {
	cfg      Config
	typ      string
	name     identifier
	wildcard bool
	token    string
	keyAuth  string
	account  string
}

// validateAtOnce validates a challenge now.
func (ca *CA) validateAtOnce(at attempt) *Error {
	for i := range max(1, at.cfg.Perspectives) {
		if problem := ca.validate(at, i); problem != nil {
			return problem
		}
	}
	return nil
}

// validateSlowly validates a challenge from one perspective after the other,
// as long as the CA takes for it.
func (ca *CA) validateSlowly(at attempt) *Error {
	n := at.cfg.Perspectives
	if n == 0 {
		n = 3
	}
	for i := range n {
		if err := sleep(ca.ctx, at.cfg.ValidationTakes/time.Duration(n)); err != nil {
			return unauthorized("%v", err)
		}
		if problem := ca.validate(at, i); problem != nil {
			return problem
		}
	}
	return nil
}

// validate validates a challenge from one perspective.
func (ca *CA) validate(at attempt, perspective int) *Error {
	ctx, cancel := context.WithTimeout(ca.ctx, attemptTimeout)
	defer cancel()
	switch at.typ {
	case "tls-alpn-01":
		return ca.validateTLS(ctx, at, perspective)
	case "http-01":
		return ca.validateHTTP(ctx, at, perspective)
	case "dns-01":
		return validateDNS(at)
	case "dns-persist-01":
		return validatePersist(at, time.Now())
	}
	return &Error{Status: http.StatusBadRequest, Type: "malformed", Detail: "no such challenge type: " + at.typ}
}

func unauthorized(format string, args ...any) *Error {
	return &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: fmt.Sprintf(format, args...)}
}

func unreachable(typ, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Type: typ, Detail: fmt.Sprintf(format, args...)}
}

// addrs returns the addresses of a connection from a perspective of the CA,
// at a documentation address, to a port of the name.
func (at attempt) addrs(perspective int, port uint16) (from, to net.Addr) {
	addr, err := netip.ParseAddr(at.name.Value)
	if err != nil {
		addr = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	here := netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + perspective)})
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(here, 40000)), net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, port))
}

// A pipeConn is the server's end of a connection from the CA.
type pipeConn struct {
	net.Conn
	local, remote net.Addr
}

func (c pipeConn) LocalAddr() net.Addr  { return c.local }
func (c pipeConn) RemoteAddr() net.Addr { return c.remote }

// validateTLS is RFC 8737 section 3, for addresses with RFC 8738 section 6.
func (ca *CA) validateTLS(ctx context.Context, at attempt, perspective int) *Error {
	name := at.name.Value
	from, to := at.addrs(perspective, 443)
	var config *tls.Config
	if at.cfg.TLS != nil {
		config = at.cfg.TLS(name)
	}
	if config == nil {
		return unreachable("connection", "%v: connection refused", to)
	}
	client, server := net.Pipe()
	// Closing the pipe, not the TLS connection above it, ends both sides at
	// once: a close_notify would wait for a reader.
	defer client.Close()
	ca.running.Go(func() {
		defer server.Close()
		// What the server makes of the connection shows at our side of it.
		_ = tls.Server(pipeConn{server, to, from}, config).HandshakeContext(ctx)
	})
	conn := tls.Client(client, &tls.Config{
		ServerName:         serverName(at.name),
		NextProtos:         []string{"acme-tls/1"},
		CurvePreferences:   []tls.CurveID{tls.X25519, tls.CurveP256}, // the quick ones
		InsecureSkipVerify: true,                                     // what is checked is checkAnswer's
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil { // err may be the server's, which had the same deadline
			return unreachable("connection", "%v: timeout during connect", to)
		}
		return unreachable("tls", "%v: %v", to, err)
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != "acme-tls/1" {
		return unauthorized("%v: server did not negotiate acme-tls/1", to)
	}
	if err := checkAnswer(state.PeerCertificates[0], name, at.keyAuth); err != nil {
		return unauthorized("%v: incorrect validation certificate: %v", to, err)
	}
	return nil
}

// serverName returns the name in the ClientHello for an identifier: for an
// address the one that its PTR records have.
func serverName(id identifier) string {
	if id.Type == "dns" {
		return id.Value
	}
	addr := netip.MustParseAddr(id.Value)
	var b strings.Builder
	if addr.Is4() {
		for _, octet := range slices.Backward(addr.AsSlice()) {
			fmt.Fprintf(&b, "%d.", octet)
		}
		return b.String() + "in-addr.arpa"
	}
	for _, digit := range slices.Backward([]byte(hex.EncodeToString(addr.AsSlice()))) {
		fmt.Fprintf(&b, "%c.", digit)
	}
	return b.String() + "ip6.arpa"
}

// acmeIdentifier is id-pe-acmeIdentifier of RFC 8737 section 6.1.
var acmeIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

// checkAnswer checks the certificate of a tls-alpn-01 answer.
func checkAnswer(cert *x509.Certificate, name, keyAuth string) error {
	if !slices.Equal(sans(cert), []string{name}) || len(cert.EmailAddresses)+len(cert.URIs) > 0 {
		return fmt.Errorf("it is for %q, want %q alone", sans(cert), name)
	}
	sum := sha256.Sum256([]byte(keyAuth))
	want, err := asn1.Marshal(sum[:])
	if err != nil {
		return err
	}
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(acmeIdentifier) {
			continue
		}
		if !ext.Critical {
			return errors.New("acmeIdentifier is not critical")
		}
		if string(ext.Value) != string(want) {
			return errors.New("acmeIdentifier is not the key authorization's")
		}
		return nil
	}
	return errors.New("there is no acmeIdentifier in it")
}

// sans returns the names and addresses that a certificate is for.
func sans(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// validateHTTP is RFC 8555 section 8.3. Redirects are not followed.
func (ca *CA) validateHTTP(ctx context.Context, at attempt, perspective int) *Error {
	from, to := at.addrs(perspective, 80)
	if at.cfg.HTTP == nil {
		return unreachable("connection", "%v: connection refused", to)
	}
	host := at.name.Value
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	url := "http://" + host + "/.well-known/acme-challenge/" + at.token
	ctx = context.WithValue(ctx, http.LocalAddrContextKey, to)
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	r.URL.Scheme, r.URL.Host = "", "" // as a server sees it
	r.RequestURI = r.URL.Path
	r.RemoteAddr = from.String()
	r.Header.Set("User-Agent", "catest")
	res, err := ca.serveHTTP(at.cfg.HTTP, r)
	if err != nil {
		return unreachable("connection", "%v: timeout after connect", to)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return unreachable("connection", "%v: %v", to, err)
	}
	if res.StatusCode != http.StatusOK {
		return unauthorized("%v: invalid response from %s: %d", to, url, res.StatusCode)
	}
	if got := strings.TrimRight(string(body), " \t\r\n"); got != at.keyAuth {
		return unauthorized("%v: the key authorization file from the server did not match this challenge: %q", to, got)
	}
	return nil
}

// serveHTTP has a request of the CA handled, for as long as its context lasts.
func (ca *CA) serveHTTP(handler http.Handler, r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	done := make(chan struct{})
	ca.running.Go(func() {
		defer close(done)
		handler.ServeHTTP(w, r)
	})
	select {
	case <-done:
		return w.Result(), nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// lookup returns the TXT records of a name.
func (at attempt) lookup(name string) ([]string, *Error) {
	var records []string
	if at.cfg.TXT != nil {
		records = at.cfg.TXT(name)
	}
	if len(records) == 0 {
		return nil, unauthorized("no TXT record found at %s", name)
	}
	return records, nil
}

// validateDNS is RFC 8555 section 8.4.
func validateDNS(at attempt) *Error {
	name := "_acme-challenge." + at.name.Value
	records, problem := at.lookup(name)
	if problem != nil {
		return problem
	}
	sum := sha256.Sum256([]byte(at.keyAuth))
	if !slices.Contains(records, b64.EncodeToString(sum[:])) {
		return unauthorized("incorrect TXT record %q found at %s", records[0], name)
	}
	return nil
}

// validatePersist is draft-ietf-acme-dns-persist.
func validatePersist(at attempt, now time.Time) *Error {
	name := "_validation-persist." + at.name.Value
	records, problem := at.lookup(name)
	if problem != nil {
		return problem
	}
	problem = unauthorized("no TXT record for %q found at %s", at.cfg.issuers(), name)
	for _, record := range records {
		issuer, params, _ := strings.Cut(record, ";")
		if !slices.Contains(at.cfg.issuers(), strings.TrimSpace(issuer)) {
			continue
		}
		err := at.checkPersist(params, now)
		if err == nil {
			return nil
		}
		problem = unauthorized("TXT record %q at %s: %v", record, name, err)
	}
	return problem
}

// checkPersist checks the parameters of a dns-persist-01 record, which are
// written as in CAA records (RFC 8659 section 4.2).
func (at attempt) checkPersist(params string, now time.Time) error {
	values := make(map[string]string)
	for param := range strings.SplitSeq(params, ";") {
		tag, value, ok := strings.Cut(strings.TrimSpace(param), "=")
		tag = strings.ToLower(strings.TrimSpace(tag))
		if _, twice := values[tag]; !ok || tag == "" || twice {
			return fmt.Errorf("bad parameter %q", param)
		}
		values[tag] = strings.TrimSpace(value)
	}
	if values["accounturi"] != at.account {
		return fmt.Errorf("accounturi is %q, want %q", values["accounturi"], at.account)
	}
	if at.wildcard && !strings.EqualFold(values["policy"], "wildcard") {
		return errors.New("policy is not wildcard")
	}
	if until, ok := values["persistuntil"]; ok {
		unix, err := strconv.ParseInt(until, 10, 64)
		if err != nil || now.After(time.Unix(unix, 0)) {
			return fmt.Errorf("persistUntil %q is past or malformed", until)
		}
	}
	return nil
}
