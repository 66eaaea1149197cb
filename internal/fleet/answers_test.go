package fleet

import (
	"testing"
	"time"

	"example.com/letsencrypt/internal/pebble"
)

// TestAnyMemberAnswers has all of the CA's validations go to a member that did
// not exist when the order was made, by another.
func TestAnyMemberAnswers(t *testing.T) {
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, engineNamed("dir"), pebble.Config{})
			f.hosts = f.hosts[:1]
			f.members = make([]*member, 2)
			f.challenge = challenge
			f.launch(0)
			first := f.member(0)
			f.balancer.hold()
			asked := make(chan error, 1)
			go func() {
				_, err := f.once(t.Context(), served{0, f.hosts[0]})
				asked <- err
			}()
			eventually(t, "a validation", func() bool { return f.balancer.waited() > 0 })
			f.balancer.remove(first)
			f.launch(1)
			second := f.member(1)
			released := time.Now()
			f.balancer.open()
			if err := <-asked; err != nil {
				t.Fatal(err)
			}
			t.Logf("served %v after the validation", time.Since(released).Round(time.Millisecond))
			f.agree(f.visitAll(released.Add(patience)))
			if f.balancer.to(first) > 0 || f.balancer.to(second) == 0 {
				t.Errorf("%d validations came to the first member and %d to the second, want 0 and some",
					f.balancer.to(first), f.balancer.to(second))
			}
			if n := len(f.ca.Issued()); n != 1 {
				t.Errorf("%d certificates issued, want 1", n)
			}
		})
	}
}
