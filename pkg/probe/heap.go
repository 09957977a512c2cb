package probe

import (
	"container/heap"
	"time"
)

// timed is an element of a minHeap: when it is due, and where it keeps its place.
type timed interface {
	dueAt() time.Time
	place() *int
}

// minHeap orders elements by when they are due. An element knows its place, so
// that it can be moved or removed; a place of -1 means that it is in no heap.
type minHeap[T timed] struct{ items items[T] }

func (h *minHeap[T]) len() int   { return len(h.items) }
func (h *minHeap[T]) push(x T)   { heap.Push(&h.items, x) }
func (h *minHeap[T]) fix(x T)    { heap.Fix(&h.items, *x.place()) }
func (h *minHeap[T]) remove(x T) { heap.Remove(&h.items, *x.place()) }

// first returns the element due first, if there is one.
func (h *minHeap[T]) first() (x T, ok bool) {
	if len(h.items) == 0 {
		return x, false
	}
	return h.items[0], true
}

// dueBy returns the element due first if it is due by now.
func (h *minHeap[T]) dueBy(now time.Time) (x T, ok bool) {
	if x, ok = h.first(); ok && !x.dueAt().After(now) {
		return x, true
	}
	return x, false
}

// items implements heap.Interface.
type items[T timed] []T

func (q items[T]) Len() int           { return len(q) }
func (q items[T]) Less(i, j int) bool { return q[i].dueAt().Before(q[j].dueAt()) }

func (q items[T]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	*q[i].place() = i
	*q[j].place() = j
}

func (q *items[T]) Push(x any) {
	t := x.(T)
	*t.place() = len(*q)
	*q = append(*q, t)
}

func (q *items[T]) Pop() any {
	old := *q
	t := old[len(old)-1]
	var zero T
	old[len(old)-1] = zero
	*q = old[:len(old)-1]
	*t.place() = -1
	return t
}
