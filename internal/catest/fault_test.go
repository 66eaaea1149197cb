package catest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/letsencrypt/internal/catest"
	"golang.org/x/crypto/acme"
)

// get reads the directory.
func get(ctx context.Context, ca *catest.CA) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", ca.Directory(), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("User-Agent", "test")
	res, err := ca.Client().Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res, body, err
}

func TestFaultErrors(t *testing.T) {
	tests := []struct {
		name  string
		fault catest.Response
		want  error
	}{
		{"Refuse", catest.Refuse, syscall.ECONNREFUSED},
		{"Drop", catest.Drop, syscall.ECONNRESET},
		{"LoseReply", catest.LoseReply, syscall.ECONNRESET},
		{"Truncate", catest.Truncate, syscall.ECONNRESET},
		{"Hang", catest.Hang, context.DeadlineExceeded},
		{"Slow", catest.Slow(time.Hour), context.DeadlineExceeded},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			ca.Fault(catest.On("directory", 0, test.fault))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, _, err := get(ctx, ca); !errors.Is(err, test.want) {
				t.Errorf("%s: error is %v, want %v", test.name, err, test.want)
			}
			ca.Fault(nil)
			if _, _, err := get(t.Context(), ca); err != nil {
				t.Errorf("after %s: %v", test.name, err)
			}
			if got := ca.Count("directory"); got != 2 {
				t.Errorf("after %s: Count(directory) = %d, want 2", test.name, got)
			}
		})
	}
}

func TestFaultReplies(t *testing.T) {
	tests := []struct {
		name        string
		fault       catest.Response
		status      int
		contentType string
		retryAfter  string
		body        string // in it
	}{
		{"Problem", catest.Problem(503, "serverInternal", "too busy", "120"), 503, "application/problem+json", "120", "too busy"},
		{"HTML", catest.HTML(502, ""), 502, "text/html", "", "Bad Gateway"},
		{"HTML", catest.HTML(503, "7"), 503, "text/html", "7", "Unavailable"},
		{"Slow", catest.Slow(time.Second), 200, "application/json", "", "newOrder"},
		{"Edit", catest.Edit(func(*http.Response, []byte) []byte { return []byte("edited") }), 200, "application/json", "", "edited"},
		{"Endless", catest.Endless, 200, "application/json", "", strings.Repeat(" ", 1<<19)},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			ca.Fault(catest.On("directory", 0, test.fault))
			res, body, err := get(t.Context(), ca)
			if err != nil {
				t.Fatal(err)
			}
			h := res.Header
			if res.StatusCode != test.status || h.Get("Content-Type") != test.contentType || h.Get("Retry-After") != test.retryAfter {
				t.Errorf("%s: reply is %d %v, want %d %s %s", test.name, res.StatusCode, h, test.status, test.contentType, test.retryAfter)
			}
			if !strings.Contains(string(body), test.body) {
				t.Errorf("%s: body is %.80q, want one with %.80q", test.name, body, test.body)
			}
			if got := ca.Requests()[0].Status; got != test.status {
				t.Errorf("%s: log has status %d, want %d", test.name, got, test.status)
			}
		})
	}
}

func TestTruncate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		_, whole, err := get(t.Context(), ca)
		if err != nil {
			t.Fatal(err)
		}
		ca.Fault(catest.On("directory", 0, catest.Truncate))
		if _, body, err := get(t.Context(), ca); string(body) != string(whole[:len(whole)/2]) || err == nil {
			t.Errorf("truncated body is %q, %v, want half of %q", body, err, whole)
		}
	})
}

// A slow CA acts late.
func TestSlowActs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		ca.Fault(catest.On("newOrder", 0, catest.Slow(time.Hour)))
		start := time.Now()
		if _, err := c.order(t, []string{"example.com"}); err != nil {
			t.Fatal(err)
		}
		if got := ca.Orders()[0].Time; !got.Equal(start.Add(time.Hour)) {
			t.Errorf("order was made at %v, want %v", got, start.Add(time.Hour))
		}
	})
}

// A client does not wait longer than it wants for a validation.
func TestContextDuringValidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		z := c.firstAuthz(t, "example.com")
		ca.Change(func(c *catest.Config) {
			c.HTTP = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := c.Accept(ctx, z.Challenges[1])
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
			t.Errorf("Accept = %v after %v, want %v after 1s", err, took, context.DeadlineExceeded)
		}
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if got := ca.Validations(); len(got) != 1 || got[0].Type != "http-01" || got[0].Err == nil {
			t.Errorf("Validations() = %v, want a failure", got)
		}
	})
}

// A lost reply is to a request that was acted on, a dropped request was not.
func TestFaultActs(t *testing.T) {
	for name, want := range map[string]int{"LoseReply": 1, "Drop": 0} {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			c := newClient(t, ca).register(t)
			ca.Fault(catest.On("newOrder", 1, map[string]catest.Response{"LoseReply": catest.LoseReply, "Drop": catest.Drop}[name]))
			if _, err := c.order(t, []string{"example.com"}); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("order under %s: %v, want %v", name, err, syscall.ECONNRESET)
			}
			if got := len(ca.Orders()); got != want {
				t.Errorf("under %s the CA has %d orders, want %d", name, got, want)
			}
		})
	}
}

func TestOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		get(t.Context(), ca)
		ca.Fault(catest.On("directory", 2, catest.Drop))
		for i := range 3 {
			_, _, err := get(t.Context(), ca)
			if (err != nil) != (i == 1) {
				t.Errorf("request %d since On(2): error is %v", i+1, err)
			}
		}
		ca.Fault(catest.On("newNonce", 0, catest.Drop))
		if _, _, err := get(t.Context(), ca); err != nil {
			t.Errorf("directory under a fault of newNonce: %v", err)
		}
	})
}

func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		ca.Fault(catest.Down)
		if _, err := c.obtain(t, "http-01", "example.com"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("obtaining from a CA that is down: %v, want %v", err, syscall.ECONNREFUSED)
		}
		ca.Fault(nil)
		c.mustObtain(t, "http-01", "example.com")
	})
}

// A problem that is a fault brings a nonce, as the CA's own do.
func TestFaultNonce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		ca.Fault(catest.On("newOrder", 1, catest.Problem(400, "badNonce", "once", "")))
		p := newRaw(t, c, string(c.KID), "").send(t, ca.Client())
		if p.Status != 200 {
			t.Errorf("account = %d, want 200", p.Status)
		}
		r := newRaw(t, c, "https://ca.test/new-order", "{}")
		if p = r.send(t, ca.Client()); !p.is(400, "badNonce") {
			t.Errorf("newOrder under the fault = %d %s, want badNonce", p.Status, p.Type)
		}
		r = newRaw(t, c, string(c.KID), "")
		r.protected["nonce"] = p.header.Get("Replay-Nonce")
		if p = r.send(t, ca.Client()); p.Status != 200 {
			t.Errorf("account with the fault's nonce = %d %s, want 200", p.Status, p.Type)
		}
	})
}

func TestNonceReject(t *testing.T) {
	for name, reject := range map[string]func(int) bool{"every second": catest.Every(2), "half": catest.Percent(50, 1)} {
		synctest.Test(t, func(t *testing.T) {
			ca := catest.New(t)
			ca.NonceReject = reject
			c := newClient(t, ca)
			c.RetryBackoff = func(int, *http.Request, *http.Response) time.Duration { return time.Millisecond }
			c.register(t).mustObtain(t, "http-01", "example.com")
			refused := 0
			for _, r := range ca.Requests() {
				if r.Status == 400 {
					refused++
				}
			}
			if refused < 3 {
				t.Errorf("%s: %d requests refused, want several", name, refused)
			}
		})
	}
}

func TestPercent(t *testing.T) {
	count := func(percent int, seed uint64) (n int) {
		reject := catest.Percent(percent, seed)
		for i := range 1000 {
			if reject(i + 1) {
				n++
			}
		}
		return n
	}
	if n := count(0, 1); n != 0 {
		t.Errorf("Percent(0) refuses %d of 1000, want 0", n)
	}
	if n := count(100, 1); n != 1000 {
		t.Errorf("Percent(100) refuses %d of 1000, want 1000", n)
	}
	if n := count(20, 1); n < 150 || n > 250 || n != count(20, 1) {
		t.Errorf("Percent(20) refuses %d of 1000, then %d; want about 200, always the same", n, count(20, 1))
	}
}

func TestNonceLifetime(t *testing.T) {
	strict(t, func(t *testing.T, ca *catest.CA, rec *recorder) {
		ca.NonceLifetime = time.Hour
		c := newClient(t, ca).register(t)
		r := newRaw(t, c, string(c.KID), "")
		time.Sleep(time.Hour + time.Second)
		if p := r.send(t, ca.Client()); !p.is(400, "badNonce") {
			t.Errorf("old nonce: %d %s, want 400 badNonce", p.Status, p.Type)
		}
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		ca.Latency = time.Second
		start := time.Now()
		get(t.Context(), ca)
		if took := time.Since(start); took != time.Second {
			t.Errorf("request took %v, want 1s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, _, err := get(ctx, ca); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("request that is given up: %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

func TestDate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		for _, skew := range []time.Duration{0, time.Hour, -72 * time.Hour} {
			ca.Change(func(c *catest.Config) { c.Skew = skew })
			for _, fault := range []catest.Script{nil, catest.On("directory", 0, catest.HTML(502, ""))} {
				ca.Fault(fault)
				res, _, err := get(t.Context(), ca)
				if err != nil {
					t.Fatal(err)
				}
				date, err := http.ParseTime(res.Header.Get("Date"))
				if err != nil || !date.Equal(time.Now().Add(skew)) {
					t.Errorf("Date with skew %v is %v, %v, want %v", skew, date, err, time.Now().Add(skew))
				}
			}
		}
	})
}

// A script may use the CA, and sees the request.
func TestScript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		ca.Fault(func(endpoint string, n int, r *http.Request) catest.Response {
			if endpoint == "finalize" && ca.Count("finalize") == 1 && r.Method == "POST" {
				return catest.Problem(500, "serverInternal", "no", "")
			}
			return nil
		})
		c.mustObtain(t, "http-01", "example.com")
		if got := ca.Count("finalize"); got != 2 {
			t.Errorf("Count(finalize) = %d, want 2", got)
		}
	})
}

func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t)
		c := newClient(t, ca).register(t)
		time.Sleep(time.Hour)
		c.mustObtain(t, "tls-alpn-01", "example.com")
		var got []string
		for _, r := range ca.Requests() {
			if r.Time.Equal(time.Now()) && r.Endpoint != "newNonce" {
				got = append(got, r.Endpoint)
			}
		}
		// The second authz is WaitAuthorization, the first order WaitOrder.
		want := "newOrder authz challenge authz order finalize certificate"
		if strings.Join(got, " ") != want {
			t.Errorf("requests: %s, want %s", got, want)
		}
		if got := ca.Count(""); got != len(ca.Requests()) {
			t.Errorf(`Count("") = %d, want %d`, got, len(ca.Requests()))
		}
	})
}

// Another CA has other names, keys and accounts.
func TestTwoCAs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca1, ca2 := catest.New(t), catest.New(t)
		ca2.Host = "other.test"
		c := newClient(t, ca1).register(t)
		leaf := c.mustObtain(t, "http-01", "example.com")
		other := newClient(t, ca2)
		other.Key = c.Key
		if _, err := other.GetReg(t.Context(), ""); !errors.Is(err, acme.ErrNoAccount) {
			t.Errorf("GetReg at the other CA: %v, want %v", err, acme.ErrNoAccount)
		}
		leaf2 := other.register(t).mustObtain(t, "http-01", "example.com")
		if string(leaf.AuthorityKeyId) == string(leaf2.AuthorityKeyId) {
			t.Error("both CAs have the same issuer key")
		}
		if got := len(ca2.Issued("example.com")); got != 1 {
			t.Errorf("the other CA issued %d certificates, want 1", got)
		}
	})
}
