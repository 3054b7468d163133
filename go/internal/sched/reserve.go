package sched

import (
	"context"
	"slices"
	"sync"

	"github.com/ollmlx/ollmlx/go/internal/memory"
)

// reservation is memory for work that is no model: one that waits, or one that is given.
type reservation struct {
	what   string
	bytes  uint64
	result chan error
}

// Reserve waits until bytes are free, making room as for a model, and sets them aside for work that is described by what,
// until release is called. Requests whose model does not fit meanwhile wait. What would not fit into an empty machine is
// refused, as a model is.
//
// What the work has taken already counts twice, as the machine has less and the reservation stays: it is small, and the
// error is on the safe side.
func (s *Scheduler) Reserve(ctx context.Context, what string, bytes uint64) (release func(), err error) {
	if s.params.Memory == nil {
		return func() {}, nil
	}
	r := &reservation{what: what, bytes: bytes, result: make(chan error, 1)}
	if !s.do(func(l *loop) {
		l.reservations = append(l.reservations, r)
		l.admit()
	}) {
		return nil, ErrShutdown
	}
	release = sync.OnceFunc(func() {
		s.do(func(l *loop) { l.giveBack(r) })
	})
	select {
	case err := <-r.result:
		if err != nil {
			return nil, err
		}
		return release, nil
	case <-ctx.Done():
		release()
		return nil, ErrRequestCanceled
	case <-s.stopped:
		return nil, ErrShutdown
	}
}

// reserve looks at what waits for memory, oldest first, and sets aside in free what is given or waits.
func (l *loop) reserve(free *room) {
	l.reservations = slices.DeleteFunc(l.reservations, func(r *reservation) bool {
		switch {
		case r.bytes > free.most:
			r.result <- memory.TooBig(r.what, r.bytes, free.most, l.s.params.Memory.Overhead())
			return true
		case free.bytes >= int64(r.bytes):
			free.bytes -= int64(r.bytes)
			l.reserved = append(l.reserved, r)
			r.result <- nil
			return true
		}
		free.bytes -= int64(r.bytes)
		l.makeRoom(*free)
		return false
	})
}

// giveBack ends a reservation, be it given or waiting.
func (l *loop) giveBack(r *reservation) {
	same := func(x *reservation) bool { return x == r }
	l.reserved = slices.DeleteFunc(l.reserved, same)
	l.reservations = slices.DeleteFunc(l.reservations, same)
	l.admit()
}
