package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/lab"
)

func (a *app) cutCommand() *cobra.Command {
	return a.pairCommand(&cobra.Command{
		Use:   "cut A B",
		Short: "Drop packets between two nodes, or a node and a gateway",
		Long: `cut drops UDP between two nodes in the underlay, and so any tunnel between them;
where one of the two is a gateway, it drops everything between them. The rules are
in a router; restarts of agents do not matter to them.`,
		Example: "  lab cut east/n1 west/n1\n  lab cut --one-way east/n1 west/n1\n  lab cut east/n1 gateway/west/gw1",
	}, (*lab.Lab).Cut)
}

func (a *app) healCommand() *cobra.Command {
	return a.pairCommand(&cobra.Command{
		Use:     "heal A B",
		Short:   "Take back what cut did between two hosts",
		Example: "  lab heal east/n1 west/n1",
	}, (*lab.Lab).Heal)
}

func (a *app) pairCommand(cmd *cobra.Command, do func(l *lab.Lab, ctx context.Context, from, to string, oneWay bool) error) *cobra.Command {
	var oneWay bool
	cmd.Args = cobra.ExactArgs(2)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := a.open()
		if err != nil {
			return err
		}
		return do(l, cmd.Context(), args[0], args[1], oneWay)
	}
	cmd.Flags().BoolVar(&oneWay, "one-way", false, "only from A to B")
	return cmd
}

func (a *app) killCommand() *cobra.Command {
	return a.processCommand("kill", "End a process at once (SIGKILL)", (*lab.Lab).Kill)
}

func (a *app) restartCommand() *cobra.Command {
	return a.processCommand("restart", "End a process and have it started again", (*lab.Lab).Restart)
}

func (a *app) processCommand(verb, short string, do func(l *lab.Lab, ctx context.Context, process, host string) error) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " agent NODE | device NODE | pod POD | gateway GATEWAY | controlplane",
		Short: short,
		Example: fmt.Sprintf("  lab %[1]s agent east/n1\n  lab %[1]s pod east/n1/p1\n  lab %[1]s gateway gateway/east/gw1\n  lab %[1]s controlplane",
			verb),
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			host := ""
			switch wantsHost := args[0] != lab.ControlPlane; {
			case wantsHost && len(args) == 2:
				host = args[1]
			case wantsHost:
				return fmt.Errorf("say of which host: lab %s %s HOST", verb, args[0])
			case len(args) == 2:
				return fmt.Errorf("there is one control plane: lab %s controlplane", verb)
			}
			l, err := a.open()
			if err != nil {
				return err
			}
			return do(l, cmd.Context(), args[0], host)
		},
	}
}
