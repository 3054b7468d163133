package server

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// chatRequest is Ollama's, widened by what its current version has. Tools stay as the client wrote them, because the
// order of their keys, and keys that Ollama's type does not know, matter to a template.
type chatRequest struct {
	api.ChatRequest
	Think *thinkValue       `json:"think,omitempty"`
	Tools []json.RawMessage `json:"tools,omitempty"`
}

func (q *chatRequest) unloads() bool {
	return len(q.Messages) == 0 && q.KeepAlive != nil && q.KeepAlive.Duration == 0
}

func (s *Server) handleChat(w http.ResponseWriter, r *http.Request) {
	n := nativeAnswer{began: time.Now()}
	var q chatRequest
	m, err := s.readChat(w, r, &q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	bare := func(reason string) api.ChatResponse {
		return api.ChatResponse{Model: q.Model, CreatedAt: time.Now().UTC(), Message: api.Message{Role: "assistant"}, Done: true, DoneReason: reason}
	}
	if q.unloads() {
		s.params.Scheduler.Unload(m)
		writeJSON(w, http.StatusOK, bare("unload"))
		return
	}
	req, parser, err := s.chatRequest(&q, m)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	a := &answer{parser: parser}
	var info *api.DebugInfo
	use := a.ask(r.Context(), req)
	switch {
	case len(q.Messages) == 0:
		use = func(sched.Generator) error { return nil }
	case q.DebugRenderOnly:
		use = func(g sched.Generator) (err error) {
			info, err = renderOnly(r.Context(), g, req)
			return err
		}
	}
	lease, loaded, err := s.withRunner(r.Context(), m, q.KeepAlive, use)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer lease.Release()
	switch {
	case len(q.Messages) == 0:
		writeJSON(w, http.StatusOK, bare("load"))
		return
	case info != nil:
		writeJSON(w, http.StatusOK, api.ChatResponse{Model: q.Model, CreatedAt: time.Now().UTC(), DebugInfo: info})
		return
	}
	defer a.close()

	n.loaded = loaded
	var out struct {
		api.ChatResponse
		answerExtras
	}
	out.Model, out.Message.Role = q.Model, "assistant"
	n.form = func(c *chunk) any {
		out.CreatedAt = time.Now().UTC()
		out.Message.Content, out.Message.Thinking, out.Message.ToolCalls = c.content, c.thinking, c.calls
		out.Done, out.DoneReason, out.Logprobs, out.Metrics = c.done, c.reason, c.logprobs, c.metrics
		out.answerExtras = c.extras
		return &out
	}
	n.write(s, w, r, a, q.Stream)
}

// readChat reads and checks what needs no model, and finds the model.
func (s *Server) readChat(w http.ResponseWriter, r *http.Request, q *chatRequest) (*store.Model, error) {
	if err := s.readJSON(w, r, q); err != nil {
		return nil, err
	}
	if err := checkTopLogprobs(q.TopLogprobs); err != nil {
		return nil, err
	}
	if q.Model == "" {
		return nil, errModelRequired
	}
	return s.lookup(q.Model)
}

// chatRequest translates the request, and returns the parser of its answer if it was rendered here.
func (s *Server) chatRequest(q *chatRequest, m *store.Model) (*runnerpb.GenerateRequest, *prompt.Parser, error) {
	need := need{name: q.Model, verb: "chat"}
	if len(q.Tools) > 0 {
		need.capabilities = append(need.capabilities, model.CapabilityTools)
	}
	for _, msg := range q.Messages {
		if len(msg.Images) > 0 {
			need.capabilities = append(need.capabilities, model.CapabilityVision)
			break
		}
	}
	if err := need.check(m); err != nil {
		return nil, nil, err
	}
	think, err := resolveThink(m, q.Model, q.Think)
	if err != nil {
		return nil, nil, err
	}
	tools, err := toolsFrom(q.Tools)
	if err != nil {
		return nil, nil, err
	}
	b := builder{s: s, model: m, options: q.Options, format: q.Format, think: think,
		truncate: q.Truncate, shift: q.Shift, logprobs: q.Logprobs, topLogprobs: q.TopLogprobs}
	if err := b.begin(); err != nil {
		return nil, nil, err
	}
	return b.conversation(m.Prompt(), behindModel(m, q.Messages), tools)
}
