// Package sched decides which models are loaded.
//
// For each base model there is at most one runner. A request acquires a lease on it, which keeps the runner loaded, and
// releases the lease when it ends. An idle runner stays for its keep-alive time, or until another model needs its
// place. The invariant: one goroutine, the loop, owns all of that state. Everybody else sends it functions to run; what
// takes time (starting and stopping runners) happens in goroutines that report back to it. So there is no lock, and a
// load never holds up a request for a model that is loaded already.
package sched

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// Forever is the keep-alive of a runner that is never unloaded for being idle; every negative one means the same.
const Forever = time.Duration(math.MaxInt64)

// Generator is what a lease offers: the calls of the runner protocol that need a loaded model. All of them may be used
// by several goroutines at once; they fail with errdefs.ErrUnavailable when the runner dies.
type Generator interface {
	// Generate submits a request. The end of ctx cancels it in the runner.
	Generate(ctx context.Context, req *runnerpb.GenerateRequest) (Stream, error)
	Embed(ctx context.Context, req *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error)
	Rerank(ctx context.Context, req *runnerpb.RerankRequest) (*runnerpb.RerankResponse, error)
	Tokenize(ctx context.Context, req *runnerpb.TokenizeRequest) (*runnerpb.TokenizeResponse, error)
	Detokenize(ctx context.Context, req *runnerpb.DetokenizeRequest) (*runnerpb.DetokenizeResponse, error)
	Status(ctx context.Context, req *runnerpb.StatusRequest) (*runnerpb.StatusResponse, error)
	// Info describes the loaded model.
	Info() *runnerpb.ModelInfo
}

// Stream carries the events of one request. Recv returns io.EOF after the Finished event; a request that failed, a
// runner that died and a context that ended are errors. Close cancels what has not ended and may be called at any time.
type Stream interface {
	Recv() (*runnerpb.Event, error)
	Close()
}

// Instance is a started runner with its model loaded. Done is closed when its process has ended for whatever reason,
// and Err then says why. Stop ends it, within the deadline of its context.
type Instance interface {
	Generator
	// Adapter makes the adapter of m ready for requests; the instance holds the base of m.
	Adapter(m *store.Model) (*runnerpb.Adapter, error)
	Done() <-chan struct{}
	Err() error
	Stop(ctx context.Context) error
}

// A Starter starts a runner for a model and loads it, reporting progress. It must give up soon after ctx has ended and
// leave nothing behind when it fails.
type Starter func(ctx context.Context, m *store.Model, progress func(*runnerpb.LoadProgress)) (Instance, error)

// Params configures a Scheduler.
type Params struct {
	// Start starts runners. Required.
	Start Starter
	// KeepAlive is how long an idle runner stays when no request said otherwise; negative: forever.
	KeepAlive time.Duration
	// MaxLoaded is how many models may be loaded at once. 0: DefaultMaxLoaded.
	MaxLoaded int
	// MaxQueue is how many requests may wait for a model to be loaded. 0: DefaultMaxQueue.
	MaxQueue int
	// StopTimeout bounds the stop of one runner. 0: DefaultStopTimeout.
	StopTimeout time.Duration
	// Logger receives loads, unloads and crashes. nil: slog.Default().
	Logger *slog.Logger
}

// Bounds that hold when Params leaves them open.
const (
	DefaultMaxLoaded   = 3
	DefaultMaxQueue    = 512
	DefaultStopTimeout = 15 * time.Second
)

// Errors that requests see.
var (
	// ErrQueueFull has Ollama's text, two spaces included: clients match it.
	ErrQueueFull = errdefs.New(errdefs.ErrBusy, "server busy, please try again.  maximum pending requests exceeded")
	// ErrRequestCanceled is the error of an Acquire whose context ended.
	ErrRequestCanceled = errdefs.New(errdefs.ErrCanceled, "request canceled")
	// ErrShutdown is the error of an Acquire during or after Shutdown.
	ErrShutdown = errdefs.New(errdefs.ErrUnavailable, "the server is shutting down")
)

// Scheduler hands out leases on loaded models. Its methods may be called by any goroutine.
type Scheduler struct {
	params Params
	log    *slog.Logger
	ops    chan func(*loop)
	// stopped is closed when the loop has ended, which is when every runner is gone after Shutdown.
	stopped chan struct{}
}

// New returns a running scheduler. It must be shut down.
func New(p Params) *Scheduler {
	if p.MaxLoaded <= 0 {
		p.MaxLoaded = DefaultMaxLoaded
	}
	if p.MaxQueue <= 0 {
		p.MaxQueue = DefaultMaxQueue
	}
	if p.StopTimeout <= 0 {
		p.StopTimeout = DefaultStopTimeout
	}
	if p.Logger == nil {
		p.Logger = slog.Default()
	}
	s := &Scheduler{params: p, log: p.Logger, ops: make(chan func(*loop)), stopped: make(chan struct{})}
	go newLoop(s).run()
	return s
}

// do runs f on the loop and reports whether the loop still lives. It does not wait for f to end.
func (s *Scheduler) do(f func(*loop)) bool {
	select {
	case s.ops <- f:
		return true
	case <-s.stopped:
		return false
	}
}

// AcquireOptions are the wishes of one request.
type AcquireOptions struct {
	// KeepAlive replaces the runner's keep-alive time. nil: it stays as it is.
	KeepAlive *api.Duration
	// Progress is told how the load goes while Acquire waits for one; it runs in Acquire's goroutine.
	Progress func(*runnerpb.LoadProgress)
}

// Acquire returns a lease on the model's runner, which is started when there is none. It waits for a load and for a
// place among the loaded models, first come, first served. When ctx ends while it waits it returns ErrRequestCanceled,
// and a load that nobody else waits for is given up.
func (s *Scheduler) Acquire(ctx context.Context, m *store.Model, o AcquireOptions) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, ErrRequestCanceled
	}
	began := time.Now()
	w := &waiter{
		key:      runnerKey(m),
		model:    m,
		result:   make(chan result, 1),
		progress: make(chan *runnerpb.LoadProgress, 1),
	}
	if o.KeepAlive != nil {
		w.keepAlive = &o.KeepAlive.Duration
	}
	if !s.do(func(l *loop) { l.acquire(w) }) {
		return nil, ErrShutdown
	}
	for {
		select {
		case r := <-w.result:
			if r.err != nil {
				return nil, r.err
			}
			lease := &Lease{s: s, entry: r.entry, instance: r.instance, generator: r.instance, LoadDuration: time.Since(began)}
			if m.Adapter() == nil {
				return lease, nil
			}
			adapter, err := r.instance.Adapter(m)
			if err != nil {
				lease.Release()
				return nil, err
			}
			lease.generator = adapted{r.instance, adapter}
			return lease, nil
		case p := <-w.progress:
			if o.Progress != nil {
				o.Progress(p)
			}
		case <-ctx.Done():
			s.do(func(l *loop) { l.abandon(w) })
			return nil, ErrRequestCanceled
		}
	}
}

// Lease keeps a runner loaded until it is released.
type Lease struct {
	// LoadDuration is how long Acquire took, waiting and loading together.
	LoadDuration time.Duration

	s        *Scheduler
	entry    *entry
	instance Instance
	// generator is the instance, or one that puts the model's adapter on it.
	generator Generator
	once      sync.Once
}

// Runner returns the runner that the lease is on, for requests to the model that the lease was asked for.
func (l *Lease) Runner() Generator { return l.generator }

// Died is closed when the runner has ended.
func (l *Lease) Died() <-chan struct{} { return l.instance.Done() }

// Release gives the lease back. Only the first call counts.
func (l *Lease) Release() {
	l.once.Do(func() {
		l.s.do(func(lp *loop) { lp.release(l.entry) })
	})
}

// Unload stops the runners that serve m or a model of its name, as soon as no request uses them. It does not wait.
func (s *Scheduler) Unload(m *store.Model) {
	s.do(func(l *loop) { l.unload(m) })
}

// Shutdown fails all waiting requests, gives up all loads, stops all runners, in use or not, and waits for that until
// ctx ends. No lease is given afterwards.
func (s *Scheduler) Shutdown(ctx context.Context) error {
	s.do(func(l *loop) { l.shutdown() })
	select {
	case <-s.stopped:
		return nil
	case <-ctx.Done():
		return errdefs.New(errdefs.ErrTimeout, "runners did not stop in time: %w", ctx.Err())
	}
}
