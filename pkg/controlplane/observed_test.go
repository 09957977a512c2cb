package controlplane

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/xds"
)

func TestObserved(t *testing.T) {
	p := twoClusters(t)
	h := observed(p.options, p.loop)
	stop := p.background()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
		return w.Code, w.Body.String()
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := get(path); code != 200 || body != "ok\n" {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	p.nacked(xds.PeerType)
	p.nacked("type.googleapis.com/made.up")
	p.nacked("type.googleapis.com/made.up.too")
	_, body := get("/metrics")
	for _, want := range []string{
		`flatmesh_nodes{cluster="east",registered="false"} 3`, `flatmesh_nodes{cluster="east",registered="true"} 0`, "flatmesh_agents_connected 0",
		`flatmesh_tunnels{state="Up"} 0`, "flatmesh_tunnels_expected 0", `flatmesh_conflicts{effect="listed"} 0`, `flatmesh_conflicts{effect="no-tunnels"} 0`, `flatmesh_source_refused{source="A"} 0`,
		`flatmesh_nodes_held{cluster="west"} 0`, "flatmesh_state_unsaved 0",
		`flatmesh_xds_nacks_total{type="other"} 2`, `flatmesh_xds_nacks_total{type="` + xds.PeerType + `"} 1`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	stop()
	if code, _ := get("/healthz"); code != 503 {
		t.Errorf("after the end: %d", code)
	}

	q := newPlane(t)
	h = observed(q.options, q.loop)
	defer q.background()()
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("before the sources are read: %d", code)
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "not been read yet") {
		t.Errorf("before the sources are read: %d %s", code, body)
	}
}
