package config

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The example cluster's files are right, and agree with each other.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/*.toml")
	if err != nil || len(files) < 7 {
		t.Fatalf("%d example files, %v", len(files), err)
	}
	var first *Daemon
	for _, f := range files {
		if strings.HasSuffix(f, "client.toml") {
			if _, err := LoadClient(f); err != nil {
				t.Error(err)
			}
			continue
		}
		c, err := LoadDaemon(f)
		if err != nil {
			t.Error(err)
			continue
		}
		if first == nil {
			first = &c
		}
		if strings.Join(c.Cluster.Meta, " ") != strings.Join(first.Cluster.Meta, " ") {
			t.Errorf("%s is of another cluster than %v", f, first.Cluster)
		}
		if c.Has(RoleMeta) != slices.Contains(c.Cluster.Meta, c.Node.Advertise) {
			t.Errorf("%s: roles %v, but cluster.meta is %v", f, c.Node.Roles, c.Cluster.Meta)
		}
	}
}
