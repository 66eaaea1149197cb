package event

import "regexp"

// What a CA's error may repeat and no log shall: the token and the key
// authorization of a challenge, and the query of a link, which may let whoever
// has it act for the account.
var (
	keyAuths = regexp.MustCompile(`[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{43}\b`)
	tokens   = regexp.MustCompile(`(acme-challenge/)[A-Za-z0-9_-]+`)
	queries  = regexp.MustCompile(`(https?://[^\s"'?]*\?)[^\s"']+`)
)

// Redact returns an error's text, fit for a log; "" for nil.
func Redact(err error) string {
	if err == nil {
		return ""
	}
	s := keyAuths.ReplaceAllString(err.Error(), "...")
	s = tokens.ReplaceAllString(s, "${1}...")
	return queries.ReplaceAllString(s, "${1}...")
}
