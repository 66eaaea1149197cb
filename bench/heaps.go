package main

import (
	"bufio"
	"os"
	"path/filepath"
	"runtime"
)

// What a figure of these is about is the heap of a process of its own, after two
// garbage collections, and beyond what was there before.
var heaps = []*figure{
	{
		name: "heap", about: "heap a host, loaded, not visited", unit: "B",
		sizes: []int{100_000, 1_000_000}, target: "1,850 B",
		met: func(v values) bool { return v[ours] <= 1850 },
		run: runHeap,
	},
	{
		name: "heapvisited", about: "heap a host, all visited", unit: "B",
		sizes: []int{100_000}, target: "below both",
		met: func(v values) bool { return v[ours] < v[autocert] && v[ours] < v[certMagic] },
		run: func(r *run) (values, error) { return r.heapOf(" visited", contestants) },
	},
}

// fromFile is ours with the hosts in a cache file.
const fromFile = "ours, from a file"

func init() {
	for _, who := range contestants {
		children["heap "+who] = func(n int) ([]float64, error) { return heapOf(who, n, false) }
		children["heap "+who+" visited"] = func(n int) ([]float64, error) { return heapOf(who, n, true) }
	}
	children["heap "+fromFile] = heapFromFile
}

// runHeap takes ours as Unmarshal leaves it or CacheFile does, whichever takes
// more. Autocert has nothing in memory that was not visited.
func runHeap(r *run) (values, error) {
	who := contestants
	if r.n > 100_000 {
		who = []string{floor, ours}
	}
	v, err := r.heapOf("", append(who[:len(who):len(who)], fromFile))
	if err != nil {
		return nil, err
	}
	r.note("ours after Unmarshal %.0f B, after CacheFile %.0f B", v[ours], v[fromFile])
	v[ours] = max(v[ours], v[fromFile])
	return v, nil
}

func (r *run) heapOf(how string, who []string) (values, error) {
	unload()
	v := make(values)
	for _, who := range who {
		r.progress("%s%s", who, how)
		x, err := inChild("", "heap "+who+how, r.n)
		if err != nil {
			return nil, err
		}
		v[who] = x[0]
	}
	return v, nil
}

// heap returns how much of it is in use.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func heapOf(who string, n int, visited bool) ([]float64, error) {
	hosts.leaf(0) // its sample is not the contestant's
	chainRecord()
	before := heap()
	s, err := load(who, hosts, n)
	if err == nil && visited {
		err = visit(s, hosts, n)
	}
	if err == nil && who == ours {
		err = visit(s, hosts, 1) // the first client has it begin its work
	}
	if err != nil {
		return nil, err
	}
	after := heap()
	runtime.KeepAlive(s)
	return []float64{(after - before) / float64(n)}, nil
}

func heapFromFile(n int) ([]float64, error) {
	dir, err := os.MkdirTemp("", "heap-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "cache")
	if err := writeFile(name, n); err != nil {
		return nil, err
	}
	before := heap()
	s := newOurs()
	if err := s.ours.CacheFile(name); err != nil {
		return nil, err
	}
	if err := visit(s, hosts, 1); err != nil {
		return nil, err
	}
	after := heap()
	s.stop()
	return []float64{(after - before) / float64(n)}, nil
}

// writeFile writes a cache file with n hosts.
func writeFile(name string, n int) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 1<<20)
	writeState(w, n)
	if err := w.Flush(); err != nil {
		return err
	}
	return file.Close()
}
