package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const topology = `   clusters:
     - {name: east,  podCIDRs: [10.1.0.0/16],   serviceCIDRs: [10.96.0.0/12], nodes: 2, gateways: 1}
     - {name: west,  podCIDRs: [10.2.0.0/16],   serviceCIDRs: [10.96.0.0/12], nodes: 2, gateways: 1}
     - {name: south, podCIDRs: [10.1.128.0/17], serviceCIDRs: [10.96.0.0/12], nodes: 2, gateways: 1}  # inside east's range
   services:
     - {name: echo, ports: [{port: 80, appProtocol: grpc}]}  # in all three clusters
`

// The pair that is cut, and one that must not notice.
const (
	nearNode, farNode = "east/n1", "west/n1"
	nearPod, farPod   = "east/n1/p1", "west/n1/p1"
	otherNear         = "east/n2/p1"
	otherFar          = "west/n2/p1"
)

var steps = []step{
	{"Agents join, learn their peers and shake hands: all tunnels come up.", (*demo).comeUp},
	{"A pod reaches a pod of another cluster by its own IP, and its source address is kept.", (*demo).pods},
	{"The cluster that overlaps another is refused, with its reason; east was there first and loses nothing.", (*demo).overlap},
	{"A node's status before the cut.", func(d *demo, ctx context.Context) error { return d.show(ctx, nearNode, "agent", "status") }},
	{"The path between two nodes is cut, with traffic on it: both notice, and nobody else is touched.", (*demo).cut},
	{"The path heals: the tunnel comes back by itself.", (*demo).heal},
	{"The control plane is killed and started again, with traffic running.", (*demo).controlPlane},
	{"A service of three clusters answers from all of them, the overlapping one through its gateway; a cut moves one pair to the gateway, and healing moves it back.", (*demo).services},
}

func (d *demo) comeUp(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := d.lab.AwaitUp(waiting); err != nil {
		return err
	}
	m, err := d.lab.Mesh(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("   %v\n", m)
	if m.Tunnels.Up != 8 {
		return fmt.Errorf("%d tunnels are up, want the 8 between east and west", m.Tunnels.Up)
	}
	return nil
}

func (d *demo) pods(ctx context.Context) error {
	return errors.Join(
		d.reach(ctx, nearPod, farPod), d.reach(ctx, farPod, nearPod),
		d.reach(ctx, otherNear, otherFar), d.reach(ctx, otherFar, nearPod),
	)
}

func (d *demo) overlap(ctx context.Context) error {
	m, err := d.lab.Mesh(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(m.Conflicts, func(c mesh.Conflict) bool { return c.Effect == mesh.Yields })
	if i < 0 || m.Conflicts[i].Second.Cluster != "south" || m.Conflicts[i].First.Cluster != "east" {
		return fmt.Errorf("south does not yield to east: %v", m.Conflicts)
	}
	if err := d.show(ctx, "controlplane", "controlplane", "status"); err != nil {
		return err
	}
	s, err := d.status(ctx, "south/n1")
	if err != nil {
		return err
	}
	if len(s.Peers) != 0 || len(s.Barriers) == 0 || !strings.Contains(s.Barriers[0].Detail, "10.1.0.0/16 of east") {
		return fmt.Errorf("south/n1 has %d peers and says %v", len(s.Peers), s.Barriers)
	}
	fmt.Printf("   south/n1 says: no %v tunnels, %s: %s\n", s.Barriers[0].Family, s.Barriers[0].Reason, s.Barriers[0].Detail)
	return nil
}

func (d *demo) cut(ctx context.Context) error {
	to, err := d.address(farPod)
	if err != nil {
		return err
	}
	calls, err := d.calls(ctx, nearPod, fmt.Sprintf("http://%v:%d", to, lab.PodPort), "100ms")
	if err != nil {
		return err
	}
	defer calls.end()
	if err := d.lab.Cut(ctx, nearNode, farNode, false); err != nil {
		return err
	}
	for _, pair := range [][2]string{{nearNode, farNode}, {farNode, nearNode}} {
		took, err := d.tunnel(ctx, pair[0], pair[1], mesh.Down)
		if err != nil {
			return err
		}
		fmt.Printf("   %s sees the tunnel to %s Down and all others Up, %v after it was asked\n", pair[0], pair[1], took.Round(time.Millisecond))
	}
	if err := d.show(ctx, nearNode, "agent", "status"); err != nil {
		return err
	}
	return d.reach(ctx, otherNear, otherFar)
}

func (d *demo) heal(ctx context.Context) error {
	if err := d.lab.Heal(ctx, nearNode, farNode, false); err != nil {
		return err
	}
	for _, pair := range [][2]string{{nearNode, farNode}, {farNode, nearNode}} {
		took, err := d.tunnel(ctx, pair[0], pair[1], mesh.Up)
		if err != nil {
			return err
		}
		fmt.Printf("   %s sees the tunnel to %s Up, %v after it was asked\n", pair[0], pair[1], took.Round(time.Millisecond))
	}
	return d.reach(ctx, nearPod, farPod)
}

func (d *demo) controlPlane(ctx context.Context) error {
	to, err := d.address(farPod)
	if err != nil {
		return err
	}
	calls, err := d.calls(ctx, nearPod, fmt.Sprintf("http://%v:%d", to, lab.PodPort), "10ms")
	if err != nil {
		return err
	}
	defer calls.end()
	if err := d.lab.Kill(ctx, lab.ControlPlane, "controlplane"); err != nil {
		return err
	}
	if _, err := d.await(ctx, func() error {
		s, err := d.status(ctx, nearNode)
		if err == nil && s.ControlPlane.Connected {
			err = errors.New("the agent has not noticed yet")
		}
		return err
	}); err != nil {
		return err
	}
	fmt.Println("   the agents have noticed; tunnels stay as they are")
	if err := d.lab.Restart(ctx, lab.ControlPlane, "controlplane"); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := d.lab.AwaitUp(waiting); err != nil {
		return err
	}
	answered, failed := calls.end()
	fmt.Printf("   meanwhile %d calls from %s to %s were answered, %d were not\n", answered, nearPod, farPod, failed)
	if failed > 0 || answered == 0 {
		return errors.New("calls failed")
	}
	return nil
}

// calls is a pod that calls another again and again.
type calls struct {
	stop func()
	done chan [2]int
	last [2]int
}

// calls begins to call and returns once the first was answered.
func (d *demo) calls(ctx context.Context, from, url, interval string) (*calls, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd, err := d.lab.Command(ctx, from, "lab", "call", "-o", "json", "--count", "100000", "--interval", interval, "--timeout", "1s", url)
	if err != nil {
		cancel()
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	c := &calls{stop: cancel, done: make(chan [2]int, 1)}
	first := make(chan struct{})
	go func() {
		failures := make(chan int, 1)
		go func() { failures <- countLines(errs, "no answer", nil) }()
		answered := countLines(out, "", first)
		n := [2]int{answered, <-failures}
		_ = cmd.Wait() // it was told to end
		c.done <- n
	}()
	select {
	case <-first:
		return c, nil
	case <-time.After(patience):
		cancel()
		return nil, fmt.Errorf("no call from %s to %s was answered", from, url)
	}
}

// end stops calling and returns how many calls were answered and how many not;
// the one that was under way when it was stopped counts as neither.
func (c *calls) end() (answered, failed int) {
	c.stop()
	select {
	case c.last = <-c.done:
	case <-time.After(patience):
	}
	c.done <- c.last
	return c.last[0], c.last[1]
}

// countLines counts the lines that begin with a text, and closes first at the
// first.
func countLines(r io.Reader, begin string, first chan struct{}) int {
	b := make([]byte, 0, 4096)
	n := 0
	buf := make([]byte, 4096)
	for {
		k, err := r.Read(buf)
		b = append(b, buf[:k]...)
		for {
			i := slices.Index(b, '\n')
			if i < 0 {
				break
			}
			if strings.HasPrefix(string(b[:i]), begin) {
				n++
				if n == 1 && first != nil {
					close(first)
				}
			}
			b = b[i+1:]
		}
		if err != nil {
			return n
		}
	}
}
