package dir

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxAliased bounds how many values of one file may be reached through aliases,
// so that a small file cannot unfold into an endless one.
const maxAliased = 100_000

// decoder fills Kubernetes API types from YAML nodes by their JSON tags, with
// the rules of encoding/json, but strictly and with the place of every fault: a
// JSON decoder between the two would lose the lines.
type decoder struct {
	types map[reflect.Type]structFields // what was learned of each struct type
	// fault is called for everything wrong.
	fault func(n *yaml.Node, at *path, err error)

	aliases int // how many aliases deep the current value is
	aliased int // values reached through aliases so far
}

// later takes any value and keeps it for a decoder of its own.
type later struct{ node *yaml.Node }

// path is the way to a field, innermost first.
type path struct {
	up    *path
	name  string // of a struct's field, or of a map's key in brackets
	index int    // of a list's item, where name is empty
}

func (p *path) String() string {
	if p == nil {
		return ""
	}
	s := p.up.String()
	switch {
	case p.name == "":
		return s + "[" + strconv.Itoa(p.index) + "]"
	case s == "" || p.name[0] == '[':
		return s + p.name
	default:
		return s + "." + p.name
	}
}

// value decodes n into v, which is settable and zero. Where n does not fit, it
// reports a fault and leaves v, or a part of it, as it is.
func (d *decoder) value(n *yaml.Node, v reflect.Value, at *path) {
	if n.Kind == yaml.AliasNode {
		d.aliases++
		defer func() { d.aliases-- }()
		n = n.Alias
	}
	if d.aliases > 0 {
		if d.aliased++; d.aliased > maxAliased {
			if d.aliased == maxAliased+1 {
				d.fault(n, at, fmt.Errorf("aliases unfold into more than %d values; write them out, or in several files", maxAliased))
			}
			return
		}
	}
	if l, ok := v.Addr().Interface().(*later); ok {
		l.node = n
		return
	}
	if isNull(n) {
		return
	}
	if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		if err := d.raw(n, u); err != nil {
			d.fault(n, at, err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), at)
	case reflect.Struct:
		d.structure(n, v, at)
	case reflect.Map:
		d.mapping(n, v, at)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fault(n, at, unfit("a list", n))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, item := range n.Content {
			d.value(item, v.Index(i), &path{up: at, index: i})
		}
	default:
		if err := scalar(n, v); err != nil {
			d.fault(n, at, err)
		}
	}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, at *path) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, at, unfit("an object", n))
		return
	}
	known := d.fieldsOf(v.Type())
	d.pairs(n, at, "", func(in *path, key, value *yaml.Node) {
		index, ok := known[in.name]
		if !ok {
			d.fault(key, in, known.unknown(in.name))
			return
		}
		d.value(value, v.FieldByIndex(index), in)
	})
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, at *path) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, at, unfit("an object", n))
		return
	}
	t := v.Type()
	v.Set(reflect.MakeMapWithSize(t, len(n.Content)/2))
	d.pairs(n, at, "[]", func(in *path, key, value *yaml.Node) {
		item := reflect.New(t.Elem()).Elem()
		d.value(value, item, in)
		v.SetMapIndex(reflect.ValueOf(key.Value).Convert(t.Key()), item)
	})
}

// pairs calls f for each key of a mapping that is a string and not a duplicate,
// with the path to its value. Brackets, if any, go around the key in the path.
func (d *decoder) pairs(n *yaml.Node, at *path, brackets string, f func(in *path, key, value *yaml.Node)) {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		name, err := keyName(key)
		if err != nil {
			d.fault(key, at, err)
			continue
		}
		in := &path{up: at, name: name}
		if brackets != "" {
			in.name = brackets[:1] + name + brackets[1:]
		}
		if line, ok := seen[name]; ok {
			d.fault(key, in, fmt.Errorf("duplicate of the one in line %d", line))
			continue
		}
		seen[name] = key.Line
		f(in, key, n.Content[i+1])
	}
}

func keyName(key *yaml.Node) (string, error) {
	if key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" {
		return "", errors.New("merge keys (<<) are not read; write the fields out")
	}
	name, err := stringOf(key)
	if err != nil {
		return "", fmt.Errorf("key: %w", err)
	}
	return name, nil
}

// raw hands a value to a type that reads JSON by itself, such as a time.
func (d *decoder) raw(n *yaml.Node, u json.Unmarshaler) error {
	plain, err := d.plain(n)
	if err != nil {
		return err
	}
	b, err := json.Marshal(plain)
	if err != nil {
		return err
	}
	err = u.UnmarshalJSON(b)
	if s, ok := plain.(string); ok && err != nil && !strings.Contains(err.Error(), s) {
		return fmt.Errorf("%q: %w", s, err)
	}
	return err
}

// structFields are the fields of a struct type by their JSON names, with those
// of embedded structs that have no name of their own.
type structFields map[string][]int

func (d *decoder) fieldsOf(t reflect.Type) structFields {
	if f, ok := d.types[t]; ok {
		return f
	}
	f := structFields{}
	for i := range t.NumField() {
		sf := t.Field(i)
		name, _, _ := strings.Cut(sf.Tag.Get("json"), ",")
		switch {
		case name == "-" || !sf.IsExported():
		case name == "" && sf.Anonymous && sf.Type.Kind() == reflect.Struct:
			for inner, index := range d.fieldsOf(sf.Type) {
				f[inner] = append([]int{i}, index...)
			}
		case name == "":
			f[sf.Name] = []int{i}
		default:
			f[name] = []int{i}
		}
	}
	d.types[t] = f
	return f
}

func (f structFields) unknown(name string) error {
	for known := range f {
		if strings.EqualFold(known, name) {
			return fmt.Errorf("unknown field; did you mean %s?", known)
		}
	}
	return errors.New("unknown field")
}
