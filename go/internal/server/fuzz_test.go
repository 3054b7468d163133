package server

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
)

// No body makes a route panic, blame itself for what the client sent, or answer with anything but JSON.
func FuzzNativeBodies(f *testing.F) {
	routes := []string{"/api/generate", "/api/chat", "/api/create", "/api/show", "/api/embed", "/api/copy"}
	for _, body := range []string{
		`{"model": "m", "prompt": "hi", "stream": false, "options": {"temperature": 0, "stop": ["x"], "num_ctx": 5}, "think": "max", "keep_alive": "1m"}`,
		`{"model": "m", "prompt": "hi", "suffix": "x", "template": "{{ .Prompt }}", "context": [1], "format": {"type": "object"}, "images": ["iVBORw0KGgo="]}`,
		`{"model": "m", "prompt": "hi", "template": "{{ range .Messages }}{{ .Content }}{{ index . 5 }}{{ end }}"}`,
		`{"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [` + oneTool + `], "logprobs": true, "top_logprobs": 3, "_debug_render_only": true}`,
		`{"model": "m", "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [null]}}}]}, {"role": "tool", "tool_name": "f", "content": "1"}]}`,
		`{"model": "n", "from": "m", "system": "s", "license": ["a"], "parameters": {"stop": ["x"], "top_k": 3}, "messages": [{"role": "user", "content": "x"}], "info": {"base_name": "x"}}`,
		`{"model": "n", "files": {"config.json": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "../x": "x"}, "quantize": "q4", "adapters": {"a": "b"}}`,
		`{"model": "m", "input": ["a", null, 5], "dimensions": -1, "truncate": false}`,
		`{"source": "m", "destination": "../../x"}`, `{"model": "m", "verbose": true, "options": {"a": {"b": []}}}`, `null`, `[]`, `{"model": 5}`, `{"keep_alive": 1e400}`, ``,
	} {
		for i := range routes {
			f.Add(i, body)
		}
	}
	b := newBed(f)
	b.create("m", map[string]any{"info": map[string]any{"capabilities": []string{"completion", "tools", "thinking", "insert", "vision", "embedding"}}})
	f.Fuzz(func(t *testing.T, route int, body string) {
		if route < 0 || route >= len(routes) {
			t.Skip()
		}
		w := httptest.NewRecorder()
		b.server.Handler().ServeHTTP(w, httptest.NewRequest("POST", routes[route], strings.NewReader(body)))
		answer := w.Body.String()
		if w.Code >= 500 && !strings.HasPrefix(answer, `{"error":"option \"`) && !strings.Contains(answer, "not implemented") {
			t.Errorf("%s %s: %d %s", routes[route], body, w.Code, answer)
		}
		for line := range strings.Lines(answer) {
			if !json.Valid([]byte(line)) {
				t.Errorf("%s %s: %q is not JSON", routes[route], body, line)
			}
		}
	})
}

// A Host header that ends in a foreign name is never taken for this machine, whatever stands before that.
func FuzzHostHeader(f *testing.F) {
	for _, s := range []string{"", "localhost", "localhost:80", "127.0.0.1", "127.0.0.1:11434", "[::1]", "[::1]:1", "::1%", "[::1%", "x.localhost", "a.local:1", ".internal", "192.168.0.1:", "\x00", "0", "http://localhost/"} {
		f.Add(s)
	}
	local := newLocalHosts()
	f.Fuzz(func(t *testing.T, s string) {
		local.allows(s)
		for _, foreign := range []string{s + ".example.com", s + "example.com", s + ".example.com:11434", s + ".8.8.8.8.example.com"} {
			if local.allows(foreign) {
				t.Errorf("%q is allowed", foreign)
			}
		}
	})
}
