package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/lab"
)

func (a *app) callCommand() *cobra.Command {
	var count int
	var interval, timeout time.Duration
	cmd := a.outputFlag(&cobra.Command{
		Use:   "call URL",
		Short: "Ask a pod who it is (run it inside a host)",
		Long: `call asks a pod over HTTP who it is and which caller's address it saw, on a
connection of its own each time. The exit code is 1 when a call got no answer.`,
		Example: `  lab exec east/n1/p1 -- lab call http://10.2.0.2:8080
  lab exec east/n1/p1 -- lab call --count 50 --interval 100ms http://10.2.0.2:8080`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 || interval < 0 || timeout <= 0 {
				return fmt.Errorf("want a count of at least 1, an interval of at least 0 and a timeout above 0")
			}
			ctx := cmd.Context()
			answered := 0
			for i := range count {
				if i > 0 {
					select {
					case <-ctx.Done():
						return context.Cause(ctx)
					case <-time.After(interval):
					}
				}
				if a.call(ctx, cmd.OutOrStdout(), args[0], timeout) {
					answered++
				}
			}
			if count > 1 {
				progress("%d of %d calls answered", answered, count)
			}
			if answered < count {
				return errWrong
			}
			return nil
		},
	})
	f := cmd.Flags()
	f.IntVar(&count, "count", 1, "how many calls to make")
	f.DurationVar(&interval, "interval", time.Second, "pause between two calls")
	f.DurationVar(&timeout, "timeout", 2*time.Second, "how long to wait for each answer")
	return cmd
}

// call makes one call, prints a line about it, and reports whether it was
// answered.
func (a *app) call(ctx context.Context, w io.Writer, url string, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	answer, err := lab.Call(ctx, url)
	if err != nil {
		progress("no answer: %v", err)
		return false
	}
	if a.output == "json" {
		err = json.NewEncoder(w).Encode(answer)
	} else {
		_, err = fmt.Fprintf(w, "%s answered, to caller %v, in %v\n", answer.Pod, answer.Caller, time.Since(began).Round(100*time.Microsecond))
	}
	return err == nil
}
