// Testsum reads the events of `go test -json` and prints what a person needs
// of them: a line for each package, all the output of tests that failed, the
// slowest tests, and at the end one line with the counts:
//
//	1234 passed, 0 failed, 2 skipped
//
// It exits 1 when a test or a package failed, or when none ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// event is one line of test2json; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

type name struct{ pkg, test string }

type summary struct {
	passed, failed, skipped int
	packages, badPackages   int
	output                  map[name][]string // of what has not ended yet
	slow                    []event
}

func main() {
	s := &summary{output: map[name][]string{}}
	if err := s.read(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(2)
	}
	if !s.close(os.Stdout) {
		os.Exit(1)
	}
}

func (s *summary) read(r io.Reader, w io.Writer) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(w, lines.Text()) // not an event: the go command itself speaks
			continue
		}
		s.add(e, w)
	}
	return lines.Err()
}

func (s *summary) add(e event, w io.Writer) {
	n := name{e.Package, e.Test}
	switch e.Action {
	case "output":
		s.output[n] = append(s.output[n], e.Output)
	case "build-output":
		fmt.Fprint(w, e.Output)
	case "build-fail":
		s.badPackages++
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(e, w)
		} else {
			s.endTest(e, w)
		}
		delete(s.output, n)
	}
}

func (s *summary) endTest(e event, w io.Writer) {
	switch e.Action {
	case "pass":
		s.passed++
		s.slow = append(s.slow, e)
	case "skip":
		s.skipped++
		fmt.Fprintf(w, "SKIP %s %s %s\n", e.Package, e.Test, reason(s.output[name{e.Package, e.Test}]))
	case "fail":
		s.failed++
		fmt.Fprintf(w, "FAIL %s %s (%.1fs)\n%s", e.Package, e.Test, e.Elapsed, strings.Join(s.output[name{e.Package, e.Test}], ""))
	}
}

func (s *summary) endPackage(e event, w io.Writer) {
	s.packages++
	switch e.Action {
	case "pass":
		fmt.Fprintf(w, "ok  \t%s\t%.1fs\n", e.Package, e.Elapsed)
	case "skip":
		fmt.Fprintf(w, "?   \t%s\t[no test files]\n", e.Package)
	case "fail":
		s.badPackages++
		// A package that dies takes tests along that never ended: theirs is the story.
		for n, out := range s.output {
			if n.pkg == e.Package {
				fmt.Fprintf(w, "---- %s %s\n%s", n.pkg, n.test, strings.Join(out, ""))
				delete(s.output, n)
			}
		}
		fmt.Fprintf(w, "FAIL\t%s\t%.1fs\n", e.Package, e.Elapsed)
	}
}

// reason is what a skipped test said.
func reason(output []string) string {
	for _, l := range output {
		if _, why, ok := strings.Cut(l, ".go:"); ok {
			return strings.TrimSpace(why)
		}
	}
	return ""
}

func (s *summary) close(w io.Writer) bool {
	slices.SortFunc(s.slow, func(a, b event) int { return int(1000 * (b.Elapsed - a.Elapsed)) })
	fmt.Fprintln(w, "slowest:")
	for _, e := range s.slow[:min(8, len(s.slow))] {
		fmt.Fprintf(w, "  %8v  %s %s\n", time.Duration(e.Elapsed*float64(time.Second)).Round(10*time.Millisecond), e.Package, e.Test)
	}
	if s.badPackages > 0 {
		fmt.Fprintf(w, "%d packages did not pass\n", s.badPackages)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	return s.badPackages == 0 && s.failed == 0 && s.passed > 0
}
