package fleet

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/letsencrypt/internal/pebble"
)

// A trail is what members asked the CA about orders, and what was done to them,
// to find out by how two certificates came to be.
type trail struct {
	mu    sync.Mutex // guards steps
	steps []step
}

type step struct {
	at   time.Time
	what string
	of   string // the host of a newOrder request, else the last element of the URL; "": all
}

func (t *trail) add(of, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steps = append(t.steps, step{time.Now(), fmt.Sprintf(format, args...), of})
}

// note returns a fault that writes down requests before fault, which may be nil,
// decides on them.
func (t *trail) note(fault pebble.Fault) pebble.Fault {
	return func(r *http.Request, e pebble.Endpoint, n int) pebble.Reply {
		of := path.Base(r.URL.Path)
		if e == pebble.NewOrder {
			of = orderedHost(r)
		}
		t.add(of, "member %s asks for %s %s", r.Header.Get(memberHeader), e, of)
		if fault == nil {
			return nil
		}
		return fault(r, e, n)
	}
}

// orderedHost returns the host of a newOrder request, and leaves that as it was.
func orderedHost(r *http.Request) string {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return ""
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var jws struct{ Payload string }
	if json.Unmarshal(body, &jws) != nil {
		return ""
	}
	text, err := base64.RawURLEncoding.DecodeString(jws.Payload)
	var order struct{ Identifiers []struct{ Value string } }
	if err != nil || json.Unmarshal(text, &order) != nil || len(order.Identifiers) != 1 {
		return ""
	}
	return order.Identifiers[0].Value
}

// about returns the steps about a host and these orders of its.
func (t *trail) about(host string, orders []string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines strings.Builder
	for _, s := range t.steps {
		if s.of == "" || s.of == host || slices.Contains(orders, s.of) {
			fmt.Fprintln(&lines, s.at.Format("15:04:05.000"), s.what)
		}
	}
	return lines.String()
}
