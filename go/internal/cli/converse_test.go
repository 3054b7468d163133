package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/readline"

	"github.com/ollmlx/ollmlx/go/internal/config"
)

// typed is a user who types lines and then presses Ctrl-D. The line "^C" is Ctrl-C; a line that ends in
// "\v" is part of a paste that goes on, one that ends in "^G" is taken to an editor.
type typed struct {
	lines     []string
	begun     string
	continued []bool
	history   []bool
}

func (u *typed) Begin(text string) { u.begun = text }

func (u *typed) ReadLine(continued bool) (string, bool, error) {
	u.continued = append(u.continued, continued)
	if len(u.lines) == 0 {
		return "", false, io.EOF
	}
	line := u.lines[0]
	u.lines = u.lines[1:]
	if line == "^C" {
		return "", false, readline.ErrInterrupt
	}
	line, u.begun = u.begun+line, ""
	if text, ok := strings.CutSuffix(line, "^G"); ok {
		return text, false, readline.ErrEditPrompt
	}
	text, pasting := strings.CutSuffix(line, "\v")
	return text, pasting, nil
}

func (u *typed) KeepHistory(keep bool) { u.history = append(u.history, keep) }

func converse(t *testing.T, f *fakeServer, lines ...string) (*conversation, string) {
	t.Helper()
	return converseWith(t, f, &api.ShowResponse{}, lines...)
}

func converseWith(t *testing.T, f *fakeServer, info *api.ShowResponse, lines ...string) (*conversation, string) {
	t.Helper()
	var out strings.Builder
	a := newApp(Params{Config: config.Config{Host: f.host(t), Editor: os.Getenv("EDITOR")}, In: strings.NewReader(""), Out: &out, Err: &out})
	c := &conversation{
		app: a, client: a.client(), lines: &typed{lines: lines}, info: info,
		opts: runOptions{Model: "demo", Options: map[string]any{}},
	}
	if err := c.loop(context.Background()); err != nil {
		t.Fatal(err)
	}
	return c, out.String()
}

func chatting(t *testing.T) *fakeServer {
	f := newFakeServer(t)
	f.answers("POST /api/chat", 200,
		`{"message":{"role":"assistant","thinking":"hm"}}`, `{"message":{"role":"assistant","content":"Fine."}}`,
		`{"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","eval_count":2,"eval_duration":1000000000}`)
	f.answers("POST /api/show", 200, demoInfo)
	f.answers("POST /api/generate", 200, `{"done":true,"done_reason":"load"}`)
	f.answers("GET /api/tags", 200, `{"models":[{"name":"demo:latest"}]}`)
	f.answers("POST /api/create", 200, `{"status":"success"}`)
	return f
}

func messagesOf(body map[string]any) string {
	var parts []string
	for _, m := range body["messages"].([]any) {
		message := m.(map[string]any)
		parts = append(parts, fmt.Sprintf("%s:%s", message["role"], message["content"]))
	}
	return strings.Join(parts, "|")
}

func TestConversationCarriesItsHistory(t *testing.T) {
	f := chatting(t)
	_, out := converse(t, f, "How are you?", "", "And now?")
	if want := "Thinking...\nhm\n...done thinking.\n\nFine.\n\n"; strings.Count(out, want) != 2 {
		t.Errorf("got %q", out)
	}
	asked := f.asked("POST /api/chat")
	if len(asked) != 2 {
		t.Fatalf("got %d requests, want 2: an empty line is no message", len(asked))
	}
	if got := messagesOf(asked[1]); got != "user:How are you?|assistant:Fine.|user:And now?" {
		t.Errorf("got %q", got)
	}
}

func TestConversationSettings(t *testing.T) {
	f := chatting(t)
	c, out := converse(t, f,
		"/set system Be  brief.", "/set parameter temperature 0.5", "/set parameter stop a b", "/set think high", "/set format json",
		"/set verbose", "/set nowordwrap", "/set nohistory", "hi", "/set noformat", "/set nothink", "/set quiet", "/clear", "again", "/bye", "never said")
	asked := f.asked("POST /api/chat")
	if len(asked) != 2 {
		t.Fatalf("got %d requests", len(asked))
	}
	if got := messagesOf(asked[0]); got != "system:Be  brief.|user:hi" {
		t.Errorf("got %q", got)
	}
	if got := fmt.Sprintf("%v %v %v", asked[0]["options"], asked[0]["think"], asked[0]["format"]); got != "map[stop:[a b] temperature:0.5] high json" {
		t.Errorf("got %s", got)
	}
	if got := messagesOf(asked[1]); got != "system:Be  brief.|user:again" {
		t.Errorf("/clear keeps the system message only: got %q", got)
	}
	if asked[1]["format"] != nil || asked[1]["think"] != false {
		t.Errorf("got format %v, think %v", asked[1]["format"], asked[1]["think"])
	}
	if strings.Count(out, "eval rate:") != 1 {
		t.Errorf("timings are shown when wished: got %q", out)
	}
	if got := fmt.Sprint(c.lines.(*typed).history); got != "[false]" {
		t.Errorf("got history switches %s", got)
	}
	for _, want := range []string{"Set system message.\n", "Set parameter 'stop' to 'a, b'\n", "Set 'think' mode to 'high'.\n", "Set 'nothink' mode.\n", "Cleared session context\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}

func TestConversationMessagesOfSeveralLines(t *testing.T) {
	f := chatting(t)
	c, _ := converse(t, f,
		`"""one`, `two"""`, `"""single"""`, "pasted\v", "lines", `/set system """You are`, `brief."""`, "/usr/bin is a path")
	asked := f.asked("POST /api/chat")
	if len(asked) != 4 {
		t.Fatalf("got %d requests", len(asked))
	}
	for i, want := range []string{"user:one\ntwo", "user:single", "user:pasted\nlines", "user:/usr/bin is a path"} {
		if got := messagesOf(asked[i]); !strings.HasSuffix(got, want) {
			t.Errorf("message %d: got %q, want %q", i, got, want)
		}
	}
	if c.opts.System != "You are\nbrief." {
		t.Errorf("got system %q", c.opts.System)
	}
	if got := fmt.Sprint(c.lines.(*typed).continued[:3]); got != "[false true false]" {
		t.Errorf("got prompts %s", got)
	}
}

func TestConversationSurvivesErrorsAndInterrupts(t *testing.T) {
	f := chatting(t)
	f2 := newFakeServer(t)
	f2.answers("POST /api/chat", 500, `{"error":"the runner died"}`)
	c, out := converse(t, f2, "hi", "^C", "/set bogus", "/bogus", "/set parameter temperature hot", "/set think sometimes", "/set format xml", "/load", "/save", "/show bogus")
	for _, want := range []string{
		"Error: the runner died", "Use Ctrl + d or /bye to exit.", "unknown command '/set bogus'", "unknown command '/bogus'",
		"couldn't set parameter", `thinking level "sometimes"`, "invalid or missing format", "usage: /load", "usage: /save",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	if len(c.opts.Messages) != 0 {
		t.Errorf("a failed exchange stays in the conversation: %v", c.opts.Messages)
	}
	_, out = converse(t, f, `"""begun`, "^C", "fresh")
	if got := messagesOf(f.asked("POST /api/chat")[0]); got != "user:fresh" {
		t.Errorf("Ctrl-C drops a half message: got %q (%q)", got, out)
	}
}

func TestConversationCommandsAboutModels(t *testing.T) {
	f := chatting(t)
	c, out := converse(t, f, "hi", "/save mine", "/load other", "/list", "/show info", "/show license", "/show parameters", "/show system", "/?", "/? set", "/help shortcuts", "/show", "/set")
	if c.opts.Model != "other" || len(c.opts.Messages) != 0 {
		t.Errorf("got model %q and %d messages", c.opts.Model, len(c.opts.Messages))
	}
	saved := f.asked("POST /api/create")[0]
	if saved["model"] != "mine" || saved["from"] != "demo" || len(saved["messages"].([]any)) != 2 {
		t.Errorf("got %v", saved)
	}
	for _, want := range []string{
		"Created new model 'mine'", "Loading model 'other'", "demo:latest", "architecture", "line two", "Model defined parameters:", "Be brief.",
		"/set            Set session variables", "/set think [level]", "Ctrl + a", "/show info",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}

func TestConversationGoesOnInAnEditor(t *testing.T) {
	f := chatting(t)
	t.Setenv("EDITOR", `sed -i.bak -e 's/cat/dog/' -e '$a more'`)
	c, out := converse(t, f, "a cat^G", " and a bird", `"""one`, "cat^G", "", "plain")
	var got []string
	for _, body := range f.asked("POST /api/chat") {
		got = append(got, messagesOf(body))
	}
	want := "user:a dog\nmore and a bird"
	if len(got) != 3 || got[0] != want || !strings.HasSuffix(got[1], "|user:one\ndog\nmore") || !strings.HasSuffix(got[2], "|user:plain") {
		t.Errorf("got %q (%s)", got, out)
	}
	if c.lines.(*typed).begun != "" {
		t.Errorf("left at the prompt: %q", c.lines.(*typed).begun)
	}
	t.Setenv("EDITOR", "exit 3;")
	if _, out := converse(t, f, "kept^G", ""); !strings.Contains(out, `the editor "exit 3;" failed: exit status 3; choose another one with OLLAMA_EDITOR`) {
		t.Errorf("got %q", out)
	}
	asked := f.asked("POST /api/chat")
	if got := messagesOf(asked[len(asked)-1]); got != "user:kept" {
		t.Errorf("a failed editor loses the message: got %q", got)
	}
}
