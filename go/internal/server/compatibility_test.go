package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/registry"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

// The tables of docs/compatibility.md are run against a server, so that what they say stays true.

const compatibilityDoc = "../../../docs/compatibility.md"

// docRow is a row of a table: its cells, the first without its backquotes.
type docRow struct {
	name  string
	cells []string
}

// docTables returns the rows of the document's tables by the heading above them.
func docTables(t *testing.T, path string) map[string][]docRow {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tables := map[string][]docRow{}
	heading, inTable := "", false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"):
			heading = strings.ReplaceAll(strings.TrimLeft(line, "# "), "`", "")
		case strings.HasPrefix(line, "| ---"):
			inTable = true
		case !strings.HasPrefix(line, "|"):
			inTable = false
		case inTable:
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			tables[heading] = append(tables[heading], docRow{strings.Trim(cells[0], "`"), cells[1:]})
		}
	}
	return tables
}

// Each route of the table is there, or not, as it says, and no route is left out.
func TestCompatibilityRoutes(t *testing.T) {
	b := newBed(t)
	mux := b.server.routes().(*http.ServeMux)
	documented := map[string]bool{}
	rows := docTables(t, compatibilityDoc)["Routes"]
	if len(rows) < 30 {
		t.Fatalf("found %d rows", len(rows))
	}
	for _, row := range rows {
		method, path, _ := strings.Cut(row.name, " ")
		example := strings.NewReplacer("{digest}", "x", "{model...}", "a/b", "{key}", "x", "{id}", "x").Replace(path)
		r, err := http.NewRequest(method, example, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, pattern := mux.Handler(r)
		switch here := row.cells[0]; here {
		case "same", "better":
			want := row.name
			if method == "HEAD" && !strings.Contains(path, "{") {
				want = "GET " + path
			}
			if pattern != want && pattern != strings.TrimSuffix(want, "/")+"/{$}" {
				t.Errorf("%s is said to be %s and is served by %q", row.name, here, pattern)
			}
			documented[pattern] = true
		case "refused":
			if pattern != row.name {
				t.Errorf("%s is said to be refused and is served by %q", row.name, pattern)
			}
			documented[pattern] = true
			reply := b.do(method, example, "{}")
			if status, _, _ := strings.Cut(row.cells[1], ":"); fmt.Sprint(reply.status) != status || reply.header.Get("Content-Type") != typeJSON {
				t.Errorf("%s: got %d %s, want %s", row.name, reply.status, reply.body, row.cells[1])
			}
			if form := regexp.MustCompile(absentForm(path)); !form.MatchString(reply.body) {
				t.Errorf("%s: got %s, want %s", row.name, reply.body, form)
			}
		case "not offered":
			if pattern != "" {
				t.Errorf("%s is said to be not offered and is served by %q", row.name, pattern)
			}
		default:
			t.Errorf("%s: %q", row.name, here)
		}
	}
	for _, route := range absentRoutes {
		if !documented[route.pattern] {
			t.Errorf("%s is not in the table of routes", route.pattern)
		}
	}
	source, err := os.ReadFile("server.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`mux\.HandleFunc\("([^"]+)"`).FindAllStringSubmatch(string(source), -1) {
		if !documented[m[1]] {
			t.Errorf("%s is not in the table of routes", m[1])
		}
	}
}

// absentForm is what the error of a route that is not offered looks like in its dialect.
func absentForm(path string) string {
	switch {
	case strings.HasPrefix(path, "/v1/messages"):
		return `^{"type":"error","error":{"type":"not_found_error","message":".+ is not offered: .+"},"request_id":".+"}$`
	case strings.HasPrefix(path, "/v1/"):
		return `^{"error":{"message":".+ is not offered: .+","type":"not_found_error","param":null,"code":null}}$`
	}
	return `^{"error":"ollama cloud is disabled: .+"}$`
}

// compatibilityRoutes are the routes whose fields have a table: a request that works, and the type that reads it.
var compatibilityRoutes = []struct {
	heading, base string
	types         []any
}{
	{"POST /api/generate", `{"model": "full", "prompt": "hi"}`, []any{generateRequest{}}},
	{"Options", `{"model": "full", "prompt": "hi"}`, []any{api.Options{}}},
	{"POST /api/chat", `{"model": "full", "messages": [{"role": "user", "content": "hi"}]}`, []any{chatRequest{}}},
	{"POST /api/embed", `{"model": "full", "input": "hi"}`, []any{embedRequest{}}},
	{"POST /api/embeddings", `{"model": "full", "prompt": "hi"}`, []any{api.EmbeddingRequest{}}},
	{"POST /api/show", `{"model": "full"}`, []any{api.ShowRequest{}}},
	{"POST /api/create", `{"model": "new", "from": "full"}`, []any{createRequest{}}},
	{"POST /api/copy", `{"source": "full", "destination": "new"}`, []any{api.CopyRequest{}}},
	{"DELETE /api/delete", `{"model": "victim"}`, []any{api.DeleteRequest{}}},
	{"POST /api/pull", `{"model": "full"}`, []any{transferRequest{}}},
	{"POST /api/push", `{"model": "full"}`, []any{transferRequest{}}},
	{"POST /v1/chat/completions", `{"model": "full", "messages": [{"role": "user", "content": "hi"}]}`, []any{chatCompletionRequest{}}},
	{"POST /v1/completions", `{"model": "full", "prompt": "hi"}`, []any{completionRequest{}}},
	{"POST /v1/responses", `{"model": "full", "input": "hi"}`, []any{responsesRequest{}}},
	{"POST /v1/embeddings", `{"model": "full", "input": "hi"}`, []any{embeddingsRequest{}}},
	{"POST /v1/rerank", `{"model": "full", "query": "hi", "documents": ["a", "b"]}`, []any{rerankRequest{}}},
	{"POST /v1/messages", `{"model": "full", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}`, []any{anthropicRequest{}}},
}

var try = regexp.MustCompile("`([^`]+)` ([0-9]{3})")

// Each field of the tables is tried with the values beside it. A field that is said to count must change something that
// can be seen: what the runner is asked, the answer, or the state of the server. One without effect must change nothing.
func TestCompatibilityFields(t *testing.T) {
	tables := docTables(t, compatibilityDoc)
	for _, route := range compatibilityRoutes {
		t.Run(route.heading, func(t *testing.T) {
			bed := newCompatibilityBed(t)
			method, path, ok := strings.Cut(route.heading, " ")
			if !ok {
				method, path = "POST", "/api/generate"
			}
			rows := tables[route.heading]
			documented := map[string]bool{}
			for _, row := range rows {
				documented[row.name] = true
				tries := try.FindAllStringSubmatch(row.cells[1], -1)
				if len(tries) == 0 {
					t.Errorf("%s is not tried with any value", row.name)
				}
				for _, x := range tries {
					with, without := compatibilityBodies(t, route.base, row.name, x[1], route.heading == "Options")
					status, seen := bed.observe(method, path, with)
					if fmt.Sprint(status) != x[2] {
						t.Errorf("%s: `%s` is answered with %d %s", row.name, x[1], status, seen)
						continue
					}
					_, bare := bed.observe(method, path, without)
					switch here := row.cells[0]; here {
					case "same", "better":
						if status < 400 && seen == bare {
							t.Errorf("%s: `%s` changes nothing: %s", row.name, x[1], seen)
						}
					case "no effect":
						if status < 400 && seen != bare {
							t.Errorf("%s: `%s` has an effect:\n%s\n%s", row.name, x[1], seen, bare)
						}
					case "refused":
						if status < 400 {
							t.Errorf("%s: `%s` is not refused", row.name, x[1])
						}
					default:
						t.Errorf("%s: %q", row.name, here)
					}
				}
			}
			for _, v := range route.types {
				for name := range jsonFields(reflect.TypeOf(v)) {
					if !documented[name] {
						t.Errorf("the field %s is not in the table", name)
					}
				}
			}
		})
	}
}

// compatibilityBodies returns the request with a fragment of fields, and the same without the field that is meant.
func compatibilityBodies(t *testing.T, base, field, fragment string, options bool) (with, without string) {
	t.Helper()
	var body, more map[string]any
	if err := json.Unmarshal([]byte(base), &body); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte("{"+fragment+"}"), &more); err != nil {
		t.Fatalf("%s: {%s}: %v", field, fragment, err)
	}
	if _, ok := more[field]; !ok {
		t.Fatalf("%s is not in its example {%s}", field, fragment)
	}
	target := body
	if options {
		target = map[string]any{}
		body["options"] = target
	}
	original, replaced := target[field]
	maps.Copy(target, more)
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	delete(target, field)
	if replaced {
		target[field] = original
	}
	bare, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw), string(bare)
}

// jsonFields are the names of a type's fields in JSON.
func jsonFields(typ reflect.Type) map[string]bool {
	names := map[string]bool{}
	for _, f := range reflect.VisibleFields(typ) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" && f.IsExported() {
			names[name] = true
		}
	}
	return names
}

// compatibilityBed is a bed with a model that can do everything, one that cannot, and eyes for what a request does.
type compatibilityBed struct{ *bed }

func newCompatibilityBed(t *testing.T) *compatibilityBed {
	b := &compatibilityBed{}
	b.bed = newBed(t, func(p *Params, _ *sched.Params) {
		p.PrefillInterval = time.Nanosecond
		p.Puller, p.Pusher, p.Converter = transfers{b}, transfers{b}, converters{}
	})
	start := b.starter.OnStart
	b.starter.OnStart = func(r *schedtest.Runner) {
		start(r)
		record := func(m proto.Message) {
			b.mu.Lock()
			defer b.mu.Unlock()
			raw, _ := protojson.Marshal(m)
			b.requests = append(b.requests, &runnerpb.GenerateRequest{TraceId: reorder(t, raw)})
		}
		r.OnEmbed = func(q *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
			record(q)
			return &runnerpb.EmbedResponse{Embeddings: []*runnerpb.Embedding{{Values: []float32{0.6, 0.8}}}, PromptTokens: 2}, nil
		}
		r.OnRerank = func(q *runnerpb.RerankRequest) (*runnerpb.RerankResponse, error) {
			record(q)
			resp := &runnerpb.RerankResponse{PromptTokens: 4}
			for i := range q.GetDocuments() {
				resp.Scores = append(resp.Scores, float32(i))
			}
			return resp, nil
		}
		r.OnTokenize = func(q *runnerpb.TokenizeRequest) (*runnerpb.TokenizeResponse, error) {
			record(q)
			return &runnerpb.TokenizeResponse{Tokens: []uint32{1, 2}, Rendered: "<hi>"}, nil
		}
	}
	able := map[string]any{"info": map[string]any{"capabilities": []string{"completion", "tools", "thinking", "insert", "vision", "embedding", "rerank"}}}
	b.create("full", able)
	b.createFrom("plain", plainModel(), nil)
	b.createFrom("unquantized", mlxmodeltest.Unquantized(), nil)
	b.upload(mlxmodeltest.Model())
	b.upload(mlxmodeltest.Adapter())
	return b
}

// transfers stands in for the registries; that they work is tested with them.
type transfers struct{ bed *compatibilityBed }

func (x transfers) Pull(_ context.Context, n model.Name, o registry.Options, report func(api.ProgressResponse)) error {
	x.bed.mu.Lock()
	defer x.bed.mu.Unlock()
	x.bed.requests = append(x.bed.requests, &runnerpb.GenerateRequest{TraceId: fmt.Sprint(n, o)})
	report(api.ProgressResponse{Status: "pulling manifest"})
	report(api.ProgressResponse{Status: "success"})
	return nil
}

func (x transfers) Push(ctx context.Context, n model.Name, o registry.Options, report func(api.ProgressResponse)) error {
	return x.Pull(ctx, n, o, report)
}

// converters stands in for the task that converts models.
type converters struct{}

func (converters) Quantize(_ context.Context, req *runnerpb.QuantizeRequest, progress func(*runnerpb.QuantizeProgress) error) error {
	files := mlxmodeltest.Model()
	for _, name := range []string{"model.safetensors", "config.json"} {
		if err := os.WriteFile(filepath.Join(req.GetOutputPath(), name), files[name], 0o600); err != nil {
			return err
		}
		if err := progress(&runnerpb.QuantizeProgress{BytesDone: 1, BytesTotal: 1, File: name}); err != nil {
			return err
		}
	}
	return nil
}

func (converters) ImportAdapter(context.Context, *runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error) {
	return &runnerpb.ImportAdapterResponse{}, nil
}

var (
	fleeting   = regexp.MustCompile(`"(created_at|total_duration|load_duration|modified_at|created|id|response_id|item_id|completed_at|expires_at|request_id|call_id)":("[^"]*"|[0-9.]+)`)
	keepFields = []string{"full:latest", "plain:latest", "unquantized:latest"}
)

// observe sends a request to a server in its first state and returns all that can be seen of its effects.
func (b *compatibilityBed) observe(method, path, body string) (int, string) {
	b.t.Helper()
	b.reset(path)
	r := b.do(method, path, body)
	seen := []string{fmt.Sprint(r.status), r.header.Get("Content-Type"), fleeting.ReplaceAllString(r.body, "")}
	b.mu.Lock()
	for _, q := range b.requests {
		q = proto.Clone(q).(*runnerpb.GenerateRequest)
		if q.GetInput() != nil {
			q.TraceId = ""
		}
		raw, err := protojson.Marshal(q)
		if err != nil {
			b.t.Error(err)
		}
		seen = append(seen, reorder(b.t.(*testing.T), raw))
	}
	b.mu.Unlock()
	for _, x := range b.sched.Loaded(b.t.Context()) {
		seen = append(seen, fmt.Sprint(modelname.Display(x.Model.Name), time.Until(x.ExpiresAt).Round(time.Minute)))
	}
	for _, m := range b.models() {
		if slices.Contains(keepFields, m) {
			continue
		}
		shown := b.post("/api/show", fmt.Sprintf(`{"model": %q, "verbose": true}`, m))
		seen = append(seen, m, fleeting.ReplaceAllString(shown.body, ""))
	}
	return r.status, strings.Join(seen, "\n")
}

// reset unloads all models and restores those that requests may have changed.
func (b *compatibilityBed) reset(path string) {
	b.t.Helper()
	for _, x := range b.sched.Loaded(b.t.Context()) {
		b.sched.Unload(x.Model)
	}
	for _, name := range b.models() {
		if !slices.Contains(keepFields, name) {
			b.do("DELETE", "/api/delete", fmt.Sprintf(`{"model": %q}`, name))
		}
	}
	if path == "/api/delete" {
		b.post("/api/copy", `{"source": "full", "destination": "victim"}`)
	}
	until(b.t, "everything is unloaded", func() bool { return len(b.sched.Loaded(b.t.Context())) == 0 })
	b.mu.Lock()
	b.requests = nil
	b.mu.Unlock()
}

func (b *compatibilityBed) models() []string {
	var list api.ListResponse
	b.do("GET", "/api/tags", "").json(b.t, &list)
	var names []string
	for _, m := range list.Models {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names
}

// The fields of each answer are those of its table.
func TestCompatibilityAnswers(t *testing.T) {
	b := newCompatibilityBed(t)
	b.script(
		schedtest.Prefill(1, 5), schedtest.Thinking("hm"),
		schedtest.Delta(&runnerpb.Delta{Content: "Hello", Tokens: 1, Logprobs: []*runnerpb.TokenLogprob{{Id: 1, Text: "Hello", Logprob: -1, Top: []*runnerpb.TokenLogprob{{Id: 1, Text: "Hello", Logprob: -1}}}}}),
		schedtest.Delta(&runnerpb.Delta{ToolCalls: []*runnerpb.ToolCall{{Name: "f", ArgumentsJson: `{}`}}}),
		&runnerpb.Event{Kind: &runnerpb.Event_Finished{Finished: &runnerpb.Finished{Reason: runnerpb.Finished_REASON_STOP, Context: []uint32{1},
			Usage: &runnerpb.Usage{PromptTokens: 5, CachedPromptTokens: 2, CompletionTokens: 3, PrefillNs: 10, DecodeNs: 10}}}},
	)
	tables := docTables(t, compatibilityDoc)
	for _, route := range []struct {
		heading string
		bodies  []string
	}{
		{"POST /api/generate", []string{`{"model": "full", "prompt": "hi"}`, `{"model": "full", "prompt": "hi", "_debug_render_only": true}`}},
		{"POST /api/chat", []string{`{"model": "full", "messages": [{"role": "user", "content": "hi"}]}`, `{"model": "full", "messages": [{"role": "user", "content": "hi"}], "_debug_render_only": true}`}},
		{"POST /api/embed", []string{`{"model": "full", "input": "hi"}`}},
		{"POST /api/embeddings", []string{`{"model": "full", "prompt": "hi"}`}},
		{"POST /v1/rerank", []string{`{"model": "full", "query": "hi", "documents": ["a"], "return_documents": true}`}},
		{"POST /v1/chat/completions", []string{
			`{"model": "full", "messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 1}`,
			`{"model": "full", "messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 1, "stream": true, "stream_options": {"include_usage": true}}`,
		}},
		{"POST /v1/completions", []string{`{"model": "full", "prompt": "hi", "logprobs": 1}`}},
		{"POST /v1/embeddings", []string{`{"model": "full", "input": "hi"}`}},
		{"POST /v1/responses", []string{`{"model": "full", "input": "hi", "top_logprobs": 1}`}},
		{"POST /v1/responses/input_tokens", []string{`{"model": "full", "input": "hi"}`}},
		{"POST /v1/messages", []string{
			`{"model": "full", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "adaptive"}}`,
			`{"model": "full", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "adaptive"}, "stream": true}`,
		}},
		{"POST /v1/messages/count_tokens", []string{`{"model": "full", "messages": [{"role": "user", "content": "hi"}]}`}},
		{"GET /v1/models", []string{""}},
		{"GET /v1/models/full", []string{""}},
		{"GET /api/tags", []string{""}},
		{"GET /api/ps", []string{""}},
		{"GET /api/version", []string{""}},
		{"GET /api/status", []string{""}},
		{"POST /api/show", []string{`{"model": "told", "verbose": true}`}},
	} {
		t.Run(route.heading, func(t *testing.T) {
			b.create("told", map[string]any{"system": "s", "template": "{{ .Prompt }}", "license": "l", "parameters": map[string]any{"top_k": 5},
				"messages": []api.Message{{Role: "user", Content: "x"}}, "renderer": "qwen3-coder", "parser": "qwen3-coder", "requires": "0.1.0"})
			method, path, _ := strings.Cut(route.heading, " ")
			found := map[string]bool{}
			for _, body := range route.bodies {
				r := b.do(method, path, body)
				if r.header.Get("Content-Type") == "text/event-stream" {
					r.body = strings.Join(regexp.MustCompile(`(?m)^data: ({.*)$`).FindAllString(r.body, -1), "\n")
					r.body = strings.ReplaceAll(r.body, "data: ", "")
				}
				for _, line := range linesOf[any](t, r) {
					flattenNames(found, "", line)
				}
			}
			rows := tables["Answer of "+route.heading]
			if len(rows) == 0 {
				t.Errorf("no table, want %q", slices.Sorted(maps.Keys(found)))
			}
			for _, row := range rows {
				for _, name := range strings.Split(row.name, "`, `") {
					if here := row.cells[0]; found[name] != (here == "same" || here == "better") {
						t.Errorf("%s is said to be %s; the answer has %q", name, here, slices.Sorted(maps.Keys(found)))
					}
					delete(found, name)
				}
			}
			if len(found) > 0 {
				t.Errorf("not in the table: %q", slices.Sorted(maps.Keys(found)))
			}
		})
	}
}

// flattenNames collects the paths of all values in v; what is in model_info and in arguments are data and no fields.
func flattenNames(into map[string]bool, at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if strings.HasSuffix(at, "model_info") || strings.HasSuffix(at, "arguments") {
			into[at] = true
			return
		}
		for key, x := range v {
			flattenNames(into, strings.TrimPrefix(at+"."+key, "."), x)
		}
	case []any:
		for _, x := range v {
			flattenNames(into, at+"[]", x)
		}
		if len(v) == 0 {
			into[at+"[]"] = true
		}
	default:
		into[at] = true
	}
}

// docs/security.md names a test for each class of fault that servers of this kind had.
func TestSecurityTableNamesRealTests(t *testing.T) {
	rows := docTables(t, "../../../docs/security.md")["Known classes of faults"]
	if len(rows) < 15 {
		t.Fatalf("found %d rows", len(rows))
	}
	var sources strings.Builder
	for _, root := range []string{"../..", "../../../tests"} {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() && regexp.MustCompile(`(_test\.go|/test_[^/]*\.py)$`).MatchString(path) {
				text, readErr := os.ReadFile(path)
				sources.Write(text)
				return readErr
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range rows {
		names := regexp.MustCompile("`([A-Za-z0-9_]+)`").FindAllStringSubmatch(row.cells[len(row.cells)-1], -1)
		if len(names) == 0 {
			t.Errorf("%s: no test", row.name)
		}
		for _, n := range names {
			if !strings.Contains(sources.String(), "func "+n[1]+"(") && !strings.Contains(sources.String(), "def "+n[1]+"(") {
				t.Errorf("%s: there is no test %s", row.name, n[1])
			}
		}
	}
}
