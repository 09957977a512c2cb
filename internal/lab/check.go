package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// checkMachine says in a sentence each what this machine lacks.
func checkMachine(t Topology, bin string, noAgents bool) error {
	if err := checkRoot(); err != nil {
		return err
	}
	errs := []error{checkPrograms(t, bin, noAgents)}
	if _, err := os.Stat("/proc/self/ns/net"); err != nil {
		errs = append(errs, errors.New("the kernel has no network namespaces (CONFIG_NET_NS)"))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil && !noAgents {
		errs = append(errs, errors.New("there is no /dev/net/tun, which WireGuard in userspace needs (try: modprobe tun)"))
	}
	return errors.Join(append(errs, checkIPv6(t))...)
}

// checkPrograms looks for what the topology's hosts will run.
func checkPrograms(t Topology, bin string, noAgents bool) error {
	programs := []string{"lab", "meshecho"}
	if !noAgents {
		programs = append(programs, "agent", "controlplane")
		if slices.ContainsFunc(t.Clusters, func(c Cluster) bool { return c.Gateways > 0 }) {
			programs = append(programs, "gateway")
		}
	}
	var errs []error
	for _, p := range programs {
		path := filepath.Join(bin, p)
		if fi, err := os.Stat(path); err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
			errs = append(errs, fmt.Errorf("there is no program %s (build it with `make build`, or give its folder with --bin)", path))
		}
	}
	return errors.Join(errs...)
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root, for network namespaces and devices (try: sudo)")
	}
	return nil
}

func checkIPv6(t Topology) error {
	if hasIPv6() {
		return nil
	}
	for _, c := range t.Clusters {
		for _, p := range c.PodCIDRs {
			if p.Addr().Is6() {
				return fmt.Errorf("cluster %s has pod range %v, but the kernel has no IPv6", c.Name, p)
			}
		}
	}
	return nil
}
