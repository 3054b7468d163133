package server

import (
	"net/http"
	"time"

	"github.com/ollama/ollama/openai"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

type chatCompletion struct {
	ID                string                 `json:"id"`
	Object            string                 `json:"object"`
	Created           int64                  `json:"created"`
	Model             string                 `json:"model"`
	SystemFingerprint string                 `json:"system_fingerprint"`
	Choices           []chatCompletionChoice `json:"choices"`
	// Usage is absent from the chunks of a stream but the last.
	Usage *openaiUsage `json:"usage,omitempty"`
}

type chatCompletionChoice struct {
	Index int `json:"index"`
	// A whole answer has a message, a chunk of a stream a delta.
	Message      *chatCompletionReply    `json:"message,omitempty"`
	Delta        *chatCompletionDelta    `json:"delta,omitempty"`
	Logprobs     *chatCompletionLogprobs `json:"logprobs,omitempty"`
	FinishReason *string                 `json:"finish_reason"`
}

// chatCompletionReply has reasoning twice because clients look for it under either name. Its content is null if there
// are calls alone.
type chatCompletionReply struct {
	Role             string            `json:"role"`
	Content          *string           `json:"content"`
	Reasoning        string            `json:"reasoning,omitempty"`
	ReasoningContent string            `json:"reasoning_content,omitempty"`
	ToolCalls        []openai.ToolCall `json:"tool_calls,omitempty"`
}

// chatCompletionDelta is what a chunk adds to a chatCompletionReply.
type chatCompletionDelta struct {
	Role             string            `json:"role,omitempty"`
	Content          *string           `json:"content,omitempty"`
	Reasoning        string            `json:"reasoning,omitempty"`
	ReasoningContent string            `json:"reasoning_content,omitempty"`
	ToolCalls        []openai.ToolCall `json:"tool_calls,omitempty"`
}

type chatCompletionLogprobs struct {
	Content []openaiLogprob `json:"content"`
	Refusal []openaiLogprob `json:"refusal"`
}

func chatLogprobs(in []*runnerpb.TokenLogprob) *chatCompletionLogprobs {
	if len(in) == 0 {
		return nil
	}
	return &chatCompletionLogprobs{Content: openaiLogprobs(in)}
}

func newChatCompletion(q *chatCompletionRequest, object string) chatCompletion {
	return chatCompletion{ID: newOpenAIID("chatcmpl-"), Object: object, Created: time.Now().Unix(), Model: q.Model, SystemFingerprint: openaiFingerprint}
}

// writeChatCompletion writes the answer as one value.
func (s *Server) writeChatCompletion(w http.ResponseWriter, r *http.Request, q *chatCompletionRequest, a *answer) {
	c, err := a.collect()
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	content, thinking := c.content.String(), c.thinking.String()
	msg := &chatCompletionReply{Role: "assistant", Reasoning: thinking, ReasoningContent: thinking}
	for i, call := range c.calls {
		msg.ToolCalls = append(msg.ToolCalls, openaiToolCall(call, i))
	}
	if content != "" || len(c.calls) == 0 {
		msg.Content = &content
	}
	out := newChatCompletion(q, "chat.completion")
	out.Choices = []chatCompletionChoice{{Message: msg, Logprobs: chatLogprobs(c.logprobs), FinishReason: finishReason(c.end, len(c.calls))}}
	out.Usage = openaiUsageOf(c.end.GetUsage(), c.reasoning)
	writeJSON(w, http.StatusOK, out)
}

// streamChatCompletion writes each step of the answer as chunks.
func (s *Server) streamChatCompletion(w http.ResponseWriter, r *http.Request, q *chatCompletionRequest, a *answer) {
	c := &chatChunks{out: newSSE(w), chunk: newChatCompletion(q, "chat.completion.chunk")}
	defer c.out.close()
	c.out.comment = a.progress
	c.out.keepAlive(s.params.PingInterval, nil)
	end, err := a.read(c.delta)
	if err == nil {
		err = c.finish(end, q.StreamOptions != nil && q.StreamOptions.IncludeUsage)
	}
	if err != nil {
		c.out.fail(s, r, err, func() { s.failOpenAI(w, r, err) }, func() (string, any) { return "", openaiError(err) })
	}
}

// chatChunks writes an answer as chunks. The first one tells the role.
type chatChunks struct {
	out   *sse
	chunk chatCompletion
	// spoken: the role is told.
	spoken    bool
	calls     int
	reasoning uint32
}

// delta writes what one step added: reasoning, content and calls apart, since clients look for one of them in a chunk.
func (c *chatChunks) delta(d *runnerpb.Delta) error {
	c.reasoning += reasoningTokens(d)
	logprobs := chatLogprobs(d.GetLogprobs())
	var parts []*chatCompletionDelta
	if t := d.GetThinking(); t != "" {
		parts = append(parts, &chatCompletionDelta{Reasoning: t, ReasoningContent: t})
	}
	if t := d.GetContent(); t != "" {
		parts = append(parts, &chatCompletionDelta{Content: &t})
	}
	if calls := d.GetToolCalls(); len(calls) > 0 {
		x := &chatCompletionDelta{}
		for _, call := range calls {
			x.ToolCalls = append(x.ToolCalls, openaiToolCall(call, c.calls))
			c.calls++
		}
		parts = append(parts, x)
	}
	if parts == nil && logprobs != nil {
		parts = append(parts, &chatCompletionDelta{Content: new(string)})
	}
	for _, p := range parts {
		if err := c.add(chatCompletionChoice{Delta: p, Logprobs: logprobs}); err != nil {
			return err
		}
		logprobs = nil
	}
	return c.out.flush()
}

func (c *chatChunks) add(choice chatCompletionChoice) error {
	if !c.spoken {
		c.spoken = true
		choice.Delta.Role = "assistant"
		if choice.Delta.Content == nil {
			choice.Delta.Content = new(string)
		}
	}
	c.chunk.Choices = []chatCompletionChoice{choice}
	return c.out.add("", &c.chunk)
}

// finish writes the chunks that end an answer.
func (c *chatChunks) finish(end *runnerpb.Finished, usage bool) error {
	if !c.spoken {
		if err := c.add(chatCompletionChoice{Delta: &chatCompletionDelta{}}); err != nil {
			return err
		}
	}
	if err := c.add(chatCompletionChoice{Delta: &chatCompletionDelta{}, FinishReason: finishReason(end, c.calls)}); err != nil {
		return err
	}
	if usage {
		c.chunk.Choices, c.chunk.Usage = []chatCompletionChoice{}, openaiUsageOf(end.GetUsage(), c.reasoning)
		if err := c.out.add("", &c.chunk); err != nil {
			return err
		}
	}
	c.out.addText("[DONE]")
	return c.out.flush()
}
