package table

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

type cert struct{ serial int }

var sizes = []int{1, 1_000, 100_000, 1_000_000}

// lookups returns n names, and those of them that a benchmark asks for: copies,
// as a hello brings its own, in random order.
func lookups(n int) (names, asked []string) {
	names = make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("host%07d.example.com", i)
	}
	asked = make([]string, 1<<16)
	for i := range asked {
		asked[i] = string([]byte(names[rand.IntN(n)]))
	}
	return names, asked
}

// benchGet measures get over the asked names, serially and in parallel.
func benchGet(b *testing.B, asked []string, get func(string) *cert) {
	run := func(b *testing.B, next func() bool) {
		for i := rand.IntN(len(asked)); next(); i++ {
			if get(asked[i%len(asked)]) == nil {
				b.Error("name not found")
				return
			}
		}
	}
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		run(b, b.Loop)
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) { run(b, pb.Next) })
	})
}

func BenchmarkGet(b *testing.B) {
	for _, n := range sizes {
		names, asked := lookups(n)
		b.Run(fmt.Sprintf("table/%d", n), func(b *testing.B) {
			var t Table[cert]
			for i, name := range names {
				t.Set(name, &cert{i})
			}
			benchGet(b, asked, t.Get)
		})
		b.Run(fmt.Sprintf("map/%d", n), func(b *testing.B) {
			m := make(map[string]*cert)
			for i, name := range names {
				m[name] = &cert{i}
			}
			benchGet(b, asked, func(name string) *cert { return m[name] })
		})
		b.Run(fmt.Sprintf("sync.Map/%d", n), func(b *testing.B) {
			var m sync.Map
			for i, name := range names {
				m.Store(name, &cert{i})
			}
			benchGet(b, asked, func(name string) *cert {
				v, _ := m.Load(name)
				return v.(*cert)
			})
		})
	}
}

// BenchmarkGrow fills a table.
func BenchmarkGrow(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		names, _ := lookups(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var t Table[cert]
				for _, name := range names {
					t.Set(name, new(cert))
				}
			}
		})
	}
}

// BenchmarkRebuild rebuilds one shard: the pause of the Set that finds it full.
func BenchmarkRebuild(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		var t Table[cert]
		names, _ := lookups(n)
		for _, name := range names {
			t.Set(name, new(cert))
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				t.rebuildLocked(0, t.livingIn(0)*5/4)
			}
		})
	}
}

// BenchmarkGetBesideWriter measures readers while a writer grows the table.
func BenchmarkGetBesideWriter(b *testing.B) {
	names, asked := lookups(100_000)
	var t Table[cert]
	for i, name := range names {
		t.Set(name, &cert{i})
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				t.Set(fmt.Sprintf("other%d.example.com", i%1_000_000), new(cert))
			}
		}
	})
	benchGet(b, asked, t.Get)
	close(done)
	wg.Wait()
}
