package main

import (
	"cmp"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func statusCommand() *cobra.Command {
	var stateDir string
	cmd := &cobra.Command{
		Use: "status", Short: "Show clusters, nodes, tunnels and conflicts", Args: cobra.NoArgs,
		Long: `Show what the running control plane knows: clusters and their sources, nodes,
tunnels, and which address ranges conflict.

Exit code 1 when a source or a node's prefix is refused, a removal is held, state
cannot be written, or an expected tunnel is not up.`,
		Example: "  controlplane status\n  controlplane status -o wide\n  controlplane status -o json | jq .tunnels",
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", defaultStateDir, "the control plane's state folder")
	format := cli.AddFormat(cmd, "wide", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s controlplane.Status
		if err := cli.Ask(cmd.Context(), "control plane", controlplane.AdminSocket(stateDir), "GET", "/status", &s); err != nil {
			return err
		}
		if err := format.Print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, s, format.String() == "wide") }); err != nil {
			return err
		}
		if !s.Healthy() {
			return cli.Found("")
		}
		return nil
	}
	return cmd
}

func printStatus(w io.Writer, s controlplane.Status, wide bool) {
	fmt.Fprintf(w, "mesh:\t%s, control plane %s, tunnel ranges %s\n", s.Mesh, s.Version, join(s.TunnelRanges))
	fmt.Fprintf(w, "nodes:\t%d, %d registered, %d connected\n", s.Nodes.Total, s.Nodes.Registered, s.Nodes.Connected)
	fmt.Fprintf(w, "tunnels:\t%d expected, %d up, %d down, %d unknown\n", s.Tunnels.Expected, s.Tunnels.Up, s.Tunnels.Down, s.Tunnels.Unknown)
	if s.Unsaved != "" {
		fmt.Fprintf(w, "problem:\tstate cannot be written: %s\n", s.Unsaved)
	}
	for _, e := range s.Sources {
		fmt.Fprintf(w, "source refused:\t%s: %s\n", e.Source, strings.ReplaceAll(e.Error, "\n", "; "))
	}
	for _, c := range s.Conflicts {
		if c.Effect != mesh.Listed || wide {
			fmt.Fprintf(w, "conflict:\t%v\n", c)
		}
	}
	for _, n := range s.NodeList {
		for _, r := range n.Refused {
			fmt.Fprintf(w, "prefix refused:\t%v of %v, %s: %s\n", r.Prefix, n.Node, r.Reason, r.Detail)
		}
		if len(n.Prefixes)+len(n.Refused) == 0 {
			fmt.Fprintf(w, "no prefix:\t%v has no podCIDRs, so no other cluster reaches its pods\n", n.Node)
		}
	}
	for _, c := range s.Clusters {
		if c.HeldUntil != nil {
			fmt.Fprintf(w, "held:\tnodes %s of %s are no longer in %s; they stay until %s or: controlplane confirm %s\n",
				strings.Join(c.Held, ", "), c.Name, c.Source, c.HeldUntil.Format("15:04:05"), c.Name)
		}
	}
	for _, c := range s.Clusters {
		if c.WithheldUntil != nil {
			fmt.Fprintf(w, "held:\t%d services and slices of %s would go all at once; they stay until %s or: controlplane confirm %s\n",
				c.Withheld, c.Name, c.WithheldUntil.Format("15:04:05"), c.Name)
		}
		for i, p := range c.Problems {
			if i == 5 && !wide {
				fmt.Fprintf(w, "problem:\t%s: and more; see -o wide\n", c.Name)
				break
			}
			fmt.Fprintf(w, "problem:\t%s: %s\n", c.Name, p)
		}
		for _, g := range c.Gateways {
			if g.Lost {
				fmt.Fprintf(w, "gateway lost:\t%v of %s is not connected; it is left out while another is\n", g.Addr, c.Name)
			}
		}
	}
	fmt.Fprintln(w, "\nCLUSTER\tNETWORK\tNODES\tREGISTERED\tSERVICES\tGATEWAYS\tPOD RANGES\tSERVICE RANGES\tNODE RANGES\tSOURCE")
	for _, c := range s.Clusters {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", c.Name, c.Network, c.Nodes, c.Registered, c.Services, len(c.Gateways), join(c.PodCIDRs), join(c.ServiceCIDRs), join(c.NodeCIDRs), c.Source)
	}
	if !wide {
		return
	}
	fmt.Fprintln(w, "\nNODE\tCONNECTED\tUP\tDOWN\tUNKNOWN\tTUNNEL ADDRESS\tPODS\tENDPOINTS\tDEVICE\tVERSION\tKEY")
	for _, n := range s.NodeList {
		fmt.Fprintf(w, "%v\t%v\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%v\n", n.Node, n.Connected, n.Up, n.Down, n.Unknown,
			join(n.TunnelAddrs), join(n.Prefixes), join(n.Endpoints), n.Device, n.Version, n.Key)
	}
}

func join[T fmt.Stringer](in []T) string {
	out := make([]string, 0, len(in))
	for _, v := range in {
		out = append(out, v.String())
	}
	return cmp.Or(strings.Join(out, ","), "-")
}

func confirmCommand() *cobra.Command {
	var stateDir string
	cmd := &cobra.Command{
		Use: "confirm CLUSTER", Short: "Apply a cluster's held removals at once", Args: cobra.ExactArgs(1),
		Long: `Apply a cluster's held removals at once. Where a source suddenly lacks all of a
cluster's nodes, or many of them, they are held for a while: it may be the source
that is broken. A cluster whose folder is gone is removed with its claims.`,
		Example: "  controlplane confirm west",
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", defaultStateDir, "the control plane's state folder")
	format := cli.AddFormat(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var c controlplane.Confirmed
		if err := cli.Ask(cmd.Context(), "control plane", controlplane.AdminSocket(stateDir), "POST", "/confirm/"+url.PathEscape(args[0]), &c); err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), c, func(w io.Writer) {
			for _, n := range c.Removed {
				fmt.Fprintf(w, "removed node %s/%s\n", args[0], n)
			}
			if len(c.Removed) == 0 {
				fmt.Fprintln(w, "nothing was held")
			}
		})
	}
	return cmd
}
