package store

import (
	"bytes"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// errUnchanged rolls a transaction back that has nothing to write, so that it
// costs no sync to disk.
var errUnchanged = errors.New("unchanged")

// commit runs fn in a transaction, which is committed where fn has changed
// something.
func (s *Store) commit(fn func(*writer) error) error {
	err := s.guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			w, err := newWriter(tx)
			if err != nil {
				return err
			}
			if err := fn(w); err != nil {
				return err
			}
			return w.finish()
		})
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return fmt.Errorf("write to %s: %w", s.path, err)
	}
	return nil
}

// writer changes records in a transaction and keeps their total.
type writer struct {
	tx      *bbolt.Tx
	total   uint32
	changed bool
}

func newWriter(tx *bbolt.Tx) (*writer, error) {
	w := &writer{tx: tx}
	bucket, err := bucketOf(tx, metaBucket)
	if err != nil {
		return nil, err
	}
	held := record{id{metaBucket, totalKey}, bucket.Get([]byte(totalKey))}
	if held.value == nil {
		return w, nil // the first commit
	}
	return w, held.decode(&w.total)
}

// put stores v, where it is not what is there.
func (w *writer) put(at id, v any) error {
	value, err := encode(at, v)
	if err != nil {
		return err
	}
	return w.set(at, value)
}

// set stores an encoded value, or deletes it where it is nil.
func (w *writer) set(at id, value []byte) error {
	bucket, err := bucketOf(w.tx, at.bucket)
	if err != nil {
		return err
	}
	key := []byte(at.key)
	held := bucket.Get(key)
	if bytes.Equal(held, value) { // a stored value is never empty
		return nil
	}
	w.changed = true
	w.total ^= sumIn(held) ^ sumIn(value)
	if value == nil {
		err = bucket.Delete(key)
	} else {
		err = bucket.Put(key, value)
	}
	if err != nil {
		return fmt.Errorf("%v: %w", at, err)
	}
	return nil
}

func (w *writer) finish() error {
	if !w.changed {
		return errUnchanged
	}
	return w.put(id{metaBucket, totalKey}, w.total)
}

func bucketOf(tx *bbolt.Tx, name string) (*bbolt.Bucket, error) {
	bucket := tx.Bucket([]byte(name))
	if bucket == nil {
		return nil, fmt.Errorf("bucket %q is missing", name)
	}
	return bucket, nil
}
