package server

import (
	"bufio"
	"context"
	"encoding/json"
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

const (
	hiMessage       = `{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}`
	hiMessageStream = `{"model": "m", "max_tokens": 9, "stream": true, "messages": [{"role": "user", "content": "hi"}]}`
)

// richAnswer has everything that an answer can have.
func richAnswer() []*runnerpb.Event {
	return []*runnerpb.Event{
		schedtest.Prefill(0, 7), schedtest.Prefill(7, 7),
		schedtest.Thinking("h"), schedtest.Thinking("m"),
		schedtest.Delta(&runnerpb.Delta{Tokens: 1}),
		schedtest.Delta(&runnerpb.Delta{Content: "<H>", ToolCalls: []*runnerpb.ToolCall{
			{Name: "f", ArgumentsJson: `{"z": "1", "a": 2}`},
			{Id: "own", Name: "g", ArgumentsJson: `{}`, Index: 1},
		}}),
		schedtest.Content("bye"),
		schedtest.Finished(runnerpb.Finished_REASON_STOP, &runnerpb.Usage{PromptTokens: 7, CachedPromptTokens: 5, CompletionTokens: 6}),
	}
}

var randomID = regexp.MustCompile(`(msg|toolu)_[A-Z2-7]{26}`)

func TestMessagesWhole(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(richAnswer()...)
	r := b.post("/v1/messages", hiMessage)
	const want = `{"id":"msg_X","type":"message","role":"assistant","model":"m","content":[` +
		`{"type":"thinking","thinking":"hm","signature":"ollmlx"},{"type":"text","text":"\u003cH\u003e"},` +
		`{"type":"tool_use","id":"toolu_X","name":"f","input":{"z":"1","a":2}},{"type":"tool_use","id":"own","name":"g","input":{}},` +
		`{"type":"text","text":"bye"}],"stop_reason":"tool_use","stop_sequence":null,` +
		`"usage":{"input_tokens":2,"cache_creation_input_tokens":0,"cache_read_input_tokens":5,"output_tokens":6}}`
	if got := randomID.ReplaceAllString(r.body, "${1}_X"); r.status != 200 || got != want {
		t.Errorf("got  %d %s\nwant %s", r.status, got, want)
	}
	if r.header.Get("Request-Id") == "" || r.header.Get("Content-Type") != typeJSON {
		t.Errorf("header %v", r.header)
	}
	b.script(schedtest.Stop())
	if r := b.post("/v1/messages", hiMessage); !strings.Contains(r.body, `"content":[],"stop_reason":"end_turn"`) {
		t.Errorf("an empty answer: %s", r.body)
	}
}

func TestMessagesStream(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(richAnswer()...)
	r := b.post("/v1/messages", hiMessageStream)
	want := strings.Join([]string{
		`message_start {"type":"message_start","message":{"id":"msg_X","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}`,
		`content_block_start {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}`,
		`content_block_delta {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"h"}}`,
		`content_block_delta {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"m"}}`,
		`content_block_delta {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"ollmlx"}}`,
		`content_block_stop {"type":"content_block_stop","index":0}`,
		`content_block_start {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}`,
		`content_block_delta {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"<H>"}}`,
		`content_block_stop {"type":"content_block_stop","index":1}`,
		`content_block_start {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_X","name":"f","input":{}}}`,
		`content_block_delta {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"z\": \"1\", \"a\": 2}"}}`,
		`content_block_stop {"type":"content_block_stop","index":2}`,
		`content_block_start {"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"own","name":"g","input":{}}}`,
		`content_block_delta {"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{}"}}`,
		`content_block_stop {"type":"content_block_stop","index":3}`,
		`content_block_start {"type":"content_block_start","index":4,"content_block":{"type":"text","text":""}}`,
		`content_block_delta {"type":"content_block_delta","index":4,"delta":{"type":"text_delta","text":"bye"}}`,
		`content_block_stop {"type":"content_block_stop","index":4}`,
		`message_delta {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":2,"cache_creation_input_tokens":0,"cache_read_input_tokens":5,"output_tokens":6}}`,
		`message_stop {"type":"message_stop"}`,
	}, "\n")
	if got := randomID.ReplaceAllString(strings.Join(eventsOf(t, r), "\n"), "${1}_X"); r.status != 200 || got != want {
		t.Errorf("%d\ngot\n%s\nwant\n%s", r.status, got, want)
	}
	if r.header.Get("Request-Id") == "" || r.header.Get("Content-Type") != typeEventStream {
		t.Errorf("header %v", r.header)
	}
}

// eventsOf returns each event of a stream as "name data".
func eventsOf(t *testing.T, r reply) []string {
	t.Helper()
	var out []string
	for e := range strings.SplitSeq(strings.TrimSuffix(r.body, "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(e, "\ndata: ")
		if name, isEvent := strings.CutPrefix(name, "event: "); ok && isEvent {
			out = append(out, name+" "+data)
			continue
		}
		t.Fatalf("no event: %q", e)
	}
	return out
}

// Both forms end for the same reason.
func TestMessagesStopReason(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"parameters": map[string]any{"stop": []string{"<end>"}}})
	call := schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{{Name: "f", ArgumentsJson: `{}`}}})
	stop := func(s string) *runnerpb.Event {
		e := schedtest.Finished(runnerpb.Finished_REASON_STOP_SEQUENCE, &runnerpb.Usage{})
		e.GetFinished().StopSequence = s
		return e
	}
	length := schedtest.Finished(runnerpb.Finished_REASON_LENGTH, &runnerpb.Usage{})
	for _, tt := range []struct {
		name   string
		events []*runnerpb.Event
		want   string
	}{
		{"the model's end", []*runnerpb.Event{schedtest.Stop()}, `"stop_reason":"end_turn","stop_sequence":null`},
		{"a stop sequence", []*runnerpb.Event{stop("###")}, `"stop_reason":"stop_sequence","stop_sequence":"###"`},
		{"a stop string of the model", []*runnerpb.Event{stop("<end>")}, `"stop_reason":"end_turn","stop_sequence":null`},
		{"a call", []*runnerpb.Event{call, schedtest.Stop()}, `"stop_reason":"tool_use","stop_sequence":null`},
		{"a call and the model's stop string", []*runnerpb.Event{call, stop("<end>")}, `"stop_reason":"tool_use","stop_sequence":null`},
		{"a call and a stop sequence", []*runnerpb.Event{call, stop("###")}, `"stop_reason":"stop_sequence","stop_sequence":"###"`},
		{"the bound", []*runnerpb.Event{schedtest.Content("x"), length}, `"stop_reason":"max_tokens","stop_sequence":null`},
		{"the bound behind a call", []*runnerpb.Event{call, length}, `"stop_reason":"max_tokens","stop_sequence":null`},
	} {
		b.script(tt.events...)
		for _, stream := range []string{"true", "false"} {
			r := b.post("/v1/messages", `{"model": "m", "max_tokens": 9, "stop_sequences": ["###"], "stream": `+stream+`, "messages": [{"role": "user", "content": "hi"}]}`)
			if !strings.Contains(r.body, tt.want) {
				t.Errorf("%s, stream %s: %s", tt.name, stream, r.body)
			}
		}
	}
}

// Thinking that the client does not want to see.
func TestMessagesThinkingOmitted(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(schedtest.Thinking("secret"), schedtest.Thinking("s"), schedtest.Content("Hi"), schedtest.Stop())
	for _, stream := range []string{"true", "false"} {
		r := b.post("/v1/messages", `{"model": "m", "max_tokens": 9, "thinking": {"type": "adaptive", "display": "omitted"}, "stream": `+stream+`, "messages": [{"role": "user", "content": "hi"}]}`)
		if strings.Contains(r.body, "secret") || strings.Count(r.body, `"type":"thinking"`) != 1 || !strings.Contains(r.body, `"signature":"ollmlx"`) || !strings.Contains(r.body, "Hi") {
			t.Errorf("stream %s: %s", stream, r.body)
		}
	}
}

// Of an answer that may have one call, the first counts, and the rest of the answer is not lost.
func TestMessagesSingleCall(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	call := func(name string) *runnerpb.ToolCall { return &runnerpb.ToolCall{Name: name, ArgumentsJson: `{}`} }
	for choice, want := range map[string]string{
		`{"type": "auto"}`: "a b rest c",
		`{"type": "auto", "disable_parallel_tool_use": true}`: "a rest",
	} {
		b.script(schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{call("a"), call("b")}}), schedtest.Content("rest"),
			schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{call("c")}}), schedtest.Stop())
		var got struct {
			Content []struct{ Name, Text string }
			Usage   anthropicUsage
		}
		b.post("/v1/messages", `{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "tools": [`+weather+`], "tool_choice": `+choice+`}`).json(t, &got)
		var parts []string
		for _, c := range got.Content {
			parts = append(parts, c.Name+c.Text)
		}
		if strings.Join(parts, " ") != want || got.Usage.OutputTokens != 3 {
			t.Errorf("%s: got %v", choice, got)
		}
	}
}

// A call whose arguments are no JSON object cannot be sent as a call; its text must not vanish.
func TestMessagesMalformedCallIsText(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	for _, args := range []string{`{"x": `, `[1]`, ``} {
		b.script(schedtest.Content("a"), schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{{Name: "f", ArgumentsJson: args}}}), schedtest.Stop())
		want, _ := json.Marshal("af" + args)
		if r := b.post("/v1/messages", hiMessage); !strings.Contains(r.body, `"content":[{"type":"text","text":`+string(want)+`}],"stop_reason":"end_turn"`) {
			t.Errorf("%q: %s", args, r.body)
		}
	}
}

func TestCountTokens(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.create("templated", map[string]any{"template": "{{ range .Messages }}<{{ .Content }}>{{ end }}"})
	var asked *runnerpb.TokenizeRequest
	onStart := b.starter.OnStart
	b.starter.OnStart = func(r *schedtest.Runner) {
		onStart(r)
		r.OnTokenize = func(q *runnerpb.TokenizeRequest) (*runnerpb.TokenizeResponse, error) {
			asked = q
			return &runnerpb.TokenizeResponse{Tokens: []uint32{1, 2, 3}}, nil
		}
	}
	r := b.post("/v1/messages/count_tokens", `{"model": "m", "system": "S", "messages": [{"role": "user", "content": "hi"}], "tools": [`+weather+`], "thinking": {"type": "adaptive"}}`)
	if c := asked.GetChat(); r.status != 200 || r.body != `{"input_tokens":3}` || len(c.GetMessages()) != 2 || len(c.GetTools()) != 1 || !c.GetThink().GetEnabled() {
		t.Errorf("%d %s, asked %v", r.status, r.body, asked)
	}
	b.post("/v1/messages/count_tokens", `{"model": "templated", "messages": [{"role": "user", "content": "hi"}]}`)
	if p := asked.GetPrompt().GetText(); p != "<hi>" {
		t.Errorf("asked %v", asked)
	}
	if len(b.requests) != 0 {
		t.Error("counting generated")
	}
}

func TestCountTokensFails(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	checkAnthropicError(t, "count", b.post("/v1/messages/count_tokens", hiMessage), 400, "invalid_request_error", "Tokenize is not implemented by this fake")
}

// A request that fails has the status of its error until the first event is out, and an event of it afterwards.
func TestMessagesFailures(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	for _, tt := range []struct {
		name   string
		events []*runnerpb.Event
		status int
		kind   string
	}{
		{"refused", []*runnerpb.Event{schedtest.Failed(codes.InvalidArgument, "oh")}, 400, "invalid_request_error"},
		{"no room", []*runnerpb.Event{schedtest.Failed(codes.ResourceExhausted, "oh")}, 503, "overloaded_error"},
		{"fault", []*runnerpb.Event{schedtest.Failed(codes.Internal, "oh")}, 500, "api_error"},
		{"in prefill", []*runnerpb.Event{schedtest.Prefill(0, 5), schedtest.Failed(codes.Internal, "oh")}, 500, "api_error"},
		{"in the answer", []*runnerpb.Event{schedtest.Prefill(0, 5), schedtest.Content("a"), schedtest.Failed(codes.Unavailable, "oh")}, 500, "api_error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.script(tt.events...)
			checkAnthropicError(t, "whole", b.post("/v1/messages", hiMessage), tt.status, tt.kind, "oh")
			r := b.post("/v1/messages", hiMessageStream)
			if len(tt.events) == 1 {
				checkAnthropicError(t, "stream", r, tt.status, tt.kind, "oh")
				return
			}
			events := eventsOf(t, r)
			want := `error {"type":"error","error":{"type":"` + tt.kind + `","message":"oh"},"request_id":"` + r.header.Get("Request-Id") + `"}`
			if got := events[len(events)-1]; r.status != 200 || got != want {
				t.Errorf("%d, last event %s\nwant %s", r.status, got, want)
			}
		})
	}
}

// A runner that cannot be started, and one that is gone in the middle.
func TestMessagesRunnerFaults(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	streams := b.manual()
	done := make(chan reply)
	go func() { done <- b.post("/v1/messages", hiMessageStream) }()
	s := <-streams
	s.Send(schedtest.Content("a"))
	s.Break(errdefs.New(errdefs.ErrUnavailable, "model runner has unexpectedly stopped"))
	r := <-done
	if events := eventsOf(t, r); !strings.Contains(events[len(events)-1], "unexpectedly stopped") || strings.Contains(r.body, "message_stop") {
		t.Errorf("%s", r.body)
	}
	b.mu.Lock()
	b.answer = func(context.Context, *runnerpb.GenerateRequest) (sched.Stream, error) {
		return nil, errdefs.New(errdefs.ErrBusy, "full")
	}
	b.mu.Unlock()
	for _, body := range []string{hiMessage, hiMessageStream} {
		checkAnthropicError(t, body, b.post("/v1/messages", body), 503, "overloaded_error", "full")
	}
}

// While a long prompt is computed the stream gives signs of life, and they do not mix with what it says.
func TestMessagesPing(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) { p.PingInterval = 5 * time.Millisecond })
	b.create("m", nil)
	streams := b.manual()
	got := make(chan *http.Response)
	go func() { got <- b.open(context.Background(), "/v1/messages", hiMessageStream) }()
	s := <-streams
	// The first ping settles the status before the runner has said anything.
	resp := <-got
	in := bufio.NewReader(resp.Body)
	event := func() string {
		t.Helper()
		var out string
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if line == "\n" {
				return out
			}
			out += line
		}
	}
	const ping = "event: ping\ndata: {\"type\":\"ping\"}\n"
	if e := event(); resp.StatusCode != 200 || e != ping {
		t.Fatalf("%d %q", resp.StatusCode, e)
	}
	s.Send(schedtest.Prefill(0, 5))
	next := func() string {
		e := event()
		for e == ping {
			e = event()
		}
		return e
	}
	if e := next(); !strings.HasPrefix(e, "event: message_start\n") {
		t.Fatalf("%q", e)
	}
	if e := event(); e != ping {
		t.Fatalf("%q", e)
	}
	s.Send(schedtest.Stop())
	if e := next(); !strings.HasPrefix(e, "event: message_delta\n") {
		t.Fatalf("%q", e)
	}
	if e := event(); !strings.HasPrefix(e, "event: message_stop\n") {
		t.Fatalf("%q", e)
	}
}

// A client that leaves ends its request in the runner.
func TestMessagesDisconnect(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	streams := b.manual()
	for _, body := range []string{hiMessage, hiMessageStream} {
		ctx, leave := context.WithCancel(context.Background())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			req, err := http.NewRequestWithContext(ctx, "POST", b.http.URL+"/v1/messages", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := b.http.Client().Do(req); err == nil {
				_, _ = readAll(resp)
			}
		}()
		s := <-streams
		s.Send(schedtest.Content("a"))
		leave()
		<-gone
		select {
		case <-s.Closed():
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: the request goes on", body)
		}
	}
}

// A fault of ours is told in the dialect too.
func TestMessagesPanic(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.mu.Lock()
	b.answer = func(context.Context, *runnerpb.GenerateRequest) (sched.Stream, error) { panic("oh") }
	b.mu.Unlock()
	checkAnthropicError(t, "panic", b.post("/v1/messages", hiMessage), 500, "api_error", "internal error; the server's log has the details")
}
