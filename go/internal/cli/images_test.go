package cli

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"
)

const (
	pngBytes  = "\x89PNG\r\n\x1a\nrest"
	jpegBytes = "\xff\xd8\xffrest"
	webpBytes = "RIFF\x00\x00\x00\x00WEBPVP8 rest"
)

// imageDir makes files and goes to their directory.
func imageDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("HOME", dir)
	return dir
}

func TestImagesOfPrompts(t *testing.T) {
	dir := imageDir(t, map[string]string{
		"a.png": pngBytes, "B.JPG": jpegBytes, "c.jpeg": jpegBytes, "d.webp": webpBytes, "my pic.png": pngBytes, "it's (1).png": pngBytes,
	})
	for _, tt := range []struct {
		prompt, rest string
		images       int
	}{
		{"what is ./a.png", "what is", 1},
		{"./a.png?", "?", 1},
		{dir + "/a.png what is it", "what is it", 1},
		{"~/a.png", "", 1},
		{"compare ./a.png and ./B.JPG, ./c.jpeg with ./d.webp", "compare  and ,  with", 4},
		{`see './my pic.png' now`, "see  now", 1},
		{`see "./my pic.png"`, "see", 1},
		{`./my\ pic.png`, "", 1},
		{`./my pic.png`, "", 1},
		{`./it\'s\ \(1\).png`, "", 1},
		{"two lines\n./a.png\nmore", "two lines\n\nmore", 1},
		{"a.png is a name, ./none.png is none, nor is https://x.test/a.png", "a.png is a name, ./none.png is none, nor is https://x.test/a.png", 0},
		{"./a.pngs and/or ./a", "./a.pngs and/or ./a", 0},
		{"", "", 0},
	} {
		var said strings.Builder
		rest, images, err := (&app{err: &said}).withImages(tt.prompt)
		if err != nil || rest != tt.rest || len(images) != tt.images {
			t.Errorf("%q: got %q, %d images, %v; want %q, %d", tt.prompt, rest, len(images), err, tt.rest, tt.images)
		}
		if got := strings.Count(said.String(), "Added image '"); got != tt.images {
			t.Errorf("%q: said %q", tt.prompt, said.String())
		}
	}
}

func TestFilesThatAreNoImages(t *testing.T) {
	dir := imageDir(t, map[string]string{"text.png": "hello", "big.png": pngBytes, "anim.png": "GIF89a"})
	if err := os.Truncate(filepath.Join(dir, "big.png"), maxImageBytes+1); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.png"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"./text.png": "couldn't add image './text.png': it holds text/plain; charset=utf-8, and not a JPEG, PNG or WebP image",
		"./anim.png": "couldn't add image './anim.png': it holds image/gif, and not a JPEG, PNG or WebP image",
		"./big.png":  "couldn't add image './big.png': it is larger than 100 MB",
		"./dir.png":  "",
	} {
		_, images, err := (&app{err: &strings.Builder{}}).withImages("see " + name)
		if got := fmt.Sprint(err); len(images) != 0 || (want != "" && got != want) || (want == "" && err != nil) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

func TestImagesReachTheServer(t *testing.T) {
	imageDir(t, map[string]string{"a.png": pngBytes, "text.png": "hello"})
	encoded := fmt.Sprintf("[%s]", base64.StdEncoding.EncodeToString([]byte(pngBytes)))
	f := answering(t, `{"response":"A dog."}`, lastLine)
	f.answers("POST /api/chat", 200, `{"message":{"role":"assistant","content":"A dog."},"done":true}`)

	// The model of this server cannot see, so a path is text to it.
	if got := runCLI(t, f.host(t), "", "run", "blind", "what is ./a.png"); got.code != 0 || strings.Contains(got.err, "image") {
		t.Errorf("got %+v", got)
	}
	if body := f.asked("POST /api/generate")[0]; body["images"] != nil || body["prompt"] != "what is ./a.png" {
		t.Errorf("got %v", body)
	}

	seeing := newFakeServer(t)
	seeing.answers("POST /api/show", 200, `{"capabilities":["completion","vision"]}`)
	seeing.answers("POST /api/generate", 200, `{"response":"A dog."}`, lastLine)
	if got := runCLI(t, seeing.host(t), "piped text", "run", "eye", "what is ./a.png"); got.code != 0 || got.err != "Added image './a.png'\n" {
		t.Errorf("got %+v", got)
	}
	if body := seeing.asked("POST /api/generate")[0]; fmt.Sprint(body["images"]) != encoded || body["prompt"] != "piped text what is" {
		t.Errorf("got %v", body)
	}
	if got := runCLI(t, seeing.host(t), "", "run", "eye", "what is ./text.png"); got.code != 1 || !strings.Contains(got.err, "Error: couldn't add image './text.png'") {
		t.Errorf("got %+v", got)
	}

	info := &api.ShowResponse{Capabilities: []model.Capability{model.CapabilityVision}}
	_, out := converseWith(t, f, info, "/?", "what is ./a.png", "/text.png or not", "and ./text.png", "again")
	asked := f.asked("POST /api/chat")
	if len(asked) != 3 {
		t.Fatalf("got %d requests: %s", len(asked), out)
	}
	first := asked[2]["messages"].([]any)[0].(map[string]any)
	if fmt.Sprint(first["images"]) != encoded || messagesOf(asked[2]) != "user:what is|assistant:A dog.|user:/text.png or not|assistant:A dog.|user:again" {
		t.Errorf("got %v", asked[2]["messages"])
	}
	for _, want := range []string{"Added image './a.png'\n", "Error: couldn't add image './text.png'", "to show it to the model"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}
