package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/readline"
)

// multilineQuote begins and ends a message of several lines.
const multilineQuote = `"""`

// lineReader gives the lines that the user types. An error of readline.ErrInterrupt means Ctrl-C, io.EOF
// means Ctrl-D, and readline.ErrEditPrompt means that the user wants to go on with the line in an editor.
type lineReader interface {
	// ReadLine reads one line; continued asks for the prompt of a message's further lines. pasting means
	// that more lines of the same paste follow.
	ReadLine(continued bool) (line string, pasting bool, err error)
	// Begin puts text into the next line, for the user to go on with.
	Begin(text string)
	// KeepHistory switches the saving of lines.
	KeepHistory(bool)
}

// terminalReader is the line editor of a terminal.
type terminalReader struct {
	*readline.Instance
}

func newTerminalReader() (*terminalReader, error) {
	editor, err := readline.New(readline.Prompt{
		Prompt:         ">>> ",
		AltPrompt:      "... ",
		Placeholder:    "Send a message (/? for help)",
		AltPlaceholder: `Use """ to end multi-line input`,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the terminal: %w", err)
	}
	return &terminalReader{editor}, nil
}

func (t *terminalReader) ReadLine(continued bool) (string, bool, error) {
	t.Prompt.UseAlt = continued
	line, err := t.Readline()
	return line, t.Pasting, err
}

func (t *terminalReader) Begin(text string) { t.Prefill = text }

func (t *terminalReader) KeepHistory(keep bool) {
	if keep {
		t.HistoryEnable()
	} else {
		t.HistoryDisable()
	}
}

// conversation is one session at the interactive prompt.
type conversation struct {
	*app
	client *api.Client
	lines  lineReader
	opts   runOptions
	info   *api.ShowResponse
}

// converse holds a conversation until the user leaves.
func (a *app) converse(ctx context.Context, client *api.Client, opts runOptions, info *api.ShowResponse) error {
	lines, err := newTerminalReader()
	if err != nil {
		return err
	}
	lines.KeepHistory(!a.config.NoHistory)
	fmt.Fprint(a.out, readline.StartBracketedPaste)
	defer fmt.Fprint(a.out, readline.EndBracketedPaste)
	// Caught all the while: between two lines the terminal is not in raw mode, and a Ctrl-C that comes a
	// moment after the end of an answer must not cost the conversation.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	c := &conversation{app: a, client: client, lines: lines, opts: opts, info: info}
	c.showPastMessages()
	return c.loop(ctx)
}

// showPastMessages prints the conversation that the model itself begins with.
func (c *conversation) showPastMessages() {
	for _, m := range c.info.Messages {
		switch m.Role {
		case "user":
			fmt.Fprintf(c.out, ">>> %s\n", m.Content)
		case "assistant":
			answer := c.newAnswer(&c.opts, nil)
			answer.add("", m.Content, nil)
			answer.end()
			fmt.Fprint(c.out, "\n\n")
		}
	}
}

func (c *conversation) loop(ctx context.Context) error {
	for {
		message, err := c.readMessage()
		switch {
		case errors.Is(err, io.EOF):
			fmt.Fprintln(c.out)
			return nil
		case errors.Is(err, readline.ErrInterrupt):
			fmt.Fprintln(c.out, "\nUse Ctrl + d or /bye to exit.")
			continue
		case errors.Is(err, readline.ErrEditPrompt):
			c.editMessage(message)
			continue
		case err != nil:
			return err
		}
		if strings.TrimSpace(message) == "" {
			continue
		}
		if name, rest, ok := slashCommand(message); ok {
			if name == "bye" || name == "exit" {
				return nil
			}
			err = c.untilInterrupt(ctx, func(ctx context.Context) error { return c.command(ctx, name, rest) })
		} else {
			err = c.untilInterrupt(ctx, func(ctx context.Context) error { return c.answer(ctx, message) })
		}
		// The conversation outlives a failed answer: a typing error must not cost what was said so far.
		if err != nil {
			fmt.Fprintln(c.err, "Error:", errorText(err))
		}
	}
}

// untilInterrupt does work that Ctrl-C ends, which is no error.
func (c *conversation) untilInterrupt(ctx context.Context, work func(context.Context) error) error {
	ctx, release := signal.NotifyContext(ctx, os.Interrupt)
	defer release()
	err := work(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// editMessage has the user go on with a message in an editor, and then at the prompt.
func (c *conversation) editMessage(message string) {
	edited, err := c.edit(message)
	if err != nil {
		fmt.Fprintln(c.err, "Error:", err)
		edited = message
	}
	c.lines.Begin(edited)
}

// readMessage reads one message: a line, a paste of several, or what stands between triple quotes.
func (c *conversation) readMessage() (string, error) {
	var sb strings.Builder
	quoted := false
	for first := true; ; first = false {
		line, pasting, err := c.lines.ReadLine(!first)
		if errors.Is(err, readline.ErrEditPrompt) {
			return sb.String() + line, err
		}
		if err != nil {
			return "", err
		}
		if first {
			// A command may have a quoted argument, as in /set system """...
			if before, after, ok := strings.Cut(line, multilineQuote); ok && (before == "" || strings.HasPrefix(before, "/set system")) {
				quoted = true
				sb.WriteString(before)
				line = after
			}
		}
		if quoted {
			text, closed := strings.CutSuffix(line, multilineQuote)
			sb.WriteString(text)
			if closed {
				return sb.String(), nil
			}
			sb.WriteByte('\n')
			continue
		}
		sb.WriteString(line)
		if !pasting {
			return sb.String(), nil
		}
		sb.WriteByte('\n')
	}
}

// slashCommand splits "/set system x" into name and rest. A path such as /tmp/x or /x.png is no command.
func slashCommand(message string) (name, rest string, ok bool) {
	text, ok := strings.CutPrefix(message, "/")
	if !ok {
		return "", "", false
	}
	name, rest, _ = strings.Cut(text, " ")
	if strings.ContainsAny(name, "/.\\\n") {
		return "", "", false
	}
	return name, strings.TrimSpace(rest), true
}

// answer sends a message and prints what the model says to it. What was said when ctx ended stays part of
// the conversation.
func (c *conversation) answer(ctx context.Context, message string) error {
	said := api.Message{Role: "user", Content: message}
	if takesImages(c.info) {
		var err error
		if said.Content, said.Images, err = c.withImages(message); err != nil {
			return err
		}
	}
	ctx, done := c.waiting(ctx, c.opts.Model)
	defer done()
	printer := c.newAnswer(&c.opts, done)
	messages := append(c.opts.Messages, said)
	var last api.ChatResponse
	var calls []api.ToolCall
	err := c.client.Chat(ctx, c.chatRequest(messages), func(r api.ChatResponse) error {
		last = r
		calls = append(calls, r.Message.ToolCalls...)
		printer.add(r.Message.Thinking, r.Message.Content, r.Message.ToolCalls)
		return nil
	})
	printer.end()
	if printer.started {
		fmt.Fprint(c.out, "\n\n")
	}
	if err != nil && ctx.Err() == nil {
		return err
	}
	if printer.started {
		c.opts.Messages = append(messages, api.Message{
			Role: "assistant", Content: printer.content.String(), Thinking: printer.thoughts.String(), ToolCalls: calls,
		})
	}
	if c.opts.Verbose && last.Done {
		writeMetrics(c.err, last.Metrics)
	}
	return nil
}

func (c *conversation) chatRequest(messages []api.Message) *api.ChatRequest {
	if c.opts.System != "" {
		messages = append([]api.Message{{Role: "system", Content: c.opts.System}}, messages...)
	}
	return &api.ChatRequest{
		Model:     c.opts.Model,
		Messages:  messages,
		Format:    c.opts.Format,
		Options:   maps.Clone(c.opts.Options),
		KeepAlive: c.opts.KeepAlive,
		Think:     c.opts.Think,
	}
}
