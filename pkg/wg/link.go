package wg

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/vishvananda/netlink"
)

// alias marks a link as flatmesh's own (IFLA_IFALIAS), so that a device of the
// same name that somebody else configured is neither emptied nor deleted.
const alias = "flatmesh"

// A name with a percent sign would be a pattern to the kernel's TUN driver, and
// one with a slash another path to the UAPI socket.
var linkName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,14}$`)

func validateName(name string) error {
	if !linkName.MatchString(name) {
		return fmt.Errorf("interface name %q: want at most 15 letters, digits, dots, dashes or underscores", name)
	}
	return nil
}

// findLink returns nil where there is no link of that name.
func findLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return link, nil
}

// kindOf says what kind of device a link is, and refuses what is none.
func kindOf(link netlink.Link) (Kind, error) {
	switch l := link.(type) {
	case *netlink.Wireguard:
		return Kernel, nil
	case *netlink.Tuntap:
		if l.Mode == netlink.TUNTAP_MODE_TUN {
			return Userspace, nil
		}
	}
	return 0, fmt.Errorf("interface %s exists and is no WireGuard device but of type %s: delete it, or choose another name", link.Attrs().Name, link.Type())
}

// foreign reports whether somebody else made the link: it is in use as a
// WireGuard device and does not carry our mark. A device with no key and no
// peers may be one of ours that was never marked, because its maker died.
func foreign(link netlink.Link, key bool, peers int) error {
	if link.Attrs().Alias == alias || !key && peers == 0 {
		return nil
	}
	return fmt.Errorf("WireGuard device %s was configured by somebody else (it has not the alias %q): delete it (ip link del %s), or choose another name", link.Attrs().Name, alias, link.Attrs().Name)
}
