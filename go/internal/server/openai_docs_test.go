package server

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// The documentation tells what becomes of every field that is read.
func TestOpenAIFieldsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/openai.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split("\n"+string(text), "\n## ")[1:] {
		title, body, _ := strings.Cut(s, "\n")
		sections[title] = body
	}
	for title, request := range map[string]any{
		"Sampling": openaiSampling{}, "Chat completions": chatCompletionRequest{}, "Responses": responsesRequest{},
		"Completions": completionRequest{}, "Embeddings": embeddingsRequest{},
	} {
		typ := reflect.TypeOf(request)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name != "" && !strings.Contains(sections[title], "`"+name+"`") {
				t.Errorf("%s: `%s` is not in docs/openai.md", title, name)
			}
		}
	}
}
