// Formats writes docs/formats.md from the comments in which the packages draw their
// bytes, so that there is one place for each: the code.
//
//	go run ./scripts/formats > docs/formats.md      (make formats)
package main

import (
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A section of the page: the doc of a package, or of the constant, type or function named, or the comment with certain words.
type section struct{ title, text, dir, symbol string }

var sections = []section{
	{"Files and stripes", "Which byte of a file is where.", ".", ""},
	{"Tags", "", ".", "Tag"},
	{"Block checksums", "", "internal/crc", ""},
	{"The wire: frames", "The same on TCP and Unix sockets, and on what carries rfs later.", "transport/wire", ""},
	{"The wire: who may talk", "", "transport/tcp", "~READY proof"},
	{"The wire: data operations", "Golden encodings are in transport/wire/testdata.", "transport/wire", "CommonSize"},
	{"The wire: metadata operations", "The messages are in raftmeta/metapb/meta.proto. Fields are added, never renumbered.", "", ""},
	{"On disk: a target", "", "chunkstore", ""},
	{"On disk: whose a target is", "", "chunkstore", "Identity"},
	{"On disk: a metadata replica", "", "raftmeta", ""},
	{"On disk: the key file", "", "internal/config", "Identity"},
	{"On disk: a node's state directory", "", "node", "~The state directory of a node"},
}

const head = `# Formats

What is on the wire and on the disk, byte by byte. This page is made from the comments of
the packages that own the bytes ("make formats"); each section names its package.

Rules. Numbers are little-endian unless a section says otherwise. Reserved bytes are zero
when written and ignored when read. Structs are appended to, never reordered; numbers of
operations, statuses and fields are never used again. A change that an older reader would
misunderstand raises the major version (wire) or the format number (disk), and the older
reader refuses it with a message that names both.
`

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	if err := write(os.Stdout, root); err != nil {
		fmt.Fprintln(os.Stderr, "formats:", err)
		os.Exit(1)
	}
}

func write(w io.Writer, root string) error {
	fmt.Fprint(w, head)
	for _, s := range sections {
		fmt.Fprintf(w, "\n## %s\n", s.title)
		if s.text != "" {
			fmt.Fprintf(w, "\n%s\n", s.text)
		}
		if s.dir == "" {
			continue
		}
		text, err := docOf(filepath.Join(root, s.dir), s.symbol)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\n(%s)\n\n%s", strings.Replace(s.dir+" "+name(s), ". ", "rfs ", 1), markdown(text))
	}
	return nil
}

func name(s section) string {
	if s.symbol == "" || s.symbol[0] == '~' {
		return "package"
	}
	return "`" + s.symbol + "`"
}

// markdown renders a doc comment, with its headings two levels below the page's.
func markdown(text string) string {
	var p comment.Parser
	pr := comment.Printer{HeadingLevel: 3, HeadingID: func(*comment.Heading) string { return "" }, DocLinkURL: func(*comment.DocLink) string { return "" }}
	return string(pr.Markdown(p.Parse(text)))
}

// docOf returns the comment on a package or on one of its symbols (a method is
// Type.name), or the comment that has the words after "~".
func docOf(dir, symbol string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	fset := token.NewFileSet()
	var text string
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, f, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return "", err
		}
		if symbol == "" {
			text += file.Doc.Text()
			continue
		}
		if words, ok := strings.CutPrefix(symbol, "~"); ok {
			for _, g := range file.Comments {
				if strings.Contains(g.Text(), words) {
					return g.Text(), nil
				}
			}
			continue
		}
		for _, d := range file.Decls {
			if t := docOfDecl(d, symbol); t != "" {
				return t, nil
			}
		}
	}
	if text == "" {
		return "", fmt.Errorf("%s: no comment on %q", dir, symbol)
	}
	return text, nil
}

func docOfDecl(d ast.Decl, symbol string) string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if funcName(d) == symbol {
			return d.Doc.Text()
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.Name == symbol {
					return d.Doc.Text() + s.Doc.Text()
				}
			case *ast.ValueSpec:
				if s.Names[0].Name == symbol {
					return d.Doc.Text() + s.Doc.Text()
				}
			}
		}
	}
	return ""
}

func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	t := d.Recv.List[0].Type
	if p, ok := t.(*ast.StarExpr); ok {
		t = p.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "." + d.Name.Name
	}
	return d.Name.Name
}
