package server

import (
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// The status and the exact text of every error that a client may match.
func TestErrors(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.createFrom("plain", plainModel(), nil)
	b.createFrom("Org/Emb", embeddingModel(), nil)
	const png = `"iVBORw0KGgo="`
	zeros := strings.Repeat("0", 64)
	for _, tt := range []struct {
		path, body string
		status     int
		text       string
	}{
		// Bodies.
		{"/api/generate", ``, 400, "missing request body"},
		{"/api/chat", ``, 400, "missing request body"},
		{"/api/show", "  \n", 400, "missing request body"},
		{"/api/embed", ``, 400, "missing request body"},
		{"/api/embeddings", ``, 400, "missing request body"},
		{"/api/create", ``, 400, "missing request body"},
		{"/api/pull", ``, 400, "missing request body"},
		{"/api/copy", ``, 400, "missing request body"},
		{"DELETE /api/delete", ``, 400, "missing request body"},
		{"/api/chat", `{"model": `, 400, "unexpected EOF"},
		{"/api/chat", `nonsense`, 400, "invalid character 'o' in literal null (expecting 'u')"},
		{"/api/generate", `{"model": 5}`, 400, "json: cannot unmarshal number into Go struct field generateRequest.GenerateRequest.model of type string"},
		{"/api/generate", `{"model": "m", "prompt": "", "unknown": 1} trailing`, 200, ""},

		// Unknown, empty and invalid names.
		{"/api/generate", `{"model": "Nope:7b"}`, 404, "model 'Nope:7b' not found"},
		{"/api/chat", `{"model": "nope"}`, 404, "model 'nope' not found"},
		{"/api/show", `{"model": "nope"}`, 404, "model 'nope' not found"},
		{"/api/show", `{"name": "nope"}`, 404, "model 'nope' not found"},
		{"DELETE /api/delete", `{"model": "nope"}`, 404, "model 'nope' not found"},
		{"/api/embed", `{"model": "nope", "input": "x"}`, 404, `model "nope" not found, try pulling it first`},
		{"/api/embeddings", `{"model": "nope", "prompt": "x"}`, 404, `model "nope" not found, try pulling it first`},
		{"/api/copy", `{"source": "nope", "destination": "x"}`, 404, `model "nope" not found`},
		{"/api/generate", `{}`, 404, "model '' not found"},
		{"/api/embed", `{"input": "x"}`, 404, "model '' not found"},
		{"/api/chat", `{}`, 400, "model is required"},
		{"/api/embeddings", `{}`, 400, "model is required"},
		{"/api/show", `{}`, 400, "model is required"},
		{"/api/generate", `{"model": "a b"}`, 400, "invalid model name"},
		{"/api/chat", `{"model": "../../etc/passwd"}`, 400, "invalid model name"},
		{"/api/show", `{"model": "a/b/c/d/e"}`, 400, "invalid model name"},
		{"/api/pull", `{"model": "a b"}`, 400, "invalid model name"},
		{"/api/create", `{"model": "a b", "from": "m"}`, 400, "invalid model name"},
		{"DELETE /api/delete", `{"model": "a b"}`, 400, `name "a b" is invalid`},
		{"DELETE /api/delete", `{}`, 400, `name "" is invalid`},
		{"/api/copy", `{"source": "a b", "destination": "x"}`, 400, `source "a b" is invalid`},
		{"/api/copy", `{"source": "m", "destination": "a b"}`, 400, `destination "a b" is invalid`},

		{"/api/generate", `{"model": "m:local:cloud"}`, 400, "use either :local or :cloud, not both"},
		{"/api/chat", `{"model": "m:cloud"}`, 404, "model 'm:cloud' not found"},
		{"/api/push", `{"model": "nope"}`, 400, "this server does not push models"},

		// Capabilities.
		{"/api/generate", `{"model": "Org/Emb", "prompt": "x"}`, 400, `"Org/Emb" does not support generate`},
		{"/api/chat", `{"model": "org/emb", "messages": [{"role": "user", "content": "x"}]}`, 400, `"org/emb" does not support chat`},
		{"/api/generate", `{"model": "plain", "prompt": "x", "think": true}`, 400, `"plain" does not support thinking`},
		{"/api/chat", `{"model": "Plain", "think": "high", "messages": [{"role": "user", "content": "x"}]}`, 400, `"Plain" does not support thinking`},
		{"/api/chat", `{"model": "plain", "messages": [{"role": "user", "content": "x"}], "tools": [` + oneTool + `]}`, 400, `registry.ollama.ai/library/plain:latest does not support tools`},
		{"/api/generate", `{"model": "plain", "prompt": "x", "suffix": "y"}`, 400, `registry.ollama.ai/library/plain:latest does not support insert`},
		{"/api/generate", `{"model": "plain", "prompt": "x", "suffix": "y", "images": [` + png + `]}`, 400, "registry.ollama.ai/library/plain:latest does not support insert\nvision"},
		{"/api/chat", `{"model": "plain", "messages": [{"role": "user", "content": "x", "images": [` + png + `]}]}`, 400, "registry.ollama.ai/library/plain:latest does not support vision"},
		{"/api/generate", `{"model": "m", "prompt": "x", "width": 5}`, 400, "width, height and steps are for image generation, which is not supported"},

		// Fields.
		{"/api/generate", `{"model": "nope", "top_logprobs": 21}`, 400, "top_logprobs must be between 0 and 20"},
		{"/api/chat", `{"model": "nope", "top_logprobs": -1}`, 400, "top_logprobs must be between 0 and 20"},
		{"/api/chat", `{"model": "m", "think": "hard"}`, 400, `invalid think value: "hard" (must be "high", "medium", "low", "max", true, or false)`},
		{"/api/generate", `{"model": "m", "think": 3}`, 400, `think must be a boolean or string ("high", "medium", "low", "max", true, or false)`},
		{"/api/generate", `{"model": "m", "prompt": "x", "raw": true, "system": "s"}`, 400, "raw mode does not support template, system, or context"},
		{"/api/generate", `{"model": "m", "prompt": "x", "raw": true, "template": "s"}`, 400, "raw mode does not support template, system, or context"},
		{"/api/generate", `{"model": "m", "prompt": "x", "raw": true, "context": [1]}`, 400, "raw mode does not support template, system, or context"},
		{"/api/generate", `{"model": "m", "prompt": "x", "context": [-1]}`, 400, "context: -1 is not a token id"},
		{"/api/generate", `{"model": "m", "prompt": "x", "template": "{{ .Prompt"}`, 400, "template error: template: :1: unclosed action"},
		{"/api/generate", `{"model": "m", "keep_alive": true}`, 400, "Unsupported type: 'bool'"},
		{"/api/generate", `{"model": "m", "keep_alive": "soon"}`, 400, `time: invalid duration "soon"`},
		{"/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {}}]}`, 400, "tools[0]: function.name is missing"},
		{"/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": 5}]}`, 400, "tools[0]: json: cannot unmarshal number into Go struct field Tool.type of type string"},
		{"/api/embed", `{"model": "Org/Emb", "input": 5}`, 400, "invalid input type"},
		{"/api/embed", `{"model": "Org/Emb", "input": ["a", 5]}`, 400, "invalid input type"},
		{"/api/embed", `{"model": "Org/Emb", "input": ["a", null]}`, 400, "invalid input type"},
		{"/api/embed", `{"model": "Org/Emb", "input": "a", "dimensions": -1}`, 400, "dimensions must not be negative, got -1"},

		// Options.
		{"/api/generate", `{"model": "m", "prompt": "x", "options": {"num_ctx": "big"}}`, 500, `option "num_ctx" must be of type integer`},
		{"/api/chat", `{"model": "m", "messages": [{"role": "user", "content": "x"}], "options": {"temperature": "hot"}}`, 500, `option "temperature" must be of type float32`},
		{"/api/generate", `{"model": "m", "prompt": "x", "options": {"use_mmap": 5}}`, 500, `option "use_mmap" must be of type boolean`},
		{"/api/generate", `{"model": "m", "prompt": "x", "options": {"stop": "x"}}`, 500, `option "stop" must be of type array`},
		{"/api/generate", `{"model": "m", "prompt": "x", "options": {"stop": [1]}}`, 500, `option "stop" must be of an array of strings`},
		{"/api/embed", `{"model": "Org/Emb", "input": "x", "options": {"num_ctx": "big"}}`, 500, `option "num_ctx" must be of type integer`},
		{"/api/generate", `{"model": "m", "prompt": "x", "options": {"temperature": -1}}`, 400, `option "temperature" must be at least 0, got -1`},
		{"/api/generate", `{"model": "m", "prompt": "x", "options": {"top_p": 1.5}}`, 400, `option "top_p" must be between 0 and 1, got 1.5`},
		{"/api/generate", `{"model": "m", "prompt": "x", "options": {"repeat_last_n": -2}}`, 400, `option "repeat_last_n" must be -1 (the whole context), 0 (off) or more, got -2`},
		{"/api/generate", `{"model": "m", "prompt": "x", "options": {"nonsense": 1, "num_gpu": 5}}`, 200, ""},

		// Create and blobs.
		{"/api/create", `{"model": "x"}`, 400, "neither 'from' or 'files' was specified"},
		{"/api/create", `{"model": "x", "files": {}}`, 400, "no files provided to convert"},
		{"/api/create", `{"model": "x", "from": "nope"}`, 404, ""},
		{"/api/create", `{"model": "x", "from": "m", "draft_files": {"a": "b"}}`, 400, "draft_files and draft_quantize (DRAFT in a Modelfile) are not supported: a model cannot be given a draft here; leave them out"},
		{"/api/create", `{"model": "x", "files": {"../x": "sha256:` + zeros + `"}}`, 400, "file path must be relative"},
		{"/api/create", `{"model": "x", "files": {"config.json": ""}}`, 400, "invalid digest format"},
		{"/api/blobs/sha256:" + zeros, "content", 400, fmt.Sprintf("digest mismatch, expected \"sha256:%s\", got \"sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73\"", zeros)},
		{"HEAD /api/blobs/sha256:" + zeros, "", 404, ""},
		{"HEAD /api/blobs/sha256:12", "", 400, ""},
		{"/api/blobs/sha256:12", "content", 400, "invalid digest format"},
	} {
		method, path, ok := strings.Cut(tt.path, " ")
		if !ok {
			method, path = "POST", tt.path
		}
		r := b.do(method, path, tt.body)
		if r.status != tt.status || (tt.text != "" && anyGo(r.err()) != anyGo(tt.text)) {
			t.Errorf("%s %s %s:\n got %d %s\nwant %d %s", method, path, tt.body, r.status, r.body, tt.status, tt.text)
		}
		if ct := r.header.Get("Content-Type"); tt.status >= 400 && ct != typeJSON {
			t.Errorf("%s %s: content type %q", method, path, ct)
		}
	}
	// Every route knows its methods and no other.
	for _, row := range docTables(t, compatibilityDoc)["Routes"] {
		method, path, _ := strings.Cut(row.name, " ")
		if row.cells[0] == "not offered" || strings.Contains(path, "{") || strings.Contains(path, "responses/") {
			continue
		}
		wrong := "PUT"
		if r := b.do(wrong, path, ""); r.status != 405 || strings.HasPrefix(r.body, "{") {
			t.Errorf("%s instead of %s %s: %d %s", wrong, method, path, r.status, r.body)
		}
	}
	if r := b.do("GET", "/nothing", ""); r.status != 404 {
		t.Errorf("unknown path: %d", r.status)
	}
}

// A model of Ollama's cloud is a name without weights; it is listed and shown, and the cloud is not asked.
func TestModelsThatRunElsewhere(t *testing.T) {
	b := newBed(t)
	config := `{"model_format":"","remote_host":"https://ollama.com:443","remote_model":"big","capabilities":["completion","tools"]}`
	sum := sha256.Sum256([]byte(config))
	digest := fmt.Sprintf("sha256:%x", sum)
	b.post("/api/blobs/"+digest, config)
	dir := filepath.Join(b.dir, "manifests", "registry.ollama.ai", "library", "big")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":%q,"size":%d},"layers":[]}`, digest, len(config))
	if err := os.WriteFile(filepath.Join(dir, "cloud"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := b.post("/api/show", `{"model": "big:cloud"}`); r.status != 200 || !strings.Contains(r.body, `"remote_host":"https://ollama.com:443"`) {
		t.Errorf("show: %d %s", r.status, r.body)
	}
	const want = "ollama cloud is disabled: big:cloud runs at https://ollama.com:443, which this server does not ask"
	for path, body := range map[string]string{
		"/api/generate": `{"model": "big:cloud", "prompt": "x"}`, "/api/chat": `{"model": "big:cloud", "messages": [{"role": "user", "content": "x"}]}`,
		"/api/embed": `{"model": "big:cloud", "input": "x"}`,
	} {
		b.expect(path, body, 403, want)
	}
	if r := b.post("/v1/chat/completions", `{"model": "big:cloud", "messages": [{"role": "user", "content": "x"}]}`); r.status != 403 || !strings.Contains(r.body, want) {
		t.Errorf("got %d %s", r.status, r.body)
	}
}

// Request over model over default, and what each option becomes.
func TestOptions(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"parameters": map[string]any{"temperature": 0.1, "top_k": 7, "stop": []string{"A", "B"}, "num_ctx": 1000}})
	b.create("bare", nil)
	ask := func(model, options string) *runnerpb.GenerateRequest {
		t.Helper()
		if r := b.post("/api/generate", `{"model": "`+model+`", "prompt": "x", "options": `+options+`}`); r.status != 200 {
			t.Fatalf("%s: %d %s", options, r.status, r.body)
		}
		return b.asked()
	}
	o := ask("bare", `null`).GetOptions()
	if o.NumPredict != nil || o.Seed != nil || o.NumKeep != 4 || o.GetTemperature() != 0.8 || o.GetTopK() != 40 || o.GetTopP() != 0.9 || o.GetMinP() != 0 ||
		o.GetTypicalP() != 1 || o.GetRepeatLastN() != 64 || o.GetRepeatPenalty() != 1 || o.GetPresencePenalty() != 0 || o.GetFrequencyPenalty() != 0 || len(o.Stop) != 0 {
		t.Errorf("defaults: %v", o)
	}
	if q := ask("bare", `{}`); q.NumCtx != 0 {
		t.Errorf("default num_ctx: %d", q.NumCtx)
	}
	q := ask("m", `{"temperature": 0, "seed": 0, "num_predict": 5, "num_keep": 9, "repeat_last_n": -1, "presence_penalty": -2, "min_p": null}`)
	o = q.GetOptions()
	if o.GetTemperature() != 0 || o.Temperature == nil || o.Seed == nil || o.GetNumPredict() != 5 || o.NumKeep != 9 || o.GetRepeatLastN() != -1 || o.GetPresencePenalty() != -2 ||
		o.GetTopK() != 7 || strings.Join(o.Stop, "") != "AB" || q.NumCtx != 1000 {
		t.Errorf("merged: %v, num_ctx %d", o, q.NumCtx)
	}
	q = ask("m", `{"stop": ["", "C"], "top_k": -5, "num_predict": -2, "num_ctx": 2, "seed": -1}`)
	o = q.GetOptions()
	if strings.Join(o.Stop, ",") != "C" || o.GetTopK() != 0 || o.NumPredict != nil || q.NumCtx != 4 || o.Seed != nil {
		t.Errorf("special values: %v, num_ctx %d", o, q.NumCtx)
	}
	o = ask("m", `{"num_predict": 1e12, "num_keep": -1e12}`).GetOptions()
	if o.GetNumPredict() != math.MaxInt32 || o.GetNumKeep() != math.MinInt32 {
		t.Errorf("huge values: %v", o)
	}
	// A different num_ctx is no reason to load the model anew.
	if n := len(b.starter.Started()); n != 1 {
		t.Errorf("%d runners were started", n)
	}
}
