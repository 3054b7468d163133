package server

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// responsesResponse is a response, whole or as it stands at some event of a stream.
type responsesResponse struct {
	ID                string               `json:"id"`
	Object            string               `json:"object"`
	CreatedAt         int64                `json:"created_at"`
	CompletedAt       *int64               `json:"completed_at"`
	Status            string               `json:"status"`
	Error             *responsesError      `json:"error"`
	IncompleteDetails *responsesIncomplete `json:"incomplete_details"`
	Model             string               `json:"model"`
	Output            []*responsesOutput   `json:"output"`
	Usage             *responsesUsage      `json:"usage"`

	// What follows repeats the request, with its defaults.
	Instructions       *string             `json:"instructions"`
	MaxOutputTokens    *int64              `json:"max_output_tokens"`
	MaxToolCalls       *int                `json:"max_tool_calls"`
	Temperature        float64             `json:"temperature"`
	TopP               float64             `json:"top_p"`
	PresencePenalty    float64             `json:"presence_penalty"`
	FrequencyPenalty   float64             `json:"frequency_penalty"`
	TopLogprobs        int                 `json:"top_logprobs"`
	Tools              []json.RawMessage   `json:"tools"`
	ToolChoice         json.RawMessage     `json:"tool_choice"`
	ParallelToolCalls  bool                `json:"parallel_tool_calls"`
	Text               responsesText       `json:"text"`
	Reasoning          *responsesReasoning `json:"reasoning"`
	Truncation         string              `json:"truncation"`
	Metadata           json.RawMessage     `json:"metadata"`
	User               *string             `json:"user"`
	SafetyIdentifier   *string             `json:"safety_identifier"`
	PromptCacheKey     *string             `json:"prompt_cache_key"`
	PreviousResponseID *string             `json:"previous_response_id"`
	ServiceTier        string              `json:"service_tier"`
	Store              bool                `json:"store"`
	Background         bool                `json:"background"`
}

type responsesError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

type responsesIncomplete struct {
	Reason string `json:"reason"`
}

type responsesUsage struct {
	InputTokens        int `json:"input_tokens"`
	InputTokensDetails struct {
		CachedTokens int `json:"cached_tokens"`
		// Always 0: what an answer leaves in the cache is not charged for and not counted.
		CacheWriteTokens int `json:"cache_write_tokens"`
	} `json:"input_tokens_details"`
	OutputTokens        int `json:"output_tokens"`
	OutputTokensDetails struct {
		ReasoningTokens int `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	TotalTokens int `json:"total_tokens"`
}

// responsesOutput is an item of the output: a message, a function call or reasoning.
type responsesOutput struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Status string `json:"status"`
	// Of a message.
	Role    string           `json:"role,omitempty"`
	Content *[]responsesPart `json:"content,omitempty"`
	// Of a function call.
	CallID    string  `json:"call_id,omitempty"`
	Namespace string  `json:"namespace,omitempty"`
	Name      string  `json:"name,omitempty"`
	Arguments *string `json:"arguments,omitempty"`
	// Of reasoning.
	Summary          *[]responsesSummary `json:"summary,omitempty"`
	EncryptedContent string              `json:"encrypted_content,omitempty"`
}

// responsesPart is the text of a message.
type responsesPart struct {
	Type        string          `json:"type"`
	Text        string          `json:"text"`
	Annotations []any           `json:"annotations"`
	Logprobs    []openaiLogprob `json:"logprobs"`
}

// responsesEvent is an event of a stream. Pointers tell absent fields from those that are zero.
type responsesEvent struct {
	Type           string             `json:"type"`
	SequenceNumber int                `json:"sequence_number"`
	Response       *responsesResponse `json:"response,omitempty"`
	OutputIndex    *int               `json:"output_index,omitempty"`
	ItemID         string             `json:"item_id,omitempty"`
	ContentIndex   *int               `json:"content_index,omitempty"`
	SummaryIndex   *int               `json:"summary_index,omitempty"`
	Item           *responsesOutput   `json:"item,omitempty"`
	Part           any                `json:"part,omitempty"`
	Delta          string             `json:"delta,omitempty"`
	Text           *string            `json:"text,omitempty"`
	Name           string             `json:"name,omitempty"`
	Arguments      *string            `json:"arguments,omitempty"`
	Logprobs       *[]openaiLogprob   `json:"logprobs,omitempty"`
}

// newResponse returns a response that has no output yet.
func newResponse(q *responsesRequest) *responsesResponse {
	value := func(p *float64, absent float64) float64 {
		if p == nil {
			return absent
		}
		return *p
	}
	out := &responsesResponse{
		ID: newOpenAIID("resp_"), Object: "response", CreatedAt: time.Now().Unix(), Status: "in_progress", Model: q.Model, Output: []*responsesOutput{},
		Instructions: q.Instructions, MaxOutputTokens: q.MaxOutputTokens, MaxToolCalls: q.MaxToolCalls,
		Temperature: value(q.Temperature, 1), TopP: value(q.TopP, 1),
		PresencePenalty: value(q.PresencePenalty, 0), FrequencyPenalty: value(q.FrequencyPenalty, 0),
		TopLogprobs: q.TopLogprobs, Tools: q.Tools, ToolChoice: q.ToolChoice, ParallelToolCalls: q.ParallelToolCalls == nil || *q.ParallelToolCalls,
		Text: q.Text, Reasoning: q.Reasoning, Truncation: "auto", Metadata: q.Metadata,
		User: q.User, SafetyIdentifier: q.SafetyIdentifier, PromptCacheKey: q.PromptCacheKey, ServiceTier: "default",
	}
	if q.Tools == nil {
		out.Tools = []json.RawMessage{}
	}
	if !present(q.ToolChoice) {
		out.ToolChoice = json.RawMessage(`"auto"`)
	}
	if !present(q.Metadata) {
		out.Metadata = json.RawMessage(`{}`)
	}
	if q.Truncation != nil {
		out.Truncation = *q.Truncation
	}
	return out
}

// end sets how the response ended.
func (x *responsesResponse) end(f *runnerpb.Finished, reasoning uint32) {
	now := time.Now().Unix()
	x.Status, x.CompletedAt = "completed", &now
	if f.GetReason() == runnerpb.Finished_REASON_LENGTH {
		x.Status, x.CompletedAt = "incomplete", nil
		x.IncompleteDetails = &responsesIncomplete{"max_output_tokens"}
	}
	u := openaiUsageOf(f.GetUsage(), reasoning)
	x.Usage = &responsesUsage{InputTokens: u.PromptTokens, OutputTokens: u.CompletionTokens, TotalTokens: u.TotalTokens}
	x.Usage.InputTokensDetails.CachedTokens = u.PromptTokensDetails.CachedTokens
	x.Usage.OutputTokensDetails.ReasoningTokens = u.CompletionTokensDetails.ReasoningTokens
}

// fail sets that the response ended with an error.
func (x *responsesResponse) fail(err error) {
	x.Status = "failed"
	x.Error = &responsesError{"server_error", publicText(err)}
	if errdefs.HTTPStatus(err) < http.StatusInternalServerError {
		x.Error.Code = "invalid_prompt"
	}
}
