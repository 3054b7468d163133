package sched

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// phase is what an entry is doing. It only moves downwards in this list.
type phase int

const (
	// loading: the starter runs; waiters join.
	loading phase = iota
	// ready: leases are given, unless the entry is draining.
	ready
	// stopping: its process is on its way out, or its load is being given up. It still holds its place.
	stopping
)

// entry is one runner, from the moment its start is decided until its process is gone.
type entry struct {
	key string
	// model is the one that was asked for last.
	model *store.Model
	// served are the models that were asked for, by the keys of their names.
	served map[string]*store.Model
	phase  phase
	// cancelLoad gives up the load.
	cancelLoad context.CancelFunc
	// waiters get their leases when the load ends.
	waiters  []*waiter
	instance Instance
	leases   int
	// committed is what the runner has been promised, in bytes; floor is what it cannot be talked below.
	committed, floor uint64
	// kvFloor is the part of floor that caches may use.
	kvFloor uint64
	plan    *memory.Plan
	// trimming: the runner has been asked to give back what it may.
	trimming bool
	trimmed  time.Time
	// checking: the runner has been asked for a sign of life, and has been silent for so long.
	checking bool
	silent   time.Duration
	// draining entries give no more leases because an earlier request needs their place.
	draining  bool
	keepAlive time.Duration
	idleTimer *time.Timer
	// expires is when idleTimer fires; zero while busy and for Forever.
	expires  time.Time
	began    time.Time
	lastUsed time.Time
	// stage is where the load is.
	stage runnerpb.LoadProgress_Stage
}

func (e *entry) serve(m *store.Model) {
	e.model, e.served[modelname.Key(m.Name)] = m, m
}

// others are the served models but for the last.
func (e *entry) others() []*store.Model {
	var others []*store.Model
	for key, m := range e.served {
		if key != modelname.Key(e.model.Name) {
			others = append(others, m)
		}
	}
	return others
}

// forget takes a name from those that are served, and reports whether others are left.
func (e *entry) forget(name string) bool {
	delete(e.served, name)
	if modelname.Key(e.model.Name) == name {
		for _, m := range e.served {
			e.model = m
		}
	}
	return len(e.served) > 0
}

func (e *entry) name() string { return modelname.Display(e.model.Name) }

// waiter is an Acquire that has not returned yet.
type waiter struct {
	key       string
	model     *store.Model
	arrived   time.Time
	keepAlive *time.Duration
	// need is what the model takes; nil when nobody counts.
	need     *memory.Need
	result   chan result
	progress chan *runnerpb.LoadProgress
	// granted is the entry it got a lease on, for an Acquire that gave up at the same moment.
	granted *entry
}

type result struct {
	entry    *entry
	instance Instance
	err      error
}

func (w *waiter) fail(err error) { w.result <- result{err: err} }

func (w *waiter) name() string { return modelname.Display(w.model.Name) }

// reason is why a runner is stopped: a text for the log, a label for metrics.
type reason struct{ text, label string }

var (
	abandoned = reason{"nobody waits for it", "abandoned"}
	expired   = reason{"its keep-alive time is over", "expired"}
	closing   = reason{"the server is shutting down", "shutdown"}
	evicted   = reason{"another model needs its place", "evicted"}
	pressed   = reason{"other programs need its memory", "pressure"}
)

// loop is the state that only the goroutine of run touches.
type loop struct {
	s       *Scheduler
	entries map[string]*entry
	// pending are the requests whose model is not loaded nor loading, oldest first.
	pending []*waiter
	// reservations wait for memory, reserved have it.
	reservations, reserved []*reservation
	failures               failures
	// clearing counts the runners that ended by themselves and whose remains are being cleared away.
	clearing int
	closing  bool
	// dropping is what the spare runner held that is on its way out.
	dropping uint64
	// pressedSince is since when other programs need memory that caches or models have; zero if they do not.
	pressedSince time.Time
	// quiet is since when no load and no request has been under way.
	quiet time.Time
}

func newLoop(s *Scheduler) *loop {
	return &loop{s: s, entries: map[string]*entry{}, failures: failures{}, quiet: time.Now()}
}

func (l *loop) run() {
	defer close(l.s.stopped)
	for !l.closing || len(l.entries) > 0 || l.clearing > 0 {
		(<-l.s.ops)(l)
	}
}

// acquire gives w a lease at once if its model is ready, else queues it.
func (l *loop) acquire(w *waiter) {
	if l.closing {
		w.fail(ErrShutdown)
		return
	}
	if e := l.entries[w.key]; e != nil && e.phase == ready {
		// Its end may be known here before the news of it was told.
		select {
		case <-e.instance.Done():
			l.ended(e)
		default:
		}
	}
	if e := l.entries[w.key]; e != nil && e.phase == ready && !e.draining {
		l.grant(w, e)
		return
	}
	if l.waiting() >= l.s.params.MaxQueue {
		l.s.params.Metrics.Refused("queue")
		w.fail(ErrQueueFull)
		return
	}
	l.pending = append(l.pending, w)
	l.admit()
}

// waiting counts the requests that wait for a load or for a place.
func (l *loop) waiting() int {
	n := len(l.pending)
	for _, e := range l.entries {
		n += len(e.waiters)
	}
	return n
}

// admit looks at the pending requests, oldest first, and does for each what can be done now: give it a lease, let it
// wait for a load, start a load, or make room. It is called after every change that may help one.
func (l *loop) admit() {
	if l.closing {
		return
	}
	for _, e := range l.entries {
		e.draining = false
	}
	var still []*waiter
	// What a request waits for is set aside, so that smaller ones which came later cannot keep it out for ever.
	free, promised := l.room(), map[string]bool{}
	l.reserve(&free)
	for _, w := range l.pending {
		e := l.entries[w.key]
		switch {
		case e != nil && e.phase == ready && !e.draining:
			l.grant(w, e)
		case e != nil && e.phase == loading:
			l.join(w, e)
		case e != nil:
			still = append(still, w)
		case l.refuse(w, free.most):
		case promised[w.key]:
			still = append(still, w)
		case free.holds(w):
			free.take(l.load(w, free))
		default:
			still = append(still, w)
			promised[w.key] = true
			free.reserve(w)
			l.makeRoom(free)
		}
	}
	l.pending = still
	l.s.params.Metrics.Queued(l.waiting())
}

func (l *loop) grant(w *waiter, e *entry) {
	e.leases++
	e.serve(w.model)
	e.lastUsed = time.Now()
	if w.keepAlive != nil {
		e.keepAlive = *w.keepAlive
	}
	e.stopTimer()
	w.granted = e
	w.result <- result{entry: e, instance: e.instance}
}

func (l *loop) join(w *waiter, e *entry) {
	e.waiters = append(e.waiters, w)
	if w.keepAlive != nil {
		e.keepAlive = *w.keepAlive
	}
}

// load starts a runner for w's model and returns what it may take.
func (l *loop) load(w *waiter, free room) uint64 {
	ctx, cancel := context.WithCancel(context.Background())
	e := &entry{key: w.key, model: w.model, served: map[string]*store.Model{}, cancelLoad: cancel, keepAlive: l.s.params.KeepAlive, began: time.Now()}
	order := Load{Model: w.model}
	log := l.s.log.With("model", modelname.Display(w.model.Name))
	if w.need != nil {
		plan := w.need.Fit(free.usable())
		order.Plan, e.plan = &plan, &plan
		e.committed, e.floor, e.kvFloor = plan.Total(), plan.Min(), plan.KVMin
		log = log.With("weights", plan.Weights, "kv_cache", plan.KV, "kv_bytes_per_token", plan.KVPerToken, "base", plan.Base)
	}
	l.entries[e.key] = e
	l.join(w, e)
	log.Info("sched: loading model")
	l.replace(w)
	go func() {
		defer cancel()
		inst, err := l.s.params.Start(ctx, order, func(p *runnerpb.LoadProgress) {
			l.s.do(func(l *loop) { l.progress(e, p) })
		})
		l.s.do(func(l *loop) { l.loaded(e, inst, err) })
	}()
	return e.committed
}

// replace lets go of the runners that hold w's model as loaded in another way, as soon as nothing uses them.
func (l *loop) replace(w *waiter) {
	for key, e := range l.entries {
		if key == w.key || baseKey(key) != baseKey(w.key) {
			continue
		}
		e.keepAlive = 0
		if e.phase == ready {
			l.settle(e)
		}
	}
}

// progress passes a load's progress on; a waiter that is slow to look sees the latest only.
func (l *loop) progress(e *entry, p *runnerpb.LoadProgress) {
	if p.GetStage() != e.stage {
		e.stage = p.GetStage()
		l.s.log.Debug("sched: loading", "model", modelname.Display(e.model.Name), "stage", e.stage,
			"bytes", p.GetBytesTotal(), "seconds", time.Since(e.began).Seconds())
	}
	for _, w := range e.waiters {
		select {
		case <-w.progress:
		default:
		}
		w.progress <- p
	}
}

// loaded is the end of a load.
func (l *loop) loaded(e *entry, inst Instance, err error) {
	waiters := e.waiters
	e.waiters = nil
	log := l.s.log.With("model", modelname.Display(e.model.Name))
	switch {
	case err != nil:
		if e.phase == stopping {
			log.Info("sched: load was given up")
		} else {
			log.Error("sched: load failed", "error", err)
			l.s.params.Metrics.Loaded(modelname.Display(e.model.Name), "failed", time.Since(e.began))
			l.failures.add(e.key, modelname.Display(e.model.Name), err, time.Now())
		}
		delete(l.entries, e.key)
		for _, w := range waiters {
			w.fail(err)
		}
	case e.phase == stopping:
		// It ended well although nobody wants it any more.
		e.instance = inst
		l.stopInstance(e, func(l *loop) { l.vacate(e) })
	default:
		log.Info("sched: model loaded", "seconds", time.Since(e.began).Seconds(), "held", inst.Held(), "promised", e.committed)
		l.s.params.Metrics.Loaded(modelname.Display(e.model.Name), "ok", time.Since(e.began))
		e.instance, e.phase = inst, ready
		go func() {
			<-inst.Done()
			l.s.do(func(l *loop) { l.ended(e) })
		}()
		for _, w := range waiters {
			l.grant(w, e)
		}
		l.check(e)
	}
	l.admit()
}

// abandon is the end of an Acquire that no longer waits for its result.
func (l *loop) abandon(w *waiter) {
	if w.granted != nil {
		l.release(w.granted)
		return
	}
	same := func(x *waiter) bool { return x == w }
	l.pending = slices.DeleteFunc(l.pending, same)
	if e := l.entries[w.key]; e != nil && slices.ContainsFunc(e.waiters, same) {
		e.waiters = slices.DeleteFunc(e.waiters, same)
		if len(e.waiters) == 0 {
			l.stop(e, abandoned)
		}
	}
	l.admit()
}

func (l *loop) release(e *entry) {
	e.leases--
	e.lastUsed = time.Now()
	l.quiet = e.lastUsed
	if e.phase != ready {
		return
	}
	// A runner that outlived a request works; earlier failures say nothing about it.
	l.failures.forget(e.key)
	l.settle(e)
	l.admit()
}

// settle decides what happens to a ready entry that may have become idle.
func (l *loop) settle(e *entry) {
	if e.leases > 0 {
		return
	}
	switch {
	case e.keepAlive == 0:
		l.stop(e, expired)
	case e.keepAlive < 0 || e.keepAlive == Forever:
		e.stopTimer()
	default:
		e.stopTimer()
		e.expires = time.Now().Add(e.keepAlive)
		var t *time.Timer
		t = time.AfterFunc(e.keepAlive, func() {
			l.s.do(func(l *loop) {
				// The timer may have fired while a lease was given or another timer was set.
				if e.phase == ready && e.idleTimer == t {
					l.stop(e, expired)
					l.admit()
				}
			})
		})
		e.idleTimer = t
	}
}

func (e *entry) stopTimer() {
	if e.idleTimer != nil {
		e.idleTimer.Stop()
	}
	e.idleTimer, e.expires = nil, time.Time{}
}

// unload lets the runners of m go as soon as they are idle, unless they serve others too. Requests that wait for a load get
// their leases first.
func (l *loop) unload(m *store.Model) {
	key, name := runnerKey(m), modelname.Key(m.Name)
	for _, e := range l.entries {
		_, asked := e.served[name]
		if e.key != key && !asked || asked && e.forget(name) {
			continue
		}
		e.keepAlive = 0
		if e.phase == ready {
			l.settle(e)
		}
	}
	l.failures.forget(key)
	l.admit()
}

// stop begins the end of an entry that is loading or ready.
func (l *loop) stop(e *entry, why reason) {
	l.s.log.Info("sched: unloading model", "model", modelname.Display(e.model.Name), "reason", why.text)
	l.s.params.Metrics.Unloaded(why.label)
	was := e.phase
	e.phase = stopping
	e.stopTimer()
	if was == loading {
		e.cancelLoad()
		return
	}
	l.stopInstance(e, func(l *loop) { l.vacate(e) })
}

// stopInstance stops the runner of e and then runs then.
func (l *loop) stopInstance(e *entry, then func(*loop)) {
	name := modelname.Display(e.model.Name)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), l.s.params.StopTimeout)
		defer cancel()
		if err := e.instance.Stop(ctx); err != nil {
			l.s.log.Error("sched: runner did not stop cleanly", "model", name, "error", err)
		}
		l.s.do(then)
	}()
}

// vacate frees the place of e.
func (l *loop) vacate(e *entry) {
	delete(l.entries, e.key)
	l.admit()
}

// ended is told when the process of an entry that was ready is gone.
func (l *loop) ended(e *entry) {
	if e.phase != ready {
		return
	}
	err := e.instance.Err()
	if err == nil {
		err = errors.New("it exited by itself")
	}
	l.s.log.Error("sched: runner ended unexpectedly", "model", modelname.Display(e.model.Name), "error", err, slog.Int("requests", e.leases))
	l.s.params.Metrics.Crashed(modelname.Display(e.model.Name))
	l.failures.add(e.key, modelname.Display(e.model.Name), errdefs.Wrap(errdefs.ErrUnavailable, err), time.Now())
	e.phase = stopping
	e.stopTimer()
	delete(l.entries, e.key)
	// Stop clears away what the process left behind; the next start need not wait for that.
	l.clearing++
	l.stopInstance(e, func(l *loop) { l.clearing-- })
	l.admit()
}

func (l *loop) shutdown() {
	if l.closing {
		return
	}
	l.closing = true
	if spare := l.s.params.Spare; spare != nil {
		l.clearing++
		spare.Drop(func() { l.s.do(func(l *loop) { l.clearing-- }) })
	}
	for _, w := range l.pending {
		w.fail(ErrShutdown)
	}
	l.pending = nil
	for _, r := range l.reservations {
		r.result <- ErrShutdown
	}
	l.reservations = nil
	for _, e := range l.entries {
		for _, w := range e.waiters {
			w.fail(ErrShutdown)
		}
		e.waiters = nil
		if e.phase != stopping {
			l.stop(e, closing)
		}
	}
}
