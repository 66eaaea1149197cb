package catest

import (
	"crypto/x509"
	"net/http"
	"slices"
	"time"
)

// A Window is a CA's advice on when to renew a certificate (RFC 9773).
type Window struct {
	Start, End  time.Time
	RetryAfter  time.Duration // when to ask again; 0: in six hours
	Explanation string        // a URL for people, if any
}

// SuggestedWindow is the advice of Let's Encrypt on certificates in good
// order: to renew about when a third of the lifetime is left, or a half if it
// is ten days or less, within a fiftieth of it.
func SuggestedWindow(leaf *x509.Certificate) Window {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	left := life / 3
	if life <= 10*day {
		left = life / 2
	}
	ideal := leaf.NotAfter.Add(-left)
	return Window{Start: ideal.Add(-life / 100), End: ideal.Add(life / 100)}
}

// CertID returns the identifier of a certificate in renewal information and in
// an order's "replaces" (RFC 9773 section 4.1).
func CertID(leaf *x509.Certificate) string {
	serial := leaf.SerialNumber.Bytes()
	if len(serial) > 0 && serial[0] >= 0x80 {
		serial = slices.Insert(serial, 0, 0) // as in DER, where it would be negative
	}
	return b64.EncodeToString(leaf.AuthorityKeyId) + "." + b64.EncodeToString(serial)
}

// window returns the advice on a certificate. It lets go of mu meanwhile.
func (ca *CA) window(rq *request, c *certificate) Window {
	var w Window
	ca.ask(func() { w = rq.cfg.ARI(c.leaf) })
	if c.revoked && !w.End.Before(rq.now) {
		w.Start, w.End = c.at.Add(-2*time.Hour), c.at.Add(-time.Hour)
	}
	return w
}

// renewalInfo is RFC 9773 section 4.
func (ca *CA) renewalInfo(rq *request) (*reply, *Error) {
	if rq.cfg.ARI == nil {
		if !ca.hadARI {
			return nil, rq.violate(http.StatusNotFound, "malformed", "this CA never offered renewal information")
		}
		return nil, &Error{Status: http.StatusNotFound, Type: "malformed", Detail: "no renewal information any more"}
	}
	c := ca.certByARI[rq.id]
	if c == nil {
		return nil, &Error{Status: http.StatusNotFound, Type: "malformed", Detail: "no such certificate"}
	}
	if rq.now.After(c.leaf.NotAfter) {
		return nil, rq.violate(http.StatusNotFound, "malformed", "asking about an expired certificate (RFC 9773 section 4.3)")
	}
	if c.replaced != nil && c.replaced.Status == "valid" && rq.now.After(ca.certByID[c.replaced.Serial].issued.Add(day)) {
		return nil, rq.violate(http.StatusNotFound, "malformed", "asking about a certificate that was replaced a day ago (RFC 9773 section 4.3)")
	}
	w := ca.window(rq, c)
	doc := map[string]any{"suggestedWindow": map[string]string{
		"start": w.Start.UTC().Format(time.RFC3339),
		"end":   w.End.UTC().Format(time.RFC3339),
	}}
	if w.Explanation != "" {
		doc["explanationURL"] = w.Explanation
	}
	if w.RetryAfter == 0 {
		w.RetryAfter = 6 * time.Hour
	}
	return &reply{http.StatusOK, http.Header{"Retry-After": {seconds(w.RetryAfter)}}, doc}, nil
}

// checkReplaces checks an order's "replaces" by RFC 9773 section 5. An order
// within the suggested window is exempt from rate limits, as at Let's Encrypt.
func (ca *CA) checkReplaces(rq *request, o *order) *Error {
	if o.Replaces == "" {
		return nil
	}
	if !ca.hadARI {
		return rq.violate(http.StatusBadRequest, "malformed", "replaces at a CA that offers no renewal information")
	}
	c := ca.certByARI[o.Replaces]
	switch {
	case c == nil:
		return &Error{Status: http.StatusNotFound, Type: "malformed", Detail: "replaces: no such certificate"}
	case c.account != rq.account:
		return &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "replaces: another account's certificate"}
	case !slices.ContainsFunc(o.Names, func(name string) bool { return slices.Contains(c.names, name) }):
		return &Error{Status: http.StatusBadRequest, Type: "malformed", Detail: "replaces: the certificate has none of the order's names"}
	}
	if rq.cfg.ARI != nil {
		o.exempt = !rq.now.Before(ca.window(rq, c).Start)
	}
	if c.replaced != nil && ca.orderStatus(c.replaced) != "invalid" {
		return &Error{Status: http.StatusConflict, Type: "alreadyReplaced", Detail: "replaces: the certificate has a replacement order"}
	}
	return nil
}
