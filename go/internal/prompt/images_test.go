package prompt

import (
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
)

func TestImagesAreTagged(t *testing.T) {
	image := func(n int) []api.ImageData { return make([]api.ImageData, n) }
	tests := map[string]struct {
		source   Source
		messages []api.Message
		want     string
	}{
		"before the text": {
			Source{Template: "{{ .Prompt }}"}, []api.Message{{Role: "user", Content: "What?", Images: image(2)}}, "[img-0][img-1]What?",
		},
		"where the text says": {
			Source{Template: "{{ .Prompt }}"}, []api.Message{{Role: "user", Content: "Is [img] like [img]?", Images: image(3)}}, "[img-2]Is [img-0] like [img-1]?",
		},
		"no images": {
			Source{Template: "{{ .Prompt }}"}, []api.Message{{Role: "user", Content: "Is [img] text?"}}, "Is [img] text?",
		},
		"numbered through all messages": {
			Source{Template: "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"},
			[]api.Message{
				{Role: "user", Content: "A", Images: image(1)}, {Role: "assistant", Content: "B"}, {Role: "user", Content: "C", Images: image(1)},
			},
			"user: [img-0]A\nassistant: B\nuser: [img-1]C\n",
		},
		"by a renderer": {
			Source{Renderer: "qwen3-vl-instruct"}, []api.Message{{Role: "user", Content: "What?", Images: image(2)}}, "[img-0][img-1]What?",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			form, err := New(tt.source)
			if err != nil {
				t.Fatal(err)
			}
			before := tt.messages[0].Content
			made, err := form.Render(Params{Messages: tt.messages})
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(made.Text, tt.want) {
				t.Errorf("got %q, want %q in it", made.Text, tt.want)
			}
			if tt.messages[0].Content != before {
				t.Errorf("the caller's message was changed to %q", tt.messages[0].Content)
			}
		})
	}
}
