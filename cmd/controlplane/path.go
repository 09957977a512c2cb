package main

import (
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/peering"
)

func pathCommand() *cobra.Command {
	var stateDir, from string
	cmd := &cobra.Command{
		Use: "path SERVICE|POD-IP", Short: "Show how a node reaches a service or a pod, and why", Args: cobra.ExactArgs(1),
		Long: `Show how the clients on a node reach a service, by any of its names and with or
without a port, or a pod by its address: directly, through a gateway, or not at
all, one line an endpoint, each with its reason.

Exit code 1 when an endpoint is withheld, or there is none.`,
		Example: "  controlplane path --from east/n1 echo.demo:80\n  controlplane path --from east/n1 10.2.1.5 -o json",
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", defaultStateDir, "the control plane's state folder")
	cmd.Flags().StringVar(&from, "from", "", "the client's node, CLUSTER/NODE (required)")
	if err := cmd.MarkFlagRequired("from"); err != nil {
		panic(err) // a flag that is not there: a mistake in the lines above
	}
	format := cli.AddFormat(cmd, "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var paths []peering.PathAnswer
		query := "/path?" + url.Values{"from": {from}, "to": {args[0]}}.Encode()
		if err := cli.Ask(cmd.Context(), "control plane", controlplane.AdminSocket(stateDir), "GET", query, &paths); err != nil {
			return err
		}
		if err := format.Print(cmd.OutOrStdout(), paths, func(w io.Writer) { peering.WritePaths(w, paths) }); err != nil {
			return err
		}
		switch {
		case len(paths) == 0:
			return cli.Found(fmt.Sprintf("%s has no endpoints", args[0]))
		case !peering.AllServed(paths):
			return cli.Found("")
		}
		return nil
	}
	return cmd
}
