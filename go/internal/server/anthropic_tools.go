package server

import (
	"encoding/json"
	"slices"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// anthropicTools returns the tools of a request in the form that templates know.
func anthropicTools(tools []anthropicTool) ([]*runnerpb.Tool, error) {
	raw := make([]json.RawMessage, len(tools))
	for i, t := range tools {
		if err := checkAnthropicTool(i, t); err != nil {
			return nil, err
		}
		var err error
		if raw[i], err = t.function(); err != nil {
			return nil, errdefs.New(errdefs.ErrInvalid, "tools[%d].input_schema: %w", i, err)
		}
	}
	return toolsFrom(raw)
}

func checkAnthropicTool(i int, t anthropicTool) error {
	switch {
	case t.Type != "" && t.Type != "custom":
		return errdefs.New(errdefs.ErrUnsupported, "tools[%d]: %q is a tool of Anthropic's and not offered here; describe a tool of your own with name and input_schema, and run it in your program", i, t.Type)
	case t.Name == "":
		return errdefs.New(errdefs.ErrInvalid, "tools[%d]: name is missing", i)
	case len(t.InputSchema) > 0 && !isObject(t.InputSchema):
		return errdefs.New(errdefs.ErrInvalid, "tools[%d].input_schema must be a JSON Schema object", i)
	case len(t.AllowedCallers) > 0 && !slices.Contains(t.AllowedCallers, "direct"):
		return errdefs.New(errdefs.ErrUnsupported, "tools[%d].allowed_callers: only \"direct\" is supported, because no code is executed here", i)
	}
	return nil
}

// function returns the tool as a function definition; its schema stays as the client wrote it.
func (t anthropicTool) function() (json.RawMessage, error) {
	type function struct {
		Name        string          `json:"name"`
		Description string          `json:"description,omitempty"`
		Parameters  json.RawMessage `json:"parameters"`
	}
	if len(t.InputSchema) == 0 {
		t.InputSchema = json.RawMessage(`{"type":"object","properties":{}}`)
	}
	return json.Marshal(struct {
		Type     string   `json:"type"`
		Function function `json:"function"`
	}{"function", function{t.Name, t.Description, t.InputSchema}})
}

// anthropicChoice returns what the request demands of its tools, nil for nothing.
func anthropicChoice(q *anthropicRequest) (*runnerpb.ToolChoice, error) {
	c := q.ToolChoice
	if c == nil {
		return nil, nil
	}
	out := &runnerpb.ToolChoice{Single: c.DisableParallelToolUse}
	switch c.Type {
	case "auto":
	case "none":
		out.Mode = runnerpb.ToolChoice_MODE_NONE
	case "any":
		out.Mode = runnerpb.ToolChoice_MODE_REQUIRED
	case "tool":
		out.Mode, out.Name = runnerpb.ToolChoice_MODE_NAMED, c.Name
	default:
		return nil, errdefs.New(errdefs.ErrInvalid, "tool_choice.type %q is not one of auto, any, tool, none", c.Type)
	}
	if out.Mode == runnerpb.ToolChoice_MODE_REQUIRED && len(q.Tools) == 0 {
		return nil, errdefs.New(errdefs.ErrInvalid, "tool_choice asks for a tool, but there are no tools")
	}
	if out.Mode == runnerpb.ToolChoice_MODE_NAMED && !slices.ContainsFunc(q.Tools, func(t anthropicTool) bool { return t.Name == c.Name }) {
		return nil, errdefs.New(errdefs.ErrInvalid, "tool_choice.name: %q is not among the tools", c.Name)
	}
	return out, nil
}
