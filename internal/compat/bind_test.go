package compat

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A bind is a running BIND that has the whole DNS, from the root on, and so asks
// nobody else. All there is are three zones.
type bind struct {
	addr string // host:port, for UDP and TCP
	keys map[string]string
}

const (
	mainKey      = "letsencrypt" // may change all zones but the root
	challengeKey = "challenges"  // may change challenges.test
)

var zones = map[string]string{
	".": "",
	"example.test": `
@                                 A     127.0.0.1
*                                 A     127.0.0.1
_acme-challenge.delegated         CNAME delegated.challenges.test.
*.balanced                        CNAME balancer.elsewhere.test.
sub                               NS    ns.sub
ns.sub                            A     127.0.0.1
`,
	"sub.example.test": "",
	"challenges.test":  "",
}

const zoneHead = `$TTL 60
@   SOA ns root 1 3600 600 86400 60
@   NS  ns
ns  A   127.0.0.1
`

// newBind starts a BIND that is killed when the test ends, and logs what it said
// if the test fails.
func newBind(t *testing.T) *bind {
	t.Helper()
	program, err := exec.LookPath("named")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/named")
	}
	if err != nil {
		t.Skip("named, of BIND 9, is not installed")
	}
	for range 5 {
		b, err := startBind(t, program)
		if err == nil {
			return b
		}
		t.Log(err) // the port may have been taken
	}
	t.Fatal("named does not start")
	return nil
}

func startBind(t *testing.T, program string) (*bind, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	b := &bind{addr: addr, keys: map[string]string{mainKey: newSecret(), challengeKey: newSecret()}}
	dir := t.TempDir()
	if err := b.writeFiles(dir); err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "-g", "-4", "-n", "1", "-c", filepath.Join(dir, "named.conf"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	ended, err := start(cmd)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // an error means that it is gone
		<-ended
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("named:\n%s", text)
		}
	})
	return b, b.await(ended)
}

// start starts a process that dies with this one. The returned channel is
// closed when it has ended.
func start(cmd *exec.Cmd) (<-chan struct{}, error) {
	dieWithParent(cmd)
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// Linux sends the child its signal when the thread that started it is
		// gone (golang.org/issue/27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() // how it ended is in its log
		}
	}()
	return ended, <-started
}

// await returns when all zones are there.
func (b *bind) await(ended <-chan struct{}) error {
	deadline := time.After(patience)
	for zone := range zones {
		for !b.has(zone) {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ended:
				return errors.New("named has ended")
			case <-deadline:
				return fmt.Errorf("named does not know %s", zone)
			}
		}
	}
	return nil
}

func (b *bind) has(zone string) bool {
	reply, err := dns.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(zone), dns.TypeSOA), b.addr)
	return err == nil && reply.Authoritative && len(reply.Answer) == 1
}

// freeAddr returns an address of which UDP and TCP are free.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	conn, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		return "", err
	}
	return l.Addr().String(), conn.Close()
}

func newSecret() string {
	return base64.StdEncoding.EncodeToString([]byte(rand.Text()))
}

func (b *bind) writeFiles(dir string) error {
	_, port, err := net.SplitHostPort(b.addr)
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`
options {
	directory %q;
	pid-file none;
	session-keyfile none;
	listen-on port %s { 127.0.0.1; };
	recursion yes; // or it follows no CNAME record from one zone to another
	dnssec-validation no;
	notify no;
	empty-zones-enable no;
};
controls {};
`, dir, port)
	for name, secret := range b.keys {
		conf += fmt.Sprintf("key %q { algorithm hmac-sha256; secret %q; };\n", name, secret)
	}
	for zone, records := range zones {
		may := "key " + mainKey + ";"
		switch zone {
		case ".":
			may = "none;"
		case "challenges.test":
			may += " key " + challengeKey + ";"
		}
		file := cmp.Or(strings.Trim(zone, "."), "root")
		conf += fmt.Sprintf("zone %q { type primary; file %q; allow-update { %s }; };\n", zone, file, may)
		if err := os.WriteFile(filepath.Join(dir, file), []byte(zoneHead+records), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "named.conf"), []byte(conf), 0o600)
}

// resolver returns a resolver that asks b, whatever server it means to ask.
func (b *bind) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, b.addr)
	}}
}

// txt returns the values of a name's TXT records, sorted.
func (b *bind) txt(t *testing.T, name string) []string {
	t.Helper()
	client := &dns.Client{Net: "tcp"} // there may be many
	reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(name+".", dns.TypeTXT), b.addr)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, rr := range reply.Answer {
		if txt, ok := rr.(*dns.TXT); ok {
			values = append(values, strings.Join(txt.Txt, ""))
		}
	}
	slices.Sort(values)
	return values
}

// add gives a name of a zone one more TXT record.
func (b *bind) add(t *testing.T, zone, name, value string) {
	t.Helper()
	m := new(dns.Msg).SetUpdate(zone + ".")
	m.Insert([]dns.RR{&dns.TXT{
		Hdr: dns.RR_Header{Name: name + ".", Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60},
		Txt: []string{value},
	}})
	m.SetTsig(mainKey+".", dns.HmacSHA256, 300, time.Now().Unix())
	client := &dns.Client{Net: "tcp", TsigSecret: map[string]string{mainKey + ".": b.keys[mainKey]}}
	reply, _, err := client.Exchange(m, b.addr)
	if err != nil || reply.Rcode != dns.RcodeSuccess {
		t.Fatalf("adding %s TXT %q: %v, %v", name, value, reply, err)
	}
}

// patience is how long to wait for what is sure to come, on the slowest machine.
const patience = 30 * time.Second
