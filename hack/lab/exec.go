package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/lab"
)

func (a *app) execCommand() *cobra.Command {
	var startedFD int
	cmd := &cobra.Command{
		Use:   "exec HOST -- COMMAND [ARG…]",
		Short: "Run a command in a host",
		Long: `exec runs a command in a host: in its network, and with its own /run/flatmesh,
/run/wireguard and /var/lib/flatmesh. A pod sees its node's /run/flatmesh/xds, its
certificate in /run/secrets/flatmesh.io, and the environment that gRPC's xDS
clients need. The programs of the lab are on its path. The exit code is the
command's.`,
		Example: `  lab exec east/n1/p1 -- meshecho call xds:///echo.demo:80
  lab exec east/n1/p1 -- lab call http://10.2.0.2:8080
  lab exec east/n1 -- agent status
  lab exec router/east -- sh`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return errors.New("want: lab exec HOST -- COMMAND [ARG…]")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			failed := func(error) {}
			if startedFD > 0 {
				failed = lab.Started(startedFD)
			}
			l, err := a.open()
			if err == nil {
				err = l.Become(args[0], args[1:])
			}
			failed(err)
			return err
		},
	}
	cmd.Flags().IntVar(&startedFD, "started-fd", 0, "descriptor to close once the command runs")
	_ = cmd.Flags().MarkHidden("started-fd")
	return cmd
}

func (a *app) logsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logs HOST [PROCESS]",
		Short: "Print what a host's processes have written",
		Example: `  lab logs east/n1 agent
  lab logs controlplane`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			names, err := l.Logs(args[0])
			if err != nil {
				return err
			}
			if len(args) > 1 {
				names = args[1:]
			}
			for _, name := range names {
				log, err := l.Log(args[0], name)
				if err != nil {
					return err
				}
				if len(names) > 1 {
					fmt.Fprintf(cmd.OutOrStdout(), "==> %s %s <==\n", args[0], name)
				}
				_, err = io.Copy(cmd.OutOrStdout(), log)
				if err := errors.Join(err, log.Close()); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
