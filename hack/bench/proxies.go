package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/flatmesh/flatmesh/pkg/gateway"
)

// podAddresses are those of the pods of one address, by server name.
func podAddresses(ip netip.Addr) gateway.Routes {
	out := gateway.Routes{}
	for name, ports := range map[string][]uint16{bulkName: bulkPorts, briefName: briefPorts} {
		for _, p := range ports {
			out[name] = append(out[name], netip.AddrPortFrom(ip, p))
		}
	}
	return out
}

// fixedGatewayCommand is flatmesh's gateway with pods that do not change and no
// control plane. It runs until its input ends.
func fixedGatewayCommand() *cobra.Command {
	var listen []string
	var pods string
	cmd := &cobra.Command{Use: "fixed-gateway", Short: "Be a gateway with fixed routes", Args: cobra.NoArgs, Hidden: true}
	cmd.Flags().StringSliceVar(&listen, "listen", nil, "addresses to listen on")
	cmd.Flags().StringVar(&pods, "pods", "", "the address of the pods")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ip, err := netip.ParseAddr(pods)
		if err != nil {
			return err
		}
		p := gateway.New(gateway.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		p.SetRoutes(podAddresses(ip))
		g, ctx := errgroup.WithContext(cmd.Context())
		ctx, stop := context.WithCancel(ctx)
		for _, address := range listen {
			ln, err := gateway.Listen(ctx, address)
			if err != nil {
				stop()
				return err
			}
			g.Go(func() error { return p.Serve(ctx, ln) })
		}
		g.Go(func() error {
			defer stop()
			_, err := io.Copy(io.Discard, os.Stdin)
			return err
		})
		return g.Wait()
	}
	return cmd
}

// haproxyConfig does the same: it waits for the ClientHello, takes the server name
// from it, and passes bytes on, by splice(2) where that helps. It logs nothing.
const haproxyConfig = `global
  maxconn 4096
  nbthread %d
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend gateway
%s  tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  tcp-request content reject
%s`

// writeHAProxyConfig writes the file in a folder and returns its name.
func writeHAProxyConfig(dir string, threads int, listen []string, pods netip.Addr) (string, error) {
	var binds, rules, backends strings.Builder
	for _, l := range listen {
		fmt.Fprintf(&binds, "  bind %s\n", l)
	}
	n := 0
	for name, addrs := range podAddresses(pods) {
		n++
		fmt.Fprintf(&rules, "  use_backend service%d if { req.ssl_sni -i %s }\n", n, name)
		fmt.Fprintf(&backends, "backend service%d\n  balance roundrobin\n", n)
		for i, a := range addrs {
			fmt.Fprintf(&backends, "  server pod%d %v\n", i, a)
		}
	}
	file := filepath.Join(dir, "haproxy.cfg")
	return file, os.WriteFile(file, fmt.Appendf(nil, haproxyConfig, threads, binds.String(), rules.String()+backends.String()), 0o600)
}

// haproxyVersion returns the version of the HAProxy on the path.
func haproxyVersion(ctx context.Context) (string, error) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		return "", errors.New("it is not installed (apt-get install haproxy)")
	}
	out, err := exec.CommandContext(ctx, path, "-v").Output()
	if err != nil {
		return "", fmt.Errorf("haproxy -v: %w", err)
	}
	line, _, _ := strings.Cut(string(out), " - ")
	return strings.TrimSpace(line), nil
}
