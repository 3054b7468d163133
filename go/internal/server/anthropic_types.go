package server

import "encoding/json"

// This file has the JSON of Anthropic's Messages API, as far as it means something here. What is accepted without an
// effect is told in docs/anthropic.md.

// anthropicRequest is the body of /v1/messages and, without what concerns the answer, of /v1/messages/count_tokens.
type anthropicRequest struct {
	Model     string             `json:"model"`
	MaxTokens int                `json:"max_tokens"`
	Messages  []anthropicMessage `json:"messages"`
	// System is a text or a list of text blocks.
	System        json.RawMessage       `json:"system"`
	Stream        bool                  `json:"stream"`
	Temperature   *float64              `json:"temperature"`
	TopP          *float64              `json:"top_p"`
	TopK          *int                  `json:"top_k"`
	StopSequences []string              `json:"stop_sequences"`
	Tools         []anthropicTool       `json:"tools"`
	ToolChoice    *anthropicToolChoice  `json:"tool_choice"`
	Thinking      *anthropicThinking    `json:"thinking"`
	OutputConfig  anthropicOutputConfig `json:"output_config"`

	// Work of Anthropic's servers that a request may ask for.
	MCPServers        json.RawMessage `json:"mcp_servers"`
	Container         json.RawMessage `json:"container"`
	Compaction        json.RawMessage `json:"compaction"`
	Thread            json.RawMessage `json:"thread"`
	ContextManagement json.RawMessage `json:"context_management"`
}

type anthropicMessage struct {
	Role string `json:"role"`
	// Content is a text or a list of blocks.
	Content json.RawMessage `json:"content"`
}

// anthropicBlock is a block of content of any type; Type says which other fields count.
type anthropicBlock struct {
	Type string `json:"type"`

	Text     string           `json:"text"`
	Thinking string           `json:"thinking"`
	Source   *anthropicSource `json:"source"`

	// Of a call of a tool.
	ID    string          `json:"id"`
	Name  string          `json:"name"`
	Input json.RawMessage `json:"input"`

	// Of the result of a call. Content is a text or a list of blocks.
	ToolUseID string          `json:"tool_use_id"`
	Content   json.RawMessage `json:"content"`
	IsError   bool            `json:"is_error"`
}

type anthropicSource struct {
	Type      string `json:"type"`
	MediaType string `json:"media_type"`
	Data      string `json:"data"`
}

type anthropicTool struct {
	Type           string          `json:"type"`
	Name           string          `json:"name"`
	Description    string          `json:"description"`
	InputSchema    json.RawMessage `json:"input_schema"`
	AllowedCallers []string        `json:"allowed_callers"`
	Strict         bool            `json:"strict"`
}

type anthropicToolChoice struct {
	Type                   string `json:"type"`
	Name                   string `json:"name"`
	DisableParallelToolUse bool   `json:"disable_parallel_tool_use"`
}

type anthropicThinking struct {
	Type         string `json:"type"`
	BudgetTokens int    `json:"budget_tokens"`
	Display      string `json:"display"`
}

type anthropicOutputConfig struct {
	Effort string           `json:"effort"`
	Format *anthropicFormat `json:"format"`
}

type anthropicFormat struct {
	Type   string          `json:"type"`
	Schema json.RawMessage `json:"schema"`
}

// anthropicReply is a whole answer, and without content and reason to stop the beginning of a streamed one.
type anthropicReply struct {
	ID           string                `json:"id"`
	Type         string                `json:"type"`
	Role         string                `json:"role"`
	Model        string                `json:"model"`
	Content      []anthropicReplyBlock `json:"content"`
	StopReason   *string               `json:"stop_reason"`
	StopSequence *string               `json:"stop_sequence"`
	Usage        anthropicUsage        `json:"usage"`
}

// anthropicReplyBlock has pointers where a block of some type has a field even if it is empty.
type anthropicReplyBlock struct {
	Type      string          `json:"type"`
	Text      *string         `json:"text,omitempty"`
	Thinking  *string         `json:"thinking,omitempty"`
	Signature *string         `json:"signature,omitempty"`
	ID        string          `json:"id,omitempty"`
	Name      string          `json:"name,omitempty"`
	Input     json.RawMessage `json:"input,omitempty"`
}

// anthropicUsage counts tokens. Those of the prompt are the input tokens and those read from the cache together.
type anthropicUsage struct {
	InputTokens              uint32 `json:"input_tokens"`
	CacheCreationInputTokens uint32 `json:"cache_creation_input_tokens"`
	CacheReadInputTokens     uint32 `json:"cache_read_input_tokens"`
	OutputTokens             uint32 `json:"output_tokens"`
}

type anthropicTokenCount struct {
	InputTokens int `json:"input_tokens"`
}

// The events of a streamed answer.
type (
	anthropicMessageStart struct {
		Type    string         `json:"type"`
		Message anthropicReply `json:"message"`
	}
	anthropicBlockStart struct {
		Type  string              `json:"type"`
		Index int                 `json:"index"`
		Block anthropicReplyBlock `json:"content_block"`
	}
	anthropicBlockDelta struct {
		Type  string         `json:"type"`
		Index int            `json:"index"`
		Delta anthropicDelta `json:"delta"`
	}
	// anthropicDelta has one of its texts set.
	anthropicDelta struct {
		Type        string `json:"type"`
		Text        string `json:"text,omitempty"`
		Thinking    string `json:"thinking,omitempty"`
		Signature   string `json:"signature,omitempty"`
		PartialJSON string `json:"partial_json,omitempty"`
	}
	anthropicBlockStop struct {
		Type  string `json:"type"`
		Index int    `json:"index"`
	}
	anthropicMessageDelta struct {
		Type  string         `json:"type"`
		Delta anthropicStop  `json:"delta"`
		Usage anthropicUsage `json:"usage"`
	}
	anthropicStop struct {
		StopReason   string  `json:"stop_reason"`
		StopSequence *string `json:"stop_sequence"`
	}
	anthropicBareEvent struct {
		Type string `json:"type"`
	}
)

type anthropicError struct {
	Type      string             `json:"type"`
	Error     anthropicErrorInfo `json:"error"`
	RequestID string             `json:"request_id"`
}

type anthropicErrorInfo struct {
	Type    string                 `json:"type"`
	Message string                 `json:"message"`
	Details *anthropicErrorDetails `json:"details,omitempty"`
}

// anthropicErrorDetails has the code of an error that a client library knows how to go round.
type anthropicErrorDetails struct {
	ErrorCode string `json:"error_code"`
}
