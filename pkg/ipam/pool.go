package ipam

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ipam/service/allocator"
	"github.com/cilium/ipam/service/ipallocator"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// What a Pool's and NextFree's errors are, for errors.Is.
var (
	// ErrExhausted: nothing is free. What was handed out stays as it is.
	ErrExhausted = errors.New("address range exhausted")
	// ErrTaken: the address is handed out already.
	ErrTaken = errors.New("address taken")
	// ErrOutsideRange: the address is none that the Pool hands out.
	ErrOutsideRange = errors.New("address outside the tunnel range")
)

// windowBits is the length of that part of an IPv6 range from which addresses
// are handed out: its first 65,536. The library keeps a bit for each and goes no
// further, and beyond 2⁶⁴ it mistakes one address for another.
const windowBits = 112

// Pool hands out tunnel addresses, at most from one range of each family. It
// never hands out a range's first address, which is the network's own in IPv4
// and the subnet-router anycast address in IPv6 (RFC 4291, 2.6.1), nor the last,
// which is IPv4's broadcast address. Of an IPv6 range it hands out the first
// 65,534 others, however long the range is.
//
// A Pool takes memory for one bit per address up to the highest in use. It is not
// safe for concurrent use: the goroutine that owns the nodes owns it too.
type Pool struct {
	ranges map[mesh.Family]*tunnelRange
}

type tunnelRange struct {
	declared netip.Prefix
	window   netip.Prefix
	alloc    *ipallocator.Range
}

// New makes a Pool of the given ranges: canonical, at most one of each family,
// each with room for two addresses at least.
func New(ranges []netip.Prefix) (*Pool, error) {
	p := &Pool{ranges: map[mesh.Family]*tunnelRange{}}
	for _, declared := range ranges {
		if err := mesh.ValidatePrefix(declared); err != nil {
			return nil, fmt.Errorf("tunnel range: %w", err)
		}
		f := mesh.FamilyOf(declared.Addr())
		if other, ok := p.ranges[f]; ok {
			return nil, fmt.Errorf("tunnel ranges %v and %v: want at most one of %v", other.declared, declared, f)
		}
		if room := f.Bits() - 2; declared.Bits() > room {
			return nil, fmt.Errorf("tunnel range %v has no room for nodes: want /%d or larger", declared, room)
		}
		r := &tunnelRange{declared: declared, window: declared}
		if f == mesh.IPv6 && declared.Bits() < windowBits {
			r.window = netip.PrefixFrom(declared.Addr(), windowBits)
		}
		var err error
		r.alloc, err = ipallocator.NewAllocatorCIDRRange(ipNet(r.window), newRotation)
		if err != nil {
			return nil, fmt.Errorf("tunnel range %v: %w", declared, err)
		}
		p.ranges[f] = r
	}
	return p, nil
}

// Allocate hands out an address of the family: the first free one behind the one
// handed out last, round and round, so that a new node does not soon inherit the
// address of one that has just left. Its errors are ErrExhausted, and an error
// that is none of this package's where the Pool has no range of the family.
func (p *Pool) Allocate(f mesh.Family) (netip.Addr, error) {
	r, ok := p.ranges[f]
	if !ok {
		return netip.Addr{}, fmt.Errorf("the mesh has no %v tunnel range: set one with --tunnel-cidr", f)
	}
	ip, err := r.alloc.AllocateNext()
	if errors.Is(err, ipallocator.ErrFull) {
		return netip.Addr{}, r.exhausted()
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("allocate from tunnel range %v: %w", r.declared, err)
	}
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap(), nil
}

func (r *tunnelRange) exhausted() error {
	advice := "restart the control plane with a larger --tunnel-cidr that contains this one, so that every node keeps its address"
	if r.window.Addr().Is6() && r.window.Bits() <= windowBits {
		advice = "no more are handed out of one IPv6 range; remove nodes that are gone"
	}
	return fmt.Errorf("tunnel range %v: all %d addresses are taken; %s: %w", r.declared, r.alloc.Used(), advice, ErrExhausted)
}

// AllocateExact takes a given address: one that a node held before a restart, or
// wishes for. Its errors are ErrTaken and ErrOutsideRange; the latter also for a
// range's first and last address.
func (p *Pool) AllocateExact(a netip.Addr) error {
	r := p.holder(a)
	if r == nil {
		return fmt.Errorf("tunnel address %v: %w %s", a, ErrOutsideRange, p)
	}
	err := r.alloc.Allocate(a.AsSlice())
	var outside *ipallocator.ErrNotInRange
	switch {
	case errors.Is(err, ipallocator.ErrAllocated):
		return fmt.Errorf("tunnel address %v: %w", a, ErrTaken)
	case errors.As(err, &outside):
		return fmt.Errorf("tunnel address %v, the first or last of %v, is no node's: %w", a, r.window, ErrOutsideRange)
	case err != nil:
		return fmt.Errorf("take tunnel address %v: %w", a, err)
	}
	return nil
}

// Release gives an address back. One that is not handed out, or not in a range,
// is left alone.
func (p *Pool) Release(a netip.Addr) {
	if r := p.holder(a); r != nil {
		// The bitmap behind it has no way to fail.
		_ = r.alloc.Release(a.AsSlice())
	}
}

// Free returns how many addresses of the family can still be handed out.
func (p *Pool) Free(f mesh.Family) int {
	if r, ok := p.ranges[f]; ok {
		return r.alloc.Free()
	}
	return 0
}

// String lists what addresses are handed out of: "198.19.0.0/16, fd00::/112".
func (p *Pool) String() string {
	var s string
	for _, f := range mesh.Families {
		if r, ok := p.ranges[f]; ok {
			if s != "" {
				s += ", "
			}
			s += r.window.String()
		}
	}
	return s
}

// holder returns the range whose window a lies in, or nil. An IPv4-mapped address
// and one with a zone lie in none.
func (p *Pool) holder(a netip.Addr) *tunnelRange {
	for _, r := range p.ranges {
		if r.window.Contains(a) {
			return r
		}
	}
	return nil
}

// ipNet converts a canonical prefix. IPv4 keeps its 4-byte form.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// rotation is the library's bitmap with a search of its own: from behind the last
// item taken, where the library's start at the lowest or at random.
type rotation struct {
	*allocator.AllocationBitmap
	next, size int
}

func newRotation(size int, name string) (allocator.Interface, error) {
	return &rotation{AllocationBitmap: allocator.NewContiguousAllocationMap(size, name), size: size}, nil
}

// AllocateNext takes the next free item and reports false where there is none.
func (r *rotation) AllocateNext() (int, bool, error) {
	if r.Free() == 0 {
		return 0, false, nil
	}
	for i := range r.size {
		item := (r.next + i) % r.size
		if ok, err := r.AllocationBitmap.Allocate(item); ok || err != nil {
			r.next = item + 1
			return item, ok, err
		}
	}
	return 0, false, nil
}

// Allocate takes one item. A search goes on behind the highest one that was taken
// so: after a restart, which restores in any order, that is where the last run was.
func (r *rotation) Allocate(item int) (bool, error) {
	ok, err := r.AllocationBitmap.Allocate(item)
	if ok {
		r.next = max(r.next, item+1)
	}
	return ok, err
}
