package sched

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// trimTimeout bounds the wait for a runner that is to give back what its caches hold; it answers between two steps.
const trimTimeout = 30 * time.Second

// trimPause is how long a runner whose caches could not be shrunk as far as wanted is not asked again.
const trimPause = 10 * time.Second

// room is what further models may take: places and bytes. Below zero is what is missing.
type room struct {
	places int
	bytes  int64
	// most is what there would be if nothing was loaded.
	most uint64
}

// room adds up what is free and takes off what loaded models have been promised and do not hold yet.
func (l *loop) room() room {
	free := room{places: math.MaxInt, bytes: math.MaxInt64, most: math.MaxUint64}
	if n := l.s.params.MaxLoaded; n > 0 {
		free.places = n - len(l.entries)
	}
	if l.s.params.Memory == nil {
		return free
	}
	var owed int64
	var loads uint64
	held := l.dropping
	if l.s.params.Spare != nil {
		held += l.s.params.Spare.Held()
	}
	for _, e := range l.entries {
		has := e.held()
		held += has
		owed += int64(e.committed - min(has, e.committed))
		if e.instance == nil {
			// It may hold this much already.
			loads += e.committed
		}
	}
	for _, r := range l.reserved {
		owed += int64(r.bytes)
	}
	available := l.s.params.Memory.Available(held)
	free.bytes, free.most = int64(available)-owed, available+held+loads
	return free
}

// held is what the runner has now; of one that loads nothing is known yet.
func (e *entry) held() uint64 {
	if e.instance == nil {
		return 0
	}
	return e.instance.Held()
}

// holds reports whether there is room for w's model.
func (r *room) holds(w *waiter) bool {
	return r.places > 0 && (w.need == nil || r.bytes >= int64(w.need.Least().Min()))
}

func (r *room) usable() uint64 { return uint64(max(r.bytes, 0)) }

func (r *room) take(bytes uint64) {
	r.places--
	r.bytes -= int64(bytes)
}

// reserve sets aside what w's model takes at least.
func (r *room) reserve(w *waiter) {
	var bytes uint64
	if w.need != nil {
		bytes = w.need.Least().Min()
	}
	r.take(bytes)
}

// refuse fails w when its model has failed too often lately, or could not be loaded if it were alone.
func (l *loop) refuse(w *waiter, most uint64) bool {
	if err := l.failures.check(w.key, time.Now()); err != nil {
		l.s.params.Metrics.Refused("failing")
		w.fail(err)
		return true
	}
	if w.need == nil {
		return false
	}
	least := w.need.Least()
	if least.Min() <= most {
		return false
	}
	l.s.params.Metrics.Refused("memory")
	err := memory.TooBig(w.name(), least.Min(), most, l.s.params.Memory.Overhead())
	l.s.log.Error("sched: model does not fit", "model", w.name(), "error", err)
	w.fail(err)
	return true
}

// makeRoom sees to it that what is missing in free becomes free: caches are shrunk if that is enough, else idle runners
// are stopped, least recently used first; when there is none the least recently used busy one is taken out of service,
// so that a model in constant use cannot starve the others. A loading one is left alone.
func (l *loop) makeRoom(free room) {
	var candidates []*entry
	for _, e := range l.entries {
		switch {
		case e.phase == stopping || e.draining:
			free.places++
			free.bytes += int64(e.committed)
		case e.phase == ready:
			candidates = append(candidates, e)
		}
	}
	if free.bytes < 0 {
		free.bytes += int64(l.dropSpare())
	}
	if free.places >= 0 && free.bytes < 0 && l.trimFor(candidates, -free.bytes) {
		return
	}
	slices.SortFunc(candidates, func(a, b *entry) int {
		if (a.leases == 0) != (b.leases == 0) {
			if a.leases == 0 {
				return -1
			}
			return 1
		}
		return a.lastUsed.Compare(b.lastUsed)
	})
	for _, e := range candidates {
		if free.places >= 0 && free.bytes >= 0 {
			return
		}
		free.places++
		free.bytes += int64(e.committed)
		if e.leases == 0 {
			l.stop(e, evicted)
		} else {
			e.draining = true
		}
	}
}

// trimFor shrinks caches so that missing bytes become free, and reports false if that cannot be enough.
func (l *loop) trimFor(candidates []*entry, missing int64) bool {
	var slack int64
	for _, e := range candidates {
		slack += e.slack()
	}
	if slack < missing {
		return false
	}
	slices.SortFunc(candidates, func(a, b *entry) int { return a.lastUsed.Compare(b.lastUsed) })
	for _, e := range candidates {
		if missing <= 0 {
			break
		}
		missing -= e.slack()
		l.trim(e)
	}
	return true
}

// slack is what a runner may be talked out of.
func (e *entry) slack() int64 {
	if !e.trimming && time.Since(e.trimmed) < trimPause {
		return 0
	}
	return int64(e.committed - min(e.floor, e.committed))
}

// trim asks a runner to do with the least. What its running requests hold it keeps.
func (l *loop) trim(e *entry) {
	if e.trimming || e.slack() == 0 {
		return
	}
	e.trimming = true
	fixed := e.floor - min(e.kvFloor, e.floor)
	l.s.log.Info("sched: shrinking caches", "model", modelname.Display(e.model.Name), "from", e.committed-fixed, "to", e.kvFloor)
	l.s.params.Metrics.Trimmed()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), trimTimeout)
		defer cancel()
		got, err := e.instance.Trim(ctx, &runnerpb.TrimRequest{KvCacheBytes: e.kvFloor})
		l.s.do(func(l *loop) {
			e.trimming, e.trimmed = false, time.Now()
			if err != nil {
				l.s.log.Warn("sched: caches could not be shrunk", "model", modelname.Display(e.model.Name), "error", err)
			} else {
				e.committed = min(e.committed, fixed+max(got.GetKvCacheBytes(), e.kvFloor))
			}
			l.admit()
		})
	}()
}

// dropSpare ends the runner that waits for a model; it returns what that sets free, now or soon.
func (l *loop) dropSpare() uint64 {
	spare := l.s.params.Spare
	if spare == nil {
		return 0
	}
	if held := spare.Held(); held > 0 {
		l.dropping += held
		l.s.log.Info("sched: the spare runner makes room")
		spare.Drop(func() {
			l.s.do(func(l *loop) {
				l.dropping -= held
				l.admit()
			})
		})
	}
	return l.dropping
}
