package journal

import (
	"hash/maphash"
	"iter"
	"slices"
)

// A set is built for millions of records that are there for months: beside the
// record's bytes it takes 16 for the string and 12 at most for the index, and
// no Put pays for more than a shard's growth.
const (
	blockSize = 512 // records; 8 kB, which the allocator rounds up by nothing
	shardBits = 6
)

// seed is secret, so that clients cannot choose names that collide.
var seed = maphash.MakeSeed()

// A set is records of different keys. The zero set is empty.
//
// A record has a place, which it passes on to those that replace it, so that
// the set may change while somebody walks its places: what stays is seen once.
// Places are given out in order, and what was sorted when it came stays so.
// The key being the beginning of the record, the index need not hold it.
type set struct {
	read   int64 // bytes of the buffers that the records were read into
	blocks []*[blockSize]Record
	places int      // given out; the others of the last block are free
	holes  []uint32 // places whose record was removed: given out again first
	shards []shard  // of the index, by the top bits of the hash; nil while empty
}

// A shard is an open-addressing table with linear probing. Its slots are about
// in the order of their hashes, whatever its size: it grows by one pass over
// two pieces of memory, without a look at the records, and by little.
type shard struct {
	slots []slot
	used  int
}

type slot struct {
	hash  uint32 // the low half
	place uint32 // plus one; 0 while the slot is free
}

// at returns where the record of a place is: "" if there is none.
func (s *set) at(place int) *Record { return &s.blocks[place/blockSize][place%blockSize] }

// block returns the records, holes included, from a place, the first of a
// block, to the block's end: none if the set ends before.
func (s *set) block(place int) []Record {
	if place >= s.places {
		return nil
	}
	return s.blocks[place/blockSize][:min(blockSize, s.places-place)]
}

// find returns the place of the record of a key.
func (s *set) find(key []byte) (place int, ok bool) {
	if s.shards == nil {
		return 0, false
	}
	sh, hash := s.shard(key)
	if sh.used == 0 {
		return 0, false
	}
	place = int(sh.slots[s.seek(sh, hash, key)].place) - 1
	return place, place >= 0
}

// get returns the record of a key, "" if there is none.
func (s *set) get(key []byte) Record {
	if place, ok := s.find(key); ok {
		return *s.at(place)
	}
	return ""
}

// put adds r, which has the given key, or replaces the record of that and
// returns it.
func (s *set) put(key string, r Record) (old Record) {
	slot := s.slotFor(bytesOf(key))
	if slot.place == 0 {
		slot.place = uint32(s.newPlace()) + 1
	}
	at := s.at(int(slot.place) - 1)
	old, *at = *at, r
	return old
}

// push adds r behind all others, and leaves a hole where the one of its key was.
func (s *set) push(r Record) {
	slot := s.slotFor(bytesOf(r.Key()))
	if slot.place != 0 {
		*s.at(int(slot.place) - 1) = ""
	}
	slot.place = uint32(s.nextPlace()) + 1
	*s.at(int(slot.place) - 1) = r
}

// remove removes the record of a key, and returns it.
func (s *set) remove(key []byte) (old Record) {
	place, ok := s.find(key)
	if !ok {
		return ""
	}
	sh, hash := s.shard(key)
	sh.clear(s.seek(sh, hash, key))
	old, *s.at(place) = *s.at(place), ""
	s.holes = append(s.holes, uint32(place))
	return old
}

// all yields the records in the order of their places.
func (s *set) all() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for at := 0; at < s.places; at += blockSize {
			for _, r := range s.block(at) {
				if r != "" && !yield(r) {
					return
				}
			}
		}
	}
}

func (s *set) newPlace() int {
	if n := len(s.holes); n > 0 {
		place := s.holes[n-1]
		s.holes = s.holes[:n-1]
		return int(place)
	}
	return s.nextPlace()
}

func (s *set) nextPlace() int {
	if s.places == len(s.blocks)*blockSize {
		s.blocks = append(s.blocks, new([blockSize]Record))
	}
	s.places++
	return s.places - 1
}

// slotFor returns the slot of a key: a new one if it has none, whose place the
// caller must set.
func (s *set) slotFor(key []byte) *slot {
	if s.shards == nil {
		s.shards = make([]shard, 1<<shardBits)
	}
	sh, hash := s.shard(key)
	if 6*(sh.used+1) > 5*len(sh.slots) {
		sh.grow()
	}
	slot := &sh.slots[s.seek(sh, hash, key)]
	if slot.place == 0 {
		slot.hash = hash
		sh.used++
	}
	return slot
}

// shard returns the shard of a key, and what to look for there.
func (s *set) shard(key []byte) (sh *shard, hash uint32) {
	h := maphash.Bytes(seed, key)
	return &s.shards[h>>(64-shardBits)], uint32(h)
}

// seek returns the slot of a key, or the free one in which the search for it
// ends: one in six is free, but for a shard without slots, where seek must not
// be called.
func (s *set) seek(sh *shard, hash uint32, key []byte) int {
	for i := sh.home(hash); ; i = sh.next(i) {
		slot := sh.slots[i]
		if slot.place == 0 || slot.hash == hash && hasKey(*s.at(int(slot.place) - 1), key) {
			return i
		}
	}
}

// hasKey reports whether key is r's.
func hasKey(r Record, key []byte) bool {
	return len(r) > len(key) && r[len(key)] == ' ' && string(r[:len(key)]) == string(key)
}

// home returns the slot where the search for a hash begins.
func (sh *shard) home(hash uint32) int { return int(uint64(hash) * uint64(len(sh.slots)) >> 32) }

func (sh *shard) next(i int) int {
	if i++; i < len(sh.slots) {
		return i
	}
	return 0
}

// grow gives the shard a quarter more slots.
func (sh *shard) grow() { sh.resize(len(sh.slots) + len(sh.slots)/4 + 8) }

func (sh *shard) resize(n int) {
	old := sh.slots
	sh.slots = make([]slot, n)
	for _, s := range old {
		if s.place == 0 {
			continue
		}
		i := sh.home(s.hash)
		for sh.slots[i].place != 0 {
			i = sh.next(i)
		}
		sh.slots[i] = s
	}
}

// reserve makes room for n records, so that adding them grows nothing, or little.
func (s *set) reserve(n int) {
	if s.shards == nil {
		s.shards = make([]shard, 1<<shardBits)
	}
	n = n/len(s.shards)*5/4 + 8
	for i := range s.shards {
		if sh := &s.shards[i]; n > len(sh.slots) {
			sh.resize(n)
		}
	}
}

// clear frees a slot, and moves those behind it forward that a search would
// now miss.
func (sh *shard) clear(free int) {
	sh.used--
	for i := sh.next(free); sh.slots[i].place != 0; i = sh.next(i) {
		home := sh.home(sh.slots[i].hash)
		// Does a search from home come by free before i, around the end?
		if (i-home+len(sh.slots))%len(sh.slots) >= (i-free+len(sh.slots))%len(sh.slots) {
			sh.slots[free] = sh.slots[i]
			free = i
		}
	}
	sh.slots[free] = slot{}
}

// setOf returns rs, without those that later ones replace, in their order.
func setOf(rs []Record) *set {
	s := new(set)
	for _, r := range rs {
		s.push(r)
	}
	return s
}

// latest returns rs without the records that later ones replace.
func latest(rs []Record) []Record {
	if len(rs) < 2 {
		return rs
	}
	return slices.AppendSeq(make([]Record, 0, len(rs)), setOf(rs).all())
}
