package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// visitTimeout bounds all visits together.
const visitTimeout = time.Minute

// visit does what a visitor does, prints a line for each thing that ought to
// be so, and returns an error if one is not. In the course of it the server is
// stopped; visit returns the one that took its place, or else the stopped one.
func (d *demo) visit(ctx context.Context, s *server) (*server, error) {
	ctx, cancel := context.WithTimeout(ctx, visitTimeout)
	defer cancel()
	v := &verdict{out: d.out}
	fmt.Fprintln(d.out)
	first, err := d.visitHTTPS(ctx, s.m.HTTPSAddr)
	v.check("HTTPS serves "+host+", and its chain leads to Pebble's root", err)
	v.check("HTTP redirects to HTTPS", d.visitHTTP(ctx))

	orders := d.ca.Orders()
	s, err = d.restart(ctx, s)
	if err == nil {
		err = d.serves(ctx, s.m.HTTPSAddr, first)
	}
	v.check("another Manager serves the same certificate from the same file", err)
	v.check("Pebble counts no further order for it", same(d.ca.Orders(), orders))
	return s, v.err()
}

// A verdict is whether all is as it ought to be.
type verdict struct {
	out    io.Writer
	failed bool
}

// check prints how one thing is.
func (v *verdict) check(what string, err error) {
	if err != nil {
		fmt.Fprintf(v.out, "FAIL  %s: %v\n", what, err)
		v.failed = true
		return
	}
	fmt.Fprintf(v.out, "ok    %s\n", what)
}

func (v *verdict) err() error {
	if v.failed {
		return errors.New("not all is as it should be")
	}
	return nil
}

// restart stops the server and starts one anew, with a Manager that knows no
// more than what is in the folder.
func (d *demo) restart(ctx context.Context, s *server) (*server, error) {
	if err := s.stop(); err != nil {
		return s, err
	}
	again, err := d.start(ctx)
	if err != nil {
		return s, err
	}
	return again, nil
}

func same(got, want int) error {
	if got != want {
		return fmt.Errorf("%d, want %d", got, want)
	}
	return nil
}

// serves returns an error unless the server at addr serves a certificate.
func (d *demo) serves(ctx context.Context, addr string, want *x509.Certificate) error {
	leaf, err := d.visitHTTPS(ctx, addr)
	if err != nil {
		return err
	}
	if !leaf.Equal(want) {
		return fmt.Errorf("it serves %x", leaf.SerialNumber)
	}
	return nil
}

// visitHTTPS gets the page of the server at addr, with the chain verified, and
// returns the server's certificate.
func (d *demo) visitHTTPS(ctx context.Context, addr string) (*x509.Certificate, error) {
	res, body, err := d.get(ctx, "https", addr)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK || !strings.Contains(body, host) {
		return nil, fmt.Errorf("%s: %q", res.Status, body)
	}
	return res.TLS.PeerCertificates[0], nil
}

// visitHTTP asks without TLS and sees where it is sent.
func (d *demo) visitHTTP(ctx context.Context) error {
	res, _, err := d.get(ctx, "http", d.httpAddr())
	if err != nil {
		return err
	}
	want := pageURL("https", d.httpsAddr())
	if got := res.Header.Get("Location"); res.StatusCode != http.StatusFound || got != want {
		return fmt.Errorf("%s to %q, want one to %q", res.Status, got, want)
	}
	return nil
}

func pageURL(scheme, addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return scheme + "://" + net.JoinHostPort(host, port) + "/page?x=1"
}

// get asks for a page of host's at addr, and follows no redirect.
func (d *demo) get(ctx context.Context, scheme, addr string) (*http.Response, string, error) {
	pem, err := os.ReadFile(d.roots())
	if err != nil {
		return nil, "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addr)
			},
			TLSClientConfig:   &tls.Config{RootCAs: roots},
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, pageURL(scheme, addr), nil)
	if err != nil {
		return nil, "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}
