package server

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

func TestChatCompletion(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(fullAnswer()...)
	r := b.post("/v1/chat/completions", strings.TrimSuffix(openaiHi, "}")+`, "logprobs": true, "top_logprobs": 2}`)
	const want = `{"id":"chatcmpl-X","object":"chat.completion","created":1,"model":"m","system_fingerprint":"fp_ollmlx","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":"\u003cH\u003e","reasoning":"hm","reasoning_content":"hm","tool_calls":[` +
		`{"id":"call_X","index":0,"type":"function","function":{"name":"f","arguments":"{\"z\": \"1\", \"a\": 2}"}},` +
		`{"id":"own","index":1,"type":"function","function":{"name":"ns__g","arguments":"{}"}}]},` +
		`"logprobs":{"content":[{"token":"\u003c","bytes":[60],"logprob":-0.25,"top_logprobs":[{"token":"\u003c","bytes":[60],"logprob":-0.25},{"token":"é","bytes":[195,169],"logprob":-1}]},` +
		`{"token":"H\u003e","bytes":[72,62],"logprob":-0.5,"top_logprobs":[]}],"refusal":null},"finish_reason":"tool_calls"}],` +
		`"usage":{"prompt_tokens":7,"completion_tokens":6,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":3}}}`
	if got := steady(r.body); r.status != 200 || got != want {
		t.Errorf("got  %d %s\nwant %s", r.status, got, want)
	}
	if q := b.asked(); !q.Logprobs || q.TopLogprobs != 2 {
		t.Errorf("asked %v", q)
	}
	for _, tt := range []struct {
		events []*runnerpb.Event
		want   string
	}{
		{[]*runnerpb.Event{schedtest.Stop()}, `"message":{"role":"assistant","content":""},"finish_reason":"stop"`},
		{[]*runnerpb.Event{schedtest.Content("a"), schedtest.Finished(runnerpb.Finished_REASON_LENGTH, nil)}, `"message":{"role":"assistant","content":"a"},"finish_reason":"length"`},
		{[]*runnerpb.Event{schedtest.Content("a"), schedtest.Finished(runnerpb.Finished_REASON_STOP_SEQUENCE, nil)}, `"message":{"role":"assistant","content":"a"},"finish_reason":"stop"`},
		{[]*runnerpb.Event{schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{{Name: "f"}}}), schedtest.Stop()}, `"message":{"role":"assistant","content":null,"tool_calls":`},
	} {
		b.script(tt.events...)
		if r := b.post("/v1/chat/completions", openaiHi); !strings.Contains(r.body, tt.want) {
			t.Errorf("got %s\nwant %s", r.body, tt.want)
		}
	}
}

func TestChatCompletionStream(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	chunk := func(choice string) string {
		return `{"id":"chatcmpl-X","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"fp_ollmlx","choices":[` + choice + `]}`
	}
	full := []string{
		chunk(`{"index":0,"delta":{"role":"assistant","content":"","reasoning":"h","reasoning_content":"h"},"finish_reason":null}`),
		chunk(`{"index":0,"delta":{"reasoning":"m","reasoning_content":"m"},"finish_reason":null}`),
		chunk(`{"index":0,"delta":{"content":""},"logprobs":{"content":[{"token":"<","bytes":[60],"logprob":-0.25,"top_logprobs":[{"token":"<","bytes":[60],"logprob":-0.25},{"token":"é","bytes":[195,169],"logprob":-1}]}],"refusal":null},"finish_reason":null}`),
		chunk(`{"index":0,"delta":{"content":"<H>"},"logprobs":{"content":[{"token":"H>","bytes":[72,62],"logprob":-0.5,"top_logprobs":[]}],"refusal":null},"finish_reason":null}`),
		chunk(`{"index":0,"delta":{"tool_calls":[{"id":"call_X","index":0,"type":"function","function":{"name":"f","arguments":"{\"z\": \"1\", \"a\": 2}"}},{"id":"own","index":1,"type":"function","function":{"name":"ns__g","arguments":"{}"}}]},"finish_reason":null}`),
		chunk(`{"index":0,"delta":{},"finish_reason":"tool_calls"}`),
		strings.TrimSuffix(chunk(``), "}") + `,"usage":{"prompt_tokens":7,"completion_tokens":6,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":3}}}`,
		`[DONE]`,
	}
	b.script(fullAnswer()...)
	stream := strings.TrimSuffix(openaiHi, "}") + `, "stream": true`
	sameLines(t, sseOf(t, b.post("/v1/chat/completions", stream+`, "stream_options": {"include_usage": true}}`)), full)

	// Usage comes only when asked for; a delta with both kinds of text is two chunks; an answer without text has its role.
	b.script(schedtest.Delta(&runnerpb.Delta{Thinking: "t", Content: "c", Tokens: 2}), schedtest.Finished(runnerpb.Finished_REASON_LENGTH, nil))
	sameLines(t, sseOf(t, b.post("/v1/chat/completions", stream+`, "stream_options": {"include_usage": false}}`)), []string{
		chunk(`{"index":0,"delta":{"role":"assistant","content":"","reasoning":"t","reasoning_content":"t"},"finish_reason":null}`),
		chunk(`{"index":0,"delta":{"content":"c"},"finish_reason":null}`),
		chunk(`{"index":0,"delta":{},"finish_reason":"length"}`),
		`[DONE]`,
	})
	b.script(schedtest.Stop())
	sameLines(t, sseOf(t, b.post("/v1/chat/completions", stream+`}`)), []string{
		chunk(`{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}`),
		chunk(`{"index":0,"delta":{},"finish_reason":"stop"}`),
		`[DONE]`,
	})
}

// asksWith is what a runner is asked by default, with other options and further fields of the request.
func asksWith(t testing.TB, options, fields string) string {
	t.Helper()
	o := map[string]any{"num_keep": 4, "temperature": 1, "top_k": 40, "top_p": 1, "min_p": 0, "typical_p": 1, "repeat_last_n": 64,
		"repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
	if err := json.Unmarshal([]byte("{"+options+"}"), &o); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return `{"options": ` + string(text) + `, "truncate": true, "shift": true, ` + fields + `}`
}

func TestChatCompletionTranslation(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"parameters": map[string]any{"temperature": 0.1, "top_k": 7, "stop": []string{"A"}}})
	b.create("talker", map[string]any{"system": "Be kind.", "messages": []api.Message{{Role: "user", Content: "q"}, {Role: "assistant", Content: "a"}}})
	const (
		user = `{"role": "user", "content": "hi"}`
		// What the model brings itself.
		own    = `"top_k": 7, "stop": ["A"]`
		thinks = `"think": {"enabled": true}`
		chat   = `"chat": {"messages": [` + user + `], ` + thinks + `}`
		tool   = `{\"type\":\"function\",\"function\":{\"parameters\":{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"z\":{\"type\":\"string\"},\"a\":{\"type\":\"integer\"}}},\"name\":\"f\"}}`
	)
	withTool := func(choice string) string {
		return `"chat": {"messages": [` + user + `], ` + thinks + `, "tools": [{"json": "` + tool + `"}]` + choice + `}`
	}
	for _, tt := range []struct{ name, fields, options, want string }{
		{"defaults of OpenAI over those of the model", ``, own, chat},
		{"sampling", `"temperature": 0, "top_p": 0.5, "seed": 0, "frequency_penalty": -2, "presence_penalty": 2, "max_tokens": 5, "stop": "x"`,
			`"top_k": 7, "temperature": 0, "top_p": 0.5, "seed": "0", "frequency_penalty": -2, "presence_penalty": 2, "num_predict": 5, "stop": ["x"]`, chat},
		{"newer bound wins", `"max_tokens": 5, "max_completion_tokens": 6, "stop": ["x", "", "y"], "seed": -1`,
			`"top_k": 7, "num_predict": 6, "stop": ["x", "y"]`, chat},
		{"no bound", `"max_tokens": -1, "stop": null`, own, chat},
		{"bias", `"logit_bias": {"3": -100, "4": 1.5}`, own + `, "logit_bias": {"3": -100, "4": 1.5}`, chat},
		{"not of OpenAI", `"top_k": 9, "min_p": 0.5, "options": {"num_ctx": 64, "repeat_penalty": 1.5, "temperature": 0.3}, "keep_alive": "1h"`,
			`"top_k": 9, "stop": ["A"], "min_p": 0.5, "repeat_penalty": 1.5, "temperature": 0.3`, chat + `, "num_ctx": 64`},
		{"without effect", `"user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "verbosity": "low", "prediction": {"type": "content"}, "unknown": [1]`,
			own, chat},
		{"text", `"response_format": {"type": "text"}`, own, chat},
		{"json", `"response_format": {"type": "json_object"}`, own, chat + `, "constraint": {"json_object": true}`},
		{"schema", `"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "object", "b": 1, "a": 2}}}`,
			own, chat + `, "constraint": {"json_schema": "{\"type\": \"object\", \"b\": 1, \"a\": 2}"}`},
		{"no thinking", `"reasoning_effort": "none"`, own, `"chat": {"messages": [` + user + `], "think": {}}`},
		{"effort", `"reasoning_effort": "minimal"`, own, `"chat": {"messages": [` + user + `], "think": {"enabled": true, "level": "low"}}`},
		{"effort of the other form", `"reasoning": {"effort": "ultra"}, "reasoning_effort": "low"`,
			own, `"chat": {"messages": [` + user + `], "think": {"enabled": true, "level": "max"}}`},
		{"tools", `"tools": [` + oneTool + `], "tool_choice": "auto", "parallel_tool_calls": true`, own, withTool(``)},
		{"no tool", `"tools": [` + oneTool + `], "tool_choice": "none"`, own, withTool(`, "tool_choice": {"mode": "MODE_NONE"}`)},
		{"any tool", `"tools": [` + oneTool + `], "tool_choice": "required"`, own, withTool(`, "tool_choice": {"mode": "MODE_REQUIRED"}`)},
		{"one tool, whatever the format", `"tools": [` + oneTool + `], "tool_choice": {"type": "function", "function": {"name": "f"}}, "response_format": {"type": "json_object"}`,
			own, withTool(`, "tool_choice": {"mode": "MODE_NAMED", "name": "f"}`)},
		{"one call", `"tools": [` + oneTool + `], "parallel_tool_calls": false`, own, withTool(`, "tool_choice": {"single": true}`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fields := tt.fields
			if fields != "" {
				fields = ", " + fields
			}
			if r := b.post("/v1/chat/completions", `{"model": "M", "messages": [`+user+`]`+fields+`}`); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			q := b.asked()
			if q.TraceId == "" {
				t.Error("no trace id")
			}
			q.TraceId = ""
			if got, want := canonical(t, q), canonicalText(t, asksWith(t, tt.options, tt.want)); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// Only one of several calls reaches a client that wants one.
func TestChatCompletionSingleCall(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(fullAnswer()...)
	r := b.post("/v1/chat/completions", strings.TrimSuffix(openaiHi, "}")+`, "parallel_tool_calls": false, "tools": [`+oneTool+`]}`)
	if !strings.Contains(r.body, `"name":"f"`) || strings.Contains(r.body, "ns__g") {
		t.Errorf("got %s", r.body)
	}
}

func TestChatCompletionMessages(t *testing.T) {
	b := newBed(t)
	files := visionModel()
	b.createFrom("m", files, nil)
	b.createFrom("talker", files, map[string]any{"system": "Be kind.", "messages": []api.Message{{Role: "user", Content: "q"}, {Role: "assistant", Content: "a"}}})
	for _, tt := range []struct{ name, model, messages, want string }{
		{"behind the model's own", "talker", `{"role": "user", "content": "hi"}`,
			`{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "hi"}`},
		{"developer", "talker", `{"role": "developer", "content": "S"}, {"role": "user", "content": "hi", "name": "Eve"}`,
			`{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "system", "content": "S"}, {"role": "user", "content": "hi"}`},
		{"parts", "m", `{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}, {"type": "text", "text": "b"}, {"type": "image_url", "image_url": "data:;base64,iVBORw0KGgo="}]}`,
			`{"role": "user", "content": "a\nb", "images": [{"data": "iVBORw0KGgo="}, {"data": "iVBORw0KGgo="}]}`},
		{"tools", "m", `{"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "reasoning_content": "t", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}}, {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}}]}, {"role": "tool", "tool_call_id": "c2", "content": "42"}, {"role": "tool", "tool_call_id": "c1", "name": "own", "content": [{"type": "text", "text": "43"}]}`,
			`{"role": "user", "content": "hi"}, {"role": "assistant", "thinking": "t", "tool_calls": [{"id": "c1", "name": "f", "arguments_json": "{\"z\":1,\"a\":2}"}, {"id": "c2", "name": "g", "arguments_json": "{}", "index": 1}]}, {"role": "tool", "tool_name": "g", "tool_call_id": "c2", "content": "42"}, {"role": "tool", "tool_name": "own", "tool_call_id": "c1", "content": "43"}`},
		{"earlier answers", "m", `{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning": "r"}, {"role": "USER", "content": ""}`,
			`{"role": "assistant", "content": "no", "thinking": "r"}, {"role": "user"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := b.post("/v1/chat/completions", `{"model": "`+tt.model+`", "messages": [`+tt.messages+`]}`); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			got := canonical(t, &runnerpb.GenerateRequest{Input: &runnerpb.GenerateRequest_Chat{Chat: &runnerpb.Chat{Messages: b.asked().GetChat().GetMessages()}}})
			if want := canonicalText(t, `{"chat": {"messages": [`+tt.want+`]}}`); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
	b.post("/v1/chat/completions", `{"model": "m", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure,"}]}`)
	if !b.asked().GetChat().GetContinueFinalMessage() {
		t.Error("the beginning of an answer is not continued")
	}
}
