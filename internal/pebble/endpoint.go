package pebble

import "strings"

// An Endpoint is a kind of request that a CA answers. The constants are all
// there are; those of a directory have the names they have there.
type Endpoint string

const (
	Directory   Endpoint = "directory"
	NewNonce    Endpoint = "newNonce"
	NewAccount  Endpoint = "newAccount"
	NewOrder    Endpoint = "newOrder"
	RevokeCert  Endpoint = "revokeCert"
	KeyChange   Endpoint = "keyChange"
	RenewalInfo Endpoint = "renewalInfo"

	Account     Endpoint = "account"
	Orders      Endpoint = "orders" // the list of an account's orders
	Order       Endpoint = "order"
	Authz       Endpoint = "authz"
	Challenge   Endpoint = "challenge"
	Finalize    Endpoint = "finalize"
	Certificate Endpoint = "certificate"

	Unknown Endpoint = "unknown" // a path that Pebble does not have
)

// endpoints has Pebble's paths, which are unlike other CAs' on purpose. A
// slash at the end means all the paths below.
var endpoints = map[string]Endpoint{
	"/dir":                  Directory,
	"/nonce-plz":            NewNonce,
	"/sign-me-up":           NewAccount,
	"/order-plz":            NewOrder,
	"/revoke-cert":          RevokeCert,
	"/rollover-account-key": KeyChange,
	"/my-account/":          Account,
	"/list-orderz/":         Orders,
	"/my-order/":            Order,
	"/authZ/":               Authz,
	"/chalZ/":               Challenge,
	"/finalize-order/":      Finalize,
	"/certZ/":               Certificate,

	"/draft-ietf-acme-ari-03/renewalInfo/": RenewalInfo,
}

// endpointOf returns the endpoint of a path.
func endpointOf(path string) Endpoint {
	if e, ok := endpoints[path]; ok {
		return e
	}
	for prefix, e := range endpoints {
		if strings.HasSuffix(prefix, "/") && strings.HasPrefix(path, prefix) {
			return e
		}
	}
	return Unknown
}
