package store

import (
	"errors"

	"go.etcd.io/bbolt"
)

// Order numbers keys in the order of their first appearance: those that have no
// number yet get the next ones, in the order given and in one commit. Numbers
// begin at 1 and are never given twice, also not after ForgetOrder. It returns
// the numbers of all keys in the store. A key must not be empty.
func (s *Store) Order(keys []string) (map[string]uint64, error) {
	var orders map[string]uint64
	err := s.commit(func(w *writer) error {
		held, err := ordersIn(w.tx)
		if err != nil {
			return err
		}
		orders = held.Orders
		last := held.last
		for _, key := range keys {
			if key == "" {
				return errors.New("order: an empty key")
			}
			if orders[key] != 0 {
				continue
			}
			last++
			orders[key] = last
			if err := w.put(id{ordersBucket, key}, last); err != nil {
				return err
			}
		}
		if last == held.last {
			return nil
		}
		return w.put(id{metaBucket, lastOrderKey}, last)
	})
	if err != nil {
		return nil, err
	}
	return orders, nil
}

// Orders returns the numbers of all keys.
func (s *Store) Orders() (map[string]uint64, error) {
	snapshot, err := s.view(ordersIn)
	return snapshot.Orders, err
}

func ordersIn(tx *bbolt.Tx) (Snapshot, error) {
	records, err := recordsIn(tx, metaBucket, ordersBucket)
	if err != nil {
		return Snapshot{}, err
	}
	return snapshotOf(records)
}

// ForgetOrder drops keys, in one commit; see Tx.ForgetOrder.
func (s *Store) ForgetOrder(keys []string) error {
	return s.Update(func(tx *Tx) error {
		tx.ForgetOrder(keys...)
		return nil
	})
}
