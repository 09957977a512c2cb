package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func checkCommand() *cobra.Command {
	var meshName, supernet string
	var tunnels []string
	var bits int
	cmd := &cobra.Command{
		Use: "check FOLDER...", Short: "Check cluster folders for overlapping address ranges", Args: cobra.ArbitraryArgs,
		Long: `Check cluster folders for overlapping address ranges, as the control plane would,
but offline: for a CI job that runs before a cluster is created. The first folder
has the oldest claims. A folder that holds cluster folders stands for all of them.

With --supernet and --prefix-length it also proposes the next free range.

Exit codes: 0 no conflict (harmless overlaps are listed), 1 a conflict or a refused
prefix, 2 a folder that cannot be read.`,
		Example: `  controlplane check clusters/east clusters/west
  controlplane check clusters -o json
  controlplane check clusters --supernet 10.0.0.0/8 --prefix-length 16`,
	}
	f := cmd.Flags()
	f.StringVar(&meshName, "mesh", defaultMesh, "name of the mesh, for its IPv6 tunnel range")
	f.StringSliceVar(&tunnels, "tunnel-cidr", nil, "range of tunnel addresses, at most one of each family (default "+defaultTunnel+" and an IPv6 range derived from the mesh's name)")
	f.StringVar(&supernet, "supernet", "", "propose a free range inside this one")
	f.IntVar(&bits, "prefix-length", 0, "length of the range to propose")
	format := cli.AddFormat(cmd, "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && supernet == "" {
			return errors.New("name at least one cluster folder; see: controlplane check --help")
		}
		ranges, err := tunnelRanges(tunnels, meshName)
		if err != nil {
			return err
		}
		folders, err := clusterFolders(args)
		if err != nil {
			return err
		}
		checked, err := controlplane.Check(folders, ranges)
		if err != nil {
			return err
		}
		if supernet != "" || bits != 0 {
			super, err := netip.ParsePrefix(supernet)
			if err != nil {
				return fmt.Errorf("--supernet %q: want a range like 10.0.0.0/8", supernet)
			}
			if err := checked.Propose(super, bits, ranges); err != nil {
				return err
			}
		}
		if err := format.Print(cmd.OutOrStdout(), checked, func(w io.Writer) { printChecked(w, checked) }); err != nil {
			return err
		}
		if checked.Bad() > 0 {
			return cli.Found("")
		}
		return nil
	}
	return cmd
}

// clusterFolders replaces folders that are no cluster but hold some by those.
func clusterFolders(args []string) ([]string, error) {
	var out []string
	for _, folder := range args {
		if _, err := os.Stat(filepath.Join(folder, "cluster.yaml")); err == nil {
			out = append(out, folder)
			continue
		}
		inside, err := filepath.Glob(filepath.Join(folder, "*", "cluster.yaml"))
		if err != nil {
			return nil, err
		}
		if len(inside) == 0 {
			return nil, fmt.Errorf("%s is no cluster folder: neither it nor a folder in it has a cluster.yaml", folder)
		}
		for _, f := range inside {
			out = append(out, filepath.Dir(f))
		}
	}
	return out, nil
}

func printChecked(w io.Writer, c controlplane.Checked) {
	for _, x := range c.Conflicts {
		kind := "conflict"
		if x.Effect == mesh.Listed {
			kind = "harmless"
		}
		fmt.Fprintf(w, "%s:\t%v\n", kind, x)
	}
	for _, r := range c.Refused {
		fmt.Fprintf(w, "refused:\t%v of %v, %s: %s\n", r.Prefix, r.Node, r.Reason, r.Detail)
	}
	switch bad := c.Bad(); {
	case len(c.Clusters) == 0:
	case bad == 0:
		fmt.Fprintf(w, "%d clusters, no conflict\n", len(c.Clusters))
	default:
		fmt.Fprintf(w, "%d clusters, %d to look at\n", len(c.Clusters), bad)
	}
	if c.Proposal != nil {
		fmt.Fprintf(w, "free:\t%v\n", *c.Proposal)
	}
}
