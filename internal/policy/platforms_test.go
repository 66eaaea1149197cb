package policy

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlatforms type-checks the root module, tests included, for platforms that no
// test runs on. To build it for each takes many times as long: their standard
// library, too, would be compiled.
func TestPlatforms(t *testing.T) {
	for _, platform := range []string{"windows/amd64", "darwin/arm64", "freebsd/amd64", "android/arm64", "linux/386"} {
		t.Run(platform, func(t *testing.T) {
			t.Parallel()
			errs, err := typeErrors(platform, "./...")
			if err != nil {
				t.Fatal(err)
			}
			for _, err := range errs {
				t.Error(err)
			}
		})
	}
}

// TestPlatformsNotices sees that an error is found in what is built for one
// platform only.
func TestPlatformsNotices(t *testing.T) {
	for platform, want := range map[string]int{"windows/amd64": 1, "linux/386": 1, "linux/amd64": 0} {
		errs, err := typeErrors(platform, "./internal/policy/testdata/platforms")
		if err != nil {
			t.Fatal(err)
		}
		if len(errs) != want {
			t.Errorf("%s: %v, want %d errors", platform, errs, want)
		}
	}
}

// A listed package is what go list tells of it.
type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	ImportMap  map[string]string
	Module     *struct{ Main bool }
}

// typeErrors returns the errors in packages of the root module on a platform.
func typeErrors(platform, packages string) (errs []error, err error) {
	goos, goarch, _ := strings.Cut(platform, "/")
	cmd := exec.Command("go", "list", "-test", "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,Module", packages)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+goarch)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &platformChecker{fset: token.NewFileSet(), sizes: types.SizesFor("gc", goarch), packages: map[string]*types.Package{"unsafe": types.Unsafe}}
	for d := json.NewDecoder(out); ; { // what a package imports comes before it
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			return c.errs, cmd.Wait()
		} else if err != nil {
			return nil, errors.Join(err, cmd.Wait())
		}
		c.check(&p)
	}
}

type platformChecker struct {
	fset     *token.FileSet
	sizes    types.Sizes
	packages map[string]*types.Package
	errs     []error
}

// check type-checks a package: of others than the root module's no more than these
// need, and their errors are the platform's business.
func (c *platformChecker) check(p *listed) {
	if p.ImportPath == "unsafe" || strings.HasSuffix(p.ImportPath, ".test") {
		return // the latter is made by the go command
	}
	ours := p.Module != nil && p.Module.Main
	report := func(err error) {
		if ours {
			c.errs = append(c.errs, err)
		}
	}
	var files []*ast.File
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(c.fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			report(err)
			continue
		}
		files = append(files, f)
	}
	config := types.Config{
		Importer:         &listedImporter{c, p},
		Sizes:            c.sizes,
		IgnoreFuncBodies: !ours,
		Error:            report,
	}
	c.packages[p.ImportPath], _ = config.Check(p.ImportPath, c.fset, files, nil)
}

// A listedImporter imports what a package does.
type listedImporter struct {
	*platformChecker
	p *listed
}

func (i *listedImporter) Import(path string) (*types.Package, error) {
	if as, ok := i.p.ImportMap[path]; ok {
		path = as
	}
	if pkg := i.packages[path]; pkg != nil {
		return pkg, nil
	}
	return nil, errors.New("not listed: " + path)
}
