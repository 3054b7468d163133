package prompt

import (
	"errors"
	"testing"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

const chatML = `{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}
{{- if .Tools }}<tools>{{ range .Tools }}{{ . }}{{ end }}</tools>
{{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
`

var weather = api.Tool{Type: "function", Function: api.ToolFunction{Name: "weather", Parameters: func() api.ToolFunctionParameters {
	props := api.NewToolPropertiesMap()
	props.Set("city", api.ToolProperty{Type: api.PropertyType{"string"}})
	return api.ToolFunctionParameters{Type: "object", Properties: props}
}()}}

func mustParse(t *testing.T, text string) *Template {
	t.Helper()
	tmpl, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

func TestRender(t *testing.T) {
	msgs := []api.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: "one"}, {Role: "user", Content: "two"}}
	for _, tt := range []struct {
		name, tmpl string
		p          Params
		want       string
	}{
		{"messages", chatML, Params{Messages: msgs}, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none\n\ntwo<|im_end|>\n<|im_start|>assistant\n"},
		{"legacy", "[{{ .System }}] {{ .Prompt }} => {{ .Response }} END", Params{Messages: msgs}, "[Be brief.] one\n\ntwo => "},
		{"suffix", "<P>{{ .Prompt }}<S>{{ .Suffix }}<M>", Params{Prompt: "a", Suffix: "b"}, "<P>a<S>b<M>"},
		{"think", "{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}{{ range .Messages }}{{ end }}", Params{Messages: msgs, Think: &Think{Enabled: true, Level: "high"}}, "true high true"},
		{"no think", "{{ .Think }} {{ .IsThinkSet }}{{ range .Messages }}{{ end }}", Params{Messages: msgs}, "false false"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mustParse(t, tt.tmpl).Render(tt.p)
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
	if msgs[1].Content != "one" {
		t.Error("rendering changed the caller's messages")
	}
}

func TestBadTemplates(t *testing.T) {
	for _, text := range []string{"{{ .Prompt", "{{ nosuchfunc }}", "{{ if }}"} {
		if _, err := Parse(text); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%q: got %v", text, err)
		}
	}
	for _, text := range []string{"{{ index .Messages 99 }}", "{{ template \"missing\" }}{{ .Response }}"} {
		tmpl, err := Parse(text)
		if err != nil {
			continue
		}
		if _, err := tmpl.Render(Params{Messages: []api.Message{{Role: "user", Content: "x"}}}); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	tmpl := mustParse(t, chatML)
	if !tmpl.Thinks() || !tmpl.Tools() || tmpl.Inserts() {
		t.Errorf("chatml: thinks %v, tools %v, inserts %v", tmpl.Thinks(), tmpl.Tools(), tmpl.Inserts())
	}
	fim := mustParse(t, "{{ .Prompt }}{{ .Suffix }}")
	if fim.Thinks() || fim.Tools() || !fim.Inserts() {
		t.Errorf("fim: thinks %v, tools %v, inserts %v", fim.Thinks(), fim.Tools(), fim.Inserts())
	}
}

// Whatever the pieces in which an answer comes, its parts are the same, and nothing is lost.
func TestParserInAnyPieces(t *testing.T) {
	tmpl := mustParse(t, chatML)
	both := Params{Tools: []api.Tool{weather}, Think: &Think{Enabled: true}}
	for _, tt := range []struct {
		name, answer      string
		p                 Params
		thinking, content string
		calls             []string
	}{
		{"plain", "Hello <b>you</b>", both, "", "Hello <b>you</b>", nil},
		{"thinking", "<think>hm, so</think>\n\nHello", both, "hm, so", "Hello", nil},
		{"call", `<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>`, both, "", "", []string{`weather({"city":"Rome"})`}},
		{"thinking and call", `<think>x</think><tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>`, both, "x", "", []string{`weather({"city":"Rome"})`}},
		{"broken call is content", `<tool_call>{"name": "wea`, both, "", `<tool_call>{"name": "wea`, nil},
		{"end inside opening tag", "<thi", both, "", "<thi", nil},
		{"end inside closing tag", "<think>abc</thi", both, "abc</thi", "", nil},
		{"never closed", "<think>abc", both, "abc", "", nil},
	} {
		for size := 1; size <= len(tt.answer); size++ {
			p := tmpl.Parser("prompt", tt.p)
			var thinking, content string
			var calls []string
			take := func(d *runnerpb.Delta) {
				thinking += d.GetThinking()
				content += d.GetContent()
				for _, c := range d.GetToolCalls() {
					calls = append(calls, c.GetName()+"("+c.GetArgumentsJson()+")")
				}
			}
			for rest := tt.answer; rest != ""; {
				n := min(size, len(rest))
				d := &runnerpb.Delta{Content: rest[:n]}
				rest = rest[n:]
				p.Add(d)
				take(d)
			}
			take(p.End())
			if thinking != tt.thinking || content != tt.content || len(calls) != len(tt.calls) || (len(calls) > 0 && calls[0] != tt.calls[0]) {
				t.Errorf("%s in pieces of %d: thinking %q, content %q, calls %v", tt.name, size, thinking, content, calls)
			}
		}
	}
}

func TestParserOnlyWhenNeeded(t *testing.T) {
	tmpl := mustParse(t, chatML)
	if tmpl.Parser("x", Params{}) != nil || tmpl.Parser("x", Params{Think: &Think{}}) != nil {
		t.Error("an answer that has nothing to find gets a parser")
	}
	// A prompt that ends inside reasoning: the answer begins there.
	p := tmpl.Parser("...<think>\n", Params{Think: &Think{Enabled: true}})
	d := &runnerpb.Delta{Content: "why</think>because"}
	p.Add(d)
	if d.Thinking != "why" || d.Content != "because" {
		t.Errorf("got %q, %q", d.Thinking, d.Content)
	}
}
