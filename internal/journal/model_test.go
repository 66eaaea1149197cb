package journal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// A model is what a log and its file are compared with after each of some
// random steps.
type model struct {
	t      *testing.T
	rnd    *rand.Rand
	name   string
	log    *Log
	isOpen bool

	memory map[string]Record // what the log should hold
	synced map[string]Record // what the file should hold: memory as of the last Sync
}

// TestModel plays random steps on a few keys: what the log holds must at each
// moment be what a plain map holds, and what it held at the last Sync must be
// there after a crash.
func TestModel(t *testing.T) {
	const games, steps = 30, 100
	for seed := range uint64(games) {
		m := &model{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), name: temp(t), log: new(Log)}
		m.memory, m.synced = make(map[string]Record), make(map[string]Record)
		for range steps {
			step := m.step()
			want(t, m.log, slices.Collect(maps.Values(m.memory))...)
			if t.Failed() {
				t.Fatalf("game %d, after %s", seed, step)
			}
		}
		m.log.Close()
	}
}

func (m *model) step() string {
	switch n := m.rnd.IntN(20); {
	case n < 8:
		return m.put(m.record())
	case n < 10:
		return m.put(m.record(), m.record(), m.record())
	case n < 13:
		return m.done("Sync", m.log.Sync(m.log.Put()))
	case n < 14:
		return m.done("Compact", m.log.Compact())
	case n < 16:
		return m.close()
	case n < 19:
		return m.open()
	default:
		return m.crash()
	}
}

func (m *model) record() Record {
	name := fmt.Sprint(m.rnd.IntN(6))
	if m.rnd.IntN(3) == 0 {
		return Delete("host", name)
	}
	return rec(name, m.rnd.IntN(1000))
}

func apply(m map[string]Record, rs ...Record) {
	for _, r := range rs {
		m[r.Key()] = r
		if r.Deleted() {
			delete(m, r.Key())
		}
	}
}

func (m *model) put(rs ...Record) string {
	m.log.Put(rs...)
	apply(m.memory, rs...)
	return fmt.Sprintf("Put(%q)", rs)
}

// done takes note that all the log holds is durable now.
func (m *model) done(step string, err error) string {
	if err != nil {
		m.t.Errorf("%s: %v", step, err)
	}
	if m.isOpen {
		m.synced = maps.Clone(m.memory)
	}
	return step
}

func (m *model) close() string {
	step := m.done("Close", m.log.Close())
	m.isOpen = false
	return step
}

// open opens the file if it is closed. What was put meanwhile wins, and what
// the file has besides comes back: nobody told it of deletions.
func (m *model) open() string {
	if m.isOpen {
		return "no Open"
	}
	m.isOpen = true
	for key, r := range m.synced {
		if _, ok := m.memory[key]; !ok {
			m.memory[key] = r
		}
	}
	o := Options{Apply: m.adoptMissing, Warn: func(err error) { m.t.Error(err) }}
	return m.done("Open", m.log.Open(m.name, o))
}

func (m *model) adoptMissing(rs []Record) {
	for _, r := range rs {
		if _, ok := m.log.Get(r.Kind(), r.Name()); !ok {
			m.log.Adopt(r)
		}
	}
}

// crash begins anew with the file as it is.
func (m *model) crash() string {
	if !m.isOpen {
		return "no crash"
	}
	data, err := os.ReadFile(m.name)
	if err != nil {
		m.t.Fatal(err)
	}
	m.log.detach()
	m.log, m.isOpen = new(Log), false
	m.memory = maps.Clone(m.synced)
	if m.rnd.IntN(2) == 0 { // in the midst of a write
		if err := os.WriteFile(m.name, append(data, "host 1 0123"...), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	m.open()
	return "crash"
}
