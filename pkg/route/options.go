package route

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Options says where in the kernel's routing everything of flatmesh's lies.
type Options struct {
	// Link is the WireGuard interface. All its addresses are flatmesh's.
	Link string
	// Table is the routing table, RulePriority the place of the rules that lead
	// to it: after the kernel's own rule for local addresses (0), before main
	// (32766).
	Table        int
	RulePriority int
	// Mark is the firewall mark of WireGuard's own packets, which pass the table by.
	Mark uint32
	// Protocol marks routes and rules as flatmesh's (RTA_PROTOCOL, FRA_PROTOCOL in
	// rtnetlink(7)).
	Protocol int
}

// Defaults returns the options of a node with one agent. Protocol 83 is neither
// in linux/rtnetlink.h nor in iproute2's rt_protos.
func Defaults() Options {
	return Options{Link: "flatmesh0", Table: 51830, RulePriority: 5183, Mark: 0x2030, Protocol: 83}
}

func (o Options) validate() error {
	var errs []error
	if o.Link == "" || len(o.Link) >= unix.IFNAMSIZ || o.Link == "." || o.Link == ".." || strings.ContainsAny(o.Link, "/: \t\n") {
		errs = append(errs, fmt.Errorf("interface name %q: want 1 to %d characters, no slash, colon or space", o.Link, unix.IFNAMSIZ-1))
	}
	if o.Table <= unix.RT_TABLE_LOCAL || o.Table > 1<<31-1 {
		errs = append(errs, fmt.Errorf("routing table %d: want one above %d, which the kernel leaves free", o.Table, unix.RT_TABLE_LOCAL))
	}
	if o.RulePriority < 1 || o.RulePriority > 32765 {
		errs = append(errs, fmt.Errorf("rule priority %d: want 1 to 32765, before the main table's rule", o.RulePriority))
	}
	if o.Mark == 0 {
		errs = append(errs, errors.New("firewall mark 0: every packet has it, so no rule could tell WireGuard's own"))
	}
	if o.Protocol <= unix.RTPROT_STATIC || o.Protocol > 255 {
		errs = append(errs, fmt.Errorf("routing protocol %d: want %d to 255", o.Protocol, unix.RTPROT_STATIC+1))
	}
	return errors.Join(errs...)
}
