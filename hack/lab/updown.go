package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/lab"
)

func (a *app) upCommand() *cobra.Command {
	var file, bin string
	o := lab.Options{Log: progress}
	cmd := &cobra.Command{
		Use:   "up -f FILE",
		Short: "Make a lab and leave it running",
		Long: `up makes the lab that a topology file describes and returns when all agents are
registered and all tunnels up that should be. A failed or interrupted up removes
all that it made.`,
		Example: `  lab up -f hack/lab/examples/two-clusters.yaml
  lab up -f big.yaml --name big --wait 3m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := lab.LoadTopology(file)
			if err != nil {
				return err
			}
			if o.Bin, err = binFolder(bin); err != nil {
				return err
			}
			o.Name = a.name
			began := time.Now()
			if _, err := lab.Up(cmd.Context(), t, o); err != nil {
				return err
			}
			progress("lab %s is up after %v", o.Name, time.Since(began).Round(time.Millisecond))
			return nil
		},
	}
	fileFlag(cmd, &file)
	f := cmd.Flags()
	f.DurationVar(&o.Wait, "wait", time.Minute, "how long to wait until all is up; 0 returns at once")
	f.BoolVar(&o.Keep, "keep", false, "leave the lab running when not all came up in time")
	f.BoolVar(&o.NoAgents, "no-agents", false, "hosts and pods alone, without control plane and agents")
	f.StringVar(&bin, "bin", "", "folder with the programs agent, controlplane, gateway, lab and meshecho (default: that of this program)")
	return cmd
}

func fileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "", "topology file")
	// It fails for a flag that is not there alone.
	_ = cmd.MarkFlagRequired("file")
}

func binFolder(bin string) (string, error) {
	if bin != "" {
		return bin, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program's folder (give it with --bin): %w", err)
	}
	return filepath.Dir(exe), nil
}

func (a *app) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End a lab and remove all of it",
		Long: `down ends every process in the lab's hosts and removes all that the lab made. It
goes by what is on the machine, so it also clears up after a command that was
killed. A lab that is not there is no error.`,
		Example: "  lab down\n  lab down --name big",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := lab.Down(cmd.Context(), a.name)
			if err != nil {
				return err
			}
			if r == (lab.Removed{}) {
				progress("there was no lab %s", a.name)
				return nil
			}
			progress("lab %s is down: %d namespaces removed, %d processes ended", a.name, r.Namespaces, r.Processes)
			return nil
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  lab version",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return errors.New("this program was built without version information")
			}
			fmt.Fprintln(cmd.OutOrStdout(), "lab", info.Main.Version, info.GoVersion)
			return nil
		},
	}
}
