package main

import (
	"fmt"
	"io"
	"net/url"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/peering"
)

func pathCommand() *cobra.Command {
	var runDir string
	cmd := &cobra.Command{
		Use: "path SERVICE|POD-IP", Short: "Show how this node reaches a service or a pod, and why", Args: cobra.ExactArgs(1),
		Long: `Show how the clients on this node reach a service, by any of its names and with
or without a port, or a pod by its address: directly, through a gateway, or not
at all, one line an endpoint, each with its reason.

While the control plane is away it shows what the node's clients are served from
the agent's cache. Exit code 1 when an endpoint is withheld, or there is none.`,
		Example: "  agent path echo.demo:80\n  agent path 10.2.1.5 -o json | jq '.paths[].reason'",
	}
	cmd.Flags().StringVar(&runDir, "run-dir", defaultRunDir, "folder with the agent's admin socket")
	format := cli.AddFormat(cmd, "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var p agent.Paths
		query := "/path?" + url.Values{"to": {args[0]}}.Encode()
		if err := cli.Ask(cmd.Context(), "agent", filepath.Join(runDir, "agent.sock"), "GET", query, &p); err != nil {
			return err
		}
		err := format.Print(cmd.OutOrStdout(), p, func(w io.Writer) {
			if p.Note != "" {
				fmt.Fprintf(w, "note:\t%s\n\n", p.Note)
			}
			peering.WritePaths(w, p.Paths)
		})
		switch {
		case err != nil:
			return err
		case len(p.Paths) == 0:
			return cli.Found(fmt.Sprintf("%s has no endpoints", args[0]))
		case !peering.AllServed(p.Paths):
			return cli.Found("")
		}
		return nil
	}
	return cmd
}
