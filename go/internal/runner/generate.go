package runner

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Generate begins a request. When ctx ends, the runner is told to end it and the stream ends with errdefs.ErrCanceled.
// The request is encoded before Generate returns and may be changed afterwards.
func (r *Runner) Generate(ctx context.Context, req *runnerpb.GenerateRequest) (*Stream, error) {
	if err := r.needModel(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, canceledError(ctx)
	}
	s, err := r.sessions.get()
	if err != nil {
		return nil, err
	}
	return s.submit(ctx, req)
}

// Embed computes one vector per input.
func (r *Runner) Embed(ctx context.Context, req *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
	if err := r.needModel(); err != nil {
		return nil, err
	}
	resp, err := r.client.Embed(ctx, req)
	return resp, r.ifFailed(ctx, err)
}

// Rerank scores documents by their relevance to a query.
func (r *Runner) Rerank(ctx context.Context, req *runnerpb.RerankRequest) (*runnerpb.RerankResponse, error) {
	if err := r.needModel(); err != nil {
		return nil, err
	}
	resp, err := r.client.Rerank(ctx, req)
	return resp, r.ifFailed(ctx, err)
}

// Tokenize renders and tokenizes a prompt as Generate would.
func (r *Runner) Tokenize(ctx context.Context, req *runnerpb.TokenizeRequest) (*runnerpb.TokenizeResponse, error) {
	if err := r.needModel(); err != nil {
		return nil, err
	}
	resp, err := r.client.Tokenize(ctx, req)
	return resp, r.ifFailed(ctx, err)
}

// Detokenize turns token ids into text.
func (r *Runner) Detokenize(ctx context.Context, req *runnerpb.DetokenizeRequest) (*runnerpb.DetokenizeResponse, error) {
	if err := r.needModel(); err != nil {
		return nil, err
	}
	resp, err := r.client.Detokenize(ctx, req)
	return resp, r.ifFailed(ctx, err)
}

// Status asks the runner for its counters, in any state.
func (r *Runner) Status(ctx context.Context, req *runnerpb.StatusRequest) (*runnerpb.StatusResponse, error) {
	resp, err := r.client.Status(ctx, req)
	return resp, r.ifFailed(ctx, err)
}

// Trim changes what KV caches may use, and returns what holds.
func (r *Runner) Trim(ctx context.Context, req *runnerpb.TrimRequest) (*runnerpb.TrimResponse, error) {
	if err := r.needModel(); err != nil {
		return nil, err
	}
	resp, err := r.client.Trim(ctx, req)
	return resp, r.ifFailed(ctx, err)
}

func (r *Runner) ifFailed(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return r.callError(ctx, err)
}

// needModel refuses a call that needs a model in a state that has none.
func (r *Runner) needModel() error {
	switch state := r.State(); state {
	case StateServing:
		return nil
	case StateExited:
		return r.exitError()
	case StateStopping:
		return stoppedError()
	default:
		return errdefs.New(errdefs.ErrPrecondition, "the model runner is %s and holds no model yet", state)
	}
}

// sessions holds the one session of a runner. It is opened by the first request and, should its stream break while the
// process lives, opened anew by the next.
type sessions struct {
	open func() (*session, error)

	mu      sync.Mutex
	current *session
	// err is set once the runner serves no more.
	err error
}

func (h *sessions) get() (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, h.err
	}
	if h.current != nil && !h.current.ended() {
		return h.current, nil
	}
	s, err := h.open()
	if err != nil {
		return nil, err
	}
	h.current = s
	return s, nil
}

// close lets the session take no more requests: they get err. The first close counts.
func (h *sessions) close(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return
	}
	h.err = err
	if h.current != nil {
		h.current.close(err)
	}
}

// end follows the end of the process: it fails with err what has not ended. Events that the process sent before it ended
// may still be on their way through the socket; its reader gets to their end by itself.
func (h *sessions) end(err error) {
	h.close(err)
	h.mu.Lock()
	s := h.current
	h.mu.Unlock()
	if s == nil {
		return
	}
	timer := time.NewTimer(exitGrace)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		s.end(err)
	}
}

// openSession opens a stream that lives until the runner ends or the stream breaks.
func (r *Runner) openSession() (*session, error) {
	ctx := context.Background() // The end of the connection ends it.
	stream, err := r.client.Session(ctx)
	if err != nil {
		return nil, r.callError(ctx, err)
	}
	return newSession(stream, r.sessionError), nil
}

// sessionError tells why the session's stream ended.
func (r *Runner) sessionError(err error) error {
	if r.diedUnder(err) {
		return r.exitError()
	}
	if r.published.Load().stopped {
		return stoppedError()
	}
	reason := "it ended its session"
	if !errors.Is(err, io.EOF) {
		reason = "its session broke: " + status.Convert(err).Message()
	}
	r.logger().Error("runner's session broke", "error", err)
	return unexpectedStop(reason)
}
