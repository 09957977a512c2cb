package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

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
	dir := clusterDir(s.Name, c.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The nodes first: a cluster that shows itself with none would be held to
	// have lost them all.
	if err := s.writeNodes(c); err != nil {
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

// writeNodes writes the cluster's nodes, one Kubernetes object each.
func (s *state) writeNodes(c *clusterState) error {
	var buf bytes.Buffer
	if len(c.Numbers) == 0 {
		buf.WriteString("# The cluster has no nodes.\n")
	}
	for i, n := range c.nodes() {
		b, err := yaml.Marshal(n.object())
		if err != nil {
			return fmt.Errorf("write node %s: %w", n.id(), err)
		}
		if i > 0 {
			buf.WriteString("---\n")
		}
		buf.Write(b)
	}
	return writeFile(filepath.Join(clusterDir(s.Name, c.Name), "nodes.yaml"), buf.Bytes())
}

func (n node) object() kubeNode {
	prefixes := n.prefixes()
	o := kubeNode{
		APIVersion: "v1", Kind: "Node",
		Metadata: kubeMeta{Name: n.id().Name, Labels: map[string]string{"kubernetes.io/hostname": n.id().Name}},
		Spec:     kubeNodeSpec{PodCIDR: prefixes[0], PodCIDRs: prefixes},
	}
	for _, a := range n.addrs() {
		o.Status.Addresses = append(o.Status.Addresses, kubeAddress{"InternalIP", a.String()})
	}
	o.Status.Addresses = append(o.Status.Addresses, kubeAddress{"Hostname", n.id().Name})
	return o
}
