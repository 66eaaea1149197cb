package table

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
)

func TestZeroTable(t *testing.T) {
	var tab Table[cert]
	if v := tab.Get("a"); v != nil {
		t.Errorf("Get(a) = %v, want nil", v)
	}
	if v := tab.GetBytes([]byte("a")); v != nil {
		t.Errorf("GetBytes(a) = %v, want nil", v)
	}
	tab.Delete("a")
	tab.Set("a", nil)
	if n := tab.Len(); n != 0 {
		t.Errorf("Len() = %d, want 0", n)
	}
	for name := range tab.All() {
		t.Errorf("All() yields %q, want nothing", name)
	}
}

// check compares the whole of a table to a map.
func check(t *testing.T, tab *Table[cert], want map[string]*cert) {
	t.Helper()
	if got := tab.Len(); got != len(want) {
		t.Fatalf("Len() = %d, want %d", got, len(want))
	}
	for name, v := range want {
		if got := tab.Get(name); got != v {
			t.Fatalf("Get(%q) = %v, want %v", name, got, v)
		}
		if got := tab.GetBytes([]byte(name)); got != v {
			t.Fatalf("GetBytes(%q) = %v, want %v", name, got, v)
		}
	}
	all := make(map[string]*cert)
	for name, v := range tab.All() {
		if all[name] != nil {
			t.Fatalf("All() yields %q twice", name)
		}
		all[name] = v
	}
	if !maps.Equal(all, want) {
		t.Fatalf("All() yields %d names that differ from the %d in the map", len(all), len(want))
	}
	checkShards(t, tab)
}

// checkShards checks that what the table counts is so, and that a quarter of
// each shard is free: a search in a full one would not end.
func checkShards(t *testing.T, tab *Table[cert]) {
	t.Helper()
	for n := range tab.shards {
		p := tab.shards[n].Load()
		if p == nil {
			continue
		}
		filled := 0
		for i := range *p {
			if (*p)[i].hash.Load() != 0 {
				filled++
			}
		}
		if filled != tab.filled[n] || 4*filled >= 3*len(*p) {
			t.Fatalf("shard %d has %d of %d slots filled, counts %d", n, filled, len(*p), tab.filled[n])
		}
	}
}

// TestSameHash: names are told apart even if their hashes are not.
func TestSameHash(t *testing.T) {
	slots := make([]slot[cert], 4)
	a := find(slots, 1, "a")
	a.fill(1, "a")
	b := find(slots, 1, "b")
	b.fill(1, "b")
	if a == b || find(slots, 1, "a") != a || find(slots, 1, "b") != b {
		t.Error("two names with one hash share a slot")
	}
}

// TestModel takes random steps on a table and a map, over few names so that
// they die and come back, and over many so that shards are rebuilt.
func TestModel(t *testing.T) {
	for _, names := range []int{1, 10, 100, 5_000} {
		t.Run(fmt.Sprint(names), func(t *testing.T) {
			var tab Table[cert]
			model := make(map[string]*cert)
			for step := range 20_000 {
				name := fmt.Sprint(rand.IntN(names))
				if rand.IntN(3) == 0 {
					tab.Delete(name)
					delete(model, name)
				} else {
					v := &cert{step}
					tab.Set(name, v)
					model[name] = v
				}
				if got := tab.Get(name); got != model[name] {
					t.Fatalf("step %d: Get(%q) = %v, want %v", step, name, got, model[name])
				}
				if step%1000 == 0 {
					check(t, &tab, model)
				}
			}
			check(t, &tab, model)
		})
	}
}

// TestModelOfMany is TestModel for many names at a time, some of them twice.
func TestModelOfMany(t *testing.T) {
	for _, names := range []int{1, 10, 100, 5_000} {
		t.Run(fmt.Sprint(names), func(t *testing.T) {
			var tab Table[cert]
			model := make(map[string]*cert)
			for step := range 200 {
				some, values := make([]string, rand.IntN(200)), []*cert(nil)
				for i := range some {
					some[i] = fmt.Sprint(rand.IntN(names))
					values = append(values, &cert{step})
				}
				for i, v := range tab.GetAll(some) {
					if v != model[some[i]] {
						t.Fatalf("step %d: GetAll has %v for %q, want %v", step, v, some[i], model[some[i]])
					}
				}
				if rand.IntN(3) == 0 {
					for _, name := range some {
						tab.Delete(name)
						delete(model, name)
					}
				} else {
					given := slices.Clone(values)
					tab.AddAll(some, values)
					for i, name := range some {
						if model[name] == nil {
							model[name] = given[i]
						}
						if values[i] != model[name] {
							t.Fatalf("step %d: AddAll left %v for %q, want %v", step, values[i], name, model[name])
						}
					}
				}
				check(t, &tab, model)
			}
		})
	}
}

// TestEverySize looks up every name, and one that is absent, after each Set on
// the way to a size where all shards have grown several times.
func TestEverySize(t *testing.T) {
	var tab Table[cert]
	model := make(map[string]*cert)
	for i := range 600 {
		name := fmt.Sprint(i)
		model[name] = &cert{i}
		tab.Set(name, model[name])
		check(t, &tab, model)
		if v := tab.Get("absent"); v != nil {
			t.Fatalf("Get(absent) = %v of %d names, want nil", v, len(model))
		}
	}
}

// TestGrowMakesRoom has no shard rebuilt by the names that there is room for.
func TestGrowMakesRoom(t *testing.T) {
	const names = 20_000
	var tab Table[cert]
	model := map[string]*cert{"a.example.com": new(cert)}
	tab.Set("a.example.com", model["a.example.com"])
	tab.Grow(names)
	before := slots(&tab)
	for i := range names {
		name := fmt.Sprint(i)
		model[name] = &cert{i}
		tab.Set(name, model[name])
	}
	if after := slots(&tab); after != before || after > 17*names/10 {
		t.Errorf("the table has %d slots for %d names, %d before they came", after, names, before)
	}
	check(t, &tab, model)
}

func TestAllStops(t *testing.T) {
	var tab Table[cert]
	for i := range 100 {
		tab.Set(fmt.Sprint(i), new(cert))
	}
	n := 0
	for range tab.All() {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("All() yields %d names to a loop that ends after 3", n)
	}
}

// TestDeadNamesGo sets and deletes ever new names: a table that kept the dead
// would grow with each.
func TestDeadNamesGo(t *testing.T) {
	var tab Table[cert]
	churn := func(from, to int) {
		for i := from; i < to; i++ {
			name := fmt.Sprint(i)
			tab.Set(name, new(cert))
			tab.Delete(name)
		}
	}
	churn(0, 10_000)
	before := slots(&tab)
	churn(10_000, 100_000)
	if after := slots(&tab); after != before {
		t.Errorf("90,000 deleted names later the table has %d slots, want %d as before", after, before)
	}
	check(t, &tab, nil)
}

func slots(tab *Table[cert]) (n int) {
	for i := range tab.shards {
		if p := tab.shards[i].Load(); p != nil {
			n += len(*p)
		}
	}
	return n
}

// TestReadersBesideWriter has readers watch names that a writer replaces while
// it grows the table around them: a name is never missed, and never goes back
// to a value that was replaced before.
func TestReadersBesideWriter(t *testing.T) {
	var tab Table[cert]
	const watched = 50
	for i := range watched {
		tab.Set(fmt.Sprint("watched", i), &cert{0})
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			var seen [watched]int
			for {
				select {
				case <-done:
					return
				default:
				}
				for i := range watched {
					v := tab.GetBytes(fmt.Append(nil, "watched", i))
					if v == nil || v.serial < seen[i] {
						t.Errorf("watched%d: got %v after %d", i, v, seen[i])
						return
					}
					seen[i] = v.serial
				}
			}
		})
	}
	readers.Go(func() {
		for n, last := 0, false; !last; n++ {
			select {
			case <-done:
				last = true
			default:
			}
			got := make(map[string]bool)
			for name := range tab.All() {
				if got[name] {
					t.Errorf("All() yields %q twice", name)
					return
				}
				got[name] = true
			}
			for i := range watched {
				if !got[fmt.Sprint("watched", i)] {
					t.Errorf("All() lacks watched%d", i)
					return
				}
			}
		}
	})
	for i := range 2_000 {
		tab.Set(fmt.Sprint("watched", i%watched), &cert{i})
		tab.Set(fmt.Sprint("other", i), &cert{i})
		tab.Delete(fmt.Sprint("other", i-100))
	}
	close(done)
	readers.Wait()
}

// TestNewName has a reader ask for each name while it is being set for the first
// time: the race detector sees whether a slot is found before it is whole.
func TestNewName(t *testing.T) {
	const names = 2000
	var tab Table[cert]
	var reader sync.WaitGroup
	reader.Go(func() {
		for i := range names {
			for tab.Get(fmt.Sprint(i)) == nil {
				runtime.Gosched()
			}
		}
	})
	for i := range names {
		tab.Set(fmt.Sprint(i), new(cert))
	}
	reader.Wait()
}

func TestGetDoesNotAllocate(t *testing.T) {
	var tab Table[cert]
	tab.Set("a.example.com", new(cert))
	name := []byte("a.example.com")
	absent := []byte("a-name-too-long-for-the-stack-buffer-of-a-conversion.example.com")
	n := testing.AllocsPerRun(100, func() {
		tab.Get("a.example.com")
		tab.GetBytes(name)
		tab.GetBytes(absent)
	})
	if n != 0 {
		t.Errorf("three lookups allocate %v times, want 0", n)
	}
}
