// Package schedtest has fakes of what the scheduler starts: runners without a process, whose load, answers and death a
// test directs.
package schedtest

import (
	"context"
	"io"
	"sync"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// Starter starts fake runners and keeps all it has started.
type Starter struct {
	// OnLoad runs during each start and may block, report progress or fail. nil: success at once.
	OnLoad func(ctx context.Context, m *store.Model, progress func(*runnerpb.LoadProgress)) error
	// OnStart may set up a runner before it is handed over.
	OnStart func(*Runner)

	mu      sync.Mutex
	started []*Runner
}

// Start is the sched.Starter.
func (s *Starter) Start(ctx context.Context, load sched.Load, progress func(*runnerpb.LoadProgress)) (sched.Instance, error) {
	m := load.Model
	if s.OnLoad != nil {
		if err := s.OnLoad(ctx, m, progress); err != nil {
			return nil, err
		}
	}
	r := NewRunner(m)
	r.Plan = load.Plan
	if s.OnStart != nil {
		s.OnStart(r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = append(s.started, r)
	return r, nil
}

// Started returns all runners so far, the oldest first.
func (s *Starter) Started() []*Runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Runner(nil), s.started...)
}

// Runner is a fake runner. The On functions answer the calls of that name and may be nil, which means UNIMPLEMENTED,
// but for OnStop, where it means that the runner stops at once.
type Runner struct {
	Model *store.Model
	// Plan is what the scheduler promised it; nil if nobody counts.
	Plan *memory.Plan
	// OnHeld is what it has now; nil: nothing.
	OnHeld func() uint64
	// OnEnd runs before anybody learns that the runner has ended, however it did.
	OnEnd func()
	// OnTrim answers Trim; nil: as it is asked.
	OnTrim func(ctx context.Context, req *runnerpb.TrimRequest) (*runnerpb.TrimResponse, error)
	// OnStatus answers Status; nil: with State.
	OnStatus func(ctx context.Context) (*runnerpb.StatusResponse, error)

	OnGenerate   func(ctx context.Context, req *runnerpb.GenerateRequest) (sched.Stream, error)
	OnEmbed      func(*runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error)
	OnRerank     func(*runnerpb.RerankRequest) (*runnerpb.RerankResponse, error)
	OnTokenize   func(*runnerpb.TokenizeRequest) (*runnerpb.TokenizeResponse, error)
	OnDetokenize func(*runnerpb.DetokenizeRequest) (*runnerpb.DetokenizeResponse, error)
	OnStop       func(ctx context.Context) error
	ModelInfo    *runnerpb.ModelInfo
	State        *runnerpb.StatusResponse

	once sync.Once
	done chan struct{}
	err  error
}

// NewRunner returns a fake runner that has m loaded.
func NewRunner(m *store.Model) *Runner {
	return &Runner{
		Model:     m,
		ModelInfo: &runnerpb.ModelInfo{Architecture: "fake", ContextLength: 4096, MaxContextLength: 8192, WeightBytes: 1000, Device: "cpu"},
		State:     &runnerpb.StatusResponse{State: runnerpb.StatusResponse_STATE_READY, Memory: &runnerpb.Memory{ActiveBytes: 1500}},
		done:      make(chan struct{}),
	}
}

// Adapter names the adapter by its key; there is no directory.
func (r *Runner) Adapter(m *store.Model) (*runnerpb.Adapter, error) {
	return &runnerpb.Adapter{Name: m.Adapter().Key, Path: "adapter of " + m.Name.Model}, nil
}

// Kill implements sched.Instance.
func (r *Runner) Kill(reason error) { r.end(reason) }

// Held implements sched.Instance.
func (r *Runner) Held() uint64 {
	if r.OnHeld == nil || !r.Alive() {
		return 0
	}
	return r.OnHeld()
}

// Trim implements sched.Instance.
func (r *Runner) Trim(ctx context.Context, req *runnerpb.TrimRequest) (*runnerpb.TrimResponse, error) {
	if r.OnTrim == nil {
		return &runnerpb.TrimResponse{KvCacheBytes: req.GetKvCacheBytes()}, nil
	}
	return r.OnTrim(ctx, req)
}

// Crash ends the runner as if its process had died of err.
func (r *Runner) Crash(err error) { r.end(err) }

func (r *Runner) end(err error) {
	r.once.Do(func() {
		if r.OnEnd != nil {
			r.OnEnd()
		}
		r.err = err
		close(r.done)
	})
}

// Alive reports whether the runner has neither stopped nor crashed.
func (r *Runner) Alive() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

func (r *Runner) Done() <-chan struct{} { return r.done }

func (r *Runner) Err() error {
	if r.Alive() {
		return nil
	}
	return r.err
}

func (r *Runner) Stop(ctx context.Context) error {
	if r.OnStop != nil {
		if err := r.OnStop(ctx); err != nil {
			return err
		}
	}
	r.end(nil)
	return nil
}

func (r *Runner) Info() *runnerpb.ModelInfo { return r.ModelInfo }

func (r *Runner) Generate(ctx context.Context, req *runnerpb.GenerateRequest) (sched.Stream, error) {
	if r.OnGenerate == nil {
		return nil, unimplemented("Generate")
	}
	return r.OnGenerate(ctx, req)
}

func (r *Runner) Embed(_ context.Context, req *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
	if r.OnEmbed == nil {
		return nil, unimplemented("Embed")
	}
	return r.OnEmbed(req)
}

func (r *Runner) Rerank(_ context.Context, req *runnerpb.RerankRequest) (*runnerpb.RerankResponse, error) {
	if r.OnRerank == nil {
		return nil, unimplemented("Rerank")
	}
	return r.OnRerank(req)
}

func (r *Runner) Tokenize(_ context.Context, req *runnerpb.TokenizeRequest) (*runnerpb.TokenizeResponse, error) {
	if r.OnTokenize == nil {
		return nil, unimplemented("Tokenize")
	}
	return r.OnTokenize(req)
}

func (r *Runner) Detokenize(_ context.Context, req *runnerpb.DetokenizeRequest) (*runnerpb.DetokenizeResponse, error) {
	if r.OnDetokenize == nil {
		return nil, unimplemented("Detokenize")
	}
	return r.OnDetokenize(req)
}

func (r *Runner) Status(ctx context.Context, _ *runnerpb.StatusRequest) (*runnerpb.StatusResponse, error) {
	if r.OnStatus != nil {
		return r.OnStatus(ctx)
	}
	if r.State == nil {
		return nil, unimplemented("Status")
	}
	return r.State, nil
}

func unimplemented(call string) error {
	return errdefs.New(errdefs.ErrUnsupported, "%s is not implemented by this fake", call)
}

// Stream is a stream whose events a test sends. The end of the context that made it, Close and Break end it.
type Stream struct {
	ctx    context.Context
	events chan *runnerpb.Event
	broken chan error
	once   sync.Once
	closed chan struct{}
	fin    bool
}

// NewStream returns an open stream with room for n events that nobody has received yet.
func NewStream(ctx context.Context, n int) *Stream {
	return &Stream{ctx: ctx, events: make(chan *runnerpb.Event, n), broken: make(chan error, 1), closed: make(chan struct{})}
}

// Script returns a stream that has all its events already.
func Script(ctx context.Context, events ...*runnerpb.Event) *Stream {
	s := NewStream(ctx, len(events))
	for _, e := range events {
		s.events <- e
	}
	return s
}

// Send adds an event; it waits while there is no room, unless the stream ends.
func (s *Stream) Send(e *runnerpb.Event) {
	select {
	case s.events <- e:
	case <-s.ctx.Done():
	case <-s.closed:
	}
}

// Break ends the stream with err after the events it has.
func (s *Stream) Break(err error) { s.broken <- err }

// Closed is closed by Close.
func (s *Stream) Closed() <-chan struct{} { return s.closed }

func (s *Stream) Recv() (*runnerpb.Event, error) {
	if s.fin {
		return nil, io.EOF
	}
	select {
	case e := <-s.events:
		return s.took(e)
	default:
	}
	select {
	case e := <-s.events:
		return s.took(e)
	case err := <-s.broken:
		return nil, err
	case <-s.ctx.Done():
		return nil, errdefs.New(errdefs.ErrCanceled, "request canceled")
	case <-s.closed:
		return nil, errdefs.New(errdefs.ErrCanceled, "request canceled")
	}
}

func (s *Stream) took(e *runnerpb.Event) (*runnerpb.Event, error) {
	switch k := e.GetKind().(type) {
	case *runnerpb.Event_Finished:
		s.fin = true
	case *runnerpb.Event_Failed:
		s.fin = true
		return nil, errdefs.FromCode(codeOf(k.Failed), k.Failed.GetMessage())
	}
	return e, nil
}

func (s *Stream) Close() { s.once.Do(func() { close(s.closed) }) }
