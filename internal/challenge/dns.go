package challenge

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// What bounds a dns-01 answer.
const (
	providerTime = 2 * time.Minute // one call of a provider's
	spreadTime   = 2 * time.Minute // for a record to be seen, unless the provider says
	spreadMost   = time.Hour       // whatever it says, and between two records of a sequential one
	lookEvery    = 2 * time.Second // whether it is, unless the provider says
)

// A Provider sets the TXT records that dns-01 validations look for, and takes
// them away. It may have two more methods, as lego's do: Timeout says how long a
// record takes to be seen and how often to look, and Sequential that there may
// be one record at a time only, and how long to wait between two.
type Provider interface {
	Present(ctx context.Context, domain, token, keyAuth string) error
	CleanUp(ctx context.Context, domain, token, keyAuth string) error
}

// Records reads TXT records at their zone's own name servers.
type Records interface {
	Target(ctx context.Context, name string) (string, error)
	Lookup(ctx context.Context, name string) ([]string, error)
	Await(ctx context.Context, name, value string, interval time.Duration) error
}

// DNS answers dns-01 challenges (RFC 8555, section 8.4). Its fields are set
// before the first use; it is safe for concurrent use.
type DNS struct {
	Provider Provider
	Records  Records
	Left     func(name string, err error) // told of a record that could not be taken away; may be nil

	mu   sync.Mutex               // guards the fields below; held for memory only
	busy map[string]chan struct{} // the TXT names in use, each closed when it is not any more
	next time.Time                // not before then is a sequential provider's next record
}

// everyName stands for all TXT names of a provider that sets one record at a
// time.
const everyName = "*"

// Add has the record set for a host, and returns when it is seen or its time to
// be is over: then late says what was seen, and it is for the CA to decide.
// Until remove is called, which takes the record away and may block as long as
// the provider does, nobody else's record gets that name: many providers
// replace what is there rather than add to it. If Add returns an error the
// record was taken away.
func (d *DNS) Add(ctx context.Context, host, token, keyAuth string) (remove func(), late, err error) {
	domain := strings.TrimPrefix(host, "*.")
	name := recordName(domain)
	release, err := d.turn(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	var present error
	remove = func() {
		if err := d.cleanUp(ctx, domain, token, keyAuth); err != nil && present == nil && d.Left != nil {
			d.Left(name, err)
		}
		d.rest()
		release()
	}
	digest := sha256.Sum256([]byte(keyAuth))
	value := base64.RawURLEncoding.EncodeToString(digest[:])
	call, cancel := context.WithTimeout(ctx, providerTime)
	defer cancel()
	present = d.Provider.Present(call, domain, token, keyAuth)
	if present != nil && !d.isThere(ctx, name, value) {
		remove() // it may have been set all the same
		return nil, nil, fmt.Errorf("the DNS provider can't set the record %s: %w", name, present)
	}
	timeout, interval := d.times()
	wait, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not seen within %v", timeout))
	defer cancel()
	late = d.Records.Await(wait, name, value, interval)
	if ctx.Err() != nil {
		remove()
		return nil, nil, context.Cause(ctx)
	}
	return remove, late, nil
}

// isThere reports whether a record that the provider would not set stands
// already. So it does if we crashed while it did, and some providers refuse to
// set what there is.
func (d *DNS) isThere(ctx context.Context, name, value string) bool {
	values, err := d.Records.Lookup(ctx, name)
	return err == nil && slices.Contains(values, value)
}

// cleanUp takes a record away, also when the work that it was for was called
// off. An error is none of the order's: the record does no harm.
func (d *DNS) cleanUp(ctx context.Context, domain, token, keyAuth string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), providerTime)
	defer cancel()
	return d.Provider.CleanUp(ctx, domain, token, keyAuth)
}

func recordName(domain string) string { return "_acme-challenge." + domain }

// times returns how long to wait for a record, and how often to look.
func (d *DNS) times() (timeout, interval time.Duration) {
	if p, ok := d.Provider.(interface {
		Timeout() (timeout, interval time.Duration)
	}); ok {
		timeout, interval = p.Timeout()
	}
	if timeout <= 0 {
		timeout = spreadTime
	}
	if interval <= 0 {
		interval = lookEvery
	}
	timeout = min(timeout, spreadMost)
	return timeout, min(interval, timeout)
}

// sequential returns how long a provider that sets one record at a time wants
// to wait between two.
func (d *DNS) sequential() (pause time.Duration, ok bool) {
	if p, ok := d.Provider.(interface{ Sequential() time.Duration }); ok {
		return min(p.Sequential(), spreadMost), true
	}
	return 0, false
}

// turn waits for the turn at a TXT name, and at the one that its CNAMEs lead to,
// where the record may come to stand. It takes both: a CNAME that stands for all
// names which there are not, *.example.com, is one only until the record is set.
func (d *DNS) turn(ctx context.Context, name string) (release func(), err error) {
	if _, ok := d.sequential(); ok {
		return d.acquire(ctx, everyName)
	}
	releaseName, err := d.acquire(ctx, name)
	if err != nil {
		return nil, err
	}
	target, err := d.Records.Target(ctx, name)
	if err != nil || target == name { // it may be a name whose zone is not there yet
		return releaseName, nil
	}
	releaseTarget, err := d.acquire(ctx, target)
	if err != nil {
		releaseName()
		return nil, err
	}
	return func() {
		releaseTarget()
		releaseName()
	}, nil
}

// rest keeps a sequential provider's next record waiting, now that one was
// taken away.
func (d *DNS) rest() {
	if pause, ok := d.sequential(); ok {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.next = time.Now().Add(pause)
	}
}

// acquire waits for its turn at a TXT name. Whoever gives up meanwhile leaves
// everything as it was: no record of theirs was set.
func (d *DNS) acquire(ctx context.Context, name string) (release func(), err error) {
	for {
		d.mu.Lock()
		busy, taken := d.busy[name]
		if !taken {
			break
		}
		d.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if d.busy == nil {
		d.busy = make(map[string]chan struct{})
	}
	free := make(chan struct{})
	d.busy[name] = free
	wait := time.Until(d.next)
	d.mu.Unlock()
	release = func() {
		d.mu.Lock()
		delete(d.busy, name)
		d.mu.Unlock()
		close(free)
	}
	if err := sleep(ctx, wait); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// sleep returns after wait, which may be none at all, or with the reason as
// soon as ctx has ended.
func sleep(ctx context.Context, wait time.Duration) error {
	if wait <= 0 {
		return context.Cause(ctx)
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
