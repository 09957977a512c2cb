// Command controlplane is the central control plane: it watches all clusters,
// refuses overlapping address ranges and tells every agent its peers.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
)

func main() {
	root := &cobra.Command{
		Use:   "controlplane",
		Short: "The flatmesh control plane",
		Long: `The flatmesh control plane: watches all clusters, finds out which address ranges
overlap, and tells the agents of every cluster their peers.

Exit codes: 0 good, 1 the check found something wrong, 2 bad usage or could not run.`,
		Example: "  controlplane run --clusters /etc/flatmesh/clusters\n  controlplane check /etc/flatmesh/clusters/east /etc/flatmesh/clusters/west",
	}
	root.AddCommand(runCommand(), tokenCommand(), checkCommand(), statusCommand(), pathCommand(), confirmCommand(), cli.VersionCommand("controlplane"))
	os.Exit(cli.Main(root, os.Args[1:]))
}
