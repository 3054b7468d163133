package server

import (
	"regexp"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

func TestRerank(t *testing.T) {
	b := newBed(t)
	b.create("R", map[string]any{"info": map[string]any{"capabilities": []string{"rerank"}}})
	b.createFrom("plain", plainModel(), nil)
	scores := []float32{0.25, 0.75, 0.25}
	start := b.starter.OnStart
	b.starter.OnStart = func(r *schedtest.Runner) {
		start(r)
		r.OnRerank = func(*runnerpb.RerankRequest) (*runnerpb.RerankResponse, error) {
			return &runnerpb.RerankResponse{Scores: scores, PromptTokens: 9}, nil
		}
	}
	const ask = `"model": "R", "query": "q", "documents": ["a", {"text": "b"}, "c"]`
	id := regexp.MustCompile(`"id":"rerank-[a-z0-9]+"`)
	for _, tt := range []struct {
		fields string
		status int
		want   string
	}{
		{ask, 200, `{ID,"object":"list","model":"R","results":[{"index":1,"relevance_score":0.75},{"index":0,"relevance_score":0.25},{"index":2,"relevance_score":0.25}],"usage":{"prompt_tokens":9,"total_tokens":9}}`},
		{ask + `, "top_n": 1, "return_documents": true`, 200, `{ID,"object":"list","model":"R","results":[{"index":1,"relevance_score":0.75,"document":{"text":"b"}}],"usage":{"prompt_tokens":9,"total_tokens":9}}`},
		{ask + `, "top_n": 99`, 200, ``},
		{`"model": "nope", "query": "q", "documents": ["a"]`, 404, `{"error":{"message":"model 'nope' not found","type":"not_found_error","param":null,"code":null}}`},
		{`"model": "plain", "query": "q", "documents": ["a"]`, 400, `{"error":{"message":"\"plain\" does not support rerank","type":"invalid_request_error","param":null,"code":null}}`},
		{`"query": "q", "documents": ["a"]`, 400, `{"error":{"message":"model is required","type":"invalid_request_error","param":"model","code":null}}`},
		{`"model": "R", "documents": ["a"]`, 400, `{"error":{"message":"query must not be empty","type":"invalid_request_error","param":"query","code":null}}`},
		{`"model": "R", "query": "q"`, 400, `{"error":{"message":"documents must not be empty","type":"invalid_request_error","param":"documents","code":null}}`},
		{`"model": "R", "query": "q", "documents": ["a", {"title": "b"}]`, 400, `{"error":{"message":"documents[1] must be a text, or an object with a \"text\"","type":"invalid_request_error","param":"documents[1]","code":null}}`},
		{`"model": "R", "query": "q", "documents": [null]`, 400, `{"error":{"message":"documents[0] must be a text, or an object with a \"text\"","type":"invalid_request_error","param":"documents[0]","code":null}}`},
		{ask + `, "top_n": 0`, 400, `{"error":{"message":"top_n must be at least 1, got 0","type":"invalid_request_error","param":"top_n","code":null}}`},
		{ask + `, "rank_fields": ["x"]`, 400, `{"error":{"message":"rank_fields is not supported: a document is a text; join the fields that count","type":"invalid_request_error","param":"rank_fields","code":null}}`},
		{ask + `, "options": {"num_ctx": "x"}`, 500, ``},
	} {
		for _, path := range []string{"/v1/rerank", "/v2/rerank"} {
			r := b.post(path, "{"+tt.fields+"}")
			if got := id.ReplaceAllString(r.body, "ID"); r.status != tt.status || (tt.want != "" && got != tt.want) {
				t.Errorf("%s {%s}:\n got %d %s\nwant %d %s", path, tt.fields, r.status, got, tt.status, tt.want)
			}
		}
	}
	scores = scores[:2]
	if r := b.post("/v1/rerank", "{"+ask+"}"); r.status != 500 {
		t.Errorf("scores are missing: got %d %s", r.status, r.body)
	}
}
