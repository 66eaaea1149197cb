package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// children are what is measured in processes of their own, lest it find the
// heap or the caches as another left them. They return one or more values.
var children = map[string]func(n int) ([]float64, error){}

// inChild has a process of this program's measure something of children, in a
// folder: "" is this one.
func inChild(folder, name string, n int) ([]float64, error) {
	cmd := exec.Command(self(), "-child", fmt.Sprintf("%s/%d", name, n))
	cmd.Stderr, cmd.Dir = os.Stderr, folder
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("measuring %s in a child: %w", name, err)
	}
	var v []float64
	return v, json.Unmarshal(out, &v)
}

func self() string {
	name, err := os.Executable()
	if err != nil {
		panic(err) // the platform has no such thing
	}
	return name
}

// apart measures figures in a process of this program, and calls each for what
// comes out.
func apart(ctx context.Context, figures []*figure, each func(result) error, flags ...string) error {
	var names []string
	for _, f := range figures {
		names = append(names, f.name)
	}
	cmd := exec.CommandContext(ctx, self(), append(flags, "-here", "-json", "-figure", strings.Join(names, ","))...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var errs []error
	for d := json.NewDecoder(out); ; {
		var res result
		if d.Decode(&res) != nil {
			return errors.Join(append(errs, cmd.Wait())...) // the last tells why there is no more
		}
		errs = append(errs, each(res))
	}
}

func beChild(arg string) {
	name, size, _ := strings.Cut(arg, "/")
	n, err := strconv.Atoi(size)
	measure, ok := children[name]
	if err != nil || !ok {
		fmt.Fprintf(os.Stderr, "there is no child %q\n", arg)
		os.Exit(2)
	}
	v, err := measure(n)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(v)
}
