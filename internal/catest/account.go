package catest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

// An Account is an account as the CA knows it.
type Account struct {
	URL     string
	Status  string // valid or deactivated
	Contact []string
	EAB     string // the key id of its external account, if any
}

type account struct {
	Account
	id    string
	key   publicKey
	valid map[string]*authz // by name, for AuthzReuse
}

// Accounts returns the accounts, the oldest first.
func (ca *CA) Accounts() []Account {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	var list []Account
	for _, a := range ca.accountList {
		list = append(list, a.Account)
	}
	return list
}

// ForgetAccounts makes the CA forget all accounts, as a test CA does that is
// set up anew. Their certificates and orders remain.
func (ca *CA) ForgetAccounts() {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.accountList = nil
	clear(ca.accounts)
	clear(ca.keys)
}

// DeactivateAccounts deactivates all accounts.
func (ca *CA) DeactivateAccounts() {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	for _, a := range ca.accounts {
		a.Status = "deactivated"
	}
}

// newAccount is RFC 8555 section 7.3.
func (ca *CA) newAccount(rq *request) (*reply, *Error) {
	var req struct {
		Contact            []string        `json:"contact"`
		TermsAgreed        bool            `json:"termsOfServiceAgreed"`
		OnlyReturnExisting bool            `json:"onlyReturnExisting"`
		EAB                json.RawMessage `json:"externalAccountBinding"`
	}
	if problem := rq.decode(&req); problem != nil {
		return nil, problem
	}
	if a := ca.keys[rq.key.thumbprint]; a != nil {
		if a.Status != "valid" {
			return nil, &Error{Status: http.StatusForbidden, Type: "unauthorized", Detail: "account is " + a.Status}
		}
		return a.reply(rq, http.StatusOK), nil
	}
	if req.OnlyReturnExisting {
		return nil, &Error{Status: http.StatusBadRequest, Type: "accountDoesNotExist", Detail: "no account has this key"}
	}
	if rq.cfg.Terms != "" && !req.TermsAgreed {
		return nil, &Error{Status: http.StatusForbidden, Type: "userActionRequired", Detail: "the terms of service must be agreed to: " + rq.cfg.Terms}
	}
	if problem := checkContact(req.Contact); problem != nil {
		return nil, problem
	}
	if ca.certKeys[rq.key.spki] {
		return nil, rq.violate(http.StatusBadRequest, "badPublicKey", "account key is a certificate's (RFC 8555 section 11.1)")
	}
	kid, problem := ca.externalAccount(rq, req.EAB)
	if problem != nil {
		return nil, problem
	}
	a := &account{id: ca.newID(), key: rq.key}
	a.Account = Account{URL: rq.cfg.url("account", a.id), Status: "valid", Contact: req.Contact, EAB: kid}
	ca.accountList = append(ca.accountList, a)
	ca.accounts[a.URL], ca.keys[a.key.thumbprint] = a, a
	return a.reply(rq, http.StatusCreated), nil
}

// externalAccount returns the external account that a new account is bound to, if any.
func (ca *CA) externalAccount(rq *request, binding []byte) (string, *Error) {
	if rq.cfg.EAB == nil {
		return "", nil // a binding that is not asked for is ignored
	}
	if binding == nil {
		return "", &Error{Status: http.StatusForbidden, Type: "externalAccountRequired", Detail: "this CA wants an external account binding"}
	}
	kid, problem := ca.checkEAB(rq, binding)
	if problem == nil {
		ca.eabUsed[kid] = true
	}
	return kid, problem
}

// checkContact checks contacts by RFC 8555 section 7.3.
func checkContact(contact []string) *Error {
	for _, c := range contact {
		address, ok := strings.CutPrefix(c, "mailto:")
		if !ok {
			return &Error{Status: http.StatusBadRequest, Type: "unsupportedContact", Detail: "only mailto contacts are supported"}
		}
		local, domain, ok := strings.Cut(address, "@")
		if !ok || local == "" || !strings.Contains(domain, ".") || strings.ContainsAny(address, "?, ") {
			return &Error{Status: http.StatusBadRequest, Type: "invalidContact", Detail: "not one e-mail address: " + address}
		}
	}
	return nil
}

func (a *account) reply(rq *request, status int) *reply {
	return &reply{status, http.Header{"Location": {a.URL}}, map[string]any{
		"status": a.Status, "contact": a.Contact, "orders": rq.cfg.url("orders", a.id),
	}}
}

// account is the account's own resource: RFC 8555 sections 7.3.2 and 7.3.6.
func (ca *CA) account(rq *request) (*reply, *Error) {
	if rq.account.URL != rq.url {
		return nil, rq.violate(http.StatusForbidden, "unauthorized", "another account's URL")
	}
	if len(rq.payload) == 0 {
		return rq.account.reply(rq, http.StatusOK), nil
	}
	var req struct {
		Contact *[]string `json:"contact"`
		Status  string    `json:"status"`
	}
	if problem := rq.decode(&req); problem != nil {
		return nil, problem
	}
	if req.Contact != nil {
		if problem := checkContact(*req.Contact); problem != nil {
			return nil, problem
		}
		rq.account.Contact = slices.Clone(*req.Contact)
	}
	switch req.Status {
	case "", "valid":
	case "deactivated":
		rq.account.Status = req.Status
	default:
		return nil, rq.violate(http.StatusBadRequest, "malformed", "account status %q", req.Status)
	}
	return rq.account.reply(rq, http.StatusOK), nil
}

// orderList is RFC 8555 section 7.1.2.1.
func (ca *CA) orderList(rq *request) (*reply, *Error) {
	if problem := rq.wantRead(); problem != nil {
		return nil, problem
	}
	if rq.id != rq.account.id {
		return nil, rq.violate(http.StatusForbidden, "unauthorized", "another account's orders")
	}
	urls := []string{}
	for _, o := range ca.orders {
		if status := ca.orderStatus(o); o.account == rq.account && status != "invalid" {
			urls = append(urls, rq.cfg.url("order", o.id))
		}
	}
	return &reply{status: http.StatusOK, body: map[string]any{"orders": urls}}, nil
}

// keyChange is RFC 8555 section 7.3.5.
func (ca *CA) keyChange(rq *request) (*reply, *Error) {
	inner, err := parseJWS(rq.payload)
	if err != nil {
		return nil, rq.violate(http.StatusBadRequest, "malformed", "inner JWS: %v", err)
	}
	key, err := parseJWK(inner.header.JWK)
	if err == nil {
		err = inner.verify(key)
	}
	if err != nil {
		return nil, rq.violate(http.StatusBadRequest, "malformed", "inner JWS: %v", err)
	}
	var req struct {
		Account string          `json:"account"`
		OldKey  json.RawMessage `json:"oldKey"`
	}
	if err := json.Unmarshal(inner.payload, &req); err != nil {
		return nil, rq.violate(http.StatusBadRequest, "malformed", "inner payload: %v", err)
	}
	h := inner.header
	old, err := parseJWK(req.OldKey)
	if h.URL == nil || *h.URL != rq.url || h.Nonce != nil || h.KID != nil || req.Account != rq.account.URL || err != nil || old.jwk != rq.key.jwk {
		return nil, rq.violate(http.StatusBadRequest, "malformed", "inner JWS: not by RFC 8555 section 7.3.5")
	}
	if a := ca.keys[key.thumbprint]; a != nil {
		return nil, &Error{Status: http.StatusConflict, Type: "malformed", Detail: "the new key has an account"}
	}
	delete(ca.keys, rq.account.key.thumbprint)
	rq.account.key = key
	ca.keys[key.thumbprint] = rq.account
	return rq.account.reply(rq, http.StatusOK), nil
}
