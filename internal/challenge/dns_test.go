package challenge

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A zone is a DNS provider and the name servers of its zones in one. It logs
// what it is asked and when, in seconds from the beginning.
type zone struct {
	t       *testing.T
	start   time.Time
	targets map[string]string // where a name's CNAME leads
	unknown error             // of Target and Lookup
	values  []string          // that Lookup finds

	// What these three do; nil does nothing, and succeeds.
	present func(ctx context.Context) error
	await   func(ctx context.Context) error
	cleanUp func(ctx context.Context) error

	mu  sync.Mutex // guards log
	log []string
}

func (z *zone) note(format string, args ...any) {
	z.mu.Lock()
	defer z.mu.Unlock()
	at := fmt.Sprintf("%v ", time.Since(z.start).Seconds())
	z.log = append(z.log, at+fmt.Sprintf(format, args...))
}

func call(ctx context.Context, f func(context.Context) error) error {
	if f == nil {
		return nil
	}
	return f(ctx)
}

func (z *zone) Present(ctx context.Context, domain, token, keyAuth string) error {
	z.note("present %s %s %s", domain, token, keyAuth)
	if _, ok := ctx.Deadline(); !ok {
		z.t.Error("Present has no bound")
	}
	return call(ctx, z.present)
}

func (z *zone) CleanUp(ctx context.Context, domain, token, keyAuth string) error {
	z.note("cleanup %s %s %s", domain, token, keyAuth)
	if _, ok := ctx.Deadline(); !ok || ctx.Err() != nil {
		z.t.Errorf("CleanUp has a bound: %v, and its context is over: %v; want true and no error", ok, ctx.Err())
	}
	return call(ctx, z.cleanUp)
}

func (z *zone) Target(ctx context.Context, name string) (string, error) {
	return cmp.Or(z.targets[name], name), z.unknown
}

func (z *zone) Lookup(ctx context.Context, name string) ([]string, error) {
	return z.values, z.unknown
}

func (z *zone) Await(ctx context.Context, name, value string, interval time.Duration) error {
	z.note("await %s %s each %v", name, value, interval)
	return call(ctx, z.await)
}

// A timed provider says how long its records take, a sequential one that it
// sets one at a time.
type timed struct {
	*zone
	timeout, interval time.Duration
}

func (p timed) Timeout() (timeout, interval time.Duration) { return p.timeout, p.interval }

type sequential struct {
	*zone
	pause time.Duration
}

func (p sequential) Sequential() time.Duration { return p.pause }

// never is what does not come to an end by itself.
func never(ctx context.Context) error {
	<-ctx.Done()
	return fmt.Errorf("not ended: %w", context.Cause(ctx))
}

// takes returns what takes so long.
func takes(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error { return sleep(ctx, d) }
}

// inZone runs f in a bubble, which must have no goroutine left in the end.
func inZone(t *testing.T, f func(t *testing.T, z *zone, d *DNS)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		z := &zone{t: t, start: time.Now()}
		f(t, z, &DNS{Provider: z, Records: z})
	})
}

// mustAdd adds an answer for a host.
func mustAdd(t *testing.T, d *DNS, host string) (remove func()) {
	t.Helper()
	remove, late, err := d.Add(t.Context(), host, "tok", "tok.thumb")
	if err != nil || late != nil {
		t.Errorf("Add(%s) = late %v, error %v, want neither", host, late, err)
	}
	return remove
}

// wantFree checks that nobody has the name of the host any more.
func wantFree(t *testing.T, z *zone, d *DNS, host string) {
	t.Helper()
	z.present, z.await, z.cleanUp = nil, nil, nil
	start := time.Now()
	if remove := mustAdd(t, d, host); remove != nil {
		remove()
	}
	if took := time.Since(start); took != 0 || len(d.busy) != 0 {
		t.Errorf("the next Add for %s waits %v, and then %d names are busy; want 0s and none", host, took, len(d.busy))
	}
}

// wantLog checks what the zone was asked, the arguments aside that are the same
// in all of a test.
func wantLog(t *testing.T, z *zone, want ...string) {
	t.Helper()
	var got []string
	for _, line := range z.log {
		if !strings.Contains(line, " await ") {
			got = append(got, strings.TrimSuffix(line, " tok tok.thumb"))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the provider was asked\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestDNS(t *testing.T) {
	for _, host := range []string{"example.com", "*.example.com"} {
		inZone(t, func(t *testing.T, z *zone, d *DNS) {
			z.present, z.await, z.cleanUp = takes(time.Second), takes(10*time.Second), takes(2*time.Second)
			// The example of RFC 8555, section 8.1; its digest is OpenSSL's.
			const keyAuth = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
			remove, late, err := d.Add(t.Context(), host, "tok", keyAuth)
			if late != nil || err != nil {
				t.Fatalf("Add(%s) = late %v, error %v", host, late, err)
			}
			time.Sleep(time.Minute) // the CA validates
			remove()
			want := []string{
				"0 present example.com tok " + keyAuth,
				"1 await _acme-challenge.example.com lCM7cZyQXcVHK2nnW3jjAhNT3Fvm18UN-kWZZknKoYM each 2s",
				"71 cleanup example.com tok " + keyAuth,
			}
			if !slices.Equal(z.log, want) || time.Since(z.start) != 73*time.Second {
				t.Errorf("%s: asked %q in %v, want %q in 73s", host, z.log, time.Since(z.start), want)
			}
		})
	}
}

// Who shares a name waits until the other's record is taken away; others don't.
func TestDNSOneAtATimeForAName(t *testing.T) {
	down := errors.New("no server can tell")
	for _, tt := range []struct {
		first, second string
		targets       map[string]string
		unknown       error
		share         bool
	}{
		{"example.com", "*.example.com", nil, nil, true},
		{"example.com", "example.com", nil, nil, true},
		{"a.example.com", "b.example.com", nil, nil, false},
		{"example.com", "a.example.com", nil, nil, false},
		{"a.example.com", "*.a.example.com", nil, down, true},
		{"a.example.com", "b.example.com", nil, down, false},
		{"a.example.com", "b.example.com", map[string]string{"_acme-challenge.a.example.com": "one.example.net", "_acme-challenge.b.example.com": "one.example.net"}, nil, true},
		{"a.example.com", "b.example.com", map[string]string{"_acme-challenge.a.example.com": "one.example.net", "_acme-challenge.b.example.com": "two.example.net"}, nil, false},
		{"a.example.com", "b.example.com", map[string]string{"_acme-challenge.a.example.com": "_acme-challenge.b.example.com"}, nil, true},
	} {
		inZone(t, func(t *testing.T, z *zone, d *DNS) {
			z.targets, z.unknown = tt.targets, tt.unknown
			z.cleanUp = takes(5 * time.Second)
			var second sync.WaitGroup
			defer second.Wait()
			remove := mustAdd(t, d, tt.first)
			time.Sleep(time.Second)
			var began time.Duration
			second.Go(func() {
				remove := mustAdd(t, d, tt.second)
				began = time.Since(z.start)
				remove()
			})
			time.Sleep(59 * time.Second)
			remove()
			second.Wait()
			want := time.Second
			if tt.share {
				want = 65 * time.Second
			}
			if began != want {
				t.Errorf("%s and %s, CNAMEs %v: the second was set after %v, want %v", tt.first, tt.second, tt.targets, began, want)
			}
		})
	}
}

// Many who want the same name all get it, one after another.
func TestDNSManyForAName(t *testing.T) {
	inZone(t, func(t *testing.T, z *zone, d *DNS) {
		z.cleanUp = takes(time.Second)
		set := 0
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				remove := mustAdd(t, d, "example.com")
				set++ // which is a race unless there is one at a time
				if set != 1 {
					t.Errorf("%d records at once, want 1", set)
				}
				time.Sleep(time.Second)
				set--
				remove()
			})
		}
		all.Wait()
		if took := time.Since(z.start); took != 100*time.Second || len(d.busy) != 0 {
			t.Errorf("took %v, and %d names are busy, want 1m40s and none", took, len(d.busy))
		}
	})
}

// Whoever waits at random, gives up at random and fails at random, no name has
// two records, none is left, and none is kept busy.
func TestDNSAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		inZone(t, func(t *testing.T, z *zone, d *DNS) {
			random := rand.New(rand.NewPCG(seed, 0))
			var mu sync.Mutex // guards random and set
			set := make(map[string]int)
			chance := func(n int) time.Duration {
				mu.Lock()
				defer mu.Unlock()
				return time.Duration(random.IntN(n)) * time.Second
			}
			z.present = func(ctx context.Context) error {
				if chance(4) == 0 {
					return errors.New("the API is down")
				}
				return sleep(ctx, chance(5))
			}
			z.await = func(ctx context.Context) error { return sleep(ctx, chance(20)) }
			z.cleanUp = func(ctx context.Context) error { return sleep(ctx, chance(3)) }
			p := &counting{zone: z, mu: &mu, set: set, one: seed%2 == 0}
			d.Provider = p
			if p.one {
				d.Provider = countingOne{p}
			}
			var all sync.WaitGroup
			for i := range 40 {
				all.Go(func() {
					time.Sleep(chance(60))
					ctx, cancel := context.WithTimeout(t.Context(), chance(90))
					defer cancel()
					host := []string{"example.com", "*.example.com", "a.example.com", "b.example.com"}[i%4]
					remove, _, err := d.Add(ctx, host, "tok", "tok.thumb")
					if (remove == nil) != (err != nil) {
						t.Errorf("Add(%s) = remove %v, error %v, want one of them", host, remove != nil, err)
					}
					if err == nil {
						time.Sleep(chance(10))
						remove()
					}
				})
			}
			all.Wait()
			if len(set) != 0 || len(d.busy) != 0 {
				t.Errorf("records %v and busy names %v are left", set, d.busy)
			}
		})
	}
}

// A counting provider holds that each of its records comes alone.
type counting struct {
	*zone
	mu  *sync.Mutex
	set map[string]int
	one bool // there is but one record at a time
}

type countingOne struct{ *counting }

func (p countingOne) Sequential() time.Duration { return time.Second }

func (p *counting) Present(ctx context.Context, domain, token, keyAuth string) error {
	p.mu.Lock()
	p.set[domain]++
	if p.set[domain] != 1 || p.one && len(p.set) != 1 {
		p.t.Errorf("Present for %s when there is %v", domain, p.set)
	}
	p.mu.Unlock()
	return p.zone.Present(ctx, domain, token, keyAuth)
}

func (p *counting) CleanUp(ctx context.Context, domain, token, keyAuth string) error {
	err := p.zone.CleanUp(ctx, domain, token, keyAuth)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.set[domain] != 1 {
		p.t.Errorf("CleanUp for %s when there is %v", domain, p.set)
	}
	delete(p.set, domain)
	return err
}

func TestDNSSequential(t *testing.T) {
	for _, tt := range []struct {
		pause time.Duration
		want  []string
	}{
		{time.Minute, []string{"0 present", "10 cleanup", "72 present", "82 cleanup", "144 present", "154 cleanup"}},
		{0, []string{"0 present", "10 cleanup", "12 present", "22 cleanup", "24 present", "34 cleanup"}},
		{-time.Hour, []string{"0 present", "10 cleanup", "12 present", "22 cleanup", "24 present", "34 cleanup"}},
		{100 * time.Hour, []string{"0 present", "10 cleanup", "3612 present", "3622 cleanup", "7224 present", "7234 cleanup"}},
	} {
		inZone(t, func(t *testing.T, z *zone, d *DNS) {
			d.Provider = sequential{z, tt.pause}
			z.cleanUp = takes(2 * time.Second)
			var all sync.WaitGroup
			for _, host := range []string{"a.example.com", "b.example.com", "example.net"} {
				all.Go(func() {
					remove := mustAdd(t, d, host)
					time.Sleep(10 * time.Second)
					remove()
				})
			}
			all.Wait()
			var got []string
			for _, line := range z.log {
				if f := strings.Fields(line); f[1] != "await" {
					got = append(got, f[0]+" "+f[1]) // whose it is is chance
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("a pause of %v: asked %q, want %q", tt.pause, got, tt.want)
			}
		})
	}
}

// Who waits out a sequential provider's pause and gives up has set no record,
// and so begins no other pause.
func TestDNSPauseIsNotProlonged(t *testing.T) {
	inZone(t, func(t *testing.T, z *zone, d *DNS) {
		d.Provider = sequential{z, time.Minute}
		mustAdd(t, d, "a.example.com")()
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if _, _, err := d.Add(ctx, "b.example.com", "tok", "tok.thumb"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Add in the pause: %v, want that its time is over", err)
			}
			cancel()
		}
		mustAdd(t, d, "c.example.com")()
		wantLog(t, z, "0 present a.example.com", "0 cleanup a.example.com", "60 present c.example.com", "60 cleanup c.example.com")
	})
}

func TestDNSTimeout(t *testing.T) {
	for _, tt := range []struct {
		timeout, interval time.Duration
		bound, looks      time.Duration
	}{
		{10 * time.Minute, 30 * time.Second, 10 * time.Minute, 30 * time.Second},
		{30 * time.Second, time.Second, 30 * time.Second, time.Second},
		{0, 0, spreadTime, lookEvery},
		{-time.Second, -time.Second, spreadTime, lookEvery},
		{0, 5 * time.Second, spreadTime, 5 * time.Second},
		{5 * time.Minute, 0, 5 * time.Minute, lookEvery},
		{time.Second, 0, time.Second, time.Second},
		{24 * time.Hour, 30 * time.Second, spreadMost, 30 * time.Second},
		{1 << 62, 1 << 62, spreadMost, spreadMost},
		{5 * time.Second, time.Hour, 5 * time.Second, 5 * time.Second},
	} {
		inZone(t, func(t *testing.T, z *zone, d *DNS) {
			d.Provider = timed{z, tt.timeout, tt.interval}
			z.await = never
			remove, late, err := d.Add(t.Context(), "example.com", "tok", "tok.thumb")
			if err != nil || late == nil || time.Since(z.start) != tt.bound {
				t.Fatalf("Timeout %v: Add = late %v, error %v after %v, want it late after %v", tt.timeout, late, err, time.Since(z.start), tt.bound)
			}
			remove()
			if looks := z.log[1]; !strings.HasSuffix(looks, fmt.Sprintf(" each %v", tt.looks)) {
				t.Errorf("Timeout %v, %v: %s, want %v", tt.timeout, tt.interval, looks, tt.looks)
			}
		})
	}
}

// A record that is not seen is one all the same: the CA has the last word.
func TestDNSNeverSeen(t *testing.T) {
	inZone(t, func(t *testing.T, z *zone, d *DNS) {
		z.await = never
		remove, late, err := d.Add(t.Context(), "example.com", "tok", "tok.thumb")
		if err != nil || late == nil || !strings.Contains(late.Error(), "not seen within 2m0s") {
			t.Fatalf("Add = late %v, error %v, want that it is not seen within 2m0s", late, err)
		}
		wantLog(t, z, "0 present example.com")
		remove()
		wantLog(t, z, "0 present example.com", "120 cleanup example.com")
		wantFree(t, z, d, "example.com")
	})
}

// Whenever the work is called off, Add ends at once, with the reason, and what
// the provider may have set is taken away.
func TestDNSCancelled(t *testing.T) {
	heedless := func(context.Context) error { time.Sleep(20 * time.Second); return nil }
	for _, tt := range []struct {
		name  string
		block func(t *testing.T, z *zone, d *DNS) (undo func())
		after time.Duration
		want  []string
	}{
		{"for its turn", func(t *testing.T, z *zone, d *DNS) func() { return mustAdd(t, d, "*.example.com") },
			10 * time.Second, []string{"0 present example.com", "10 cleanup example.com"}},
		{"for a pause to end", func(t *testing.T, z *zone, d *DNS) func() {
			d.Provider = sequential{z, time.Minute}
			mustAdd(t, d, "b.example.com")()
			return func() { time.Sleep(time.Minute) }
		}, 10 * time.Second, []string{"0 present b.example.com", "0 cleanup b.example.com"}},
		{"for Present", func(t *testing.T, z *zone, d *DNS) func() { z.present = never; return nil },
			10 * time.Second, []string{"0 present example.com", "10 cleanup example.com"}},
		{"for a Present that takes no notice", func(t *testing.T, z *zone, d *DNS) func() { z.present = heedless; return nil },
			20 * time.Second, []string{"0 present example.com", "20 cleanup example.com"}},
		{"for Await", func(t *testing.T, z *zone, d *DNS) func() { z.await = never; return nil },
			10 * time.Second, []string{"0 present example.com", "10 cleanup example.com"}},
		{"for an Await that takes no notice", func(t *testing.T, z *zone, d *DNS) func() { z.await = heedless; return nil },
			20 * time.Second, []string{"0 present example.com", "20 cleanup example.com"}},
	} {
		t.Run("waiting "+tt.name, func(t *testing.T) {
			inZone(t, func(t *testing.T, z *zone, d *DNS) {
				off := errors.New("called off")
				undo := tt.block(t, z, d)
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(10*time.Second, func() { cancel(off) })
				remove, late, err := d.Add(ctx, "example.com", "tok", "tok.thumb")
				if remove != nil || late != nil || !errors.Is(err, off) {
					t.Errorf("Add = %v, late %v, error %v, want the error %v alone", remove != nil, late, err, off)
				}
				if took := time.Since(z.start); took != tt.after {
					t.Errorf("Add ends after %v, want %v", took, tt.after)
				}
				if undo != nil {
					undo()
				}
				wantLog(t, z, tt.want...)
				wantFree(t, z, d, "example.com")
			})
		})
	}
}

// What was called off before it began asks the provider nothing. Of two things
// that are ready a select takes any, so it is tried many times.
func TestDNSCancelledBefore(t *testing.T) {
	for range 30 {
		inZone(t, func(t *testing.T, z *zone, d *DNS) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, _, err := d.Add(ctx, "example.com", "tok", "tok.thumb"); !errors.Is(err, context.Canceled) {
				t.Errorf("Add = %v, want %v", err, context.Canceled)
			}
			wantLog(t, z)
			wantFree(t, z, d, "example.com")
		})
	}
}

func TestDNSPresentFails(t *testing.T) {
	no := errors.New("403 Forbidden")
	for _, tt := range []struct {
		name    string
		present func(context.Context) error
		want    error
		after   time.Duration
	}{
		{"at once", func(context.Context) error { return no }, no, 0},
		{"never ends", never, context.DeadlineExceeded, providerTime},
	} {
		inZone(t, func(t *testing.T, z *zone, d *DNS) {
			z.present = tt.present
			remove, late, err := d.Add(t.Context(), "*.example.com", "tok", "tok.thumb")
			if remove != nil || late != nil || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "_acme-challenge.example.com") {
				t.Errorf("%s: Add = %v, late %v, error %v, want an error alone with %v and the record's name", tt.name, remove != nil, late, err, tt.want)
			}
			if took := time.Since(z.start); took != tt.after {
				t.Errorf("%s: Add took %v, want %v", tt.name, took, tt.after)
			}
			// It may have been set before the failure.
			wantLog(t, z, "0 present example.com", fmt.Sprintf("%v cleanup example.com", tt.after.Seconds()))
			wantFree(t, z, d, "example.com")
		})
	}
}

func TestDNSCleanUpFails(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cleanUp func(context.Context) error
		after   time.Duration
	}{
		{"at once", func(context.Context) error { return errors.New("no") }, 0},
		{"never ends", never, providerTime},
	} {
		inZone(t, func(t *testing.T, z *zone, d *DNS) {
			ctx, cancel := context.WithCancel(t.Context())
			remove, _, err := d.Add(ctx, "example.com", "tok", "tok.thumb")
			if err != nil {
				t.Fatal(err)
			}
			z.cleanUp = tt.cleanUp
			cancel() // the order is over
			remove()
			if took := time.Since(z.start); took != tt.after {
				t.Errorf("%s: remove took %v, want %v", tt.name, took, tt.after)
			}
			wantFree(t, z, d, "example.com")
		})
	}
}

func TestRecordThatIsThereNeedNotBeSet(t *testing.T) {
	const keyAuth = "token.thumbprint"
	digest := sha256.Sum256([]byte(keyAuth))
	value := base64.RawURLEncoding.EncodeToString(digest[:])
	for _, tt := range []struct {
		name    string
		values  []string
		unknown error
		ok      bool
	}{
		{"there", []string{"other", value}, nil, true},
		{"another is", []string{"other"}, nil, false},
		{"none is", nil, nil, false},
		{"nobody can tell", []string{value}, errors.New("no answer"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inZone(t, func(t *testing.T, z *zone, d *DNS) {
				z.values, z.unknown = tt.values, tt.unknown
				z.present = func(context.Context) error { return errors.New("identical record exists") }
				remove, late, err := d.Add(t.Context(), "example.com", "token", keyAuth)
				if (err == nil) != tt.ok || late != nil {
					t.Fatalf("Add = %v, %v, want success: %v", late, err, tt.ok)
				}
				if tt.ok {
					remove()
				}
				cleanedUp := 0
				for _, line := range z.log {
					if strings.Contains(line, "cleanup") {
						cleanedUp++
					}
				}
				if cleanedUp != 1 {
					t.Errorf("%q, want one clean-up", z.log)
				}
			})
		})
	}
}
