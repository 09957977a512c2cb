package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/flatmesh/flatmesh/pkg/xds"
)

// takeUnsaved returns what the file lacks, and takes it as saved.
func (c *cache) takeUnsaved() []record {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.unsaved) == 0 {
		return nil
	}
	out := make([]record, 0, len(c.unsaved))
	for k := range c.unsaved {
		out = append(out, c.sets[k.setKey].record(k))
	}
	clear(c.unsaved)
	return out
}

// notSaved takes takeUnsaved back: what is unsaved is looked at again.
func (c *cache) notSaved(records []record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range records {
		c.unsaved[r.key] = struct{}{}
	}
}

// content returns everything, also what is not to be kept.
func (c *cache) content() []record {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []record
	for _, s := range c.sets {
		for _, e := range s.entries {
			out = append(out, s.record(e.key))
		}
	}
	return out
}

// record returns what is to be kept of a name: not that it does not exist, since by
// the time that this is read it may well do. Must hold the cache's mutex.
func (s *set) record(k key) record {
	switch e := s.entries[k.name]; {
	case e == nil || e.answer != xds.Found:
		return record{key: k}
	case k.name == wildcard:
		return record{k, &discovery.Resource{}}
	default:
		return record{k, e.resource}
	}
}

// save brings the file up to date with a cache.
func (j *journal) save(c *cache) error {
	changed := c.takeUnsaved()
	if len(changed) == 0 {
		return nil
	}
	err := j.append(changed)
	if errors.Is(err, errNoFile) || err == nil && j.size > 2*j.live+slack {
		// What is changed meanwhile is unsaved, and is then written twice.
		err = j.rewrite(c.content())
	}
	if err != nil {
		c.notSaved(changed)
		return fmt.Errorf("keep the xDS cache on disk, in %s: %w", j.path, err)
	}
	return nil
}

// errNoFile says that there is no file, or not the one that was written last.
var errNoFile = errors.New("there is no such file")

// append writes records behind the last one.
func (j *journal) append(records []record) (err error) {
	f, err := os.OpenFile(j.path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoFile
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || j.size == 0 || info.Size() < j.size {
		return errors.Join(err, errNoFile)
	}
	var b []byte
	sizes := make([]int64, len(records))
	wildcardsLast(records)
	for i, r := range records {
		before := len(b)
		var err error
		if b, err = appendRecord(b, r); err != nil {
			return err
		}
		sizes[i] = int64(len(b) - before)
	}
	// What a write that failed, or a crash, left behind must not follow.
	if err := f.Truncate(j.size); err != nil {
		return err
	}
	if _, err := f.WriteAt(b, j.size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	j.size += int64(len(b))
	for i, r := range records {
		j.account(r.key, sizes[i], r.resource == nil)
	}
	return nil
}

// rewrite replaces the file by one that holds only these records.
func (j *journal) rewrite(records []record) error {
	b, err := json.Marshal(journalHeader{Format: journalFormat, Node: j.node})
	if err != nil {
		return err
	}
	b = append(b, '\n')
	sizes := make(map[key]int64, len(records))
	var live int64
	wildcardsLast(records)
	for _, r := range records {
		if r.resource == nil {
			continue
		}
		before := len(b)
		if b, err = appendRecord(b, r); err != nil {
			return err
		}
		sizes[r.key] = int64(len(b) - before)
		live += sizes[r.key]
	}
	err = writeWhole(j.path, 0o600, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	j.size, j.live, j.sizes = int64(len(b)), live, sizes
	return nil
}

// wildcardsLast puts them last: where a crash cuts a write off, what says that a
// type is complete must not be there without all of it.
func wildcardsLast(records []record) {
	slices.SortStableFunc(records, func(a, b record) int {
		switch x, y := a.name == wildcard, b.name == wildcard; {
		case x == y:
			return 0
		case y:
			return -1
		default:
			return 1
		}
	})
}
