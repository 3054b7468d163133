package server

import (
	"cmp"
	"crypto/rand"
	"strings"

	"github.com/ollama/ollama/openai"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// openaiFingerprint fills a field that clients expect; it stands for no backend configuration.
const openaiFingerprint = "fp_ollmlx"

func newOpenAIID(prefix string) string { return prefix + strings.ToLower(rand.Text()) }

// openaiUsage is Ollama's, widened by its details.
type openaiUsage struct {
	openai.Usage
	PromptTokensDetails struct {
		CachedTokens int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
	CompletionTokensDetails struct {
		ReasoningTokens int `json:"reasoning_tokens"`
	} `json:"completion_tokens_details"`
}

func openaiUsageOf(u *runnerpb.Usage, reasoning uint32) *openaiUsage {
	out := &openaiUsage{Usage: openai.Usage{
		PromptTokens:     int(u.GetPromptTokens()),
		CompletionTokens: int(u.GetCompletionTokens()),
		TotalTokens:      int(u.GetPromptTokens()) + int(u.GetCompletionTokens()),
	}}
	out.PromptTokensDetails.CachedTokens = int(u.GetCachedPromptTokens())
	out.CompletionTokensDetails.ReasoningTokens = int(reasoning)
	return out
}

// reasoningTokens returns how many tokens of d are reasoning. A delta of both kinds, which only the last one of the
// reasoning is, counts as reasoning.
func reasoningTokens(d *runnerpb.Delta) uint32 {
	if d.GetThinking() == "" {
		return 0
	}
	return d.GetTokens()
}

// openaiLogprob is a token in the form of the chat and responses routes.
type openaiLogprob struct {
	Token       string               `json:"token"`
	Bytes       []int                `json:"bytes"`
	Logprob     float64              `json:"logprob"`
	TopLogprobs []openaiTokenLogprob `json:"top_logprobs"`
}

type openaiTokenLogprob struct {
	Token   string  `json:"token"`
	Bytes   []int   `json:"bytes"`
	Logprob float64 `json:"logprob"`
}

func openaiLogprobs(in []*runnerpb.TokenLogprob) []openaiLogprob {
	out := make([]openaiLogprob, len(in))
	for i, t := range in {
		x := tokenLogprob(t)
		out[i] = openaiLogprob{x.Token, x.Bytes, x.Logprob, []openaiTokenLogprob{}}
		for _, alt := range t.GetTop() {
			x := tokenLogprob(alt)
			out[i].TopLogprobs = append(out[i].TopLogprobs, openaiTokenLogprob{x.Token, x.Bytes, x.Logprob})
		}
	}
	return out
}

// openaiToolCall is a call in an answer.
func openaiToolCall(c *runnerpb.ToolCall, index int) openai.ToolCall {
	out := openai.ToolCall{ID: callID(c), Index: index, Type: "function"}
	out.Function.Name, out.Function.Arguments = c.GetName(), callArguments(c)
	return out
}

// callArguments returns the arguments of a call as the model wrote them.
func callArguments(c *runnerpb.ToolCall) string { return cmp.Or(c.GetArgumentsJson(), "{}") }

// callID returns the id of a call, a new one if the model gave it none.
func callID(c *runnerpb.ToolCall) string {
	return cmp.Or(c.GetId(), newCallID())
}

func finishReason(f *runnerpb.Finished, calls int) *string {
	reason := doneReason(f.GetReason())
	if calls > 0 && reason == "stop" {
		reason = "tool_calls"
	}
	return &reason
}

// collected is a whole answer.
type collected struct {
	content, thinking strings.Builder
	calls             []*runnerpb.ToolCall
	logprobs          []*runnerpb.TokenLogprob
	reasoning         uint32
	end               *runnerpb.Finished
}

// collect reads an answer to its end.
func (a *answer) collect() (*collected, error) {
	c := &collected{}
	var err error
	c.end, err = a.read(func(d *runnerpb.Delta) error {
		c.content.WriteString(d.GetContent())
		c.thinking.WriteString(d.GetThinking())
		c.calls = append(c.calls, d.GetToolCalls()...)
		c.logprobs = append(c.logprobs, d.GetLogprobs()...)
		c.reasoning += reasoningTokens(d)
		return nil
	})
	return c, err
}
