package ca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// How soon the CA may be asked again about the same certificate.
const (
	ariSoonest = 1 * time.Minute
	ariDefault = 6 * time.Hour
	ariLatest  = 24 * time.Hour
)

// RenewalInfo is when a CA would have a certificate replaced (RFC 9773).
type RenewalInfo struct {
	Start, End  time.Time     // the suggested window
	Explanation string        // a page for a person to read, "" if none
	Again       time.Duration // when to ask again, from now on
}

// ErrNoRenewalInfo says that the CA offers no renewal information.
var ErrNoRenewalInfo = errors.New("the CA offers no renewal information")

// RenewalInfo asks about the certificate with the given identifier (RFC 9773,
// section 4.1). Where the answer is no use, Again says when to ask again.
func (c *Client) RenewalInfo(ctx context.Context, id string) (RenewalInfo, error) {
	const step = "asking for renewal information"
	info := RenewalInfo{Again: ariDefault}
	d, err := c.Directory(ctx)
	if err != nil {
		return info, err
	}
	if d.RenewalInfo == "" {
		info.Again = ariLatest
		return info, ErrNoRenewalInfo
	}
	ex, err := c.get(ctx, strings.TrimSuffix(d.RenewalInfo, "/")+"/"+id)
	if err != nil {
		err = fail(step, err)
		info.Again = again(err.(*Failure).Retry)
		return info, err
	}
	info.Again = again(retryAfter(ex.header))
	var v struct {
		SuggestedWindow struct{ Start, End time.Time }
		ExplanationURL  string
	}
	if err := json.Unmarshal(ex.body, &v); err != nil {
		return info, &Failure{Class: Fault, Step: step, Err: err}
	}
	info.Start, info.End, info.Explanation = v.SuggestedWindow.Start, v.SuggestedWindow.End, v.ExplanationURL
	if !info.Start.Before(info.End) {
		return info, &Failure{Class: Fault, Step: step, Err: fmt.Errorf("the window ends (%v) before it starts (%v)", info.End, info.Start)}
	}
	return info, nil
}

// again is RFC 9773's advice (section 4.3.2): heed the CA, within reason.
func again(asked time.Duration) time.Duration {
	if asked == 0 {
		return ariDefault
	}
	return min(max(asked, ariSoonest), ariLatest)
}
