package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
)

// Credentials are what an account is kept as.
type Credentials struct {
	URL string `json:"url,omitempty"` // "" until the CA has answered
	Key []byte `json:"key"`           // PKCS #8
}

// An Account is ours at one CA. It is made when it is first needed: its key is
// kept, and then the CA asked. The fields are set before the first use; it is
// safe for concurrent use.
type Account struct {
	Directory string
	HTTP      *http.Client                 // nil means http.DefaultClient
	EAB       *acme.ExternalAccountBinding // to make the account with

	Load    func() (c Credentials, ok bool)   // returns what is kept
	Keep    func(c Credentials) error         // makes it durable
	Contact func() (urls []string, err error) // the subscriber's, or why no account is to be made

	// Share, if it is set, is called before Load when the account is opened. Until
	// release no other process may make one that Load would not return then.
	Share func(ctx context.Context) (release func(), err error)

	turn turn // held while the account is being made
	gate gate // of all its clients

	mu     sync.Mutex // guards the fields below; held for memory only
	client *Client    // nil while there is none
	reader *Client    // without an account
	tries  int        // attempts to make the account so far
	tried  time.Time  // when the last ended
	failed error      // what came of it
	terms  outcome    // of the last terms that had changed
}

// An outcome is what came of an attempt, and when.
type outcome struct {
	at  time.Time
	err error
}

// A turn is a mutex whose waiters can leave.
type turn struct {
	once sync.Once
	ch   chan struct{}
}

func (t *turn) take(ctx context.Context) (release func(), err error) {
	t.once.Do(func() { t.ch = make(chan struct{}, 1) })
	select {
	case t.ch <- struct{}{}:
		return func() { <-t.ch }, nil
	case <-ctx.Done():
		return nil, &Failure{Class: Ours, Step: "waiting for the account", Err: context.Cause(ctx)}
	}
}

// Reader returns a client for what needs no account.
func (a *Account) Reader() *Client {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reader == nil {
		a.reader = New(a.Directory, a.HTTP, nil, "")
		a.reader.gate = &a.gate
	}
	return a.reader
}

// settleTime is how long a failure to make the account is everybody's, lest
// those ask again that set out before it was known.
const settleTime = time.Second

// Retry has the account asked for again, whatever just failed.
func (a *Account) Retry() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = nil
}

// Client returns a client with the account, which it makes if there is none. If
// that failed for another caller meanwhile, it failed for this one.
func (a *Account) Client(ctx context.Context) (*Client, error) {
	a.mu.Lock()
	tries := a.tries
	a.mu.Unlock()
	release, err := a.turn.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	contact, err := a.Contact()
	if err != nil {
		return nil, &Failure{Class: Ours, Step: "making the account", Err: err}
	}
	a.mu.Lock()
	c, failed := a.client, a.failed
	if a.tries == tries && time.Since(a.tried) > settleTime {
		failed = nil // before we came
	}
	a.mu.Unlock()
	if c != nil || failed != nil {
		return c, failed
	}
	c, err = a.open(ctx, contact)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.client = c
	if f, ok := errors.AsType[*Failure](err); ctx.Err() == nil && !(ok && f.Class == Ours) { // else it is no outcome for others
		a.tries, a.tried, a.failed = a.tries+1, time.Now(), err
	}
	return c, err
}

// open returns a client with the account that is kept, or makes one.
func (a *Account) open(ctx context.Context, contact []string) (*Client, error) {
	if a.Share != nil {
		release, err := a.Share(ctx)
		if err != nil {
			return nil, &Failure{Class: Ours, Step: "sharing the account", Err: err}
		}
		defer release()
	}
	cred, known := a.Load()
	key, err := a.key(&cred, known)
	if err != nil {
		return nil, err
	}
	c := New(a.Directory, a.HTTP, key, cred.URL)
	c.gate = &a.gate
	if cred.URL != "" {
		return c, nil
	}
	if err := a.Keep(cred); err != nil { // what the CA will know is not to be lost
		return nil, &Failure{Class: Ours, Step: "keeping the account's key", Err: err}
	}
	if cred.URL, err = c.Register(ctx, contact, a.EAB, known); err != nil {
		return nil, err
	}
	if err := a.Keep(cred); err != nil {
		return nil, &Failure{Class: Ours, Step: "keeping the account", Err: err}
	}
	return c, nil
}

// key returns the account's key, made if there is none.
func (a *Account) key(cred *Credentials, known bool) (crypto.Signer, error) {
	if known {
		key, err := x509.ParsePKCS8PrivateKey(cred.Key)
		if err != nil {
			return nil, &Failure{Class: Ours, Step: "reading the account's key", Err: err}
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, &Failure{Class: Ours, Step: "reading the account's key", Err: fmt.Errorf("a %T can't sign", key)}
		}
		return signer, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err == nil {
		cred.Key, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err != nil {
		return nil, &Failure{Class: Ours, Step: "making the account's key", Err: err}
	}
	return key, nil
}

// Forget has the account made anew, with the key it had, if it is still c's:
// the CA does not know it any more.
func (a *Account) Forget(c *Client) error {
	a.mu.Lock()
	if a.client != c {
		a.mu.Unlock()
		return nil
	}
	a.client = nil
	a.mu.Unlock()
	cred, ok := a.Load()
	if !ok {
		return errors.New("the account is gone")
	}
	cred.URL = ""
	return a.Keep(cred)
}

// Agree puts terms of service that have changed to ask, which is given their
// URL and returns an error if they are not agreed to, and tells the CA. If that
// was tried for another after the time since, the outcome is the same.
func (a *Account) Agree(ctx context.Context, c *Client, url string, since time.Time, ask func(url string) error) error {
	release, err := a.turn.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	a.mu.Lock()
	last := a.terms
	a.mu.Unlock()
	if last.at.After(since) {
		return last.err
	}
	err = c.askAndAgree(ctx, url, ask)
	if ctx.Err() == nil { // else it is no outcome for others
		a.mu.Lock()
		defer a.mu.Unlock()
		a.terms = outcome{time.Now(), err}
	}
	return err
}

func (c *Client) askAndAgree(ctx context.Context, url string, ask func(url string) error) error {
	if url == "" {
		d, err := c.readDirectory(ctx) // the one we have is from before the change
		if err != nil {
			return err
		}
		url = d.Meta.Terms
	}
	if err := ask(url); err != nil {
		return &Failure{Class: Terms, Step: "agreeing to new terms of service", Action: url, Err: err}
	}
	return c.agree(ctx)
}

// Reset has what is kept loaded again: it was changed.
func (a *Account) Reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.client = nil
}
