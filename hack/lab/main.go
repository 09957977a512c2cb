// Command lab makes clusters of nodes and pods out of network namespaces on this
// machine, with flatmesh's agents and control plane running in them. It needs
// root and Linux, and nothing else.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// Exit codes, besides 0 and what `lab exec` passes on.
const (
	exitWrong  = 1 // a check found something wrong
	exitFailed = 2 // bad usage, or could not run
)

// errWrong says that a check found something wrong, which was printed already.
var errWrong = errors.New("something is not as it should be")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs one command and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	switch err := root.ExecuteContext(ctx); {
	case err == nil:
		return 0
	case errors.Is(err, errWrong):
		return exitWrong
	default:
		fmt.Fprintln(stderr, "lab:", oneLine(err))
		return exitFailed
	}
}

// oneLine joins what errors.Join has put on lines of their own.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// app is what all commands share.
type app struct {
	name   string // of the lab
	output string // "" or "json"
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "lab",
		Short: "Clusters of nodes and pods on this machine, joined by flatmesh",
		Long: `lab makes clusters of nodes and pods out of network namespaces on this machine,
joins them by an underlay of routers, and runs flatmesh's agents, gateways and
control plane in them. It needs root and Linux; the programs agent, controlplane,
gateway and meshecho are expected beside it.

Hosts are called CLUSTER/NODE, CLUSTER/NODE/POD, gateway/CLUSTER/NAME,
router/NETWORK, core and controlplane. "lab ls" lists them; "ip netns exec NAMESPACE" works as well as
"lab exec", which also shows a host's own /run/flatmesh and /run/wireguard.

Exit codes: 0 good, 1 a check found something wrong, 2 bad usage or could not
run. "lab exec" passes on the code of its command.`,
		Example: `  lab up -f hack/lab/examples/two-clusters.yaml
  lab exec east/n1/p1 -- lab call http://10.2.0.2:8080
  lab cut east/n1 west/n1
  lab down`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	name := lab.DefaultName
	if s := os.Getenv("FLATMESH_LAB"); s != "" {
		name = s // inside a host: its own lab
	}
	root.PersistentFlags().StringVar(&a.name, "name", name, "name of the lab")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		a.upCommand(), a.downCommand(), a.listCommand(), a.statusCommand(),
		a.execCommand(), a.logsCommand(), a.callCommand(),
		a.cutCommand(), a.healCommand(), a.addCommand(), a.removeCommand(), a.readyCommand(),
		a.killCommand(), a.restartCommand(), versionCommand(),
	)
	return root
}

// open finds the lab that --name names.
func (a *app) open() (*lab.Lab, error) { return lab.Open(a.name, progress) }

// progress writes what goes on to standard error, so that standard output holds
// results alone.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (a *app) outputFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&a.output, "output", "o", "", "output format: json (default: for people)")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if a.output != "" && a.output != "json" {
			return fmt.Errorf("output %q: want json, or nothing for people", a.output)
		}
		return nil
	}
	return cmd
}

// print writes v as JSON where that is wanted, else has people write it.
func (a *app) print(w io.Writer, v any, people func(io.Writer) error) error {
	if a.output != "json" {
		return people(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
