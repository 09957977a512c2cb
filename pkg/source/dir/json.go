package dir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// maxDepth is how deep a document may be nested; the YAML parser has the same.
const maxDepth = 10_000

// jsonReader makes YAML nodes of JSON, so that both are decoded by the same
// code. The YAML parser itself reads most JSON, but not all: it knows no \/, no
// surrogate pairs and no several values in a row.
type jsonReader struct {
	data    []byte
	tokens  *json.Decoder
	counted int64 // offset up to which lines are counted
	line    int
}

func newJSONReader(data []byte) *jsonReader {
	tokens := json.NewDecoder(bytes.NewReader(data))
	tokens.UseNumber()
	return &jsonReader{data: data, tokens: tokens, line: 1}
}

// next returns the next document, or io.EOF.
func (r *jsonReader) next() (*yaml.Node, error) {
	t, err := r.tokens.Token()
	if err == io.EOF {
		return nil, err
	}
	n, err := r.value(t, err, 0)
	if err != nil {
		return nil, &syntaxError{line: r.lineAt(errorOffset(err, r.tokens.InputOffset())), err: err}
	}
	return n, nil
}

// value makes a node of the value that begins with the token t, or returns the
// error that came in its place.
func (r *jsonReader) value(t json.Token, err error, depth int) (*yaml.Node, error) {
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: r.lineAt(r.tokens.InputOffset())}
	switch t := t.(type) {
	case nil:
		n.Tag, n.Value = "!!null", "null"
	case bool:
		n.Tag, n.Value = "!!bool", fmt.Sprint(t)
	case string:
		n.Tag, n.Value, n.Style = "!!str", t, yaml.DoubleQuotedStyle
	case json.Number:
		n.Tag, n.Value = "!!int", t.String()
		if _, err := t.Int64(); err != nil {
			n.Tag = "!!float"
		}
	case json.Delim:
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if t == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		for {
			t, err := r.tokens.Token()
			if t == json.Delim('}') || t == json.Delim(']') {
				return n, nil
			}
			item, err := r.value(t, err, depth+1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, item)
		}
	}
	return n, nil
}

// lineAt returns the line of an offset; offsets must not fall.
func (r *jsonReader) lineAt(offset int64) int {
	offset = min(offset, int64(len(r.data)))
	if offset > r.counted {
		r.line += bytes.Count(r.data[r.counted:offset], []byte("\n"))
		r.counted = offset
	}
	return r.line
}

func errorOffset(err error, fallback int64) int64 {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return syntax.Offset
	}
	return fallback
}
