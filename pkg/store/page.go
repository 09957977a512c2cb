package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// bbolt writes numbers in the machine's byte order.
func u16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
func u32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func u64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// page is a page with its overflow, or the page inside an inline bucket.
type page struct {
	name  string // for messages
	flags uint16
	count int
	data  []byte
}

func newPage(name string, data []byte) page {
	return page{name, u16(data[8:]), int(u16(data[10:])), data}
}

// page reads a page that nothing else may refer to.
func (c *checker) page(number uint64) (page, error) {
	if number < 2 || number >= c.pages {
		return page{}, corrupt("page %d is outside the %d in use", number, c.pages)
	}
	at := int64(number) * c.pageSize
	header, err := c.read(at, pageHeader)
	if err != nil {
		return page{}, err
	}
	if id := u64(header); id != number {
		return page{}, corrupt("page %d says that it is page %d", number, id)
	}
	more := uint64(u32(header[12:]))
	if number+more >= c.pages {
		return page{}, corrupt("page %d goes on beyond the %d in use", number, c.pages)
	}
	for i := range more + 1 {
		if err := c.reach(number + i); err != nil {
			return page{}, err
		}
	}
	data, err := c.read(at, int64(more+1)*c.pageSize)
	if err != nil {
		return page{}, err
	}
	return newPage(fmt.Sprintf("page %d", number), data), nil
}

// reach marks a page, which ends every circle of references.
func (c *checker) reach(number uint64) error {
	if c.seen[number] {
		return corrupt("page %d is used twice", number)
	}
	c.seen[number] = true
	return nil
}

// slice returns n bytes that lie pos bytes after the i-th element and behind
// all of them.
func (p page) slice(i int, pos uint32, n uint64) ([]byte, error) {
	from := uint64(pageHeader+i*element) + uint64(pos)
	to := from + n
	if from < uint64(pageHeader+p.count*element) || to > uint64(len(p.data)) {
		return nil, corrupt("%s: element %d lies at %d to %d of %d bytes", p.name, i, from, to, len(p.data))
	}
	return p.data[from:to], nil
}

func (p page) element(i int) ([]byte, error) {
	from := pageHeader + i*element
	if from+element > len(p.data) {
		return nil, corrupt("%s: no room for %d elements", p.name, p.count)
	}
	return p.data[from : from+element], nil
}

// keys checks that keys ascend from low and stay below high (nil: no bound).
type keys struct{ low, high []byte }

func (k *keys) next(p page, i int, key []byte) error {
	if order := bytes.Compare(k.low, key); k.low != nil && (order > 0 || (order == 0 && i > 0)) {
		return corrupt("%s: key %d, %q, comes after %q", p.name, i, key, k.low)
	}
	if k.high != nil && bytes.Compare(key, k.high) >= 0 {
		return corrupt("%s: key %d, %q, is not below %q", p.name, i, key, k.high)
	}
	k.low = key
	return nil
}

// visitor is called with every key of a bucket, in order.
type visitor func(isBucket bool, key, value []byte) error

// tree walks the pages of a bucket.
func (c *checker) tree(root uint64, bounds keys, visit visitor) error {
	p, err := c.page(root)
	if err != nil {
		return err
	}
	switch p.flags {
	case leafPage:
		return p.leaf(bounds, visit)
	case branchPage:
		return c.branch(p, bounds, visit)
	default:
		return corrupt("%s is of kind %#x where a branch or leaf is expected", p.name, p.flags)
	}
}

func (c *checker) branch(p page, bounds keys, visit visitor) error {
	if p.count == 0 {
		return corrupt("%s is a branch with nothing below it", p.name)
	}
	type child struct {
		page uint64
		low  []byte
	}
	children := make([]child, p.count)
	order := bounds
	for i := range children {
		e, err := p.element(i)
		if err != nil {
			return err
		}
		key, err := p.slice(i, u32(e), uint64(u32(e[4:])))
		if err != nil {
			return err
		}
		if err := order.next(p, i, key); err != nil {
			return err
		}
		children[i] = child{u64(e[8:]), key}
	}
	for i, child := range children {
		high := bounds.high
		if i+1 < len(children) {
			high = children[i+1].low
		}
		if err := c.tree(child.page, keys{child.low, high}, visit); err != nil {
			return err
		}
	}
	return nil
}

func (p page) leaf(bounds keys, visit visitor) error {
	for i := range p.count {
		e, err := p.element(i)
		if err != nil {
			return err
		}
		flags, pos, keySize, valueSize := u32(e), u32(e[4:]), uint64(u32(e[8:])), uint64(u32(e[12:]))
		both, err := p.slice(i, pos, keySize+valueSize) // the value follows the key
		if err != nil {
			return err
		}
		key, value := both[:keySize], both[keySize:]
		if err := bounds.next(p, i, key); err != nil {
			return err
		}
		if err := visit(flags&bucketEntry != 0, key, value); err != nil {
			return err
		}
	}
	return nil
}

// buckets walks the root and the buckets in it, which hold records alone.
func (c *checker) buckets(root uint64) (names []string, records []record, err error) {
	err = c.tree(root, keys{}, func(isBucket bool, name, header []byte) error {
		if !isBucket || len(header) < pageHeader {
			return corrupt("%q at the root is no bucket", name)
		}
		names = append(names, string(name))
		visit := func(isBucket bool, key, value []byte) error {
			if isBucket {
				return corrupt("bucket %q: %q is a bucket too", name, key)
			}
			records = append(records, record{id{string(name), string(key)}, value})
			return nil
		}
		if root := u64(header); root != 0 {
			return c.tree(root, keys{}, visit)
		}
		// A small bucket lies in its parent: a leaf page behind root and sequence.
		if len(header) < 2*pageHeader {
			return corrupt("bucket %q is cut short", name)
		}
		inline := newPage(fmt.Sprintf("bucket %q", name), header[pageHeader:])
		if inline.flags != leafPage {
			return corrupt("bucket %q is of kind %#x where a leaf is expected", name, inline.flags)
		}
		return inline.leaf(keys{}, visit)
	})
	return names, records, err
}

// freelist checks that what is free is nowhere in use: bbolt would write into it.
func (c *checker) freelist(number uint64) error {
	p, err := c.page(number)
	if err != nil {
		return err
	}
	if p.flags != freelistPage {
		return corrupt("%s is of kind %#x where the list of free pages is expected", p.name, p.flags)
	}
	ids, count := p.data[pageHeader:], uint64(p.count)
	if count == 0xffff { // the true number follows
		count, ids = u64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return corrupt("%s: no room for %d free pages", p.name, count)
	}
	last := uint64(1)
	for i := range count {
		free := u64(ids[i*8:])
		if free <= last || free >= c.pages {
			return corrupt("%s: free page %d after %d, of %d", p.name, free, last, c.pages)
		}
		if err := c.reach(free); err != nil {
			return err
		}
		last = free
	}
	return nil
}
