package source

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

var update = flag.Bool("update", false, "write the golden parts of testdata")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// objects reads YAML documents without validating what they say.
func objects(t testing.TB, data []byte) []Change {
	t.Helper()
	var out []Change
	for _, doc := range bytes.Split(data, []byte("---\n")) {
		var kind metav1.TypeMeta
		must(t, yaml.Unmarshal(doc, &kind))
		o := map[string]runtime.Object{
			"EndpointSlice": &discoveryv1.EndpointSlice{}, "Namespace": &corev1.Namespace{}, "Pod": &corev1.Pod{},
			"Service": &corev1.Service{}, "ServiceExport": &ServiceExport{},
		}[kind.Kind]
		if o == nil {
			t.Fatalf("no kind in\n%s", doc)
		}
		must(t, yaml.UnmarshalStrict(doc, o))
		key, err := KeyOf(o)
		must(t, err)
		out = append(out, Change{Key: key, Object: o})
	}
	return out
}

var east = mesh.Cluster{Name: "east", Network: "vpc"}

// TestIndex makes an Index of the objects in each file of testdata/index and
// compares what it says with what is wanted. The files named want say after that
// which options they are for.
func TestIndex(t *testing.T) {
	paths, err := filepath.Glob("testdata/index/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal("no test data", err)
	}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		must(t, err)
		in := objects(t, archive.Files[0].Data)
		for i, f := range archive.Files[1:] {
			options := strings.TrimSpace(strings.TrimPrefix(f.Name, "want"))
			t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar")+"/"+cmp.Or(options, "default"), func(t *testing.T) {
				var o Options
				for _, word := range strings.Fields(options) {
					if word == "mcs" {
						o.MCS = true
						continue
					}
					must(t, o.DefaultTLS.UnmarshalText([]byte(strings.TrimPrefix(word, "tls="))))
				}
				x := NewIndex(east, o)
				x.Apply(in)
				got := describe(x)
				if *update {
					archive.Files[i+1].Data = []byte(got)
				} else if got != string(f.Data) {
					t.Errorf("got\n%s\nwant\n%s", got, f.Data)
				}
			})
		}
		if *update {
			must(t, os.WriteFile(path, txtar.Format(archive), 0o644))
		}
	}
}

// describe says all that an Index says.
func describe(x *Index) string {
	var b strings.Builder
	optional := func(name string, v any) {
		if s := fmt.Sprint(v); s != "" && s != "[]" && s != "0" {
			fmt.Fprintf(&b, " %s=%s", name, s)
		}
	}
	flags := func(names map[string]bool, order ...string) {
		for _, n := range order {
			if names[n] {
				b.WriteString(" " + n)
			}
		}
	}
	for _, name := range x.Services() {
		p, _ := x.Part(name)
		fmt.Fprintf(&b, "%v of %s", name, p.Cluster)
		flags(map[string]bool{"exported": p.Exported, "retry": p.Retry}, "exported", "retry")
		if p.Prefer != mesh.PreferNone {
			optional("prefer", p.Prefer)
		}
		optional("created", p.Created)
		optional("ips", p.ClusterIPs)
		b.WriteByte('\n')
		for _, q := range p.Ports {
			fmt.Fprintf(&b, "  %d/%s", q.Number, q.Protocol)
			optional("name", q.Name)
			optional("app", q.AppProtocol)
			flags(map[string]bool{"tls": q.TLS}, "tls")
			b.WriteByte('\n')
			for _, e := range q.Backends {
				fmt.Fprintf(&b, "    %v", e.Addr)
				optional("node", e.Node)
				optional("zone", e.Zone)
				optional("pod", e.Pod)
				optional("account", e.ServiceAccount)
				flags(map[string]bool{"terminating": e.Terminating}, "terminating")
				b.WriteByte('\n')
			}
		}
	}
	for _, g := range x.Gateways() {
		fmt.Fprintf(&b, "gateway %s of %s: %v %v", g.Name, g.Cluster, g.Addr, g.Ports)
		optional("standby", g.StandbyPorts)
		b.WriteByte('\n')
	}
	for node := range 4 {
		for _, p := range x.PodsOn(fmt.Sprintf("n%d", node)) {
			fmt.Fprintf(&b, "pod %s/%s of %s on %s", p.Namespace, p.Name, p.ServiceAccount, p.Node)
			optional("uid", p.UID)
			optional("at", p.Addresses)
			b.WriteByte('\n')
		}
	}
	for _, p := range x.AllProblems() {
		fmt.Fprintf(&b, "problem: %v\n", p)
	}
	return b.String()
}
