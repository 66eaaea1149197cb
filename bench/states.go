package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/certmagic"
	xautocert "golang.org/x/crypto/acme/autocert"
)

// What else the values of kept and compaction have.
const (
	bytesKept   = "bytes written to those of the record"
	lookupHeld  = "longest lookup beside a rewriting"
	writeHeld   = "longest write beside a rewriting"
	lookupQuiet = "longest lookup"
	writeQuiet  = "longest write"
)

// What is measured of the state, in memory and on the disk.
var states = []*figure{
	{
		name:   "start",
		about:  "start, till the first handshake is served",
		unit:   "ms",
		sizes:  []int{10_000, 100_000},
		target: "at most 2x reading and checking the file",
		met:    func(v values) bool { return v.ratio() <= 2 },
		run:    timeStart,
	},
	{
		name:   "kept",
		about:  "one more certificate written and synced",
		unit:   "μs",
		sizes:  []int{100_000},
		target: "at most 1.5x one write with fsync, 1.1x its bytes",
		met:    func(v values) bool { return v.ratio() <= 1.5 && v[bytesKept] <= 1.1 },
		run:    timeKept,
	},
	{
		name:   "compaction",
		about:  "longest write while the file is rewritten, and (floor) while not",
		unit:   "ms",
		sizes:  []int{100_000},
		target: "at most 10 ms and one write",
		met:    func(v values) bool { return v[lookupHeld] <= v[lookupQuiet]+10 && v[writeHeld] <= v[writeQuiet]+10 },
		run:    timeCompaction,
	},
	{
		name:   "marshal",
		about:  "Marshal",
		unit:   "ms",
		sizes:  []int{100_000},
		target: "at most 1.5x copying and checking the lines",
		met:    func(v values) bool { return v.ratio() <= 1.5 },
		run:    timeMarshal,
	},
	{
		name:   "unmarshal",
		about:  "Unmarshal",
		unit:   "ms",
		sizes:  []int{100_000},
		target: "at most 1.5x copying and checking the lines",
		met:    func(v values) bool { return v.ratio() <= 1.5 },
		run:    timeUnmarshal,
	},
	{
		name:   "year",
		about:  "choosing the renewals of a simulated year, CPU time",
		unit:   "s",
		sizes:  []int{1_000_000},
		target: "at most 315,360 (1 % of a core), within the limits, nobody expires",
		met:    func(v values) bool { return v[ours] <= 315_360 && v[tooFast] == 0 && v[expired] == 0 },
		run:    simulateYear,
	},
}

// byTurns has each of some things measured in every round, so that what happens
// to the machine happens to all of them, and returns their medians.
func (r *run) byTurns(rounds int, what ...func() (time.Duration, error)) ([]time.Duration, error) {
	unload()
	rounds = r.few(rounds)
	took := make([][]time.Duration, len(what))
	for i := range rounds {
		r.progress("round %d of %d", i+1, rounds)
		for j, measure := range what {
			runtime.GC()
			d, err := measure()
			if err != nil {
				return nil, err
			}
			took[j] = append(took[j], d)
		}
	}
	medians := make([]time.Duration, len(what))
	for j := range took {
		slices.Sort(took[j])
		medians[j] = took[j][rounds/2]
	}
	return medians, nil
}

// inFolder has f use a folder on a disk, and notes where that is.
func (r *run) inFolder(f func(folder string) error) error {
	folder, err := os.MkdirTemp("", "states-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if kind := fileSystem(folder); kind != "" {
		r.note("on %s", kind)
	}
	return f(folder)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkLines checks what a state says of its lines: each has behind its kind and
// name the CRC-32C of all the rest.
func checkLines(data []byte) error {
	_, data, _ = bytes.Cut(data, []byte("\n")) // the header
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		name := bytes.IndexByte(line, ' ') + 1
		sum := name + bytes.IndexByte(line[name:], ' ') + 1
		end := sum + 9
		if name == 0 || sum == name || end > len(line) {
			return errors.New("a line without a checksum")
		}
		want, err := strconv.ParseUint(string(line[sum:end-1]), 16, 32)
		got := crc32.Update(crc32.Checksum(line[:sum], castagnoli), castagnoli, line[end:])
		if err != nil || uint64(got) != want {
			return fmt.Errorf("the checksum of %q is wrong", line[:sum])
		}
		data = rest
	}
	return nil
}

// timeStart starts Managers whose file was just written, so that it is in the
// machine's memory, up to the end of a handshake, each in a new process.
func timeStart(r *run) (v values, err error) {
	err = r.inFolder(func(folder string) error {
		r.progress("writing the file")
		if err := writeFile(filepath.Join(folder, cacheFile), r.n); err != nil {
			return err
		}
		took, err := r.byTurns(9, r.timeInChild(folder, "start "+floor), r.timeInChild(folder, "start "+ours))
		if err != nil {
			return err
		}
		v = values{floor: ms(took[0]), ours: ms(took[1])}
		if r.n > 10_000 {
			return nil // it would take them minutes
		}
		return r.timeLoading(folder, v)
	})
	return v, err
}

// timeLoading has autocert and CertMagic load all hosts from folders of theirs:
// autocert does that for each when its first client comes, CertMagic for all before
// any can.
func (r *run) timeLoading(folder string, v values) error {
	keep := []func(i int) error{keepAutocert(filepath.Join(folder, autocert)), keepCertMagic(filepath.Join(folder, certMagic))}
	for i := range r.n {
		r.progress("writing the others' files")
		if err := errors.Join(keep[0](i), keep[1](i)); err != nil {
			return err
		}
	}
	all := names(hosts, r.n)
	took, err := r.byTurns(3, func() (time.Duration, error) {
		s := newAutocert(hosts, 0, xautocert.HostWhitelist(all...))
		s.autocert.Cache = xautocert.DirCache(filepath.Join(folder, autocert))
		began := time.Now()
		err := visit(s, hosts, r.n)
		return time.Since(began), err
	}, func() (time.Duration, error) {
		s := newCertMagic(hosts, 0, nil)
		defer s.stop()
		s.certMagic.Storage = &certmagic.FileStorage{Path: filepath.Join(folder, certMagic)}
		began := time.Now()
		err := s.certMagic.ManageSync(context.Background(), all)
		return time.Since(began), err
	})
	if err != nil {
		return err
	}
	v[autocert], v[certMagic] = ms(took[0]), ms(took[1])
	r.note("autocert and CertMagic: till all are parsed, which autocert does one by one as clients come")
	return nil
}

const cacheFile = "letsencrypt.cache" // in a child's folder

func init() {
	children["start "+floor] = func(int) ([]float64, error) { return inSeconds(timeRead()) }
	children["start "+ours] = func(n int) ([]float64, error) { return inSeconds(timeFirstServed(name(n / 2))) }
}

func inSeconds(d time.Duration, err error) ([]float64, error) { return []float64{d.Seconds()}, err }

// timeInChild has a new process measure its start.
func (r *run) timeInChild(folder, child string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		v, err := inChild(folder, child, r.n)
		if err != nil {
			return 0, err
		}
		return time.Duration(v[0] * float64(time.Second)), nil
	}
}

func timeRead() (time.Duration, error) {
	began := time.Now()
	data, err := os.ReadFile(cacheFile)
	if err != nil {
		return 0, err
	}
	err = checkLines(data)
	return time.Since(began), err
}

func timeFirstServed(host string) (time.Duration, error) {
	s := newOurs()
	defer s.stop()
	began := time.Now()
	if err := s.ours.CacheFile(cacheFile); err != nil {
		return 0, err
	}
	err := handshake(s.ours.TLSConfig(), host)
	return time.Since(began), err
}

// handshake makes one with a server that is so configured.
func handshake(config *tls.Config, host string) error {
	theirs, its := net.Pipe()
	defer theirs.Close()
	defer its.Close()
	served := make(chan error, 1)
	go func() { served <- tls.Server(its, config).Handshake() }()
	client := tls.Client(theirs, &tls.Config{ServerName: host, InsecureSkipVerify: true}) // the hosts' issuer is nobody's
	if err := client.Handshake(); err != nil {
		return err
	}
	return errors.Join(<-served, client.ConnectionState().PeerCertificates[0].VerifyHostname(host))
}

func timeMarshal(r *run) (values, error) {
	m := newOurs().ours
	data := []byte(state(r.n))
	if err := m.Unmarshal(string(data)); err != nil {
		return nil, err
	}
	took, err := r.byTurns(9, func() (time.Duration, error) { return timeCopy(data) }, func() (time.Duration, error) {
		began := time.Now()
		text := m.Marshal()
		took := time.Since(began)
		if len(text) != len(data) {
			return 0, fmt.Errorf("of %[2]d bytes Marshal returned %[1]d", len(text), len(data))
		}
		return took, nil
	})
	if err != nil {
		return nil, err
	}
	return values{floor: ms(took[0]), ours: ms(took[1])}, nil
}

func timeUnmarshal(r *run) (values, error) {
	data := []byte(state(r.n))
	text := string(data)
	took, err := r.byTurns(9, func() (time.Duration, error) { return timeCopy(data) }, func() (time.Duration, error) {
		m := newOurs().ours
		began := time.Now()
		err := m.Unmarshal(text)
		return time.Since(began), err
	})
	if err != nil {
		return nil, err
	}
	return values{floor: ms(took[0]), ours: ms(took[1])}, nil
}

// timeCopy copies a state and checks its lines.
func timeCopy(data []byte) (time.Duration, error) {
	began := time.Now()
	err := checkLines(bytes.Clone(data))
	return time.Since(began), err
}
