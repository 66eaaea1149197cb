package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// sizes runs a benchmark with logs of 100,000 and 1,000,000 records of 1.5 kB.
func sizes(b *testing.B, bench func(b *testing.B, n int)) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { bench(b, n) })
	}
}

// full returns a log of n records of 1.5 kB, put in no order.
func full(n int) *Log {
	var l Log
	for i := range n {
		l.Put(big(fmt.Sprintf("host-%07d.example.com", i*7919%n), i))
	}
	return &l
}

// fullFile returns the name of a file with n records.
func fullFile(b *testing.B, n int) string {
	name := filepath.Join(b.TempDir(), "cache")
	f, err := os.Create(name)
	if err == nil {
		_, err = f.WriteString(full(n).Text())
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil { // so that nobody's fsync has to wait for all of it
		b.Fatal(err)
	}
	return name
}

func BenchmarkPutSync(b *testing.B) { sizes(b, benchmarkPutSync) }

func benchmarkPutSync(b *testing.B, n int) {
	var l Log
	if err := l.Open(fullFile(b, n), Options{}); err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := l.Sync(l.Put(big(fmt.Sprintf("new-%07d.example.com", i), 1))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPutSyncFloor is the least that a Put and a Sync take: the same
// bytes, made and written to the end of a plain file.
func BenchmarkPutSyncFloor(b *testing.B) {
	f, err := os.OpenFile(fullFile(b, 100_000), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for i := 0; b.Loop(); i++ {
		_, err := f.WriteString(string(big(fmt.Sprintf("new-%07d.example.com", i), 1)) + "\n")
		if err := errors.Join(err, f.Sync()); err != nil {
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
	l := full(100_000)
	b.ReportAllocs()
	for b.Loop() {
		l.Get("host", "host-0000123.example.com")
	}
}

func BenchmarkOpen(b *testing.B) { sizes(b, benchmarkOpen) }

func benchmarkOpen(b *testing.B, n int) {
	name := fullFile(b, n)
	b.ReportAllocs()
	for b.Loop() {
		var l Log
		apply := func(rs []Record) {
			for _, r := range rs {
				l.Adopt(r)
			}
		}
		if err := l.Open(name, Options{Apply: apply}); err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

// BenchmarkOpenFloor is the least that Open takes: to read a file and check
// each line.
func BenchmarkOpenFloor(b *testing.B) { sizes(b, benchmarkOpenFloor) }

func benchmarkOpenFloor(b *testing.B, n int) {
	name := fullFile(b, n)
	for b.Loop() {
		data, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			crc32.Checksum(line, castagnoli)
		}
	}
}

// BenchmarkText and BenchmarkSplit are to be compared with BenchmarkCopy, the
// least that it takes.
func BenchmarkText(b *testing.B) { sizes(b, benchmarkText) }

func benchmarkText(b *testing.B, n int) {
	l := full(n)
	b.ReportAllocs()
	for b.Loop() {
		l.Text()
	}
}

// BenchmarkTextLoaded is BenchmarkText of what was in order when it was read.
func BenchmarkTextLoaded(b *testing.B) { sizes(b, benchmarkTextLoaded) }

func benchmarkTextLoaded(b *testing.B, n int) {
	rs, _, _ := Split(full(n).Text())
	var l Log
	l.Put(rs...)
	b.ReportAllocs()
	for b.Loop() {
		l.Text()
	}
}

func BenchmarkSplit(b *testing.B) { sizes(b, benchmarkSplit) }

func benchmarkSplit(b *testing.B, n int) {
	text := full(n).Text()
	b.ReportAllocs()
	for b.Loop() {
		rs, _, _ := Split(text)
		var l Log
		for _, r := range rs {
			l.Put(r)
		}
		if len(rs) != n {
			b.Fatal(len(rs))
		}
	}
}

func BenchmarkCopy(b *testing.B) { sizes(b, benchmarkCopy) }

func benchmarkCopy(b *testing.B, n int) {
	text := []byte(full(n).Text())
	for b.Loop() {
		c := make([]byte, 0, len(text))
		c = append(c, text...)
		crc32.Checksum(c, castagnoli)
	}
}

// BenchmarkCompactStall says how long a Put waited at most, and how long
// Syncs did, while 150 MB or 1.5 GB were rewritten.
func BenchmarkCompactStall(b *testing.B) { sizes(b, benchmarkCompactStall) }

func benchmarkCompactStall(b *testing.B, n int) {
	var l Log
	if err := l.Open(fullFile(b, n), Options{}); err != nil {
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
				r := big(fmt.Sprintf("host-%07d.example.com", i), i)
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
