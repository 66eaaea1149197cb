package policy

import (
	"go/parser"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// codeRules is a statement of policy: what the packages of the root module may
// import beside the standard library. A line names a package and after the
// colon packages of ours by their folder, the root as ".", and others by their
// path; a * stands for one element of a path. What has no line may import the
// standard library only.
//
// Imports run one way, from the root to what it orchestrates. The packages
// below know nothing of Manager and next to nothing of each other, so that each
// can be read, tested and replaced alone.
const codeRules = `
	.:                 internal/* golang.org/x/crypto/acme golang.org/x/time/rate

	internal/bucket:   golang.org/x/time/rate
	internal/ca:       internal/certs golang.org/x/crypto/acme
	internal/certs:    internal/hostname
	internal/hostname: golang.org/x/net/idna
	internal/owned:    internal/certs internal/hostname internal/table
	internal/shared:   internal/journal
	internal/staple:   internal/certs golang.org/x/crypto/ocsp
	internal/txt:      golang.org/x/net/dns/dnsmessage

	internal/pebble:   golang.org/x/net/dns/dnsmessage

	demo:              . internal/pebble store/dir
	store/dir:         .
	store/sealed:      .
	store/storetest:   .
`

// testRules is the same for tests, beside what codeRules allows and the package
// itself. The CAs that the library is tested against share no code with it: two
// sides that are wrong in the same way would agree.
const testRules = `
	.:                 internal/catest internal/pebble golang.org/x/crypto/ocsp golang.org/x/net/dns/dnsmessage
	internal/ca:       internal/catest internal/challenge internal/pebble
	internal/staple:   internal/catest internal/ocspd internal/pebble
	internal/catest:   golang.org/x/crypto/*
	internal/pebble:   golang.org/x/crypto/acme
	internal/e2e:      . internal/* golang.org/x/crypto/* golang.org/x/net/dns/dnsmessage golang.org/x/time/rate
	demo:              internal/*
	store/dir:         internal/* store/storetest
	store/sealed:      store/dir store/storetest
`

// testOnly are the packages that only tests may import, and the demo.
const testOnly = "internal/catest internal/engine internal/ocspd internal/pebble internal/e2e internal/policy store/storetest"

func TestImports(t *testing.T) {
	p := parsePolicy(t)
	for _, src := range sources(t, parser.ImportsOnly) {
		for _, imp := range src.syntax.Imports {
			to, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !p.allows(src, to) {
				t.Errorf("%s: %s must not import %s", src.fset.Position(imp.Pos()), src.name, to)
			}
		}
	}
}

// TestPolicy has imports that the policy forbids or, with a + before them,
// allows. A package with _test at the end stands for its tests.
func TestPolicy(t *testing.T) {
	p := parsePolicy(t)
	tests := []struct{ from, to string }{
		{".", "+ internal/ca"},
		{".", "+ golang.org/x/crypto/acme"},
		{".", "internal/catest"},
		{".", "golang.org/x/crypto/acme/autocert"},
		{".", "golang.org/x/net/http2"},
		{".", "github.com/someone/something"},
		{"._test", "+ internal/catest"},
		{"._test", "internal/e2e"},
		{"internal/ca", "+ internal/certs"},
		{"internal/ca", "."},
		{"internal/ca", "internal/challenge"},
		{"internal/ca", "internal/catest"},
		{"internal/ca_test", "+ internal/catest"},
		{"internal/ca_test", "."},
		{"internal/certs", "internal/ca"},
		{"internal/catest", "internal/certs"},
		{"internal/catest", "golang.org/x/crypto/acme"},
		{"internal/catest_test", "+ golang.org/x/crypto/acme"},
		{"internal/catest_test", "internal/certs"},
		{"internal/new", "internal/certs"},
		{"internal/new", "golang.org/x/net/idna"},
		{"internal/new_test", "+ internal/new"},
		{"internal/e2e_test", "+ ."},
		{"demo", "+ internal/pebble"},
		{"demo", "internal/ca"},
		{"store/dir", "+ ."},
		{"store/dir", "internal/journal"},
		{"store/dir", "store/storetest"},
		{"store/dir_test", "+ store/storetest"},
		{"nested/etcd", "+ ."},
		{"nested/etcd", "+ nested/etcd/internal/wire"},
		{"nested/etcd", "+ go.etcd.io/etcd/client/v3"},
		{"nested/etcd", "internal/journal"},
		{"nested/etcd", "nested/other"},
		{"nested/etcd_test", "+ internal/pebble"},
		{"nested/etcd_test", "+ nested/other"},
		{"bench", "+ internal/pebble"},
	}
	for _, tt := range tests {
		src := source{name: "x.go"}
		from, isTest := strings.CutSuffix(tt.from, "_test")
		if isTest {
			src.name = "x_test.go"
		}
		src.pkg = importPath(from)
		if strings.HasPrefix(from, "nested/") || from == "bench" {
			src.nested = src.pkg
		}
		to, want := strings.CutPrefix(tt.to, "+ ")
		if got := p.allows(src, importPath(to)); got != want {
			t.Errorf("%s may import %s = %v, want %v", tt.from, to, got, want)
		}
	}
}

// A policy maps the import path of a package to patterns of those it may import.
type policy struct{ code, tests map[string][]string }

func parsePolicy(t *testing.T) policy {
	t.Helper()
	return policy{parseRules(t, codeRules), parseRules(t, testRules)}
}

func parseRules(t *testing.T, text string) map[string][]string {
	t.Helper()
	rules := make(map[string][]string)
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		pkg, allowed, ok := strings.Cut(line, ":")
		pkg = importPath(pkg)
		if _, twice := rules[pkg]; twice || !ok {
			t.Fatalf("not a rule, or one of two for a package: %q", line)
		}
		for to := range strings.FieldsSeq(allowed) {
			rules[pkg] = append(rules[pkg], importPath(to))
		}
	}
	return rules
}

func (p policy) allows(from source, to string) bool {
	switch {
	case isStandard(to):
		return true
	case from.nested != "":
		return nestedAllows(from, to)
	case from.isTest():
		return to == from.pkg || match(p.tests[from.pkg], to) || match(p.code[from.pkg], to) && !isTestOnly(to)
	}
	return match(p.code[from.pkg], to) && (!isTestOnly(to) || from.pkg == importPath("demo"))
}

// nestedAllows judges the imports of nested modules: what they were made for,
// and of ours the root alone, as if they were somebody else's. Their tests, and
// bench, may use all that is ours: nobody inherits that.
func nestedAllows(from source, to string) bool {
	return !isOurs(to) || to == module || within(from.nested, to) || from.isTest() || from.nested == importPath("bench")
}

func match(patterns []string, to string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, to)
		return ok && err == nil
	})
}

func isTestOnly(to string) bool {
	return slices.ContainsFunc(strings.Fields(testOnly), func(pkg string) bool { return importPath(pkg) == to })
}

// isStandard reports whether to is of the standard library: the first element
// of no other path is without a dot.
func isStandard(to string) bool {
	first, _, _ := strings.Cut(to, "/")
	return !strings.Contains(first, ".")
}

func isOurs(to string) bool { return within(module, to) }

func within(parent, to string) bool { return to == parent || strings.HasPrefix(to, parent+"/") }
