package main

import (
	"bytes"
	"encoding"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/flatmesh/flatmesh/pkg/gateway"
)

// The JSON fields are a promise: what is printed is documented, and the other way
// round.
func TestStatusFieldsDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "status.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "## `gateway status -o json`\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
		documented = append(documented, m[1])
	}
	printed := jsonFields(reflect.TypeFor[gatewayStatus](), "")
	if !slices.Equal(printed, documented) {
		t.Errorf("printed:\n%s\ndocumented:\n%s", strings.Join(printed, "\n"), strings.Join(documented, "\n"))
	}
}

// jsonFields returns the paths of a type's fields, such as services[].pods.
func jsonFields(t reflect.Type, at string) (out []string) {
	text := reflect.TypeFor[encoding.TextMarshaler]()
	switch {
	case t.Implements(text) || reflect.PointerTo(t).Implements(text):
	case t.Kind() == reflect.Pointer:
		return jsonFields(t.Elem(), at)
	case t.Kind() == reflect.Slice:
		return jsonFields(t.Elem(), at+"[]")
	case t.Kind() == reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			name = strings.TrimPrefix(at+"."+name, ".")
			out = append(append(out, name), jsonFields(f.Type, name)...)
		}
	}
	return out
}

func healthyStatus() gatewayStatus {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	since := now.Add(-90 * time.Second)
	until := now.Add(24 * time.Hour)
	return gatewayStatus{
		Cluster: "east", Name: "gw", Version: "v1", At: now, Started: now.Add(-time.Hour),
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}, Listening: []string{"[::]:15443", "[::]:15447"},
		ControlPlane: controlPlaneStatus{Address: "mesh:15012", Connected: true, Since: &since, CertificateUntil: &until},
		RoutesFrom:   routesControlPlane,
		Connections: connectionStatus{
			Active: 2, Waiting: 1, Admitted: 10, ConnectFailures: 4,
			Refused: map[gateway.Reason]uint64{gateway.NoSNI: 3, gateway.UnknownSNI: 1, gateway.Plaintext: 0},
		},
		Services: []serviceStatus{
			{sniOf("echo"), []netip.AddrPort{podAddr("a"), podAddr("b")}},
			{sniOf("none"), nil},
		},
	}
}

func TestHealthy(t *testing.T) {
	if !healthyStatus().healthy() {
		t.Error("the healthy one is not")
	}
	for name, change := range map[string]func(*gatewayStatus){
		"away":      func(s *gatewayStatus) { s.ControlPlane.Connected = false },
		"from disk": func(s *gatewayStatus) { s.RoutesFrom = routesDisk },
		"no routes": func(s *gatewayStatus) { s.RoutesFrom = routesNone },
		"draining":  func(s *gatewayStatus) { s.Draining = true },
		"a problem": func(s *gatewayStatus) { s.Problems = []string{"disk full"} },
	} {
		s := healthyStatus()
		if change(&s); s.healthy() {
			t.Errorf("%s: healthy", name)
		}
	}
}

func printed(t *testing.T, s gatewayStatus) string {
	t.Helper()
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	printStatus(w, s)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPrintStatus(t *testing.T) {
	want := `gateway:                  east/gw, version v1, up 1h0m0s
reached at:               192.0.2.10, 2001:db8::10
listening:                [::]:15443, [::]:15447
control plane:            mesh:15012 connected for 1m30s
certificate:              until 2026-05-05T03:02:01Z
connections:              2 active, 1 waiting, 10 admitted so far
refused:                  3 no-sni (gRPC clients need GRPC_EXPERIMENTAL_XDS_SNI=true in their environment)
refused:                  1 unknown-sni
failed connects to pods:  4

SERVICE                         PODS
echo.demo.svc.cluster.local:80  10.1.0.97:8080,10.1.0.98:8080
none.demo.svc.cluster.local:80  none ready
`
	if got := printed(t, healthyStatus()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for says, change := range map[string]func(*gatewayStatus){
		"mesh:15012 away for 1m30s (routes stay as they are): no route": func(s *gatewayStatus) {
			s.ControlPlane.Connected, s.ControlPlane.Error = false, "no route"
		},
		"mesh:15012 connecting":      func(s *gatewayStatus) { s.ControlPlane = controlPlaneStatus{Address: "mesh:15012"} },
		"as they were last known":    func(s *gatewayStatus) { s.RoutesFrom = routesDisk },
		"nothing is admitted":        func(s *gatewayStatus) { s.RoutesFrom = routesNone },
		"the control plane was left": func(s *gatewayStatus) { s.Draining = true },
		"disk full":                  func(s *gatewayStatus) { s.Problems = []string{"disk full"} },
		"no services":                func(s *gatewayStatus) { s.Services = nil },
		"not told to the control":    func(s *gatewayStatus) { s.Addresses = nil },
	} {
		s := healthyStatus()
		if change(&s); !strings.Contains(printed(t, s), says) {
			t.Errorf("%q is not in\n%s", says, printed(t, s))
		}
	}
}

// Lists are never null, so that scripts need not care.
func TestNoNullLists(t *testing.T) {
	w := newWorld(t)
	o := w.gatewayOptions()
	o.addresses, o.controlPlane = nil, freeAddr(t)
	b, err := json.Marshal(w.runGateway(o).status())
	if err != nil || bytes.Contains(b, []byte("null")) {
		t.Errorf("%s %v", b, err)
	}
}
