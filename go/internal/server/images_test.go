package server

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// imageForms are the ways in which the dialects send an image: what a request says of its type, and its bytes in base64.
var imageForms = map[string]struct {
	path string
	body func(model, kind, data string) string
}{
	"generate": {"/api/generate", func(model, _, data string) string {
		return fmt.Sprintf(`{"model": %q, "prompt": "look", "images": [%q]}`, model, data)
	}},
	"generate raw": {"/api/generate", func(model, _, data string) string {
		return fmt.Sprintf(`{"model": %q, "prompt": "look", "raw": true, "images": [%q]}`, model, data)
	}},
	"chat": {"/api/chat", func(model, _, data string) string {
		return fmt.Sprintf(`{"model": %q, "messages": [{"role": "user", "content": "look", "images": [%q]}]}`, model, data)
	}},
	"chat completions": {"/v1/chat/completions", func(model, kind, data string) string {
		return fmt.Sprintf(`{"model": %q, "messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:%s;base64,%s"}}]}]}`, model, kind, data)
	}},
	"responses": {"/v1/responses", func(model, kind, data string) string {
		return fmt.Sprintf(`{"model": %q, "input": [{"role": "user", "content": [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": "data:%s;base64,%s"}]}]}`, model, kind, data)
	}},
	"messages": {"/v1/messages", func(model, kind, data string) string {
		return fmt.Sprintf(`{"model": %q, "max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image", "source": {"type": "base64", "media_type": %q, "data": %q}}]}]}`, model, kind, data)
	}},
	"tool result": {"/v1/messages", func(model, kind, data string) string {
		return fmt.Sprintf(`{"model": %q, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "look"}, {"type": "image", "source": {"type": "base64", "media_type": %q, "data": %q}}]}]}]}`, model, kind, data)
	}},
}

func imagesOf(q *runnerpb.GenerateRequest) (images []string) {
	for _, i := range q.GetPrompt().GetImages() {
		images = append(images, string(i.GetData()))
	}
	for _, m := range q.GetChat().GetMessages() {
		for _, i := range m.GetImages() {
			images = append(images, string(i.GetData()))
		}
	}
	return images
}

// An image reaches the runner as the bytes that the client meant, by way of each dialect; what is none, and what a model
// cannot see, is refused before a runner hears of it.
func TestImages(t *testing.T) {
	b := newBed(t)
	b.create("eye", map[string]any{"info": map[string]any{"capabilities": []string{"completion", "vision", "tools"}}})
	b.create("templated", map[string]any{"template": "{{ .Prompt }}", "info": map[string]any{"capabilities": []string{"completion", "vision", "tools"}}})
	b.createFrom("blind", plainModel(), nil)
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, form := range imageForms {
		for kind, data := range map[string]string{
			"image/png": "\x89PNG\r\n\x1a\n1", "image/jpeg": "\xff\xd8\xff2", "image/webp": "RIFF\x00\x00\x00\x00WEBPVP3",
		} {
			for _, model := range []string{"eye", "templated"} {
				if r := b.post(form.path, form.body(model, kind, encode(data))); r.status != 200 {
					t.Errorf("%s of %s: %d %s", name, kind, r.status, r.body)
				} else if got := imagesOf(b.asked()); len(got) != 1 || got[0] != data {
					t.Errorf("%s of %s: the runner got %q, want %q", name, kind, got, data)
				}
			}
		}
		asked := len(b.requests)
		for what, tt := range map[string]struct{ model, kind, data, want string }{
			"a model that cannot see": {"blind", "image/png", encode("\x89PNG\r\n\x1a\n"), "registry.ollama.ai/library/blind:latest does not support vision"},
			"no base64":               {"eye", "image/png", "!", "base64"},
			"half base64":             {"eye", "image/png", "iVBORw0KGgo", "base64"},
			"a GIF":                   {"eye", "image/png", encode("GIF89a"), "an image must be JPEG, PNG or WebP, got image/gif"},
			"text":                    {"eye", "image/jpeg", encode("hello"), "an image must be JPEG, PNG or WebP, got text/plain"},
			"nothing":                 {"eye", "image/png", "", "an image must be JPEG, PNG or WebP, got text/plain"},
		} {
			r := b.post(form.path, form.body(tt.model, tt.kind, tt.data))
			if r.status != 400 || !strings.Contains(r.body, tt.want) {
				t.Errorf("%s with %s: got %d %s, want %s", name, what, r.status, r.body, tt.want)
			}
		}
		if strings.HasPrefix(form.path, "/v1/") {
			if r := b.post(form.path, form.body("eye", "image/gif", encode("GIF89a"))); r.status != 400 || !strings.Contains(strings.ToLower(r.body), "png") {
				t.Errorf("%s with a type that is not offered: got %d %s", name, r.status, r.body)
			}
		}
		if len(b.requests) != asked {
			t.Errorf("%s: a runner was asked for what is refused", name)
		}
	}
	// Images are not fetched from where a request says that they are.
	for path, body := range map[string]string{
		"/v1/chat/completions": `{"model": "eye", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]}]}`,
		"/v1/responses":        `{"model": "eye", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///x.png"}]}]}`,
		"/v1/messages":         `{"model": "eye", "max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/x.png"}}]}]}`,
		"/api/chat":            `{"model": "eye", "messages": [{"role": "user", "content": "x", "images": ["http://127.0.0.1:9/x.png"]}]}`,
	} {
		if r := b.post(path, body); r.status != 400 {
			t.Errorf("%s: got %d %s", path, r.status, r.body)
		}
	}
}
