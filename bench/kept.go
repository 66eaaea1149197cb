package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/letsencrypt/internal/journal"
	"github.com/caddyserver/certmagic"
	xautocert "golang.org/x/crypto/acme/autocert"
)

// timeKept keeps certificates, one after the other: ours as the Manager does, with
// a journal.Log. The floor's are as many bytes at the end of a file. The others
// keep theirs in files of their own, in a folder that was empty before.
func timeKept(r *run) (v values, err error) {
	unload()
	err = r.inFolder(func(folder string) error {
		file := filepath.Join(folder, "letsencrypt.cache")
		if err := writeFile(file, r.n); err != nil {
			return err
		}
		var log journal.Log
		if err := log.Open(file, journal.Options{}); err != nil {
			return err
		}
		defer log.Close()
		plain, err := os.Create(filepath.Join(folder, "plain"))
		if err != nil {
			return err
		}
		defer plain.Close()
		before, err := os.Stat(file)
		if err != nil {
			return err
		}
		v, err = r.keep(map[string]func(i int) error{
			floor: func(i int) error { return appendLine(plain, hosts.certRecord(r.n+i, 0)) },
			ours:  func(i int) error { return log.Sync(log.Put(hosts.certRecord(r.n+i, 0))) },
		})
		if err != nil {
			return err
		}
		after, err := os.Stat(file)
		if err != nil {
			return err
		}
		lines, err := plain.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		v[bytesKept] = float64(after.Size()-before.Size()) / float64(lines)
		r.note("%d bytes, %.2f times those of the record", lines/int64(r.few(keeps)), v[bytesKept])
		theirs, err := r.keep(map[string]func(i int) error{
			autocert:  keepAutocert(filepath.Join(folder, autocert)),
			certMagic: keepCertMagic(filepath.Join(folder, certMagic)),
		})
		v[autocert], v[certMagic] = theirs[autocert], theirs[certMagic]
		return err
	})
	return v, err
}

// keeps is how many certificates are kept.
const keeps = 201

// keep has each of some contestants keep certificates, by turns, and returns the
// medians.
func (r *run) keep(how map[string]func(i int) error) (values, error) {
	took := make(map[string][]float64)
	for i := range r.few(keeps) {
		r.progress("certificate %d of %d", i+1, keeps)
		for who, keep := range how {
			began := time.Now()
			if err := keep(i); err != nil {
				return nil, fmt.Errorf("%s: %w", who, err)
			}
			took[who] = append(took[who], float64(time.Since(began).Microseconds()))
		}
	}
	v := make(values)
	for who, x := range took {
		v[who] = median(x)
	}
	return v, nil
}

func appendLine(f *os.File, r journal.Record) error {
	_, err := f.WriteString(string(r) + "\n")
	return errors.Join(err, f.Sync())
}

func keepAutocert(folder string) func(i int) error {
	cache := xautocert.DirCache(folder)
	return func(i int) error {
		chain, key := hosts.pems(i)
		return cache.Put(context.Background(), name(i), append(key, chain...))
	}
}

// keepCertMagic stores what CertMagic does, in its order.
func keepCertMagic(folder string) func(i int) error {
	storage := &certmagic.FileStorage{Path: folder}
	issuer := (&certmagic.ACMEIssuer{CA: directory}).IssuerKey()
	meta := certMagicStorage{&stored{family: hosts}}
	return func(i int) error {
		chain, key := hosts.pems(i)
		ctx, keys := context.Background(), certmagic.StorageKeys
		return errors.Join(
			storage.Store(ctx, keys.SitePrivateKey(issuer, name(i)), key),
			storage.Store(ctx, keys.SiteCert(issuer, name(i)), chain),
			storage.Store(ctx, keys.SiteMeta(issuer, name(i)), meta.meta(i)),
		)
	}
}

// timeCompaction has a file that is about to be mostly dead rewritten, which the
// next write to it starts, while a client asks a Manager that has the same file
// for a host as fast as it can, and two others keep one certificate after the other,
// with a journal.Log of their own as no CA issues so fast; then the same for as
// long without a rewriting. The longest that either took counts, in the median of
// the rounds. It is what the machine did meanwhile, too: the disk, the collector,
// and what else runs; without a rewriting there is no less of the latter.
func timeCompaction(r *run) (v values, err error) {
	unload()
	held := make(map[string][]float64)
	err = r.inFolder(func(folder string) error {
		rounds := r.rounds(1, 5)
		for i := range rounds {
			r.progress("round %d of %d", i+1, rounds)
			if err := r.compactOnce(filepath.Join(folder, fmt.Sprint(i), "letsencrypt.cache"), held); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	v = make(values)
	for what, x := range held {
		v[what] = median(x) // which sorts them
	}
	v[ours], v[floor] = max(v[lookupHeld], v[writeHeld]), max(v[lookupQuiet], v[writeQuiet])
	for _, what := range []string{lookupHeld, lookupQuiet, writeHeld, writeQuiet} {
		r.note("%s: %.2f ms, in the worst round %.2f", what, v[what], held[what][len(held[what])-1])
	}
	return v, nil
}

// compactOnce measures one rewriting and adds to held.
func (r *run) compactOnce(file string, held map[string][]float64) error {
	if err := writeBloated(file, r.n); err != nil {
		return err
	}
	s := newOurs()
	defer s.stop()
	if err := s.ours.CacheFile(file); err != nil {
		return err
	}
	var log journal.Log
	if err := log.Open(file, journal.Options{}); err != nil {
		return err
	}
	defer log.Close()
	was, err := os.Stat(file)
	if err != nil {
		return err
	}
	h := &holdUps{n: r.n, log: &log, server: s, hello: newHello(name(r.n / 2))}
	if err := lookup(s, []*tls.ClientHelloInfo{h.hello}); err != nil { // the first has the Manager begin its work
		return err
	}
	var took time.Duration
	busy, err := h.during(func() error {
		began := time.Now()
		err := awaitReplaced(file, was)
		took = time.Since(began)
		return err
	})
	if err != nil {
		return err
	}
	quiet, err := h.during(func() error { time.Sleep(took); return nil })
	if err != nil {
		return err
	}
	for what, d := range map[string]time.Duration{
		lookupHeld: slices.Max(busy.lookups), writeHeld: slices.Max(busy.writes),
		lookupQuiet: slices.Max(quiet.lookups), writeQuiet: slices.Max(quiet.writes),
	} {
		held[what] = append(held[what], ms(d))
	}
	r.note("a rewriting of %d MB in %.0f ms: %s; without: %s", was.Size()>>20, ms(took), busy, quiet)
	return nil
}

// writeBloated writes a file with n hosts each of which was renewed once, so that
// half of it is dead, and a few twice.
func writeBloated(name string, n int) error {
	if err := os.Mkdir(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	if err := writeFile(name, n); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	var text []byte
	for i := range n + n/20 + 10 {
		text = append(append(text, hosts.certRecord(i%n, 1+i/n)...), '\n')
		if len(text) > 1<<20 || i == n+n/20+9 {
			if _, err := f.Write(text); err != nil {
				return err
			}
			text = text[:0]
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// awaitReplaced returns when the file is another than it was.
func awaitReplaced(name string, was os.FileInfo) error {
	for range time.Tick(time.Millisecond) {
		now, err := os.Stat(name)
		if err != nil {
			return err
		}
		if !os.SameFile(was, now) {
			return nil
		}
		if time.Since(was.ModTime()) > time.Minute {
			return fmt.Errorf("%s is not rewritten", name)
		}
	}
	return nil
}

// holdUps measures how long lookups and writes take.
type holdUps struct {
	n       int
	log     *journal.Log
	server  *server
	hello   *tls.ClientHelloInfo // that clients send
	written atomic.Int64
}

// slow is from when on a lookup is remembered.
const slow = 10 * time.Microsecond

// A tally is how long things took.
type tally struct {
	looked  int
	lookups []time.Duration // the slow ones
	writes  []time.Duration
}

func (t *tally) String() string {
	slices.Sort(t.lookups)
	slices.Sort(t.writes)
	most := slow // of all but one lookup in 10,000
	if i := len(t.lookups) - 1 - t.looked/10_000; i > 0 {
		most = t.lookups[i]
	}
	return fmt.Sprintf("99.99 %% of %d lookups took %.2f ms at most, half of %d writes %.2f ms", t.looked, ms(most), len(t.writes), ms(t.writes[len(t.writes)/2]))
}

// during returns what the writes and the slow lookups took while f ran.
func (h *holdUps) during(f func() error) (*tally, error) {
	var stop atomic.Bool
	var wg sync.WaitGroup
	var errs [3]error
	var took [2][]time.Duration
	t := new(tally)
	wg.Go(func() { errs[2] = h.lookUp(t, &stop) })
	for i := range took {
		wg.Go(func() { took[i], errs[i] = h.write(&stop) })
	}
	err := f()
	stop.Store(true)
	wg.Wait()
	t.writes = slices.Concat(took[0], took[1])
	return t, errors.Join(append(errs[:], err)...)
}

func (h *holdUps) lookUp(t *tally, stop *atomic.Bool) error {
	t.lookups = []time.Duration{0}
	for !stop.Load() {
		began := time.Now()
		if _, err := h.server.get(h.hello); err != nil {
			return err
		}
		if d := time.Since(began); d > slow {
			t.lookups = append(t.lookups, d)
		}
		t.looked++
	}
	return nil
}

func (h *holdUps) write(stop *atomic.Bool) (took []time.Duration, err error) {
	for !stop.Load() || len(took) == 0 {
		record := hosts.certRecord(h.n+int(h.written.Add(1)), 0)
		began := time.Now()
		if err := h.log.Sync(h.log.Put(record)); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}
