package server

import (
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

const usage76 = `"usage":{"prompt_tokens":7,"completion_tokens":6,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":3}}`

func TestCompletion(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.script(fullAnswer()...)
	r := b.post("/v1/completions", `{"model": "m", "prompt": ["hi"], "logprobs": 2}`)
	const want = `{"id":"cmpl-X","object":"text_completion","created":1,"model":"m","system_fingerprint":"fp_ollmlx","choices":[{"text":"\u003cH\u003e","index":0,"reasoning":"hm",` +
		`"logprobs":{"tokens":["\u003c","H\u003e"],"token_logprobs":[-0.25,-0.5],"top_logprobs":[{"\u003c":-0.25,"é":-1},{}],"text_offset":[0,1]},"finish_reason":"stop"}],` + usage76 + `}`
	if got := steady(r.body); r.status != 200 || got != want {
		t.Errorf("got  %d %s\nwant %s", r.status, got, want)
	}
	if q := b.asked(); !q.Logprobs || q.TopLogprobs != 2 {
		t.Errorf("asked %v", q)
	}
	chunk := func(choice string) string {
		return `{"id":"cmpl-X","object":"text_completion","created":1,"model":"m","system_fingerprint":"fp_ollmlx","choices":[` + choice + `]}`
	}
	b.script(fullAnswer()...)
	sameLines(t, sseOf(t, b.post("/v1/completions", `{"model": "m", "prompt": "hi", "stream": true, "logprobs": 0, "stream_options": {"include_usage": true}}`)), []string{
		chunk(`{"text":"","index":0,"reasoning":"h","logprobs":null,"finish_reason":null}`),
		chunk(`{"text":"","index":0,"reasoning":"m","logprobs":null,"finish_reason":null}`),
		chunk(`{"text":"","index":0,"logprobs":{"tokens":["<"],"token_logprobs":[-0.25],"top_logprobs":[{"<":-0.25,"é":-1}],"text_offset":[0]},"finish_reason":null}`),
		chunk(`{"text":"<H>","index":0,"logprobs":{"tokens":["H>"],"token_logprobs":[-0.5],"top_logprobs":[{}],"text_offset":[1]},"finish_reason":null}`),
		chunk(`{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}`),
		strings.TrimSuffix(chunk(""), "}") + "," + usage76 + "}",
		"[DONE]",
	})
	b.script(schedtest.Finished(runnerpb.Finished_REASON_LENGTH, nil))
	sameLines(t, sseOf(t, b.post("/v1/completions", `{"model": "m", "prompt": "hi", "stream": true}`)), []string{
		chunk(`{"text":"","index":0,"logprobs":null,"finish_reason":"length"}`), "[DONE]",
	})
}

func TestCompletionTranslation(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"system": "Be kind.", "parameters": map[string]any{"temperature": 0.1}})
	b.create("inserts", map[string]any{"template": `{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ else }}{{ .Prompt }}{{ end }}`})
	for _, tt := range []struct{ name, body, options, want string }{
		{"a turn of a chat, without thinking", `{"model": "m", "prompt": "hi"}`, ``,
			`"chat": {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}], "think": {}}`},
		{"sampling", `{"model": "m", "prompt": "hi", "max_tokens": 3, "temperature": 0, "seed": 7, "stop": ["a", "b"], "logit_bias": {"1": -5}, "logprobs": 0, "presence_penalty": 1}`,
			`"num_predict": 3, "temperature": 0, "seed": "7", "stop": ["a", "b"], "logit_bias": {"1": -5}, "presence_penalty": 1`,
			`"chat": {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}], "think": {}}, "logprobs": true`},
		{"suffix", `{"model": "inserts", "prompt": "a", "suffix": "b"}`, ``, `"prompt": {"text": "<P>a<S>b<M>"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := b.post("/v1/completions", tt.body); r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			q := b.asked()
			q.TraceId = ""
			if got, want := canonical(t, q), canonicalText(t, asksWith(t, tt.options, tt.want)); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestOpenAIEmbeddings(t *testing.T) {
	b := newBed(t)
	b.createFrom("e", embeddingModel(), nil)
	var asked *runnerpb.EmbedRequest
	b.starter.OnStart = func(r *schedtest.Runner) {
		r.OnEmbed = func(q *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
			asked = q
			out := &runnerpb.EmbedResponse{PromptTokens: 7}
			for range q.GetInputs() {
				out.Embeddings = append(out.Embeddings, &runnerpb.Embedding{Values: []float32{0.5, -1}})
			}
			return out, nil
		}
	}
	const tail = `],"model":"E","usage":{"prompt_tokens":7,"total_tokens":7}}`
	for _, tt := range []struct{ fields, want string }{
		{`"input": "x"`, `{"object":"list","data":[{"object":"embedding","embedding":[0.5,-1],"index":0}` + tail},
		{`"input": ["x", "y"], "encoding_format": "float", "user": "u"`, `{"object":"list","data":[{"object":"embedding","embedding":[0.5,-1],"index":0},{"object":"embedding","embedding":[0.5,-1],"index":1}` + tail},
		{`"input": "x", "encoding_format": "base64"`, `{"object":"list","data":[{"object":"embedding","embedding":"AAAAPwAAgL8=","index":0}` + tail},
	} {
		if r := b.post("/v1/embeddings", `{"model": "E", `+tt.fields+`}`); r.status != 200 || r.body != tt.want {
			t.Errorf("%s:\n got %d %s\nwant %s", tt.fields, r.status, r.body, tt.want)
		}
	}
	b.post("/v1/embeddings", `{"model": "e", "input": ["a", "b"], "dimensions": 2, "options": {"num_ctx": 64}}`)
	if strings.Join(asked.Inputs, "") != "ab" || asked.Dimensions != 2 || asked.NumCtx != 64 || !asked.Truncate || !asked.Normalize {
		t.Errorf("asked %v", asked)
	}
	// A model that cannot embed says so itself.
	b.create("m", nil)
	b.starter.OnStart = nil
	if r := b.post("/v1/embeddings", `{"model": "m", "input": "x"}`); r.status != 400 || !strings.Contains(r.body, `"message":"Embed is not implemented by this fake"`) {
		t.Errorf("got %d %s", r.status, r.body)
	}
}

func TestOpenAIModels(t *testing.T) {
	b := newBed(t)
	if r := b.do("GET", "/v1/models", ""); r.body != `{"object":"list","data":[]}` {
		t.Errorf("without models: %s", r.body)
	}
	b.create("MLX-community/Some-Model", nil)
	if r := b.do("GET", "/v1/models", ""); steady(r.body) != `{"object":"list","data":[{"id":"mlx-community/Some-Model:latest","object":"model","created":1,"owned_by":"mlx-community"}]}` {
		t.Errorf("got %s", r.body)
	}
	for path, id := range map[string]string{
		"mlx-community/some-model":              "mlx-community/some-model",
		"mlx-community%2FSome-Model:latest":     "mlx-community/Some-Model:latest",
		"hf.co/MLX-community/Some-Model:latest": "hf.co/MLX-community/Some-Model:latest",
	} {
		if r := b.do("GET", "/v1/models/"+path, ""); r.status != 200 || steady(r.body) != `{"id":"`+id+`","object":"model","created":1,"owned_by":"mlx-community"}` {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
	}
	if r := b.do("HEAD", "/v1/models", ""); r.status != 200 || r.body != "" {
		t.Errorf("HEAD: %d %q", r.status, r.body)
	}
}
