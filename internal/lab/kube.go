package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"sigs.k8s.io/yaml"
)

// The parts of a cluster's YAML that a lab has something to say about. The
// Kubernetes types would write a page of empty fields for each node.
type (
	clusterFile struct {
		Name         string         `json:"name"`
		Network      string         `json:"network"`
		PodCIDRs     []netip.Prefix `json:"podCIDRs"`
		ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
		NodeCIDRs    []netip.Prefix `json:"nodeCIDRs"`
	}
	kubeNode struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Metadata   kubeMeta       `json:"metadata"`
		Spec       kubeNodeSpec   `json:"spec"`
		Status     kubeNodeStatus `json:"status"`
	}
	kubeMeta struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	}
	kubeNodeSpec struct {
		PodCIDR  netip.Prefix   `json:"podCIDR"`
		PodCIDRs []netip.Prefix `json:"podCIDRs"`
	}
	kubeNodeStatus struct {
		Addresses []kubeAddress `json:"addresses"`
	}
	kubeAddress struct {
		Type    string `json:"type"`
		Address string `json:"address"`
	}
)

func clusterDir(lab, cluster string) string { return filepath.Join(clustersDir(lab), cluster) }

// writeCluster writes the folder from which the control plane reads a cluster.
func (s *state) writeCluster(c *clusterState) error {
	return s.writeFolder(clusterDir(s.Name, c.Name), c)
}

func (s *state) writeFolder(dir string, c *clusterState) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The nodes first: a cluster that shows itself with none would be held to
	// have lost them all.
	if err := s.writeObjectsTo(dir, c); err != nil {
		return err
	}
	b, err := yaml.Marshal(clusterFile{
		Name: c.Name, Network: c.Network,
		PodCIDRs: c.PodCIDRs, ServiceCIDRs: c.ServiceCIDRs, NodeCIDRs: c.nodeRanges(),
	})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "cluster.yaml"), b)
}

// writeObjects writes the cluster's Kubernetes objects as the state has them.
func (s *state) writeObjects(c *clusterState) error {
	return s.writeObjectsTo(clusterDir(s.Name, c.Name), c)
}

func (s *state) writeObjectsTo(dir string, c *clusterState) error {
	if err := writeList(filepath.Join(dir, "nodes.yaml"), c.nodeObjects()); err != nil {
		return err
	}
	services := filepath.Join(dir, "services.yaml")
	if _, err := os.Stat(services); errors.Is(err, os.ErrNotExist) && !s.hasServices() {
		return nil
	}
	return errors.Join(
		writeList(filepath.Join(dir, "pods.yaml"), c.podObjects()),
		writeList(services, s.serviceObjects(c)))
}

// hasServices reports whether anything of the lab needs to know of its pods.
func (s *state) hasServices() bool {
	return len(s.Services) > 0 || slices.ContainsFunc(s.Clusters, func(c clusterState) bool { return len(c.GatewayNumbers) > 0 })
}

// writeList writes a file of objects.
func writeList[T any](path string, list []T) error {
	var buf bytes.Buffer
	if len(list) == 0 {
		buf.WriteString("# There are none.\n")
	}
	for i, o := range list {
		b, err := yaml.Marshal(o)
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		if i > 0 {
			buf.WriteString("---\n")
		}
		buf.Write(b)
	}
	return writeFile(path, buf.Bytes())
}

func (c *clusterState) nodeObjects() []kubeNode {
	var list []kubeNode
	for _, n := range c.nodes() {
		list = append(list, n.object())
	}
	return list
}

func (n node) object() kubeNode {
	prefixes := n.prefixes()
	o := kubeNode{
		APIVersion: "v1", Kind: "Node",
		Metadata: kubeMeta{Name: n.id().Name, Labels: map[string]string{"kubernetes.io/hostname": n.id().Name}},
		Spec:     kubeNodeSpec{PodCIDR: prefixes[0], PodCIDRs: prefixes},
	}
	if z, ok := n.zone(); ok {
		o.Metadata.Labels["topology.kubernetes.io/region"] = z.Region
		o.Metadata.Labels["topology.kubernetes.io/zone"] = z.Zone
	}
	for _, a := range n.addrs() {
		o.Status.Addresses = append(o.Status.Addresses, kubeAddress{"InternalIP", a.String()})
	}
	o.Status.Addresses = append(o.Status.Addresses, kubeAddress{"Hostname", n.id().Name})
	return o
}
