package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
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
	failed := false
	check := func(what string, err error) {
		if err != nil {
			fmt.Fprintf(d.out, "FAIL  %s: %v\n", what, err)
			failed = true
			return
		}
		fmt.Fprintf(d.out, "ok    %s\n", what)
	}
	fmt.Fprintln(d.out)
	first, err := d.visitHTTPS(ctx, s)
	check("HTTPS serves "+host+", and its chain leads to Pebble's root", err)
	check("HTTP redirects to HTTPS", d.visitHTTP(ctx, s))

	orders := d.ca.Orders()
	s, err = d.restart(ctx, s)
	var second *big.Int
	if err == nil {
		second, err = d.visitHTTPS(ctx, s)
	}
	if err == nil && (first == nil || first.Cmp(second) != 0) {
		err = fmt.Errorf("it serves %x, the first one served %x", second, first)
	}
	check("another Manager serves the same certificate from the same file", err)
	check("Pebble counts no further order for it", same(d.ca.Orders(), orders))
	if failed {
		return s, errors.New("not all is as it should be")
	}
	return s, nil
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

// visitHTTPS gets the server's page, with the chain verified, and returns the
// serial number of the certificate.
func (d *demo) visitHTTPS(ctx context.Context, s *server) (*big.Int, error) {
	res, body, err := d.get(ctx, "https", s.m.HTTPSAddr)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK || !strings.Contains(body, host) {
		return nil, fmt.Errorf("%s: %q", res.Status, body)
	}
	return res.TLS.PeerCertificates[0].SerialNumber, nil
}

// visitHTTP asks without TLS and sees where it is sent.
func (d *demo) visitHTTP(ctx context.Context, s *server) error {
	res, _, err := d.get(ctx, "http", s.m.HTTPAddr)
	if err != nil {
		return err
	}
	want := pageURL("https", s.m.HTTPSAddr)
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
