// Package compat tests that what others have written fits as it stands, and
// that all kinds of certificates can be had from servers that are not ours.
package compat

import (
	"github.com/caddyserver/certmagic"
	"github.com/go-acme/lego/v5/providers/dns/dnsupdate"

	"example.com/letsencrypt"
	"example.com/letsencrypt/dns/libdns"
)

var (
	_ letsencrypt.DNSProvider = (*libdns.DNS)(nil)
	_ letsencrypt.DNSProvider = (*dnsupdate.DNSProvider)(nil)
	_ letsencrypt.Storage     = (*certmagic.FileStorage)(nil)
	_ letsencrypt.Storage     = certmagic.Storage(nil)
)
