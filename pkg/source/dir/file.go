package dir

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// object is one Kubernetes object of a file, and where it begins.
type object struct {
	key  source.Key
	file string
	line int
	obj  runtime.Object
}

// file is what decoding one file made.
type file struct {
	objects []object
	errs    []*Error
	// cluster is what cluster.yaml declares; nil for any other file.
	cluster *mesh.Cluster
}

// list is a `kind: List` document.
type list struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []later `json:"items"`
}

// fileDecoder decodes one file.
type fileDecoder struct {
	*decoder
	name string
	file
	object string // the identity of the object that is being decoded
}

func newFileDecoder(name string, types map[reflect.Type]structFields) *fileDecoder {
	f := &fileDecoder{decoder: &decoder{types: types}, name: name}
	f.fault = func(n *yaml.Node, at *path, err error) { f.fail(n.Line, at.String(), err) }
	return f
}

func (f *fileDecoder) fail(line int, field string, err error) {
	if len(f.errs) > maxErrors {
		return // no more than that are told, and a file may hold millions
	}
	f.errs = append(f.errs, &Error{File: f.name, Line: line, Object: f.object, Field: field, Err: err})
}

// decodeObjects decodes the Kubernetes objects of a file.
func decodeObjects(name string, data []byte, types map[reflect.Type]structFields) file {
	f := newFileDecoder(name, types)
	if f.documents(data, func(n *yaml.Node) { f.document(n, false) }) == 0 && len(f.errs) == 0 && len(bytes.TrimSpace(data)) == 0 {
		// The shell has made the file and the command has not yet written: were it
		// taken for what it is, all that it held before would go.
		f.fail(0, "", errors.New("is empty; a file that means to hold nothing needs a comment in it, or can be removed"))
	}
	return f.file
}

// documents calls each for every document that holds something, and returns how
// many there were.
func (f *fileDecoder) documents(data []byte, each func(*yaml.Node)) (count int) {
	next := newYAMLReader(data)
	if filepath.Ext(f.name) == ".json" {
		next = newJSONReader(data).next
	}
	for {
		n, err := next()
		if err == io.EOF {
			return count
		}
		f.object = ""
		if err != nil {
			var syntax *syntaxError
			errors.As(err, &syntax)
			f.fail(syntax.line, "", syntax.err)
			return count
		}
		if !isNull(n) {
			count++
			each(n)
		}
	}
}

func (f *fileDecoder) document(n *yaml.Node, inList bool) {
	if n.Kind == yaml.AliasNode {
		f.aliases++
		defer func() { f.aliases-- }()
		n = n.Alias
	}
	apiVersion, kind := textAt(n, "apiVersion"), textAt(n, "kind")
	f.object = strings.TrimSpace(kind + " " + strings.TrimPrefix(textAt(n, "metadata", "namespace")+"/"+textAt(n, "metadata", "name"), "/"))
	before := len(f.errs)
	switch {
	case n.Kind != yaml.MappingNode:
		f.fail(n.Line, "", unfit("a Kubernetes object", n))
		return
	case kind == "" || apiVersion == "":
		f.fail(n.Line, "", errors.New("apiVersion and kind are required; only cluster.yaml, at the top of the folder, has none"))
		return
	case apiVersion == "v1" && kind == "List":
		f.object = "List"
		if inList {
			f.fail(n.Line, "", errors.New("a List within a List is not read"))
			return
		}
		var l list
		f.value(n, reflect.ValueOf(&l).Elem(), nil)
		for _, item := range l.Items {
			f.document(item.node, true)
		}
		return
	}
	obj, err := newObject(apiVersion, kind)
	if err != nil {
		f.fail(n.Line, "", err)
		return
	}
	f.value(n, reflect.ValueOf(obj).Elem(), nil)
	if len(f.errs) > before {
		return // what is missing now would only be named twice
	}
	obj = finished(obj)
	f.locate(n, source.Validate(obj))
	if len(f.errs) > before {
		return
	}
	key, err := source.KeyOf(obj)
	if err != nil {
		f.fail(n.Line, "", err)
		return
	}
	f.objects = append(f.objects, object{key: key, file: f.name, line: n.Line, obj: source.Trim(obj)})
}

// locate finds the lines of the fields that the joined errors name.
func (f *fileDecoder) locate(n *yaml.Node, err error) {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range j.Unwrap() {
			f.locate(n, err)
		}
		return
	}
	var field *source.FieldError
	switch {
	case errors.As(err, &field):
		f.fail(lineOf(n, field.Field), field.Field, field.Err)
	case err != nil:
		f.fail(n.Line, "", err)
	}
}

// fieldSteps finds the names, the indices and the keys in "spec.ports[2].port"
// and "metadata.labels[flatmesh.io/a]".
var fieldSteps = regexp.MustCompile(`\[([^\]]*)\]|([^.\[]+)`)

// lineOf returns the line of a field or, where it is missing, of what should
// hold it.
func lineOf(n *yaml.Node, field string) int {
	line := n.Line
	for _, step := range fieldSteps.FindAllStringSubmatch(field, -1) {
		if n = child(n, step[1]+step[2]); n == nil {
			break
		}
		line = n.Line
	}
	return line
}

// child returns a mapping's value by its key or a list's item by its index.
func child(n *yaml.Node, step string) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n == nil:
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1]
			}
		}
	case n.Kind == yaml.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}

// textAt returns the scalar that lies at the end of the keys, if any.
func textAt(n *yaml.Node, keys ...string) string {
	for _, k := range keys {
		n = child(n, k)
	}
	if n == nil || n.Kind != yaml.ScalarNode || isNull(n) {
		return ""
	}
	return n.Value
}

// syntaxError is what a parser has against a file.
type syntaxError struct {
	line int // 0 where it does not say
	err  error
}

func (e *syntaxError) Error() string { return e.err.Error() }

// yamlError is how the YAML parser writes its errors.
var yamlError = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)

// lineBefore matches the errors in which it counts lines from 0 instead of 1.
var lineBefore = regexp.MustCompile(`^did not find expected (node content|key|'|<)`)

// newYAMLReader returns a function that returns the next document, or io.EOF.
func newYAMLReader(data []byte) func() (*yaml.Node, error) {
	docs := yaml.NewDecoder(bytes.NewReader(data))
	return func() (*yaml.Node, error) {
		var doc yaml.Node
		err := docs.Decode(&doc)
		if err == io.EOF {
			return nil, err
		}
		if err != nil {
			syntax := &syntaxError{err: err}
			if m := yamlError.FindStringSubmatch(err.Error()); m != nil {
				syntax.line, _ = strconv.Atoi(m[1])
				syntax.err = errors.New(m[2])
				if syntax.line > 0 && lineBefore.MatchString(m[2]) {
					syntax.line++
				}
			}
			return nil, syntax
		}
		return doc.Content[0], nil
	}
}
