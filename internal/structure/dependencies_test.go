package structure

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// dependencies lists the modules that the project uses directly, and why each is
// worth having. Who adds one adds its line here.
var dependencies = map[string]string{
	"github.com/cilium/ipam":                       "the allocator behind tunnel addresses (pkg/ipam)",
	"github.com/envoyproxy/go-control-plane":       "the xDS delta server's protocol, which is long to get right (pkg/xds)",
	"github.com/envoyproxy/go-control-plane/envoy": "the xDS messages (pkg/xds, pkg/agent)",
	"github.com/fsnotify/fsnotify":                 "inotify, to follow folders of YAML (pkg/source/dir)",
	"github.com/golang-jwt/jwt/v5":                 "join tokens as JWTs, with their checks of time and audience (pkg/pki)",
	"github.com/google/go-cmp":                     "readable differences in tests",
	"github.com/google/nftables":                   "cuts and NAT of the lab, without the nft binary (internal/lab)",
	"github.com/prometheus/client_golang":          "metrics",
	"github.com/spf13/cobra":                       "commands and their help, as Kubernetes' own have them",
	"github.com/spf13/pflag":                       "cobra's flags, where a function takes a set of them",
	"github.com/spiffe/go-spiffe/v2":               "SPIFFE IDs and X.509-SVIDs, parsed and verified by their rules (pkg/pki)",
	"github.com/vishvananda/netlink":               "addresses, routes, rules and links",
	"github.com/vishvananda/netns":                 "network namespaces of test hosts and the lab",
	"go.etcd.io/bbolt":                             "the embedded store that survives kill -9 (pkg/store)",
	"go.yaml.in/yaml/v3":                           "YAML with line numbers, for errors that name them (pkg/source/dir, internal/lab)",
	"golang.org/x/net":                             "ICMP messages (pkg/probe)",
	"golang.org/x/sync":                            "errgroup, for goroutines that end together",
	"golang.org/x/sys":                             "system calls: TUN, sockets, namespaces, locks",
	"golang.org/x/time":                            "rate limits of probes and answers (pkg/probe)",
	"golang.org/x/tools":                           "txtar archives as test cases (pkg/source/dir)",
	"golang.zx2c4.com/wireguard":                   "the userspace WireGuard engine (pkg/wg/userspace)",
	"golang.zx2c4.com/wireguard/wgctrl":            "one client for the kernel's devices and userspace ones (pkg/wg)",
	"google.golang.org/genproto/googleapis/rpc":    "the status message of an xDS refusal (pkg/xds)",
	"google.golang.org/grpc":                       "peering and xDS between agent and control plane",
	"google.golang.org/protobuf":                   "the messages in api/",
	"k8s.io/api":                                   "the Kubernetes types, so that decoding agrees with the API server's (pkg/source)",
	"k8s.io/apimachinery":                          "what those types are made of (pkg/source)",
	"sigs.k8s.io/yaml":                             "YAML by the JSON tags, for -o yaml and the lab's clusters",
}

// tools lists the programs that the project's scripts build from its own module
// graph, so that everybody runs the same version.
var tools = map[string]string{
	"google.golang.org/grpc/cmd/protoc-gen-go-grpc": "hack/generate.sh",
	"google.golang.org/protobuf/cmd/protoc-gen-go":  "hack/generate.sh",
	"honnef.co/go/tools/cmd/staticcheck":            "hack/lint.sh",
}

func TestDependencies(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	required, toolPaths := parseGoMod(string(b))
	compare(t, "module", required, dependencies)
	compare(t, "tool", toolPaths, tools)
}

func compare(t *testing.T, what string, have []string, listed map[string]string) {
	t.Helper()
	for _, m := range have {
		if listed[m] == "" {
			t.Errorf("go.mod has the %s %s, which is not listed in internal/structure: say there why it is worth having, or drop it", what, m)
		}
	}
	for _, m := range slices.Sorted(maps.Keys(listed)) {
		if !slices.Contains(have, m) {
			t.Errorf("internal/structure lists the %s %s, which go.mod does not require directly (run: go mod tidy)", what, m)
		}
	}
}

// parseGoMod returns the modules that are required directly, and the tools.
func parseGoMod(text string) (required, toolPaths []string) {
	block := ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
			continue
		case words[0] == ")":
			block = ""
			continue
		case len(words) == 2 && words[1] == "(":
			block = words[0]
			continue
		case block != "":
			words = append([]string{block}, words...)
		}
		if len(words) < 2 {
			continue
		}
		switch {
		case words[0] == "require" && !strings.Contains(line, "// indirect"):
			required = append(required, words[1])
		case words[0] == "tool":
			toolPaths = append(toolPaths, words[1])
		}
	}
	return required, toolPaths
}

func TestParseGoMod(t *testing.T) {
	required, toolPaths := parseGoMod(`module example.com/m

go 1.26.0

require example.com/alone v1.0.0

require (
	example.com/direct v1.2.3
	example.com/other v0.0.1 // indirect
)

tool (
	example.com/x/cmd/y
)

tool example.com/z
`)
	if want := []string{"example.com/alone", "example.com/direct"}; !slices.Equal(required, want) {
		t.Errorf("required %q, want %q", required, want)
	}
	if want := []string{"example.com/x/cmd/y", "example.com/z"}; !slices.Equal(toolPaths, want) {
		t.Errorf("tools %q, want %q", toolPaths, want)
	}
}
