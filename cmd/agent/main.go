// Command agent is the node agent: it builds WireGuard tunnels to the nodes of
// other clusters, probes them and reports what it sees.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
)

func main() {
	root := &cobra.Command{
		Use:   "agent",
		Short: "The flatmesh node agent",
		Long: `The flatmesh node agent: builds WireGuard tunnels from this node to the nodes of
other clusters, so that pods reach each other at their own IP addresses.

Exit codes: 0 good, 1 the check found something wrong, 2 bad usage or could not run.`,
		Example: "  agent run --cluster east --node n1 --control-plane mesh.example:15012 --token-file /etc/flatmesh/token\n  agent status",
	}
	root.AddCommand(runCommand(), deviceCommand(), statusCommand(), pathCommand(), cleanupCommand(), cli.VersionCommand("agent"))
	os.Exit(cli.Main(root, os.Args[1:]))
}
