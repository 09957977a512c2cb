package lab

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestChange(t *testing.T) {
	l := up(t, `{clusters: [{name: east, podCIDRs: [10.1.0.0/24], nodes: 1}, {name: west, podCIDRs: [10.2.0.0/16]}]}`, Options{})
	ctx := t.Context()
	host, err := l.AddNode(ctx, "east")
	must(t, err)
	if a := answers(t, l, "east/n1/p1", "10.1.0.130"); host != "east/n2" || a.Pod != "east/n2/p1" {
		t.Errorf("%s, %+v", host, a)
	}
	must(t, l.RemoveNode(ctx, "east/n1"))
	if _, err := l.AddNode(ctx, "east/n3"); err == nil {
		t.Error("a node beyond the pod range")
	}
	host, err = l.AddNode(ctx, "east")
	must(t, err)
	if a := answers(t, l, "east/n2/p1", "10.1.0.2"); host != "east/n1" || a.Caller.String() != "10.1.0.130" {
		t.Errorf("%s, %+v", host, a)
	}

	if _, err := l.AddClusters(ctx, parse(t, `{clusters: [{name: bad, network: east, podCIDRs: [10.1.0.0/25]}]}`)); err == nil || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("an overlap within a network: %v", err)
	}
	added, err := l.AddClusters(ctx, parse(t, `{clusters: [{name: east, podCIDRs: [10.9.0.0/16]}, {name: north, network: east, podCIDRs: [10.3.0.0/16]}]}`))
	must(t, err)
	if !slices.Equal(added, []string{"north"}) {
		t.Errorf("added %v", added)
	}
	if a := answers(t, l, "north/n1/p1", "10.1.0.2"); a.Caller.String() != "10.3.0.2" {
		t.Errorf("%+v", a)
	}
	// The router stays for the other cluster, whose addresses do not change.
	must(t, l.RemoveCluster(ctx, "east"))
	answers(t, l, "north/n1", "10.3.0.2")
	must(t, l.RemoveCluster(ctx, "north"))
	if _, err := os.Stat(clusterDir(l.Name(), "north")); err == nil {
		t.Error("the folder of a removed cluster is there")
	}
	hosts, err := l.Hosts()
	must(t, err)
	var names []string
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	if want := "core controlplane router/west west/n1 west/n1/p1"; strings.Join(names, " ") != want {
		t.Errorf("hosts: %v", names)
	}
	if st, err := l.Status(ctx); err != nil || !st.OK() || len(st.Clusters) != 1 || st.Clusters[0].AgentsAlive != 1 {
		t.Errorf("status: %+v, %v", st, err)
	}
}
