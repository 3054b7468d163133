package server

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/openai"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// responsesItem is an item of the input, of any of the types that are understood.
type responsesItem struct {
	Type string `json:"type"`
	// Of a message.
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
	// Of a function call and its output.
	CallID    string          `json:"call_id"`
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Arguments string          `json:"arguments"`
	Output    json.RawMessage `json:"output"`
	// Of reasoning. What is called encrypted is the plain text, since nothing is kept from the client here.
	EncryptedContent string             `json:"encrypted_content"`
	Summary          []responsesSummary `json:"summary"`
}

type responsesSummary struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// messages returns the conversation in the native form.
func (q *responsesRequest) messages() ([]api.Message, error) {
	h := &responsesHistory{}
	if q.Instructions != nil && *q.Instructions != "" {
		h.add(api.Message{Role: "system", Content: *q.Instructions})
	}
	instructions := len(h.msgs)
	var text string
	var items []json.RawMessage
	switch {
	case json.Unmarshal(q.Input, &text) == nil && text != "":
		h.add(api.Message{Role: "user", Content: text})
	case json.Unmarshal(q.Input, &items) == nil:
		for i, raw := range items {
			if err := h.read(fmt.Sprintf("input[%d]", i), raw); err != nil {
				return nil, err
			}
		}
	case len(q.Input) > 0 && q.Input[0] != '"':
		return nil, badField("input", "must be a string or a list of items")
	}
	h.flush()
	if len(h.msgs) == instructions {
		return nil, &fieldError{"input", errdefs.New(errdefs.ErrInvalid, "input is required")}
	}
	nameTools(h.msgs)
	return h.msgs, nil
}

// responsesHistory joins items to messages: reasoning and calls, which are items of their own, belong to the
// assistant's message that they stand beside.
type responsesHistory struct {
	msgs []api.Message
	// thinking waits for the message that it led to.
	thinking string
}

func (h *responsesHistory) read(at string, raw json.RawMessage) error {
	var item responsesItem
	if err := json.Unmarshal(raw, &item); err != nil {
		return badField(at, "is not an input item: %w", err)
	}
	switch item.Type {
	case "message", "":
		return h.message(at, &item)
	case "function_call":
		return h.call(at, &item)
	case "function_call_output":
		return h.output(at, &item)
	case "reasoning":
		return h.reasoning(at, &item)
	case "item_reference":
		return unsupportedValue(at, " of type \"item_reference\"", "items are not stored here; send the item itself")
	}
	return unsupportedValue(at, fmt.Sprintf(" of type %q", item.Type), "an item can be a message, a function_call, a function_call_output or reasoning")
}

func (h *responsesHistory) message(at string, item *responsesItem) error {
	m := api.Message{Role: openaiRole(item.Role)}
	if m.Role == "" {
		return badField(at+".role", "is missing")
	}
	if !present(item.Content) && string(item.Content) != `""` {
		return badField(at+".content", "is missing")
	}
	var err error
	if m.Content, m.Images, err = openaiContent(at+".content", item.Content); err != nil {
		return err
	}
	h.add(m)
	return nil
}

func (h *responsesHistory) call(at string, item *responsesItem) error {
	c := openai.ToolCall{ID: item.CallID}
	c.Function.Name = responsesFunctionName{item.Namespace, item.Name}.flat()
	c.Function.Arguments = item.Arguments
	call, err := openaiCall(at, c)
	if err != nil {
		return err
	}
	if last := len(h.msgs) - 1; h.thinking == "" && last >= 0 && h.msgs[last].Role == "assistant" {
		h.msgs[last].ToolCalls = append(h.msgs[last].ToolCalls, call)
		return nil
	}
	h.add(api.Message{Role: "assistant", ToolCalls: []api.ToolCall{call}})
	return nil
}

func (h *responsesHistory) output(at string, item *responsesItem) error {
	if len(item.Output) == 0 || string(item.Output) == "null" {
		return badField(at+".output", "is missing")
	}
	m := api.Message{Role: "tool", ToolCallID: item.CallID}
	var err error
	if m.Content, m.Images, err = openaiContent(at+".output", item.Output); err != nil {
		return err
	}
	h.add(m)
	return nil
}

func (h *responsesHistory) reasoning(at string, item *responsesItem) error {
	text := item.EncryptedContent
	if text == "" && present(item.Content) {
		var parts []responsesSummary
		if err := json.Unmarshal(item.Content, &parts); err != nil {
			return badField(at+".content", "must be a list of parts: %w", err)
		}
		text = joinSummaries(parts)
	}
	if text == "" {
		text = joinSummaries(item.Summary)
	}
	h.flush()
	h.thinking = text
	return nil
}

func joinSummaries(parts []responsesSummary) string {
	var texts []string
	for _, p := range parts {
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "\n")
}

// add appends a message. System messages at the beginning become one, since many templates allow one only and there.
func (h *responsesHistory) add(m api.Message) {
	if m.Role == "assistant" {
		m.Thinking, h.thinking = h.thinking, ""
	}
	h.flush()
	if len(h.msgs) == 1 && h.msgs[0].Role == "system" && m.Role == "system" {
		h.msgs[0].Content += "\n\n" + m.Content
		return
	}
	h.msgs = append(h.msgs, m)
}

// flush lets thinking that led to nothing stand alone.
func (h *responsesHistory) flush() {
	if h.thinking != "" {
		h.msgs = append(h.msgs, api.Message{Role: "assistant", Thinking: h.thinking})
		h.thinking = ""
	}
}
