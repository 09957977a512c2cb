package dir

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// large lays out a folder of n nodes, a hundred to a file, and n slices of ten
// endpoints, one to a file.
func large(t testing.TB, n int) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "east")
	write(t, folder, map[string]string{"cluster.yaml": "name: east\npodCIDRs: [10.0.0.0/8]\n", "nodes/": "", "slices/": ""})
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Node
metadata:
  name: node-%d
  labels:
    kubernetes.io/arch: amd64
    topology.kubernetes.io/zone: zone-%d
spec:
  podCIDR: 10.%d.%d.0/24
  podCIDRs:
  - 10.%[3]d.%[4]d.0/24
status:
  addresses:
  - address: 192.168.%[3]d.%d
    type: InternalIP
  - address: node-%[1]d
    type: Hostname
`, i, i%3, i/256, i%256, i%250)
		if i%100 == 99 {
			must(t, os.WriteFile(filepath.Join(folder, "nodes", fmt.Sprintf("%d.yaml", i)), []byte(b.String()), 0o644))
			b.Reset()
		}
	}
	for i := range n {
		b.Reset()
		fmt.Fprintf(&b, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s-%d\n  namespace: shop\n  labels: {kubernetes.io/service-name: s-%d}\naddressType: IPv4\nports:\n- {name: http, port: 8080, protocol: TCP}\nendpoints:\n", i, i)
		for j := range 10 {
			fmt.Fprintf(&b, "- addresses:\n  - 10.%d.%d.%d\n  conditions:\n    ready: true\n  nodeName: node-%d\n", i/256, i%256, j+1, i)
		}
		must(t, os.WriteFile(filepath.Join(folder, "slices", fmt.Sprintf("%d.yaml", i)), []byte(b.String()), 0o644))
	}
	return folder
}

func TestLoadThousandsOfFiles(t *testing.T) {
	const n = 1000
	s, err := Load(large(t, n))
	must(t, err)
	if len(s.Objects) != 2*n {
		t.Errorf("got %d objects, want %d", len(s.Objects), 2*n)
	}
	nodes, err := s.Nodes()
	if err != nil || len(nodes) != n {
		t.Errorf("got %d nodes, want %d (%v)", len(nodes), n, err)
	}
}

// BenchmarkLoad reads all of a large folder.
func BenchmarkLoad(b *testing.B) {
	folder := large(b, 5000)
	b.ResetTimer()
	for b.Loop() {
		_, err := Load(folder)
		must(b, err)
	}
}

// BenchmarkReread reads a large folder of which one file has changed, and finds
// what is new.
func BenchmarkReread(b *testing.B) {
	folder := large(b, 5000)
	late := time.Now().Add(time.Hour)
	r := newReader(folder, func() time.Time { return late }, func(string) {})
	told := told{source: folder}
	read := func() int {
		s, err := r.read(b.Context())
		must(b, err)
		updates := told.next(s, nil)
		return len(updates[0].Changes)
	}
	read()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		write(b, folder, map[string]string{"changed.yaml": nodeYAML("changed", fmt.Sprintf("10.200.%d.0/24", i%256)) + strings.Repeat("#", i%7)})
		if n := read(); n != 1 {
			b.Fatalf("%d changes, want 1", n)
		}
	}
}
