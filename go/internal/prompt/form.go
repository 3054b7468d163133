package prompt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/model/parsers"
	"github.com/ollama/ollama/model/renderers"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Source is what a model or a request says about its prompts. Empty: nothing, so that the runner renders and parses.
type Source struct {
	// Template is the text of a Modelfile's TEMPLATE. Renderer and Parser are names of Ollama's own.
	Template, Renderer, Parser string
	// Family is the model's family, by which the answers of gpt-oss are known.
	Family string
}

// rendererParsers are the renderers that there are, and the parser of the answers to each.
var rendererParsers = map[string]string{
	"cogito": "cogito", "deepseek3.1": "deepseek3", "functiongemma": "functiongemma", "glm-4.7": "glm-4.7", "glm-ocr": "glm-ocr",
	"lfm2": "lfm2", "lfm2-thinking": "lfm2-thinking", "nemotron-3-nano": "nemotron-3-nano",
	"olmo3": "olmo3", "olmo3.1": "olmo3", "olmo3-think": "olmo3-think", "olmo3-32b-think": "olmo3-think",
	"qwen3-coder": "qwen3-coder", "qwen3-vl-instruct": "qwen3-vl-instruct", "qwen3-vl-thinking": "qwen3-vl-thinking", "qwen3.5": "qwen3.5",
}

// parserNames are the parsers that there are.
var parserNames = []string{
	"cogito", "deepseek3", "functiongemma", "glm-4.7", "glm-ocr", "harmony", "lfm2", "lfm2-thinking", "ministral", "nemotron-3-nano",
	"olmo3", "olmo3-think", "passthrough", "qwen3", "qwen3-coder", "qwen3-thinking", "qwen3-vl-instruct", "qwen3-vl-thinking", "qwen3.5",
}

// CheckNames refuses names of renderers and parsers that do not exist, and lists those that do. Empty names are right.
func CheckNames(renderer, parser string) error {
	if _, ok := rendererParsers[renderer]; !ok && renderer != "" {
		return errdefs.New(errdefs.ErrInvalid, "unknown renderer %.100q; there are %s", renderer, strings.Join(rendererNames(), ", "))
	}
	if parser != "" && !slices.Contains(parserNames, parser) {
		return errdefs.New(errdefs.ErrInvalid, "unknown parser %.100q; there are %s", parser, strings.Join(parserNames, ", "))
	}
	return nil
}

func rendererNames() []string {
	names := make([]string, 0, len(rendererParsers))
	for name := range rendererParsers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Form renders the conversations of a model and parses the answers to them.
type Form struct {
	// tmpl renders, unless a renderer does.
	tmpl     *Template
	renderer string
	parser   string
}

// New returns the form that a source stands for; nil if the runner is to render. Names that do not exist here, which
// models from elsewhere may have, count as none: such a model has a template of its own as a rule.
func New(s Source) (*Form, error) {
	f := &Form{}
	parser, known := rendererParsers[s.Renderer]
	switch {
	case known:
		f.renderer, f.parser = s.Renderer, parser
	case s.Template != "":
		var err error
		if f.tmpl, err = Parse(s.Template); err != nil {
			return nil, err
		}
		if isHarmony(s) {
			f.parser = "harmony"
		}
	default:
		return nil, nil
	}
	if slices.Contains(parserNames, s.Parser) {
		f.parser = s.Parser
	}
	return f, nil
}

// isHarmony recognises templates of gpt-oss, whose answers no template tells how to read.
func isHarmony(s Source) bool {
	return slices.Contains([]string{"gptoss", "gpt-oss", "gpt_oss"}, s.Family) &&
		strings.Contains(s.Template, "<|start|>") && strings.Contains(s.Template, "<|end|>")
}

// Tools reports whether the model is shown tools and its calls are understood.
func (f *Form) Tools() bool {
	return f.named() != nil && f.named().HasToolSupport() || f.tmpl != nil && f.tmpl.Tools()
}

// Thinks reports whether reasoning is told from the rest of an answer.
func (f *Form) Thinks() bool {
	return f.named() != nil && f.named().HasThinkingSupport() || f.tmpl != nil && f.tmpl.Thinks()
}

// Inserts reports whether the form itself can put text between a prompt and a suffix.
func (f *Form) Inserts() bool { return f.tmpl != nil && f.tmpl.Inserts() }

// named returns a new parser, nil if the template alone tells how to parse.
func (f *Form) named() parsers.Parser {
	if f.parser == "" {
		return nil
	}
	return parsers.ParserForName(f.parser)
}

// Rendered is a prompt, and what its answer needs.
type Rendered struct {
	Text string
	// Parser parses the answer; nil if there is nothing to parse.
	Parser *Parser
	// Reasoning is how the answer may begin; nil if it does not reason.
	Reasoning *runnerpb.Reasoning
}

// Render renders a conversation, or a prompt and a suffix.
func (f *Form) Render(p Params) (*Rendered, error) {
	named := f.named()
	if named != nil {
		// It may have to rename the tools, so that it comes first.
		p.Tools = named.Init(p.Tools, lastOf(p.Messages), p.Think.value())
	}
	text, err := f.render(p)
	if err != nil {
		return nil, err
	}
	out := &Rendered{Text: text, Reasoning: f.reasoning(text, p)}
	if named == nil {
		out.Parser = f.tmpl.Parser(text, p)
	} else {
		out.Parser = &Parser{named: named}
	}
	return out, nil
}

func (f *Form) render(p Params) (text string, err error) {
	if f.renderer == "" {
		p.Messages = tagged(p.Messages)
		return f.tmpl.Render(p)
	}
	if p.Suffix != "" {
		return "", errdefs.New(errdefs.ErrUnsupported, "the renderer %q has no form for a suffix", f.renderer)
	}
	// Renderers trust their input more than a request deserves.
	defer func() {
		if r := recover(); r != nil {
			err = errdefs.New(errdefs.ErrInvalid, "the renderer %q cannot render these messages: %v", f.renderer, r)
		}
	}()
	text, err = renderers.RenderWithRenderer(f.renderer, slices.Clone(p.Messages), p.Tools, p.Think.value())
	if err != nil {
		return "", errdefs.New(errdefs.ErrInvalid, "the renderer %q cannot render these messages: %w", f.renderer, err)
	}
	return text, nil
}

// reasoning tells how the answer to a rendered prompt may reason before it answers, so that a grammar can wait for that.
func (f *Form) reasoning(text string, p Params) *runnerpb.Reasoning {
	begin, end := "<think>", "</think>"
	switch {
	case f.parser == "harmony":
		// Everything before the final channel.
		return &runnerpb.Reasoning{End: "<|channel|>final<|message|>"}
	case !f.Thinks():
		return nil
	case f.parser == "":
		begin, end = f.tmpl.open, f.tmpl.closing
	}
	if strings.HasSuffix(strings.TrimSpace(text), begin) {
		return &runnerpb.Reasoning{End: end}
	}
	if p.Think == nil || !p.Think.Enabled {
		return nil
	}
	return &runnerpb.Reasoning{Begin: begin, End: end}
}

func lastOf(msgs []api.Message) *api.Message {
	if len(msgs) == 0 {
		return nil
	}
	last := msgs[len(msgs)-1]
	return &last
}

// value returns the wish in Ollama's form, nil for none.
func (t *Think) value() *api.ThinkValue {
	switch {
	case t == nil:
		return nil
	case t.Enabled && t.Level != "":
		return &api.ThinkValue{Value: t.Level}
	default:
		return &api.ThinkValue{Value: t.Enabled}
	}
}

// String names the form for messages to users.
func (f *Form) String() string {
	if f.renderer != "" {
		return fmt.Sprintf("the RENDERER %s", f.renderer)
	}
	return "a Modelfile TEMPLATE"
}
