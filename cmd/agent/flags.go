package main

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/route"
)

// Where an agent keeps and shows things, unless told otherwise.
const (
	defaultInterface = "flatmesh0"
	defaultStateDir  = "/var/lib/flatmesh"
	defaultRunDir    = "/run/flatmesh"
)

// addHostFlags adds what says where on the node the agent works: the same flags
// for `run`, which makes it, and `cleanup`, which removes it.
func addHostFlags(f *pflag.FlagSet, o *agent.Options) {
	o.Route = route.Defaults()
	f.StringVar(&o.Interface, "interface", defaultInterface, "name of the WireGuard interface")
	f.StringVar(&o.StateDir, "state-dir", defaultStateDir, "folder for the key, the certificate and the peers")
	f.StringVar(&o.RunDir, "run-dir", defaultRunDir, "folder for the admin socket")
	f.IntVar(&o.Route.Table, "table", o.Route.Table, "routing table that is the agent's own")
	f.IntVar(&o.Route.RulePriority, "rule-priority", o.Route.RulePriority, "priority of the rule that leads to that table")
	f.Uint32Var(&o.Route.Mark, "firewall-mark", o.Route.Mark, "mark on packets that must not take the tunnels: WireGuard's own and those to the control plane")
	o.Resync = 15 * time.Second
}
