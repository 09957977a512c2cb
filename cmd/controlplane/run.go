package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/ipam"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/source/dir"
)

const (
	defaultStateDir  = "/var/lib/flatmesh/controlplane"
	defaultMesh      = "flatmesh"
	defaultTunnel    = "198.19.0.0/16" // the upper half of RFC 2544's range: no one's pods
	defaultHold      = 10 * time.Minute
	defaultCertLives = 24 * time.Hour
)

func runCommand() *cobra.Command {
	var o controlplane.Options
	var clusters, export string
	var tunnels []string
	cmd := &cobra.Command{
		Use: "run", Short: "Run the control plane", Args: cobra.NoArgs,
		Long: `Run the control plane. It reads every sub-folder of --clusters as one cluster:
a cluster.yaml with its name, network and address ranges, and files with its
Kubernetes objects. Changes are followed as they come.`,
		Example: "  controlplane run --clusters /etc/flatmesh/clusters\n  controlplane run --clusters ./clusters --state-dir ./state --tunnel-cidr 198.18.0.0/16",
	}
	f := cmd.Flags()
	f.StringVar(&clusters, "clusters", "", "folder of which every sub-folder is one cluster (required)")
	f.StringVar(&o.StateDir, "state-dir", defaultStateDir, "folder for the CA, the store and the admin socket")
	f.StringVar(&o.Mesh, "mesh", defaultMesh, "name of the mesh; certificates and tokens carry it")
	f.StringVar(&o.Listen, "listen", ":15012", "address for agents: gRPC with TLS")
	f.StringVar(&o.HTTP, "http", ":15014", "address for metrics and health, and on loopback for /debug/path; empty for none")
	f.StringSliceVar(&tunnels, "tunnel-cidr", nil, "range of tunnel addresses, at most one of each family (default "+defaultTunnel+" and an IPv6 range derived from the mesh's name)")
	f.DurationVar(&o.RemovalHold, "removal-hold", defaultHold, "how long a removal of all of a cluster's nodes, services or endpoints at once, or of more than max(3, 30 %) of its nodes, is held")
	f.DurationVar(&o.CertificateTTL, "certificate-ttl", defaultCertLives, "how long the certificates of agents, gateways and workloads live")
	f.StringVar(&export, "export", "all", "which services other clusters may use: all, unless flatmesh.io/export says otherwise, or mcs: those with a ServiceExport")
	f.TextVar(&o.Services.DefaultTLS, "default-tls", source.TLSAuto, "which TCP ports speak the mesh's mTLS where flatmesh.io/tls does not say: auto (those with appProtocol grpc), all or none")
	f.BoolVar(&o.ValidateResources, "validate-resources", false, "check deeply whatever is served of services, and withhold what is wrong; costs a multiple of the serving")
	logger := cli.AddLog(cmd)
	if err := cmd.MarkFlagRequired("clusters"); err != nil {
		panic(err) // a flag that is not there: a mistake in the lines above
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.Log, err = logger(); err != nil {
			return err
		}
		switch export {
		case "all":
		case "mcs":
			o.Services.MCS = true
		default:
			return fmt.Errorf("--export %q: want all or mcs", export)
		}
		if o.TunnelRanges, err = tunnelRanges(tunnels, o.Mesh); err != nil {
			return err
		}
		o.Version = cli.Version()
		o.Source = dir.New(clusters, o.Log)
		return controlplane.Run(cmd.Context(), o)
	}
	return cmd
}

func tunnelRanges(given []string, mesh string) ([]netip.Prefix, error) {
	if len(given) == 0 {
		return []netip.Prefix{netip.MustParsePrefix(defaultTunnel), ipam.MeshULA(mesh)}, nil
	}
	var out []netip.Prefix
	for _, s := range given {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("--tunnel-cidr %q: want a range like %s", s, defaultTunnel)
		}
		out = append(out, p)
	}
	return out, nil
}
