// Package prompt renders conversations with a model's Modelfile template and parses the answers to them.
//
// Most models carry a chat template in their tokenizer, and the runner renders that and parses the answer. A model made
// with TEMPLATE or RENDERER in its Modelfile, and a request that brings a template of its own, are rendered here instead,
// with Ollama's template engine or its renderers, and then the answer is parsed here too. The invariant: who renders,
// parses.
package prompt

import (
	"bytes"
	"slices"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/template"
	"github.com/ollama/ollama/thinking"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// Template is a parsed Modelfile template.
type Template struct {
	tmpl *template.Template
	vars []string
	// open and closing are the tags around reasoning, as the template writes it; empty if it has none.
	open, closing string
}

// Parse parses the text of a template; an error is of kind ErrInvalid.
func Parse(text string) (*Template, error) {
	t, err := template.Parse(text)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "template error: %w", err)
	}
	vars, err := t.Vars()
	if err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "template error: %w", err)
	}
	open, closing := thinking.InferTags(t.Template)
	if open == "" || closing == "" {
		open, closing = "", ""
	}
	return &Template{tmpl: t, vars: vars, open: open, closing: closing}, nil
}

// Inserts reports whether the template can put text between a prompt and a suffix.
func (t *Template) Inserts() bool { return slices.Contains(t.vars, "suffix") }

// Tools reports whether the template shows tools to the model.
func (t *Template) Tools() bool { return slices.Contains(t.vars, "tools") }

// Thinks reports whether the template knows reasoning.
func (t *Template) Thinks() bool { return t.open != "" }

// Params is what to render: either messages, or a prompt with a suffix.
type Params struct {
	Messages []api.Message
	Tools    []api.Tool
	// Prompt and Suffix surround what is to be generated.
	Prompt, Suffix string
	// Think is the wish for reasoning, nil for none.
	Think *Think
}

// Think is a wish for reasoning: off, on, or on with a level.
type Think struct {
	Enabled bool
	Level   string
}

// Render returns the text that the model is to continue.
func (t *Template) Render(p Params) (text string, err error) {
	// The engine panics on trees that it cannot cut; a template is the user's input and must not take more than its
	// request with it.
	defer func() {
		if r := recover(); r != nil {
			err = errdefs.New(errdefs.ErrInvalid, "template error: %v", r)
		}
	}()
	v := template.Values{Tools: p.Tools, Prompt: p.Prompt, Suffix: p.Suffix}
	// The engine joins messages in place.
	v.Messages = slices.Clone(p.Messages)
	if p.Think != nil {
		v.IsThinkSet, v.Think, v.ThinkLevel = true, p.Think.Enabled, p.Think.Level
		if v.Think && v.ThinkLevel == "" {
			v.ThinkLevel = "medium"
		}
	}
	var b bytes.Buffer
	if err := t.tmpl.Execute(&b, v); err != nil {
		return "", errdefs.New(errdefs.ErrInvalid, "template error: %w", err)
	}
	return b.String(), nil
}
