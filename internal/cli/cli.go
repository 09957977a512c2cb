// Package cli is what the commands have in common: exit codes, errors in one
// line, output formats, the version.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// The exit codes of every command.
const (
	ExitGood  = 0
	ExitFound = 1 // the command worked, and what it checked is wrong
	ExitUsage = 2 // bad usage, or it could not run
)

// Found is the error of a command that worked and found something wrong. An
// empty one says nothing more than the output already did.
type Found string

// Error returns what was found.
func (f Found) Error() string { return string(f) }

// Main runs a command until it ends or SIGINT or SIGTERM comes, and returns the
// process's exit code. Errors go to stderr in one line.
func Main(root *cobra.Command, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var found Found
	switch {
	case err == nil:
		return ExitGood
	case errors.As(err, &found):
		if found != "" {
			fmt.Fprintf(os.Stderr, "%s: %s\n", cmd.CommandPath(), OneLine(err))
		}
		return ExitFound
	default:
		fmt.Fprintf(os.Stderr, "%s: %s\n", cmd.CommandPath(), OneLine(err))
		return ExitUsage
	}
}

// OneLine returns an error's text without line breaks.
func OneLine(err error) string {
	return strings.Join(slices.DeleteFunc(strings.Split(err.Error(), "\n"), func(s string) bool { return s == "" }), "; ")
}

// Version returns the module's version as the build knows it.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// VersionCommand returns the command `version`.
func VersionCommand(name string) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Example: "  " + name + " version",
		Run:     func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), name, Version()) },
	}
}

// Format is the value of -o.
type Format struct {
	value   string
	allowed []string
}

// AddFormat adds -o with the formats beside the table, for example "json".
func AddFormat(cmd *cobra.Command, formats ...string) *Format {
	f := &Format{allowed: append([]string{"table"}, formats...), value: "table"}
	cmd.Flags().VarP(f, "output", "o", "output format: "+strings.Join(f.allowed, ", "))
	return f
}

// String implements pflag.Value.
func (f *Format) String() string { return f.value }

// Set implements pflag.Value.
func (f *Format) Set(s string) error {
	if !slices.Contains(f.allowed, s) {
		return fmt.Errorf("want one of %s", strings.Join(f.allowed, ", "))
	}
	f.value = s
	return nil
}

// Type implements pflag.Value.
func (f *Format) Type() string { return "format" }

// Print writes v as JSON or YAML, or calls table with a writer that aligns
// columns separated by tabs.
func (f *Format) Print(w io.Writer, v any, table func(io.Writer)) error {
	switch f.value {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	default:
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		table(t)
		return t.Flush()
	}
}

// AddLog adds the flags for logging and returns what makes the logger.
func AddLog(cmd *cobra.Command) func() (*slog.Logger, error) {
	level := cmd.Flags().String("log-level", "info", "debug, info, warn or error")
	format := cmd.Flags().String("log-format", "text", "text or json")
	file := cmd.Flags().String("log-file", "", "write to this file rather than to stderr; at 1 MiB it becomes FILE.1 and begins anew")
	return func() (*slog.Logger, error) {
		var l slog.Level
		if err := l.UnmarshalText([]byte(*level)); err != nil {
			return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", *level)
		}
		o := &slog.HandlerOptions{Level: l}
		var out io.Writer = os.Stderr
		if *file != "" {
			f, err := openLogFile(*file)
			if err != nil {
				return nil, fmt.Errorf("--log-file: %w", err)
			}
			out = f
		}
		switch *format {
		case "text":
			return slog.New(slog.NewTextHandler(out, o)), nil
		case "json":
			return slog.New(slog.NewJSONHandler(out, o)), nil
		default:
			return nil, fmt.Errorf("--log-format %q: want text or json", *format)
		}
	}
}
