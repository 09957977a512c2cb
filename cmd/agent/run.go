package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/wg"
	"github.com/flatmesh/flatmesh/pkg/wg/userspace"
)

func runCommand() *cobra.Command {
	var o agent.Options
	var cluster, node, mode, reset string
	var endpoints []string
	cmd := &cobra.Command{
		Use: "run", Short: "Run the agent of this node", Args: cobra.NoArgs,
		Long: `Run the agent of this node. It joins with the token once, and from then on with
its own certificate. Tunnels stay when it ends; "agent cleanup" removes them.`,
		Example: `  agent run --cluster east --node n1 --control-plane mesh.example:15012 --token-file /etc/flatmesh/token
  agent run --cluster east --node n1 --control-plane 192.0.2.7:15012 --endpoint 198.51.100.4:51830`,
	}
	f := cmd.Flags()
	f.StringVar(&cluster, "cluster", "", "this node's cluster (required)")
	f.StringVar(&node, "node", "", "this node's name in Kubernetes (required)")
	f.StringVar(&o.ControlPlane, "control-plane", "", "the control plane, HOST:PORT (required)")
	f.StringVar(&o.TokenFile, "token-file", "", "file with a join token; needed until the node has a certificate")
	f.Uint16Var(&o.ListenPort, "listen-port", 51830, "UDP port of WireGuard")
	f.StringSliceVar(&endpoints, "endpoint", nil, "IP:PORT at which other nodes reach this node's WireGuard, best first (default: the address towards the control plane)")
	f.StringVar(&mode, "device", string(wg.ModeAuto), "WireGuard device: auto (the kernel's where there is one), kernel or userspace")
	f.IntVar(&o.MTU, "mtu", 0, "MTU of the interface; 0 takes the underlay's less 80")
	f.StringVar(&o.HTTP, "http", "127.0.0.1:15114", "address for metrics and health; empty for none")
	f.StringVar(&reset, "reset-after", "2s", "how long a tunnel is down before packets into it are refused, so that connections over it end; never for not at all")
	f.DurationVar(&o.Resync, "resync", 0, "how often the kernel is compared with the plan though nothing happened (default 15s)")
	addHostFlags(f, &o)
	logger := cli.AddLog(cmd)
	for _, name := range []string{"cluster", "node", "control-plane"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // a flag that is not there: a mistake in the lines above
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		o.Node = mesh.NodeID{Cluster: cluster, Name: node}
		o.Version = cli.Version()
		if o.Log, err = logger(); err != nil {
			return err
		}
		if o.DeviceMode, err = wg.ParseMode(mode); err != nil {
			return fmt.Errorf("--device: %w", err)
		}
		if o.ResetAfter, err = resetAfter(reset); err != nil {
			return err
		}
		for _, e := range endpoints {
			ap, err := netip.ParseAddrPort(e)
			if err != nil {
				return fmt.Errorf("--endpoint %q: want IP:PORT", e)
			}
			o.Endpoints = append(o.Endpoints, ap)
		}
		if o.Executable, err = os.Executable(); err != nil {
			return err
		}
		return agent.Run(cmd.Context(), o)
	}
	return cmd
}

// resetAfter reads --reset-after; negative stands for never.
func resetAfter(s string) (time.Duration, error) {
	if s == "never" {
		return -1, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("--reset-after %q: want a duration such as 2s, or never", s)
	}
	return d, nil
}

func deviceCommand() *cobra.Command {
	var o userspace.Options
	cmd := &cobra.Command{
		Use: "device", Short: "Run the userspace WireGuard device of this node", Args: cobra.NoArgs,
		Long: `Run the userspace WireGuard device of this node, for kernels that have no
WireGuard. "agent run" starts it where it is needed, in a process of its own, so
that neither one's restart harms the other. It is configured through its UAPI
socket in /var/run/wireguard and holds no key of its own.`,
		Example: "  agent device --interface flatmesh0 --mtu 1420",
	}
	cmd.Flags().StringVar(&o.Name, "interface", defaultInterface, "name of the interface")
	cmd.Flags().IntVar(&o.MTU, "mtu", 1420, "MTU of the interface")
	logger := cli.AddLog(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := logger()
		if err != nil {
			return err
		}
		// A terminal that closes must not take the tunnels down.
		signal.Ignore(syscall.SIGHUP)
		err = userspace.Run(cmd.Context(), o, log)
		if err != nil {
			// Whoever started it reads the log.
			log.Error("the device ends", "err", err)
		}
		return err
	}
	return cmd
}

func cleanupCommand() *cobra.Command {
	var o agent.Options
	var keep bool
	cmd := &cobra.Command{
		Use: "cleanup", Short: "Remove everything that the agent made on this node", Args: cobra.NoArgs,
		Long: `Remove everything that the agent ever made on this node, and nothing else: its
routes and rules, the interface with its device process, the sockets, and its
state. Stop the agent first.

A node that joins again after its state was removed has a new key. With a token
for the whole cluster it may do so ten minutes after its agent was last seen; with
one for this node, at once.`,
		Example: "  agent cleanup\n  agent cleanup --keep-state",
	}
	cmd.Flags().BoolVar(&keep, "keep-state", false, "keep the key, the certificate and the peers, for a later agent of the same node")
	addHostFlags(cmd.Flags(), &o)
	format := cli.AddFormat(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		removed, err := agent.Cleanup(cmd.Context(), o, keep)
		if err != nil && len(removed) == 0 {
			return err
		}
		if perr := printRemoved(cmd, format, removed); perr != nil {
			return perr
		}
		return err
	}
	return cmd
}
