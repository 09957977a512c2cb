package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
)

func runCommand() *cobra.Command {
	var o options
	var addresses, listen []string
	var ports, standby string
	cmd := &cobra.Command{
		Use: "run", Short: "Run a gateway of a cluster", Args: cobra.NoArgs,
		Long: `Run a gateway of a cluster. It joins with the token once, and from then on with its
own certificate. What it admits, the exported services of its cluster and their
ready pods, it is told by the control plane; while that is away it goes on with
what it was last told, also after a restart.

On SIGTERM it leaves the control plane, goes on accepting for --drain-delay while
clients learn that it goes, then stops, and ends when its connections have ended,
or after --drain-time. A second signal ends it at once.`,
		Example: `  gateway run --cluster east --name gw1 --control-plane mesh.example:15012 --token-file /etc/flatmesh/token --address 192.0.2.10
  gateway run --cluster east --name gw1 --control-plane 192.0.2.7:15012 --address 192.0.2.10 --address 2001:db8::10 --listen-address 10.0.0.4`,
	}
	f := cmd.Flags()
	f.StringVar(&o.cluster, "cluster", "", "the cluster that it admits into (required)")
	f.StringVar(&o.name, "name", "", "this gateway's name in its cluster (required)")
	f.StringVar(&o.controlPlane, "control-plane", "", "the control plane, HOST:PORT (required)")
	f.StringVar(&o.tokenFile, "token-file", "", "file with a join token for this gateway; needed until it has a certificate")
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir, "folder for the certificate and the last known routes")
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "folder for the admin socket")
	f.StringSliceVar(&addresses, "address", nil, "IP address at which clients of other clusters reach this gateway, as it is declared in Kubernetes; may be repeated")
	f.StringSliceVar(&listen, "listen-address", nil, "IP address to listen on; may be repeated (default: all, IPv4 and IPv6)")
	f.StringVar(&ports, "ports", "15443-15446", "TCP ports that serve")
	f.StringVar(&standby, "standby-ports", "15447-15450", "TCP ports for clients that have no other way left; empty for none")
	f.StringVar(&o.http, "http", "127.0.0.1:15115", "address for metrics and health; empty for none")
	f.DurationVar(&o.drainDelay, "drain-delay", 3*time.Second, "how long to go on accepting at the end, until clients have learned that it goes")
	f.DurationVar(&o.drainTime, "drain-time", 30*time.Second, "how long connections have to end by themselves after that")
	f.IntVar(&o.maxConnections, "max-connections", 16384, "open connections beyond which new ones are refused")
	f.DurationVar(&o.helloTimeout, "hello-timeout", 5*time.Second, "how long a client may take to say which service it wants")
	f.DurationVar(&o.connectTimeout, "connect-timeout", 2*time.Second, "how long a pod may take to accept, before the next is tried")
	f.DurationVar(&o.idleTimeout, "idle-timeout", time.Hour, "how long a connection may carry nothing before it is ended")
	logger := cli.AddLog(cmd)
	for _, name := range []string{"cluster", "name", "control-plane"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // a flag that is not there: a mistake in the lines above
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		o.version, o.now = cli.Version(), time.Now
		if o.log, err = logger(); err != nil {
			return err
		}
		if o.addresses, err = parseAddrs(addresses); err != nil {
			return fmt.Errorf("--address %w", err)
		}
		if o.listen, err = parseAddrs(listen); err != nil {
			return fmt.Errorf("--listen-address %w", err)
		}
		if o.ports, err = parsePorts(ports); err != nil {
			return fmt.Errorf("--ports %w", err)
		}
		if o.standby, err = parsePorts(standby); err != nil {
			return fmt.Errorf("--standby-ports %w", err)
		}
		return run(cmd.Context(), o)
	}
	return cmd
}
