package sched

import (
	"context"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

const (
	// watchInterval is how often the loop looks at runners and memory.
	watchInterval = 2 * time.Second
	// pressureInterval is how long the shrinking of caches may take effect before models are unloaded.
	pressureInterval = 10 * time.Second
	// quietTime is how long nothing must have happened before a spare runner is started, which takes seconds of CPU time.
	quietTime = 3 * time.Second
	// stepGrace is how much longer than its own watchdog a runner is left alone.
	stepGrace = 5 * time.Second
)

// tick is called every watchInterval.
func (l *loop) tick() {
	if l.closing {
		return
	}
	for _, e := range l.entries {
		l.check(e)
	}
	l.relieve()
	l.admit()
	l.fillSpare()
}

// check asks a runner with requests for a sign of life, and kills it when there has been none for too long. Its own
// watchdog ends a hanging step; this is for a process that cannot even do that.
func (l *loop) check(e *entry) {
	if e.phase != ready || e.leases == 0 {
		return
	}
	if e.checking {
		// Counted in looks and not by the clock: after a sleep of the machine, host and runner, nobody has been silent.
		e.silent += watchInterval
		if limit := l.s.params.HangAfter; limit > 0 && e.silent > limit {
			l.hangs(e, errdefs.New(errdefs.ErrUnavailable, "it did not answer for %s", limit))
		}
		return
	}
	e.checking, e.silent = true, 0
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*max(l.s.params.HangAfter, watchInterval))
		defer cancel()
		st, err := e.instance.Status(ctx, &runnerpb.StatusRequest{})
		l.s.do(func(l *loop) {
			e.checking = false
			if err == nil {
				l.heardFrom(e, st)
			}
		})
	}()
}

func (l *loop) heardFrom(e *entry, st *runnerpb.StatusResponse) {
	l.learn(st)
	age := time.Duration(st.GetStepAgeNs())
	if limit := l.s.params.StepLimit; limit > 0 && age > limit+stepGrace {
		l.hangs(e, errdefs.New(errdefs.ErrUnavailable, "a step of its engine has not ended for %s", age.Round(time.Second)))
	}
}

func (l *loop) learn(st *runnerpb.StatusResponse) {
	if l.s.params.Memory == nil {
		return
	}
	var held uint64
	for _, e := range l.entries {
		held += e.held()
	}
	l.s.params.Memory.Learn(st, held)
}

// hangs treats a runner that does not go on as one that has crashed.
func (l *loop) hangs(e *entry, why error) {
	if e.phase != ready {
		return
	}
	l.s.log.Error("sched: killing a runner that hangs", "model", e.name(), "error", why, "requests", e.leases)
	e.instance.Kill(why)
}

// relieve answers other programs that need memory: the spare runner goes, caches shrink, and if that is not enough after
// a while, idle models go one by one.
func (l *loop) relieve() {
	if l.s.params.Memory == nil || l.s.params.Memory.Available(0) > 0 {
		l.pressedSince = time.Time{}
		return
	}
	if l.pressedSince.IsZero() {
		l.pressedSince = time.Now()
		l.s.log.Warn("sched: memory is short")
	}
	if l.dropSpare() > 0 {
		return
	}
	trimming := false
	var idle *entry
	for _, e := range l.entries {
		if e.phase != ready {
			continue
		}
		l.trim(e)
		trimming = trimming || e.trimming
		if e.leases == 0 && (idle == nil || e.lastUsed.Before(idle.lastUsed)) {
			idle = e
		}
	}
	if !trimming && idle != nil && time.Since(l.pressedSince) >= pressureInterval {
		l.pressedSince = time.Now()
		l.stop(idle, pressed)
	}
}

// fillSpare keeps a runner ready for the next load, when nothing else goes on and there is memory for it and for a model.
func (l *loop) fillSpare() {
	spare := l.s.params.Spare
	if spare == nil || spare.Held() > 0 || l.dropping > 0 || len(l.pending) > 0 || !l.pressedSince.IsZero() {
		return
	}
	for _, e := range l.entries {
		if e.leases > 0 || e.phase != ready {
			l.quiet = time.Now()
		}
	}
	if time.Since(l.quiet) < quietTime {
		return
	}
	if l.room().bytes < spareRoom {
		return
	}
	spare.Fill()
}

// spareRoom is how much must be free for a spare runner: itself several times over.
const spareRoom = 1 << 30
