package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// pairYAML is the lab that every way of joining two nodes gets: pod, node,
// router, core, router, node, pod.
const pairYAML = `clusters:
  - name: east
    podCIDRs: [10.1.0.0/16]
  - name: west
    podCIDRs: [10.2.0.0/16]
`

// The ways in which two nodes are joined, in the order of the table's columns.
const (
	byFlatmesh = "flatmesh"
	byHand     = "by hand"
	byDebian   = "Debian's wireguard-go"
	byNothing  = "no tunnel"
)

// system is one way of joining two nodes, set up and ready to be measured.
type system struct {
	name string
	road road
	// devices are the processes of WireGuard at both ends.
	devices []int
	// every says that it takes part in each such round.
	every int
}

// seldom is how often the systems take part whose ratios are far from 1.
const seldom = 4

// systems sets up all ways side by side. The notes say what was left out, and why.
func (b *bench) systems(ctx context.Context) (out []system, notes []string, clean func(), err error) {
	var downs []func()
	clean = func() {
		for _, down := range slices.Backward(downs) {
			down()
		}
	}
	defer func() {
		if err != nil {
			clean()
		}
	}()
	add := func(name, suffix string, o lab.Options, join func(*lab.Lab, map[string]lab.Host) ([]int, error)) error {
		l, down, err := b.up(ctx, suffix, pairYAML, o)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		downs = append(downs, down)
		hosts, err := hostsOf(l)
		if err != nil {
			return err
		}
		s := system{name: name, road: road{hosts["east/n1/p1"], hosts["west/n1/p1"]}, every: seldom}
		if name == byFlatmesh || name == byHand {
			s.every = 1
		}
		if s.devices, err = join(l, hosts); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, s)
		return nil
	}
	hand := func(device ...string) func(*lab.Lab, map[string]lab.Host) ([]int, error) {
		return func(l *lab.Lab, hosts map[string]lab.Host) ([]int, error) {
			return tunnelByHand(ctx, l, hosts, device...)
		}
	}
	bare := lab.Options{NoAgents: true}
	err = add(byFlatmesh, "mesh", lab.Options{Wait: time.Minute}, func(_ *lab.Lab, hosts map[string]lab.Host) ([]int, error) {
		return meshDevices(hosts)
	})
	if err != nil {
		return nil, nil, clean, err
	}
	err = add(byHand, "hand", bare, hand("agent", "device", "--interface", handInterface, "--mtu", fmt.Sprint(tunnelMTU)))
	if err != nil {
		return nil, nil, clean, err
	}
	if version, err := debianVersion(ctx); err != nil {
		notes = append(notes, fmt.Sprintf("%s was not measured: %v.", byDebian, err))
	} else if err := add(byDebian, "deb", bare, hand("wireguard-go", "-f", handInterface)); err != nil {
		return nil, nil, clean, err
	} else {
		notes = append(notes, fmt.Sprintf("%s: %s.", byDebian, version))
	}
	err = add(byNothing, "raw", bare, func(_ *lab.Lab, hosts map[string]lab.Host) ([]int, error) {
		return nil, routePlainly(hosts)
	})
	return out, notes, clean, err
}

// meshDevices checks that flatmesh's interfaces are comparable with those set up
// by hand, and returns their processes.
func meshDevices(hosts map[string]lab.Host) ([]int, error) {
	var pids []int
	for _, name := range []string{"east/n1", "west/n1"} {
		mtu, err := mtuOf(hosts[name], "flatmesh0")
		if err != nil {
			return nil, err
		}
		if mtu != tunnelMTU {
			return nil, fmt.Errorf("the MTU in %s is %d, want %d for a fair comparison", name, mtu, tunnelMTU)
		}
		for _, p := range hosts[name].Processes {
			if p.Name == lab.Device {
				pids = append(pids, p.PID)
			}
		}
	}
	if len(pids) != 2 {
		return nil, errors.New("flatmesh uses the kernel's WireGuard here: there is no userspace device to compare")
	}
	return pids, nil
}

// debianVersion returns the version of the wireguard-go on the path.
func debianVersion(ctx context.Context) (string, error) {
	path, err := exec.LookPath("wireguard-go")
	if err != nil {
		return "", errors.New("it is not installed (apt-get install wireguard-go)")
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", filepath.Base(path), err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}
