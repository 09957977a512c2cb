package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/gateway"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// gatewayStatus is what `gateway status` shows. Its JSON fields are stable.
type gatewayStatus struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	Version string `json:"version"`
	// At is when it was read.
	At      time.Time `json:"at"`
	Started time.Time `json:"started"`
	// Addresses are where clients are told to reach it, Listening where it listens.
	Addresses    []netip.Addr       `json:"addresses"`
	Listening    []string           `json:"listening"`
	ControlPlane controlPlaneStatus `json:"controlPlane"`
	// RoutesFrom is "control-plane", "disk" (what was last known) or "none".
	RoutesFrom string `json:"routesFrom"`
	// Draining: it was asked to end.
	Draining    bool             `json:"draining"`
	Connections connectionStatus `json:"connections"`
	Services    []serviceStatus  `json:"services"`
	// Problems are what the gateway could not do, in words.
	Problems []string `json:"problems"`
}

// controlPlaneStatus is the connection to the control plane.
type controlPlaneStatus struct {
	Address   string `json:"address"`
	Connected bool   `json:"connected"`
	// Since is when the connection was made or lost; nil before the first try
	// has ended.
	Since            *time.Time `json:"since,omitempty"`
	Error            string     `json:"error,omitempty"`
	CertificateUntil *time.Time `json:"certificateUntil,omitempty"`
}

// connectionStatus is gateway.Stats.
type connectionStatus struct {
	Active          int                       `json:"active"`
	Waiting         int                       `json:"waiting"`
	Admitted        uint64                    `json:"admitted"`
	Refused         map[gateway.Reason]uint64 `json:"refused"`
	Ended           map[gateway.End]uint64    `json:"ended"`
	BytesToPods     uint64                    `json:"bytesToPods"`
	BytesToClients  uint64                    `json:"bytesToClients"`
	ConnectFailures uint64                    `json:"connectFailures"`
	AcceptFailures  uint64                    `json:"acceptFailures"`
}

// serviceStatus is one service's port.
type serviceStatus struct {
	ServerName string           `json:"serverName"`
	Pods       []netip.AddrPort `json:"pods"`
}

// healthy reports whether nothing is wrong. A service without pods is none of the
// gateway's faults, and neither is a client that is refused.
func (s gatewayStatus) healthy() bool {
	return s.ControlPlane.Connected && s.RoutesFrom == routesControlPlane && !s.Draining && len(s.Problems) == 0
}

// status gathers what `gateway status` shows.
func (p *process) status() gatewayStatus {
	routes, from := p.feed.snapshot()
	stats := p.proxy.Stats()
	s := gatewayStatus{
		Cluster: p.o.cluster, Name: p.o.name, Version: p.o.version, At: time.Now().UTC(), Started: p.started,
		Addresses: append([]netip.Addr{}, p.o.addresses...), Listening: []string{},
		ControlPlane: p.conversation.status(), RoutesFrom: from, Draining: p.draining.Load(),
		Connections: connectionStatus{
			Active: stats.Active, Waiting: stats.Waiting, Admitted: stats.Admitted, Refused: stats.Refused, Ended: stats.Ended,
			BytesToPods: stats.ToPods, BytesToClients: stats.ToClients,
			ConnectFailures: stats.ConnectFailures, AcceptFailures: stats.AcceptFailures,
		},
		Services: make([]serviceStatus, 0, len(routes)), Problems: []string{},
	}
	for _, l := range p.listeners {
		s.Listening = append(s.Listening, l.Addr().String())
	}
	for _, name := range slices.Sorted(maps.Keys(routes)) {
		s.Services = append(s.Services, serviceStatus{name, append([]netip.AddrPort{}, routes[name]...)})
	}
	if err := p.unsaved.Load(); err != nil && *err != nil {
		s.Problems = append(s.Problems, (*err).Error())
	}
	return s
}

func statusCommand() *cobra.Command {
	var runDir string
	cmd := &cobra.Command{
		Use: "status", Short: "Show what this gateway admits, and its connections", Args: cobra.NoArgs,
		Long: `Show this gateway's connection to the control plane, its connections, why others were
refused, and one line a service with its ready pods.

Exit code 1 when it is not connected to the control plane, does not know its routes
from there, is ending, or has a problem.`,
		Example: "  gateway status\n  gateway status -o json | jq '.connections.refused'",
	}
	cmd.Flags().StringVar(&runDir, "run-dir", defaultRunDir, "folder with the gateway's admin socket")
	format := cli.AddFormat(cmd, "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s gatewayStatus
		if err := cli.Ask(cmd.Context(), "gateway", adminSocket(runDir), "GET", "/status", &s); err != nil {
			return err
		}
		if err := format.Print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, s) }); err != nil {
			return err
		}
		if !s.healthy() {
			return cli.Found("")
		}
		return nil
	}
	return cmd
}

func printStatus(w io.Writer, s gatewayStatus) {
	age := func(t time.Time) time.Duration { return max(s.At.Sub(t), 0).Round(time.Second) }
	fmt.Fprintf(w, "gateway:\t%s/%s, version %s, up %v\n", s.Cluster, s.Name, s.Version, age(s.Started))
	var addrs []string
	for _, a := range s.Addresses {
		addrs = append(addrs, a.String())
	}
	fmt.Fprintf(w, "reached at:\t%s\n", cmp.Or(strings.Join(addrs, ", "), "not told to the control plane"))
	fmt.Fprintf(w, "listening:\t%s\n", strings.Join(s.Listening, ", "))
	c := s.ControlPlane
	switch {
	case s.Draining:
		fmt.Fprintf(w, "ending:\tthe control plane was left, and connections end\n")
	case c.Connected:
		fmt.Fprintf(w, "control plane:\t%s connected for %v\n", c.Address, age(*c.Since))
	case c.Since == nil:
		fmt.Fprintf(w, "control plane:\t%s connecting\n", c.Address)
	default:
		fmt.Fprintf(w, "control plane:\t%s away for %v (routes stay as they are): %s\n", c.Address, age(*c.Since), c.Error)
	}
	if c.CertificateUntil != nil {
		fmt.Fprintf(w, "certificate:\tuntil %s\n", c.CertificateUntil.Format(time.RFC3339))
	}
	switch s.RoutesFrom {
	case routesNone:
		fmt.Fprintf(w, "routes:\tnot known yet; nothing is admitted until they are\n")
	case routesDisk:
		fmt.Fprintf(w, "routes:\tas they were last known\n")
	}
	k := s.Connections
	fmt.Fprintf(w, "connections:\t%d active, %d waiting, %d admitted so far\n", k.Active, k.Waiting, k.Admitted)
	for _, r := range slices.Sorted(maps.Keys(k.Refused)) {
		if n := k.Refused[r]; n > 0 {
			fmt.Fprintf(w, "refused:\t%d %s%s\n", n, r, hint(r))
		}
	}
	if k.ConnectFailures > 0 {
		fmt.Fprintf(w, "failed connects to pods:\t%d\n", k.ConnectFailures)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "problem:\t%s\n", p)
	}
	if len(s.Services) == 0 {
		fmt.Fprintln(w, "no services")
		return
	}
	fmt.Fprintln(w, "\nSERVICE\tPODS")
	for _, v := range s.Services {
		var pods []string
		for _, p := range v.Pods {
			pods = append(pods, p.String())
		}
		fmt.Fprintf(w, "%s\t%s\n", serviceName(v.ServerName), cmp.Or(strings.Join(pods, ","), "none ready"))
	}
}

// hint says what to do about clients that are refused for a reason that an
// operator can do something about.
func hint(r gateway.Reason) string {
	switch r {
	case gateway.NoSNI:
		return " (gRPC clients need GRPC_EXPERIMENTAL_XDS_SNI=true in their environment)"
	case gateway.TooMany:
		return " (see --max-connections)"
	default:
		return ""
	}
}

// serviceName writes a server name as people do: HOST:PORT.
func serviceName(sni string) string {
	port, host, err := build.ParseSNI(sni)
	if err != nil {
		return sni
	}
	return fmt.Sprintf("%s:%d", host, port)
}
