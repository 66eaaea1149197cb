// Package table maps names to values for readers that never wait: a handshake
// finds its certificate without a lock, a clock or an allocation.
package table

import (
	"hash/maphash"
	"iter"
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A table is split into shards by the top bits of the hash, so that the pause
// in which one is rebuilt, which only writers feel, stays short.
//
// A shard is a list of slots searched by linear probing. A slot gets its name
// once and keeps it, so a search under way stays right whatever is written
// beside it. Deleting a name clears the slot's value; the slot is free again
// when the shard is rebuilt: the living are copied into another list, which is
// published whole, and whoever still reads the old one sees it as it was.
//
// Of a shard's slots three quarters have names at most, and three fifths when it
// has grown: an entry costs 43 to 53 bytes beside its name.
const shardBits = 6

func full(filled, slots int) bool { return 4*filled >= 3*slots }

// seed is secret, so that clients cannot choose names that collide.
var seed = maphash.MakeSeed()

// A Table maps names to values of type *V. The zero Table is empty and ready.
// Its methods may be called at once from any number of goroutines; Set, Delete
// and Len wait for each other, the others for nobody.
type Table[V any] struct {
	shards [1 << shardBits]atomic.Pointer[[]slot[V]]

	mu     sync.Mutex          // held to write, and guards the fields below
	filled [1 << shardBits]int // slots of a shard that have a name, dead or alive
	live   int                 // names in the table
}

type slot[V any] struct {
	hash  atomic.Uint64 // 0 while the slot is free; set after name
	name  string
	value atomic.Pointer[V] // nil while the name is deleted
}

// Get returns the value of name, nil if it has none.
func (t *Table[V]) Get(name string) *V {
	hash := maphash.String(seed, name) | 1
	slots := t.shards[shardOf(hash)].Load()
	if slots == nil {
		return nil
	}
	return find(*slots, hash, name).value.Load()
}

// GetBytes is Get for a name that is in a buffer.
func (t *Table[V]) GetBytes(name []byte) *V {
	return t.Get(unsafe.String(unsafe.SliceData(name), len(name)))
}

// GetAll returns the values of names, nil for each that has none. A name of many
// takes a fraction of what a Get does, since all wait for memory together, and a
// Set of one that follows has it at hand.
func (t *Table[V]) GetAll(names []string) []*V {
	values := make([]*V, len(names))
	var hashes [64]uint64
	for at := 0; at < len(names); at += len(hashes) {
		some := names[at:min(at+len(hashes), len(names))]
		for i, name := range some {
			hashes[i] = maphash.String(seed, name) | 1
		}
		for i := range some {
			t.touch(hashes[i])
		}
		for i, name := range some {
			if slots := t.shards[shardOf(hashes[i])].Load(); slots != nil {
				values[at+i] = find(*slots, hashes[i], name).value.Load()
			}
		}
	}
	return values
}

// touch brings the slot where a search begins into the processor's cache.
func (t *Table[V]) touch(hash uint64) {
	if slots := t.shards[shardOf(hash)].Load(); slots != nil {
		(*slots)[home(hash, len(*slots))].hash.Load()
	}
}

func shardOf(hash uint64) int { return int(hash >> (64 - shardBits)) }

// find returns the slot that has name or, if none has, the free slot in which
// a search for name ends.
func find[V any](slots []slot[V], hash uint64, name string) *slot[V] {
	for i := home(hash, len(slots)); ; {
		s := &slots[i]
		h := s.hash.Load()
		if h == 0 || h == hash && s.name == name {
			return s
		}
		if i++; i == len(slots) {
			i = 0
		}
	}
}

// home returns the slot of so many where a search begins: the bits below those of
// the shard say how far down the list that is.
func home(hash uint64, slots int) int {
	i, _ := bits.Mul64(hash<<shardBits, uint64(slots))
	return int(i)
}

// Set makes v the value of name; a nil v deletes it. The table keeps name.
func (t *Table[V]) Set(name string, v *V) {
	if v == nil {
		t.Delete(name)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.slotLocked(name); s.value.Swap(v) == nil {
		t.live++
	}
}

// AddAll gives each of names the value at its place, unless it has one: that then
// takes the place of the one in values.
func (t *Table[V]) AddAll(names []string, values []*V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, name := range names {
		s := t.slotLocked(name)
		if v := s.value.Load(); v != nil {
			values[i] = v
			continue
		}
		s.value.Store(values[i])
		t.live++
	}
}

// fill gives a free slot its name.
func (s *slot[V]) fill(hash uint64, name string) {
	s.name = name
	s.hash.Store(hash)
}

// slotLocked returns the slot that has name, which it is given if none has.
func (t *Table[V]) slotLocked(name string) *slot[V] {
	hash := maphash.String(seed, name) | 1
	s := t.findLocked(hash, name)
	if s.hash.Load() == 0 {
		s.fill(hash, name)
		t.filled[shardOf(hash)]++
	}
	return s
}

// findLocked returns the slot that has name, or a free slot to put it in.
func (t *Table[V]) findLocked(hash uint64, name string) *slot[V] {
	n := shardOf(hash)
	if slots := t.shards[n].Load(); slots != nil {
		s := find(*slots, hash, name)
		// A quarter of the slots stay free: searches end at a free one.
		if s.hash.Load() != 0 || !full(t.filled[n]+1, len(*slots)) {
			return s
		}
	}
	live := t.livingIn(n)
	return find(t.rebuildLocked(n, live+live/4+1), hash, name)
}

// Grow makes room for so many more names, so that no Set need.
func (t *Table[V]) Grow(names int) {
	// Some shards get more than their share, by chance.
	more := names>>shardBits + 4*int(math.Sqrt(float64(names>>shardBits)))
	for n := range t.shards {
		t.mu.Lock()
		if slots := t.shards[n].Load(); names > 0 && (slots == nil || full(t.filled[n]+more, len(*slots))) {
			t.rebuildLocked(n, t.livingIn(n)+more)
		}
		t.mu.Unlock()
	}
}

// rebuildLocked gives shard n slots for so many names, and leaves the dead ones
// behind.
func (t *Table[V]) rebuildLocked(n, names int) []slot[V] {
	slots, live := make([]slot[V], names+names/3+2), 0
	for old, v := range t.living(n) {
		s := find(slots, old.hash.Load(), old.name)
		s.fill(old.hash.Load(), old.name)
		s.value.Store(v)
		live++
	}
	t.filled[n] = live
	t.shards[n].Store(&slots)
	return slots
}

// livingIn returns the number of names in shard n that have a value.
func (t *Table[V]) livingIn(n int) (live int) {
	for range t.living(n) {
		live++
	}
	return live
}

// living yields the slots of shard n that have a value, and the value.
func (t *Table[V]) living(n int) iter.Seq2[*slot[V], *V] {
	return func(yield func(*slot[V], *V) bool) {
		slots := t.shards[n].Load()
		if slots == nil {
			return
		}
		for i := range *slots {
			s := &(*slots)[i]
			if v := s.value.Load(); v != nil && !yield(s, v) {
				return
			}
		}
	}
}

// Delete removes name.
func (t *Table[V]) Delete(name string) {
	hash := maphash.String(seed, name) | 1
	t.mu.Lock()
	defer t.mu.Unlock()
	slots := t.shards[shardOf(hash)].Load()
	if slots == nil {
		return
	}
	if find(*slots, hash, name).value.Swap(nil) != nil {
		t.live--
	}
}

// Len returns the number of names in the table.
func (t *Table[V]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live
}

// All yields the names in the table and their values, in no order. What is set
// or deleted meanwhile may show or not; no name shows twice.
func (t *Table[V]) All() iter.Seq2[string, *V] {
	return func(yield func(string, *V) bool) {
		for n := range t.shards {
			for s, v := range t.living(n) {
				if !yield(s.name, v) {
					return
				}
			}
		}
	}
}
