package prompt

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/model/parsers"
	"github.com/ollama/ollama/thinking"
	"github.com/ollama/ollama/tools"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Parser splits the plain content of an answer into reasoning, tool calls and content. It is made for one answer.
type Parser struct {
	// named is one of Ollama's parsers; without it, think and tools are what the template told.
	named parsers.Parser
	think *thinking.Parser
	tools *tools.Parser
	calls uint32
	// unread is what the named parser has been given since it gave something back; given up says that it could make
	// nothing of it.
	unread  string
	givenUp bool
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
	if p.named != nil {
		p.addNamed(d, content, false)
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
	p.addCalls(d, calls)
}

func (p *Parser) addCalls(d *runnerpb.Delta, calls []api.ToolCall) {
	for _, c := range calls {
		d.ToolCalls = append(d.ToolCalls, &runnerpb.ToolCall{
			Id: c.ID, Name: c.Function.Name, ArgumentsJson: c.Function.Arguments.String(), Index: p.calls,
		})
		p.calls++
	}
}

// addNamed has the named parser read content; last tells that nothing follows. What it fails at comes out as content, and
// so does all that follows: nothing of an answer is lost.
func (p *Parser) addNamed(d *runnerpb.Delta, content string, last bool) {
	if p.givenUp {
		d.Content = content
		return
	}
	p.unread += content
	text, thoughts, calls, err := p.readNamed(content, last)
	if err != nil {
		slog.Warn("an answer cannot be parsed and is given as it is", "error", err)
		d.Content, p.unread, p.givenUp = p.unread, "", true
		return
	}
	d.Content, d.Thinking = text, thoughts
	p.addCalls(d, calls)
	if text != "" || thoughts != "" || len(calls) > 0 {
		p.unread = ""
	}
}

func (p *Parser) readNamed(content string, last bool) (text, thoughts string, calls []api.ToolCall, err error) {
	// What a model says is no reason to end a server.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the parser failed: %v", r)
		}
	}()
	return p.named.Add(content, last)
}

// End returns what was held back when the answer ended: the beginning of a tag that never came, or a tool call that is
// none. It is nil if there is nothing.
func (p *Parser) End() *runnerpb.Delta {
	d := &runnerpb.Delta{}
	if p.named != nil {
		p.addNamed(d, "", true)
	}
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
