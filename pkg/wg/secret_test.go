package wg_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/internal/nstest"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

func TestKeyIsNeverLogged(t *testing.T) {
	p := newPair(t)
	reach(t, p.dial(t, p.echo(t, p.tunnelB)))
	private := p.privateA
	// The engine quotes what it cannot parse, be it most of a key.
	err := p.a.Do(func() error {
		for _, line := range []string{
			"private_key " + hex.EncodeToString(private[:]), "private_key=" + hex.EncodeToString(private[:]) + "00",
			"private_key=x" + hex.EncodeToString(private[:])[1:], "wg " + base64.StdEncoding.EncodeToString(private[:]),
			"public_key=" + hex.EncodeToString(private[:]) + "\nnonsense",
		} {
			for _, request := range []string{"set=1\n" + line + "\n\n", line + "\n\n", "get=1\n" + line + "\n\n"} {
				c, err := net.Dial("unix", "/run/wireguard/"+deviceName+".sock")
				if err != nil {
					return err
				}
				_, _ = c.Write([]byte(request))
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				_, _ = c.Read(make([]byte, 64)) // its answer: the line is logged by then
				_ = c.Close()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.a.must(t, "StopDevice", syscall.SIGTERM)
	nstest.Eventually(t, "device gone", func() error {
		if r := p.a.call(t, "Observe", patience); !r.Gone {
			return errors.New(r.Err)
		}
		return nil
	})
	out := p.a.agent.Output()
	for _, want := range []string{"level=DEBUG", "level=ERROR", "set private key", "UAPI: Updating private key", "(hidden)"} {
		if !strings.Contains(out, want) {
			t.Errorf("the log does not hold %q, so the test says nothing:\n%s", want, out)
		}
	}
	for _, s := range []string{
		hex.EncodeToString(private[:])[1:17], hex.EncodeToString(private[16:])[:16],
		base64.StdEncoding.EncodeToString(private[:])[:16], base64.StdEncoding.EncodeToString(private[:])[16:32],
		strings.Trim(fmt.Sprint(private[:6]), "[]"),
	} {
		if strings.Contains(out, s) {
			t.Errorf("the log shows the key as %q", s)
		}
	}
}

func newPrivate(t *testing.T) wg.PrivateKey {
	t.Helper()
	k, err := wg.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}
