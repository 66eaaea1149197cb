// Package letsencrypt obtains, serves, renews and remembers TLS certificates.
package letsencrypt

import (
	_ "golang.org/x/crypto/acme"
	_ "golang.org/x/net/idna"
	_ "golang.org/x/time/rate"
)
