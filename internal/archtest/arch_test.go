package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "rfs"

// layers, lowest first. A pattern that ends in /... matches the package and all
// below it; the longest pattern that matches decides.
var layers = [][]string{
	{"rfs"},
	{"rfs/internal/..."},
	{"rfs/cgo/..."},
	{"rfs/verbs/..."},
	{"rfs/transport/wire/..."},
	{"rfs/transport"},
	{"rfs/transport/arena", "rfs/transport/transporttest"},
	{"rfs/transport/tcp/...", "rfs/transport/dpdk/...", "rfs/rdma/..."},
	{"rfs/erasure/...", "rfs/placement/..."},
	{"rfs/raftmeta/...", "rfs/chunkstore/..."},
	{"rfs/client/...", "rfs/server/..."},
	{"rfs/node/..."},
	{"rfs/mount/...", "rfs/transfer/..."},
	{"rfs/internal/sim/...", "rfs/bench/..."},
	{"rfs/cmd/..."},
}

// mayImport allows what stands lower, and in one layer the packages of one
// folder: raftmeta its metapb, a leaf helper another.
func mayImport(from, to string) bool {
	a, b := layerOf(from), layerOf(to)
	if b < a {
		return true
	}
	return a == b && family(from) == family(to)
}

func family(pkg string) string {
	parts := strings.SplitN(pkg, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func layerOf(pkg string) int {
	best, layer := -1, -1
	for i, l := range layers {
		for _, p := range l {
			base, tree := strings.CutSuffix(p, "/...")
			if (pkg == base || tree && strings.HasPrefix(pkg, base+"/")) && len(base) > best {
				best, layer = len(base), i
			}
		}
	}
	return layer
}

func TestLayers(t *testing.T) {
	for pkg, files := range sources(t) {
		if strings.HasPrefix(pkg, "rfs/scripts") {
			continue
		}
		if layerOf(pkg) < 0 {
			t.Errorf("%s stands in no layer: add it to internal/archtest and to docs/design.md", pkg)
			continue
		}
		for _, f := range files {
			for _, spec := range f.ast.Imports {
				to, _ := strconv.Unquote(spec.Path.Value)
				if to != module && !strings.HasPrefix(to, module+"/") {
					continue
				}
				if !mayImport(pkg, to) {
					t.Errorf("%s: %s imports %s, which is not below it", f.path, pkg, to)
				}
			}
		}
	}
}

func TestCgoStandsOnlyUnderCgo(t *testing.T) {
	for pkg, files := range sources(t) {
		for _, f := range files {
			for _, spec := range f.ast.Imports {
				if spec.Path.Value == `"C"` && !strings.HasPrefix(pkg, "rfs/cgo/") {
					t.Errorf(`%s: import "C": bind C under cgo/ and call that`, f.path)
				}
			}
		}
	}
}

func TestEachPackageHasADoc(t *testing.T) {
	for pkg, files := range sources(t) {
		if !slices.ContainsFunc(files, func(f source) bool { return f.ast.Doc != nil && len(f.ast.Doc.Text()) > 40 }) {
			t.Errorf("%s has no package doc: say what it owns, and draw its picture or its bytes", pkg)
		}
	}
}

// A file that is built with a tag has a partner that is built without it, so
// that every build has every name.
func TestTaggedFilesHavePartners(t *testing.T) {
	for pkg, files := range sources(t) {
		tags := map[string]string{}
		for _, f := range files {
			if m := regexp.MustCompile(`(?m)^//go:build (.+)$`).FindStringSubmatch(f.text); m != nil {
				tags[m[1]] = f.path
			}
		}
		for tag, file := range tags {
			if name, ok := strings.CutPrefix(tag, "!"); ok {
				tag = name
			}
			if !slices.Contains([]string{"rdma", "dpdk", "race", "invariants"}, tag) {
				continue
			}
			if tags[tag] == "" || tags["!"+tag] == "" {
				t.Errorf("%s: %s: the tag %s needs a file with it and one with its negation", pkg, file, tag)
			}
		}
	}
}

// Paths of somebody's machine and the host of a module proxy have no place in the repository.
var forbidden = regexp.MustCompile(`/work/|/root/|/home/[a-z]+/|proxy\.golang\.org`)

func TestNothingForeign(t *testing.T) {
	root := repoRoot(t)
	skip := regexp.MustCompile(`^(\.git|bin|\.cache)$|^internal/archtest$`)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if d.IsDir() {
			if skip.MatchString(rel) {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || rel == ".git" {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(b), "\n") {
			if m := forbidden.FindString(line); m != "" {
				t.Errorf("%s:%d: %q has no place here", rel, i+1, m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLayerRules tests the test.
func TestLayerRules(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"rfs/cmd/rfs", "rfs/node", true},
		{"rfs/mount", "rfs/client", true},
		{"rfs/client", "rfs/mount", false},
		{"rfs/client", "rfs/server", false},
		{"rfs/raftmeta", "rfs/raftmeta/metapb", true},
		{"rfs/chunkstore", "rfs/raftmeta", false},
		{"rfs/transport/wire", "rfs/transport", false},
		{"rfs/transport/tcp", "rfs/transport/arena", true},
		{"rfs", "rfs/internal/crc", false},
		{"rfs/internal/crc", "rfs", true},
		{"rfs/internal/crc", "rfs/transport", false},
		{"rfs/internal/sim", "rfs/client", true},
	} {
		if got := mayImport(c.from, c.to); got != c.want {
			t.Errorf("may %s import %s: %v, want %v", c.from, c.to, got, c.want)
		}
	}
	if l := layerOf("rfs/gateway"); l != -1 {
		t.Errorf("an unknown package has layer %d", l)
	}
}

type source struct {
	path, text string
	ast        *ast.File
}

// sources returns the parsed non-test files of the module by import path.
func sources(t *testing.T) map[string][]source {
	t.Helper()
	root := repoRoot(t)
	pkgs := map[string][]source{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if d.IsDir() {
			_, nested := os.Stat(filepath.Join(p, "go.mod"))
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata" || nested == nil) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, p, b, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg := path.Join(module, filepath.ToSlash(filepath.Dir(rel)))
		pkgs[pkg] = append(pkgs[pkg], source{rel, string(b), f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 3 {
		t.Fatalf("only %d packages found below %s", len(pkgs), root)
	}
	return pkgs
}

func repoRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
	}
	t.Fatalf("no go.mod above %s", dir)
	return ""
}
