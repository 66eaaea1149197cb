package main

import (
	"errors"
	"net/http"
	"sync/atomic"

	_ "github.com/caddyserver/certmagic"
	_ "golang.org/x/crypto/acme/autocert"
)

// A deadCA is one that can't be reached. It counts what it was asked.
type deadCA struct{ requests atomic.Int64 }

var errDead = errors.New("the CA is dead")

func (d *deadCA) RoundTrip(*http.Request) (*http.Response, error) {
	d.requests.Add(1)
	return nil, errDead
}

func (d *deadCA) client() *http.Client { return &http.Client{Transport: d} }
