package structure

import (
	"encoding"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// statusPage documents the JSON of commands, field by field.
const statusPage = "docs/status.md"

type document struct {
	section string
	typ     reflect.Type
}

// documents are the sections of the page and what they describe. A type that
// occurs in several has its own.
var documents = []document{
	{"`agent status -o json`", reflect.TypeFor[agent.Status]()},
	{"`agent path -o json` and `controlplane path -o json`", reflect.TypeFor[agent.Paths]()},
	{"`controlplane status -o json`", reflect.TypeFor[controlplane.Status]()},
	{"`controlplane check -o json`", reflect.TypeFor[controlplane.Checked]()},
	{"Conflict", reflect.TypeFor[mesh.Conflict]()},
	{"Claim", reflect.TypeFor[mesh.Claim]()},
	{"Cluster", reflect.TypeFor[mesh.Cluster]()},
	{"Refused prefix", reflect.TypeFor[mesh.RefusedPrefix]()},
	{"Barrier", reflect.TypeFor[mesh.Barrier]()},
}

var field = regexp.MustCompile("^\\| `([^`]+)` \\|")

// What -o json prints is documented, and what is documented is printed: the
// fields are a promise.
func TestStatusFieldsDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), filepath.FromSlash(statusPage)))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string][]string{}
	section := ""
	for line := range strings.Lines(string(b)) {
		if h, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.TrimSpace(h)
		}
		if m := field.FindStringSubmatch(line); m != nil {
			documented[section] = append(documented[section], m[1])
		}
	}
	for _, d := range documents {
		have := fields(d.typ, "")
		for _, f := range have {
			if !slices.Contains(documented[d.section], f) {
				t.Errorf("%s: %s is printed and not documented", d.section, f)
			}
		}
		for _, f := range documented[d.section] {
			if !slices.Contains(have, f) {
				t.Errorf("%s: %s is documented and not printed", d.section, f)
			}
		}
	}
}

// fields returns the paths of a type's JSON fields: "peers[].state". It stops
// at types with a section of their own, unless their fields are inlined.
func fields(t reflect.Type, at string) []string {
	text := reflect.TypeFor[encoding.TextMarshaler]()
	own := at != "" && slices.ContainsFunc(documents, func(d document) bool { return d.typ == t })
	switch {
	case own:
		return nil
	case t.Implements(text) || reflect.PointerTo(t).Implements(text):
		return nil
	case t.Kind() == reflect.Pointer:
		return fields(t.Elem(), at)
	case t.Kind() == reflect.Slice:
		return fields(t.Elem(), at+"[]")
	case t.Kind() == reflect.Map:
		return fields(t.Elem(), at+"{}")
	case t.Kind() != reflect.Struct:
		return nil
	}
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			for _, inner := range fields(f.Type, "") {
				out = append(out, strings.TrimPrefix(at+"."+inner, "."))
			}
			continue
		}
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		if at != "" {
			name = at + "." + name
		}
		out = append(out, name)
		out = append(out, fields(f.Type, name)...)
	}
	return out
}
