package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/lab"
)

func (a *app) addServiceCommand() *cobra.Command {
	var sv lab.Service
	var ports []string
	cmd := &cobra.Command{
		Use:   "service [NAMESPACE/]NAME",
		Short: "Add a service of pods that are there",
		Long: `add service adds a service to clusters. Its pods are there already and stay what
they are: a service in another namespace than theirs, or one that wants mTLS of
pods that speak plaintext, is refused.`,
		Example: `  lab add service shop --clusters west --pods p1
  lab add service web --port 80:8080 --annotation flatmesh.io/export=false`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sv.Name = args[0]
			if ns, name, ok := strings.Cut(args[0], "/"); ok {
				sv.Namespace, sv.Name = ns, name
			}
			for _, text := range ports {
				p, err := parsePort(text)
				if err != nil {
					return err
				}
				sv.Ports = append(sv.Ports, p)
			}
			l, err := a.open()
			if err != nil {
				return err
			}
			return l.AddService(cmd.Context(), sv)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&ports, "port", nil, "PORT[:TARGET]; TARGET is 50051 for gRPC, 8080 for HTTP (default 80:50051)")
	f.StringSliceVar(&sv.Clusters, "clusters", nil, "clusters that have it (default: all)")
	f.StringSliceVar(&sv.Pods, "pods", nil, "pods behind it: p1 is the first of each node, n2/p1 that of n2 alone (default: all)")
	f.StringToStringVar(&sv.Annotations, "annotation", nil, "annotation of the Service, KEY=VALUE")
	f.StringVar(&sv.ServiceAccount, "service-account", "", "service account that its pods must have")
	return cmd
}

func parsePort(text string) (lab.ServicePort, error) {
	port, target, targeted := strings.Cut(text, ":")
	var p lab.ServicePort
	for _, side := range []struct {
		text string
		into *uint16
		want bool
	}{{port, &p.Port, true}, {target, &p.TargetPort, targeted}} {
		if !side.want {
			continue
		}
		n, err := strconv.ParseUint(side.text, 10, 16)
		if err != nil || n == 0 {
			return p, fmt.Errorf("port %q: want PORT or PORT:TARGET", text)
		}
		*side.into = uint16(n)
	}
	return p, nil
}

func (a *app) readyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ready POD true|false",
		Short: "Say whether a pod is ready, in its cluster's YAML",
		Long: `ready writes into the cluster's YAML whether a pod is ready, as a kubelet's
readiness probe would. The pod's process is left alone.`,
		Example: "  lab ready west/n1/p1 false",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ready, err := strconv.ParseBool(args[1])
			if err != nil {
				return fmt.Errorf("%q: want true or false", args[1])
			}
			l, err := a.open()
			if err != nil {
				return err
			}
			return l.SetReady(cmd.Context(), args[0], ready)
		},
	}
}
