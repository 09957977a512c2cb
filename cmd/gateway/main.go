// Command gateway admits traffic from other clusters into its own: it passes TLS
// connections on to pods by their server name (SNI), for clients whose nodes have
// no tunnel to those pods' nodes.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
)

func main() {
	root := &cobra.Command{
		Use:   "gateway",
		Short: "The flatmesh gateway of a cluster",
		Long: `The flatmesh gateway of a cluster: admits TLS connections from other clusters to
the pods of its own, by their server name. TLS runs end to end between client and
pod; the gateway holds no keys of theirs.

Exit codes: 0 good, 1 the check found something wrong, 2 bad usage or could not run.`,
		Example: "  gateway run --cluster east --name gw1 --control-plane mesh.example:15012 --token-file /etc/flatmesh/token --address 192.0.2.10\n  gateway status",
	}
	root.AddCommand(runCommand(), statusCommand(), cli.VersionCommand("gateway"))
	os.Exit(cli.Main(root, os.Args[1:]))
}
