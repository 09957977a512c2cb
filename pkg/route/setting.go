package route

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const procSys = "/proc/sys"

// setting is a value below /proc/sys/net, which shows the network namespace of
// the thread that opens it.
type setting struct {
	path  string // below /proc/sys
	value string
}

// settingsFor lists what the interface needs. No reverse-path setting is needed
// for the rule to work, since it holds for every packet without the mark, both
// ways, and hence neither is src_valid_mark. The interface's own is 0 so that a
// default of 1 does not drop what a peer sends in the moment before its route is
// there; the stricter of it and net.ipv4.conf.all.rp_filter is in force.
func settingsFor(o Options, forward bool) []setting {
	v4, v6 := "net/ipv4/conf/"+o.Link, "net/ipv6/conf/"+o.Link
	s := []setting{
		{v4 + "/rp_filter", "0"},
		// Machines may switch IPv6 off for interfaces to come.
		{v6 + "/disable_ipv6", "0"},
	}
	if forward {
		s = append(s, setting{v4 + "/forwarding", "1"}, setting{v6 + "/forwarding", "1"})
	}
	return s
}

func (s setting) String() string { return fmt.Sprintf("set %s to %s", s.path, s.value) }

func (s setting) apply(*Table) error {
	err := os.WriteFile(filepath.Join(procSys, s.path), []byte(s.value), 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: run the agent privileged, or have the node set it", err)
	}
	return err
}

func (s setting) holds(a Actual) bool { return a.Settings[s.path] == s.value }
func (s setting) expose(Op) bool      { return false }

// readSetting returns false where the kernel has no such setting: there is no
// such interface, or no IPv6.
func readSetting(path string) (string, bool, error) {
	b, err := os.ReadFile(filepath.Join(procSys, path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read setting: %w", err)
	}
	return strings.TrimSpace(string(b)), true, nil
}
