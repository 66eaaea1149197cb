package hostname

import (
	"strings"
	"testing"
)

func TestPlainNamesTakeTheShortWay(t *testing.T) {
	label := strings.Repeat("a", maxLabel)
	long := strings.Join([]string{label, label, label, label[:MaxLen-3*len("a.")-3*maxLabel+3]}, ".")
	for _, s := range []string{
		"a", "localhost", "example.com", "EXAMPLE.Com", "EXAMPLE.COM.", "example.com.", "a-b.1a.example", "a-1-b.example", "0.example",
		"*.example.com", "*.Example.com.", long, long + ".", "*." + long[2:],
	} {
		if got, ok := appendPlain(nil, s); !ok {
			t.Errorf("appendPlain(nil, %q) = %q, false, want true", s, got)
		}
	}
}

// checkPlain: what appendPlain takes on itself, appendAny must agree with.
func checkPlain(t *testing.T, s string) {
	t.Helper()
	got, ok := appendPlain([]byte("|"), s)
	want, err := appendAny([]byte("|"), s)
	if ok && (err != nil || string(got) != string(want)) {
		t.Errorf("appendPlain(|, %q) = %q, appendAny(|, %q) = %q, %v", s, got, s, want, err)
	}
}

func TestPlainAgreesOnShortNames(t *testing.T) {
	var each func(s string, more int)
	each = func(s string, more int) {
		checkPlain(t, s)
		if more == 0 {
			return
		}
		for _, c := range []string{"a", "X", "N", "1", "-", ".", "*", ":", "_", "\u00e9"} {
			each(s+c, more-1)
		}
	}
	each("", 5)
}

func TestPlainAgreesOnLongNames(t *testing.T) {
	for _, wild := range []string{"", "*."} {
		for _, end := range []string{"", ".", ".1", "-"} {
			for n := range 3 * maxLabel {
				checkPlain(t, wild+strings.Repeat("a", n)+end)
				checkPlain(t, wild+"b."+strings.Repeat("a", n)+".c"+end)
			}
			for n := range 2 * MaxLen {
				checkPlain(t, wild+strings.Repeat("ab.cd-e.", MaxLen)[:n]+end)
			}
		}
	}
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"Example.COM.", "*.a-b.example", "xn--bcher-kva.example", "b\u00fccher.example", "1.2.3.4", "[::1]", "K.example", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkPlain(t, s) })
}
