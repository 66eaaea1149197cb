// Bench measures letsencrypt beside what a program would use in its place, a
// plain map of certificates, autocert and CertMagic, all in one run:
//
//	go run ./bench
//	go run ./bench -figure lookup,refusal -most 1000
//	go run ./bench -json
//
// The map is the floor: what is ready in memory, and nothing done for it. A
// figure's ratio is ours to the floor. Nothing leaves this machine.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// The contestants, in the order of the table's columns.
const (
	floor     = "floor"
	autocert  = "autocert"
	certMagic = "CertMagic"
	ours      = "ours"
)

var contestants = []string{floor, autocert, certMagic, ours}

// A figure is something that is measured.
type figure struct {
	name   string // as -figure has it
	about  string
	unit   string
	sizes  []int // how many hosts; nil: it is not about a number of hosts
	target string
	met    func(v values) bool
	run    func(r *run) (values, error)
}

// values are what came out, by contestant, in the figure's unit. Who can't do
// what is measured is not there.
type values map[string]float64

// ratio returns ours to the floor.
func (v values) ratio() float64 { return v[ours] / v[floor] }

// A run is one of a figure at one size.
type run struct {
	*figure
	n     int
	quick bool      // show that it works, no more: the values need not be good
	notes []string  // beside the table's line
	said  time.Time // when progress was shown
}

// progress says what is being done, where a person sees it, a few times a second.
func (r *run) progress(format string, args ...any) {
	if !r.quick && time.Since(r.said) > time.Second/4 {
		r.said = time.Now()
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s %s: %s", r.name, count(r.n), fmt.Sprintf(format, args...))
	}
}

// note adds a remark to the result.
func (r *run) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// A result is a line of the table, and of -json.
type result struct {
	Figure string   `json:"figure"`
	About  string   `json:"about"`
	N      int      `json:"n,omitempty"`
	Unit   string   `json:"unit"`
	Values values   `json:"values"`
	Ratio  float64  `json:"ratio,omitempty"` // ours to the floor
	Target string   `json:"target"`
	Met    bool     `json:"met"`
	Notes  []string `json:"notes,omitempty"`
}

func main() {
	names := flag.String("figure", "", "the figures to measure, with commas between; \"\" means all")
	most := flag.Int("most", math.MaxInt, "measure with this many hosts at most")
	quick := flag.Bool("quick", false, "only show that everything works")
	asJSON := flag.Bool("json", false, "print a JSON object a line in place of the table")
	child := flag.String("child", "", "") // see inChild
	here := flag.Bool("here", false, "")  // see apart
	flag.Usage = usage
	flag.Parse()
	if *child != "" {
		beChild(*child)
		return
	}
	chosen, err := choose(*names)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	var results []result
	failed := false
	each := func(res result) {
		results = append(results, res)
		if !*asJSON {
			return
		}
		if err := json.NewEncoder(os.Stdout).Encode(res); err != nil { // a ratio to nothing, perhaps
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s %s: %v\n", res.Figure, count(res.N), err)
			failed = true
		}
	}
	for len(chosen) > 0 {
		f, n := chosen[0], 1
		if *here {
			err = f.measureAll(each, *most, *quick)
		} else {
			n = together(chosen)
			err = apart(chosen[:n], each, "-most", fmt.Sprint(*most), fmt.Sprintf("-quick=%t", *quick))
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s: %v\n", f.name, err)
			failed = true
		}
		chosen = chosen[n:]
	}
	fmt.Fprint(os.Stderr, "\r\x1b[K")
	if !*asJSON {
		printTable(results)
	}
	if failed {
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintf(os.Stderr, "usage: bench [flags]\n\n")
	flag.VisitAll(func(f *flag.Flag) {
		if f.Usage != "" {
			fmt.Fprintf(os.Stderr, "  -%-8s %s\n", f.Name, f.Usage)
		}
	})
	fmt.Fprintf(os.Stderr, "\nfigures:\n")
	for _, f := range figures {
		fmt.Fprintf(os.Stderr, "  %-12s %s\n", f.name, f.about)
	}
}

// choose returns the figures with these names.
func choose(names string) ([]*figure, error) {
	if names == "" {
		return figures, nil
	}
	var chosen []*figure
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(figures, func(f *figure) bool { return f.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no figure %q: see bench -help", name)
		}
		chosen = append(chosen, figures[i])
	}
	return chosen, nil
}

// upTo returns the figure's sizes, none above most.
func (f *figure) upTo(most int) []int {
	if f.sizes == nil {
		return []int{0}
	}
	var sizes []int
	for _, n := range f.sizes {
		sizes = append(sizes, min(n, most))
	}
	return slices.Compact(sizes)
}

// together returns how many figures from the first are measured in one process:
// what these look up takes minutes to load. The others are to find no heap as
// another left it.
func together(figures []*figure) int {
	n := 0
	for n < len(figures) && slices.Contains(lookups, figures[n]) {
		n++
	}
	return max(n, 1)
}

// measureAll measures the figure with as many hosts as it is about, each number of
// them whatever becomes of the others.
func (f *figure) measureAll(each func(result), most int, quick bool) error {
	var errs []error
	for _, n := range f.upTo(most) {
		res, err := f.measure(n, quick)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", count(n), err))
			continue
		}
		each(res)
	}
	return errors.Join(errs...)
}

func (f *figure) measure(n int, quick bool) (result, error) {
	r := &run{figure: f, n: n, quick: quick}
	r.progress("starting")
	runtime.GC()
	v, err := f.run(r)
	if err != nil {
		return result{}, err
	}
	res := result{Figure: f.name, About: f.about, N: n, Unit: f.unit, Values: v, Target: f.target, Met: f.met(v), Notes: r.notes}
	if _, ok := v[floor]; ok {
		res.Ratio = v.ratio()
	}
	return res, nil
}

func printTable(results []result) {
	fmt.Printf("%s, %d CPUs, %s\n\n", runtime.Version(), runtime.NumCPU(), time.Now().Format(time.DateOnly))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "| figure\t| N\t| %s\t| ratio\t| target\t|\n", strings.Join(contestants, "\t| "))
	fmt.Fprintf(w, "|%s\n", strings.Repeat(" ---\t|", 4+len(contestants)))
	for _, r := range results {
		met := ""
		if !r.Met {
			met = ", missed"
		}
		fmt.Fprintf(w, "| %s, %s\t| %s\t", r.About, r.Unit, count(r.N))
		for _, c := range contestants {
			fmt.Fprintf(w, "| %s\t", show(r.Values, c))
		}
		ratio := ""
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", r.Ratio)
		}
		fmt.Fprintf(w, "| %s\t| %s%s\t|\n", ratio, r.Target, met)
	}
	w.Flush()
	for _, r := range results {
		for _, note := range r.Notes {
			fmt.Printf("\n%s, %s: %s", r.Figure, count(r.N), note)
		}
	}
	fmt.Println()
}

// count writes a number as people do.
func count(n int) string {
	if n == 0 {
		return ""
	}
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// show writes a contestant's value to three digits or so.
func show(v values, contestant string) string {
	x, ok := v[contestant]
	switch {
	case !ok:
		return ""
	case x >= 100 || x == math.Trunc(x):
		return count(int(math.Round(x)))
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}
