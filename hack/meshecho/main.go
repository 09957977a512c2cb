// Command meshecho is a service and its client as a user of flatmesh would write
// them: plain grpc-go, with nothing of flatmesh in it. The lab's pods run
// "meshecho serve", and "meshecho call" calls them through xDS or at an address.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes besides 0.
const (
	exitWrong  = 1 // a call failed
	exitFailed = 2 // bad usage, or could not run
)

// errCalls says that calls failed, which was printed already.
var errCalls = errors.New("calls failed")

// secrets is where a pod's certificate lies.
const secrets = "/run/secrets/flatmesh.io"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end, the second does not ask.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs one command and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "meshecho",
		Short:         "A gRPC and HTTP echo, and its client",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), callCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	switch err := root.ExecuteContext(ctx); {
	case err == nil:
		return 0
	case errors.Is(err, errCalls):
		return exitWrong
	default:
		fmt.Fprintln(stderr, "meshecho:", strings.ReplaceAll(err.Error(), "\n", "; "))
		return exitFailed
	}
}
