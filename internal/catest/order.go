package catest

import (
	"crypto/rand"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An Order is an order as the CA knows it.
type Order struct {
	URL      string
	Account  string   // its URL
	Names    []string // wildcards with their *.
	Profile  string
	Replaces string // a certificate's identifier, see [CertID]
	Status   string // RFC 8555 section 7.1.6
	Time     time.Time
	Expires  time.Time
	Serial   string // of the certificate, in hexadecimal, once there is one
}

type order struct {
	Order
	id      string
	account *account
	ids     []identifier
	authzs  []*authz
	problem *Error
	spki    string // the key of the CSR that it was finalized with
	renewal bool   // for the limits: not counted against the registered domain
	exempt  bool   // for the limits: counted against nothing
}

// An authz is an authorization. Its status is kept, see authzStatus for what follows from the time.
type authz struct {
	id         string
	account    *account
	ident      identifier // a wildcard's without *.
	wildcard   bool
	status     string
	expires    time.Time
	challenges []*challenge
}

type challenge struct {
	id        string
	authz     *authz
	typ       string
	token     string // dns-persist-01 does not show it
	status    string
	validated time.Time
	problem   *Error
}

// An identifier is what a certificate is for (RFC 8555 section 9.7.7, RFC 8738 section 3).
type identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// identifierOf returns the identifier of a name or address.
func identifierOf(name string) identifier {
	if _, err := netip.ParseAddr(name); err == nil {
		return identifier{"ip", name}
	}
	return identifier{"dns", name}
}

type newOrderRequest struct {
	Identifiers []identifier `json:"identifiers"`
	NotBefore   string       `json:"notBefore"`
	NotAfter    string       `json:"notAfter"`
	Profile     string       `json:"profile"`
	Replaces    string       `json:"replaces"`
}

func (r *newOrderRequest) names() []string {
	var names []string
	for _, id := range r.Identifiers {
		names = append(names, id.Value)
	}
	return names
}

// Orders returns the orders that were made so far, the oldest first.
func (ca *CA) Orders() []Order {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	for _, o := range ca.orders {
		ca.orderStatus(o)
	}
	list := make([]Order, len(ca.orders))
	for i, o := range ca.orders {
		list[i] = o.Order
	}
	return list
}

// newOrder is RFC 8555 section 7.4.
func (ca *CA) newOrder(rq *request) (*reply, *Error) {
	var req newOrderRequest
	if problem := rq.decode(&req); problem != nil {
		return nil, problem
	}
	if problem := rq.checkIdentifiers(req.Identifiers); problem != nil {
		return nil, problem
	}
	if req.NotBefore != "" || req.NotAfter != "" {
		return nil, &Error{Status: http.StatusBadRequest, Type: "malformed", Detail: "notBefore and notAfter are not supported"}
	}
	if _, ok := rq.cfg.Profiles[req.Profile]; req.Profile != "" && !ok {
		return nil, &Error{Status: http.StatusBadRequest, Type: "invalidProfile",
			Detail: "no profile " + strconv.Quote(req.Profile) + ", but " + rq.cfg.profileNames()}
	}
	names := req.names()
	slices.Sort(names)
	o := &order{account: rq.account, ids: req.Identifiers}
	o.Order = Order{Account: rq.account.URL, Names: names, Profile: req.Profile, Replaces: req.Replaces, Status: "pending", Time: rq.now}
	if problem := ca.admit(rq, o); problem != nil {
		return nil, problem
	}
	if old := ca.reusableOrder(rq, o); old != nil {
		return ca.orderReply(rq, old, http.StatusCreated), nil
	}
	ca.place(rq, o)
	return ca.orderReply(rq, o, http.StatusCreated), nil
}

// checkIdentifiers checks that a new order's identifiers are such as a CA can certify.
func (rq *request) checkIdentifiers(ids []identifier) *Error {
	if len(ids) == 0 {
		return rq.violate(http.StatusBadRequest, "malformed", "order without identifiers")
	}
	seen := make(map[identifier]bool)
	for _, id := range ids {
		if seen[id] {
			return rq.violate(http.StatusBadRequest, "malformed", "identifier %q is there twice", id.Value)
		}
		seen[id] = true
		if problem := rq.checkIdentifier(id); problem != nil {
			return problem
		}
	}
	return nil
}

func (rq *request) checkIdentifier(id identifier) *Error {
	refuse := func(detail string) *Error {
		e := &Error{Status: http.StatusBadRequest, Type: "rejectedIdentifier", Detail: strconv.Quote(id.Value) + ": " + detail}
		e.Subproblems = []Subproblem{{Type: e.Type, Detail: detail, Name: id.Value}}
		return e
	}
	addr, err := netip.ParseAddr(id.Value)
	switch id.Type {
	case "ip":
		if err != nil || addr.String() != id.Value || addr.Zone() != "" {
			return rq.violate(http.StatusBadRequest, "malformed", "%q is no address as RFC 8738 section 3 writes it", id.Value)
		}
		return nil
	case "dns":
	default:
		return &Error{Status: http.StatusBadRequest, Type: "unsupportedIdentifier", Detail: "identifier type " + strconv.Quote(id.Type)}
	}
	if err == nil {
		return refuse("an address as a DNS name")
	}
	if id.Value != strings.ToLower(id.Value) {
		return rq.violate(http.StatusBadRequest, "malformed", "identifier %q is not in lower case", id.Value)
	}
	base := strings.TrimPrefix(id.Value, "*.")
	if !strings.Contains(base, ".") || len(base) > 253 {
		return refuse("no public name")
	}
	for label := range strings.SplitSeq(base, ".") {
		if !validLabel(label) {
			return refuse("bad label " + strconv.Quote(label))
		}
	}
	return nil
}

// validLabel reports whether s is a label of a host name.
func validLabel(s string) bool {
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

// admit decides whether a new order may be made. The test's own opinion comes
// first, since mu is not held while it is asked.
func (ca *CA) admit(rq *request, o *order) *Error {
	if problem := ca.testRefuses(rq, o); problem != nil {
		return problem
	}
	if problem := ca.checkReplaces(rq, o); problem != nil {
		return problem
	}
	for _, name := range o.Names {
		if ca.paused[name] {
			return pausedError(rq, name)
		}
	}
	return ca.checkLimits(rq, o)
}

// testRefuses asks the test whether it refuses an order.
func (ca *CA) testRefuses(rq *request, o *order) (problem *Error) {
	ca.ask(func() {
		if o.Replaces != "" && rq.cfg.RefuseReplaces != nil {
			problem = rq.cfg.RefuseReplaces(o.Replaces)
		}
		if problem == nil && rq.cfg.RefuseOrder != nil {
			problem = rq.cfg.RefuseOrder(slices.Clone(o.Names), o.Profile)
		}
	})
	return problem
}

// reusableOrder returns an earlier order that serves in place of a new one.
func (ca *CA) reusableOrder(rq *request, o *order) *order {
	if !rq.cfg.OrderReuse {
		return nil
	}
	for _, old := range ca.orders {
		if old.account == o.account && old.Profile == o.Profile && slices.Equal(old.Names, o.Names) {
			if status := ca.orderStatus(old); status == "pending" || status == "ready" {
				return old
			}
		}
	}
	return nil
}

// place makes an admitted order one of the CA's.
func (ca *CA) place(rq *request, o *order) {
	o.id = ca.newID()
	o.URL = rq.cfg.url("order", o.id)
	o.Expires = rq.now.Add(rq.cfg.OrderLifetime)
	for _, id := range o.ids {
		a := ca.authorize(rq, id)
		o.authzs = append(o.authzs, a)
		if a.expires.Before(o.Expires) {
			o.Expires = a.expires
		}
	}
	if c := ca.certByARI[o.Replaces]; c != nil {
		c.replaced = o
	}
	ca.orders = append(ca.orders, o)
	ca.orderByID[o.id] = o
}

// authorize returns an authorization for an identifier of a new order: a
// valid one where there is one, else a new one.
func (ca *CA) authorize(rq *request, id identifier) *authz {
	base, wildcard := strings.CutPrefix(id.Value, "*.")
	if rq.cfg.AuthzReuse > 0 {
		if a := rq.account.valid[id.Value]; a != nil && authzStatus(a, rq.now) == "valid" {
			return a
		}
	}
	a := &authz{
		id:       ca.newID(),
		account:  rq.account,
		ident:    identifier{id.Type, base},
		wildcard: wildcard,
		status:   "pending",
		expires:  rq.now.Add(rq.cfg.AuthzLifetime),
	}
	ca.authzs[a.id] = a
	for _, typ := range rq.cfg.Challenges {
		if offered(typ, id.Type, wildcard) {
			c := &challenge{id: ca.newID(), authz: a, typ: typ, token: rand.Text(), status: "pending"}
			a.challenges = append(a.challenges, c)
			ca.challenges[c.id] = c
		}
	}
	return a
}

// offered reports whether a type of challenge can be used for an identifier:
// wildcards are for DNS alone, and DNS is not for addresses.
func offered(challenge, identifier string, wildcard bool) bool {
	dns := strings.HasPrefix(challenge, "dns-")
	if identifier == "ip" {
		return !dns
	}
	return dns || !wildcard
}

// authzStatus returns an authorization's status at a time.
func authzStatus(a *authz, now time.Time) string {
	switch {
	case now.Before(a.expires):
		return a.status
	case a.status == "valid":
		return "expired"
	case a.status == "pending":
		return "invalid"
	}
	return a.status
}

// orderStatus brings an order's status up to date and returns it (RFC 8555 section 7.1.6).
func (ca *CA) orderStatus(o *order) string {
	if o.Status != "pending" && o.Status != "ready" {
		return o.Status
	}
	now := time.Now()
	o.Status = "ready"
	for _, a := range o.authzs {
		switch authzStatus(a, now) {
		case "valid":
		case "pending":
			o.Status = "pending"
		default:
			o.Status = "invalid"
			return o.Status
		}
	}
	if !now.Before(o.Expires) {
		o.Status = "invalid"
	}
	return o.Status
}

func (ca *CA) orderReply(rq *request, o *order, httpStatus int) *reply {
	status := ca.orderStatus(o)
	doc := map[string]any{
		"status":      status,
		"expires":     o.Expires.UTC().Format(time.RFC3339),
		"identifiers": o.ids,
		"finalize":    rq.cfg.url("finalize", o.id),
	}
	var urls []string
	working := status == "processing"
	for _, a := range o.authzs {
		urls = append(urls, rq.cfg.url("authz", a.id))
		working = working || a.working()
	}
	doc["authorizations"] = urls
	if o.Profile != "" {
		doc["profile"] = o.Profile
	}
	if o.Replaces != "" {
		doc["replaces"] = o.Replaces
	}
	if o.problem != nil {
		doc["error"] = o.problem.document()
	}
	if status == "valid" {
		doc["certificate"] = rq.cfg.url("cert", o.Serial)
	}
	rep := &reply{httpStatus, http.Header{"Location": {o.URL}}, doc}
	rep.retryAfter(rq, working)
	return rep
}

// retryAfter sets the header if the resource is at work.
func (rep *reply) retryAfter(rq *request, working bool) {
	if working && rq.cfg.RetryAfter > 0 {
		rep.header.Set("Retry-After", seconds(rq.cfg.RetryAfter))
	}
}

// seconds writes a duration as Retry-After does, rounded up.
func seconds(d time.Duration) string {
	return strconv.Itoa(int((d + time.Second - 1) / time.Second))
}

// order is the order's resource, for reading.
func (ca *CA) order(rq *request) (*reply, *Error) {
	if problem := rq.wantRead(); problem != nil {
		return nil, problem
	}
	o, problem := ca.findOrder(rq)
	if problem != nil {
		return nil, problem
	}
	return ca.orderReply(rq, o, http.StatusOK), nil
}

// findOrder returns the order that a request names. That it is another
// account's can happen to a client whose old account is gone.
func (ca *CA) findOrder(rq *request) (*order, *Error) {
	o := ca.orderByID[rq.id]
	if o == nil {
		return nil, rq.violate(http.StatusNotFound, "malformed", "the CA never made this order")
	}
	if o.account != rq.account {
		return nil, &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "another account's order"}
	}
	return o, nil
}

// authz is the authorization's resource: RFC 8555 sections 7.5 and 7.5.2.
func (ca *CA) authz(rq *request) (*reply, *Error) {
	a := ca.authzs[rq.id]
	if a == nil {
		return nil, rq.violate(http.StatusNotFound, "malformed", "the CA never made this authorization")
	}
	if a.account != rq.account {
		return nil, &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "another account's authorization"}
	}
	if len(rq.payload) > 0 {
		var req struct{ Status string }
		if problem := rq.decode(&req); problem != nil {
			return nil, problem
		}
		if req.Status != "deactivated" {
			return nil, rq.violate(http.StatusBadRequest, "malformed", "authorization status %q", req.Status)
		}
		ca.deactivate(rq, a)
	}
	return a.reply(rq), nil
}

// deactivate deactivates an authorization. A pending one counts as a failed
// validation, as it does at Let's Encrypt.
func (ca *CA) deactivate(rq *request, a *authz) {
	status := authzStatus(a, rq.now)
	if status == "pending" {
		ca.spendFailure(rq.cfg.Limits, a, rq.now)
	}
	if status == "pending" || status == "valid" {
		a.status = "deactivated"
	}
}

// working reports whether one of the challenges is being validated.
func (a *authz) working() bool {
	return a.status == "pending" && slices.ContainsFunc(a.challenges, func(c *challenge) bool { return c.status == "processing" })
}

func (a *authz) reply(rq *request) *reply {
	challenges := []map[string]any{}
	for _, c := range a.challenges {
		// One that is decided shows what decided it (RFC 8555 section 7.1.4).
		if a.status == "pending" || a.status == "deactivated" || c.status == "valid" || c.status == "invalid" {
			challenges = append(challenges, c.document(rq))
		}
	}
	doc := map[string]any{
		"status":     authzStatus(a, rq.now),
		"expires":    a.expires.UTC().Format(time.RFC3339),
		"identifier": a.ident,
		"challenges": challenges,
	}
	if a.wildcard {
		doc["wildcard"] = true
	}
	rep := &reply{http.StatusOK, make(http.Header), doc}
	rep.retryAfter(rq, a.working())
	return rep
}

func (c *challenge) document(rq *request) map[string]any {
	doc := map[string]any{
		"type":   c.typ,
		"url":    rq.cfg.url("challenge", c.id),
		"status": c.status,
	}
	if c.typ == "dns-persist-01" {
		doc["issuer-domain-names"] = rq.cfg.issuers()
		doc["accounturi"] = c.authz.account.URL
	} else {
		doc["token"] = c.token
	}
	if !c.validated.IsZero() {
		doc["validated"] = c.validated.UTC().Format(time.RFC3339)
	}
	if c.problem != nil {
		doc["error"] = c.problem.document()
	}
	return doc
}

// issuers returns the issuer domain names of dns-persist-01.
func (c *Config) issuers() []string {
	if c.Issuers == nil {
		return []string{c.Host}
	}
	return c.Issuers
}

// challenge is the challenge's resource: RFC 8555 section 7.5.1.
func (ca *CA) challenge(rq *request) (*reply, *Error) {
	c := ca.challenges[rq.id]
	if c == nil {
		return nil, rq.violate(http.StatusNotFound, "malformed", "the CA never made this challenge")
	}
	if c.authz.account != rq.account {
		return nil, &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "another account's challenge"}
	}
	switch string(rq.payload) {
	case "": // POST-as-GET
	case "{}":
		if problem := ca.accept(rq, c); problem != nil {
			return nil, problem
		}
	default:
		return nil, rq.violate(http.StatusBadRequest, "malformed", "payload of a challenge is %q, want {}", rq.payload)
	}
	up := "<" + rq.cfg.url("authz", c.authz.id) + `>;rel="up"`
	return &reply{http.StatusOK, http.Header{"Link": {up}}, c.document(rq)}, nil
}

// accept has a challenge validated. That it is under way or decided already
// can happen to two members of a fleet.
func (ca *CA) accept(rq *request, c *challenge) *Error {
	if authzStatus(c.authz, rq.now) != "pending" || c.status != "pending" {
		return &Error{Status: http.StatusBadRequest, Type: "malformed", Detail: "challenge is not pending"}
	}
	c.status = "processing"
	at := attempt{
		cfg:      rq.cfg,
		typ:      c.typ,
		name:     c.authz.ident,
		wildcard: c.authz.wildcard,
		token:    c.token,
		keyAuth:  c.token + "." + c.authz.account.key.thumbprint,
		account:  c.authz.account.URL,
	}
	if rq.cfg.ValidationTakes > 0 {
		ca.running.Go(func() { ca.settle(c, at, ca.validateSlowly(at)) })
	} else {
		rq.after = func() { ca.settle(c, at, ca.validateAtOnce(at)) }
	}
	return nil
}

// settle records the outcome of a validation. It takes mu.
func (ca *CA) settle(c *challenge, at attempt, problem *Error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	now := time.Now()
	a := c.authz
	ca.validated = append(ca.validated, Validation{Time: now, Name: at.name.Value, Type: c.typ, Err: problem})
	if problem != nil {
		ca.spendFailure(at.cfg.Limits, a, now)
	}
	if authzStatus(a, now) != "pending" {
		return
	}
	c.problem = problem
	switch {
	case problem == nil:
		c.status, c.validated, a.status = "valid", now, "valid"
		if at.cfg.AuthzReuse > 0 {
			a.expires = now.Add(at.cfg.AuthzReuse)
			a.account.remember(a)
		}
	case at.cfg.LeavePending:
		c.status = "pending"
	default:
		c.status, a.status = "invalid", "invalid"
	}
}

// remember keeps a valid authorization for later orders.
func (a *account) remember(z *authz) {
	name := z.ident.Value
	if z.wildcard {
		name = "*." + name
	}
	if a.valid == nil {
		a.valid = make(map[string]*authz)
	}
	a.valid[name] = z
}
