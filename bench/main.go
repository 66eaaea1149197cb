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
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
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
	if time.Since(r.said) > time.Second/4 {
		r.said = time.Now()
		say("%s: %s", title(r.name, r.n), fmt.Sprintf(format, args...))
	}
}

func title(name string, n int) string {
	if n == 0 {
		return name
	}
	return name + ", " + count(n)
}

// watched is whether a person sees what is said.
var watched = func() bool {
	info, err := os.Stderr.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}()

// say shows a person a line in place of the one before.
func say(format string, args ...any) {
	if watched {
		fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, args...)
	}
}

func complain(format string, args ...any) {
	say("")
	fmt.Fprintf(os.Stderr, format+"\n", args...)
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
	names := flag.String("figure", "", "the figures to measure, with commas between; all unless given")
	most := flag.Int("most", math.MaxInt, "measure with this many hosts at most; the targets are for all")
	quick := flag.Bool("quick", false, "only show that everything works, with 1,000 hosts unless -most is given; the values mean nothing")
	asJSON := flag.Bool("json", false, "print a JSON object a line in place of the table")
	child := flag.String("child", "", "") // see inChild
	here := flag.Bool("here", false, "")  // see apart
	flag.Usage = usage
	flag.Parse()
	if *child != "" {
		beChild(*child)
		return
	}
	if *quick && *most == math.MaxInt {
		*most = 1000
	}
	chosen, err := choose(*names)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if *here {
		err = measureHere(chosen, *most, *quick)
	} else {
		err = measureApart(chosen, *most, *quick, *asJSON)
	}
	if err != nil {
		os.Exit(1)
	}
}

// measureHere measures figures in this process, which another started.
func measureHere(figures []*figure, most int, quick bool) error {
	var errs []error
	for _, f := range figures {
		err := f.measureAll(printJSON, most, quick)
		if err != nil {
			complain("%v", err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// printJSON prints a result for machines.
func printJSON(res result) error {
	return json.NewEncoder(os.Stdout).Encode(res) // it fails for a ratio to nothing, say
}

// measureApart measures figures in processes of their own, and leaves nothing
// behind if it is interrupted.
func measureApart(figures []*figure, most int, quick, asJSON bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	folder, err := workFolder()
	if err != nil {
		complain("%v", err)
		return err
	}
	defer os.RemoveAll(folder)
	var results []result
	each := func(res result) error {
		results = append(results, res)
		return nil
	}
	if asJSON {
		each = printJSON
	}
	var errs []error
	for len(figures) > 0 && ctx.Err() == nil {
		n := together(figures)
		err := apart(ctx, figures[:n], each, "-most", fmt.Sprint(most), fmt.Sprintf("-quick=%t", quick))
		if err != nil {
			complain("%s: %v", figures[0].name, err)
		}
		errs = append(errs, err)
		figures = figures[n:]
	}
	errs = append(errs, ctx.Err()) // what is left was not measured
	say("")
	if !asJSON {
		printTable(results, !quick)
	}
	return errors.Join(errs...)
}

func usage() {
	fmt.Fprintf(os.Stderr, "usage: bench [flags]\n\n")
	flag.VisitAll(func(f *flag.Flag) {
		if f.Usage != "" {
			fmt.Fprintf(os.Stderr, "  -%-8s %s\n", f.Name, f.Usage)
		}
	})
	fmt.Fprintf(os.Stderr, "\nAll figures take 20 minutes and 11 GB of memory.\n\nfigures:\n")
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
func (f *figure) measureAll(each func(result) error, most int, quick bool) error {
	var errs []error
	for _, n := range f.upTo(most) {
		res, err := f.measure(n, quick)
		if err == nil {
			err = each(res)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", title(f.name, n), err))
		}
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

// printTable prints the results, and if they are to be judged whether they are
// what they should be.
func printTable(results []result, judged bool) {
	fmt.Printf("%s, %d CPUs, %s\n\n", runtime.Version(), runtime.NumCPU(), time.Now().Format(time.DateOnly))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "|\t| hosts or names\t| %s\t| of the floor\t| target\t|\n", strings.Join(contestants, "\t| "))
	fmt.Fprintf(w, "|%s\n", strings.Repeat(" ---\t|", 4+len(contestants)))
	for _, r := range results {
		fmt.Fprintf(w, "| %s, %s\t| %s\t", r.About, r.Unit, count(r.N))
		for _, c := range contestants {
			fmt.Fprintf(w, "| %s\t", show(r.Values, c))
		}
		ratio, target := "", ""
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", r.Ratio)
		}
		switch {
		case judged && r.Met:
			target = r.Target
		case judged:
			target = r.Target + ", missed"
		}
		fmt.Fprintf(w, "| %s\t| %s\t|\n", ratio, target)
	}
	w.Flush()
	for _, r := range results {
		for _, note := range r.Notes {
			fmt.Printf("\n%s: %s", title(r.About, r.N), note)
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
