package dir

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// scalar decodes a string, a boolean or an integer.
func scalar(n *yaml.Node, v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		s, err := stringOf(n)
		if err != nil {
			return err
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := boolOf(n)
		if !ok {
			return unfit("true or false", n)
		}
		v.SetBool(b)
	case reflect.Int32, reflect.Int64:
		i, err := intOf(n, v.Type().Bits())
		if err != nil {
			return err
		}
		v.SetInt(i)
	default:
		return fmt.Errorf("a field of type %v cannot be read", v.Type())
	}
	return nil
}

func isNull(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!null" {
		return false
	}
	return n.Value == "" || n.Value == "~" || strings.EqualFold(n.Value, "null")
}

func stringOf(n *yaml.Node) (string, error) {
	if b, ok := boolOf(n); ok {
		return "", fmt.Errorf("want a string, but YAML reads %s as %t; put it in quotes", n.Value, b)
	}
	if n.Kind == yaml.ScalarNode {
		switch n.ShortTag() {
		case "!!str", "!!timestamp": // Kubernetes takes an unquoted date as a string
			return n.Value, nil
		case "!!int", "!!float":
			return "", fmt.Errorf("want a string, got the number %s; put it in quotes", n.Value)
		}
	}
	return "", unfit("a string", n)
}

// boolOf reads true and false, and what YAML 1.1, and so Kubernetes, takes for
// them when it is not in quotes.
func boolOf(n *yaml.Node) (value, ok bool) {
	if n.Kind != yaml.ScalarNode {
		return false, false
	}
	switch n.ShortTag() {
	case "!!bool":
		return strings.EqualFold(n.Value, "true"), strings.EqualFold(n.Value, "true") || strings.EqualFold(n.Value, "false")
	case "!!str":
		if n.Style != 0 {
			return false, false
		}
		switch n.Value {
		case "y", "Y", "yes", "Yes", "YES", "on", "On", "ON":
			return true, true
		case "n", "N", "no", "No", "NO", "off", "Off", "OFF":
			return false, true
		}
	}
	return false, false
}

// intOf reads decimal numbers only: the other forms mean different things to
// different versions of YAML.
func intOf(n *yaml.Node, bits int) (int64, error) {
	digits := strings.TrimLeft(n.Value, "+-")
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || len(digits) > 1 && digits[0] == '0' {
		return 0, unfit("a decimal whole number", n)
	}
	i, err := strconv.ParseInt(n.Value, 10, bits)
	if errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%s is out of range", n.Value)
	}
	if err != nil {
		return 0, unfit("a decimal whole number", n)
	}
	return i, nil
}

// plain makes of a node what encoding/json makes of the same value.
func (d *decoder) plain(n *yaml.Node) (any, error) {
	if n.Kind == yaml.AliasNode {
		d.aliases++
		defer func() { d.aliases-- }()
		n = n.Alias
	}
	if d.aliases > 0 {
		if d.aliased++; d.aliased > maxAliased {
			return nil, errors.New("aliases unfold into too many values")
		}
	}
	switch n.Kind {
	case yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			name, err := keyName(n.Content[i])
			if err != nil {
				return nil, err
			}
			if _, ok := out[name]; ok {
				return nil, fmt.Errorf("%s occurs twice", name)
			}
			if out[name], err = d.plain(n.Content[i+1]); err != nil {
				return nil, err
			}
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i, item := range n.Content {
			var err error
			if out[i], err = d.plain(item); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	if b, ok := boolOf(n); ok {
		return b, nil
	}
	if isNull(n) {
		return nil, nil
	}
	switch n.ShortTag() {
	case "!!int":
		return intOf(n, 64)
	case "!!float":
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil {
			return nil, unfit("a number", n)
		}
		return f, nil
	}
	return stringOf(n)
}

// unfit says what was wanted and what is there instead.
func unfit(want string, n *yaml.Node) error {
	got := ""
	switch n.Kind {
	case yaml.MappingNode:
		got = "an object"
	case yaml.SequenceNode:
		got = "a list"
	case yaml.AliasNode:
		got = "an alias"
	case yaml.ScalarNode:
		got = strconv.Quote(n.Value)
		if len(got) > 60 {
			got = got[:60] + `…"`
		}
		if tag := n.ShortTag(); !strings.HasPrefix(tag, "!!") {
			got += " with the tag " + tag
		}
	}
	return fmt.Errorf("want %s, got %s", want, got)
}
