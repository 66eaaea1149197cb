package journal

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The tests below start this program anew as another process that uses the
// same file, and kill it or have it kill itself.
const childEnv = "JOURNAL_TEST_CHILD"

func TestMain(m *testing.M) {
	child, args, _ := strings.Cut(os.Getenv(childEnv), " ")
	switch child {
	case "churn":
		churn(strings.Fields(args))
	case "suicide":
		suicide(strings.Fields(args))
	default:
		os.Exit(m.Run())
	}
}

func startChild(t *testing.T, args ...any) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.TrimSuffix(fmt.Sprintln(args...), "\n"))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// churn writes count versions of few keys, so that compactions come often, and
// says after each which one is durable.
func churn(args []string) {
	name, id := args[0], args[1]
	count, err := strconv.Atoi(args[2])
	check(err)
	var l Log
	check(l.Open(name, Options{Warn: check}))
	for i := range count {
		check(l.Sync(l.Put(big(churnKey(id, i), i), rec(id+"-last", i))))
		fmt.Println(i)
		if i%97 == 96 {
			check(l.Compact())
		}
	}
	check(l.Close())
}

const churnKeys = 8

func churnKey(id string, i int) string { return fmt.Sprint(id, "-", i%churnKeys) }

// wantChurn checks that the file has all that a child said was durable, where
// acked is the last number it said, or more of it.
func wantChurn(t *testing.T, l *Log, id string, acked int) {
	t.Helper()
	if acked < 0 {
		return
	}
	r, ok := l.Get("host", id+"-last")
	if !ok {
		t.Errorf("child %s: nothing is there, %d was durable", id, acked)
		return
	}
	if last, _ := strconv.Atoi(r.JSON()); last < acked {
		t.Errorf("child %s: last record is %q, %d was durable", id, r, acked)
	}
	for i := max(0, acked-churnKeys+1); i <= acked; i++ {
		r, ok := l.Get("host", churnKey(id, i))
		if !ok {
			t.Errorf("child %s: record %d is lost", id, i)
			continue
		}
		if v, _ := r.Field(0); v < int64(i) || r != big(churnKey(id, i), int(v)) {
			t.Errorf("child %s: version %d of a record whose version %d was durable", id, v, i)
		}
	}
}

// acks reads what a child says, and calls f after each number, until it ends.
func acks(out io.Reader, f func(n int)) (last int) {
	last = -1
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if n, err := strconv.Atoi(sc.Text()); err == nil {
			last = n
			f(n)
		}
	}
	return last
}

func TestKilledAtRandom(t *testing.T) {
	name := temp(t)
	for round := range 12 {
		id := fmt.Sprint("r", round)
		kill := rand.IntN(250)
		cmd, out := startChild(t, "churn", name, id, 1_000_000)
		last := acks(out, func(n int) {
			if n == kill {
				cmd.Process.Kill()
			}
		})
		cmd.Wait()
		l := open(t, name) // a torn line, but no damage
		wantChurn(t, l, id, last)
		if last < kill {
			t.Errorf("child ended by itself after record %d", last)
		}
		wantNoTemps(t, name)
		closeLog(t, l)
	}
	l := open(t, name)
	for round := range 12 {
		wantChurn(t, l, fmt.Sprint("r", round), 0)
	}
}

// suicide does one of everything and kills itself before the step of the given
// number. It says which records are durable.
func suicide(args []string) {
	name := args[0]
	before, err := strconv.Atoi(args[1])
	check(err)
	steps := 0
	var l Log
	fl := &file{name: name, fail: func(string) error {
		if steps++; steps == before {
			p, _ := os.FindProcess(os.Getpid())
			p.Kill()
			select {}
		}
		return nil
	}}
	fl.opts.Warn = func(error) {} // one that opens a damaged file is among the runs
	check(l.openFile(fl))
	for i := range 2 {
		check(l.Sync(l.Put(rec("a", i), rec(fmt.Sprint("b", i), i))))
		fmt.Println(i)
		check(l.Compact())
	}
	check(l.Close())
}

func TestKilledBeforeEachStep(t *testing.T) {
	starts := map[string]string{
		"new":     "",
		"torn":    header + lines(rec("old", 1), rec("a", -1)) + "host a",
		"damaged": header + "x\n" + lines(rec("old", 1)),
	}
	for start, text := range starts {
		t.Run(start, func(t *testing.T) {
			dir := t.TempDir()
			for step := 1; ; step++ {
				name := filepath.Join(dir, fmt.Sprint(step))
				if text != "" {
					write(t, name, text)
				}
				cmd, out := startChild(t, "suicide", name, step)
				last := acks(out, func(int) {})
				killed := cmd.Wait() != nil
				wantAfterSuicide(t, name, last, text != "")
				if t.Failed() {
					t.Fatalf("killed before step %d", step)
				}
				if !killed {
					t.Logf("%d steps", step-1)
					return
				}
			}
		})
	}
}

func wantAfterSuicide(t *testing.T, name string, last int, old bool) {
	t.Helper()
	l := openWith(t, name, Options{Warn: func(error) {}}, nil)
	defer l.Close()
	if _, ok := l.Get("host", "old"); ok != old {
		t.Errorf("old record is there: %v, want %v", ok, old)
	}
	for i := range last + 1 {
		if r, _ := l.Get("host", fmt.Sprint("b", i)); r != rec(fmt.Sprint("b", i), i) {
			t.Errorf("record %d of %d is %q", i, last, r)
		}
	}
	if a, _ := l.Get("host", "a"); last >= 0 && a != rec("a", last) && a != rec("a", last+1) {
		t.Errorf("a is %q, want %d or the next", a, last)
	}
	wantNoTemps(t, name)
}

func TestProcessesShareAFile(t *testing.T) {
	name := temp(t)
	var wg sync.WaitGroup
	last := make([]int, 3)
	const count = 300
	for i := range last {
		cmd, out := startChild(t, "churn", name, fmt.Sprint("p", i), count)
		wg.Go(func() {
			last[i] = acks(out, func(int) {})
			if err := cmd.Wait(); err != nil {
				t.Errorf("child %d: %v", i, err)
			}
		})
	}
	l := open(t, name)
	for i := range 100 {
		put(t, l, rec(fmt.Sprint("own", i), i))
		if i%20 == 0 {
			if err := l.Compact(); err != nil {
				t.Error(err)
			}
		}
	}
	wg.Wait()
	if !slices.Equal(last, []int{count - 1, count - 1, count - 1}) {
		t.Errorf("the last records of the children are %d", last)
	}
	put(t, l, rec("end", 1))
	for _, l := range []*Log{l, open(t, name)} {
		for i := range last {
			wantChurn(t, l, fmt.Sprint("p", i), count-1)
		}
		for i := range 100 {
			if r, _ := l.Get("host", fmt.Sprint("own", i)); r != rec(fmt.Sprint("own", i), i) {
				t.Errorf("own record %d is %q", i, r)
			}
		}
	}
}
