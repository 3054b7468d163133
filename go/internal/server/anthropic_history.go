package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// This file turns the messages of Anthropic's dialect, lists of typed blocks, into those that a template knows.

// anthropicRoles says in whose messages a block may stand. Blocks of other types are refused.
var anthropicRoles = map[string][]string{
	"text":                   {"user", "assistant", "system"},
	"image":                  {"user"},
	"tool_result":            {"user"},
	"thinking":               {"assistant"},
	"redacted_thinking":      {"assistant"},
	"tool_use":               {"assistant"},
	"server_tool_use":        {"assistant"},
	"web_search_tool_result": {"assistant"},
}

// anthropicHistory collects the messages of a request.
type anthropicHistory struct {
	messages []api.Message
	// tools has the name of the tool of each call so far, by the call's id.
	tools map[string]string
}

// anthropicMessages returns the conversation of a request, its system prompt first.
func anthropicMessages(q *anthropicRequest) ([]api.Message, error) {
	h := anthropicHistory{tools: map[string]string{}}
	if err := h.add("system", "system", q.System); err != nil {
		return nil, err
	}
	said := len(h.messages)
	for i, m := range q.Messages {
		at := fmt.Sprintf("messages[%d]", i)
		role := strings.ToLower(m.Role)
		if !slices.Contains([]string{"user", "assistant", "system"}, role) {
			return nil, errdefs.New(errdefs.ErrInvalid, "%s.role: %q is not a role; use \"user\" or \"assistant\"", at, m.Role)
		}
		if err := h.add(at+".content", role, m.Content); err != nil {
			return nil, err
		}
	}
	if len(h.messages) == said {
		return nil, errdefs.New(errdefs.ErrInvalid, "messages: all of them are empty; say something")
	}
	return h.messages, nil
}

// add adds a message with the content at a place of the request.
func (h *anthropicHistory) add(at, role string, content json.RawMessage) error {
	blocks, err := anthropicBlocks(at, content)
	if err != nil {
		return err
	}
	msg := api.Message{Role: role}
	for i := range blocks {
		b, at := &blocks[i], fmt.Sprintf("%s[%d]", at, i)
		if err := checkAnthropicBlock(at, role, b); err != nil {
			return err
		}
		if !strings.HasSuffix(b.Type, "tool_result") {
			if err := h.extend(&msg, at, b); err != nil {
				return err
			}
			continue
		}
		// A result is a message of its own, at its place among the others.
		result, err := h.result(at, b)
		if err != nil {
			return err
		}
		h.join(msg)
		h.messages = append(h.messages, result)
		msg = api.Message{Role: role}
	}
	h.join(msg)
	return nil
}

// anthropicBlocks returns the blocks of a content; a text is one block.
func anthropicBlocks(at string, content json.RawMessage) ([]anthropicBlock, error) {
	content = bytes.TrimSpace(content)
	if len(content) == 0 || string(content) == "null" {
		return nil, nil
	}
	switch content[0] {
	case '"':
		var text string
		err := json.Unmarshal(content, &text)
		return []anthropicBlock{{Type: "text", Text: text}}, err
	case '[':
		var list []json.RawMessage
		if err := json.Unmarshal(content, &list); err != nil {
			return nil, err
		}
		blocks := make([]anthropicBlock, len(list))
		for i := range list {
			if err := json.Unmarshal(list[i], &blocks[i]); err != nil {
				return nil, misfit(fmt.Sprintf("%s[%d]", at, i), err)
			}
		}
		return blocks, nil
	}
	return nil, errdefs.New(errdefs.ErrInvalid, "%s must be a string or a list of blocks", at)
}

func checkAnthropicBlock(at, role string, b *anthropicBlock) error {
	roles, ok := anthropicRoles[b.Type]
	switch {
	case b.Type == "":
		return errdefs.New(errdefs.ErrInvalid, "%s: the block has no type", at)
	case !ok:
		return errdefs.New(errdefs.ErrUnsupported, "%s: blocks of type %q are not supported", at, b.Type)
	case !slices.Contains(roles, role):
		return errdefs.New(errdefs.ErrInvalid, "%s: a block of type %q cannot be in a message of role %q", at, b.Type, role)
	}
	return nil
}

// join adds a message, unless it is empty. Turns of one role that follow each other are one turn, as Anthropic has it:
// there are templates that refuse anything else.
func (h *anthropicHistory) join(m api.Message) {
	if m.Content == "" && m.Thinking == "" && len(m.Images) == 0 && len(m.ToolCalls) == 0 {
		return
	}
	if n := len(h.messages); n > 0 && h.messages[n-1].Role == m.Role {
		last := &h.messages[n-1]
		last.Content = joinParagraphs(last.Content, m.Content)
		last.Thinking = joinParagraphs(last.Thinking, m.Thinking)
		last.Images = append(last.Images, m.Images...)
		last.ToolCalls = append(last.ToolCalls, m.ToolCalls...)
		return
	}
	h.messages = append(h.messages, m)
}

func joinParagraphs(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "\n\n" + b
}

// extend adds a block to a message.
func (h *anthropicHistory) extend(m *api.Message, at string, b *anthropicBlock) error {
	switch b.Type {
	case "text":
		// Blocks of text go on where the one before ends: clients cut a text where a cached prefix is to end.
		m.Content += b.Text
	case "thinking":
		m.Thinking = joinParagraphs(m.Thinking, b.Thinking)
	case "image":
		data, err := anthropicImage(at, b.Source)
		if err != nil {
			return err
		}
		m.Images = append(m.Images, data)
	case "tool_use", "server_tool_use":
		call, err := anthropicCall(at, b)
		if err != nil {
			return err
		}
		call.Function.Index = len(m.ToolCalls)
		h.tools[b.ID] = b.Name
		m.ToolCalls = append(m.ToolCalls, call)
	}
	// Redacted thinking is encrypted by another server and says nothing to anyone else.
	return nil
}

func anthropicImage(at string, src *anthropicSource) (api.ImageData, error) {
	switch {
	case src == nil:
		return nil, errdefs.New(errdefs.ErrInvalid, "%s: the image has no source", at)
	case src.Type != "base64":
		return nil, errdefs.New(errdefs.ErrUnsupported, "%s.source: type %q is not supported; send the image itself, as \"base64\"", at, src.Type)
	case !slices.Contains(imageTypes, src.MediaType):
		return nil, errdefs.New(errdefs.ErrUnsupported, "%s.source: media_type %q is not supported; use one of %s", at, src.MediaType, strings.Join(imageTypes, ", "))
	}
	data, err := base64.StdEncoding.DecodeString(src.Data)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "%s.source: invalid base64 image data: %w", at, err)
	}
	return data, nil
}

func anthropicCall(at string, b *anthropicBlock) (api.ToolCall, error) {
	call := api.ToolCall{ID: b.ID}
	call.Function.Name = b.Name
	switch {
	case b.ID == "":
		return call, errdefs.New(errdefs.ErrInvalid, "%s: the %s block has no id", at, b.Type)
	case b.Name == "":
		return call, errdefs.New(errdefs.ErrInvalid, "%s: the %s block has no name", at, b.Type)
	case len(b.Input) == 0:
		b.Input = json.RawMessage("{}")
	case b.Input[0] != '{':
		return call, errdefs.New(errdefs.ErrInvalid, "%s.input must be an object", at)
	}
	if err := json.Unmarshal(b.Input, &call.Function.Arguments); err != nil {
		return call, misfit(at+".input", err)
	}
	return call, nil
}

// result returns the message that a result of a call is.
func (h *anthropicHistory) result(at string, b *anthropicBlock) (api.Message, error) {
	name, ok := h.tools[b.ToolUseID]
	if !ok {
		return api.Message{}, errdefs.New(errdefs.ErrInvalid, "%s.tool_use_id: no block before this one has the id %q", at, b.ToolUseID)
	}
	m := api.Message{Role: "tool", ToolCallID: b.ToolUseID, ToolName: name}
	if b.Type == "web_search_tool_result" {
		var err error
		m.Content, err = anthropicSearchResult(at, b.Content)
		return m, err
	}
	parts, err := anthropicBlocks(at+".content", b.Content)
	if err != nil {
		return m, err
	}
	for i := range parts {
		at := fmt.Sprintf("%s.content[%d]", at, i)
		if t := parts[i].Type; t != "text" && t != "image" {
			return m, errdefs.New(errdefs.ErrUnsupported, "%s: blocks of type %q are not supported in the result of a tool", at, t)
		}
		if err := h.extend(&m, at, &parts[i]); err != nil {
			return m, err
		}
	}
	if b.IsError {
		// Templates have no other place for it.
		m.Content = "Error: " + m.Content
	}
	return m, nil
}

// anthropicSearchResult is the text of what Anthropic's web search found in an earlier turn: each title with its
// address. The pages themselves are encrypted.
func anthropicSearchResult(at string, content json.RawMessage) (string, error) {
	type item struct {
		Title     string `json:"title"`
		URL       string `json:"url"`
		ErrorCode string `json:"error_code"`
	}
	var found []item
	if len(content) == 0 {
		return "", nil
	}
	if isObject(content) {
		var failed item
		if err := json.Unmarshal(content, &failed); err != nil {
			return "", misfit(at+".content", err)
		}
		return "Error: " + failed.ErrorCode, nil
	}
	if err := json.Unmarshal(content, &found); err != nil {
		return "", misfit(at+".content", err)
	}
	var b strings.Builder
	for _, x := range found {
		fmt.Fprintf(&b, "- %s: %s\n", x.Title, x.URL)
	}
	return b.String(), nil
}
