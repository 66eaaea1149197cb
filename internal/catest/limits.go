package catest

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Limits are a CA's rate limits. An order that "replaces" a certificate whose
// suggested window has begun is exempt from all of them; one for a set of
// names that had a certificate before, from the first two.
type Limits struct {
	OrdersPerAccount Limit
	CertsPerDomain   Limit // per registered domain: the last two labels here
	CertsPerSet      Limit // per exact set of names
	FailuresPerName  Limit // failed validations per account and name
}

// A Limit is a token bucket of N tokens that fills in the time Per. Without N there is no limit.
type Limit struct {
	N   int
	Per time.Duration
}

// LetsEncryptLimits returns the limits of Let's Encrypt in 2026.
func LetsEncryptLimits() *Limits {
	return &Limits{
		OrdersPerAccount: Limit{300, 3 * time.Hour},
		CertsPerDomain:   Limit{50, 7 * day},
		CertsPerSet:      Limit{5, 7 * day},
		FailuresPerName:  Limit{5, time.Hour},
	}
}

// A bucket is kept as the time when it will be full again; if that has passed, it is full.

// wait returns how long it takes until the bucket has a token.
func (ca *CA) wait(key string, l Limit, now time.Time) time.Duration {
	if l.N == 0 {
		return 0
	}
	token := l.Per / time.Duration(l.N)
	missing := max(0, ca.buckets[key].Sub(now))
	return max(0, missing+token-l.Per)
}

// spend takes a token, also where there is none.
func (ca *CA) spend(key string, l Limit, now time.Time) {
	if l.N == 0 {
		return
	}
	full := ca.buckets[key]
	if full.Before(now) {
		full = now
	}
	ca.buckets[key] = full.Add(l.Per / time.Duration(l.N))
}

func accountBucket(o *order) string        { return "account " + o.account.id }
func domainBucket(name string) string      { return "domain " + registered(name) }
func setBucket(o *order) string            { return "set " + strings.Join(o.Names, " ") }
func failureBucket(id, name string) string { return "failure " + id + " " + name }

// registered returns the registered domain of a name, as far as two labels
// tell; of an address what Let's Encrypt counts as one.
func registered(name string) string {
	if addr, err := netip.ParseAddr(name); err == nil {
		if addr.Is4() {
			return name
		}
		return netip.PrefixFrom(addr, 64).Masked().String()
	}
	labels := strings.Split(name, ".")
	return strings.Join(labels[max(0, len(labels)-2):], ".")
}

// checkLimits refuses a new order that is over a limit, else takes its token.
func (ca *CA) checkLimits(rq *request, o *order) *Error {
	l := rq.cfg.Limits
	if l == nil || o.exempt {
		return nil
	}
	o.renewal = ca.hadSet[setBucket(o)]
	check := func(key string, limit Limit, format string, args ...any) *Error {
		if wait := ca.wait(key, limit, rq.now); wait > 0 {
			return limitError(rq, wait, limit, fmt.Sprintf(format, args...))
		}
		return nil
	}
	for _, name := range o.Names {
		if problem := check(failureBucket(o.account.id, strings.TrimPrefix(name, "*.")), l.FailuresPerName, "too many failed authorizations for %q", name); problem != nil {
			return problem
		}
		if o.renewal {
			continue
		}
		if problem := check(domainBucket(name), l.CertsPerDomain, "too many certificates already issued for %q", registered(name)); problem != nil {
			return problem
		}
	}
	if problem := check(setBucket(o), l.CertsPerSet, "too many certificates already issued for this exact set of identifiers"); problem != nil {
		return problem
	}
	if o.renewal {
		return nil
	}
	if problem := check(accountBucket(o), l.OrdersPerAccount, "too many new orders from this account"); problem != nil {
		return problem
	}
	ca.spend(accountBucket(o), l.OrdersPerAccount, rq.now)
	return nil
}

// spendIssuance counts a certificate.
func (ca *CA) spendIssuance(l *Limits, o *order, now time.Time) {
	ca.hadSet[setBucket(o)] = true
	if l == nil || o.exempt {
		return
	}
	ca.spend(setBucket(o), l.CertsPerSet, now)
	if o.renewal {
		return
	}
	domains := make(map[string]bool)
	for _, name := range o.Names {
		if key := domainBucket(name); !domains[key] {
			domains[key] = true
			ca.spend(key, l.CertsPerDomain, now)
		}
	}
}

// spendFailure counts a failed validation.
func (ca *CA) spendFailure(l *Limits, a *authz, now time.Time) {
	if l != nil {
		ca.spend(failureBucket(a.account.id, a.ident.Value), l.FailuresPerName, now)
	}
}

// limitError is a refusal in the words of Let's Encrypt.
func limitError(rq *request, wait time.Duration, l Limit, what string) *Error {
	return &Error{
		Status:     http.StatusTooManyRequests,
		Type:       "rateLimited",
		RetryAfter: seconds(wait),
		Detail: fmt.Sprintf("%s (%d) in the last %v, retry after %s: see %s", what, l.N, l.Per,
			rq.now.Add(wait).UTC().Format("2006-01-02 15:04:05 MST"), rq.cfg.url("docs", "rate-limits")),
	}
}

// pausedError refuses an order until a person acts.
func pausedError(rq *request, name string) *Error {
	return &Error{
		Status: http.StatusTooManyRequests,
		Type:   "rateLimited",
		Detail: fmt.Sprintf("Your account is temporarily prevented from requesting certificates for %s and possibly others. Please visit: %s",
			name, rq.cfg.url("sfe", "v1", "unpause?jwt=eyJhbGciOiJIUzI1NiJ9.secret")),
	}
}
