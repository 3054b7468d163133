package sched

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/metrics"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/tracing"
)

// measured is a Generator whose requests are counted, whatever dialect they came in.
type measured struct {
	Generator
	metrics *metrics.Model
	// began is when the request asked for its runner, so that its time to the first token has the wait and the load in it.
	began time.Time
}

func (m *measured) Generate(ctx context.Context, req *runnerpb.GenerateRequest) (Stream, error) {
	_, span := tracing.Span(ctx, "generate", attribute.String("ollmlx.request.id", req.GetTraceId()))
	s, err := m.Generator.Generate(ctx, req)
	if err != nil {
		m.metrics.Ended(outcome(err))
		tracing.End(span, err)
		return nil, err
	}
	return &measuredStream{Stream: s, metrics: m.metrics, began: m.began, span: span}, nil
}

func (m *measured) Embed(ctx context.Context, req *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
	resp, err := m.Generator.Embed(ctx, req)
	m.metrics.Ended(outcome(err))
	m.metrics.Prompt(resp.GetPromptTokens(), 0)
	return resp, err
}

// measuredStream is for one goroutine, as Recv is; Close may be called by another.
type measuredStream struct {
	Stream
	metrics *metrics.Model
	began   time.Time
	last    time.Time
	span    trace.Span
	once    sync.Once
}

func (s *measuredStream) Recv() (*runnerpb.Event, error) {
	e, err := s.Stream.Recv()
	if err != nil {
		if err != io.EOF {
			s.end(outcome(err), err)
		}
		return e, err
	}
	switch kind := e.GetKind().(type) {
	case *runnerpb.Event_Delta:
		s.token(kind.Delta.GetTokens())
	case *runnerpb.Event_Finished:
		u := kind.Finished.GetUsage()
		s.metrics.Prompt(u.GetPromptTokens(), u.GetCachedPromptTokens())
		s.span.SetAttributes(
			attribute.Int("gen_ai.usage.input_tokens", int(u.GetPromptTokens())),
			attribute.Int("gen_ai.usage.output_tokens", int(u.GetCompletionTokens())),
			attribute.Int("ollmlx.usage.cached_tokens", int(u.GetCachedPromptTokens())))
		s.end("ok", nil)
	}
	return e, nil
}

func (s *measuredStream) token(n uint32) {
	if n == 0 {
		return
	}
	now := time.Now()
	if s.last.IsZero() {
		s.metrics.FirstToken(now.Sub(s.began), n)
		s.span.AddEvent("first token")
	} else {
		s.metrics.Tokens(now.Sub(s.last), n)
	}
	s.last = now
}

func (s *measuredStream) Close() {
	s.Stream.Close()
	s.end("canceled", nil)
}

// end counts the first end.
func (s *measuredStream) end(outcome string, err error) {
	s.once.Do(func() {
		s.metrics.Ended(outcome)
		s.span.SetAttributes(attribute.String("ollmlx.outcome", outcome))
		tracing.End(s.span, err)
	})
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, errdefs.ErrCanceled):
		return "canceled"
	case errors.Is(err, errdefs.ErrUnavailable):
		return "died"
	}
	return "failed"
}
