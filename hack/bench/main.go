// Command bench measures flatmesh on this machine and prints a table for each
// benchmark, ratios first. It needs root, Linux and the Go toolchain; everything
// runs in network namespaces of its own, which are removed at the end, also when
// the run is interrupted.
//
// It is not a test: it passes no judgement, and its exit code tells only whether
// everything could be measured.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/internal/lab"
)

// Bounds of a whole run: whatever hangs, the machine is given back.
const (
	fullTime  = 90 * time.Minute
	quickTime = 15 * time.Minute
	cleanTime = 30 * time.Second
)

func main() { os.Exit(cli.Main(newRoot(), os.Args[1:])) }

// bench is what the benchmarks share.
type bench struct {
	bin   string // folder with agent, controlplane, gateway, lab and meshecho
	self  string // this program
	quick bool
}

// benchmark is one entry of the report.
type benchmark struct {
	name string
	root bool // needs root
	run  func(*bench, context.Context) (*table, error)
}

// benchmarks are run in this order: what a busy machine disturbs most comes first.
func benchmarks() []benchmark {
	return []benchmark{
		{"throughput", true, (*bench).throughput},
		{"overlap", false, (*bench).overlap},
		{"scale", true, (*bench).scale},
		{"detect", true, (*bench).detect},
		{"deadpath", true, (*bench).deadPath},
		{"failover", true, (*bench).failover},
		{"inflight", true, (*bench).inFlight},
		{"idle", true, (*bench).idle},
		{"gateway", true, (*bench).gateways},
		{"xds-push", false, (*bench).xdsPush},
		{"xds-flip", false, (*bench).xdsFlip},
		{"xds-memory", false, (*bench).xdsMemory},
		{"xds-growth", false, (*bench).xdsGrowth},
		{"xds-istio", false, (*bench).xdsIstio},
	}
}

func newRoot() *cobra.Command {
	var names []string
	for _, b := range benchmarks() {
		names = append(names, b.name)
	}
	b := &bench{}
	var only []string
	root := &cobra.Command{
		Use:   "bench",
		Short: "Measure flatmesh on this machine",
		Long: `bench measures flatmesh on this machine and prints a Markdown table for each
benchmark: ` + strings.Join(names, ", ") + `.

A full run takes about an hour, one with --quick a quarter of one.
Exit codes: 0 everything was measured, 2 something could not be.`,
		Example: "  bench\n  bench --only throughput,idle --quick\n  bench -o json > bench.json",
		Args:    cobra.NoArgs,
	}
	f := root.Flags()
	f.StringSliceVar(&only, "only", nil, "benchmarks to run (default: all)")
	f.BoolVar(&b.quick, "quick", false, "shorter and fewer measurements, for a first look")
	f.StringVar(&b.bin, "bin", "", "folder with the programs agent, controlplane, gateway, lab and meshecho (default: they are built)")
	format := cli.AddFormat(root, "json")
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, o := range only {
			if !slices.ContainsFunc(names, func(name string) bool { return chosen(name, o) }) {
				return fmt.Errorf("--only %s: want some of %s", o, strings.Join(names, ", "))
			}
		}
		limit := fullTime
		if b.quick {
			limit = quickTime
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), limit, fmt.Errorf("the run took longer than %v", limit))
		defer cancel()
		return b.all(ctx, only, format, cmd.OutOrStdout())
	}
	root.AddCommand(standInsCommand(), xdsServerCommand(), xdsClientsCommand(), fixedGatewayCommand(), tlsPodsCommand(), tlsLoadCommand())
	return root
}

// chosen reports whether somebody who asks for a benchmark, or for a family of
// them such as xds, asks for this one.
func chosen(name, asked string) bool { return name == asked || strings.HasPrefix(name, asked+"-") }

// all runs the chosen benchmarks. One that fails leaves the others their turn.
func (b *bench) all(ctx context.Context, only []string, format *cli.Format, w io.Writer) (err error) {
	run := slices.DeleteFunc(benchmarks(), func(x benchmark) bool {
		return len(only) > 0 && !slices.ContainsFunc(only, func(o string) bool { return chosen(x.name, o) })
	})
	if slices.ContainsFunc(run, func(x benchmark) bool { return x.root }) {
		clean, err := b.prepare(ctx)
		if err != nil {
			return err
		}
		defer clean()
	}
	r := report{Machine: thisMachine(), Quick: b.quick}
	markdown := format.String() != "json"
	if markdown {
		r.Machine.print(w, b.quick)
	}
	var errs []error
	for _, x := range run {
		progress("%s: begins", x.name)
		began := time.Now()
		t, err := x.run(b, ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", x.name, err))
			progress("%s: %s", x.name, cli.OneLine(err))
		}
		if t != nil && err == nil {
			t.Name, t.Seconds = x.name, time.Since(began).Seconds()
			r.Tables = append(r.Tables, t)
			if markdown {
				t.print(w)
			}
		}
		if err != nil && ctx.Err() != nil {
			return errors.Join(errs...)
		}
	}
	if !markdown {
		errs = append(errs, format.Print(w, r, nil))
	}
	return errors.Join(errs...)
}

// progress writes what goes on to standard error, so that standard output holds
// the tables alone.
func progress(text string, args ...any) { fmt.Fprintf(os.Stderr, text+"\n", args...) }

// up makes a lab from a topology in YAML, and returns what removes it.
func (b *bench) up(ctx context.Context, suffix, yaml string, o lab.Options) (*lab.Lab, func(), error) {
	t, err := lab.ParseTopology(suffix, []byte(yaml))
	if err != nil {
		return nil, nil, err
	}
	o.Name, o.Bin = fmt.Sprintf("bench%d%s", os.Getpid(), suffix), b.bin
	l, err := lab.Up(ctx, t, o)
	if err != nil {
		return nil, nil, err
	}
	return l, func() {
		// What was made must go also when the run was interrupted.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		if err := l.Down(clean); err != nil {
			progress("remove lab %s: %v (try: lab down --name %s)", l.Name(), err, l.Name())
		}
	}, nil
}
