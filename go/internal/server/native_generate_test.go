package server

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

func TestGenerateStream(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	r := b.post("/api/generate", `{"model": "M:Latest", "prompt": "hi"}`)
	if ct := r.header.Get("Content-Type"); r.status != 200 || ct != "application/x-ndjson" {
		t.Fatalf("%d %s %s", r.status, ct, r.body)
	}
	got := linesOf[api.GenerateResponse](t, r)
	// The empty delta in between is not sent.
	if len(got) != 3 || got[0].Response != "Hello" || got[1].Response != " <you>" || got[0].Done || !got[2].Done {
		t.Fatalf("got %s", r.body)
	}
	for _, g := range got {
		if g.Model != "M:Latest" || time.Since(g.CreatedAt) > time.Minute || g.CreatedAt.Location() != time.UTC {
			t.Errorf("model %q, created %v", g.Model, g.CreatedAt)
		}
	}
	last := got[2]
	if last.DoneReason != "stop" || last.PromptEvalCount != 5 || last.EvalCount != 3 ||
		last.PromptEvalDuration != 2*time.Millisecond || last.EvalDuration != 3*time.Millisecond ||
		last.LoadDuration <= 0 || last.TotalDuration < last.LoadDuration {
		t.Errorf("last: %+v", last)
	}
	first, _, _ := strings.Cut(r.body, "\n")
	if f := fields(first); f != "[model created_at response done]" {
		t.Errorf("fields of a chunk: %s", f)
	}
}

// Cached tokens are told at the end, also when there are none, and never before.
func TestCachedPromptTokens(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	type answer struct {
		Done   bool
		Cached *int `json:"prompt_eval_cached_count"`
		All    int  `json:"prompt_eval_count"`
	}
	for _, cached := range []uint32{0, 40} {
		b.script(schedtest.Content("a"), &runnerpb.Event{Kind: &runnerpb.Event_Finished{Finished: &runnerpb.Finished{
			Reason: runnerpb.Finished_REASON_STOP, Usage: &runnerpb.Usage{PromptTokens: 50, CachedPromptTokens: cached, CompletionTokens: 1}}}})
		for path, body := range map[string]string{
			"/api/generate": `{"model": "m", "prompt": "x"`, "/api/chat": `{"model": "m", "messages": [{"role": "user", "content": "x"}]`,
		} {
			for _, end := range []string{"}", `, "stream": false}`} {
				got := linesOf[answer](t, b.post(path, body+end))
				for _, a := range got {
					if a.Done != (a.Cached != nil) {
						t.Errorf("%s: %+v", path, a)
					}
				}
				if last := got[len(got)-1]; last.Cached == nil || *last.Cached != int(cached) || last.All != 50 {
					t.Errorf("%s: got %+v, want %d cached", path, last, cached)
				}
			}
		}
	}
}

// A stream that would be silent for too long tells the progress of the prefill, in chunks that clients take for empty.
func TestPrefillProgress(t *testing.T) {
	events := []*runnerpb.Event{schedtest.Prefill(0, 9000), schedtest.Prefill(4096, 9000), schedtest.Content("a"), schedtest.Stop()}
	for _, tt := range []struct {
		interval time.Duration
		lines    int
	}{{time.Nanosecond, 4}, {time.Hour, 2}} {
		b := newBed(t, func(p *Params, _ *sched.Params) { p.PrefillInterval = tt.interval })
		b.create("m", nil)
		b.script(events...)
		r := b.post("/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "x"}]}`)
		got := strings.Split(strings.TrimSpace(r.body), "\n")
		if len(got) != tt.lines {
			t.Fatalf("got %s", r.body)
		}
		for i, line := range got {
			if told := strings.Contains(line, `"prefill":`); told != (tt.lines == 4 && i < 2) {
				t.Errorf("line %d: %s", i, line)
			}
		}
		if tt.lines == 4 && !strings.Contains(got[1], `"message":{"role":"assistant","content":""},"done":false,"prefill":{"completed":4096,"total":9000}`) {
			t.Errorf("got %s", got[1])
		}
		if r := b.post("/api/generate", `{"model": "m", "prompt": "x", "stream": false}`); strings.Contains(r.body, "prefill\"") {
			t.Errorf("a whole answer: %s", r.body)
		}
	}
}

// Progress is told on the clock, also while the runner says nothing: one step of a slow machine may take a minute.
func TestPrefillProgressOnTheClock(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) {
		p.PrefillInterval, p.PingInterval = 50*time.Millisecond, 50*time.Millisecond
	})
	b.create("m", nil)
	streams := b.manual()
	for _, tt := range []struct{ path, body, want string }{
		{"/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "x"}]}`, `"prefill":{"completed":4096,"total":9000}`},
		{"/api/generate", `{"model": "m", "prompt": "x"}`, `"prefill":{"completed":4096,"total":9000}`},
		{"/v1/chat/completions", `{"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}]}`, ": prefill 4096/9000"},
		{"/v1/completions", `{"model": "m", "stream": true, "prompt": "x"}`, ": prefill 4096/9000"},
		{"/v1/responses", `{"model": "m", "stream": true, "input": "x"}`, ": prefill 4096/9000"},
		{"/v1/messages", `{"model": "m", "stream": true, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}`, "event: ping"},
	} {
		t.Run(tt.path, func(t *testing.T) {
			got := make(chan *http.Response, 1)
			go func() { got <- b.open(t.Context(), tt.path, tt.body) }()
			s := <-streams
			s.Send(schedtest.Prefill(4096, 9000))
			resp := <-got
			defer resp.Body.Close()
			in := bufio.NewReader(resp.Body)
			for told := 0; told < 2; {
				line, err := in.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(line, tt.want) {
					told++
				}
			}
			s.Send(schedtest.Content("an answer"))
			s.Send(schedtest.Stop())
			rest, err := io.ReadAll(in)
			if err != nil || !strings.Contains(string(rest), "an answer") {
				t.Errorf("got %q, %v", rest, err)
			}
		})
	}
}

func TestGenerateWhole(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(schedtest.Thinking("hm"), schedtest.Thinking("m"), schedtest.Content("a"), schedtest.Content("b"),
		&runnerpb.Event{Kind: &runnerpb.Event_Finished{Finished: &runnerpb.Finished{Reason: runnerpb.Finished_REASON_LENGTH, Context: []uint32{1, 2, 3}}}})
	r := b.post("/api/generate", `{"model": "m", "prompt": "hi", "stream": false}`)
	var got api.GenerateResponse
	r.json(t, &got)
	if got.Response != "ab" || got.Thinking != "hmm" || got.DoneReason != "length" || !got.Done || len(got.Context) != 3 {
		t.Errorf("got %s", r.body)
	}
	if ct := r.header.Get("Content-Type"); ct != "application/json; charset=utf-8" {
		t.Errorf("content type %q", ct)
	}
}

// What the runner is asked for each form of request.
func TestGenerateRequestForms(t *testing.T) {
	b := newBed(t)
	files := plainModel()
	files["tokenizer.json"] = []byte(`{"added_tokens": [{"id": 1, "content": "<|fim_prefix|>"}, {"id": 2, "content": "<|fim_suffix|>"}, {"id": 3, "content": "<|fim_middle|>"}], "model": {"type": "BPE"}}`)
	b.createFrom("plain", files, map[string]any{"system": "Be kind.", "messages": []api.Message{{Role: "user", Content: "q"}, {Role: "assistant", Content: "a"}}})
	b.create("thinks", nil)
	b.createFrom("templated", files, map[string]any{"template": "[{{ .System }}|{{ .Prompt }}|{{ .Response }}]", "system": "Sys"})
	for _, tt := range []struct{ name, body, want string }{
		{"messages of the model", `{"model": "plain", "prompt": "hi"}`,
			`{"chat": {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "hi"}]}, "return_context": true}`},
		{"system replaces the model's", `{"model": "plain", "prompt": "hi", "system": "Be rude."}`,
			`{"chat": {"messages": [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "hi"}]}, "return_context": true}`},
		{"context replaces the model's messages", `{"model": "plain", "prompt": "hi", "context": [7, 8]}`,
			`{"chat": {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}], "context": [7, 8]}, "return_context": true}`},
		{"raw", `{"model": "plain", "prompt": "<s>hi", "raw": true}`, `{"prompt": {"text": "<s>hi"}}`},
		{"suffix", `{"model": "plain", "prompt": "a", "suffix": "b"}`, `{"prompt": {"text": "a", "suffix": "b"}, "return_context": true}`},
		{"thinking is on by default", `{"model": "thinks", "prompt": "hi"}`,
			`{"chat": {"messages": [{"role": "user", "content": "hi"}], "think": {"enabled": true}}, "return_context": true}`},
		{"thinking null", `{"model": "thinks", "prompt": "hi", "think": null}`,
			`{"chat": {"messages": [{"role": "user", "content": "hi"}], "think": {"enabled": true}}, "return_context": true}`},
		{"thinking off", `{"model": "thinks", "prompt": "hi", "think": false}`,
			`{"chat": {"messages": [{"role": "user", "content": "hi"}], "think": {}}, "return_context": true}`},
		{"thinking level", `{"model": "thinks", "prompt": "hi", "think": "max"}`,
			`{"chat": {"messages": [{"role": "user", "content": "hi"}], "think": {"enabled": true, "level": "max"}}, "return_context": true}`},
		{"think false where nobody thinks", `{"model": "plain", "prompt": "hi", "think": false, "system": "s", "context": [1]}`,
			`{"chat": {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], "context": [1]}, "return_context": true}`},
		{"template of the model", `{"model": "templated", "prompt": "hi"}`, `{"prompt": {"text": "[Sys|hi|"}, "return_context": true}`},
		{"template of the request", `{"model": "plain", "prompt": "hi", "template": "<{{ .Prompt }}>{{ .Response }}", "context": [9]}`,
			`{"prompt": {"text": "<hi>", "context": [9]}, "return_context": true}`},
		{"suffix in a template", `{"model": "plain", "prompt": "a", "suffix": "b", "template": "{{ .Prompt }}^{{ .Suffix }}"}`,
			`{"prompt": {"text": "a^b"}, "return_context": true}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := b.post("/api/generate", tt.body)
			if r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			got := b.asked()
			if got.GetTraceId() != r.header.Get(requestIDHeader) {
				t.Errorf("trace id %q, header %q", got.GetTraceId(), r.header.Get(requestIDHeader))
			}
			if !got.GetTruncate() || !got.GetShift() {
				t.Error("truncate and shift are not on by default")
			}
			got.TraceId, got.Options, got.Truncate, got.Shift = "", nil, false, false
			if same, want := canonical(t, got), canonicalText(t, tt.want); same != want {
				t.Errorf("got  %s\nwant %s", same, want)
			}
		})
	}
	b.post("/api/generate", `{"model": "plain", "prompt": "hi", "truncate": false, "shift": false, "logprobs": true, "top_logprobs": 3}`)
	if got := b.asked(); got.Truncate || got.Shift || !got.Logprobs || got.TopLogprobs != 3 {
		t.Errorf("got %v", got)
	}
}

func canonical(t *testing.T, m *runnerpb.GenerateRequest) string {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return reorder(t, raw)
}

func canonicalText(t *testing.T, text string) string {
	t.Helper()
	var m runnerpb.GenerateRequest
	if err := protojson.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return canonical(t, &m)
}

// reorder removes the random spaces of protojson.
func reorder(t *testing.T, raw []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestFormats(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	for _, tt := range []struct{ format, want string }{
		{`"json"`, `{"json_object":true}`},
		{`{"type": "object"}`, `{"json_schema":"{\"type\": \"object\"}"}`},
		{`null`, ""}, {`""`, ""},
	} {
		if r := b.post("/api/generate", `{"model": "m", "prompt": "x", "format": `+tt.format+`}`); r.status != 200 {
			t.Fatalf("%s: %d %s", tt.format, r.status, r.body)
		}
		got := ""
		if c := b.asked().GetConstraint(); c != nil {
			raw, _ := protojson.MarshalOptions{UseProtoNames: true}.Marshal(c)
			got = reorder(t, raw)
		}
		if got != tt.want {
			t.Errorf("format %s: got %s, want %s", tt.format, got, tt.want)
		}
	}
	b.expect("/api/generate", `{"model": "m", "prompt": "x", "format": "xml"}`, 400, `invalid format: "\"xml\""; expected "json" or a valid JSON Schema object`)
	b.expect("/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "x"}], "format": [1]}`, 400, `invalid format: "[1]"; expected "json" or a valid JSON Schema object`)

	// Of a prompt that is rendered here, the runner is told where reasoning ends and the grammar starts.
	tmpl := map[string]any{"template": "{{ range .Messages }}{{ if .Thinking }}<r>{{ .Thinking }}</r>{{ end }}{{ .Content }}{{ end }}{{ .Think }}"}
	b.create("t", tmpl)
	b.create("named", map[string]any{"renderer": "qwen3-vl-thinking"})
	for _, tt := range []struct{ body, end, begin, want string }{
		{`"model": "t"`, "true", "<r>", "</r>"},
		{`"model": "t", "think": true`, "true", "<r>", "</r>"},
		{`"model": "t", "think": false`, "false", "", ""},
		{`"model": "named"`, "<think>\n", "", "</think>"},
	} {
		r := b.post("/api/generate", `{"prompt": "x", "format": "json", `+tt.body+`}`)
		got := b.asked().GetConstraint()
		if r.status != 200 || !strings.HasSuffix(b.asked().GetPrompt().GetText(), tt.end) || got.GetReasoning().GetBegin() != tt.begin || got.GetReasoning().GetEnd() != tt.want {
			t.Errorf("%s: %d, asked %v", tt.body, r.status, b.asked())
		}
	}
}

func TestLoadAndUnload(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	loaded := func() int { return len(b.sched.Loaded(t.Context())) }
	for _, tt := range []struct{ path, body, reason string }{
		{"/api/generate", `{"model": "m"`, "load"},
		{"/api/chat", `{"model": "m", "messages": []`, "load"},
	} {
		for _, stream := range []string{`}`, `, "stream": false}`, `, "prompt": "", "keep_alive": "10m"}`} {
			r := b.post(tt.path, tt.body+stream)
			var got struct {
				Model, DoneReason string
				Done              bool
				Reason            string `json:"done_reason"`
				Response          *string
				Message           *api.Message
			}
			r.json(t, &got)
			if !got.Done || got.Reason != "load" || got.Model != "m" || loaded() != 1 {
				t.Errorf("%s %s: %s, loaded %d", tt.path, tt.body+stream, r.body, loaded())
			}
			if strings.HasSuffix(tt.path, "chat") && (got.Message == nil || got.Message.Role != "assistant") {
				t.Errorf("chat load: %s", r.body)
			}
			if strings.HasSuffix(tt.path, "generate") && (got.Response == nil || *got.Response != "") {
				t.Errorf("generate load: %s", r.body)
			}
			for _, keep := range []string{"0", `"0s"`} {
				r = b.post(tt.path, tt.body+`, "keep_alive": `+keep+`}`)
				if r.status != 200 || !strings.Contains(r.body, `"done_reason":"unload"`) {
					t.Errorf("unload: %d %s", r.status, r.body)
				}
				until(t, "unload", func() bool { return loaded() == 0 })
			}
		}
	}
	if len(b.requests) != 0 {
		t.Errorf("loading asked the runner %d things", len(b.requests))
	}
	b.expect("/api/generate", `{"model": "nope", "keep_alive": 0}`, 404, "model 'nope' not found")
}

func TestGenerateFailures(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	const q = `{"model": "m", "prompt": "x"}`
	const quiet = `{"model": "m", "prompt": "x", "stream": false}`

	b.script(schedtest.Failed(codes.InvalidArgument, "the prompt is too long"))
	b.expect("/api/generate", q, 400, "the prompt is too long")
	b.expect("/api/generate", quiet, 400, "the prompt is too long")
	b.script(schedtest.Failed(codes.ResourceExhausted, "no memory for it"))
	b.expect("/api/generate", q, 503, "no memory for it")
	b.script(schedtest.Failed(codes.Unimplemented, "no such sampler"))
	b.expect("/api/generate", q, 400, "no such sampler")
	b.script(schedtest.Failed(codes.Unavailable, "model runner has unexpectedly stopped"))
	b.expect("/api/generate", q, 500, "model runner has unexpectedly stopped")

	// After the first line the status is out; the error is the last line.
	b.script(schedtest.Content("a"), schedtest.Failed(codes.Unavailable, "model runner has unexpectedly stopped"))
	r := b.post("/api/generate", q)
	lines := strings.Split(strings.TrimSpace(r.body), "\n")
	var e errorBody
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &e); err != nil || r.status != 200 || len(lines) != 2 || e.Error != "model runner has unexpectedly stopped" {
		t.Errorf("%d %s", r.status, r.body)
	}
	b.expect("/api/generate", quiet, 500, "model runner has unexpectedly stopped")
}
