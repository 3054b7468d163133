package server

import (
	"bytes"
	"encoding/json"
	"slices"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

var (
	errMaxTokensRequired = errdefs.New(errdefs.ErrInvalid, "max_tokens is required and must be positive")
	errMessagesRequired  = errdefs.New(errdefs.ErrInvalid, "messages is required")
)

// anthropicRequest translates a request for m, and returns how its answer is to be read.
func (s *Server) anthropicRequest(q *anthropicRequest, m *store.Model) (*runnerpb.GenerateRequest, *answer, error) {
	msgs, err := anthropicMessages(q)
	if err != nil {
		return nil, nil, err
	}
	tools, err := anthropicTools(q.Tools)
	if err != nil {
		return nil, nil, err
	}
	if err := anthropicNeed(q, msgs).check(m); err != nil {
		return nil, nil, err
	}
	b, err := s.anthropicBuilder(q, m)
	if err != nil {
		return nil, nil, err
	}
	req, parser, err := b.conversation(m.Prompt(), behindModel(m, msgs), tools)
	if err != nil {
		return nil, nil, err
	}
	return req, &answer{parser: parser, single: b.toolChoice.GetSingle()}, nil
}

func anthropicNeed(q *anthropicRequest, msgs []api.Message) need {
	n := need{name: q.Model, verb: "chat"}
	if len(q.Tools) > 0 {
		n.capabilities = append(n.capabilities, model.CapabilityTools)
	}
	if slices.ContainsFunc(msgs, func(m api.Message) bool { return len(m.Images) > 0 }) {
		n.capabilities = append(n.capabilities, model.CapabilityVision)
	}
	return n
}

// anthropicBuilder begins the runner's request with all but its messages and tools.
func (s *Server) anthropicBuilder(q *anthropicRequest, m *store.Model) (*builder, error) {
	if err := s.checkAnthropicExtras(q); err != nil {
		return nil, err
	}
	choice, err := anthropicChoice(q)
	if err != nil {
		return nil, err
	}
	format, err := anthropicSchema(q.OutputConfig.Format, choice)
	if err != nil {
		return nil, err
	}
	wish, err := s.anthropicThink(q, m)
	if err != nil {
		return nil, err
	}
	think, err := resolveThink(m, q.Model, wish)
	if err != nil {
		return nil, err
	}
	b := &builder{s: s, model: m, options: anthropicOptions(q), format: format, think: think,
		toolChoice: choice}
	if err := b.begin(); err != nil {
		return nil, err
	}
	// Beside those of the model, which belong to its prompt format.
	for i, stop := range q.StopSequences {
		if stop == "" {
			return nil, errdefs.New(errdefs.ErrInvalid, "stop_sequences[%d] is empty; leave it out", i)
		}
		b.req.Options.Stop = append(b.req.Options.Stop, stop)
	}
	return b, nil
}

// checkAnthropicExtras refuses what would change an answer and cannot be done, and warns of what changes little.
func (s *Server) checkAnthropicExtras(q *anthropicRequest) error {
	if present(q.Thread) {
		return errThread
	}
	err := refuse([]refusedField{
		{"mcp_servers", q.MCPServers, "let your program connect to them and offer their tools"},
		{"container", q.Container, "no code is executed here"},
		{"compaction", q.Compaction, "ask for a summary in a message"},
	})
	if err != nil {
		return err
	}
	if present(q.ContextManagement) {
		s.log.Warn("option has no effect here", "option", "context_management")
	}
	if q.Thinking != nil && q.Thinking.BudgetTokens != 0 {
		s.log.Warn("option has no effect here", "option", "thinking.budget_tokens")
	}
	if slices.ContainsFunc(q.Tools, func(t anthropicTool) bool { return t.Strict }) {
		s.log.Warn("option has no effect here", "option", "tools.strict")
	}
	return nil
}

func anthropicOptions(q *anthropicRequest) map[string]any {
	o := map[string]any{}
	if q.MaxTokens > 0 {
		o["num_predict"] = int64(q.MaxTokens)
	}
	if q.Temperature != nil {
		o["temperature"] = *q.Temperature
	}
	if q.TopP != nil {
		o["top_p"] = *q.TopP
	}
	if q.TopK != nil {
		o["top_k"] = int64(*q.TopK)
	}
	return o
}

// anthropicEfforts are the levels of thinking that an effort stands for.
var anthropicEfforts = map[string]string{"": "", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "max"}

// anthropicThink returns the wish to think. Without a word on it there is none, as with Anthropic: programs take the
// first block of an answer for its text. A model that cannot think is not a reason to fail, because programs ask for
// thinking whatever the model is.
func (s *Server) anthropicThink(q *anthropicRequest, m *store.Model) (*thinkValue, error) {
	level, ok := anthropicEfforts[q.OutputConfig.Effort]
	if !ok {
		return nil, errdefs.New(errdefs.ErrInvalid, "output_config.effort %q is not one of low, medium, high, xhigh, max", q.OutputConfig.Effort)
	}
	wish := &thinkValue{enabled: level != "", level: level}
	if t := q.Thinking; t != nil {
		switch t.Type {
		case "enabled", "adaptive":
			wish.enabled = true
		case "disabled":
			wish = &thinkValue{}
		default:
			return nil, errdefs.New(errdefs.ErrInvalid, "thinking.type %q is not one of enabled, adaptive, disabled", t.Type)
		}
		if !slices.Contains([]string{"", "summarized", "omitted"}, t.Display) {
			return nil, errdefs.New(errdefs.ErrInvalid, "thinking.display %q is not one of summarized, omitted", t.Display)
		}
	}
	if wish.enabled && !slices.Contains(m.Capabilities, model.CapabilityThinking) {
		s.log.Warn("the model cannot think; answering without", "model", q.Model)
		return nil, nil
	}
	return wish, nil
}

// anthropicSchema returns the JSON Schema that the answer must follow, in the form of the native `format`.
func anthropicSchema(f *anthropicFormat, choice *runnerpb.ToolChoice) (json.RawMessage, error) {
	if f == nil {
		return nil, nil
	}
	if f.Type != "json_schema" {
		return nil, errdefs.New(errdefs.ErrInvalid, "output_config.format.type %q is not supported; use \"json_schema\"", f.Type)
	}
	if !isObject(f.Schema) {
		return nil, errdefs.New(errdefs.ErrInvalid, "output_config.format.schema must be a JSON Schema object")
	}
	if m := choice.GetMode(); m == runnerpb.ToolChoice_MODE_REQUIRED || m == runnerpb.ToolChoice_MODE_NAMED {
		return nil, errdefs.New(errdefs.ErrInvalid, "output_config.format and a tool_choice that requires a tool exclude each other")
	}
	return f.Schema, nil
}

func isObject(raw json.RawMessage) bool {
	return bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{"))
}
