package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func statusCommand() *cobra.Command {
	var runDir, cluster, state string
	var watch bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show this node's tunnels and why they are as they are", Args: cobra.NoArgs,
		Long: `Show this node's device, its connection to the control plane and one line a peer.

Exit code 1 when a tunnel that should be up is not, or the agent has a problem.`,
		Example: "  agent status\n  agent status --cluster west --state Down -o wide\n  agent status -o json | jq '.peers[] | select(.state != \"Up\")'",
	}
	f := cmd.Flags()
	f.StringVar(&runDir, "run-dir", defaultRunDir, "folder with the agent's admin socket")
	f.StringVar(&cluster, "cluster", "", "only peers of this cluster")
	f.StringVar(&state, "state", "", "only tunnels in this state: Up, Down or Unknown")
	f.BoolVarP(&watch, "watch", "w", false, "show it again every second")
	format := cli.AddFormat(cmd, "wide", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var want mesh.TunnelState
		if state != "" {
			if err := want.UnmarshalText([]byte(state)); err != nil {
				return fmt.Errorf("--state: %w", err)
			}
		}
		show := func(ctx context.Context) (agent.Status, error) {
			var s agent.Status
			if err := cli.Ask(ctx, "agent", filepath.Join(runDir, "agent.sock"), "GET", "/status", &s); err != nil {
				return s, err
			}
			s.Peers = slices.DeleteFunc(s.Peers, func(p agent.PeerStatus) bool {
				return cluster != "" && p.Node.Cluster != cluster || state != "" && p.State != want
			})
			return s, format.Print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, s, format.String() == "wide") })
		}
		for watch {
			fmt.Fprint(cmd.OutOrStdout(), "\033[H\033[2J")
			if _, err := show(cmd.Context()); err != nil {
				return err
			}
			select {
			case <-cmd.Context().Done():
				return nil
			case <-time.After(time.Second):
			}
		}
		s, err := show(cmd.Context())
		if err != nil {
			return err
		}
		if !s.Healthy() {
			return cli.Found("")
		}
		return nil
	}
	return cmd
}

func printStatus(w io.Writer, s agent.Status, wide bool) {
	d := s.Device
	fmt.Fprintf(w, "node:\t%v, agent %s, up %s\n", s.Node, s.Version, age(s.At.Sub(s.Started)))
	fmt.Fprintf(w, "device:\t%s (%s), port %d, MTU %d, address %s\n", d.Interface, d.Kind, d.ListenPort, d.MTU, orNone(texts(d.TunnelAddrs)))
	fmt.Fprintf(w, "key:\t%v\n", d.PublicKey)
	fmt.Fprintf(w, "pods:\t%s\n", orNone(texts(s.Prefixes)))
	fmt.Fprintf(w, "control plane:\t%s\n", controlPlane(s))
	if !s.Complete {
		fmt.Fprintf(w, "peers:\tnot known yet; nothing on this node is changed until they are\n")
	}
	for _, b := range s.Barriers {
		fmt.Fprintf(w, "no %v tunnels:\t%s: %s\n", b.Family, b.Reason, b.Detail)
	}
	for _, r := range s.Refused {
		fmt.Fprintf(w, "own prefix refused:\t%v %s: %s\n", r.Prefix, r.Reason, r.Detail)
	}
	for _, u := range s.Unrouted {
		fmt.Fprintf(w, "not routed:\t%v of %s, %s: %s\n", u.Prefix, cmp.Or(u.Node, "the mesh"), u.Reason, u.Detail)
	}
	for _, p := range s.Workloads {
		if p.Error != "" {
			fmt.Fprintf(w, "no certificate:\tpod %s: %s\n", p.Pod, p.Error)
		}
	}
	for _, c := range s.Conflicts {
		if c.Effect != mesh.Listed || wide {
			fmt.Fprintf(w, "conflict:\t%v\n", c)
		}
	}
	for _, e := range s.ControlPlane.RefusedEndpoints {
		fmt.Fprintf(w, "endpoint refused:\t%s\n", e)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "problem:\t%s\n", p)
	}
	if len(s.Peers) == 0 {
		fmt.Fprintln(w, "no tunnels")
		return
	}
	fmt.Fprintln(w)
	header := "PEER\tSTATE\tREASON\tSINCE\tENDPOINT\tHANDSHAKE\tRTT\tLOSS\tRECEIVED\tSENT\tALLOWED IPS"
	if wide {
		header += "\tKEY\tCANDIDATES\tTRAFFIC"
	}
	fmt.Fprintln(w, header)
	for _, p := range s.Peers {
		handshake := "never"
		if p.Handshake != nil {
			handshake = age(s.At.Sub(*p.Handshake)) + " ago"
		}
		endpoint := "none"
		if p.Endpoint.IsValid() {
			endpoint = p.Endpoint.String()
		}
		fmt.Fprintf(w, "%v\t%v\t%s\t%s\t%s\t%s\t%s\t%.0f%%\t%s\t%s\t%s", p.Node, p.State, p.Reason, age(s.At.Sub(p.Since)), endpoint, handshake,
			rtt(p.RTT), 100*p.Loss, size(p.RxBytes), size(p.TxBytes), strings.Join(texts(p.AllowedIPs), ","))
		if wide {
			traffic := "idle"
			if p.Active {
				traffic = "active"
			}
			fmt.Fprintf(w, "\t%v\t%s\t%s", p.Key, strings.Join(texts(p.Candidates), ","), traffic)
		}
		fmt.Fprintln(w)
	}
}

func controlPlane(s agent.Status) string {
	c := s.ControlPlane
	switch {
	case c.Connected:
		return fmt.Sprintf("%s connected for %s, version %s", c.Address, age(s.At.Sub(*c.Since)), c.Version)
	case c.Since == nil:
		return c.Address + " connecting"
	default:
		return fmt.Sprintf("%s away for %s (tunnels stay as they are): %s", c.Address, age(s.At.Sub(*c.Since)), c.Error)
	}
}

func printRemoved(cmd *cobra.Command, format *cli.Format, removed []string) error {
	out := struct {
		Removed []string `json:"removed"`
	}{append([]string{}, removed...)}
	return format.Print(cmd.OutOrStdout(), out, func(w io.Writer) {
		for _, r := range removed {
			fmt.Fprintln(w, "removed", r)
		}
		if len(removed) == 0 {
			fmt.Fprintln(w, "nothing to remove")
		}
	})
}

func texts[T fmt.Stringer](in []T) []string {
	out := make([]string, 0, len(in))
	for _, v := range in {
		out = append(out, v.String())
	}
	return out
}

func orNone(in []string) string { return cmp.Or(strings.Join(in, ", "), "none") }

// age prints a duration in its two largest units.
func age(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

func rtt(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2fms", seconds*1000)
}

// size prints bytes in binary units.
func size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f, unit := float64(n)/1024, 0
	for f >= 1024 && unit < 4 {
		f, unit = f/1024, unit+1
	}
	return fmt.Sprintf("%.1f%ciB", f, "KMGTP"[unit])
}
