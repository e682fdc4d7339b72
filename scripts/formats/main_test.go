package main

import (
	"strings"
	"testing"
)

// Every section finds its comment.
func TestWrite(t *testing.T) {
	var b strings.Builder
	if err := write(&b, "../.."); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Formats", "## The wire: frames", "0 magic 4", "PREPARE   80 tag 16"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}
