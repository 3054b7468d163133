package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// responsesRequest is the body of /v1/responses. The route is stateless: a conversation comes whole with each request.
// The pointers and raw values are repeated in the response as they came.
type responsesRequest struct {
	openaiSampling
	Model             string              `json:"model"`
	Input             json.RawMessage     `json:"input"`
	Instructions      *string             `json:"instructions"`
	Stream            bool                `json:"stream"`
	MaxOutputTokens   *int64              `json:"max_output_tokens"`
	Text              responsesText       `json:"text"`
	Reasoning         *responsesReasoning `json:"reasoning"`
	Tools             []json.RawMessage   `json:"tools"`
	ToolChoice        json.RawMessage     `json:"tool_choice"`
	ParallelToolCalls *bool               `json:"parallel_tool_calls"`
	TopLogprobs       int                 `json:"top_logprobs"`
	Include           []string            `json:"include"`
	Truncation        *string             `json:"truncation"`
	Metadata          json.RawMessage     `json:"metadata"`
	User              *string             `json:"user"`
	SafetyIdentifier  *string             `json:"safety_identifier"`
	PromptCacheKey    *string             `json:"prompt_cache_key"`
	MaxToolCalls      *int                `json:"max_tool_calls"`

	PreviousResponseID json.RawMessage `json:"previous_response_id"`
	Conversation       json.RawMessage `json:"conversation"`
	Background         json.RawMessage `json:"background"`
	Store              json.RawMessage `json:"store"`
	Prompt             json.RawMessage `json:"prompt"`
	ContextManagement  json.RawMessage `json:"context_management"`

	// names are the namespaces and names of functions by the name that the model sees.
	names map[string]responsesFunctionName
}

type responsesText struct {
	// Format is nil for plain text.
	Format    json.RawMessage `json:"format"`
	Verbosity string          `json:"verbosity,omitempty"`
}

type responsesReasoning struct {
	Effort          *string `json:"effort"`
	Summary         *string `json:"summary"`
	GenerateSummary *string `json:"generate_summary,omitempty"`
}

const includeLogprobs = "message.output_text.logprobs"

func (s *Server) handleResponses(w http.ResponseWriter, r *http.Request) {
	var q responsesRequest
	x, err := s.readResponses(w, r, &q)
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
		s.streamResponse(w, r, &q, a)
		return
	}
	s.writeResponse(w, r, &q, a)
}

// readResponses reads and checks what needs no model.
// handleInputTokens serves /v1/responses/input_tokens: how many tokens the input of a response has.
func (s *Server) handleInputTokens(w http.ResponseWriter, r *http.Request) {
	var q responsesRequest
	tokens, err := func() (int, error) {
		x, err := s.readResponses(w, r, &q)
		if err != nil {
			return 0, err
		}
		m, err := s.lookup(x.model)
		if err != nil {
			return 0, err
		}
		req, _, err := s.openaiRequest(x, m)
		if err != nil {
			return 0, err
		}
		return s.countTokens(r.Context(), m, q.KeepAlive, req)
	}()
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Object      string `json:"object"`
		InputTokens int    `json:"input_tokens"`
	}{"response.input_tokens", tokens})
}

func (s *Server) readResponses(w http.ResponseWriter, r *http.Request, q *responsesRequest) (*openaiWork, error) {
	if err := s.readOpenAI(w, r, q); err != nil {
		return nil, err
	}
	if q.Model == "" {
		return nil, &fieldError{"model", errModelRequired}
	}
	if err := q.refuse(); err != nil {
		return nil, err
	}
	if q.Text.Verbosity != "" {
		s.log.Warn("option has no effect here", "option", "text.verbosity")
	}
	x := &openaiWork{model: q.Model, sampling: &q.openaiSampling, maxField: "max_output_tokens", maxTokens: q.MaxOutputTokens,
		topLogprobs: q.TopLogprobs, logprobs: q.TopLogprobs > 0 || slices.Contains(q.Include, includeLogprobs)}
	if q.Reasoning != nil && q.Reasoning.Effort != nil {
		x.effort, x.effortField = *q.Reasoning.Effort, "reasoning.effort"
	}
	if q.Truncation != nil {
		cut := *q.Truncation == "auto"
		x.truncate = &cut
	}
	var err error
	if x.tools, err = s.responsesTools(q); err != nil {
		return nil, err
	}
	if x.choice, err = openaiChoice(q.ToolChoice, q.ParallelToolCalls, x.tools); err != nil {
		return nil, err
	}
	if x.format, err = q.Text.native(); err != nil {
		return nil, err
	}
	x.messages, err = q.messages()
	return x, err
}

// refuse names what cannot be honoured.
func (q *responsesRequest) refuse() error {
	if t := q.Truncation; t != nil && *t != "auto" && *t != "disabled" {
		return badField("truncation", `must be "auto" or "disabled", got %q`, *t)
	}
	if err := checkTopLogprobs(q.TopLogprobs); err != nil {
		return &fieldError{"top_logprobs", err}
	}
	const stateless = "responses are not stored here; send the whole conversation as input"
	return refuse([]refusedField{
		{"previous_response_id", q.PreviousResponseID, stateless},
		{"conversation", q.Conversation, stateless},
		{"store", q.Store, "responses are not stored here; leave it out or set it to false"},
		{"background", q.Background, "keep the connection open, or stream"},
		{"prompt", q.Prompt, "prompts are not stored here; send input and instructions"},
		{"context_management", q.ContextManagement, "shorten the input, or set truncation to \"auto\""},
	})
}

func (t *responsesText) native() (json.RawMessage, error) {
	if !present(t.Format) {
		t.Format = json.RawMessage(`{"type":"text"}`)
	}
	var f openaiFormat
	if err := json.Unmarshal(t.Format, &f); err != nil {
		return nil, badField("text.format", "must be an object: %w", err)
	}
	return f.native("text.format")
}

// responsesFunctionName is the name of a function, in a namespace or in none.
type responsesFunctionName struct{ namespace, name string }

// flat is the one name under which the model sees the function.
func (n responsesFunctionName) flat() string {
	if n.namespace == "" {
		return n.name
	}
	return n.namespace + "__" + n.name
}

type responsesTool struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Parameters  json.RawMessage   `json:"parameters"`
	Tools       []json.RawMessage `json:"tools"`
}

// responsesTools returns the tools in the form of the chat route.
func (s *Server) responsesTools(q *responsesRequest) ([]json.RawMessage, error) {
	q.names = map[string]responsesFunctionName{}
	var out []json.RawMessage
	for i, raw := range q.Tools {
		tools, err := s.responsesTool(q, fmt.Sprintf("tools[%d]", i), "", raw)
		if err != nil {
			return nil, err
		}
		out = append(out, tools...)
	}
	return out, nil
}

func (s *Server) responsesTool(q *responsesRequest, at, namespace string, raw json.RawMessage) ([]json.RawMessage, error) {
	var t responsesTool
	if err := json.Unmarshal(raw, &t); err != nil {
		return nil, badField(at, "must be an object: %w", err)
	}
	switch {
	case t.Type == "function":
		tool, err := q.functionTool(at, responsesFunctionName{namespace, t.Name}, t)
		return []json.RawMessage{tool}, err
	case t.Type == "namespace" && namespace == "":
		var out []json.RawMessage
		for i, inner := range t.Tools {
			tools, err := s.responsesTool(q, fmt.Sprintf("%s.tools[%d]", at, i), t.Name, inner)
			if err != nil {
				return nil, err
			}
			out = append(out, tools...)
		}
		return out, nil
	case strings.HasPrefix(t.Type, "web_search") && !q.demandsCall():
		// Agents offer it whatever the server is. It is the model that decides on its use, and this one never uses it.
		s.log.Warn("tool is not offered to the model, because nothing here searches the web", "tool", t.Type)
		return nil, nil
	}
	return nil, unsupportedValue(at, fmt.Sprintf(" of type %q", t.Type), "a tool must be a function")
}

func (q *responsesRequest) demandsCall() bool {
	return present(q.ToolChoice) && string(q.ToolChoice) != `"auto"` && string(q.ToolChoice) != `"none"`
}

func (q *responsesRequest) functionTool(at string, name responsesFunctionName, t responsesTool) (json.RawMessage, error) {
	if t.Name == "" {
		return nil, badField(at+".name", "is missing")
	}
	q.names[name.flat()] = name
	type function struct {
		Name        string          `json:"name"`
		Description string          `json:"description,omitempty"`
		Parameters  json.RawMessage `json:"parameters,omitempty"`
	}
	f := function{name.flat(), t.Description, nil}
	if present(t.Parameters) {
		f.Parameters = t.Parameters
	}
	out, err := json.Marshal(struct {
		Type     string   `json:"type"`
		Function function `json:"function"`
	}{"function", f})
	return out, errdefs.Wrap(errdefs.ErrInvalid, err)
}
