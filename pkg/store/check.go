package store

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
)

// The parts of bbolt's file format that the check reads
// (go.etcd.io/bbolt/internal/common, version 2): pages of 2^n bytes, of which 0
// and 1 are metas.
const (
	pageHeader = 16 // id u64, flags u16, count u16, overflow u32
	element    = 16 // leaf: flags, pos, key, value u32; branch: pos, key u32, page u64
	metaSize   = 64 // magic, version, page size, flags u32; root, sequence, freelist, pages, txid, sum u64

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketEntry  = 0x01

	// noFreelist stands for one that is not stored.
	noFreelist = ^uint64(0)
	// firstCommit is the transaction after the two that a new file begins with.
	firstCommit = 2
)

// corruption is anything wrong with the content, as against not being able to
// read it.
type corruption struct{ cause error }

func (c *corruption) Error() string { return c.cause.Error() }
func (c *corruption) Unwrap() error { return c.cause }

func corrupt(format string, args ...any) error {
	return &corruption{fmt.Errorf(format, args...)}
}

// errUnborn: the file's making was interrupted, so nothing was ever stored.
var errUnborn = errors.New("interrupted while it was made")

// check reads a file from end to end, without mapping it and without trusting
// any number in it, and reports everything that bbolt would stumble over or
// that does not decode as a *corruption. Pages that are merely lost are
// harmless. It reports whether the file is new and holds nothing.
func check(file io.ReaderAt, size int64) (empty bool, err error) {
	if size == 0 {
		return true, nil
	}
	c := &checker{file: file, size: size, seen: map[uint64]bool{}}
	m, bothGood, err := c.metas()
	if err != nil {
		return false, err
	}
	if m.txid < firstCommit && c.size < 4*c.pageSize {
		return false, errUnborn
	}
	c.pages = m.pages
	if m.pages > uint64(c.size/c.pageSize) {
		return false, corrupt("truncated: %d bytes, want at least %d pages of %d", c.size, m.pages, c.pageSize)
	}
	names, records, err := c.buckets(m.root)
	if err != nil {
		return false, err
	}
	if m.freelist != noFreelist {
		if err := c.freelist(m.freelist); err != nil {
			return false, err
		}
	}
	if len(names) == 0 {
		if !bothGood {
			return false, corrupt("one meta page is damaged, and the other is of a time before anything was stored")
		}
		return true, nil
	}
	if err := checkFormat(records); errors.Is(err, ErrNewerFormat) {
		return false, err
	} else if err != nil {
		return false, &corruption{err}
	}
	if !slices.Equal(names, buckets()) {
		return false, corrupt("it holds the buckets %q, want %q", names, buckets())
	}
	if err := checkTotal(records); err != nil {
		return false, &corruption{err}
	}
	if _, err := snapshotOf(records); err != nil {
		return false, &corruption{err}
	}
	return false, nil
}

// checker walks a file.
type checker struct {
	file     io.ReaderAt
	size     int64
	pageSize int64
	// pages is the number of pages in use; seen are those that were reached.
	pages uint64
	seen  map[uint64]bool
}

type meta struct {
	root, freelist, pages, txid uint64
}

// read never reads beyond the end that it has checked, so an error is the
// disk's.
func (c *checker) read(at, n int64) ([]byte, error) {
	if at+n > c.size {
		return nil, corrupt("truncated: %d bytes at %d, the file ends at %d", n, at, c.size)
	}
	b := make([]byte, n)
	if _, err := c.file.ReadAt(b, at); err != nil {
		return nil, err
	}
	return b, nil
}

// metas finds the page size and the newest good meta, as bbolt does.
func (c *checker) metas() (newest meta, bothGood bool, err error) {
	for size := int64(1 << 10); size <= 1<<24; size <<= 1 {
		good := 0
		for _, at := range []int64{0, size} {
			m, pageSize, err := c.meta(at)
			var damaged *corruption
			switch {
			case errors.As(err, &damaged), err == nil && pageSize != size:
			case err != nil:
				return meta{}, false, err
			default:
				if good++; good == 1 || m.txid > newest.txid {
					newest = m
				}
			}
		}
		if good > 0 {
			c.pageSize = size
			return newest, good == 2, nil
		}
	}
	return meta{}, false, corrupt("neither meta page is sound: damaged, or no bbolt file")
}

// meta reads the meta page at an offset.
func (c *checker) meta(at int64) (m meta, pageSize int64, err error) {
	b, err := c.read(at, pageHeader+metaSize)
	if err != nil {
		return meta{}, 0, err
	}
	b = b[pageHeader:]
	sum := fnv.New64a()
	sum.Write(b[:metaSize-8])
	if u32(b) != boltMagic || sum.Sum64() != u64(b[metaSize-8:]) {
		return meta{}, 0, corrupt("meta page at %d: damaged", at)
	}
	if v := u32(b[4:]); v != boltVersion {
		return meta{}, 0, fmt.Errorf("%w: bbolt's version %d, this version reads %d", ErrNewerFormat, v, boltVersion)
	}
	return meta{root: u64(b[16:]), freelist: u64(b[32:]), pages: u64(b[40:]), txid: u64(b[48:])}, int64(u32(b[8:])), nil
}
