package lab

import (
	"context"
	"slices"
)

// Status sums up a lab.
type Status struct {
	Name     string          `json:"name"`
	Clusters []ClusterStatus `json:"clusters"`
	// Cuts are the directions in which Cut drops UDP now.
	Cuts []Direction `json:"cuts"`
	// Missing are processes that should run and do not, as HOST PROCESS.
	Missing []string `json:"missing"`
	// Mesh is nil in a lab without agents, and where the control plane does not
	// answer; then MeshError says why.
	Mesh      *MeshStatus `json:"mesh,omitempty"`
	MeshError string      `json:"meshError,omitempty"`
}

// ClusterStatus is a cluster as it is now.
type ClusterStatus struct {
	Cluster
	// AgentsAlive counts the nodes whose agent runs, GatewaysAlive the gateways that
	// do.
	AgentsAlive   int `json:"agentsAlive"`
	GatewaysAlive int `json:"gatewaysAlive"`
}

// OK reports whether all runs that should, and every tunnel is up that should be.
func (s Status) OK() bool {
	return len(s.Missing) == 0 && s.MeshError == "" && (s.Mesh == nil || s.Mesh.AllUp())
}

// Status asks the machine and the control plane how the lab is.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	st := Status{Name: l.name, Cuts: []Direction{}, Missing: []string{}}
	s, err := loadState(l.name)
	if err != nil {
		return st, err
	}
	cuts, err := l.Cuts()
	if err != nil {
		return st, err
	}
	st.Cuts = append(st.Cuts, cuts...)
	hs, err := s.withProcesses(s.hosts())
	if err != nil {
		return st, err
	}
	agents, gateways := map[string]int{}, map[string]int{}
	for _, h := range hs {
		for _, p := range h.Processes {
			switch {
			case !p.Alive:
				st.Missing = append(st.Missing, h.Name+" "+p.Name)
			case p.Name == Agent:
				agents[h.Cluster]++
			case p.Name == Gateway:
				gateways[h.Cluster]++
			}
		}
	}
	for _, c := range s.Clusters {
		cs := ClusterStatus{Cluster: c.Cluster, AgentsAlive: agents[c.Name], GatewaysAlive: gateways[c.Name]}
		cs.Nodes, cs.Gateways = len(c.Numbers), len(c.GatewayNumbers)
		st.Clusters = append(st.Clusters, cs)
	}
	if s.NoAgents {
		return st, nil
	}
	if slices.Contains(st.Missing, string(KindControlPlane)+" "+ControlPlane) {
		st.MeshError = "the control plane does not run"
		return st, nil
	}
	m, err := l.Mesh(ctx)
	if err != nil {
		st.MeshError = err.Error()
		return st, nil
	}
	st.Mesh = &m
	return st, nil
}
