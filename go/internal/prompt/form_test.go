package prompt

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/model/parsers"
	"github.com/ollama/ollama/model/renderers"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

var question = []api.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: "Weather in Rome?"}}

func mustNew(t *testing.T, s Source) *Form {
	t.Helper()
	f, err := New(s)
	if err != nil || f == nil {
		t.Fatalf("%+v: got %v, %v", s, f, err)
	}
	return f
}

// All names that are told to users are upstream's.
func TestNamesAreKnownUpstream(t *testing.T) {
	for name, parser := range rendererParsers {
		text, err := renderers.RenderWithRenderer(name, question, []api.Tool{weather}, nil)
		if err != nil || !strings.Contains(text, "Weather in Rome?") {
			t.Errorf("%s: got %q, %v", name, text, err)
		}
		if !slices.Contains(parserNames, parser) {
			t.Errorf("%s has the unknown parser %s", name, parser)
		}
	}
	for _, name := range parserNames {
		if parsers.ParserForName(name) == nil {
			t.Errorf("there is no parser %s", name)
		}
	}
	if !slices.IsSorted(parserNames) {
		t.Error("the parsers are not sorted")
	}
}

func TestCheckNames(t *testing.T) {
	if err := errors.Join(CheckNames("", ""), CheckNames("qwen3-coder", ""), CheckNames("", "harmony")); err != nil {
		t.Error(err)
	}
	for _, err := range []error{CheckNames("nope", ""), CheckNames("", "nope"), CheckNames("harmony", "")} {
		if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "; there are cogito, deepseek3") {
			t.Errorf("got %v", err)
		}
	}
}

// What is rendered where: a renderer before a template, a template before nothing; unknown names count as none.
func TestNew(t *testing.T) {
	for _, s := range []Source{{}, {Parser: "qwen3"}, {Renderer: "from-the-future", Parser: "from-the-future"}} {
		if f, err := New(s); f != nil || err != nil {
			t.Errorf("%+v: got %v, %v", s, f, err)
		}
	}
	if _, err := New(Source{Template: "{{"}); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	harmony := "<|start|>user<|message|>{{ .Prompt }}<|end|>"
	for _, tt := range []struct {
		source        Source
		text, parser  string
		tools, thinks bool
	}{
		{Source{Renderer: "qwen3-coder"}, "<|im_start|>user\nWeather in Rome?", "qwen3-coder", true, false},
		{Source{Renderer: "olmo3.1"}, "<|im_start|>", "olmo3", true, false},
		{Source{Renderer: "qwen3-vl-thinking", Template: "unused"}, "<think>", "qwen3-vl-thinking", true, true},
		{Source{Renderer: "qwen3-coder", Parser: "passthrough"}, "<|im_start|>", "passthrough", false, false},
		{Source{Template: "[{{ .Prompt }}]", Parser: "qwen3-thinking"}, "[Weather in Rome?]", "qwen3-thinking", true, true},
		{Source{Template: "[{{ .Prompt }}]", Renderer: "from-the-future"}, "[Weather in Rome?]", "", false, false},
		{Source{Template: chatML}, "<|im_start|>", "", true, true},
		{Source{Template: harmony, Family: "gptoss"}, "<|message|>Weather", "harmony", true, true},
		{Source{Template: harmony, Family: "llama"}, "<|message|>Weather", "", false, false},
	} {
		f := mustNew(t, tt.source)
		r, err := f.Render(Params{Messages: question})
		if err != nil || !strings.Contains(r.Text, tt.text) {
			t.Errorf("%+v renders %+v, %v", tt.source, r, err)
		}
		if f.parser != tt.parser || f.Tools() != tt.tools || f.Thinks() != tt.thinks {
			t.Errorf("%+v: got parser %q, tools %v, thinks %v", tt.source, f.parser, f.Tools(), f.Thinks())
		}
	}
}

func TestRenderersRefuseWhatTheyCannot(t *testing.T) {
	f := mustNew(t, Source{Renderer: "qwen3-coder"})
	if _, err := f.Render(Params{Prompt: "a", Suffix: "b"}); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	// Whatever a request says, no renderer ends the process.
	odd := []api.Message{{}, {Role: "tool"}, {Role: "assistant", ToolCalls: []api.ToolCall{{}}}, {Role: "nobody", Content: "x", Images: []api.ImageData{nil}}, {Role: "assistant", Thinking: "x"}}
	for name := range rendererParsers {
		for _, msgs := range [][]api.Message{nil, odd, odd[1:], odd[2:], odd[3:], odd[4:]} {
			if _, err := mustNew(t, Source{Renderer: name}).Render(Params{Messages: msgs, Tools: []api.Tool{{}}}); err != nil && !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%s: got %v", name, err)
			}
		}
	}
}

// answer feeds an answer piece by piece and joins what came of it.
func answer(p *Parser, pieces ...string) (content, thinking string, calls []*runnerpb.ToolCall) {
	take := func(d *runnerpb.Delta) {
		content, thinking = content+d.GetContent(), thinking+d.GetThinking()
		calls = append(calls, d.GetToolCalls()...)
	}
	for _, piece := range pieces {
		d := &runnerpb.Delta{Content: piece}
		if p != nil {
			p.Add(d)
		}
		take(d)
	}
	if p != nil {
		take(p.End())
	}
	return content, thinking, calls
}

func TestNamedParsers(t *testing.T) {
	const coder = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
	for _, tt := range []struct {
		name              string
		source            Source
		think             *Think
		answer            string
		content, thinking string
		call              string
	}{
		{"qwen3-coder", Source{Renderer: "qwen3-coder"}, nil, "Let me see." + coder, "Let me see.", "", `weather {"city":"Rome"}`},
		{"qwen3-vl-thinking", Source{Renderer: "qwen3-vl-thinking"}, &Think{Enabled: true}, "Rome?\n</think>\n\nSunny.", "Sunny.", "Rome?", ""},
		{"deepseek3.1 without thinking", Source{Renderer: "deepseek3.1"}, &Think{}, "Sunny.", "Sunny.", "", ""},
		{"passthrough", Source{Renderer: "qwen3-coder", Parser: "passthrough"}, nil, coder, coder, "", ""},
		{"harmony", Source{Template: "<|start|>user<|message|>{{ .Prompt }}<|end|>", Family: "gptoss"}, nil,
			"<|channel|>analysis<|message|>Rome?<|end|><|start|>assistant<|channel|>final<|message|>Sunny.", "Sunny.", "Rome?", ""},
		{"what no parser reads", Source{Renderer: "qwen3-coder"}, nil, "<tool_call>nonsense</tool_call> and more", "nonsense and more", "", ""},
		{"a call that is cut", Source{Renderer: "qwen3-coder"}, nil, "a<tool_call>\n<function=wea", "a", "", ""},
	} {
		for _, size := range []int{1, 5, 1000} {
			r, err := mustNew(t, tt.source).Render(Params{Messages: question, Tools: []api.Tool{weather}, Think: tt.think})
			if err != nil {
				t.Fatal(err)
			}
			var pieces []string
			for piece := range slices.Chunk([]byte(tt.answer), size) {
				pieces = append(pieces, string(piece))
			}
			content, thinking, calls := answer(r.Parser, pieces...)
			call := ""
			for _, c := range calls {
				call += c.GetName() + " " + c.GetArgumentsJson()
			}
			if tt.name == "what no parser reads" {
				// Nothing is lost, however it was cut.
				if !strings.Contains(content, "nonsense") || !strings.HasSuffix(content, "and more") {
					t.Errorf("%s in pieces of %d: got %q", tt.name, size, content)
				}
				continue
			}
			if strings.TrimSpace(content) != tt.content || strings.TrimSpace(thinking) != tt.thinking || call != tt.call {
				t.Errorf("%s in pieces of %d: got content %q, thinking %q, calls %q", tt.name, size, content, thinking, call)
			}
		}
	}
}

type brokenParser struct{ panics bool }

func (brokenParser) Init(t []api.Tool, _ *api.Message, _ *api.ThinkValue) []api.Tool { return t }
func (b brokenParser) Add(s string, _ bool) (string, string, []api.ToolCall, error) {
	switch {
	case s == "ok ":
		return s, "", nil, nil
	case s == "bad" && b.panics:
		panic("index out of range")
	case s == "bad":
		return "", "", nil, errors.New("no JSON")
	}
	return "", "", nil, nil
}
func (brokenParser) HasToolSupport() bool     { return true }
func (brokenParser) HasThinkingSupport() bool { return false }

// A parser that fails gives what it has been given, and all that follows.
func TestParserThatFails(t *testing.T) {
	for _, panics := range []bool{false, true} {
		content, _, _ := answer(&Parser{named: brokenParser{panics}}, "ok ", "held ", "bad", " and more")
		if content != "ok held bad and more" {
			t.Errorf("got %q", content)
		}
	}
}

func TestReasoning(t *testing.T) {
	thinking := "{{ range .Messages }}{{ if .Thinking }}<r>{{ .Thinking }}</r>{{ end }}{{ .Content }}{{ end }}"
	for _, tt := range []struct {
		name   string
		source Source
		think  *Think
		want   *runnerpb.Reasoning
	}{
		{"opened in the prompt", Source{Renderer: "qwen3-vl-thinking"}, &Think{Enabled: true}, &runnerpb.Reasoning{End: "</think>"}},
		{"closed in the prompt", Source{Renderer: "qwen3.5"}, &Think{}, nil},
		{"begun by the model", Source{Renderer: "lfm2-thinking"}, &Think{Enabled: true}, &runnerpb.Reasoning{Begin: "<think>", End: "</think>"}},
		{"no thinking", Source{Renderer: "qwen3-coder"}, nil, nil},
		{"a template's own tags", Source{Template: thinking}, &Think{Enabled: true}, &runnerpb.Reasoning{Begin: "<r>", End: "</r>"}},
		{"a template, opened", Source{Template: thinking + "<r>"}, &Think{Enabled: true}, &runnerpb.Reasoning{End: "</r>"}},
		{"a template, not wanted", Source{Template: thinking}, &Think{}, nil},
		{"harmony", Source{Template: "<|start|>{{ .Prompt }}<|end|>", Family: "gptoss"}, nil, &runnerpb.Reasoning{End: "<|channel|>final<|message|>"}},
	} {
		r, err := mustNew(t, tt.source).Render(Params{Messages: question, Think: tt.think})
		if err != nil || r.Reasoning.String() != tt.want.String() {
			t.Errorf("%s: got %v, %v, want %v", tt.name, r.Reasoning, err, tt.want)
		}
	}
}
