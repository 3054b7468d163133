package server

import (
	"net/http"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// generateRequest is Ollama's, widened by what its current version has.
type generateRequest struct {
	api.GenerateRequest
	Think *thinkValue `json:"think,omitempty"`
}

func (s *Server) handleGenerate(w http.ResponseWriter, r *http.Request) {
	n := nativeAnswer{began: time.Now()}
	var q generateRequest
	m, err := s.readGenerate(w, r, &q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n.model, n.keepAlive, n.stream = m, q.KeepAlive, q.Stream
	n.asksNothing, n.renderOnly = q.Prompt == "", q.DebugRenderOnly
	n.request = func() (*runnerpb.GenerateRequest, *prompt.Parser, error) { return s.generateRequest(&q, m) }
	n.without = func(reason string, info *api.DebugInfo) any {
		return api.GenerateResponse{Model: q.Model, CreatedAt: time.Now().UTC(), DoneReason: reason, Done: reason != "", DebugInfo: info}
	}
	var out struct {
		api.GenerateResponse
		answerExtras
	}
	out.Model = q.Model
	n.form = func(c *chunk) any {
		out.CreatedAt = time.Now().UTC()
		out.Response, out.Thinking, out.ToolCalls, out.Logprobs = c.content, c.thinking, c.calls, c.logprobs
		out.Done, out.DoneReason, out.Context, out.Metrics = c.done, c.reason, c.context, c.metrics
		out.answerExtras = c.extras
		return &out
	}
	n.serve(s, w, r)
}

// readGenerate reads and checks what needs no model, and finds the model.
func (s *Server) readGenerate(w http.ResponseWriter, r *http.Request, q *generateRequest) (*store.Model, error) {
	if err := s.readJSON(w, r, q); err != nil {
		return nil, err
	}
	if err := checkTopLogprobs(q.TopLogprobs); err != nil {
		return nil, err
	}
	if q.Width != 0 || q.Height != 0 || q.Steps != 0 {
		return nil, errdefs.New(errdefs.ErrUnsupported, "width, height and steps are for image generation, which is not supported")
	}
	if q.Model == "" {
		return nil, errNoModel("")
	}
	return s.lookup(q.Model)
}

// generateRequest translates the request, and returns the parser of its answer if it was rendered here.
func (s *Server) generateRequest(q *generateRequest, m *store.Model) (*runnerpb.GenerateRequest, *prompt.Parser, error) {
	if q.Raw && (q.Template != "" || q.System != "" || len(q.Context) > 0) {
		return nil, nil, errdefs.New(errdefs.ErrInvalid, "raw mode does not support template, system, or context")
	}
	need := need{name: q.Model, verb: "generate"}
	if q.Suffix != "" {
		need.capabilities = append(need.capabilities, model.CapabilityInsert)
	}
	if len(q.Images) > 0 {
		need.capabilities = append(need.capabilities, model.CapabilityVision)
	}
	if err := need.check(m); err != nil {
		return nil, nil, err
	}
	think, err := resolveThink(m, q.Model, q.Think)
	if err != nil {
		return nil, nil, err
	}
	b := builder{s: s, model: m, options: q.Options, format: q.Format, think: think,
		truncate: q.Truncate, shift: q.Shift, logprobs: q.Logprobs, topLogprobs: q.TopLogprobs}
	if err := b.begin(); err != nil {
		return nil, nil, err
	}
	if b.context, err = tokensFrom(q.Context); err != nil {
		return nil, nil, err
	}
	b.req.ReturnContext = !q.Raw
	if q.Raw {
		return b.req, nil, b.text(q.Prompt, q.Suffix, q.Images)
	}
	source := m.Prompt()
	if q.Template != "" {
		source = prompt.Source{Template: q.Template, Family: source.Family}
	}
	if q.Suffix != "" {
		return b.infilled(source.Template, q.Prompt, q.Suffix, q.Images)
	}
	return b.conversation(source, q.messages(m), nil)
}

// messages is the conversation that a generate request stands for.
func (q *generateRequest) messages(m *store.Model) []api.Message {
	var msgs []api.Message
	switch {
	case q.System != "":
		msgs = append(msgs, api.Message{Role: "system", Content: q.System})
	case m.System != "":
		msgs = append(msgs, api.Message{Role: "system", Content: m.System})
	}
	if q.Context == nil {
		msgs = append(msgs, m.Messages...)
	}
	return append(msgs, api.Message{Role: "user", Content: q.Prompt, Images: q.Images})
}
