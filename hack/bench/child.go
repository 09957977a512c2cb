package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// child is a process with which one speaks in lines of JSON, most often this
// program itself.
type child struct {
	name string
	cmd  *exec.Cmd
	to   io.Closer
	in   *json.Encoder
	out  *json.Decoder
}

// startChild starts this program with other arguments.
func startChild(ctx context.Context, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return startCommand(args[0], exec.CommandContext(ctx, self, args...))
}

func startCommand(name string, cmd *exec.Cmd) (*child, error) {
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &child{name: name, cmd: cmd, to: in, in: json.NewEncoder(in), out: json.NewDecoder(out)}, nil
}

// end ends the process.
func (c *child) end() {
	c.to.Close()
	// What it holds may take it long to let go, and is of no use.
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func (c *child) tell(order any) error {
	if err := c.in.Encode(order); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

func (c *child) hear(answer any) error {
	if err := c.out.Decode(answer); err != nil {
		return fmt.Errorf("%s does not answer: %w", c.name, err)
	}
	return nil
}
