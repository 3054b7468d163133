package server

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
)

// visionModel is the test model with eyes.
func visionModel() map[string][]byte {
	files := mlxmodeltest.Model()
	files["config.json"] = bytes.Replace(files["config.json"], []byte(`"hidden_size"`), []byte(`"vision_config": {"depth": 1}, "hidden_size"`), 1)
	files["model.safetensors"] = mlxmodeltest.Safetensors(map[string]mlxmodeltest.Tensor{
		"model.embed_tokens.weight": mlxmodeltest.Of("BF16", 100, 64),
		"visual.patch.weight":       mlxmodeltest.Of("BF16", 64),
	})
	files["preprocessor_config.json"] = []byte(`{}`)
	return files
}

const (
	weather    = `{"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}}`
	weatherOut = `{"json": "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"d\",\"parameters\":{\"type\":\"object\",\"properties\":{\"z\":{\"type\":\"string\"},\"a\":{\"type\":\"integer\"}}}}}"}`
	// pixel is a base64 image block; its content is not looked at here.
	pixel = `{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}`
)

// What reaches the runner as its input.
func TestMessagesInput(t *testing.T) {
	b := newBed(t)
	b.createFrom("m", visionModel(), nil)
	b.createFrom("own", visionModel(), map[string]any{"system": "Be kind.", "messages": []api.Message{{Role: "user", Content: "q"}, {Role: "assistant", Content: "a"}}})
	const off = `"think": {}`
	for _, tt := range []struct{ name, fields, want string }{
		{"text", `"messages": [{"role": "user", "content": "hi"}]`,
			`{"messages": [{"role": "user", "content": "hi"}], ` + off + `}`},
		{"system and blocks go on where the one before ended", `"system": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "B"}], "messages": [{"role": "USER", "content": [{"type": "text", "text": "hi "}, {"type": "text", "text": "you"}]}]`,
			`{"messages": [{"role": "system", "content": "AB"}, {"role": "user", "content": "hi you"}], ` + off + `}`},
		{"system as a string", `"system": "S", "messages": [{"role": "user", "content": "hi"}]`,
			`{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}], ` + off + `}`},
		{"system among the messages", `"system": "S", "messages": [{"role": "system", "content": "T"}, {"role": "user", "content": "hi"}, {"role": "system", "content": "U"}]`,
			`{"messages": [{"role": "system", "content": "S\n\nT"}, {"role": "user", "content": "hi"}, {"role": "system", "content": "U"}], ` + off + `}`},
		{"the model's own come first", `"model": "own", "messages": [{"role": "user", "content": "hi"}]`,
			`{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "hi"}], ` + off + `}`},
		{"turns of one role are one, empty ones none", `"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": ""}, {"role": "user", "content": [` + pixel + `]}]`,
			`{"messages": [{"role": "user", "content": "a\n\nb", "images": [{"data": "iVBORw0KGgo="}]}], ` + off + `}`},
		{"beginning of the answer", `"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure,"}]`,
			`{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure,"}], "continue_final_message": true, ` + off + `}`},
		{"calls, results and thinking of earlier turns", `"messages": [{"role": "user", "content": "hi"},
			{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "let me see"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"z": "1", "a": 2}}, {"type": "tool_use", "id": "t2", "name": "g"}]},
			{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "42"}, {"type": "tool_result", "tool_use_id": "t2", "is_error": true, "content": [{"type": "text", "text": "no "}, {"type": "text", "text": "such file"}, ` + pixel + `]}, {"type": "text", "text": "go on"}]}]`,
			`{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "thinking": "hm", "content": "let me see", "tool_calls": [{"id": "t1", "name": "f", "arguments_json": "{\"z\":\"1\",\"a\":2}"}, {"id": "t2", "name": "g", "arguments_json": "{}", "index": 1}]},
			{"role": "tool", "content": "42", "tool_call_id": "t1", "tool_name": "f"}, {"role": "tool", "content": "Error: no such file", "tool_call_id": "t2", "tool_name": "g", "images": [{"data": "iVBORw0KGgo="}]}, {"role": "user", "content": "go on"}], ` + off + `}`},
		{"a result without content", `"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1"}]}]`,
			`{"messages": [{"role": "assistant", "tool_calls": [{"id": "t1", "name": "f", "arguments_json": "{}"}]}, {"role": "tool", "tool_call_id": "t1", "tool_name": "f"}], ` + off + `}`},
		{"a web search of an earlier turn", `"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}}, {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"type": "web_search_result", "title": "T", "url": "https://u", "encrypted_content": "x"}]}, {"type": "text", "text": "found"}]}, {"role": "user", "content": "more"}]`,
			`{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [{"id": "s1", "name": "web_search", "arguments_json": "{\"query\":\"q\"}"}]}, {"role": "tool", "content": "- T: https://u\n", "tool_call_id": "s1", "tool_name": "web_search"}, {"role": "assistant", "content": "found"}, {"role": "user", "content": "more"}], ` + off + `}`},
		{"a web search that failed", `"messages": [{"role": "assistant", "content": [{"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}, {"type": "web_search_tool_result", "tool_use_id": "s1", "content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}}]}, {"role": "user", "content": "hi"}]`,
			`{"messages": [{"role": "assistant", "tool_calls": [{"id": "s1", "name": "web_search", "arguments_json": "{}"}]}, {"role": "tool", "content": "Error: max_uses_exceeded", "tool_call_id": "s1", "tool_name": "web_search"}, {"role": "user", "content": "hi"}], ` + off + `}`},

		{"tools", `"messages": [{"role": "user", "content": "hi"}], "tools": [` + weather + `, {"type": "custom", "name": "g"}]`,
			`{"messages": [{"role": "user", "content": "hi"}], "tools": [` + weatherOut + `, {"json": "{\"type\":\"function\",\"function\":{\"name\":\"g\",\"parameters\":{\"type\":\"object\",\"properties\":{}}}}"}], ` + off + `}`},
		{"a schema beyond what templates know", `"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "f", "input_schema": {"type": ["object", "null"], "properties": {"x": true}}}]`,
			`{"messages": [{"role": "user", "content": "hi"}], "tools": [{"json": "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":[\"object\",\"null\"],\"properties\":{\"x\":true}}}}"}], ` + off + `}`},
		{"choice auto", `"messages": [{"role": "user", "content": "hi"}], "tools": [` + weather + `], "tool_choice": {"type": "auto", "disable_parallel_tool_use": true}`,
			`{"messages": [{"role": "user", "content": "hi"}], "tools": [` + weatherOut + `], "tool_choice": {"single": true}, ` + off + `}`},
		{"choice any", `"messages": [{"role": "user", "content": "hi"}], "tools": [` + weather + `], "tool_choice": {"type": "any"}`,
			`{"messages": [{"role": "user", "content": "hi"}], "tools": [` + weatherOut + `], "tool_choice": {"mode": "MODE_REQUIRED"}, ` + off + `}`},
		{"choice tool", `"messages": [{"role": "user", "content": "hi"}], "tools": [` + weather + `], "tool_choice": {"type": "tool", "name": "f"}`,
			`{"messages": [{"role": "user", "content": "hi"}], "tools": [` + weatherOut + `], "tool_choice": {"mode": "MODE_NAMED", "name": "f"}, ` + off + `}`},
		{"choice none", `"messages": [{"role": "user", "content": "hi"}], "tools": [` + weather + `], "tool_choice": {"type": "none"}`,
			`{"messages": [{"role": "user", "content": "hi"}], "tools": [` + weatherOut + `], "tool_choice": {"mode": "MODE_NONE"}, ` + off + `}`},

		{"thinking enabled", `"messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "enabled", "budget_tokens": 1024}`,
			`{"messages": [{"role": "user", "content": "hi"}], "think": {"enabled": true}}`},
		{"thinking adaptive with effort", `"messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}`,
			`{"messages": [{"role": "user", "content": "hi"}], "think": {"enabled": true, "level": "max"}}`},
		{"effort alone", `"messages": [{"role": "user", "content": "hi"}], "output_config": {"effort": "xhigh"}`,
			`{"messages": [{"role": "user", "content": "hi"}], "think": {"enabled": true, "level": "high"}}`},
		{"thinking disabled whatever the effort", `"messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "disabled"}, "output_config": {"effort": "high"}`,
			`{"messages": [{"role": "user", "content": "hi"}], ` + off + `}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := b.post("/v1/messages", withDefaults(t, tt.fields))
			if r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			got := canonical(t, &runnerpb.GenerateRequest{Input: b.asked().GetInput()})
			if want := canonicalText(t, `{"chat": `+tt.want+`}`); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// withDefaults completes fields of a request with the model and max_tokens, unless they are there.
func withDefaults(t *testing.T, fields string) string {
	t.Helper()
	body := map[string]json.RawMessage{"model": json.RawMessage(`"m"`), "max_tokens": json.RawMessage("64")}
	if err := json.Unmarshal([]byte("{"+fields+"}"), &body); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// What reaches the runner beside its input.
func TestMessagesOptions(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"parameters": map[string]any{"stop": []string{"<end>"}, "top_k": 7, "temperature": 0.5, "num_predict": 3}})
	const user = `"messages": [{"role": "user", "content": "hi"}]`
	for _, tt := range []struct {
		name, fields string
		check        func(q *runnerpb.GenerateRequest) bool
	}{
		{"defaults are the model's", user, func(q *runnerpb.GenerateRequest) bool {
			o := q.GetOptions()
			return o.GetNumPredict() == 64 && o.GetTopK() == 7 && o.GetTemperature() == 0.5 && strings.Join(o.GetStop(), "|") == "<end>" && q.GetConstraint() == nil && q.GetTruncate() && q.GetShift()
		}},
		{"sampling", user + `, "temperature": 0, "top_p": 0.25, "top_k": 3, "max_tokens": 5000000000`, func(q *runnerpb.GenerateRequest) bool {
			o := q.GetOptions()
			return o.GetNumPredict() == 1<<31-1 && o.GetTopK() == 3 && o.GetTemperature() == 0 && o.GetTopP() == 0.25
		}},
		{"stop sequences go beside the model's", user + `, "stop_sequences": ["a", "\n"]`, func(q *runnerpb.GenerateRequest) bool {
			return strings.Join(q.GetOptions().GetStop(), "|") == "<end>|a|\n"
		}},
		{"schema", user + `, "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}`, func(q *runnerpb.GenerateRequest) bool {
			return q.GetConstraint().GetJsonSchema() == `{"type":"object"}`
		}},
		{"what has no meaning here", user + `, "metadata": {"user_id": "u"}, "service_tier": "auto", "inference_geo": "eu", "speed": "fast", "diagnostics": {}, "fallbacks": "default",
			"cache_control": {"type": "ephemeral"}, "container": null, "mcp_servers": [], "compaction": null, "tools": [{"name": "f", "cache_control": {"type": "ephemeral"}, "defer_loading": true,
			"eager_input_streaming": true, "input_examples": [{}], "allowed_callers": ["direct"]}]`, func(q *runnerpb.GenerateRequest) bool {
			return canonical(t, &runnerpb.GenerateRequest{Input: q.GetInput()}) == canonicalText(t, `{"chat": {"messages": [{"role": "user", "content": "hi"}], "think": {},
				"tools": [{"json": "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{}}}}"}]}}`)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := b.post("/v1/messages?beta=true", withDefaults(t, tt.fields)); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			if q := b.asked(); !tt.check(q) {
				t.Errorf("asked %v", q)
			}
		})
	}
}

// What is accepted and cannot be honoured is told in the log.
func TestMessagesWarnings(t *testing.T) {
	var log lockedBuffer
	b := newBed(t, func(p *Params, _ *sched.Params) { p.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	b.createFrom("m", plainModel(), nil)
	b.create("tools", nil)
	for fields, want := range map[string]string{
		`"context_management": {"edits": [{"type": "x"}]}`:                                       "option=context_management",
		`"thinking": {"type": "enabled", "budget_tokens": 2000}`:                                 "option=thinking.budget_tokens",
		`"thinking": {"type": "adaptive"}`:                                                       "the model cannot think",
		`"model": "tools", "tools": [{"name": "f", "strict": true, "input_schema": {"a": "b"}}]`: "option=tools.strict",
	} {
		log.Reset()
		r := b.post("/v1/messages", withDefaults(t, `"messages": [{"role": "user", "content": "hi"}], `+fields))
		if r.status != 200 || !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), want) {
			t.Errorf("%s: %d, log %s", fields, r.status, log.String())
		}
	}
}

// A model that cannot think is asked to think by programs that do not know it.
func TestMessagesThinkingIsRelaxed(t *testing.T) {
	b := newBed(t)
	b.createFrom("m", plainModel(), nil)
	for _, thinking := range []string{`{"type": "enabled", "budget_tokens": 2000}`, `{"type": "adaptive"}`, `{"type": "disabled"}`} {
		r := b.post("/v1/messages", withDefaults(t, `"messages": [{"role": "user", "content": "hi"}], "thinking": `+thinking))
		if r.status != 200 || b.asked().GetChat().GetThink() != nil {
			t.Errorf("%s: %d %s, asked %v", thinking, r.status, r.body, b.asked())
		}
	}
}

func TestMessagesErrors(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) { p.MaxBody = 4096 })
	b.create("m", nil)
	b.createFrom("plain", plainModel(), nil)
	b.createFrom("emb", embeddingModel(), nil)
	const (
		invalid = "invalid_request_error"
		user    = `"messages": [{"role": "user", "content": "hi"}]`
	)
	body := func(fields string) string { return withDefaults(t, fields) }
	block := func(role, block string) string {
		return body(`"messages": [{"role": "user", "content": "hi"}, {"role": "` + role + `", "content": [` + block + `]}]`)
	}
	for _, tt := range []struct {
		body       string
		status     int
		kind, text string
	}{
		{``, 400, invalid, "missing request body"},
		{`{"model": `, 400, invalid, "unexpected EOF"},
		{`{"model": 5}`, 400, invalid, "model must be a string, got number"},
		{`[]`, 400, invalid, "the request must be an object, got array"},
		{body(`"max_tokens": "many", ` + user), 400, invalid, "max_tokens must be an integer, got string"},
		{body(`"tools": [{"name": "f", "description": 5}], ` + user), 400, invalid, "tools.description must be a string, got number"},
		{`{}`, 400, invalid, "model is required"},
		{`{"model": "m"}`, 400, invalid, "max_tokens is required and must be positive"},
		{`{"model": "m", "max_tokens": -1, ` + user + `}`, 400, invalid, "max_tokens is required and must be positive"},
		{`{"model": "m", "max_tokens": 1}`, 400, invalid, "messages is required"},
		{`{"model": "m", "max_tokens": 1, "messages": []}`, 400, invalid, "messages is required"},
		{body(`"model": "a b", ` + user), 400, invalid, "invalid model name"},
		{body(`"model": "nope", ` + user), 404, "not_found_error", "model 'nope' not found"},
		{body(`"model": "emb", ` + user), 400, invalid, `"emb" does not support chat`},
		{body(`"model": "plain", "tools": [` + weather + `], ` + user), 400, invalid, "registry.ollama.ai/library/plain:latest does not support tools"},
		{block("user", pixel), 400, invalid, "registry.ollama.ai/library/m:latest does not support vision"},
		{`{"model": "` + strings.Repeat("x", 5000) + `"}`, 413, "request_too_large", "request body is larger than 4096 bytes"},

		{body(`"messages": [{"role": "tool", "content": "hi"}]`), 400, invalid, `messages[0].role: "tool" is not a role; use "user" or "assistant"`},
		{body(`"messages": [{"role": "user", "content": 5}]`), 400, invalid, "messages[0].content must be a string or a list of blocks"},
		{body(`"messages": [{"role": "user", "content": [5]}]`), 400, invalid, "messages[0].content[0] must be an object, got number"},
		{block("user", `{"type": "text", "text": 5}`), 400, invalid, "messages[1].content[0].text must be a string, got number"},
		{block("user", `{"type": "image", "source": {"type": 5}}`), 400, invalid, "messages[1].content[0].source.type must be a string, got number"},
		{block("assistant", `{"type": "server_tool_use", "id": "s", "name": "web_search"}, {"type": "web_search_tool_result", "tool_use_id": "s", "content": "x"}`), 400, invalid, "messages[1].content[1].content must be a list, got string"},
		{body(`"messages": [{"role": "user"}, {"role": "user", "content": ""}]`), 400, invalid, "messages: all of them are empty; say something"},
		{body(`"system": {}, ` + user), 400, invalid, "system must be a string or a list of blocks"},
		{body(`"system": [` + pixel + `], ` + user), 400, invalid, `system[0]: a block of type "image" cannot be in a message of role "system"`},
		{block("user", `{"text": "x"}`), 400, invalid, "messages[1].content[0]: the block has no type"},
		{block("user", `{"type": "document"}`), 400, invalid, `messages[1].content[0]: blocks of type "document" are not supported`},
		{block("user", `{"type": "tool_use", "id": "x", "name": "f"}`), 400, invalid, `messages[1].content[0]: a block of type "tool_use" cannot be in a message of role "user"`},
		{block("assistant", pixel), 400, invalid, `messages[1].content[0]: a block of type "image" cannot be in a message of role "assistant"`},
		{block("user", `{"type": "image"}`), 400, invalid, "messages[1].content[0]: the image has no source"},
		{block("user", `{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}`), 400, invalid, `messages[1].content[0].source: type "url" is not supported; send the image itself, as "base64"`},
		{block("user", `{"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": ""}}`), 400, invalid, `messages[1].content[0].source: media_type "image/gif" is not supported; use one of image/jpeg, image/png, image/webp`},
		{block("user", `{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "*"}}`), 400, invalid, "messages[1].content[0].source: invalid base64 image data: illegal base64 data at input byte 0"},
		{block("assistant", `{"type": "tool_use", "name": "f", "input": {}}`), 400, invalid, "messages[1].content[0]: the tool_use block has no id"},
		{block("assistant", `{"type": "tool_use", "id": "x", "input": {}}`), 400, invalid, "messages[1].content[0]: the tool_use block has no name"},
		{block("assistant", `{"type": "tool_use", "id": "x", "name": "f", "input": "{}"}`), 400, invalid, "messages[1].content[0].input must be an object"},
		{block("user", `{"type": "tool_result", "tool_use_id": "x", "content": "42"}`), 400, invalid, `messages[1].content[0].tool_use_id: no block before this one has the id "x"`},
		{body(`"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "a"}, {"type": "search_result"}]}]}]`), 400, invalid, `messages[1].content[0].content[1]: blocks of type "search_result" are not supported in the result of a tool`},

		{body(user + `, "tools": [{"type": "web_search_20250305", "name": "web_search"}]`), 400, invalid, `tools[0]: "web_search_20250305" is a tool of Anthropic's and not offered here; describe a tool of your own with name and input_schema, and run it in your program`},
		{body(user + `, "tools": [` + weather + `, {"input_schema": {}}]`), 400, invalid, "tools[1]: name is missing"},
		{body(user + `, "tools": [{"name": "f", "input_schema": 5}]`), 400, invalid, "tools[0].input_schema must be a JSON Schema object"},
		{body(user + `, "tools": [{"name": "f", "allowed_callers": ["code_execution_20250825"]}]`), 400, invalid, `tools[0].allowed_callers: only "direct" is supported, because no code is executed here`},
		{body(user + `, "tool_choice": {"type": "some"}`), 400, invalid, `tool_choice.type "some" is not one of auto, any, tool, none`},
		{body(user + `, "tool_choice": {"type": "any"}`), 400, invalid, "tool_choice asks for a tool, but there are no tools"},
		{body(user + `, "tools": [` + weather + `], "tool_choice": {"type": "tool", "name": "g"}`), 400, invalid, `tool_choice.name: "g" is not among the tools`},

		{body(user + `, "thinking": {"type": "between_tools"}`), 400, invalid, `thinking.type "between_tools" is not one of enabled, adaptive, disabled`},
		{body(user + `, "thinking": {"type": "adaptive", "display": "all"}`), 400, invalid, `thinking.display "all" is not one of summarized, omitted`},
		{body(user + `, "output_config": {"effort": "huge"}`), 400, invalid, `output_config.effort "huge" is not one of low, medium, high, xhigh, max`},
		{body(user + `, "output_config": {"format": {"type": "xml"}}`), 400, invalid, `output_config.format.type "xml" is not supported; use "json_schema"`},
		{body(user + `, "output_config": {"format": {"type": "json_schema", "schema": true}}`), 400, invalid, "output_config.format.schema must be a JSON Schema object"},
		{body(user + `, "tools": [` + weather + `], "tool_choice": {"type": "any"}, "output_config": {"format": {"type": "json_schema", "schema": {}}}`), 400, invalid, "output_config.format and a tool_choice that requires a tool exclude each other"},
		{body(user + `, "temperature": -1`), 400, invalid, `option "temperature" must be at least 0, got -1`},
		{body(user + `, "top_p": 1.5`), 400, invalid, `option "top_p" must be between 0 and 1, got 1.5`},
		{body(user + `, "stop_sequences": ["a", ""]`), 400, invalid, "stop_sequences[1] is empty; leave it out"},
		{body(user + `, "mcp_servers": [{"url": "https://x"}]`), 400, invalid, "mcp_servers is not supported: let your program connect to them and offer their tools"},
		{body(user + `, "compaction": {"type": "auto"}`), 400, invalid, "compaction is not supported: ask for a summary in a message"},
		{body(user + `, "container": "c"`), 400, invalid, "container is not supported: no code is executed here"},
	} {
		r := b.post("/v1/messages", tt.body)
		checkAnthropicError(t, tt.body, r, tt.status, tt.kind, tt.text)
		// Counting makes the same checks, but for the bound of an answer.
		if !strings.Contains(tt.text, "max_tokens") {
			checkAnthropicError(t, "count "+tt.body, b.post("/v1/messages/count_tokens", tt.body), tt.status, tt.kind, tt.text)
		}
	}
	if len(b.requests) != 0 {
		t.Errorf("a refused request reached a runner: %v", b.requests)
	}
}

func checkAnthropicError(t *testing.T, what string, r reply, status int, kind, text string) {
	t.Helper()
	var e anthropicError
	if err := json.Unmarshal([]byte(r.body), &e); err != nil {
		t.Fatalf("%s: %v in %s", what, err, r.body)
	}
	if r.status != status || e.Type != "error" || e.Error.Type != kind || anyGo(e.Error.Message) != anyGo(text) {
		t.Errorf("%s:\n got %d %s\nwant %d %s %s", what, r.status, r.body, status, kind, text)
	}
	if e.RequestID == "" || e.RequestID != r.header.Get("Request-Id") {
		t.Errorf("%s: request id %q, header %q", what, e.RequestID, r.header.Get("Request-Id"))
	}
	if r.header.Get("Content-Type") != typeJSON {
		t.Errorf("%s: content type %q", what, r.header.Get("Content-Type"))
	}
}

// Anthropic's library goes on without a thread when it is told so by this code.
func TestMessagesThread(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	for _, thread := range []string{`{"type": "create"}`, `{"type": "continue", "previous_message_id": "msg_1"}`} {
		r := b.post("/v1/messages", withDefaults(t, `"messages": [{"role": "user", "content": "hi"}], "thread": `+thread))
		checkAnthropicError(t, thread, r, 400, "invalid_request_error", "thread is not supported: conversations are not kept here; send the whole one in messages")
		if !strings.Contains(r.body, `"details":{"error_code":"thread_unsupported_request"}`) {
			t.Error(r.body)
		}
	}
	if r := b.post("/v1/messages", withDefaults(t, `"messages": [{"role": "user", "content": "hi"}], "thread": null`)); r.status != 200 {
		t.Error(r.body)
	}
}

func TestMessagesMethod(t *testing.T) {
	b := newBed(t)
	for _, path := range []string{"/v1/messages", "/v1/messages/count_tokens"} {
		if r := b.do("GET", path, ""); r.status != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", path, r.status)
		}
	}
}

// A prompt that is rendered here: tools are shown or not, but the runner, which does not know them, cannot force one.
func TestMessagesWithTemplate(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"template": `{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }}{{ end }}{{ if .Tools }}TOOLS{{ .Tools }}{{ end }}<assistant>`})
	const user = `"messages": [{"role": "user", "content": "hi"}], "tools": [` + weather + `]`
	for choice, shown := range map[string]bool{"auto": true, "none": false} {
		r := b.post("/v1/messages", withDefaults(t, user+`, "tool_choice": {"type": "`+choice+`"}`))
		if p := b.asked().GetPrompt().GetText(); r.status != 200 || strings.Contains(p, "TOOLS") != shown {
			t.Errorf("%s: %d, prompt %q", choice, r.status, p)
		}
	}
	for _, choice := range []string{`{"type": "any"}`, `{"type": "tool", "name": "f"}`} {
		r := b.post("/v1/messages", withDefaults(t, user+`, "tool_choice": `+choice))
		checkAnthropicError(t, choice, r, 400, "invalid_request_error",
			`"registry.ollama.ai/library/m:latest" cannot be made to call a tool, because its prompt comes from a Modelfile TEMPLATE; leave the choice of tools to the model`)
	}
}

// lockedBuffer is a log that is written while it is read.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}
