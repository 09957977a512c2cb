package store

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"go.etcd.io/bbolt"
)

var (
	// ErrLocked: another process has the file open.
	ErrLocked = errors.New("is in use by another process")
	// ErrNewerFormat: the file was written by a later version.
	ErrNewerFormat = errors.New("the file has a newer format")
)

// Store is an open file. It may be used by several goroutines; calls take turns.
type Store struct {
	path string

	mu sync.Mutex
	// Guarded by mu. broken is set when bbolt met damage in the middle of a call:
	// it may still hold its locks, so it is never called again.
	db     *bbolt.DB
	broken error
}

// Update collects changes with fn and stores them all in one commit, or none. It
// returns when they are on disk. Where fn returns an error nothing is stored.
// After an error of the disk (such as ENOSPC) what was stored before is still
// there, and the same Update may be tried again.
func (s *Store) Update(fn func(*Tx) error) error {
	tx := &Tx{changes: map[id][]byte{}}
	if err := fn(tx); err != nil {
		return err
	}
	if tx.err != nil {
		return fmt.Errorf("write to %s: %w", s.path, tx.err)
	}
	return s.commit(func(w *writer) error {
		for at, value := range tx.changes {
			if err := w.set(at, value); err != nil {
				return err
			}
		}
		return nil
	})
}

// Load reads everything. An error names the record that cannot be read.
func (s *Store) Load() (Snapshot, error) {
	return s.view(func(tx *bbolt.Tx) (Snapshot, error) {
		records, err := recordsIn(tx, buckets()...)
		if err != nil {
			return Snapshot{}, err
		}
		if err := checkTotal(records); err != nil {
			return Snapshot{}, err
		}
		return snapshotOf(records)
	})
}

func (s *Store) view(read func(*bbolt.Tx) (Snapshot, error)) (snapshot Snapshot, err error) {
	err = s.guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) (err error) {
			snapshot, err = read(tx)
			return err
		})
	})
	if err != nil {
		return Snapshot{}, fmt.Errorf("read %s: %w", s.path, err)
	}
	return snapshot, nil
}

// Close releases the file.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil // closing waits for locks that may never be released
	}
	return s.db.Close()
}

// recordsIn returns the records of some buckets. Their values end with the
// transaction.
func recordsIn(tx *bbolt.Tx, names ...string) ([]record, error) {
	var records []record
	for _, name := range names {
		bucket, err := bucketOf(tx, name)
		if err != nil {
			return nil, err
		}
		if err := bucket.ForEach(func(k, v []byte) error {
			records = append(records, record{id{name, string(k)}, v})
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// guard runs one bbolt transaction. The file was sound when it was opened, but a
// disk that fails, or somebody who truncates the file, shows as a panic or a
// memory fault (SIGBUS) in bbolt: both become an error, for this call and all
// later ones.
func (s *Store) guard(transaction func() error) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			s.broken = fmt.Errorf("the file was damaged while it was open (%v): restart the control plane, which then checks it", p)
			err = s.broken
		}
	}()
	return transaction()
}
