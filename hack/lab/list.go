package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/lab"
)

func (a *app) listCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:     "ls",
		Short:   "List the hosts of a lab and what runs in them",
		Example: "  lab ls\n  lab ls -o json | jq -r '.[] | select(.kind==\"pod\") | .addresses[0]'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			hosts, err := l.Hosts()
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), hosts, func(w io.Writer) error { return hostTable(w, hosts) })
		},
	})
}

func hostTable(w io.Writer, hosts []lab.Host) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "HOST\tKIND\tADDRESSES\tNAMESPACE\tPROCESSES")
	for _, h := range hosts {
		var ps []string
		for _, p := range h.Processes {
			if p.Alive {
				ps = append(ps, fmt.Sprintf("%s(%d)", p.Name, p.PID))
			} else {
				ps = append(ps, p.Name+"(ended)")
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", h.Name, h.Kind, orDash(join(h.Addresses)), h.Namespace, orDash(strings.Join(ps, " ")))
	}
	return tw.Flush()
}

func join[T fmt.Stringer](list []T) string {
	ss := make([]string, len(list))
	for i, v := range list {
		ss[i] = v.String()
	}
	return strings.Join(ss, ",")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) statusCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:   "status",
		Short: "Sum up a lab: clusters, tunnels, conflicts, cuts",
		Long: `status sums up a lab. The exit code is 1 when a process that should run does not,
or a tunnel that should be up is not.`,
		Example: "  lab status\n  lab status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			s, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.print(cmd.OutOrStdout(), s, func(w io.Writer) error { return summary(w, s) }); err != nil {
				return err
			}
			if !s.OK() {
				return errWrong
			}
			return nil
		},
	})
}

func summary(w io.Writer, s lab.Status) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "CLUSTER\tNETWORK\tPOD RANGES\tNODES\tAGENTS\tPODS\tGATEWAYS\tNAT\tMTU")
	for _, c := range s.Clusters {
		nat := "-"
		if c.NAT {
			nat = "yes"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%d\n", c.Name, c.Network, join(c.PodCIDRs), c.Nodes, c.AgentsAlive, c.Nodes*c.PodsPerNode, c.Gateways, nat, c.MTU)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if s.Mesh != nil {
		fmt.Fprintf(w, "mesh: %s\n", s.Mesh)
		for _, c := range s.Mesh.Conflicts {
			fmt.Fprintf(w, "conflict: %v\n", c)
		}
	}
	if s.MeshError != "" {
		fmt.Fprintf(w, "mesh: %s\n", s.MeshError)
	}
	for _, c := range s.Cuts {
		fmt.Fprintf(w, "cut: %s to %s\n", c.From, c.To)
	}
	for _, m := range s.Missing {
		fmt.Fprintf(w, "does not run: %s\n", m)
	}
	return nil
}
