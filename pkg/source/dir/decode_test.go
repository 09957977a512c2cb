package dir

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/yaml"

	"github.com/flatmesh/flatmesh/pkg/source"
)

// TestDecoderKnowsAllTypes walks the types of the objects that are read: each
// must be one that the decoder handles, also after an update of the API.
func TestDecoderKnowsAllTypes(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type, string)
	walk = func(typ reflect.Type, at string) {
		if seen[typ] || reflect.PointerTo(typ).Implements(reflect.TypeFor[json.Unmarshaler]()) {
			return
		}
		seen[typ] = true
		switch typ.Kind() {
		case reflect.Pointer:
			walk(typ.Elem(), at)
		case reflect.Slice:
			if typ.Elem().Kind() == reflect.Uint8 {
				t.Errorf("%s: bytes are not handled", at)
			}
			walk(typ.Elem(), at+"[]")
		case reflect.Map:
			if typ.Key().Kind() != reflect.String {
				t.Errorf("%s: keys of type %v are not handled", at, typ.Key())
			}
			walk(typ.Elem(), at+"[]")
		case reflect.Struct:
			if typ == reflect.TypeFor[later]() {
				return
			}
			for i := range typ.NumField() {
				f := typ.Field(i)
				if strings.Contains(f.Tag.Get("json"), ",string") {
					t.Errorf("%s.%s: numbers in quotes are not handled", at, f.Name)
				}
				walk(f.Type, at+"."+f.Name)
			}
		case reflect.String, reflect.Bool, reflect.Int32, reflect.Int64:
		default:
			t.Errorf("%s: type %v is not handled", at, typ)
		}
	}
	for _, o := range []any{corev1.Node{}, corev1.Namespace{}, corev1.Pod{}, serviceExport{}, corev1.Service{}, discoveryv1.EndpointSlice{}, networkingv1.ServiceCIDR{}, declaration{}} {
		walk(reflect.TypeOf(o), reflect.TypeOf(o).Name())
	}
}

// apiServer returns what an API server with strict field validation makes of a
// document.
func apiServer(t testing.TB) func([]byte) (runtime.Object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, networkingv1beta1.AddToScheme} {
		must(t, add(scheme))
	}
	s := kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, scheme, scheme, kjson.SerializerOptions{Yaml: true, Strict: true})
	return func(data []byte) (runtime.Object, error) {
		o, _, err := s.Decode(data, nil, nil)
		return o, err
	}
}

// FuzzDecode: no input makes the decoder panic; what decodes, decodes to the
// same after it was encoded; and a single object decodes as an API server's
// strict decoder has it.
func FuzzDecode(f *testing.F) {
	paths, err := filepath.Glob("testdata/folders/*.txtar")
	must(f, err)
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		must(f, err)
		for _, file := range archive.Files {
			if file.Name == "want" {
				continue
			}
			f.Add(file.Data, filepath.Ext(file.Name) == ".json")
			for _, doc := range strings.Split(string(file.Data), "---\n") {
				f.Add([]byte(doc), false)
			}
		}
	}
	strict := apiServer(f)
	types := map[reflect.Type]structFields{}
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		name := "x.yaml"
		if isJSON {
			name = "x.json"
		}
		decodeCluster(name, data, types)
		got := decodeObjects(name, data, types)
		if len(got.errs) > 0 {
			return
		}
		var again []byte
		for _, o := range got.objects {
			doc, err := yaml.Marshal(o.obj)
			must(t, err)
			again = append(append(again, "---\n"...), doc...)
		}
		if len(got.objects) == 0 {
			return
		}
		second := decodeObjects("x.yaml", again, types)
		if len(second.errs) > 0 || len(second.objects) != len(got.objects) {
			t.Fatalf("encoded again as\n%s\nit decodes to %d objects of %d: %v", again, len(second.objects), len(got.objects), join(second.errs))
		}
		for i, o := range got.objects {
			if a, b := asJSON(t, o.obj), asJSON(t, second.objects[i].obj); a != b || o.key != second.objects[i].key {
				t.Errorf("decodes to\n%s\nbut encoded again to\n%s", a, b)
			}
		}
		if _, ok := got.objects[0].obj.(*source.ServiceExport); ok {
			return // not one that the API server has of itself
		}
		if isJSON || len(got.objects) != 1 || strings.Contains(string(data), "---") || strings.Contains(string(data), "List") {
			return // an API server takes one object at a time
		}
		want, err := strict(data)
		if err != nil {
			t.Fatalf("decodes, but an API server says: %v", err)
		}
		if _, ok := want.(*networkingv1beta1.ServiceCIDR); ok {
			return // read as v1
		}
		want = source.Trim(want)
		if !equality.Semantic.DeepEqual(want, got.objects[0].obj) {
			t.Errorf("decodes to\n%s\nbut for an API server to\n%s", asJSON(t, got.objects[0].obj), asJSON(t, want))
		}
	})
}

func asJSON(t testing.TB, o runtime.Object) string {
	t.Helper()
	b, err := json.Marshal(o)
	must(t, err)
	return string(b)
}

// TestAcceptsWhatAnAPIServerPrints decodes one object of each kind with all its
// fields filled.
func TestAcceptsWhatAnAPIServerPrints(t *testing.T) {
	data, err := os.ReadFile("testdata/printed.yaml")
	must(t, err)
	strict := apiServer(t)
	docs := strings.Split(string(data), "\n---\n")
	got := decodeObjects("printed.yaml", data, map[reflect.Type]structFields{})
	if err := join(got.errs); err != nil {
		t.Fatal(err)
	}
	if len(got.objects) != len(docs) {
		t.Fatalf("got %d objects of %d", len(got.objects), len(docs))
	}
	for i, doc := range docs {
		want, err := strict([]byte(doc))
		must(t, err)
		want = source.Trim(want)
		if !equality.Semantic.DeepEqual(want, got.objects[i].obj) {
			t.Errorf("got\n%s\nwant\n%s", asJSON(t, got.objects[i].obj), asJSON(t, want))
		}
	}
}
