package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki"
)

// standInCluster is the cluster whose nodes are stand-ins.
const standInCluster = "standins"

// standIns is one process that stands in for many nodes: it registers each with
// the control plane as an agent would, and answers handshakes and echoes for each
// with a WireGuard engine of its own, but has no interfaces, routes or pods.
type standIns struct {
	controlPlane, token string
	peer                string // the public key of the one agent that is measured
	applied             uint64 // what that agent expects to be held of it
	allowed             []string
	address             string // of this host
	firstPort           int
}

// standInsCommand runs inside a host of the lab. It reads numbers from standard
// input, and prints each once that many stand-ins are registered in all.
func standInsCommand() *cobra.Command {
	var s standIns
	cmd := &cobra.Command{Use: "standins", Short: "Stand in for many nodes", Args: cobra.NoArgs, Hidden: true}
	f := cmd.Flags()
	f.StringVar(&s.controlPlane, "control-plane", "", "the control plane, HOST:PORT")
	f.StringVar(&s.token, "token", "", "a join token for the stand-ins' cluster")
	f.StringVar(&s.peer, "peer", "", "public key of the agent that is measured, in hex")
	f.Uint64Var(&s.applied, "applied", 0, "digest of what that agent expects to be held of it")
	f.StringSliceVar(&s.allowed, "allowed", nil, "prefixes of that agent")
	f.StringVar(&s.address, "address", "", "this host's address")
	f.IntVar(&s.firstPort, "first-port", 20000, "UDP port of the first stand-in; the others follow")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		have := 0
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			want, err := strconv.Atoi(in.Text())
			if err != nil {
				return err
			}
			if err := s.begin(cmd.Context(), have, want); err != nil {
				return err
			}
			have = max(have, want)
			fmt.Fprintln(cmd.OutOrStdout(), want)
		}
		return nil
	}
	return cmd
}

// begin starts and registers stand-ins from, from+1, … to-1.
func (s *standIns) begin(ctx context.Context, from, to int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i := from; i < to; i++ {
		g.Go(func() error {
			key := standInKey(i)
			if err := s.engine(i, key); err != nil {
				return fmt.Errorf("stand-in %d: %w", i, err)
			}
			return s.register(ctx, i, key)
		})
	}
	return g.Wait()
}

func standInNode(i int) mesh.NodeID {
	return mesh.NodeID{Cluster: standInCluster, Name: fmt.Sprintf("n%d", i+1)}
}

func standInKey(i int) wgtypes.Key {
	k := wgtypes.Key(sha256.Sum256(fmt.Appendf(nil, "stand-in %d", i)))
	// Clamped, as every Curve25519 private key is (RFC 7748, section 5).
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// engine answers for a stand-in until the process ends.
func (s *standIns) engine(i int, key wgtypes.Key) error {
	d := device.NewDevice(newStandInTUN(s.applied), &standInBind{}, device.NewLogger(device.LogLevelSilent, ""))
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%s\nlisten_port=%d\npublic_key=%s\n", hex.EncodeToString(key[:]), s.firstPort+i, s.peer)
	for _, a := range s.allowed {
		fmt.Fprintf(&b, "allowed_ip=%s\n", a)
	}
	return errors.Join(d.IpcSet(b.String()), d.Up())
}

type standInProver wgtypes.Key

func (p standInProver) PublicKey() mesh.PublicKey { return mesh.PublicKey(wgtypes.Key(p).PublicKey()) }

func (p standInProver) Prove(serverKey [32]byte, cookie []byte, node mesh.NodeID, subject []byte) ([]byte, error) {
	return pki.Prove(p, serverKey, cookie, node, subject)
}

// register joins with the token and registers with the certificate.
func (s *standIns) register(ctx context.Context, i int, key wgtypes.Key) error {
	node := standInNode(i)
	join, err := pki.JoinTLS(s.token)
	if err != nil {
		return err
	}
	var bundle *pki.Bundle
	err = s.converse(join, func(conn *grpc.ClientConn) error {
		signer, csr, err := pki.NewCSR()
		if err != nil {
			return err
		}
		chain, roots, err := peering.NewAgent(conn, node, standInProver(key)).Join(ctx, s.token, csr)
		if err != nil {
			return err
		}
		bundle, err = pki.NewBundle(signer, chain, roots)
		return err
	})
	if err != nil {
		return err
	}
	own, err := pki.ClientTLS(bundle.Mesh(), bundle.Roots, func() (*tls.Certificate, error) { return bundle.Certificate(), nil })
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(s.address)
	if err != nil {
		return err
	}
	port := uint16(s.firstPort + i)
	return s.converse(own, func(conn *grpc.ClientConn) error {
		_, _, refused, err := peering.NewAgent(conn, node, standInProver(key)).Register(ctx, peering.Registration{
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(addr, port)}, ListenPort: port, Device: "userspace", Version: "stand-in",
		})
		if err == nil && len(refused) > 0 {
			err = fmt.Errorf("endpoint of %v refused: %s", node, refused[0])
		}
		return err
	})
}

func (s *standIns) converse(cfg *tls.Config, f func(*grpc.ClientConn) error) error {
	cfg.ServerName = "controlplane"
	conn, err := grpc.NewClient("passthrough:///"+s.controlPlane, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(conn)
}
