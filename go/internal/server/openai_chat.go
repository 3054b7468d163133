package server

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/openai"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// chatCompletionRequest is the body of /v1/chat/completions. docs/openai.md tells what becomes of each field.
type chatCompletionRequest struct {
	openaiSampling
	Model               string                  `json:"model"`
	Messages            []chatCompletionMessage `json:"messages"`
	Stream              bool                    `json:"stream"`
	StreamOptions       *openai.StreamOptions   `json:"stream_options"`
	MaxTokens           *int64                  `json:"max_tokens"`
	MaxCompletionTokens *int64                  `json:"max_completion_tokens"`
	N                   *int                    `json:"n"`
	ResponseFormat      *openaiFormat           `json:"response_format"`
	Tools               []json.RawMessage       `json:"tools"`
	ToolChoice          json.RawMessage         `json:"tool_choice"`
	ParallelToolCalls   *bool                   `json:"parallel_tool_calls"`
	Reasoning           *openai.Reasoning       `json:"reasoning"`
	ReasoningEffort     string                  `json:"reasoning_effort"`
	Logprobs            bool                    `json:"logprobs"`
	TopLogprobs         int                     `json:"top_logprobs"`

	Audio            json.RawMessage `json:"audio"`
	Modalities       []string        `json:"modalities"`
	Functions        json.RawMessage `json:"functions"`
	FunctionCall     json.RawMessage `json:"function_call"`
	WebSearchOptions json.RawMessage `json:"web_search_options"`
	Verbosity        string          `json:"verbosity"`
}

type chatCompletionMessage struct {
	Role       string            `json:"role"`
	Name       string            `json:"name"`
	Content    json.RawMessage   `json:"content"`
	ToolCalls  []openai.ToolCall `json:"tool_calls"`
	ToolCallID string            `json:"tool_call_id"`
	// Reasoning of an earlier turn, under either of the names that clients send back.
	Reasoning        string          `json:"reasoning"`
	ReasoningContent string          `json:"reasoning_content"`
	FunctionCall     json.RawMessage `json:"function_call"`
}

func (s *Server) handleChatCompletions(w http.ResponseWriter, r *http.Request) {
	var q chatCompletionRequest
	x, err := s.readChatCompletion(w, r, &q)
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	a, done, err := s.beginOpenAI(r.Context(), x, q.KeepAlive)
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	defer done()
	if q.Stream {
		s.streamChatCompletion(w, r, &q, a)
		return
	}
	s.writeChatCompletion(w, r, &q, a)
}

// readChatCompletion reads and checks what needs no model.
func (s *Server) readChatCompletion(w http.ResponseWriter, r *http.Request, q *chatCompletionRequest) (*openaiWork, error) {
	if err := s.readOpenAI(w, r, q); err != nil {
		return nil, err
	}
	if len(q.Messages) == 0 {
		return nil, &fieldError{"messages", errdefs.New(errdefs.ErrInvalid, "[] is too short - 'messages'")}
	}
	if q.Model == "" {
		return nil, &fieldError{"model", errModelRequired}
	}
	if err := q.refuse(); err != nil {
		return nil, err
	}
	if q.Verbosity != "" {
		s.log.Warn("option has no effect here", "option", "verbosity")
	}
	x := &openaiWork{model: q.Model, sampling: &q.openaiSampling, maxField: "max_tokens", maxTokens: q.MaxTokens,
		effort: q.ReasoningEffort, effortField: "reasoning_effort", tools: q.Tools, logprobs: q.Logprobs, topLogprobs: q.TopLogprobs}
	if q.MaxCompletionTokens != nil {
		x.maxField, x.maxTokens = "max_completion_tokens", q.MaxCompletionTokens
	}
	if q.Reasoning != nil && q.Reasoning.Effort != "" {
		x.effort, x.effortField = q.Reasoning.Effort, "reasoning.effort"
	}
	var err error
	if x.messages, err = q.messages(); err != nil {
		return nil, err
	}
	if x.format, err = q.ResponseFormat.native("response_format"); err != nil {
		return nil, err
	}
	if err = onlyFunctions(q.Tools); err != nil {
		return nil, err
	}
	x.choice, err = openaiChoice(q.ToolChoice, q.ParallelToolCalls, q.Tools)
	return x, err
}

// refuse names what cannot be honoured.
func (q *chatCompletionRequest) refuse() error {
	if q.N != nil && *q.N != 1 {
		return unsupportedValue("n", fmt.Sprintf(" of %d", *q.N), "one choice is made for each request; send more requests, they run side by side")
	}
	for _, m := range q.Modalities {
		if m != "text" {
			return unsupportedValue("modalities", fmt.Sprintf(" with %q", m), "answers are text")
		}
	}
	if err := checkTopLogprobs(q.TopLogprobs); err != nil {
		return &fieldError{"top_logprobs", err}
	}
	if q.TopLogprobs > 0 && !q.Logprobs {
		return badField("top_logprobs", "needs logprobs to be true")
	}
	return refuse([]refusedField{
		{"audio", q.Audio, "answers are text"},
		{"functions", q.Functions, "use tools"},
		{"function_call", q.FunctionCall, "use tool_choice"},
		{"web_search_options", q.WebSearchOptions, "offer a search as one of the tools"},
	})
}

// onlyFunctions refuses tools of other types than functions.
func onlyFunctions(tools []json.RawMessage) error {
	for i, raw := range tools {
		var t struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(raw, &t) == nil && t.Type != "" && t.Type != "function" {
			return unsupportedValue(fmt.Sprintf("tools[%d]", i), fmt.Sprintf(" of type %q", t.Type), "a tool must be a function")
		}
	}
	return nil
}

// messages returns the conversation in the native form.
func (q *chatCompletionRequest) messages() ([]api.Message, error) {
	out := make([]api.Message, 0, len(q.Messages))
	for i, in := range q.Messages {
		m, err := in.native(fmt.Sprintf("messages[%d]", i))
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	nameTools(out)
	return out, nil
}

func (in *chatCompletionMessage) native(at string) (api.Message, error) {
	m := api.Message{Role: openaiRole(in.Role), Thinking: in.Reasoning, ToolCallID: in.ToolCallID}
	if m.Thinking == "" {
		m.Thinking = in.ReasoningContent
	}
	switch {
	case m.Role == "":
		return m, badField(at+".role", "is missing")
	case m.Role == "function" || present(in.FunctionCall):
		return m, unsupportedValue(at, " with a function call of the old form", "use tool_calls and the role \"tool\"")
	case m.Role == "tool":
		m.ToolName = in.Name
	}
	for i, c := range in.ToolCalls {
		call, err := openaiCall(fmt.Sprintf("%s.tool_calls[%d]", at, i), c)
		if err != nil {
			return m, err
		}
		m.ToolCalls = append(m.ToolCalls, call)
	}
	if len(in.Content) == 0 || string(in.Content) == "null" {
		if len(m.ToolCalls) == 0 && m.Thinking == "" {
			return m, badField(at+".content", "is missing")
		}
		return m, nil
	}
	var err error
	m.Content, m.Images, err = openaiContent(at+".content", in.Content)
	return m, err
}
