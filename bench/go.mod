module example.com/letsencrypt/bench

go 1.26.0

require (
	example.com/letsencrypt v0.0.0
	github.com/caddyserver/certmagic v0.25.6
	golang.org/x/crypto v0.58.0
)

replace example.com/letsencrypt => ../
