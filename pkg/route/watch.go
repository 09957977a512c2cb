package route

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// watchBuffer holds the notifications of a burst, in bytes. When it overflows
// the watcher knows that it missed something, and says so.
const watchBuffer = 4 << 20

// Watch returns a channel of one slot that is filled when something has changed
// that a new Observe may want to know of: routes of flatmesh's that others
// removed or altered, anything of others in its table, its rules, its interface,
// and the node's addresses. What Apply does is left out. Other routes of the
// main table are not watched, since a routing daemon changes them all the time;
// a periodic Observe finds those.
//
// The channel is closed when the context ends, or when the subscription breaks.
func (t *Table) Watch(ctx context.Context) (<-chan struct{}, error) {
	s, err := subscribe()
	if err != nil {
		return nil, fmt.Errorf("subscribe to routing changes: %w", err)
	}
	if s.SetReceiveBufferSize(watchBuffer, true) != nil {
		// Beyond the machine's limit: as much as that allows.
		if err := s.SetReceiveBufferSize(watchBuffer, false); err != nil {
			s.Close()
			return nil, fmt.Errorf("size the buffer for routing changes: %w", err)
		}
	}
	var ended atomic.Bool
	stop := context.AfterFunc(ctx, func() {
		ended.Store(true)
		s.Close()
	})
	w := newWatcher(t)
	go func() {
		defer close(w.changed)
		defer s.Close()
		defer stop()
		for !ended.Load() && w.step(s.Receive()) {
		}
	}()
	return w.changed, nil
}

func subscribe() (*nl.NetlinkSocket, error) {
	return nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE)
}

// watcher tells changes from echoes.
type watcher struct {
	o       Options
	held    *held
	changed chan struct{}
	link    linkState
	// addrs are those on other interfaces that it was told of: their lifetimes are
	// announced again and again.
	addrs map[addrKey]bool
}

type linkState struct {
	index int
	up    bool
}

type addrKey struct {
	link   int
	prefix netip.Prefix
}

func newWatcher(t *Table) *watcher {
	return &watcher{o: t.o, held: &t.held, changed: make(chan struct{}, 1), addrs: map[addrKey]bool{}}
}

func (w *watcher) mark() {
	select {
	case w.changed <- struct{}{}:
	default: // marked already
	}
}

// step takes in what one receive returned, and reports whether to go on.
func (w *watcher) step(msgs []syscall.NetlinkMessage, from *unix.SockaddrNetlink, err error) bool {
	switch {
	case errors.Is(err, unix.ENOBUFS):
		w.mark() // something was missed
		return true
	case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
		return true
	case err != nil:
		w.mark()
		return false
	case from.Pid != nl.PidKernel:
		return true // anyone may send to the socket
	}
	for _, m := range msgs {
		if w.matters(m) {
			w.mark()
		}
	}
	return true
}

func (w *watcher) matters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.linkMatters(m.Data, m.Header.Type == unix.RTM_DELLINK)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return w.addrMatters(m.Data, m.Header.Type == unix.RTM_DELADDR)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return w.routeMatters(m.Data, m.Header.Type == unix.RTM_DELROUTE)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return w.ruleMatters(m.Data, m.Header.Type == unix.RTM_DELRULE)
	}
	return false
}

func (w *watcher) linkMatters(b []byte, gone bool) bool {
	attrs, ok := attributes(b, unix.SizeofIfInfomsg)
	if !ok {
		return true
	}
	info := nl.DeserializeIfInfomsg(b)
	index := int(info.Index)
	named := unix.ByteSliceToString(attrs[unix.IFLA_IFNAME]) == w.o.Link
	if !named && !w.held.isLink(index) {
		return false
	}
	// What else is announced of it, such as its queue's state, changes no route.
	var now linkState
	if named && !gone {
		now = linkState{index, info.Flags&unix.IFF_UP != 0}
	}
	changed := now != w.link
	w.link = now
	return changed
}

func (w *watcher) addrMatters(b []byte, gone bool) bool {
	attrs, ok := attributes(b, unix.SizeofIfAddrmsg)
	if !ok {
		return true
	}
	msg := nl.DeserializeIfAddrmsg(b)
	raw := attrs[unix.IFA_LOCAL]
	if raw == nil {
		raw = attrs[unix.IFA_ADDRESS]
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok || addr.IsLinkLocalUnicast() {
		return false
	}
	key := addrKey{int(msg.Index), netip.PrefixFrom(addr, int(msg.Prefixlen))}
	if w.held.isLink(key.link) {
		return w.held.has(key.prefix) == gone
	}
	known := w.addrs[key]
	if gone {
		delete(w.addrs, key)
		return true
	}
	w.addrs[key] = true
	return !known
}

func (w *watcher) routeMatters(b []byte, gone bool) bool {
	attrs, ok := attributes(b, unix.SizeofRtMsg)
	if !ok {
		return true
	}
	msg := nl.DeserializeRtMsg(b)
	if u32(attrs[unix.RTA_TABLE]) != w.o.Table || msg.Flags&unix.RTM_F_CLONED != 0 {
		return false
	}
	if int(msg.Protocol) != w.o.Protocol {
		return true
	}
	addr, ok := netip.AddrFromSlice(attrs[unix.RTA_DST])
	if !ok {
		return true // a default route, which is never flatmesh's
	}
	key := routeKey{netip.PrefixFrom(addr, int(msg.Dst_len)), u32(attrs[unix.RTA_PRIORITY])}
	return w.held.has(key) == gone
}

func (w *watcher) ruleMatters(b []byte, gone bool) bool {
	attrs, ok := attributes(b, unix.SizeofRtMsg) // struct fib_rule_hdr is laid out like it
	if !ok {
		return true
	}
	msg := nl.DeserializeRtMsg(b)
	table, priority := u32(attrs[nl.FRA_TABLE]), u32(attrs[nl.FRA_PRIORITY])
	if table != w.o.Table && priority != w.o.RulePriority {
		return false
	}
	if p := attrs[nl.FRA_PROTOCOL]; len(p) != 1 || int(p[0]) != w.o.Protocol {
		return true
	}
	f := mesh.IPv4
	if msg.Family == unix.AF_INET6 {
		f = mesh.IPv6
	}
	return w.held.has(ruleKey{f, priority}) == gone
}

// attributes returns the attributes behind a header by their type; false where
// the message is malformed.
func attributes(b []byte, header int) (map[uint16][]byte, bool) {
	if len(b) < header {
		return nil, false
	}
	list, err := nl.ParseRouteAttr(b[header:])
	if err != nil {
		return nil, false
	}
	attrs := make(map[uint16][]byte, len(list))
	for _, a := range list {
		attrs[a.Attr.Type] = a.Value
	}
	return attrs, true
}

func u32(b []byte) int {
	if len(b) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(b))
}
