package lab

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder walks the YAML by hand, because only so does every complaint, also
// one about a value that is well-formed but wrong, get its line.
type decoder struct {
	lines    map[string]int
	problems []problem
}

// line finds where path, or the nearest thing around it, is written.
func (d *decoder) line(path string) int {
	for {
		if n, ok := d.lines[path]; ok {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return 1
		}
		path = path[:i]
	}
}

func (d *decoder) complain(path string, n *yaml.Node, format string, args ...any) {
	d.lines[path] = n.Line
	d.problems = append(d.problems, problem{path, fmt.Errorf(format, args...)})
}

// field decodes the value of a field that stands at path.
type field = func(path string, n *yaml.Node)

func (d *decoder) text(into *string) field {
	return func(path string, n *yaml.Node) {
		if d.scalar(path, n, "!!str", "text") {
			*into = n.Value
		}
	}
}

func (d *decoder) texts(into *[]string) field {
	return d.list(func(path string, n *yaml.Node) {
		var s string
		d.text(&s)(path, n)
		*into = append(*into, s)
	})
}

// textMap decodes fields of any name.
func (d *decoder) textMap(into *map[string]string) field {
	return func(path string, n *yaml.Node) {
		*into = map[string]string{}
		fields := map[string]field{}
		if n.Kind == yaml.MappingNode {
			for i := 0; i < len(n.Content); i += 2 {
				name := n.Content[i].Value
				fields[name] = func(path string, n *yaml.Node) {
					if d.scalar(path, n, "!!str", "text, in quotes where it would be taken for something else") {
						(*into)[name] = n.Value
					}
				}
			}
		}
		d.mapping(path, n, fields)
	}
}

func number[T ~int | ~uint16](d *decoder, into *T) field {
	return func(path string, n *yaml.Node) {
		if !d.scalar(path, n, "!!int", "a number") {
			return
		}
		i, err := strconv.Atoi(n.Value)
		if err != nil {
			d.complain(path, n, "%q: want a whole number", n.Value)
			return
		}
		if int(T(i)) != i {
			d.complain(path, n, "%d: out of range", i)
			return
		}
		*into = T(i)
	}
}

func (d *decoder) prefixes(into *[]netip.Prefix) field {
	return d.list(func(path string, n *yaml.Node) {
		if !d.scalar(path, n, "!!str", "an address range") {
			return
		}
		p, err := netip.ParsePrefix(n.Value)
		if err != nil {
			d.complain(path, n, "%q: want an address range such as 10.1.0.0/16", n.Value)
			return
		}
		*into = append(*into, p)
	})
}

// list decodes the items of a list.
func (d *decoder) list(item field) field {
	return func(path string, n *yaml.Node) { d.sequence(path, n, item) }
}

// resolve follows an alias to what its anchor names.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func (d *decoder) mapping(path string, n *yaml.Node, fields map[string]field) {
	d.lines[path] = n.Line
	if n.Kind != yaml.MappingNode {
		d.complain(path, n, "want fields with values")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field := strings.TrimPrefix(path+"."+key.Value, ".")
		decode, known := fields[key.Value]
		switch {
		case !known:
			d.complain(field, key, "unknown field")
		case seen[key.Value]:
			d.complain(field, key, "given twice")
		default:
			seen[key.Value] = true
			d.lines[field] = key.Line
			decode(field, resolve(value))
		}
	}
}

func (d *decoder) sequence(path string, n *yaml.Node, item field) {
	if n.Kind != yaml.SequenceNode {
		d.complain(path, n, "want a list")
		return
	}
	for i, c := range n.Content {
		field := fmt.Sprintf("%s[%d]", path, i)
		d.lines[field] = c.Line
		item(field, resolve(c))
	}
}

func (d *decoder) scalar(path string, n *yaml.Node, tag, want string) bool {
	if n.Kind != yaml.ScalarNode || n.Tag != tag {
		d.complain(path, n, "want %s", want)
		return false
	}
	return true
}
