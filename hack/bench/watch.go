package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// stateDir is where a lab's control plane keeps its state, in its host.
const stateDir = "/var/lib/flatmesh/controlplane"

// controlPlaneSocket is the control plane's admin socket as this process sees it.
// To ask there costs the machine far less than `controlplane status`, which
// would disturb what is measured.
func controlPlaneSocket(labDir string) string {
	return controlplane.AdminSocket(filepath.Join(labDir, "hosts/controlplane", stateDir))
}

func controlPlaneStatus(ctx context.Context, l *lab.Lab) (s controlplane.Status, err error) {
	err = cli.Ask(ctx, "control plane", controlPlaneSocket(l.Dir()), "GET", "/status", &s)
	return s, err
}

// reported returns what the control plane holds of a node's tunnels.
func reported(ctx context.Context, l *lab.Lab, node mesh.NodeID) (t controlplane.Tunnels, err error) {
	err = cli.Ask(ctx, "control plane", controlPlaneSocket(l.Dir()), "GET", fmt.Sprintf("/tunnels/%s/%s", node.Cluster, node.Name), &t)
	return t, err
}

func agentStatus(ctx context.Context, l *lab.Lab, node mesh.NodeID) (s agent.Status, err error) {
	o := agent.Options{RunDir: filepath.Join(l.Dir(), "hosts", node.String(), "run/flatmesh")}
	err = cli.Ask(ctx, "agent", o.AdminSocket(), "GET", "/status", &s)
	return s, err
}

// peerOf finds a peer in a status.
func peerOf(s agent.Status, node mesh.NodeID) (agent.PeerStatus, error) {
	for _, p := range s.Peers {
		if p.Node == node {
			return p, nil
		}
	}
	return agent.PeerStatus{}, fmt.Errorf("%v does not know %v", s.Node, node)
}

// until asks again and again, and returns when ok is true; the error says what
// was waited for.
func until(ctx context.Context, every, limit time.Duration, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("waited %v for %s", limit, what))
	defer cancel()
	for {
		done, err := ok()
		if done {
			return nil
		}
		if perr := pause(ctx, every); perr != nil {
			if err != nil {
				return fmt.Errorf("%w: %w", perr, err)
			}
			return perr
		}
	}
}

// pidsOf lists the processes of a name in a lab.
func pidsOf(l *lab.Lab, name string) ([]int, error) {
	hosts, err := l.Hosts()
	if err != nil {
		return nil, err
	}
	var out []int
	for _, h := range hosts {
		for _, p := range h.Processes {
			if p.Name == name && p.Alive {
				out = append(out, p.PID)
			}
		}
	}
	return out, nil
}
