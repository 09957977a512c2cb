package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/pki"
)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make join tokens for agents and gateways"}
	cmd.AddCommand(tokenCreateCommand())
	return cmd
}

func tokenCreateCommand() *cobra.Command {
	var stateDir, cluster, node, gateway string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "create", Short: "Make a join token and print it", Args: cobra.NoArgs,
		Long: `Make a join token and print it. An agent needs it once, for its first
certificate. It also pins the mesh's CA, so that the agent needs nothing else.
A token for one node may replace that node's key; one for a cluster may not. One
for a gateway serves that gateway alone.`,
		Example: "  controlplane token create --cluster east > token\n  controlplane token create --cluster east --node n1 --ttl 1h\n  controlplane token create --cluster east --gateway gw1",
	}
	f := cmd.Flags()
	f.StringVar(&stateDir, "state-dir", defaultStateDir, "the control plane's state folder")
	f.StringVar(&cluster, "cluster", "", "the cluster whose agents may join with it (required)")
	f.StringVar(&node, "node", "", "the one node that may join with it (default: any of the cluster)")
	f.StringVar(&gateway, "gateway", "", "the gateway that may join with it, instead of agents")
	cmd.MarkFlagsMutuallyExclusive("node", "gateway")
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "how long it is good")
	if err := cmd.MarkFlagRequired("cluster"); err != nil {
		panic(err) // a flag that is not there: a mistake in the lines above
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		meshName, err := pki.ExistingMesh(controlplane.PKIDir(stateDir))
		if err != nil {
			return err
		}
		a, err := pki.OpenAuthority(controlplane.PKIDir(stateDir), meshName)
		if err != nil {
			return err
		}
		var token string
		if gateway != "" {
			token, err = a.CreateGatewayToken(cluster, gateway, ttl, time.Now())
		} else {
			token, err = a.CreateToken(cluster, node, ttl, time.Now())
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), token)
		return nil
	}
	return cmd
}
