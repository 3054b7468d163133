package server

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// runnerDied is Ollama's text, which clients know; what is known of the reason follows it.
const runnerDied = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check ollama server logs for details"

// acquire loads m, or finds it loaded, for one request.
func (s *Server) acquire(ctx context.Context, m *store.Model, keepAlive *api.Duration) (*sched.Lease, error) {
	lease, err := s.params.Scheduler.Acquire(ctx, m, sched.AcquireOptions{KeepAlive: keepAlive})
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
	// after is an event that is due before the next one of the stream.
	after *runnerpb.Event
}

// ask submits a request to the runner. Closing the answer cancels what has not ended.
func (s *Server) ask(ctx context.Context, lease *sched.Lease, req *runnerpb.GenerateRequest, parser *prompt.Parser) (*answer, error) {
	req.TraceId = requestID(ctx)
	stream, err := lease.Runner().Generate(ctx, req)
	if err != nil {
		return nil, generateError(ctx, err)
	}
	return &answer{ctx: ctx, stream: stream, parser: parser}, nil
}

func (a *answer) close() { a.stream.Close() }

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
		return nil, generateError(a.ctx, err)
	}
	if a.parser == nil {
		return e, nil
	}
	switch k := e.GetKind().(type) {
	case *runnerpb.Event_Delta:
		a.parser.Add(k.Delta)
	case *runnerpb.Event_Finished:
		if rest := a.parser.End(); rest != nil {
			a.after = e
			return &runnerpb.Event{Kind: &runnerpb.Event_Delta{Delta: rest}}, nil
		}
	}
	return e, nil
}

// generateError tells apart why a request ended without an answer: its client went, the server is going, the runner
// died, or the runner refused it.
func generateError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return endOf(ctx)
	case errors.Is(err, errdefs.ErrUnavailable):
		return errdefs.New(errdefs.ErrUnavailable, "%s: %w", runnerDied, err)
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

// metrics are the figures of a finished answer in the form of the native API.
func metrics(u *runnerpb.Usage, began, loaded time.Time) api.Metrics {
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
