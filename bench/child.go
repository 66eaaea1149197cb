package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// children are what is measured in processes of their own, lest it find the
// heap or the caches as another left them. They return one or more values.
var children = map[string]func(n int) ([]float64, error){}

// inChild has a process of this program's measure something of children.
func inChild(name string, n int) ([]float64, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-child", fmt.Sprintf("%s/%d", name, n))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("measuring %s in a child: %w", name, err)
	}
	var v []float64
	return v, json.Unmarshal(out, &v)
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
