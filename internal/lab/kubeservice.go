package lab

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// kubeObject is part of a Kubernetes object, with the fields that a lab has
// something to say about.
type kubeObject = map[string]any

// sliceSize is how many endpoints Kubernetes puts into an EndpointSlice.
const sliceSize = 100

func (c *clusterState) podObjects() []kubeObject {
	var list []kubeObject
	for _, p := range c.pods() {
		list = append(list, p.object())
	}
	return list
}

// serviceObjects are the cluster's namespaces, services and gateways.
func (s *state) serviceObjects(c *clusterState) []kubeObject {
	namespaces := map[string]bool{}
	var list []kubeObject
	for _, p := range c.Pods {
		namespaces[p.Namespace] = true
	}
	for _, sv := range s.Services {
		if !sv.in(c.Name) {
			continue
		}
		namespaces[sv.Namespace] = true
		list = append(list, c.service(sv))
		list = append(list, c.slices(sv)...)
	}
	if len(c.GatewayNumbers) > 0 {
		namespaces[systemNamespace] = true
		list = append(list, c.gatewayService())
	}
	var spaces []kubeObject
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		spaces = append(spaces, kubeObject{
			"apiVersion": "v1", "kind": "Namespace",
			"metadata": kubeObject{"name": name, "labels": kubeObject{"kubernetes.io/metadata.name": name}},
		})
	}
	return append(spaces, list...)
}

func condition(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

func (p pod) object() kubeObject {
	ps, addrs := p.state(), p.addrs()
	var ips, hostIPs []kubeObject
	for _, a := range addrs {
		ips = append(ips, kubeObject{"ip": a.String()})
	}
	for _, a := range p.node.addrs() {
		hostIPs = append(hostIPs, kubeObject{"ip": a.String()})
	}
	return kubeObject{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": kubeObject{"name": p.kubeName(), "namespace": ps.Namespace, "uid": ps.UID, "creationTimestamp": ps.Created},
		"spec": kubeObject{
			"nodeName": p.node.id().Name, "serviceAccountName": ps.ServiceAccount,
			"containers": []kubeObject{{"name": "echo", "image": "meshecho", "ports": []kubeObject{
				{"name": "http", "containerPort": PodPort}, {"name": "grpc", "containerPort": GRPCPort},
			}}},
		},
		"status": kubeObject{
			"phase": "Running", "podIP": addrs[0].String(), "podIPs": ips,
			"hostIP": p.node.addrs()[0].String(), "hostIPs": hostIPs,
			"conditions": []kubeObject{{"type": "Ready", "status": condition(!ps.Unready)}},
		},
	}
}

// clusterIPs writes a service's addresses, or that it has none.
func (c *clusterState) clusterIPs(offset int) (first string, all []string) {
	for _, a := range c.serviceIPs(offset) {
		all = append(all, a.String())
	}
	if len(all) == 0 {
		all = []string{"None"}
	}
	return all[0], all
}

func (c *clusterState) service(sv serviceState) kubeObject {
	var ports []kubeObject
	for _, p := range sv.Ports {
		ports = append(ports, kubeObject{
			"name": p.Name, "port": p.Port, "targetPort": p.TargetPort, "protocol": "TCP", "appProtocol": p.AppProtocol,
		})
	}
	ip, ips := c.clusterIPs(firstService + sv.Number)
	return kubeObject{
		"apiVersion": "v1", "kind": "Service",
		"metadata": kubeObject{"name": sv.Name, "namespace": sv.Namespace, "annotations": sv.annotations(), "creationTimestamp": sv.Created},
		"spec":     kubeObject{"type": "ClusterIP", "clusterIP": ip, "clusterIPs": ips, "ports": ports},
	}
}

// annotations are never null, which is no map.
func (s Service) annotations() map[string]string {
	if s.Annotations == nil {
		return map[string]string{}
	}
	return s.Annotations
}

// slices are the service's EndpointSlices, of each family its own.
func (c *clusterState) slices(sv serviceState) []kubeObject {
	var ports []kubeObject
	for _, p := range sv.Ports {
		ports = append(ports, kubeObject{"name": p.Name, "port": p.TargetPort, "protocol": "TCP", "appProtocol": p.AppProtocol})
	}
	var list []kubeObject
	for i, r := range c.PodCIDRs {
		family := mesh.FamilyOf(r.Addr()).String()
		var endpoints []kubeObject
		for _, p := range c.podsOf(sv.Service) {
			endpoints = append(endpoints, p.endpoint(p.addrs()[i].String()))
		}
		number := 0
		for part := range slices.Chunk(endpoints, sliceSize) {
			number++
			list = append(list, kubeObject{
				"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
				"metadata": kubeObject{
					"name": fmt.Sprintf("%s-v%s-%d", sv.Name, family[len(family)-1:], number), "namespace": sv.Namespace,
					"labels":            kubeObject{"kubernetes.io/service-name": sv.Name, "endpointslice.kubernetes.io/managed-by": "lab"},
					"creationTimestamp": sv.Created,
				},
				"addressType": family, "ports": ports, "endpoints": part,
			})
		}
	}
	return list
}

func (p pod) endpoint(addr string) kubeObject {
	ps := p.state()
	e := kubeObject{
		"addresses":  []string{addr},
		"conditions": kubeObject{"ready": !ps.Unready, "serving": !ps.Unready, "terminating": false},
		"nodeName":   p.node.id().Name,
		"targetRef":  kubeObject{"kind": "Pod", "namespace": ps.Namespace, "name": p.kubeName(), "uid": ps.UID},
	}
	if z, ok := p.node.zone(); ok {
		e["zone"] = z.Zone
	}
	return e
}

// gatewayService is the Service by which Istio, and flatmesh, know a cluster's
// gateways.
func (c *clusterState) gatewayService() kubeObject {
	var ports, ingress []kubeObject
	for _, set := range []struct {
		name  string
		ports []uint16
	}{{"tls", gatewayPorts}, {"standby", standbyPorts}} {
		for i, p := range set.ports {
			name := set.name
			if i > 0 {
				name = fmt.Sprintf("%s-%d", set.name, i+1)
			}
			ports = append(ports, kubeObject{"name": name, "port": p, "targetPort": p, "protocol": "TCP"})
		}
	}
	for _, g := range c.gateways() {
		for _, a := range g.addrs() {
			ingress = append(ingress, kubeObject{"ip": a.String()})
		}
	}
	ip, ips := c.clusterIPs(gatewayService)
	return kubeObject{
		"apiVersion": "v1", "kind": "Service",
		"metadata": kubeObject{
			"name": "gateway", "namespace": systemNamespace,
			"labels": kubeObject{"topology.istio.io/network": cmp.Or(c.Network, c.Name)},
		},
		"spec":   kubeObject{"type": "LoadBalancer", "clusterIP": ip, "clusterIPs": ips, "ports": ports},
		"status": kubeObject{"loadBalancer": kubeObject{"ingress": ingress}},
	}
}
