package journal

import (
	"fmt"
	"hash/crc32"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

const many = 100_000

// full returns a log of 100,000 records of 1.5 kB.
func full() *Log {
	var l Log
	for i := range many {
		l.Put(big(fmt.Sprintf("host-%06d.example.com", i*7919%many), i))
	}
	return &l
}

func BenchmarkPutSync(b *testing.B) {
	l := full()
	if err := l.Open(filepath.Join(b.TempDir(), "cache"), Options{}); err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	r := big("host-000000.example.com", 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Sync(l.Put(r)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPutSyncParallel shows the group commit: many wait for one fsync.
func BenchmarkPutSyncParallel(b *testing.B) {
	l := new(Log)
	if err := l.Open(filepath.Join(b.TempDir(), "cache"), Options{}); err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	r := big("a", 1)
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Sync(l.Put(r)); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	l := full()
	b.ReportAllocs()
	for b.Loop() {
		l.Get("host", "host-000123.example.com")
	}
}

func BenchmarkOpen(b *testing.B) {
	name := filepath.Join(b.TempDir(), "cache")
	l := full()
	if err := l.Open(name, Options{}); err != nil {
		b.Fatal(err)
	}
	l.Close()
	b.ReportAllocs()
	for b.Loop() {
		var l Log
		if err := l.Open(name, Options{}); err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

// BenchmarkText and BenchmarkSplit are to be compared with BenchmarkCopy, the
// least that it takes.
func BenchmarkText(b *testing.B) {
	l := full()
	b.SetBytes(int64(len(l.Text())))
	b.ReportAllocs()
	for b.Loop() {
		l.Text()
	}
}

func BenchmarkSplit(b *testing.B) {
	text := full().Text()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if rs, _, _ := Split(text); len(rs) != many {
			b.Fatal(len(rs))
		}
	}
}

func BenchmarkCopy(b *testing.B) {
	text := []byte(full().Text())
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		c := make([]byte, 0, len(text))
		c = append(c, text...)
		crc32.Checksum(c, castagnoli)
	}
}

// BenchmarkCompactStall says how long a Put waited at most, and how long
// Syncs did, while 150 MB were rewritten.
func BenchmarkCompactStall(b *testing.B) {
	l := full()
	if err := l.Open(filepath.Join(b.TempDir(), "cache"), Options{}); err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var worstPut, worstSync time.Duration
	for b.Loop() {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				r := big(fmt.Sprintf("host-%06d.example.com", i), i)
				start := time.Now()
				seq := l.Put(r)
				worstPut = max(worstPut, time.Since(start))
				if err := l.Sync(seq); err != nil {
					b.Error(err)
				}
				worstSync = max(worstSync, time.Since(start))
			}
		})
		if err := l.Compact(); err != nil {
			b.Error(err)
		}
		close(stop)
		wg.Wait()
	}
	b.ReportMetric(float64(worstPut.Microseconds()), "µs-worst-Put")
	b.ReportMetric(float64(worstSync.Microseconds()), "µs-worst-Sync")
}
