package prompt

import (
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/thinking"
	"github.com/ollama/ollama/tools"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Parser splits the plain content of an answer into reasoning, tool calls and content. It is made for one answer.
type Parser struct {
	think *thinking.Parser
	tools *tools.Parser
	calls uint32
}

// Parser returns a parser for the answer to a rendered prompt; nil if the answer needs none.
func (t *Template) Parser(rendered string, p Params) *Parser {
	var x Parser
	if t.Thinks() && p.Think != nil && p.Think.Enabled {
		x.think = &thinking.Parser{OpeningTag: t.open, ClosingTag: t.closing}
		if strings.HasSuffix(strings.TrimSpace(rendered), t.open) {
			x.think.AddContent(t.open)
		}
	}
	if len(p.Tools) > 0 {
		x.tools = tools.NewParser(t.tmpl.Template, p.Tools)
	}
	if x.think == nil && x.tools == nil {
		return nil
	}
	return &x
}

// Add replaces the content of d by what it is found to be. Text that may be the beginning of a tag is held back.
func (p *Parser) Add(d *runnerpb.Delta) {
	content := d.GetContent()
	if content == "" {
		return
	}
	if p.think != nil {
		d.Thinking, content = p.think.AddContent(content)
	}
	d.Content = content
	if p.tools == nil || content == "" {
		return
	}
	var calls []api.ToolCall
	calls, d.Content = p.tools.Add(content)
	for _, c := range calls {
		d.ToolCalls = append(d.ToolCalls, &runnerpb.ToolCall{
			Name: c.Function.Name, ArgumentsJson: c.Function.Arguments.String(), Index: p.calls,
		})
		p.calls++
	}
}

// End returns what was held back when the answer ended: the beginning of a tag that never came, or a tool call that is
// none. It is nil if there is nothing.
func (p *Parser) End() *runnerpb.Delta {
	d := &runnerpb.Delta{}
	if p.think != nil {
		// The parser cannot be asked for what it holds, but lets it go when a character follows that is in no tag.
		const no = "\x00"
		th, content := p.think.AddContent(no)
		d.Thinking, d.Content = strings.TrimSuffix(th, no), strings.TrimSuffix(content, no)
	}
	if p.tools != nil {
		if d.Content != "" {
			content := d.Content
			d.Content = ""
			rest := &runnerpb.Delta{Content: content}
			(&Parser{tools: p.tools, calls: p.calls}).Add(rest)
			d.Content, d.ToolCalls = rest.Content, rest.ToolCalls
			p.calls += uint32(len(rest.ToolCalls))
		}
		if p.calls == 0 {
			d.Content += string(p.tools.GetBuffer())
		}
	}
	if d.Content == "" && d.Thinking == "" && len(d.ToolCalls) == 0 {
		return nil
	}
	return d
}
