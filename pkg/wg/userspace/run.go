// Package userspace runs a WireGuard device in this process: a TUN interface,
// the engine, and the UAPI socket through which everything else is done to it.
//
// It is for a process of its own that lives longer than the agent. It keeps no
// key and no peer: whoever owns the device sets them through UAPI, after every
// start. It is not for addresses, routes, or the link's state.
//
// The engine is WireGuard's own. Tailscale's fork of it is faster, but does not
// follow a peer to the address that it speaks from, so that a node behind a NAT
// could not be answered.
package userspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
)

// Options says which device to run.
type Options struct {
	// Name is the TUN interface's, and the UAPI socket's.
	Name string
	// MTU is the interface's, in bytes.
	MTU int
	// Ready, where it is not nil, is called once the device answers.
	Ready func()
}

// Run runs the device until ctx ends, and then returns nil. Otherwise it
// returns why the device ended: its interface or its socket was removed.
//
// The interface is persistent: it stays with its addresses and routes when the
// process ends in whatever way, and the next Run takes it up again.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	if o.Name == "" || strings.ContainsAny(o.Name, "/%") {
		return fmt.Errorf("interface name %q: a slash or a percent sign has another meaning there", o.Name)
	}
	// The TUN first: it is also the lock that keeps two processes from one device.
	tunDevice, err := attach(o.Name, o.MTU)
	if err != nil {
		return err
	}
	engine := device.NewDevice(alwaysUp(tunDevice), conn.NewDefaultBind(), engineLogger(log.With("device", o.Name)))
	defer engine.Close()
	if err := engine.Up(); err != nil {
		return fmt.Errorf("%s: open UDP sockets: %w", o.Name, err)
	}
	listener, err := listen(o.Name)
	if err != nil {
		return err
	}
	// Only now, so that a device that never ran leaves no interface.
	if err := persist(tunDevice); err != nil {
		return errors.Join(fmt.Errorf("%s: keep the interface beyond this process: %w", o.Name, err), listener.Close())
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- serve(ctx, listener, engine) }()
	if o.Ready != nil {
		o.Ready()
	}
	log.Info("userspace device runs", "device", o.Name, "socket", listener.Addr().String())

	// The socket goes before the device, and both before this returns.
	end := func() error {
		stop()
		err := listener.Close()
		<-served
		return err
	}
	select {
	case <-ctx.Done():
		if err := end(); err != nil {
			log.Warn("close UAPI socket", "device", o.Name, "error", err)
		}
		return nil
	case <-engine.Wait():
		return errors.Join(fmt.Errorf("%s: the interface was deleted, or its TUN failed", o.Name), end())
	case err := <-served:
		return errors.Join(fmt.Errorf("%s: the UAPI socket %s was removed or failed: %w", o.Name, listener.Addr(), err), listener.Close())
	}
}

// listen opens the UAPI socket. One that a killed process left is replaced, one
// that answers is not.
func listen(name string) (net.Listener, error) {
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return nil, fmt.Errorf("%s: open UAPI socket /var/run/wireguard/%s.sock: %w", name, name, err)
	}
	defer file.Close() // the listener has a copy
	listener, err := ipc.UAPIListen(name, file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: listen on UAPI socket: %w", name, err), os.Remove("/var/run/wireguard/"+name+".sock"))
	}
	return listener, nil
}

// serve answers on the socket until it is closed or removed.
func serve(ctx context.Context, l net.Listener, engine *device.Device) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		clients.Go(func() {
			// A client that keeps its connection open must not keep the device.
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			engine.IpcHandle(c)
		})
	}
}
