package server

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

const oneTool = `{"type": "function", "function": {"parameters": {"type": "object", "additionalProperties": false, "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}, "name": "f"}}`

func TestChatStream(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(
		schedtest.Thinking("hm"),
		schedtest.Content("Hi"),
		schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{
			{Name: "f", ArgumentsJson: `{"z": "1", "a": 2}`},
			{Id: "own", Name: "g", ArgumentsJson: `{}`, Index: 1},
		}}),
		schedtest.Stop())
	r := b.post("/api/chat", `{"model": "m", "messages": [{"role": "USER", "content": "hi"}], "tools": [`+oneTool+`]}`)
	lines := strings.Split(strings.TrimSpace(r.body), "\n")
	got := linesOf[api.ChatResponse](t, r)
	if len(got) != 4 || got[0].Message.Thinking != "hm" || got[1].Message.Content != "Hi" || !got[3].Done || got[3].DoneReason != "stop" {
		t.Fatalf("got %s", r.body)
	}
	for _, g := range got {
		if g.Message.Role != "assistant" || g.Model != "m" {
			t.Errorf("got %+v", g)
		}
	}
	calls := got[2].Message.ToolCalls
	if len(calls) != 2 || calls[0].Function.Name != "f" || calls[0].Function.Arguments.String() != `{"z":"1","a":2}` || calls[1].ID != "own" || calls[1].Function.Index != 1 {
		t.Fatalf("calls: %s", lines[2])
	}
	if !regexp.MustCompile(`^call_[a-z0-9]{8}$`).MatchString(calls[0].ID) {
		t.Errorf("id %q", calls[0].ID)
	}
	if f := fields(lines[1]); f != "[model created_at message done]" {
		t.Errorf("fields of a chunk: %s", f)
	}
	if !strings.Contains(lines[1], `"message":{"role":"assistant","content":"Hi"}`) {
		t.Errorf("chunk: %s", lines[1])
	}
	// The tool reaches the runner as it was written, but for spaces.
	want := `{"type":"function","function":{"parameters":{"type":"object","additionalProperties":false,"properties":{"z":{"type":"string"},"a":{"type":"integer"}}},"name":"f"}}`
	if c := b.asked().GetChat(); c.GetTools()[0].GetJson() != want || c.GetMessages()[0].GetRole() != "user" {
		t.Errorf("asked %v", c)
	}
}

func TestChatWhole(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(schedtest.Thinking("hm"), schedtest.Content("a"), schedtest.Content("b"),
		schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{{Name: "f", ArgumentsJson: `{"x": [1, {"y": null}]}`}}}),
		schedtest.Stop())
	var got api.ChatResponse
	r := b.post("/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": false, "tools": [`+oneTool+`]}`)
	r.json(t, &got)
	if got.Message.Content != "ab" || got.Message.Thinking != "hm" || len(got.Message.ToolCalls) != 1 || got.PromptEvalCount != 5 || !got.Done {
		t.Errorf("got %s", r.body)
	}
}

// A call whose arguments are no JSON object cannot be sent as a call; its text must not vanish.
func TestMalformedToolCallIsContent(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{{Name: "f", ArgumentsJson: `{"x": `}}}), schedtest.Stop())
	var got api.ChatResponse
	b.post("/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": false, "tools": [`+oneTool+`]}`).json(t, &got)
	if got.Message.Content != `f{"x": ` || got.Message.ToolCalls != nil {
		t.Errorf("got %+v", got.Message)
	}
}

func TestChatMessages(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"system": "Be kind.", "messages": []api.Message{{Role: "user", Content: "q"}, {Role: "assistant", Content: "a"}}})
	for _, tt := range []struct{ name, messages, want string }{
		{"the model's come first", `[{"role": "user", "content": "hi"}]`,
			`{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "hi"}], "think": {"enabled": true}}`},
		{"own system prompt", `[{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]`,
			`{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "system", "content": "S"}, {"role": "user", "content": "hi"}], "think": {"enabled": true}}`},
		{"beginning of the answer", `[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure,"}]`,
			`{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure,"}], "think": {"enabled": true}, "continue_final_message": true}`},
		{"tool turn", `[{"role": "user", "content": "hi"}, {"role": "assistant", "thinking": "t", "content": "", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"z": 1, "a": 2}}}]}, {"role": "tool", "tool_name": "f", "tool_call_id": "c1", "content": "42"}]`,
			`{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "hi"}, {"role": "assistant", "thinking": "t", "tool_calls": [{"id": "c1", "name": "f", "arguments_json": "{\"z\":1,\"a\":2}"}]}, {"role": "tool", "tool_name": "f", "tool_call_id": "c1", "content": "42"}], "think": {"enabled": true}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := b.post("/api/chat", `{"model": "m", "messages": `+tt.messages+`}`); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			got := canonical(t, &runnerpb.GenerateRequest{Input: b.asked().GetInput()})
			if want := canonicalText(t, `{"chat": `+tt.want+`}`); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// A model with a Modelfile template: rendered here, parsed here.
func TestChatWithTemplate(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"template": `{{ range .Messages }}<{{ .Role }}>{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }}{{ end }}{{ if .Tools }}TOOLS{{ .Tools }}{{ end }}<assistant>`})
	b.script(schedtest.Content("<thi"), schedtest.Content("nk>why"), schedtest.Content("</think>  Sure. "), schedtest.Content("<tool_call>{\"name\": \"f\", \"argu"),
		schedtest.Content("ments\": {\"a\": 1}}</tool_call>"), schedtest.Stop())
	var got api.ChatResponse
	b.post("/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": false, "tools": [`+oneTool+`]}`).json(t, &got)
	m := got.Message
	if m.Thinking != "why" || strings.TrimSpace(m.Content) != "Sure." || len(m.ToolCalls) != 1 || m.ToolCalls[0].Function.Arguments.String() != `{"a":1}` {
		t.Errorf("got %+v", m)
	}
	p := b.asked().GetPrompt().GetText()
	if !strings.HasPrefix(p, "<user>hi") || !strings.Contains(p, "TOOLS") || !strings.HasSuffix(p, "<assistant>") {
		t.Errorf("prompt %q", p)
	}
	// What was held back comes out at the end.
	b.script(schedtest.Content("<thi"), schedtest.Stop())
	b.post("/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": false}`).json(t, &got)
	if got.Message.Content != "<thi" {
		t.Errorf("got %+v", got.Message)
	}
}

// A model with a RENDERER is rendered and parsed here, in every dialect.
func TestRenderer(t *testing.T) {
	b := newBed(t)
	b.createFrom("m", plainModel(), map[string]any{"renderer": "qwen3-coder", "system": "Be brief."})
	b.script(schedtest.Prefill(5, 5), schedtest.Content("Sure.<tool"), schedtest.Content("_call>\n<function=weather>\n<parameter=city>\nRo"),
		schedtest.Content("me\n</parameter>\n</function>\n</tool_call>"), schedtest.Stop())
	const (
		tools = `"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]`
		user  = `"messages": [{"role": "user", "content": "Rome?"}]`
	)
	var chat struct {
		Message struct {
			Content   string
			ToolCalls []struct {
				Function struct {
					Name      string
					Arguments map[string]any
				}
			} `json:"tool_calls"`
		}
	}
	b.post("/api/chat", `{"model": "m", "stream": false, `+user+`, `+tools+`}`).json(t, &chat)
	if m := chat.Message; m.Content != "Sure." || len(m.ToolCalls) != 1 || m.ToolCalls[0].Function.Name != "weather" || m.ToolCalls[0].Function.Arguments["city"] != "Rome" {
		t.Errorf("got %+v", chat)
	}
	text := b.asked().GetPrompt().GetText()
	for _, want := range []string{"<|im_start|>system\nBe brief.", "<name>weather</name>", "<|im_start|>user\nRome?<|im_end|>", "<|im_start|>assistant\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the prompt %q", want, text)
		}
	}
	if r := b.post("/v1/chat/completions", `{"model": "m", `+user+`, `+tools+`}`); !strings.Contains(r.body, `"finish_reason":"tool_calls"`) || !strings.Contains(r.body, `"name":"weather"`) {
		t.Errorf("got %s", r.body)
	}
	anthropic := strings.NewReplacer(`{"type": "function", "function": `, "", `}}}}]`, `}}}]`, "parameters", "input_schema").Replace(tools)
	if r := b.post("/v1/messages", `{"model": "m", "max_tokens": 9, `+user+`, `+anthropic+`}`); !strings.Contains(r.body, `"stop_reason":"tool_use"`) {
		t.Errorf("got %s", r.body)
	}
	b.expect("/v1/chat/completions", `{"model": "m", "tool_choice": "required", `+user+`, `+tools+`}`, 400, "")
	// A request's own template comes first; a suffix takes the tokenizer's form.
	b.script(schedtest.Content("x"), schedtest.Stop())
	b.post("/api/generate", `{"model": "m", "prompt": "a", "template": "<{{ .Prompt }}>"}`)
	if got := b.asked().GetPrompt().GetText(); got != "<a>" {
		t.Errorf("got %q", got)
	}
	var show struct {
		Renderer, Modelfile string
		Capabilities        []string
	}
	b.post("/api/show", `{"model": "m"}`).json(t, &show)
	if show.Renderer != "qwen3-coder" || !strings.Contains(show.Modelfile, "\nRENDERER qwen3-coder\n") || !slices.Contains(show.Capabilities, "tools") || slices.Contains(show.Capabilities, "thinking") {
		t.Errorf("got %+v", show)
	}
}

func TestLogprobs(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	lp := &runnerpb.TokenLogprob{Id: 1, Text: "é", Logprob: -0.5, Top: []*runnerpb.TokenLogprob{{Text: "é", Logprob: -0.5}, {Text: "\ufffd", Bytes: []byte{0xc3}, Logprob: -1}}}
	b.script(schedtest.Delta(&runnerpb.Delta{Tokens: 1, Logprobs: []*runnerpb.TokenLogprob{lp}}), schedtest.Content("é"), schedtest.Stop())
	for _, path := range []string{"/api/chat", "/api/generate"} {
		r := b.post(path, `{"model": "m", "prompt": "x", "messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 2}`)
		lines := strings.Split(r.body, "\n")
		var got struct{ Logprobs json.RawMessage }
		if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
			t.Fatal(err)
		}
		want := `[{"token":"é","logprob":-0.5,"bytes":[195,169],"top_logprobs":[{"token":"é","logprob":-0.5,"bytes":[195,169]},{"token":"` + "\ufffd" + `","logprob":-1,"bytes":[195]}]}]`
		if string(got.Logprobs) != want {
			t.Errorf("%s: a held-back token's logprobs: got %s\nwant %s", path, got.Logprobs, want)
		}
		// Whole: those of all steps.
		r = b.post(path, `{"model": "m", "prompt": "x", "messages": [{"role": "user", "content": "hi"}], "logprobs": true, "stream": false}`)
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || string(got.Logprobs) != want {
			t.Errorf("%s whole: %s", path, r.body)
		}
	}
}

func TestDebugRenderOnly(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	onStart := b.starter.OnStart
	b.starter.OnStart = func(r *schedtest.Runner) {
		onStart(r)
		r.OnTokenize = func(q *runnerpb.TokenizeRequest) (*runnerpb.TokenizeResponse, error) {
			return &runnerpb.TokenizeResponse{Rendered: "R:" + q.GetChat().GetMessages()[0].GetContent() + q.GetPrompt().GetText()}, nil
		}
	}
	for _, path := range []string{"/api/chat", "/api/generate"} {
		r := b.post(path, `{"model": "m", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "_debug_render_only": true}`)
		var got struct {
			Info api.DebugInfo `json:"_debug_info"`
		}
		r.json(t, &got)
		if got.Info.RenderedTemplate != "R:hi" {
			t.Errorf("%s: %s", path, r.body)
		}
	}
}
