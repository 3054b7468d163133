package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

const responsesTools = `"tools": [{"type": "function", "name": "f", "description": "d", "strict": true, "parameters": {"type": "object", "b": 1, "a": 2}}, ` +
	`{"type": "namespace", "name": "ns", "description": "x", "tools": [{"type": "function", "name": "g"}]}]`

// What an event says of the response before it has ended.
func responseText(status, errText, incomplete, output, usage, completed string) string {
	return `{"id":"resp_X","object":"response","created_at":1,"completed_at":` + completed + `,"status":"` + status + `","error":` + errText + `,"incomplete_details":` + incomplete +
		`,"model":"m","output":[` + output + `],"usage":` + usage + `,"instructions":null,"max_output_tokens":null,"max_tool_calls":null,` +
		`"temperature":1,"top_p":1,"presence_penalty":0,"frequency_penalty":0,"top_logprobs":0,` + compactTools + `,` +
		`"tool_choice":"auto","parallel_tool_calls":true,"text":{"format":{"type":"text"}},"reasoning":null,"truncation":"auto","metadata":{},` +
		`"user":null,"safety_identifier":null,"prompt_cache_key":null,"previous_response_id":null,"service_tier":"default","store":false,"background":false}`
}

const compactTools = `"tools":[{"type":"function","name":"f","description":"d","strict":true,"parameters":{"type":"object","b":1,"a":2}},` +
	`{"type":"namespace","name":"ns","description":"x","tools":[{"type":"function","name":"g"}]}]`

const (
	outReasoning = `{"id":"rs_X","type":"reasoning","status":"completed","summary":[{"type":"summary_text","text":"hm"}],"encrypted_content":"hm"}`
	outPart      = `{"type":"output_text","text":"<H>","annotations":[],"logprobs":[` + outLogprobs + `]}`
	outLogprobs  = `{"token":"<","bytes":[60],"logprob":-0.25,"top_logprobs":[{"token":"<","bytes":[60],"logprob":-0.25},{"token":"é","bytes":[195,169],"logprob":-1}]},{"token":"H>","bytes":[72,62],"logprob":-0.5,"top_logprobs":[]}`
	outMessage   = `{"id":"msg_X","type":"message","status":"completed","role":"assistant","content":[` + outPart + `]}`
	outCallF     = `{"id":"fc_X","type":"function_call","status":"completed","call_id":"call_X","name":"f","arguments":"{\"z\": \"1\", \"a\": 2}"}`
	outCallG     = `{"id":"fc_X","type":"function_call","status":"completed","call_id":"own","namespace":"ns","name":"g","arguments":"{}"}`
	outUsage     = `{"input_tokens":7,"input_tokens_details":{"cached_tokens":5,"cache_write_tokens":0},"output_tokens":6,"output_tokens_details":{"reasoning_tokens":3},"total_tokens":13}`
)

func escaped(body string) string {
	return strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(steady(body))
}

func TestResponse(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(fullAnswer()...)
	r := b.post("/v1/responses", `{"model": "m", "input": "hi", `+responsesTools+`}`)
	want := responseText("completed", "null", "null", strings.Join([]string{outReasoning, outMessage, outCallF, outCallG}, ","), outUsage, "1")
	if got := escaped(r.body); r.status != 200 || got != want {
		t.Errorf("got  %d %s\nwant %s", r.status, got, want)
	}
	for _, tt := range []struct {
		events []*runnerpb.Event
		want   string
	}{
		{[]*runnerpb.Event{schedtest.Content("a"), schedtest.Finished(runnerpb.Finished_REASON_LENGTH, nil)},
			`"status":"incomplete","error":null,"incomplete_details":{"reason":"max_output_tokens"},"model":"m","output":[{"id":"msg_X","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"a","annotations":[],"logprobs":[]}]}]`},
		{[]*runnerpb.Event{schedtest.Stop()},
			`"status":"completed","error":null,"incomplete_details":null,"model":"m","output":[{"id":"msg_X","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"","annotations":[],"logprobs":[]}]}]`},
	} {
		b.script(tt.events...)
		if r := b.post("/v1/responses", `{"model": "m", "input": "hi"}`); !strings.Contains(steady(r.body), tt.want) {
			t.Errorf("got %s\nwant %s", steady(r.body), tt.want)
		}
	}
}

func TestResponseStream(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(fullAnswer()...)
	began := responseText("in_progress", "null", "null", "", "null", "null")
	want := []string{
		`response.created ,"response":` + began,
		`response.in_progress ,"response":` + began,
		`response.output_item.added ,"output_index":0,"item":{"id":"rs_X","type":"reasoning","status":"in_progress","summary":[]}`,
		`response.reasoning_summary_part.added ,"output_index":0,"item_id":"rs_X","summary_index":0,"part":{"type":"summary_text","text":""}`,
		`response.reasoning_summary_text.delta ,"output_index":0,"item_id":"rs_X","summary_index":0,"delta":"h"`,
		`response.reasoning_summary_text.delta ,"output_index":0,"item_id":"rs_X","summary_index":0,"delta":"m"`,
		`response.reasoning_summary_text.done ,"output_index":0,"item_id":"rs_X","summary_index":0,"text":"hm"`,
		`response.reasoning_summary_part.done ,"output_index":0,"item_id":"rs_X","summary_index":0,"part":{"type":"summary_text","text":"hm"}`,
		`response.output_item.done ,"output_index":0,"item":` + outReasoning,
		`response.output_item.added ,"output_index":1,"item":{"id":"msg_X","type":"message","status":"in_progress","role":"assistant","content":[]}`,
		`response.content_part.added ,"output_index":1,"item_id":"msg_X","content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}`,
		`response.output_text.delta ,"output_index":1,"item_id":"msg_X","content_index":0,"delta":"<H>","logprobs":[` + outLogprobs + `]`,
		`response.output_text.done ,"output_index":1,"item_id":"msg_X","content_index":0,"text":"<H>","logprobs":[` + outLogprobs + `]`,
		`response.content_part.done ,"output_index":1,"item_id":"msg_X","content_index":0,"part":` + outPart,
		`response.output_item.done ,"output_index":1,"item":` + outMessage,
		`response.output_item.added ,"output_index":2,"item":{"id":"fc_X","type":"function_call","status":"in_progress","call_id":"call_X","name":"f","arguments":""}`,
		`response.function_call_arguments.delta ,"output_index":2,"item_id":"fc_X","delta":"{\"z\": \"1\", \"a\": 2}"`,
		`response.function_call_arguments.done ,"output_index":2,"item_id":"fc_X","name":"f","arguments":"{\"z\": \"1\", \"a\": 2}"`,
		`response.output_item.done ,"output_index":2,"item":` + outCallF,
		`response.output_item.added ,"output_index":3,"item":{"id":"fc_X","type":"function_call","status":"in_progress","call_id":"own","namespace":"ns","name":"g","arguments":""}`,
		`response.function_call_arguments.delta ,"output_index":3,"item_id":"fc_X","delta":"{}"`,
		`response.function_call_arguments.done ,"output_index":3,"item_id":"fc_X","name":"g","arguments":"{}"`,
		`response.output_item.done ,"output_index":3,"item":` + outCallG,
		`response.completed ,"response":` + responseText("completed", "null", "null", strings.Join([]string{outReasoning, outMessage, outCallF, outCallG}, ","), outUsage, "1"),
	}
	for i, w := range want {
		kind, rest, _ := strings.Cut(w, " ")
		want[i] = fmt.Sprintf(`%s {"type":"%s","sequence_number":%d%s}`, kind, kind, i, rest)
	}
	sameLines(t, sseOf(t, b.post("/v1/responses", `{"model": "m", "stream": true, "input": "hi", `+responsesTools+`}`)), want)

	b.script(schedtest.Content("a"), schedtest.Finished(runnerpb.Finished_REASON_LENGTH, nil))
	got := sseOf(t, b.post("/v1/responses", `{"model": "m", "stream": true, "input": "hi"}`))
	if last := got[len(got)-1]; !strings.HasPrefix(last, "response.incomplete ") {
		t.Errorf("last %s", last)
	}
}

// Items of one kind that come again are new ones.
func TestResponseItemsInterleave(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(schedtest.Content("a"), schedtest.Thinking("t"), schedtest.Content("b"), schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{{Name: "f"}}}), schedtest.Content("c"), schedtest.Stop())
	var got struct {
		Output []struct {
			Type    string
			Status  string
			Content []struct{ Text string }
		}
	}
	b.post("/v1/responses", `{"model": "m", "input": "hi"}`).json(t, &got)
	var kinds []string
	for _, o := range got.Output {
		text := o.Type
		for _, c := range o.Content {
			text += " " + c.Text
		}
		kinds = append(kinds, text+" "+o.Status)
	}
	if s := strings.Join(kinds, ", "); s != "message a completed, reasoning completed, message b completed, function_call completed, message c completed" {
		t.Errorf("got %s", s)
	}
}

func TestResponseTranslation(t *testing.T) {
	b := newBed(t)
	b.createFrom("m", visionModel(), nil)
	const (
		user   = `{"role": "user", "content": "hi"}`
		thinks = `"think": {"enabled": true}`
		chat   = `"chat": {"messages": [` + user + `], ` + thinks + `}`
		tools  = `"tools": [{"json": "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"d\",\"parameters\":{\"type\":\"object\",\"b\":1,\"a\":2}}}"}, {"json": "{\"type\":\"function\",\"function\":{\"name\":\"ns__g\"}}"}]`
	)
	input := func(items string) string { return `"input": [` + items + `]` }
	messages := func(m string) string { return `"chat": {"messages": [` + m + `], ` + thinks + `}` }
	for _, tt := range []struct{ name, fields, options, want string }{
		{"text", `"input": "hi"`, ``, chat},
		{"options", `"input": "hi", "temperature": 0.5, "top_p": 0.25, "max_output_tokens": 9, "truncation": "auto", "metadata": {"a": "b"}, "user": "u", "include": ["reasoning.encrypted_content"], "service_tier": "auto"`,
			`"temperature": 0.5, "top_p": 0.25, "num_predict": 9`, chat},
		{"not cut", `"input": "hi", "truncation": "disabled"`, ``, chat + `, "truncate": false`},
		{"logprobs", `"input": "hi", "top_logprobs": 3`, ``, chat + `, "logprobs": true, "top_logprobs": 3`},
		{"logprobs included", `"input": "hi", "include": ["message.output_text.logprobs"]`, ``, chat + `, "logprobs": true`},
		{"effort", `"input": "hi", "reasoning": {"effort": "high", "summary": "auto"}`, ``, `"chat": {"messages": [` + user + `], "think": {"enabled": true, "level": "high"}}`},
		{"schema", `"input": "hi", "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}`, ``, chat + `, "constraint": {"json_schema": "{\"type\": \"object\"}"}`},
		{"json", `"input": "hi", "text": {"format": {"type": "json_object"}, "verbosity": "low"}`, ``, chat + `, "constraint": {"json_object": true}`},
		{"tools", `"input": "hi", ` + responsesTools, ``, `"chat": {"messages": [` + user + `], ` + thinks + `, ` + tools + `}`},
		{"a tool", `"input": "hi", "parallel_tool_calls": false, "tool_choice": {"type": "function", "name": "f"}, ` + responsesTools, ``,
			`"chat": {"messages": [` + user + `], ` + thinks + `, ` + tools + `, "tool_choice": {"mode": "MODE_NAMED", "name": "f", "single": true}}`},
		{"system messages join", `"instructions": "I", ` + input(`{"role": "developer", "content": "D"}, {"role": "system", "content": [{"type": "input_text", "text": "S"}]}, `+user+`, {"type": "message", "role": "system", "content": "later"}`), ``,
			messages(`{"role": "system", "content": "I\n\nD\n\nS"}, ` + user + `, {"role": "system", "content": "later"}`)},
		{"a whole conversation", input(user + `, {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "not this"}], "encrypted_content": "t"},
			{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": "Well.", "annotations": []}]},
			{"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"z\": 1, \"a\": 2}"},
			{"type": "function_call", "call_id": "c2", "namespace": "ns", "name": "g", "arguments": "{}"},
			{"type": "function_call_output", "call_id": "c2", "output": "42"},
			{"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "43"}]},
			{"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}]},
			{"type": "function_call", "call_id": "c3", "name": "f", "arguments": ""},
			{"type": "function_call_output", "call_id": "c3", "output": ""},
			{"type": "reasoning", "id": "rs_3", "summary": [], "content": [{"type": "reasoning_text", "text": "alone"}]},` + user), ``,
			messages(user + `, {"role": "assistant", "thinking": "t", "content": "Well.", "tool_calls": [{"id": "c1", "name": "f", "arguments_json": "{\"z\":1,\"a\":2}"}, {"id": "c2", "name": "ns__g", "arguments_json": "{}", "index": 1}]},
			{"role": "tool", "tool_call_id": "c2", "tool_name": "ns__g", "content": "42"}, {"role": "tool", "tool_call_id": "c1", "tool_name": "f", "content": "43"},
			{"role": "assistant", "thinking": "a\nb", "tool_calls": [{"id": "c3", "name": "f", "arguments_json": "{}"}]}, {"role": "tool", "tool_call_id": "c3", "tool_name": "f"},
			{"role": "assistant", "thinking": "alone"}, ` + user)},
		{"images", input(`{"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "detail": "auto", "image_url": "data:image/jpeg;base64,/9j/"}]}`), ``,
			messages(`{"role": "user", "content": "x", "images": [{"data": "/9j/"}]}`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := b.post("/v1/responses", `{"model": "m", `+tt.fields+`}`); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			q := b.asked()
			q.TraceId = ""
			want := asksWith(t, tt.options, tt.want)
			if strings.HasSuffix(tt.want, `"truncate": false`) {
				want = strings.Replace(want, `"truncate": true, `, "", 1)
			}
			if got, want := canonical(t, q), canonicalText(t, want); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// A response repeats the request.
func TestResponseRepeatsRequest(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	const fields = `"instructions":"I","max_output_tokens":9,"max_tool_calls":3,"temperature":0.5,"top_p":0.25,"top_logprobs":2,"parallel_tool_calls":false,` +
		`"text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"}},"verbosity":"low"},"reasoning":{"effort":"low","summary":"auto"},"truncation":"disabled",` +
		`"metadata":{"a":"b"},"user":"u","safety_identifier":"s","prompt_cache_key":"k","tool_choice":"none"`
	var sent, got map[string]json.RawMessage
	if err := json.Unmarshal([]byte("{"+fields+"}"), &sent); err != nil {
		t.Fatal(err)
	}
	b.post("/v1/responses", `{"model": "m", "input": "hi", `+fields+`}`).json(t, &got)
	for name, value := range sent {
		if string(got[name]) != string(value) {
			t.Errorf("%s: got %s, want %s", name, got[name], value)
		}
	}
}
