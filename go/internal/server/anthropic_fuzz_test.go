package server

import (
	"encoding/json"
	"testing"
)

// Whatever a client sends as messages is translated or refused, and a conversation that is accepted can be rendered: it
// says something, and each result of a tool has its call before it.
func FuzzAnthropicMessages(f *testing.F) {
	for _, body := range []string{
		`{"messages": [{"role": "user", "content": "hi"}]}`,
		`{"system": [{"type": "text", "text": "S"}], "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, ` + pixel + `]}]}`,
		`{"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"a": [1, {"b": null}]}}]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "is_error": true, "content": [{"type": "text", "text": "x"}]}]}]}`,
		`{"messages": [{"role": "assistant", "content": [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "web_search_tool_result", "tool_use_id": "s", "content": {"error_code": "e"}}]}]}`,
		`{"system": 5, "messages": [{"role": "", "content": {}}]}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var q anthropicRequest
		if json.Unmarshal(body, &q) != nil {
			return
		}
		msgs, err := anthropicMessages(&q)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a text")
			}
			return
		}
		calls := map[string]string{}
		for _, m := range msgs {
			for _, c := range m.ToolCalls {
				calls[c.ID] = c.Function.Name
			}
			if m.Role == "tool" && (m.ToolName == "" || calls[m.ToolCallID] != m.ToolName) {
				t.Errorf("a result without its call: %+v", m)
			}
		}
		if len(messagesFrom(msgs)) == 0 {
			t.Errorf("nothing to answer in %s", body)
		}
	})
}
