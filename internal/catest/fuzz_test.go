package catest_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"example.com/letsencrypt/internal/catest"
)

// Whatever a client sends has an answer, and what is no good a problem document.
func FuzzBody(f *testing.F) {
	f.Add("new-account", `{"protected":"e30","payload":"","signature":""}`)
	f.Add("new-order", `{"protected":"eyJhbGciOiJFUzI1NiIsImp3ayI6e30sIm5vbmNlIjoiIiwidXJsIjoiIn0","payload":"e30","signature":"AA"}`)
	f.Add("order/1", "{")
	f.Fuzz(func(t *testing.T, path, body string) {
		ca := catest.New(&recorder{TB: t})
		req, err := http.NewRequest("POST", ca.Directory(), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path = "/" + path
		req.Header.Set("Content-Type", "application/jose+json")
		req.Header.Set("User-Agent", "test")
		res, err := ca.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode < 400 || res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %q = %d %s, want a problem", path, body, res.StatusCode, res.Header.Get("Content-Type"))
		}
	})
}

// So has whatever a client signs.
func FuzzPayload(f *testing.F) {
	f.Add("new-order", `{"identifiers":[{"type":"dns","value":"*.example.com"}]}`)
	f.Add("finalize/2", `{"csr":"MAA"}`)
	f.Add("authz/3", `{"status":"deactivated"}`)
	f.Add("challenge/4", `{}`)
	f.Add("account/1", `{"contact":["mailto:a@example.com"]}`)
	f.Add("revoke", `{"certificate":"MAA","reason":1}`)
	f.Add("key-change", `{"protected":"e30","payload":"e30","signature":""}`)
	f.Fuzz(func(t *testing.T, path, payload string) {
		if _, err := url.Parse("https://ca.test/" + path); err != nil {
			return
		}
		ca := catest.New(&recorder{TB: t})
		c := newClient(t, ca).register(t)
		c.firstAuthz(t, "example.com")
		newRaw(t, c, "https://ca.test/"+path, payload).send(t, ca.Client())
	})
}

// And so has whatever a client takes for a key, or for an account's binding to another.
func FuzzAccount(f *testing.F) {
	f.Add(`{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`, `{"protected":"e30","payload":"e30","signature":""}`)
	f.Add(`{"kty":"RSA","n":"AA","e":"AQAB"}`, `null`)
	f.Fuzz(func(t *testing.T, key, binding string) {
		if !json.Valid([]byte(key)) || !json.Valid([]byte(binding)) {
			return
		}
		ca := catest.New(&recorder{TB: t})
		ca.EAB = map[string][]byte{"kid-1": []byte("secret")}
		c := newClient(t, ca)
		r := newRaw(t, c, "https://ca.test/new-account", `{"externalAccountBinding":`+binding+`}`)
		delete(r.protected, "kid")
		r.protected["jwk"] = json.RawMessage(key)
		r.send(t, ca.Client())
		r = newRaw(t, c, "https://ca.test/new-account", `{"externalAccountBinding":`+binding+`}`)
		delete(r.protected, "kid")
		r.protected["jwk"] = jwk(t, c.Key)
		r.send(t, ca.Client())
	})
}
