package main

import (
	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/lab"
)

func (a *app) addCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "add",
		Short:   "Add clusters, a node, a gateway or a service to a lab",
		Example: "  lab add cluster -f more.yaml\n  lab add node east\n  lab add service shop --port 80",
	}
	var file string
	cluster := &cobra.Command{
		Use:   "cluster -f FILE",
		Short: "Add the clusters of a topology file",
		Long: `add cluster adds those clusters of a topology file that the lab does not have. It
does not wait for their tunnels; "lab status" shows how they come up.`,
		Example: "  lab add cluster -f hack/lab/examples/three-clusters.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := lab.LoadTopology(file)
			if err != nil {
				return err
			}
			l, err := a.open()
			if err != nil {
				return err
			}
			added, err := l.AddClusters(cmd.Context(), t)
			if err != nil {
				return err
			}
			if len(added) == 0 {
				progress("lab %s has all clusters of %s already", a.name, file)
			}
			for _, name := range added {
				progress("cluster %s added", name)
			}
			return nil
		},
	}
	fileFlag(cluster, &file)
	cmd.AddCommand(cluster, &cobra.Command{
		Use:     "node CLUSTER[/NODE]",
		Short:   "Add a node, the next one unless named",
		Example: "  lab add node east\n  lab add node east/n7",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			host, err := l.AddNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			progress("node %s added", host)
			return nil
		},
	}, &cobra.Command{
		Use:     "gateway CLUSTER[/NAME]",
		Short:   "Add a gateway, the next one unless named",
		Example: "  lab add gateway east\n  lab add gateway east/gw3",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			host, err := l.AddGateway(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			progress("%s added", host)
			return nil
		},
	}, a.addServiceCommand())
	return cmd
}

func (a *app) removeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove",
		Short:   "Remove a cluster, a node, a gateway or a service from a lab",
		Example: "  lab remove cluster west\n  lab remove node east/n2",
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "cluster NAME",
		Short:   "Remove a cluster and all in it",
		Example: "  lab remove cluster west",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			return l.RemoveCluster(cmd.Context(), args[0])
		},
	}, &cobra.Command{
		Use:     "node CLUSTER/NODE",
		Short:   "Remove a node and its pods",
		Example: "  lab remove node east/n2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			return l.RemoveNode(cmd.Context(), args[0])
		},
	}, &cobra.Command{
		Use:     "gateway CLUSTER/NAME",
		Short:   "Remove a gateway once its process has ended",
		Example: "  lab remove gateway east/gw1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			return l.RemoveGateway(cmd.Context(), args[0])
		},
	}, &cobra.Command{
		Use:     "service [NAMESPACE/]NAME",
		Short:   "Remove a service from all clusters",
		Example: "  lab remove service echo",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			return l.RemoveService(cmd.Context(), args[0])
		},
	})
	return cmd
}
