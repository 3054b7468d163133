package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-runewidth"
	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/readline"
)

// narrowest is the width below which wrapping words does more harm than good.
const narrowest = 10

// wrapper breaks lines between words. A word is held back until it ends, because only then is it known
// whether it fits, and so are the blanks before it, because a line break takes their place; flush
// releases them.
type wrapper struct {
	w      io.Writer
	width  int // columns; less than narrowest passes everything through
	column int
	blanks strings.Builder
	word   strings.Builder
}

func (p *wrapper) write(text string) {
	if p.width < narrowest {
		io.WriteString(p.w, text)
		return
	}
	for _, r := range text {
		switch {
		case r == '\n':
			p.flush()
			p.newline()
		case r == ' ' || r == '\t':
			if p.word.Len() > 0 {
				p.flush()
			}
			p.blanks.WriteRune(r)
		case runewidth.RuneWidth(r) > 1: // scripts of wide characters have no blanks to break at
			p.flush()
			p.put(string(r), runewidth.RuneWidth(r))
		default:
			p.word.WriteRune(r)
			if runewidth.StringWidth(p.word.String()) >= p.width {
				p.flush()
			}
		}
	}
}

// flush writes what is held back.
func (p *wrapper) flush() {
	word := p.word.String()
	p.word.Reset()
	p.put(word, runewidth.StringWidth(word))
}

// put writes the blanks that are held back and a word, or a line break and the word.
func (p *wrapper) put(word string, width int) {
	blanks := p.blanks.String()
	p.blanks.Reset()
	if p.column+len(blanks)+width > p.width && p.column > 0 && word != "" {
		p.newline()
		blanks = ""
	}
	io.WriteString(p.w, blanks+word)
	p.column += len(blanks) + width
}

func (p *wrapper) newline() {
	io.WriteString(p.w, "\n")
	p.column = 0
}

// answer prints one streamed answer: the thinking apart from the content, then tool calls.
type answer struct {
	out          *wrapper
	plain        bool // no colours
	hideThinking bool
	onFirst      func() // called once, before anything is printed

	started  bool
	thinking bool // the last thing printed was thinking
	newlined bool // thinking ended with a line break
	content  strings.Builder
	thoughts strings.Builder
}

func (a *app) newAnswer(opts *runOptions, onFirst func()) *answer {
	width := 0
	if opts.WordWrap {
		width = a.width()
	}
	return &answer{
		out:          &wrapper{w: a.out, width: width},
		plain:        !a.outTTY,
		hideThinking: opts.HideThinking,
		onFirst:      onFirst,
	}
}

// add prints what one message of the stream brought.
func (d *answer) add(thinking, content string, calls []api.ToolCall) {
	d.thoughts.WriteString(thinking)
	if thinking != "" && !d.hideThinking {
		d.start()
		if !d.thinking {
			d.thinking = true
			d.styled(readline.ColorGrey+readline.ColorBold, "Thinking...\n", readline.ColorDefault+readline.ColorGrey)
		}
		d.out.write(thinking)
		d.newlined = strings.HasSuffix(thinking, "\n")
	}
	if content == "" && len(calls) == 0 {
		return
	}
	d.start()
	d.endThinking()
	d.content.WriteString(content)
	d.out.write(content)
	if len(calls) > 0 {
		d.out.flush()
		d.styled(readline.ColorGrey, formatToolCalls(calls), readline.ColorDefault)
	}
}

// end closes the answer.
func (d *answer) end() {
	d.endThinking()
	d.out.flush()
}

func (d *answer) start() {
	if d.started {
		return
	}
	d.started = true
	if d.onFirst != nil {
		d.onFirst()
	}
}

func (d *answer) endThinking() {
	if !d.thinking {
		return
	}
	d.thinking = false
	d.out.flush()
	if !d.newlined {
		d.out.newline()
	}
	d.styled(readline.ColorGrey+readline.ColorBold, "...done thinking.\n\n", readline.ColorDefault)
	d.out.column = 0
}

func (d *answer) styled(before, text, after string) {
	if d.plain {
		before, after = "", ""
	}
	io.WriteString(d.out.w, before+text+after)
}

func formatToolCalls(calls []api.ToolCall) string {
	var sb strings.Builder
	for _, call := range calls {
		arguments, err := json.Marshal(call.Function.Arguments)
		if err != nil {
			arguments = []byte("{}")
		}
		fmt.Fprintf(&sb, "Model called a tool: %s(%s)\n", call.Function.Name, arguments)
	}
	return sb.String()
}
