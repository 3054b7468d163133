package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/openai"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// completionRequest is the body of /v1/completions. As in Ollama the prompt is one turn of a chat, unless there is a
// suffix.
type completionRequest struct {
	openaiSampling
	Model         string                `json:"model"`
	Prompt        json.RawMessage       `json:"prompt"`
	Suffix        string                `json:"suffix"`
	MaxTokens     *int64                `json:"max_tokens"`
	N             *int                  `json:"n"`
	BestOf        *int                  `json:"best_of"`
	Echo          bool                  `json:"echo"`
	Logprobs      *int                  `json:"logprobs"`
	Stream        bool                  `json:"stream"`
	StreamOptions *openai.StreamOptions `json:"stream_options"`
}

type completion struct {
	ID                string             `json:"id"`
	Object            string             `json:"object"`
	Created           int64              `json:"created"`
	Model             string             `json:"model"`
	SystemFingerprint string             `json:"system_fingerprint"`
	Choices           []completionChoice `json:"choices"`
	Usage             *openaiUsage       `json:"usage,omitempty"`
}

type completionChoice struct {
	Text  string `json:"text"`
	Index int    `json:"index"`
	// Reasoning of a model that cannot be kept from it; this API has no field for it.
	Reasoning    string              `json:"reasoning,omitempty"`
	Logprobs     *completionLogprobs `json:"logprobs"`
	FinishReason *string             `json:"finish_reason"`
}

// completionLogprobs is the form of this older route: lists of equal length.
type completionLogprobs struct {
	Tokens        []string             `json:"tokens"`
	TokenLogprobs []float64            `json:"token_logprobs"`
	TopLogprobs   []map[string]float64 `json:"top_logprobs"`
	TextOffset    []int                `json:"text_offset"`
}

func (s *Server) handleCompletions(w http.ResponseWriter, r *http.Request) {
	var q completionRequest
	text, err := s.readCompletion(w, r, &q)
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	m, err := s.lookup(q.Model)
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	req, parser, err := s.completionRequest(&q, text, m)
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	a := &answer{parser: parser}
	done, err := s.begin(r.Context(), m, q.KeepAlive, req, a)
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	defer done()
	c := &completionWriter{chunk: completion{ID: newOpenAIID("cmpl-"), Object: "text_completion", Created: time.Now().Unix(), Model: q.Model, SystemFingerprint: openaiFingerprint}}
	if q.Stream {
		c.stream(s, w, r, &q, a)
		return
	}
	c.whole(s, w, r, a)
}

// readCompletion reads and checks what needs no model, and returns the prompt.
func (s *Server) readCompletion(w http.ResponseWriter, r *http.Request, q *completionRequest) (string, error) {
	if err := s.readOpenAI(w, r, q); err != nil {
		return "", err
	}
	if q.Model == "" {
		return "", &fieldError{"model", errModelRequired}
	}
	for _, f := range []struct {
		name  string
		value *int
	}{{"n", q.N}, {"best_of", q.BestOf}} {
		if f.value != nil && *f.value != 1 {
			return "", unsupportedValue(f.name, fmt.Sprintf(" of %d", *f.value), "one choice is made for each request; send more requests, they run side by side")
		}
	}
	if q.Echo {
		return "", unsupportedField("echo", "the answer holds only what was generated")
	}
	if q.Logprobs != nil && (*q.Logprobs < 0 || *q.Logprobs > 20) {
		return "", badField("logprobs", "must be between 0 and 20")
	}
	return completionPrompt(q.Prompt)
}

// completionPrompt reads a prompt: a string, or a list of one.
func completionPrompt(raw json.RawMessage) (string, error) {
	var one string
	var many []string
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return "", badField("prompt", "is missing")
	case json.Unmarshal(raw, &one) == nil:
	case json.Unmarshal(raw, &many) != nil || hasNull(raw):
		return "", unsupportedValue("prompt", " of token ids", "send text")
	case len(many) != 1:
		return "", unsupportedValue("prompt", fmt.Sprintf(" with %d texts", len(many)), "send a request for each, they run side by side")
	default:
		one = many[0]
	}
	if one == "" {
		return "", badField("prompt", "must not be empty")
	}
	return one, nil
}

// completionRequest translates the request, and returns the parser of its answer if it was rendered here.
func (s *Server) completionRequest(q *completionRequest, text string, m *store.Model) (*runnerpb.GenerateRequest, *prompt.Parser, error) {
	need := need{name: q.Model, verb: "generate"}
	if q.Suffix != "" {
		need.capabilities = append(need.capabilities, model.CapabilityInsert)
	}
	if err := need.check(m); err != nil {
		return nil, nil, err
	}
	options, err := q.nativeOptions("max_tokens", q.MaxTokens)
	if err != nil {
		return nil, nil, err
	}
	// The answer has no place for reasoning.
	think, err := resolveThink(m, q.Model, &thinkValue{})
	if err != nil {
		return nil, nil, err
	}
	b := builder{s: s, model: m, options: options, think: think, logprobs: q.Logprobs != nil}
	if q.Logprobs != nil {
		b.topLogprobs = *q.Logprobs
	}
	if err := b.begin(); err != nil {
		return nil, nil, err
	}
	if b.req.Options.LogitBias, err = q.logitBias(); err != nil {
		return nil, nil, err
	}
	if q.Suffix != "" {
		return b.infilled(m.Template, text, q.Suffix, nil)
	}
	return b.conversation(m.Prompt(), behindModel(m, []api.Message{{Role: "user", Content: text}}), nil)
}

// completionWriter writes an answer as text.
type completionWriter struct {
	chunk completion
	// offset is where the next token begins in the text, in characters.
	offset    int
	reasoning uint32
}

func (c *completionWriter) choice(content, thinking string, logprobs []*runnerpb.TokenLogprob, end *runnerpb.Finished) completionChoice {
	out := completionChoice{Text: content, Reasoning: thinking, Logprobs: c.logprobs(logprobs)}
	if end != nil {
		out.FinishReason = finishReason(end, 0)
	}
	return out
}

func (c *completionWriter) whole(s *Server, w http.ResponseWriter, r *http.Request, a *answer) {
	x, err := a.collect()
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	c.chunk.Choices = []completionChoice{c.choice(x.content.String(), x.thinking.String(), x.logprobs, x.end)}
	c.chunk.Usage = openaiUsageOf(x.end.GetUsage(), x.reasoning)
	writeJSON(w, http.StatusOK, &c.chunk)
}

func (c *completionWriter) stream(s *Server, w http.ResponseWriter, r *http.Request, q *completionRequest, a *answer) {
	out := newSSE(w)
	defer out.close()
	out.comment = a.progress
	out.keepAlive(s.params.PingInterval, nil)
	end, err := a.read(func(d *runnerpb.Delta) error {
		c.reasoning += reasoningTokens(d)
		if d.GetContent() == "" && d.GetThinking() == "" && len(d.GetLogprobs()) == 0 {
			return nil
		}
		c.chunk.Choices = []completionChoice{c.choice(d.GetContent(), d.GetThinking(), d.GetLogprobs(), nil)}
		return out.send("", &c.chunk)
	})
	if err == nil {
		err = c.finish(out, end, q.StreamOptions != nil && q.StreamOptions.IncludeUsage)
	}
	if err != nil {
		out.fail(s, r, err, func() { s.failOpenAI(w, r, err) }, func() (string, any) { return "", openaiError(err) })
	}
}

// finish writes the chunks that end an answer.
func (c *completionWriter) finish(out *sse, end *runnerpb.Finished, usage bool) error {
	c.chunk.Choices = []completionChoice{c.choice("", "", nil, end)}
	if err := out.add("", &c.chunk); err != nil {
		return err
	}
	if usage {
		c.chunk.Choices, c.chunk.Usage = []completionChoice{}, openaiUsageOf(end.GetUsage(), c.reasoning)
		if err := out.add("", &c.chunk); err != nil {
			return err
		}
	}
	out.addText("[DONE]")
	return out.flush()
}

func (c *completionWriter) logprobs(in []*runnerpb.TokenLogprob) *completionLogprobs {
	if len(in) == 0 {
		return nil
	}
	out := &completionLogprobs{}
	for _, t := range in {
		top := map[string]float64{}
		for _, alt := range t.GetTop() {
			top[alt.GetText()] = float64(alt.GetLogprob())
		}
		out.Tokens = append(out.Tokens, t.GetText())
		out.TokenLogprobs = append(out.TokenLogprobs, float64(t.GetLogprob()))
		out.TopLogprobs = append(out.TopLogprobs, top)
		out.TextOffset = append(out.TextOffset, c.offset)
		c.offset += utf8.RuneCountInString(t.GetText())
	}
	return out
}
