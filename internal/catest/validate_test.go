package catest_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

// attempt answers no challenge by itself: it lets the CA validate one of a new
// order, whose token serve is told, and returns the failed challenge's problem.
func (c *client) attempt(t testing.TB, name, typ string, serve func(z *acme.Authorization, chal *acme.Challenge)) error {
	t.Helper()
	z := c.firstAuthz(t, name)
	for _, chal := range z.Challenges {
		if chal.Type != typ {
			continue
		}
		serve(z, chal)
		if _, err := c.Accept(t.Context(), chal); err != nil {
			t.Fatal(err)
		}
		got, err := c.GetChallenge(t.Context(), chal.URI)
		if err != nil {
			t.Fatal(err)
		}
		if got.Status == "valid" {
			return nil
		}
		return got.Error
	}
	t.Fatalf("%s is not offered for %s", typ, name)
	return nil
}

// answerExtension returns the acmeIdentifier extension for a challenge.
func (c *client) answerExtension(t testing.TB, token string) pkix.Extension {
	t.Helper()
	keyAuth, err := c.HTTP01ChallengeResponse(token)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(keyAuth))
	value, err := asn1.Marshal(sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}, Critical: true, Value: value}
}

// selfSigned returns a certificate made by a template.
func selfSigned(t testing.TB, template *x509.Certificate) *tls.Certificate {
	t.Helper()
	template.SerialNumber = bigInt("1")
	key := newKey(t)
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestValidateTLS(t *testing.T) {
	const name = "example.com"
	tests := []struct {
		what string
		edit func(*x509.Certificate)
		want string
	}{
		{"good", func(*x509.Certificate) {}, ""},
		{"expired", func(c *x509.Certificate) { c.NotAfter = time.Unix(0, 0) }, ""},
		{"other name", func(c *x509.Certificate) { c.DNSNames = []string{"www.example.com"} }, "it is for"},
		{"two names", func(c *x509.Certificate) { c.DNSNames = []string{name, name} }, "it is for"},
		{"no name", func(c *x509.Certificate) { c.DNSNames = nil; c.Subject.CommonName = name }, "it is for"},
		{"address", func(c *x509.Certificate) { c.IPAddresses = []net.IP{{192, 0, 2, 7}} }, "it is for"},
		{"mail", func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.com"} }, "it is for"},
		{"URI", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "x", Host: "y"}} }, "it is for"},
		{"no extension", func(c *x509.Certificate) { c.ExtraExtensions = nil }, "no acmeIdentifier"},
		{"not critical", func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }, "not critical"},
		{"other digest", func(c *x509.Certificate) { c.ExtraExtensions[0].Value[2] ^= 1 }, "not the key authorization"},
		{"no DER", func(c *x509.Certificate) { c.ExtraExtensions[0].Value = c.ExtraExtensions[0].Value[2:] }, "not the key authorization"},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			c := newClient(t, catest.New(t)).register(t)
			err := c.attempt(t, name, "tls-alpn-01", func(z *acme.Authorization, chal *acme.Challenge) {
				template := &x509.Certificate{
					DNSNames:        []string{name},
					NotAfter:        time.Now().Add(day),
					ExtraExtensions: []pkix.Extension{c.answerExtension(t, chal.Token)},
				}
				test.edit(template)
				c.tls[name] = selfSigned(t, template)
			})
			if test.want == "" && err != nil {
				t.Errorf("%s: %v, want it valid", test.what, err)
			}
			if test.want != "" && (!isProblem(err, 403, "unauthorized") || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%s: %v, want unauthorized with %q", test.what, err, test.want)
			}
		})
	}
}

// The address is in the certificate as an address, not as a name.
func TestValidateTLSAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, catest.New(t)).register(t)
		err := c.attempt(t, "192.0.2.7", "tls-alpn-01", func(z *acme.Authorization, chal *acme.Challenge) {
			c.tls[serverName("192.0.2.7")] = selfSigned(t, &x509.Certificate{
				DNSNames:        []string{serverName("192.0.2.7")},
				ExtraExtensions: []pkix.Extension{c.answerExtension(t, chal.Token)},
			})
		})
		if !isProblem(err, 403, "unauthorized") {
			t.Errorf("answer for the PTR name: %v, want unauthorized", err)
		}
	})
}

func TestValidateTLSServers(t *testing.T) {
	plain := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return selfSigned(t, &x509.Certificate{}), nil
	}}
	http2 := plain.Clone()
	http2.NextProtos = []string{"h2"}
	refuses := plain.Clone()
	refuses.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("no") }
	hangs := plain.Clone()
	hangs.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		<-hello.Context().Done()
		return nil, hello.Context().Err()
	}
	demanding := plain.Clone()
	demanding.ClientAuth = tls.RequireAnyClientCert
	demanding.NextProtos = []string{"acme-tls/1"}
	demanding.MaxVersion = tls.VersionTLS12
	tests := []struct {
		what   string
		config *tls.Config
		typ    string
		status int
		takes  time.Duration
	}{
		{"nobody", nil, "connection", 400, 0},
		{"no ALPN", plain, "unauthorized", 403, 0},
		{"other ALPN", http2, "tls", 400, 0},
		{"no certificate", refuses, "tls", 400, 0},
		{"client certificate", demanding, "tls", 400, 0},
		{"silence", hangs, "connection", 400, 10 * time.Second},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			c := newClient(t, ca).register(t)
			ca.Change(func(c *catest.Config) { c.TLS = func(string) *tls.Config { return test.config } })
			start := time.Now()
			err := c.attempt(t, "example.com", "tls-alpn-01", func(*acme.Authorization, *acme.Challenge) {})
			if took := time.Since(start); !isProblem(err, test.status, test.typ) || took != test.takes {
				t.Errorf("%s: %v after %v, want %s after %v", test.what, err, took, test.typ, test.takes)
			}
		})
	}
}

// What a server learns of the CA's connection.
func TestValidateHello(t *testing.T) {
	for name, addr := range map[string]string{"example.com": "192.0.2.1", "192.0.2.7": "192.0.2.7", "2001:db8::1": "2001:db8::1"} {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			ca.Perspectives = 2
			c := newClient(t, ca).register(t)
			var hellos []string
			ca.Change(func(conf *catest.Config) {
				conf.TLS = func(host string) *tls.Config {
					return &tls.Config{NextProtos: []string{"acme-tls/1"}, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
						hellos = append(hellos, fmt.Sprintln(host, hello.ServerName, hello.SupportedProtos, hello.Conn.LocalAddr(), hello.Conn.RemoteAddr()))
						return c.getCertificate(hello)
					}}
				}
			})
			c.mustObtain(t, "tls-alpn-01", name)
			for i := range 2 {
				local, remote := net.JoinHostPort(addr, "443"), fmt.Sprintf("203.0.113.%d:40000", i+1)
				want := fmt.Sprintln(name, serverName(name), []string{"acme-tls/1"}, local, remote)
				if len(hellos) != 2 || hellos[i] != want {
					t.Errorf("hellos are %q, want 2, this one %q", hellos, want)
				}
			}
		})
	}
}

func TestValidateHTTP(t *testing.T) {
	tests := []struct {
		what    string
		handler func(keyAuth string) http.HandlerFunc
		want    string
	}{
		{"good", func(k string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, k) }
		}, ""},
		{"with space", func(k string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, k, " \r\n") }
		}, ""},
		{"other body", func(k string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x", k) }
		}, "did not match"},
		{"no body", func(k string) http.HandlerFunc { return func(http.ResponseWriter, *http.Request) {} }, "did not match"},
		{"not found", func(k string) http.HandlerFunc { return http.NotFound }, "404"},
		{"redirect", func(k string) http.HandlerFunc { return http.RedirectHandler("/x", http.StatusFound).ServeHTTP }, "302"},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			c := newClient(t, ca).register(t)
			err := c.attempt(t, "example.com", "http-01", func(_ *acme.Authorization, chal *acme.Challenge) {
				keyAuth, err := c.HTTP01ChallengeResponse(chal.Token)
				if err != nil {
					t.Fatal(err)
				}
				ca.Change(func(conf *catest.Config) { conf.HTTP = test.handler(keyAuth) })
			})
			if test.want == "" && err != nil {
				t.Errorf("%s: %v, want it valid", test.what, err)
			}
			if test.want != "" && (!isProblem(err, 403, "unauthorized") || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%s: %v, want unauthorized with %q", test.what, err, test.want)
			}
		})
	}
}

// The CA does not wait for ever, not even for a server that ignores the
// connection's end.
func TestValidateHTTPTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		ca.Change(func(conf *catest.Config) {
			conf.HTTP = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) })
		})
		start := time.Now()
		err := c.attempt(t, "example.com", "http-01", func(*acme.Authorization, *acme.Challenge) {})
		if took := time.Since(start); !isProblem(err, 400, "connection") || took != 10*time.Second {
			t.Errorf("silent server: %v after %v, want connection after 10s", err, took)
		}
	})
}

func TestValidateHTTPRequest(t *testing.T) {
	for name, host := range map[string]string{"example.com": "example.com", "2001:db8::1": "[2001:db8::1]"} {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			c := newClient(t, ca).register(t)
			c.attempt(t, name, "http-01", func(_ *acme.Authorization, chal *acme.Challenge) {
				ca.Change(func(conf *catest.Config) {
					conf.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						path := "/.well-known/acme-challenge/" + chal.Token
						if r.Method != "GET" || r.Host != host || r.URL.String() != path || r.RequestURI != path || r.RemoteAddr != "203.0.113.1:40000" || r.TLS != nil {
							t.Errorf("request for %s is %s %s %s %s from %s", name, r.Method, r.Host, r.URL, r.RequestURI, r.RemoteAddr)
						}
						local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
						if !ok || !strings.HasSuffix(local.String(), ":80") {
							t.Errorf("request for %s is to %v, want port 80", name, local)
						}
					})
				})
			})
		})
	}
}

func TestValidateDNS(t *testing.T) {
	tests := []struct {
		what    string
		records func(record string) []string
		want    string
	}{
		{"good", func(r string) []string { return []string{r} }, ""},
		{"among others", func(r string) []string { return []string{"x", r, "y"} }, ""},
		{"other record", func(r string) []string { return []string{r + "x"} }, "incorrect TXT record"},
		{"no record", func(r string) []string { return nil }, "no TXT record"},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			c := newClient(t, catest.New(t)).register(t)
			err := c.attempt(t, "*.example.com", "dns-01", func(_ *acme.Authorization, chal *acme.Challenge) {
				record, err := c.DNS01ChallengeRecord(chal.Token)
				if err != nil {
					t.Fatal(err)
				}
				c.txt["_acme-challenge.example.com"] = test.records(record)
			})
			if test.want == "" && err != nil {
				t.Errorf("%s: %v, want it valid", test.what, err)
			}
			if test.want != "" && (!isProblem(err, 403, "unauthorized") || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%s: %v, want unauthorized with %q", test.what, err, test.want)
			}
		})
	}
}

func TestValidatePersist(t *testing.T) {
	const account = "https://ca.test/account/1"
	tests := []struct {
		name   string
		record string
		want   string
	}{
		{"example.com", "authority.test; accounturi=" + account, ""},
		{"example.com", "authority.test;accounturi = " + account + " ; policy=wildcard;persistUntil=946684801", ""},
		{"example.com", "authority.test; ACCOUNTURI=" + account + "; unknown=1", ""},
		{"*.example.com", "authority.test; accounturi=" + account + "; policy=WildCard", ""},
		{"*.example.com", "authority.test; accounturi=" + account, "policy"},
		{"*.example.com", "authority.test; accounturi=" + account + "; policy=other", "policy"},
		{"example.com", "other.test; accounturi=" + account, "no TXT record for"},
		{"example.com", "authority.test", "bad parameter"},
		{"example.com", "authority.test; accounturi=https://ca.test/account/2", "accounturi"},
		{"example.com", "authority.test; policy=wildcard", "accounturi"},
		{"example.com", "authority.test; accounturi=" + account + "; accounturi=" + account, "bad parameter"},
		{"example.com", "authority.test; accounturi=" + account + ";", "bad parameter"},
		{"example.com", "authority.test; accounturi=" + account + "; persistUntil=946684799", "persistUntil"},
		{"example.com", "authority.test; accounturi=" + account + "; persistUntil=soon", "persistUntil"},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			ca.Challenges = []string{"dns-persist-01"}
			ca.Issuers = []string{"authority.test", "authority.example"}
			c := newClient(t, ca).register(t)
			err := c.attempt(t, test.name, "dns-persist-01", func(z *acme.Authorization, chal *acme.Challenge) {
				doc := c.document(t, chal.URI)
				if fmt.Sprint(doc["issuer-domain-names"]) != "[authority.test authority.example]" || doc["accounturi"] != account {
					t.Errorf("challenge is %v", doc)
				}
				c.txt["_validation-persist.example.com"] = []string{"unrelated", test.record}
			})
			if test.want == "" && err != nil {
				t.Errorf("%s with %s: %v, want it valid", test.name, test.record, err)
			}
			if test.want != "" && (!isProblem(err, 403, "unauthorized") || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%s with %s: %v, want unauthorized with %q", test.name, test.record, err, test.want)
			}
		})
	}
}
