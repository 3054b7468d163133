package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// deathNotice bounds the wait for the end of a runner that refused a request as if it were dying.
const deathNotice = 2 * time.Second

// acquire loads m, or finds it loaded, for one request.
func (s *Server) acquire(ctx context.Context, m *store.Model, keepAlive *api.Duration) (*sched.Lease, error) {
	if err := m.CheckVersion(); err != nil {
		return nil, err
	}
	lease, err := s.params.Scheduler.Acquire(ctx, m, sched.AcquireOptions{KeepAlive: keepAlive, Progress: loadProgress(ctx)})
	if err != nil && ctx.Err() != nil {
		return nil, endOf(ctx)
	}
	return lease, err
}

// answer is a request that a runner works on: its events, until it is closed.
type answer struct {
	ctx    context.Context
	stream sched.Stream
	// parser is set when the prompt was rendered here, so that the runner knows nothing of its structure.
	parser *prompt.Parser
	// single: of several tool calls the first one counts, as the request wished. called: there was one.
	single, called bool
	// after is an event that is due before the next one of the stream.
	after *runnerpb.Event
	// prefill is the last that the runner has told of the prompt.
	prefill atomic.Pointer[runnerpb.Prefill]
}

// withRunner acquires a runner for m and has use begin with it. It returns the lease, which is the caller's to release,
// and when the runner was ready. A runner that turns out to be dead before it has taken the request is replaced, once:
// the client need not know of it.
func (s *Server) withRunner(ctx context.Context, m *store.Model, keepAlive *api.Duration, use func(sched.Generator) error) (*sched.Lease, time.Time, error) {
	for first := true; ; first = false {
		lease, err := s.acquire(ctx, m, keepAlive)
		if err != nil {
			return nil, time.Time{}, err
		}
		loaded := time.Now()
		if err = use(lease.Runner()); err == nil {
			return lease, loaded, nil
		}
		lease.Release()
		if !first || !errors.Is(err, errdefs.ErrUnavailable) || !died(ctx, lease) {
			return nil, loaded, requestError(ctx, err)
		}
	}
}

func died(ctx context.Context, lease *sched.Lease) bool {
	select {
	case <-lease.Died():
		return true
	case <-time.After(deathNotice):
	case <-ctx.Done():
	}
	return false
}

// ask returns what submits a request to a runner and keeps its answer in a.
func (a *answer) ask(ctx context.Context, req *runnerpb.GenerateRequest) func(sched.Generator) error {
	req.TraceId = requestID(ctx)
	return func(g sched.Generator) (err error) {
		a.ctx = ctx
		a.stream, err = g.Generate(ctx, req)
		return err
	}
}

// close cancels what has not ended.
func (a *answer) close() { a.stream.Close() }

// begin has a runner for m work on req; a is then its answer. The caller reads it and calls done, which ends what has
// not ended and gives the runner back.
func (s *Server) begin(ctx context.Context, m *store.Model, keepAlive *api.Duration, req *runnerpb.GenerateRequest, a *answer) (done func(), err error) {
	lease, _, err := s.withRunner(ctx, m, keepAlive, a.ask(ctx, req))
	if err != nil {
		return nil, err
	}
	return func() {
		a.close()
		lease.Release()
	}, nil
}

// read calls each for every delta, until the answer has ended well, and returns its end. An error of each ends it too.
func (a *answer) read(each func(*runnerpb.Delta) error) (*runnerpb.Finished, error) {
	for {
		e, err := a.next()
		switch {
		case err == io.EOF:
			return nil, errdefs.New(errdefs.ErrInternal, "the answer broke off")
		case err != nil:
			return nil, err
		}
		if f := e.GetFinished(); f != nil {
			return f, nil
		}
		if d := e.GetDelta(); d != nil {
			if err := each(d); err != nil {
				return nil, err
			}
		}
	}
}

// progress says how far the prompt has come, for comments in a stream. It may be called beside next.
func (a *answer) progress() string {
	if p := a.prefill.Load(); p != nil && p.GetTokensDone() < p.GetTokensTotal() {
		return fmt.Sprintf("prefill %d/%d", p.GetTokensDone(), p.GetTokensTotal())
	}
	return "ping"
}

// next returns the next event, io.EOF after the last.
func (a *answer) next() (*runnerpb.Event, error) {
	if e := a.after; e != nil {
		a.after = nil
		return e, nil
	}
	e, err := a.stream.Recv()
	if err == io.EOF {
		return nil, err
	}
	if err != nil {
		return nil, requestError(a.ctx, err)
	}
	if p := e.GetPrefill(); p != nil {
		a.prefill.Store(p)
	}
	e = a.parse(e)
	a.keepOneCall(e.GetDelta())
	return e, nil
}

// parse splits what the runner could not.
func (a *answer) parse(e *runnerpb.Event) *runnerpb.Event {
	if a.parser == nil {
		return e
	}
	switch k := e.GetKind().(type) {
	case *runnerpb.Event_Delta:
		a.parser.Add(k.Delta)
	case *runnerpb.Event_Finished:
		if rest := a.parser.End(); rest != nil {
			a.after = e
			return &runnerpb.Event{Kind: &runnerpb.Event_Delta{Delta: rest}}
		}
	}
	return e
}

// keepOneCall drops the calls behind the first of an answer that may have only one. The answer is read to its end all
// the same, for its usage.
func (a *answer) keepOneCall(d *runnerpb.Delta) {
	if !a.single || len(d.GetToolCalls()) == 0 {
		return
	}
	if a.called {
		d.ToolCalls = nil
		return
	}
	a.called, d.ToolCalls = true, d.ToolCalls[:1]
}

// requestError replaces the error of a request whose client or server has gone by one that says so.
func requestError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	return err
}

// endOf is the error of a request whose context has ended.
func endOf(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errStopping) {
		return errStopping
	}
	return sched.ErrRequestCanceled
}

// metricsOf gives the figures of a finished answer in the form of the native API.
func metricsOf(u *runnerpb.Usage, began, loaded time.Time) api.Metrics {
	return api.Metrics{
		TotalDuration:      time.Since(began),
		LoadDuration:       loaded.Sub(began),
		PromptEvalCount:    int(u.GetPromptTokens()),
		PromptEvalDuration: time.Duration(u.GetPrefillNs()),
		EvalCount:          int(u.GetCompletionTokens()),
		EvalDuration:       time.Duration(u.GetDecodeNs()),
	}
}

func doneReason(r runnerpb.Finished_Reason) string {
	if r == runnerpb.Finished_REASON_LENGTH {
		return "length"
	}
	return "stop"
}
