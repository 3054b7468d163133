// Package sched decides which models are loaded.
//
// For each base model there is at most one runner. A request acquires a lease on it, which keeps the runner loaded, and
// releases the lease when it ends. An idle runner stays for its keep-alive time, or until another model needs its
// memory. The invariants: what all runners have been promised never exceeds what the machine has, and one goroutine, the
// loop, owns all of that state. Everybody else sends it functions to run; what takes time (starting and stopping
// runners) happens in goroutines that report back to it. So there is no lock, and a load never holds up a request for a
// model that is loaded already.
package sched

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/ollama/ollama/api"
	"go.opentelemetry.io/otel/attribute"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/metrics"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
	"github.com/ollmlx/ollmlx/go/internal/tracing"
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
	// Kill ends a runner that does not answer; its requests fail with the reason, and so does Err.
	Kill(reason error)
	// Held is the memory that the runner has now, in bytes. It does not wait for the runner.
	Held() uint64
	// Trim changes what KV caches may use, and returns what holds.
	Trim(ctx context.Context, req *runnerpb.TrimRequest) (*runnerpb.TrimResponse, error)
}

// Load is the order to load a model.
type Load struct {
	Model *store.Model
	// Plan is what the model may take; nil: the engine decides.
	Plan *memory.Plan
}

// A Starter starts a runner for a model and loads it, reporting progress. It must give up soon after ctx has ended and
// leave nothing behind when it fails.
type Starter func(ctx context.Context, load Load, progress func(*runnerpb.LoadProgress)) (Instance, error)

// Memory says what models need and what there is. But for Need, which may read files, its methods are called by the loop
// and must not wait. The only implementation but for tests is NewMemory.
type Memory interface {
	Need(m *store.Model) (memory.Need, error)
	// Available is what models may take beyond the held bytes that runners have now.
	Available(held uint64) uint64
	// Overhead is what is kept for other programs.
	Overhead() uint64
	// Learn takes what a runner tells of its device; held is what all runners have.
	Learn(st *runnerpb.StatusResponse, held uint64)
}

// Spare is a runner that waits without a model, so that the next load is spared its start. Its methods must not wait.
type Spare interface {
	// Fill begins to start one if there is none.
	Fill()
	// Drop ends it, for its memory is needed, and calls then when it is gone. There must be one.
	Drop(then func())
	// Held is the memory that it has now; 0 if there is none.
	Held() uint64
}

// Params configures a Scheduler.
type Params struct {
	// Start starts runners. Required.
	Start Starter
	// KeepAlive is how long an idle runner stays when no request said otherwise; negative: forever.
	KeepAlive time.Duration
	// MaxLoaded is how many models may be loaded at once. 0: as many as memory admits.
	MaxLoaded int
	// Memory bounds what models may take. nil: only MaxLoaded bounds them.
	Memory Memory
	// Spare is kept while memory admits it. nil: none.
	Spare Spare
	// HangAfter is how long a runner with requests may be silent before it is killed, StepLimit how long one step of its
	// engine may take. 0: for ever.
	HangAfter, StepLimit time.Duration
	// Metrics counts. nil: nobody will look.
	Metrics *metrics.Metrics
	// MaxQueue is how many requests may wait for a model to be loaded. 0: DefaultMaxQueue.
	MaxQueue int
	// StopTimeout bounds the stop of one runner. 0: DefaultStopTimeout.
	StopTimeout time.Duration
	// Logger receives loads, unloads and crashes. nil: slog.Default().
	Logger *slog.Logger
}

// Bounds that hold when Params leaves them open.
const (
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
	if p.Metrics == nil {
		p.Metrics = metrics.New()
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
	if p.Memory != nil || p.HangAfter > 0 || p.StepLimit > 0 || p.Spare != nil {
		go s.watch()
	}
	return s
}

// watch has the loop look at runners and memory from time to time.
func (s *Scheduler) watch() {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.do(func(l *loop) { l.tick() })
		case <-s.stopped:
			return
		}
	}
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
	ctx, span := tracing.Span(ctx, "acquire", attribute.String("gen_ai.request.model", modelname.Display(m.Name)))
	lease, err := s.wait(ctx, m, o)
	tracing.End(span, err)
	return lease, err
}

func (s *Scheduler) wait(ctx context.Context, m *store.Model, o AcquireOptions) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, ErrRequestCanceled
	}
	began := time.Now()
	w := &waiter{
		key:      runnerKey(m),
		model:    m,
		arrived:  began,
		result:   make(chan result, 1),
		progress: make(chan *runnerpb.LoadProgress, 1),
	}
	if s.params.Memory != nil {
		need, err := s.params.Memory.Need(m)
		if err != nil {
			return nil, err
		}
		w.need = &need
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
			lease := &Lease{s: s, entry: r.entry, instance: r.instance, LoadDuration: time.Since(began)}
			s.params.Metrics.Waited(lease.LoadDuration)
			lease.generator = &measured{Generator: r.instance, metrics: s.params.Metrics.Model(modelname.Display(m.Name)), began: began}
			if m.Adapter() == nil {
				return lease, nil
			}
			adapter, err := r.instance.Adapter(m)
			if err != nil {
				lease.Release()
				return nil, err
			}
			lease.generator = adapted{lease.generator, adapter}
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
	// generator is the instance, measured, and with the model's adapter put on it.
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

// Unload stops the runners that serve m or a model of its name, as soon as no request uses them; one that has served other
// models too stays for these. It does not wait.
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
