package e2e

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/letsencrypt"
	"example.com/letsencrypt/internal/certs"
	"example.com/letsencrypt/internal/pebble"
	"golang.org/x/crypto/acme"
)

// revoked ends the test unless the CA has, or has not, revoked a certificate
// for the reason.
func (r *rig) revoked(leaf *x509.Certificate, want bool, reason acme.CRLReasonCode) {
	r.t.Helper()
	s, err := r.CertStatus(r.t.Context(), leaf.SerialNumber)
	if err != nil {
		r.t.Fatal(err)
	}
	if s.Revoked != want || s.Reason != int(reason) {
		r.t.Errorf("certificate %x: revoked %v for reason %d, want %v for %d", leaf.SerialNumber, s.Revoked, s.Reason, want, reason)
	}
}

// steps returns which of the endpoints were asked after the first n requests,
// each time that one was.
func (r *rig) steps(n int, of ...pebble.Endpoint) []pebble.Endpoint {
	var all []pebble.Endpoint
	for _, q := range r.proxy.Requests()[n:] {
		if slices.Contains(of, q.Endpoint) {
			all = append(all, q.Endpoint)
		}
	}
	return all
}

// keyIn returns the places that a private key is in: the state, and the cache
// file or others in its folder.
func keyIn(t *testing.T, m *letsencrypt.Manager, cache string, key []byte) []string {
	t.Helper()
	var places []string
	tail := key[len(key)-48:] // the end of the public half: nothing that all keys have
	has := func(text string) bool {
		for i := range 3 { // base64 depends on where in a group the bytes are
			part := base64.StdEncoding.EncodeToString(append(make([]byte, i), tail...))
			if strings.Contains(text, part[4:len(part)-4]) {
				return true
			}
		}
		return false
	}
	if has(m.Marshal()) {
		places = append(places, "Marshal")
	}
	files, err := os.ReadDir(filepath.Dir(cache))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if has(read(t, filepath.Join(filepath.Dir(cache), f.Name()))) {
			places = append(places, f.Name())
		}
	}
	return places
}

// privateKey returns the key of a host's certificate, PKCS #8.
func privateKey(t *testing.T, m *letsencrypt.Manager, host string) []byte {
	t.Helper()
	cert, err := m.Cert(host)
	if err != nil {
		t.Fatal(err)
	}
	der, err := certs.MarshalKey(cert.PrivateKey)
	return must(t, der, err)
}

// sameKey reports whether two certificates have one key.
func sameKey(a, b *x509.Certificate) bool {
	return a.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(b.PublicKey)
}

// The new certificate is there, and has a key of its own, before the old one is
// revoked.
func TestRevokeReplacesFirst(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r := newRig(t, pebble.Config{})
	m, told := r.manager()
	cache := cacheFile(t, m)
	m.SetHosts([]string{host})
	r.serve(m)
	for _, reason := range []acme.CRLReasonCode{acme.CRLReasonSuperseded, acme.CRLReasonKeyCompromise} {
		if err := m.Manage(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		old, key, before := r.served(host), privateKey(t, m, host), len(r.proxy.Requests())
		if places := keyIn(t, m, cache, key); !slices.Equal(places, []string{"Marshal", filepath.Base(cache)}) {
			t.Fatalf("the key is in %q, want state and file", places)
		}
		told.forget()
		if err := m.Revoke(t.Context(), host, reason); err != nil {
			t.Fatal(err)
		}
		steps := r.steps(before, pebble.NewOrder, pebble.Finalize, pebble.Certificate, pebble.RevokeCert)
		if want := []pebble.Endpoint{pebble.NewOrder, pebble.Finalize, pebble.Certificate, pebble.RevokeCert}; !slices.Equal(steps, want) {
			t.Errorf("for reason %d the CA was asked for %v, want %v", reason, steps, want)
		}
		leaf := r.served(host)
		if leaf.Equal(old) || sameKey(leaf, old) {
			t.Errorf("served after Revoke: serial %x, same key %v; want another certificate with another key", leaf.SerialNumber, sameKey(leaf, old))
		}
		r.revoked(old, true, reason)
		r.revoked(leaf, false, 0)
		if places := keyIn(t, m, cache, key); reason == acme.CRLReasonKeyCompromise && len(places) > 0 {
			t.Errorf("the compromised key is still in %q", places)
		}
		eventually(t, "two events", func() bool {
			return len(told.of(letsencrypt.EventRenewed, host)) == 1 && len(told.of(letsencrypt.EventRevoked, host)) == 1
		})
		if e := told.of(letsencrypt.EventRevoked, host)[0]; e.CA != r.proxy.Directory() || e.Err == nil || !e.NotAfter.Equal(old.NotAfter) {
			t.Errorf("Event %+v, want the CA, a cause and when the revoked certificate would have expired", e)
		}
	}
}

// forget forgets the events so far.
func (t *told) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = nil
}

// noNewOrders is a CA that refuses orders alone.
func noNewOrders(_ *http.Request, e pebble.Endpoint, _ int) pebble.Reply {
	if e == pebble.NewOrder {
		return pebble.Problem(http.StatusForbidden, "rejectedIdentifier", "we do not serve you any more", "")
	}
	return nil
}

// With any reason but one, nothing is revoked if there is no new certificate.
func TestRevokeWithoutReplacement(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r := newRig(t, pebble.Config{})
	m, told := r.manager()
	cacheFile(t, m)
	m.SetHosts([]string{host})
	r.serve(m)
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	old := r.served(host)
	r.proxy.SetFault(noNewOrders)
	err := m.Revoke(t.Context(), host, acme.CRLReasonSuperseded)
	r.failed(m, told, err, host, "we do not serve you any more")
	r.revoked(old, false, 0)
	if n := r.proxy.Count(pebble.RevokeCert); n != 0 {
		t.Errorf("%d requests to revoke, want none", n)
	}
	if leaf := r.served(host); !leaf.Equal(old) {
		t.Errorf("served serial %x, want the old %x", leaf.SerialNumber, old.SerialNumber)
	}
}

// A compromised key is revoked and erased though there is no certificate to
// take its place, nor does it come back with the next process.
func TestCompromisedKeyIsErasedWhateverFails(t *testing.T) {
	t.Parallel()
	const host = "a.example.com"
	r := newRig(t, pebble.Config{})
	m, _ := r.manager()
	cache := cacheFile(t, m)
	m.SetHosts([]string{host})
	r.serve(m)
	if err := m.Manage(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	old, key := r.served(host), privateKey(t, m, host)
	r.proxy.SetFault(noNewOrders)
	err := m.Revoke(t.Context(), host, acme.CRLReasonKeyCompromise)
	r.explains("the error", err, host, []string{"we do not serve you any more"})
	r.revoked(old, true, acme.CRLReasonKeyCompromise)
	if places := keyIn(t, m, cache, key); len(places) > 0 {
		t.Errorf("the compromised key is in %q", places)
	}
	if s := m.Status(host)[0]; s.Serial != "" || !s.NotAfter.IsZero() {
		t.Errorf("Status = %+v, want no certificate", s)
	}
	if leaf, err := r.visit(host); err == nil {
		t.Errorf("serial %x is served with a key that is compromised", leaf.SerialNumber)
	}
	shutdown(t, m)

	m, _ = r.manager()
	if err := m.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	r.serve(m)
	if places := keyIn(t, m, cache, key); len(places) > 0 {
		t.Errorf("after a restart the compromised key is in %q", places)
	}
	if leaf, err := r.visit(host); err == nil {
		t.Errorf("after a restart serial %x is served", leaf.SerialNumber)
	}
	r.proxy.SetFault(nil)
	if err := m.Renew(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if leaf := r.served(host); leaf.Equal(old) || sameKey(leaf, old) {
		t.Error("served after all: the compromised key, want another")
	}
}

// A host that is given up is revoked and gone, in the next process too.
func TestCessationOrdersNothing(t *testing.T) {
	t.Parallel()
	const gone, stays = "a.example.com", "b.example.com"
	r := newRig(t, pebble.Config{})
	m, told := r.manager()
	cache := cacheFile(t, m)
	m.SetHosts([]string{gone, stays})
	r.serve(m)
	if err := m.Manage(t.Context(), gone, stays); err != nil {
		t.Fatal(err)
	}
	old := r.served(gone)
	m.SetHosts([]string{stays})
	if err := m.Revoke(t.Context(), gone, acme.CRLReasonCessationOfOperation); err != nil {
		t.Fatal(err)
	}
	r.revoked(old, true, acme.CRLReasonCessationOfOperation)
	eventually(t, "an event", func() bool { return len(told.of(letsencrypt.EventRevoked, gone)) == 1 })
	isGone := func() {
		t.Helper()
		if leaf, err := r.visit(gone); err == nil {
			t.Errorf("serial %x is served for a host that was given up", leaf.SerialNumber)
		}
		r.served(stays)
		if n := r.Orders(); n != 2 {
			t.Errorf("%d orders, want the two from before", n)
		}
	}
	isGone()
	shutdown(t, m)

	m, _ = r.manager()
	if err := m.CacheFile(cache); err != nil {
		t.Fatal(err)
	}
	r.serve(m)
	isGone()
}

// What a CA calls back, or revokes without being asked to by the Manager, is
// replaced when its renewal information tells of it.
func TestRecalled(t *testing.T) {
	t.Parallel()
	const page = "https://example.com/incident"
	for name, recall := range map[string]func(r *rig, leaf *x509.Certificate, key []byte){
		"the window is past": func(r *rig, leaf *x509.Certificate, _ []byte) {
			now := time.Now().UTC()
			info := fmt.Sprintf(`{"suggestedWindow": {"start": %q, "end": %q}, "explanationURL": %q}`,
				now.Add(-time.Hour).Format(time.RFC3339), now.Add(-time.Minute).Format(time.RFC3339), page)
			if err := r.SetRenewalInfo(r.t.Context(), leaf, info); err != nil {
				r.t.Fatal(err)
			}
		},
		"revoked by who found the key": func(r *rig, leaf *x509.Certificate, key []byte) {
			signer, err := x509.ParsePKCS8PrivateKey(key)
			client := &acme.Client{DirectoryURL: r.Directory(), HTTPClient: r.Client()}
			err = client.RevokeCert(r.t.Context(), must(r.t, signer, err).(crypto.Signer), leaf.Raw, acme.CRLReasonKeyCompromise)
			if err != nil {
				r.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const host = "a.example.com"
			r := newRig(t, pebble.Config{})
			m, _ := r.server()
			m.SetHosts([]string{host})
			if err := m.Manage(t.Context(), host); err != nil {
				t.Fatal(err)
			}
			old, key := r.served(host), privateKey(t, m, host)
			shutdown(t, m)
			recall(r, old, key)

			orders := eavesdrop[newOrder](r, pebble.NewOrder)
			state := m.Marshal()
			m, told := r.server()
			if err := m.Unmarshal(state); err != nil { // read before it begins, the CA would be asked hours later
				t.Fatal(err)
			}
			eventually(t, "a renewal", func() bool { return len(told.of(letsencrypt.EventRenewed, host)) > 0 })
			leaf := r.served(host)
			if leaf.Equal(old) || sameKey(leaf, old) {
				t.Error("the certificate was not replaced by one with another key")
			}
			id, err := certs.ID(old)
			if sent := orders(); len(sent) != 1 || sent[0].Replaces != must(t, id, err) {
				t.Errorf("orders %+v, want one that replaces %s", sent, id)
			}
			events := told.of(letsencrypt.EventRecalled, host)
			if len(events) != 1 || events[0].CA != r.proxy.Directory() || events[0].Err == nil || !events[0].NotAfter.Equal(old.NotAfter) {
				t.Fatalf("events %+v, want one that the CA recalled the old certificate", events)
			}
			if said := events[0].Err.Error(); name == "the window is past" && !strings.Contains(said, page) {
				t.Errorf("Event.Err = %s, want the CA's explanation, %s", said, page)
			}
		})
	}
}
