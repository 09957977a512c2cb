package structure

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/flatmesh/flatmesh"

// source is one Go file of the project.
type source struct {
	// dir and name are relative to the project's root, with slashes.
	dir, name string
	test      bool
	generated bool
	file      *ast.File
	fset      *token.FileSet
}

// imports returns the import paths.
func (s source) imports() []string {
	var out []string
	for _, i := range s.file.Imports {
		// The parser has accepted it as a string literal.
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

// at says where a node is, as editors read it.
func (s source) at(n ast.Node) string {
	return s.name + ":" + strconv.Itoa(s.fset.Position(n.Pos()).Line)
}

// root returns the project's root, which is where go.mod lies.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// walk calls visit with every file of the project, by its path relative to the
// root. Test data, what git does not keep and nested modules are left out.
func walk(t *testing.T, visit func(name string)) {
	t.Helper()
	dir := root(t)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if !d.IsDir() {
			visit(filepath.ToSlash(rel))
			return nil
		}
		if rel == "." {
			return nil
		}
		if n := d.Name(); rel == "bin" || n == "testdata" || strings.HasPrefix(n, ".") || strings.HasPrefix(n, "_") {
			return filepath.SkipDir
		}
		if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sources parses every Go file of the project.
func sources(t *testing.T) []source {
	t.Helper()
	dir := root(t)
	fset := token.NewFileSet()
	var out []source
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".go") {
			return
		}
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, source{
			dir: path.Dir(name), name: name, file: f, fset: fset,
			test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(f),
		})
	})
	// A walk that finds little would pass every rule.
	if len(out) < 50 {
		t.Fatalf("found %d Go files; the walk is broken", len(out))
	}
	return out
}
