package server

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
)

// Where str.splitlines of Python ends a line, which httpx and ollama-python split streams by.
const lineBreaks = "\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029"

func TestAStreamedValueIsOneLine(t *testing.T) {
	text := "before" + lineBreaks + "after"
	for name, send := range map[string]func(*httptest.ResponseRecorder) error{
		"lines":  func(w *httptest.ResponseRecorder) error { return newLines(w).send(text) },
		"events": func(w *httptest.ResponseRecorder) error { return newSSE(w).send("", text) },
	} {
		w := httptest.NewRecorder()
		if err := send(w); err != nil {
			t.Fatal(err)
		}
		line := strings.TrimPrefix(strings.TrimRight(w.Body.String(), "\n"), "data: ")
		if strings.ContainsAny(line, lineBreaks) {
			t.Errorf("%s: %q is more than a line", name, line)
		}
		var back string
		if err := json.Unmarshal([]byte(line), &back); err != nil || back != text {
			t.Errorf("%s: %q came back as %q (%v)", name, text, back, err)
		}
	}
}
