package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/sched"
)

func withKeys(keys ...string) setting {
	return func(p *Params, _ *sched.Params) { p.APIKeys = keys }
}

func (b *bed) with(method, path string, header map[string]string) reply {
	b.t.Helper()
	req, err := http.NewRequest(method, b.http.URL+path, strings.NewReader("{}"))
	if err != nil {
		b.t.Fatal(err)
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	resp, err := b.http.Client().Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	text, err := readAll(resp)
	if err != nil {
		b.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, text}
}

func TestAPIKey(t *testing.T) {
	b := newBed(t, withKeys("first", "second"))
	const (
		missing = `this server wants an API key: send the header "Authorization: Bearer <key>" or "x-api-key: <key>"`
		wrong   = "the API key is not one of this server's"
	)
	for _, tt := range []struct {
		name   string
		header map[string]string
		text   string
	}{
		{"none", nil, missing},
		{"empty", map[string]string{"Authorization": "", "x-api-key": ""}, missing},
		{"another scheme", map[string]string{"Authorization": "Basic first"}, missing},
		{"no scheme", map[string]string{"Authorization": "first"}, missing},
		{"bearer without a key", map[string]string{"Authorization": "Bearer"}, missing},
		{"wrong bearer", map[string]string{"Authorization": "Bearer nonsense"}, wrong},
		{"empty bearer", map[string]string{"Authorization": "Bearer  "}, missing},
		{"wrong x-api-key", map[string]string{"x-api-key": "nonsense"}, wrong},
		{"a beginning", map[string]string{"x-api-key": "firs"}, wrong},
		{"more", map[string]string{"x-api-key": "first2"}, wrong},
		{"another case", map[string]string{"x-api-key": "First"}, wrong},
		{"both keys as one", map[string]string{"x-api-key": "first,second"}, wrong},
		{"bearer", map[string]string{"Authorization": "Bearer first"}, ""},
		{"bearer in small letters", map[string]string{"Authorization": "bearer second"}, ""},
		{"x-api-key", map[string]string{"x-api-key": "second"}, ""},
		{"one wrong, one right", map[string]string{"Authorization": "Bearer nonsense", "x-api-key": "first"}, ""},
	} {
		r := b.with("GET", "/api/tags", tt.header)
		switch {
		case tt.text == "" && r.status != 200:
			t.Errorf("%s: %d %s", tt.name, r.status, r.body)
		case tt.text != "" && (r.status != 401 || r.err() != tt.text || r.header.Get("WWW-Authenticate") != "Bearer"):
			t.Errorf("%s: %d %s %v", tt.name, r.status, r.body, r.header)
		}
	}
}

// Every route wants the key but those that tell whether the server is there and which; what the mux does not know
// tells nothing either.
func TestAPIKeyRoutes(t *testing.T) {
	b := newBed(t, withKeys("k"))
	for _, tt := range []struct {
		route string
		open  bool
	}{
		{"GET /", true}, {"HEAD /", true}, {"GET /api/version", true}, {"HEAD /api/version", true},
		{"POST /", false}, {"POST /api/version", false}, {"GET /api/version/", false}, {"GET //api/version", false},
		{"GET /api/tags", false}, {"HEAD /api/tags", false}, {"GET /api/ps", false}, {"POST /api/show", false},
		{"POST /api/generate", false}, {"POST /api/chat", false}, {"POST /api/embed", false}, {"POST /api/embeddings", false},
		{"POST /api/create", false}, {"POST /api/pull", false}, {"POST /api/copy", false}, {"DELETE /api/delete", false},
		{"HEAD /api/blobs/sha256:0", false}, {"POST /api/blobs/sha256:0", false},
		{"GET /v1/models", false}, {"POST /v1/chat/completions", false}, {"POST /v1/messages", false},
		{"GET /nowhere", false}, {"GET /api/version/../tags", false},
	} {
		method, path, _ := strings.Cut(tt.route, " ")
		r := b.with(method, path, nil)
		if (r.status != 401) != tt.open {
			t.Errorf("%s without a key: %d", tt.route, r.status)
		}
		if r := b.with(method, path, map[string]string{"x-api-key": "k"}); r.status == 401 {
			t.Errorf("%s with the key: %d", tt.route, r.status)
		}
	}
}

// A refusal is in the dialect of the route.
func TestAPIKeyDialects(t *testing.T) {
	b := newBed(t, withKeys("k"))
	for path, want := range map[string]string{
		"/api/chat":                 `{"error":"the API key is not one of this server's"}`,
		"/v1/chat/completions":      `{"error":{"message":"the API key is not one of this server's","type":"authentication_error","param":null,"code":null}}`,
		"/v1/messages":              `{"type":"error","error":{"type":"authentication_error","message":"the API key is not one of this server's"},"request_id":"`,
		"/v1/messages/count_tokens": `{"type":"error","error":{"type":"authentication_error","message":"the API key is not one of this server's"},"request_id":"`,
	} {
		r := b.with("POST", path, map[string]string{"x-api-key": "x"})
		if r.status != 401 || !strings.HasPrefix(r.body, want) || strings.Contains(r.body, `"request_id":""`) {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
	}
}

// A browser asks without the key first, and may read why it was refused.
func TestAPIKeyAndCORS(t *testing.T) {
	b := newBed(t, withKeys("k"))
	page := map[string]string{"Origin": "http://localhost:3000"}
	if r := b.with("OPTIONS", "/v1/messages", page); r.status != 204 || !strings.Contains(r.header.Get("Access-Control-Allow-Headers"), "x-api-key") {
		t.Errorf("preflight: %d %v", r.status, r.header)
	}
	if r := b.with("POST", "/v1/messages", page); r.status != 401 || r.header.Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("refusal: %d %v", r.status, r.header)
	}
}

// Without keys nobody needs one, and whatever a client sends is no reason to refuse it.
func TestNoAPIKey(t *testing.T) {
	for _, keys := range [][]string{nil, {""}} {
		b := newBed(t, withKeys(keys...))
		for _, header := range []map[string]string{nil, {"Authorization": "Bearer ollama"}, {"x-api-key": "anything"}} {
			if r := b.with("GET", "/api/tags", header); r.status != 200 {
				t.Errorf("%v: %d %s", header, r.status, r.body)
			}
		}
	}
}
