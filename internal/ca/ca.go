// Package ca holds one conversation with one ACME CA: its directory, an
// account there, orders and renewal information (RFC 8555, RFC 9773).
//
// The messages are signed and sent by golang.org/x/crypto/acme. What that
// package hides (reply headers, members it does not know) is read off the
// wire by the RoundTripper beneath it, which also keeps the nonces.
package ca

import (
	"cmp"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
)

// Every bound on what a CA may cost us.
const (
	requestTimeout = 30 * time.Second // one request, refused nonces included
	orderTimeout   = 90 * time.Second // an order, from the first request to the certificate
	directoryAge   = 24 * time.Hour   // then the directory is read again
	maxBody        = 1 << 20          // bytes of any one reply
	maxForeignBody = 1 << 10          // bytes kept of an error that is no problem document
	maxNonces      = 100              // unused ones kept
	maxNonceTries  = 30               // refusals of a nonce within one request
	maxSkew        = 24 * time.Hour   // between the CA's clock and ours
)

const userAgent = "example.com/letsencrypt"

// A Client talks to one CA with one account. It is safe for concurrent use.
type Client struct {
	url  string
	key  crypto.Signer
	http *http.Client
	gate *gate

	mu        sync.Mutex // guards the fields below; held for memory only
	kid       string
	nonces    []string // unused, the newest last
	directory *Directory
	read      time.Time     // when directory was
	skew      time.Duration // the CA's clock less ours
}

// New returns a Client for the CA with the given directory URL. The kid is
// the URL of the account that key belongs to, "" while there is none.
// A nil hc means http.DefaultClient; it is copied, not changed.
func New(directory string, hc *http.Client, key crypto.Signer, kid string) *Client {
	c := &Client{url: directory, key: key, kid: kid, gate: new(gate)}
	hc = cmp.Or(hc, http.DefaultClient)
	c.http = &http.Client{
		Transport: &transport{c, cmp.Or[http.RoundTripper](hc.Transport, http.DefaultTransport)},
		Timeout:   hc.Timeout,
	}
	return c
}

// acme returns a Client of x/crypto for one call. They are cheap, and one
// each keeps its locks, which it holds across requests, from being shared.
func (c *Client) acme() *acme.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &acme.Client{
		Key:          c.key,
		KID:          acme.KeyID(c.kid),
		DirectoryURL: c.url,
		HTTPClient:   c.http,
		UserAgent:    userAgent,
		RetryBackoff: retryBackoff,
	}
}

// retryBackoff has a refused nonce retried at once and nothing else at all:
// a Retry-After is for our caller to wait, not for a goroutine to sleep.
// x/crypto asks about a 400 for no other reason than a refused nonce.
func retryBackoff(n int, _ *http.Request, res *http.Response) time.Duration {
	if res.StatusCode == http.StatusBadRequest && n <= maxNonceTries {
		return time.Nanosecond
	}
	return 0
}

// A Directory is what a CA says of itself (RFC 8555, section 7.1.1).
type Directory struct {
	NewNonce    string `json:"newNonce"`
	NewAccount  string `json:"newAccount"`
	NewOrder    string `json:"newOrder"`
	RenewalInfo string `json:"renewalInfo"`
	Meta        struct {
		Terms         string            `json:"termsOfService"`
		CAAIdentities []string          `json:"caaIdentities"`
		EABRequired   bool              `json:"externalAccountRequired"`
		Profiles      map[string]string `json:"profiles"`
	} `json:"meta"`

	raw []byte
}

// Directory returns the CA's directory, read within the last day.
func (c *Client) Directory(ctx context.Context) (*Directory, error) {
	c.mu.Lock()
	d, age := c.directory, time.Since(c.read)
	c.mu.Unlock()
	if d != nil && 0 <= age && age < directoryAge {
		return d, nil
	}
	return c.readDirectory(ctx)
}

func (c *Client) readDirectory(ctx context.Context) (*Directory, error) {
	ex, err := c.get(ctx, c.url)
	if err != nil {
		return nil, failAccount("reading the directory", err)
	}
	d := &Directory{raw: ex.body}
	if err := json.Unmarshal(ex.body, d); err != nil {
		return nil, &Failure{Class: Fault, Step: "reading the directory", Err: fmt.Errorf("%s is no ACME directory: %w", c.url, err)}
	}
	if d.NewOrder == "" || d.NewNonce == "" {
		return nil, &Failure{Class: Fault, Step: "reading the directory", Err: fmt.Errorf("%s is no ACME directory: it lists no newOrder and newNonce", c.url)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.directory, c.read = d, time.Now()
	return d, nil
}

// forget has the directory read again before it is next used.
func (c *Client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.directory = nil
}

// checkProfile returns an error unless the CA lists the profile, which may
// be "" for the CA's choice.
func (c *Client) checkProfile(ctx context.Context, profile string) error {
	d, err := c.Directory(ctx)
	if err != nil || profile == "" {
		return err
	}
	if _, ok := d.Meta.Profiles[profile]; !ok {
		if d, err = c.readDirectory(ctx); err != nil {
			return err
		}
	}
	if _, ok := d.Meta.Profiles[profile]; ok {
		return nil
	}
	have := "lists none"
	if len(d.Meta.Profiles) > 0 {
		have = "lists " + strings.Join(slices.Sorted(maps.Keys(d.Meta.Profiles)), ", ")
	}
	return &Failure{Class: Policy, Step: "choosing the profile", Err: fmt.Errorf("the CA has no profile %q; it %s", profile, have)}
}

// checkClock returns an error if the CA's clock and ours plainly disagree.
// They are compared again first: the wrong one may have been set since.
func (c *Client) checkClock(ctx context.Context) error {
	if c.clockSkew().Abs() <= maxSkew {
		return nil
	}
	if _, err := c.readDirectory(ctx); err != nil {
		return err
	}
	skew := c.clockSkew()
	if skew.Abs() <= maxSkew {
		return nil
	}
	now := time.Now()
	return &Failure{Class: Ours, Step: "comparing clocks", Err: fmt.Errorf("this machine's clock says %s, the CA's %s: one of them is wrong, so nothing is ordered",
		now.UTC().Format(time.RFC3339), now.Add(skew).UTC().Format(time.RFC3339))}
}

func (c *Client) clockSkew() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skew
}

// Register makes an account for the Client's key and returns its URL. The
// caller has the subscriber's agreement to the terms of service. When the key
// may have an account already, known is true, and one that exists is found
// without another use of the external account binding, which many CAs accept
// only once.
func (c *Client) Register(ctx context.Context, contact []string, eab *acme.ExternalAccountBinding, known bool) (kid string, err error) {
	d, err := c.Directory(ctx)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if known {
		if kid, err = c.lookup(ctx); !errors.Is(err, acme.ErrNoAccount) {
			return kid, err
		}
	}
	if d.Meta.EABRequired && eab == nil {
		return "", &Failure{Class: Refused, Step: "making the account", Err: errors.New("the CA makes accounts for its customers only: set CA.EAB to the key ID and MAC key it gave you")}
	}
	if eab != nil && (eab.KID == "" || len(eab.Key) == 0) {
		return "", &Failure{Class: Refused, Step: "making the account", Err: errors.New("CA.EAB lacks the key ID or the MAC key")}
	}
	a := c.acme()
	_, err = a.Register(ctx, &acme.Account{Contact: contact, ExternalAccountBinding: eab}, acme.AcceptTOS)
	if err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		f := failAccount("making the account", err).(*Failure)
		if eab != nil && f.Class == Refused {
			f.Err = fmt.Errorf("%w; CA.EAB, with the key ID %q, may be wrong, expired, or used up where it is good for one account only: the CA has new ones for its customers", f.Err, eab.KID)
		}
		return "", f
	}
	return c.setKID(string(a.KID))
}

func (c *Client) lookup(ctx context.Context) (kid string, err error) {
	a, err := c.acme().GetReg(ctx, "")
	if errors.Is(err, acme.ErrNoAccount) {
		return "", err
	}
	if err != nil {
		return "", failAccount("looking the account up", err)
	}
	return c.setKID(a.URI)
}

func (c *Client) setKID(kid string) (string, error) {
	if kid == "" {
		return "", &Failure{Class: Fault, Step: "making the account", Err: errors.New("the CA named no URL for the account")}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kid = kid
	return kid, nil
}

// Update replaces the account's contact addresses.
func (c *Client) Update(ctx context.Context, contact []string) error {
	if contact == nil {
		contact = []string{} // which takes the addresses away; x/crypto would leave the member out
	}
	return c.update(ctx, struct {
		Contact []string `json:"contact"`
	}{contact})
}

// agree tells the CA that its terms of service, which have changed since the
// account was made, are agreed to.
func (c *Client) agree(ctx context.Context) error {
	return c.update(ctx, struct {
		Agreed bool `json:"termsOfServiceAgreed"`
	}{true})
}

func (c *Client) update(ctx context.Context, account any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := c.Directory(ctx); err != nil {
		return err
	}
	if _, err := c.post(ctx, c.KID(), account); err != nil {
		return failAccount("updating the account", err)
	}
	return nil
}

// Revoke revokes the certificate with the given DER encoding. A nil key signs
// with the account's; a certificate revoked before is no error.
func (c *Client) Revoke(ctx context.Context, key crypto.Signer, cert []byte, reason acme.CRLReasonCode) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := c.Directory(ctx); err != nil {
		return err
	}
	if err := c.acme().RevokeCert(ctx, key, cert, reason); err != nil {
		return fail("revoking the certificate", err)
	}
	return nil
}

// KeyAuthorization returns the key authorization for a challenge's token
// (RFC 8555, section 8.1).
func (c *Client) KeyAuthorization(token string) (string, error) {
	return (&acme.Client{Key: c.key}).HTTP01ChallengeResponse(token)
}

// KID returns the URL of the account, "" while there is none.
func (c *Client) KID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kid
}
