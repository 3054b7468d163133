package server

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// chatRequest is Ollama's, widened by what its current version has. Tools stay as the client wrote them, because the
// order of their keys, and keys that Ollama's type does not know, matter to a template.
type chatRequest struct {
	api.ChatRequest
	Think *thinkValue       `json:"think,omitempty"`
	Tools []json.RawMessage `json:"tools,omitempty"`
}

func (s *Server) handleChat(w http.ResponseWriter, r *http.Request) {
	n := nativeAnswer{began: time.Now()}
	var q chatRequest
	m, err := s.readChat(w, r, &q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	n.model, n.keepAlive, n.stream = m, q.KeepAlive, q.Stream
	n.asksNothing, n.renderOnly = len(q.Messages) == 0, q.DebugRenderOnly
	n.request = func() (*runnerpb.GenerateRequest, *prompt.Parser, error) { return s.chatRequest(&q, m) }
	n.without = func(reason string, info *api.DebugInfo) any {
		a := api.ChatResponse{Model: q.Model, CreatedAt: time.Now().UTC(), DoneReason: reason, Done: reason != "", DebugInfo: info}
		if a.Done {
			a.Message.Role = "assistant"
		}
		return a
	}
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
	n.serve(s, w, r)
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
