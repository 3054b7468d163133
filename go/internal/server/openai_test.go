package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

// What differs from run to run in an answer.
var (
	openaiIDs   = regexp.MustCompile(`"(chatcmpl-|cmpl-|resp_|msg_|rs_|fc_)[a-z2-7]{26}"`)
	openaiCalls = regexp.MustCompile(`"call_[a-z0-9]{8}"`)
	openaiTimes = regexp.MustCompile(`"(created|created_at|completed_at)":[0-9]{10}`)
)

// steady replaces what differs from run to run.
func steady(body string) string {
	body = openaiIDs.ReplaceAllString(body, `"${1}X"`)
	body = openaiCalls.ReplaceAllString(body, `"call_X"`)
	return openaiTimes.ReplaceAllString(body, `"${1}":1`)
}

// sseOf returns the data of a stream, with the event name before it if there is one.
func sseOf(t testing.TB, r reply) []string {
	t.Helper()
	if r.status != http.StatusOK || r.header.Get("Content-Type") != typeEventStream {
		t.Fatalf("got %d %s: %s", r.status, r.header.Get("Content-Type"), r.body)
	}
	var out []string
	for _, e := range strings.Split(strings.TrimSuffix(steady(r.body), "\n\n"), "\n\n") {
		name, data, named := strings.Cut(e, "\ndata: ")
		if !named {
			out = append(out, strings.TrimPrefix(e, "data: "))
			continue
		}
		out = append(out, strings.TrimPrefix(name, "event: ")+" "+data)
	}
	return out
}

func sameLines(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("line %d:\n got %s\nwant %s", i, g, w)
		}
	}
}

// fullAnswer has everything that an answer can have.
func fullAnswer() []*runnerpb.Event {
	lp := func(text string, p float32, top ...*runnerpb.TokenLogprob) *runnerpb.TokenLogprob {
		return &runnerpb.TokenLogprob{Text: text, Logprob: p, Top: top}
	}
	return []*runnerpb.Event{
		schedtest.Prefill(7, 7),
		schedtest.Thinking("h"),
		schedtest.Delta(&runnerpb.Delta{Thinking: "m", Tokens: 2}),
		schedtest.Delta(&runnerpb.Delta{Tokens: 1, Logprobs: []*runnerpb.TokenLogprob{lp("<", -0.25, lp("<", -0.25), lp("é", -1))}}),
		schedtest.Delta(&runnerpb.Delta{Content: "<H>", Tokens: 1, Logprobs: []*runnerpb.TokenLogprob{lp("H>", -0.5)}}),
		schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{
			{Name: "f", ArgumentsJson: `{"z": "1", "a": 2}`},
			{Id: "own", Name: "ns__g", Index: 0},
		}}),
		schedtest.Finished(runnerpb.Finished_REASON_STOP, &runnerpb.Usage{PromptTokens: 7, CachedPromptTokens: 5, CompletionTokens: 6}),
	}
}

const openaiHi = `{"model": "m", "messages": [{"role": "user", "content": "hi"}]}`

// The status and the text of every error, in OpenAI's form.
func TestOpenAIErrors(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.createFrom("plain", plainModel(), nil)
	b.createFrom("emb", embeddingModel(), nil)
	b.create("templated", map[string]any{"template": `{{ range .Messages }}{{ .Content }}{{ end }}{{ range .Tools }}{{ . }}{{ end }}`})
	chat := func(fields string) string {
		return `{"model": "m", "messages": [{"role": "user", "content": "x"}], ` + fields + `}`
	}
	messages := func(messages string) string { return `{"model": "m", "messages": [` + messages + `]}` }
	completion := func(fields string) string { return `{"model": "m", "prompt": "x", ` + fields + `}` }
	embed := func(fields string) string { return `{"model": "emb", ` + fields + `}` }
	responses := func(fields string) string { return `{"model": "m", "input": "x", ` + fields + `}` }
	input := func(items string) string { return `{"model": "m", "input": [` + items + `]}` }
	const (
		invalid, missing = "invalid_request_error", "not_found_error"
		chatPath         = "/v1/chat/completions"
		completionPath   = "/v1/completions"
		embedPath        = "/v1/embeddings"
		responsesPath    = "/v1/responses"
		oneFunction      = `{"type": "function", "name": "f", "parameters": {"type": "object"}}`
	)
	for _, tt := range []struct {
		path, body string
		status     int
		kind       string
		param      string
		text       string
	}{
		// Bodies.
		{chatPath, ``, 400, invalid, "", "missing request body"},
		{completionPath, ` `, 400, invalid, "", "missing request body"},
		{embedPath, ``, 400, invalid, "", "missing request body"},
		{responsesPath, ``, 400, invalid, "", "missing request body"},
		{chatPath, `{"model": `, 400, invalid, "", "unexpected EOF"},
		{chatPath, `{"model": 5}`, 400, invalid, "model", "model must be a string, got number"},
		{chatPath, `{"temperature": "hot"}`, 400, invalid, "temperature", "temperature must be a number, got string"},
		{chatPath, `{"messages": {}}`, 400, invalid, "messages", "messages must be a list, got object"},
		{chatPath, `{"messages": [{"role": 1}]}`, 400, invalid, "messages.role", "messages.role must be a string, got number"},
		{chatPath, `{"max_tokens": 1.5}`, 400, invalid, "max_tokens", "max_tokens must be an integer, got number 1.5"},
		{chatPath, `{"logprobs": 1}`, 400, invalid, "logprobs", "logprobs must be a boolean, got number"},
		{chatPath, `{"response_format": "json"}`, 400, invalid, "response_format", "response_format must be an object, got string"},
		{chatPath, chat(`"keep_alive": true`), 400, invalid, "", "Unsupported type: 'bool'"},

		// Models.
		{chatPath, `{"messages": [{"role": "user", "content": "x"}]}`, 400, invalid, "model", "model is required"},
		{completionPath, `{"prompt": "x"}`, 400, invalid, "model", "model is required"},
		{embedPath, `{"input": "x"}`, 400, invalid, "model", "model is required"},
		{responsesPath, `{"input": "x"}`, 400, invalid, "model", "model is required"},
		{chatPath, `{"model": "Nope:7b", "messages": [{"role": "user", "content": "x"}]}`, 404, missing, "", "model 'Nope:7b' not found"},
		{completionPath, `{"model": "nope", "prompt": "x"}`, 404, missing, "", "model 'nope' not found"},
		{embedPath, `{"model": "nope", "input": "x"}`, 404, missing, "", `model "nope" not found, try pulling it first`},
		{responsesPath, `{"model": "nope", "input": "x"}`, 404, missing, "", "model 'nope' not found"},
		{"GET /v1/models/nope", ``, 404, missing, "", "model 'nope' not found"},
		{"GET /v1/models/no/such/model:1b", ``, 404, missing, "", "model 'no/such/model:1b' not found"},
		{"GET /v1/models/a%20b", ``, 400, invalid, "", "invalid model name"},
		{"GET /v1/models/", ``, 400, invalid, "", "invalid model name"},
		{chatPath, `{"model": "../../etc/passwd", "messages": [{"role": "user", "content": "x"}]}`, 400, invalid, "", "invalid model name"},

		// Capabilities.
		{chatPath, `{"model": "emb", "messages": [{"role": "user", "content": "x"}]}`, 400, invalid, "", `"emb" does not support chat`},
		{completionPath, `{"model": "emb", "prompt": "x"}`, 400, invalid, "", `"emb" does not support generate`},
		{responsesPath, `{"model": "emb", "input": "x"}`, 400, invalid, "", `"emb" does not support chat`},
		{completionPath, `{"model": "plain", "prompt": "x", "suffix": "y"}`, 400, invalid, "", `registry.ollama.ai/library/plain:latest does not support insert`},
		{chatPath, `{"model": "plain", "messages": [{"role": "user", "content": "x"}], "tools": [` + oneTool + `]}`, 400, invalid, "", `registry.ollama.ai/library/plain:latest does not support tools`},
		{chatPath, `{"model": "plain", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": "low"}`, 400, invalid, "", `"plain" does not support thinking`},
		{chatPath, `{"model": "plain", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": "none"}`, 200, "", "", ""},
		{chatPath, messages(`{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]}`), 400, invalid, "", `registry.ollama.ai/library/m:latest does not support vision`},
		{chatPath, `{"model": "templated", "messages": [{"role": "user", "content": "x"}], "tools": [` + oneTool + `], "tool_choice": "required"}`, 400, invalid, "", `"registry.ollama.ai/library/templated:latest" cannot be made to call a tool, because its prompt comes from a Modelfile TEMPLATE; leave the choice of tools to the model`},

		// Chat: what is refused by name.
		{chatPath, `{"model": "m", "messages": []}`, 400, invalid, "messages", "[] is too short - 'messages'"},
		{chatPath, chat(`"n": 2`), 400, invalid, "n", "n of 2 is not supported: one choice is made for each request; send more requests, they run side by side"},
		{chatPath, chat(`"n": 1`), 200, "", "", ""},
		{chatPath, chat(`"n": null`), 200, "", "", ""},
		{chatPath, chat(`"modalities": ["text", "audio"]`), 400, invalid, "modalities", `modalities with "audio" is not supported: answers are text`},
		{chatPath, chat(`"modalities": ["text"]`), 200, "", "", ""},
		{chatPath, chat(`"audio": {"voice": "x"}`), 400, invalid, "audio", "audio is not supported: answers are text"},
		{chatPath, chat(`"functions": [{"name": "f"}]`), 400, invalid, "functions", "functions is not supported: use tools"},
		{chatPath, chat(`"function_call": "auto"`), 400, invalid, "function_call", "function_call is not supported: use tool_choice"},
		{chatPath, chat(`"web_search_options": {"a": 1}`), 400, invalid, "web_search_options", "web_search_options is not supported: offer a search as one of the tools"},
		{chatPath, chat(`"top_logprobs": 21, "logprobs": true`), 400, invalid, "top_logprobs", "top_logprobs must be between 0 and 20"},
		{chatPath, chat(`"top_logprobs": 2`), 400, invalid, "top_logprobs", "top_logprobs needs logprobs to be true"},
		{chatPath, chat(`"max_tokens": 0`), 400, invalid, "max_tokens", "max_tokens must be at least 1, or negative for no bound"},
		{chatPath, chat(`"max_completion_tokens": 0`), 400, invalid, "max_completion_tokens", "max_completion_tokens must be at least 1, or negative for no bound"},
		{chatPath, chat(`"temperature": -1`), 400, invalid, "", `option "temperature" must be at least 0, got -1`},
		{chatPath, chat(`"top_p": 2`), 400, invalid, "", `option "top_p" must be between 0 and 1, got 2`},
		{chatPath, chat(`"stop": 5`), 400, invalid, "stop", "stop must be a string or a list of strings"},
		{chatPath, chat(`"stop": ["a", null]`), 400, invalid, "stop", "stop must be a string or a list of strings"},
		{chatPath, chat(`"logit_bias": {"x": 1}`), 400, invalid, "logit_bias", `logit_bias has the key "x", which is not a token id`},
		{chatPath, chat(`"logit_bias": {"5": 101}`), 400, invalid, "logit_bias", "logit_bias of token 5 must be between -100 and 100, got 101"},
		{chatPath, chat(`"reasoning_effort": "hard"`), 400, invalid, "reasoning_effort", `reasoning_effort must be "none", "minimal", "low", "medium", "high", "xhigh", "ultra" or "max", got "hard"`},
		{chatPath, chat(`"response_format": {"type": "xml"}`), 400, invalid, "response_format.type", `response_format.type must be "text", "json_object" or "json_schema", got "xml"`},
		{chatPath, chat(`"response_format": {"type": "json_schema"}`), 400, invalid, "response_format.schema", "response_format.schema must be a JSON Schema object"},
		{chatPath, chat(`"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}`), 400, invalid, "response_format.json_schema.schema", "response_format.json_schema.schema must be a JSON Schema object"},
		{chatPath, chat(`"options": {"num_ctx": "big"}`), 500, "api_error", "", `option "num_ctx" must be of type integer`},

		// Chat: messages.
		{chatPath, messages(`{"content": "x"}`), 400, invalid, "messages[0].role", "messages[0].role is missing"},
		{chatPath, messages(`{"role": "user"}`), 400, invalid, "messages[0].content", "messages[0].content is missing"},
		{chatPath, messages(`{"role": "user", "content": 5}`), 400, invalid, "messages[0].content", "messages[0].content must be a string or a list of parts: json: cannot unmarshal number into Go value of type []server.openaiPart"},
		{chatPath, messages(`{"role": "user", "content": [{"type": "input_audio"}]}`), 400, invalid, "messages[0].content[0]", `messages[0].content[0] of type "input_audio" is not supported: a part can be text or an image`},
		{chatPath, messages(`{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}]}`), 400, invalid, "messages[0].content[0].image_url", `messages[0].content[0].image_url must be a data URL, for example "data:image/png;base64,...": images are not fetched from addresses`},
		{chatPath, messages(`{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}`), 400, invalid, "messages[0].content[0].image_url", `messages[0].content[0].image_url must be a data URL, for example "data:image/png;base64,...": images are not fetched from addresses`},
		{chatPath, messages(`{"role": "user", "content": [{"type": "image_url", "image_url": "data:text/html;base64,eA=="}]}`), 400, invalid, "messages[0].content[0].image_url", "messages[0].content[0].image_url must hold a JPEG, PNG or WebP image in base64"},
		{chatPath, messages(`{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,?"}]}`), 400, invalid, "messages[0].content[0].image_url", "messages[0].content[0].image_url is not valid base64"},
		{chatPath, messages(`{"role": "function", "name": "f", "content": "x"}`), 400, invalid, "messages[0]", `messages[0] with a function call of the old form is not supported: use tool_calls and the role "tool"`},
		{chatPath, messages(`{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]}`), 400, invalid, "messages[0].tool_calls[0]", "messages[0].tool_calls[0] has arguments that are not a JSON object: unexpected end of JSON input"},
		{chatPath, messages(`{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {}}]}`), 400, invalid, "messages[0].tool_calls[0]", "messages[0].tool_calls[0] has no function name"},

		// Chat: tools.
		{chatPath, chat(`"tools": [{"type": "custom", "custom": {"name": "x"}}]`), 400, invalid, "tools[0]", `tools[0] of type "custom" is not supported: a tool must be a function`},
		{chatPath, chat(`"tools": [{"type": "function", "function": {}}]`), 400, invalid, "", "tools[0]: function.name is missing"},
		{chatPath, chat(`"tool_choice": "required"`), 400, invalid, "tool_choice", "tool_choice demands a call, but tools is empty"},
		{chatPath, chat(`"tool_choice": "any"`), 400, invalid, "tool_choice", `tool_choice must be "none", "auto", "required" or name a function, got "any"`},
		{chatPath, chat(`"tool_choice": 5`), 400, invalid, "tool_choice", "tool_choice must be a string or name a function"},
		{chatPath, chat(`"tools": [` + oneTool + `], "tool_choice": {"type": "allowed_tools"}`), 400, invalid, "tool_choice", `tool_choice of type "allowed_tools" is not supported: use "none", "auto", "required" or name a function`},
		{chatPath, chat(`"tools": [` + oneTool + `], "tool_choice": {"type": "function", "function": {"name": "g"}}`), 400, invalid, "tool_choice", `tool_choice names the function "g", which is not among the tools`},
		{chatPath, chat(`"tool_choice": "none"`), 200, "", "", ""},

		// Completions.
		{completionPath, `{"model": "m"}`, 400, invalid, "prompt", "prompt is missing"},
		{completionPath, `{"model": "m", "prompt": ""}`, 400, invalid, "prompt", "prompt must not be empty"},
		{completionPath, `{"model": "m", "prompt": ["a", "b"]}`, 400, invalid, "prompt", "prompt with 2 texts is not supported: send a request for each, they run side by side"},
		{completionPath, `{"model": "m", "prompt": [1, 2]}`, 400, invalid, "prompt", "prompt of token ids is not supported: send text"},
		{completionPath, completion(`"n": 2`), 400, invalid, "n", "n of 2 is not supported: one choice is made for each request; send more requests, they run side by side"},
		{completionPath, completion(`"best_of": 3`), 400, invalid, "best_of", "best_of of 3 is not supported: one choice is made for each request; send more requests, they run side by side"},
		{completionPath, completion(`"echo": true`), 400, invalid, "echo", "echo is not supported: the answer holds only what was generated"},
		{completionPath, completion(`"logprobs": 21`), 400, invalid, "logprobs", "logprobs must be between 0 and 20"},

		// Embeddings.
		{embedPath, embed(`"input": []`), 400, invalid, "input", "invalid input"},
		{embedPath, embed(`"dimensions": 5`), 400, invalid, "input", "invalid input"},
		{embedPath, embed(`"input": 5`), 400, invalid, "input", "invalid input type"},
		{embedPath, embed(`"input": [1, 2]`), 400, invalid, "input", "input of token ids is not supported: send text, because the ids of a client's tokenizer mean nothing to this model (langchain: check_embedding_ctx_length=False)"},
		{embedPath, embed(`"input": "x", "encoding_format": "hex"`), 400, invalid, "encoding_format", `encoding_format must be "float" or "base64", got "hex"`},
		{embedPath, embed(`"input": "x", "dimensions": 0`), 400, invalid, "dimensions", "dimensions must be at least 1, got 0"},

		// Responses.
		{responsesPath, `{"model": "m"}`, 400, invalid, "input", "input is required"},
		{responsesPath, `{"model": "m", "input": "", "instructions": "x"}`, 400, invalid, "input", "input is required"},
		{responsesPath, `{"model": "m", "input": 5}`, 400, invalid, "input", "input must be a string or a list of items"},
		{responsesPath, responses(`"previous_response_id": "resp_1"`), 400, invalid, "previous_response_id", "previous_response_id is not supported: responses are not stored here; send the whole conversation as input"},
		{responsesPath, responses(`"conversation": {"id": "c"}`), 400, invalid, "conversation", "conversation is not supported: responses are not stored here; send the whole conversation as input"},
		{responsesPath, responses(`"store": true`), 400, invalid, "store", "store is not supported: responses are not stored here; leave it out or set it to false"},
		{responsesPath, responses(`"background": true`), 400, invalid, "background", "background is not supported: keep the connection open, or stream"},
		{responsesPath, responses(`"prompt": {"id": "p"}`), 400, invalid, "prompt", "prompt is not supported: prompts are not stored here; send input and instructions"},
		{responsesPath, responses(`"store": false, "background": false, "previous_response_id": null, "conversation": null, "prompt": null`), 200, "", "", ""},
		{responsesPath, responses(`"truncation": "middle"`), 400, invalid, "truncation", `truncation must be "auto" or "disabled", got "middle"`},
		{responsesPath, responses(`"max_output_tokens": 0`), 400, invalid, "max_output_tokens", "max_output_tokens must be at least 1, or negative for no bound"},
		{responsesPath, responses(`"top_logprobs": -1`), 400, invalid, "top_logprobs", "top_logprobs must be between 0 and 20"},
		{responsesPath, responses(`"text": {"format": {"type": "json_schema", "name": "x"}}`), 400, invalid, "text.format.schema", "text.format.schema must be a JSON Schema object"},
		{responsesPath, responses(`"reasoning": {"effort": "hard"}`), 400, invalid, "reasoning.effort", `reasoning.effort must be "none", "minimal", "low", "medium", "high", "xhigh", "ultra" or "max", got "hard"`},
		{responsesPath, responses(`"tools": [{"type": "code_interpreter"}]`), 400, invalid, "tools[0]", `tools[0] of type "code_interpreter" is not supported: a tool must be a function`},
		{responsesPath, responses(`"tools": [{"type": "web_search"}]`), 200, "", "", ""},
		{responsesPath, responses(`"tools": [{"type": "web_search"}, ` + oneFunction + `], "tool_choice": "required"`), 400, invalid, "tools[0]", `tools[0] of type "web_search" is not supported: a tool must be a function`},
		{responsesPath, responses(`"tools": [{"type": "function"}]`), 400, invalid, "tools[0].name", "tools[0].name is missing"},
		{responsesPath, responses(`"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]`), 400, invalid, "tools[0].tools[0]", `tools[0].tools[0] of type "custom" is not supported: a tool must be a function`},
		{responsesPath, responses(`"tools": [` + oneFunction + `], "tool_choice": {"type": "function", "name": "g"}`), 400, invalid, "tool_choice", `tool_choice names the function "g", which is not among the tools`},
		{responsesPath, input(`{"type": "item_reference", "id": "x"}`), 400, invalid, "input[0]", `input[0] of type "item_reference" is not supported: items are not stored here; send the item itself`},
		{responsesPath, input(`{"type": "computer_call"}`), 400, invalid, "input[0]", `input[0] of type "computer_call" is not supported: an item can be a message, a function_call, a function_call_output or reasoning`},
		{responsesPath, input(`5`), 400, invalid, "input[0]", "input[0] is not an input item: json: cannot unmarshal number into Go value of type server.responsesItem"},
		{responsesPath, input(`{"content": "x"}`), 400, invalid, "input[0].role", "input[0].role is missing"},
		{responsesPath, input(`{"role": "user"}`), 400, invalid, "input[0].content", "input[0].content is missing"},
		{responsesPath, input(`{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}`), 400, invalid, "input[0].content[0]", `input[0].content[0] of type "input_file" is not supported: a part can be text or an image`},
		{responsesPath, input(`{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}`), 400, invalid, "input[0].content[0].image_url", "input[0].content[0].image_url must be a data URL; files by id are not kept here"},
		{responsesPath, input(`{"type": "function_call", "call_id": "c", "arguments": "{}"}`), 400, invalid, "input[0]", "input[0] has no function name"},
		{responsesPath, input(`{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}`), 400, invalid, "input[0]", "input[0] has arguments that are not a JSON object: unexpected end of JSON input"},
		{responsesPath, input(`{"type": "function_call_output", "call_id": "c"}`), 400, invalid, "input[0].output", "input[0].output is missing"},
	} {
		method, path, ok := strings.Cut(tt.path, " ")
		if !ok {
			method, path = "POST", tt.path
		}
		r := b.do(method, path, tt.body)
		if tt.status == 200 {
			if r.status != 200 {
				t.Errorf("%s %s:\n got %d %s", tt.path, tt.body, r.status, r.body)
			}
			continue
		}
		var got struct {
			Error struct {
				Message, Type string
				Param         *string
				Code          json.RawMessage
			}
		}
		if err := json.Unmarshal([]byte(r.body), &got); err != nil {
			t.Errorf("%s %s: %v in %s", tt.path, tt.body, err, r.body)
			continue
		}
		param := ""
		if got.Error.Param != nil {
			param = *got.Error.Param
		}
		if r.status != tt.status || anyGo(got.Error.Message) != anyGo(tt.text) || got.Error.Type != tt.kind || anyGo(param) != anyGo(tt.param) || string(got.Error.Code) != "null" {
			t.Errorf("%s %s:\n got %d %s\nwant %d %s, %s, %s", tt.path, tt.body, r.status, r.body, tt.status, tt.kind, tt.param, tt.text)
		}
	}
	if r := b.do("GET", "/v1/chat/completions", ""); r.status != http.StatusMethodNotAllowed {
		t.Errorf("wrong method: %d", r.status)
	}
}

var openaiStreams = []struct{ path, body, ended string }{
	{"/v1/chat/completions", `{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}`, "[DONE]"},
	{"/v1/completions", `{"model": "m", "stream": true, "prompt": "hi"}`, "[DONE]"},
	{"/v1/responses", `{"model": "m", "stream": true, "input": "hi"}`, "response.completed"},
}

// A failure is an error of its own status until something was sent, then an event.
func TestOpenAIStreamFails(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	for _, tt := range openaiStreams {
		t.Run(tt.path, func(t *testing.T) {
			b.script(schedtest.Failed(codes.InvalidArgument, "too long"))
			for _, body := range []string{tt.body, strings.Replace(tt.body, "true", "false", 1)} {
				r := b.post(tt.path, body)
				if r.status != 400 || r.body != `{"error":{"message":"too long","type":"invalid_request_error","param":null,"code":null}}` {
					t.Errorf("at once: %d %s", r.status, r.body)
				}
			}
			b.script(schedtest.Thinking("hm"), schedtest.Content("a"), schedtest.Failed(codes.Internal, "it broke"))
			got := sseOf(t, b.post(tt.path, tt.body))
			last := got[len(got)-1]
			want := `{"error":{"message":"it broke","type":"api_error","param":null,"code":null}}`
			if tt.path == "/v1/responses" {
				if !strings.HasPrefix(last, fmt.Sprintf(`response.failed {"type":"response.failed","sequence_number":%d,"response":{`, len(got)-1)) ||
					!strings.Contains(last, `"status":"failed","error":{"code":"server_error","message":"it broke"}`) ||
					!strings.Contains(last, `{"id":"msg_X","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"a","annotations":[],"logprobs":[]}]}`) {
					t.Errorf("later: %s", last)
				}
			} else if last != want {
				t.Errorf("later: %s", last)
			}
			if r := b.post(tt.path, strings.Replace(tt.body, "true", "false", 1)); r.status != 500 || r.body != want {
				t.Errorf("unstreamed: %d %s", r.status, r.body)
			}
		})
	}
}

// A runner that dies in the middle of an answer is told of in the stream.
func TestOpenAIRunnerDies(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	streams := b.manual()
	for _, tt := range openaiStreams {
		resp := make(chan reply, 1)
		go func() { resp <- b.post(tt.path, tt.body) }()
		s := <-streams
		s.Send(schedtest.Content("x"))
		s.Break(errdefs.New(errdefs.ErrUnavailable, "the model runner has stopped"))
		got := sseOf(t, <-resp)
		if last := got[len(got)-1]; !strings.Contains(last, `"message":"the model runner has stopped"`) || strings.Contains(last, tt.ended) {
			t.Errorf("%s: %s", tt.path, last)
		}
	}
}

// A client that leaves ends its request in the runner.
func TestOpenAIDisconnect(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	streams := b.manual()
	for _, tt := range openaiStreams {
		ctx, leave := context.WithCancel(context.Background())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			req, _ := http.NewRequestWithContext(ctx, "POST", b.http.URL+tt.path, strings.NewReader(tt.body))
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_, _ = readAll(resp)
			}
		}()
		s := <-streams
		s.Send(schedtest.Content("x"))
		leave()
		<-gone
		select {
		case <-s.Closed():
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: the stream was not closed", tt.path)
		}
	}
	until(t, "no lease is held", func() bool { l := b.sched.Loaded(t.Context()); return len(l) == 1 && l[0].Leases == 0 })
}

// A long silence is filled with comments, which settle the status: an error after them is an event.
func TestOpenAIKeepAlive(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) { p.PingInterval = 20 * time.Millisecond })
	b.create("m", nil)
	streams := b.manual()
	for _, tt := range openaiStreams {
		resp := make(chan *http.Response, 1)
		go func() { resp <- b.open(context.Background(), tt.path, tt.body) }()
		s := <-streams
		buf := make([]byte, 8)
		r := <-resp
		if _, err := r.Body.Read(buf); err != nil || string(buf) != ": ping\n\n" {
			t.Fatalf("%s: %q, %v", tt.path, buf, err)
		}
		s.Send(schedtest.Failed(codes.InvalidArgument, "too long"))
		rest, err := readAll(r)
		if err != nil || r.StatusCode != 200 || !strings.Contains(rest, `"message":"too long"`) {
			t.Errorf("%s: %d %s, %v", tt.path, r.StatusCode, rest, err)
		}
	}
}
