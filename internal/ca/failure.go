package ca

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/acme"
)

// A Class says who is at fault, and with that what can be done about it.
type Class int

const (
	Ours       Class = iota // this program or this machine: asking another CA would not help
	Limited                 // the CA has enough of this host for now
	Paused                  // the CA has enough of this host until a person acts
	Policy                  // the CA does not serve this host, this account or this request
	Validation              // the CA could not validate the host
	Fault                   // the CA is broken or overloaded
	Network                 // the CA cannot be reached
	NoAccount               // the CA does not know our account
	Terms                   // the CA wants us to agree to new terms of service
	Refused                 // the CA has no account for us, or not as we want it
	Unset                   // a DNS record that a person must set is not there
)

func (c Class) String() string {
	return [...]string{"ours", "limit", "paused", "policy", "validation", "fault", "network", "no account", "terms", "refused", "unset"}[c]
}

// A Failure is an error of a conversation with a CA.
type Failure struct {
	Class  Class
	Step   string        // what was being done
	Retry  time.Duration // what the CA asked us to wait, from now on; zero if it did not say
	Action string        // for Paused: where a person is to go; for Terms: their URL
	Err    error         // the CA's own words, where it had any
}

func (f *Failure) Error() string { return f.Step + ": " + f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// CAWide reports whether the failure is about the CA as a whole rather than
// about one host.
func (f *Failure) CAWide() bool {
	return f.Passing() || f.Class == Terms || f.Class == Refused
}

// Passing reports whether the same request may well do better in a moment.
func (f *Failure) Passing() bool { return f.Class == Fault || f.Class == Network }

// fail classes an error that came up while asking about one order.
func fail(step string, err error) error {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	f := &Failure{Class: Network, Step: step, Err: err}
	e, ok := errors.AsType[*acme.Error](err)
	if !ok {
		return f
	}
	f.Retry = retryAfter(e.Header)
	f.Class = classOf(e)
	if f.Class == Terms {
		f.Action = cmp.Or(append(links(e.Header, "terms-of-service"), "")[0], e.Instance)
	}
	if f.Class == Limited && e.Header.Get("Retry-After") == "" {
		if f.Action = link(e.Detail); f.Action != "" {
			f.Class = Paused
		}
	}
	return f
}

// failOurs classes an error that came up here, while nothing was asked of the CA.
func failOurs(step string, err error) error {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	return &Failure{Class: Ours, Step: step, Err: err}
}

// failAccount classes an error that came up while asking about the directory,
// a nonce or the account, where a limit is one on us as a whole, and so is a
// refusal: it is not for every host to ask again.
func failAccount(step string, err error) error {
	err = fail(step, err)
	switch f := err.(*Failure); f.Class {
	case Limited, Paused:
		f.Class = Fault
	case Policy, Terms:
		f.Class = Refused
	}
	return err
}

// link returns the address that a limit's text sends a person to, "" if it has
// none. Let's Encrypt pauses a host that failed for months this way: no
// Retry-After, and a page to unpause it at.
func link(text string) string {
	const scheme = "https://"
	ends := func(r rune) bool { return strings.ContainsRune(" \t\n\f\r\"'<>", r) }
	for word := range strings.FieldsFuncSeq(text, ends) {
		_, rest, _ := strings.Cut(word, scheme)
		rest = strings.TrimRight(rest, ".,;)") // the sentence's, not the link's
		if utf8.RuneCountInString(rest) > 1 {
			return scheme + rest
		}
	}
	return ""
}

func classOf(e *acme.Error) Class {
	kind := strings.ToLower(e.ProblemType[strings.LastIndexByte(e.ProblemType, ':')+1:])
	switch kind {
	case "accountdoesnotexist":
		return NoAccount
	case "useractionrequired": // RFC 8555, section 7.3.3
		return Terms
	case "ratelimited":
		return Limited
	case "badnonce", "serverinternal":
		return Fault
	case "caa", "connection", "dns", "incorrectresponse", "tls":
		return Validation
	}
	switch {
	case e.StatusCode >= 500, e.StatusCode == http.StatusTooManyRequests:
		return Fault
	case kind == "" && e.StatusCode != 0:
		return Fault // no problem document: this is not an ACME server speaking
	}
	return Policy
}

// problemIs reports whether the CA named this problem (RFC 8555, section 6.7).
func problemIs(err error, kind string) bool {
	e, ok := errors.AsType[*acme.Error](err)
	return ok && strings.HasSuffix(strings.ToLower(e.ProblemType), ":"+strings.ToLower(kind))
}

// A badCertificate is one that the CA issued and we can't use. Asking for it
// again would not better it.
type badCertificate struct{ error }

func (e *badCertificate) Unwrap() error { return e.error }

// A ValidationError says which challenge the CA could not validate and how.
// It unwraps to what the CA said.
type ValidationError struct {
	Challenge string // its type
	Arrived   bool   // whether any validation was seen to arrive here
	Err       error
}

func (e *ValidationError) Error() string { return fmt.Sprintf("%s: %v", e.Challenge, e.Err) }
func (e *ValidationError) Unwrap() error { return e.Err }

// Resumable reports whether the order, if one was made, may still come to a
// certificate that is of use.
func (f *Failure) Resumable() bool {
	switch f.Class {
	case Validation, Policy, NoAccount:
		return false
	}
	return !f.unusable()
}

// unusable reports whether the CA issued a certificate that is not what was asked
// for.
func (f *Failure) unusable() bool {
	_, bad := errors.AsType[*badCertificate](f.Err)
	return bad
}
