package structure

import (
	"go/ast"
	"strings"
	"testing"
)

// Every package says what it is for. Generated packages say it in their .proto.
func TestPackageDocs(t *testing.T) {
	written, documented := map[string]bool{}, map[string]bool{}
	for _, s := range sources(t) {
		if s.test || s.generated {
			continue
		}
		written[s.dir] = true
		doc := s.file.Doc.Text()
		if doc == "" {
			continue
		}
		if documented[s.dir] {
			t.Errorf("%s: a second doc comment of the package", s.name)
		}
		documented[s.dir] = true
		want := "Package " + s.file.Name.Name + " "
		if s.file.Name.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(doc, want) {
			t.Errorf("%s: the doc comment begins %q, want %q", s.name, strings.SplitAfterN(doc, " ", 3)[0], want)
		}
	}
	for dir := range written {
		if !documented[dir] {
			t.Errorf("%s: no file has a doc comment that says what the package is for", dir)
		}
	}
}

// Every exported name says what it is: its unit, its errors, where its rule is
// from. One comment may stand for a group of constants or variables.
func TestExportedNamesDocumented(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.generated || s.file.Name.Name == "main" {
			continue
		}
		for _, d := range s.file.Decls {
			for _, n := range undocumented(d) {
				t.Errorf("%s: %s has no doc comment", s.at(n), n.Name)
			}
		}
	}
}

// undocumented returns the exported names of a declaration without a comment.
func undocumented(d ast.Decl) []*ast.Ident {
	var out []*ast.Ident
	want := func(documented bool, names ...*ast.Ident) {
		for _, n := range names {
			if n.IsExported() && !documented {
				out = append(out, n)
			}
		}
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		want(d.Doc != nil || !exportedReceiver(d), d.Name)
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				want(d.Doc != nil || s.Doc != nil, s.Name)
			case *ast.ValueSpec:
				want(d.Doc != nil || s.Doc != nil || s.Comment != nil, s.Names...)
			}
		}
	}
	return out
}

// exportedReceiver reports whether a function, or the type whose method it is,
// can be seen from outside.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	e := d.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}
