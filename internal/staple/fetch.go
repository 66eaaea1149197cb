package staple

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	requestTimeout = 10 * time.Second // for one request, redirects and body included
	maxResponders  = 4                // of one certificate that we ask; most name one
	maxRedirects   = 3
	maxBody        = 64 << 10 // a response with a certificate is some 2 kB
	maxGet         = 255      // the longest URL of a GET request, by RFC 5019 section 5
)

// ErrNoResponder is the error for a certificate that names no OCSP responder
// with an http or https URL.
var ErrNoResponder = errors.New("certificate names no OCSP responder")

// errSlow ends a request that took longer than requestTimeout.
var errSlow = fmt.Errorf("no answer within %v", requestTimeout)

// Fetch asks leaf's responders, one after the other, until one answers with
// something that Parse accepts. If none does, the error has a line for each.
// A nil client means http.DefaultClient.
//
// It asks by GET, which content delivery networks answer from their caches, and
// after an answer that is of no use by POST, which they pass on to the CA.
func Fetch(ctx context.Context, client *http.Client, leaf, issuer *x509.Certificate) (*Response, error) {
	urls := responders(leaf)
	if len(urls) == 0 {
		return nil, ErrNoResponder
	}
	// SHA-1 is what the CertID is made with: RFC 5019 section 2.1.1 demands it,
	// and there are responders that know no other.
	der, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		return nil, fmt.Errorf("making OCSP request: %w", err)
	}
	f := &fetch{client: restrict(client), der: der, leaf: leaf, issuer: issuer}
	var errs []error
	for _, u := range urls {
		r, err := f.ask(ctx, u)
		if err == nil {
			return r, nil
		}
		errs = append(errs, fmt.Errorf("OCSP responder %s: %w", u.Redacted(), err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// responders returns the URLs of leaf's responders that we may ask.
func responders(leaf *x509.Certificate) []*url.URL {
	var urls []*url.URL
	for _, s := range leaf.OCSPServer {
		u, err := url.Parse(s)
		if err == nil && isWeb(u) && len(urls) < maxResponders {
			urls = append(urls, u)
		}
	}
	return urls
}

func isWeb(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// restrict returns a copy of client that follows few redirects, and none that
// leaves the web.
func restrict(client *http.Client) *http.Client {
	if client == nil {
		client = http.DefaultClient
	}
	c, check := *client, client.CheckRedirect
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) > maxRedirects:
			return fmt.Errorf("more than %d redirects", maxRedirects)
		case !isWeb(req.URL):
			return fmt.Errorf("redirect to scheme %q", req.URL.Scheme)
		case check != nil:
			return check(req, via)
		}
		return nil
	}
	return &c
}

// A fetch is one request for the status of leaf, whoever is asked.
type fetch struct {
	client       *http.Client
	der          []byte
	leaf, issuer *x509.Certificate
}

// errNoAnswer is the error of a request that nobody answered, so that asking
// the same server in another way is pointless.
type errNoAnswer struct{ error }

func (e errNoAnswer) Unwrap() error { return e.error }

// ask asks the responder at u.
func (f *fetch) ask(ctx context.Context, u *url.URL) (*Response, error) {
	target := getURL(u, f.der)
	if len(target) > maxGet {
		return f.do(ctx, http.MethodPost, u.String(), f.der)
	}
	r, err := f.do(ctx, http.MethodGet, target, nil)
	_, noAnswer := errors.AsType[errNoAnswer](err)
	if err == nil || noAnswer || ctx.Err() != nil {
		return r, err
	}
	r, postErr := f.do(ctx, http.MethodPost, u.String(), f.der)
	if postErr != nil {
		return nil, fmt.Errorf("%w; by POST: %w", err, postErr)
	}
	return r, nil
}

// getURL returns the URL of der as a GET request to the responder at u
// (RFC 6960 appendix A.1). All that base64 has beside letters and digits is
// escaped: the slash would be taken for a path's, the plus by some for a space.
func getURL(u *url.URL, der []byte) string {
	b64 := base64.StdEncoding.EncodeToString(der)
	get := *u
	get.Path = strings.TrimSuffix(u.Path, "/") + "/" + b64
	get.RawPath = strings.TrimSuffix(u.EscapedPath(), "/") + "/" + url.QueryEscape(b64)
	return get.String()
}

// do sends one request and parses the answer.
func (f *fetch) do(ctx context.Context, method, target string, body []byte) (*Response, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, errSlow)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/ocsp-response")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/ocsp-request")
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, errNoAnswer{unwrapURL(err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	// The content type says nothing: there are responders that get it wrong.
	der, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("reading OCSP response: %w", err)
	}
	if len(der) > maxBody {
		return nil, fmt.Errorf("OCSP response is longer than %d bytes", maxBody)
	}
	return Parse(der, f.leaf, f.issuer, time.Now())
}

// unwrapURL returns what went wrong without the URL, of which half is the
// request, in base64.
func unwrapURL(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
