package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// No body makes a route panic or take the blame for it.
func FuzzOpenAIBodies(f *testing.F) {
	for _, body := range []string{
		openaiHi,
		`{"model": "m", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:;base64,iVBORw0KGgo="}]}, {"type": "reasoning", "summary": [{}]}, {"type": "function_call", "name": "f"}, {"type": "function_call_output", "output": []}], ` + responsesTools + `}`,
		`{"model": "m", "messages": [{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "content": [{"type": "text"}]}], "tools": [` + oneTool + `], "tool_choice": {"type": "function", "function": {"name": "f"}}, "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}, "logit_bias": {"1": 1}, "stop": ["x"]}`,
		`{"model": "m", "query": "q", "documents": ["a", {"text": "b"}, null], "top_n": 1, "rank_fields": []}`,
		`{"model": "m", "prompt": ["x"], "logprobs": 1, "stop": null}`,
		`{"model": "m", "input": [[1], null, "x"], "dimensions": 1, "encoding_format": "base64"}`,
	} {
		f.Add(body)
	}
	s := newBed(f).server
	f.Fuzz(func(t *testing.T, body string) {
		post := func() (http.ResponseWriter, *http.Request) {
			return httptest.NewRecorder(), httptest.NewRequest("POST", "/", strings.NewReader(body))
		}
		blame := func(err error) {
			if status := errdefs.HTTPStatus(err); status >= 500 {
				t.Errorf("%d: %v", status, err)
			}
		}
		w, r := post()
		_, err := s.readChatCompletion(w, r, &chatCompletionRequest{})
		blame(err)
		w, r = post()
		_, err = s.readResponses(w, r, &responsesRequest{})
		blame(err)
		w, r = post()
		_, err = s.readCompletion(w, r, &completionRequest{})
		blame(err)
		w, r = post()
		_, err = s.openaiEmbeddings(w, r)
		blame(err)
		w, r = post()
		_, err = s.rerank(w, r, &rerankRequest{})
		blame(err)
	})
}
