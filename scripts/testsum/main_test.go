package main

import (
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	const events = `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: all is well\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.5}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:9: want 1, got 2\n"}
{"Action":"fail","Package":"p","Test":"TestB","Elapsed":0.1}
{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:4: no device\n"}
{"Action":"skip","Package":"p","Test":"TestC"}
{"Action":"output","Package":"p","Test":"TestD","Output":"panic: dead\n"}
{"Action":"fail","Package":"p","Elapsed":1}
{"Action":"pass","Package":"q","Elapsed":1}
go: a word of the go command
`
	var out strings.Builder
	s := &summary{output: map[name][]string{}}
	if err := s.read(strings.NewReader(strings.TrimSpace(events)), &out); err != nil {
		t.Fatal(err)
	}
	if s.close(&out) {
		t.Error("a run with a failed test passed")
	}
	for _, want := range []string{
		"FAIL p TestB (0.1s)\n    b_test.go:9: want 1, got 2\n", "SKIP p TestC 4: no device\n",
		"---- p TestD\npanic: dead\n", "ok  \tq\t1.0s\n", "go: a word of the go command\n", "\n1 passed, 1 failed, 1 skipped\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "all is well") {
		t.Error("output of a test that passed is shown")
	}
}
