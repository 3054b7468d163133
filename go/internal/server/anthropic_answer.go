package server

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// thinkingSignature stands where Anthropic signs thinking. Clients hand it back with the block and refuse to do so
// without one; nothing is signed here, and nothing is checked.
const thinkingSignature = "ollmlx"

// anthropicSink takes the content of an answer, one block after the other.
type anthropicSink interface {
	open(b anthropicReplyBlock) error
	// add goes on with the open block.
	add(text string) error
	shut() error
}

// anthropicAnswer cuts the events of an answer into blocks: text and thinking as long as they go on, each call of a tool
// one.
type anthropicAnswer struct {
	sink anthropicSink
	// stops are the request's stop sequences.
	stops []string
	// hidden: thinking is announced and not shown.
	hidden bool

	// current is the type of the open block, "" for none.
	current string
	calls   int
}

func newAnthropicAnswer(q *anthropicRequest, sink anthropicSink) *anthropicAnswer {
	return &anthropicAnswer{sink: sink, stops: q.StopSequences, hidden: q.Thinking != nil && q.Thinking.Display == "omitted"}
}

func newAnthropicReply(q *anthropicRequest) anthropicReply {
	return anthropicReply{ID: "msg_" + rand.Text(), Type: "message", Role: "assistant", Model: q.Model, Content: []anthropicReplyBlock{}}
}

// delta passes on what one step added.
func (x *anthropicAnswer) delta(d *runnerpb.Delta) error {
	if t := d.GetThinking(); t != "" {
		if x.hidden {
			t = ""
		}
		if err := x.text("thinking", t); err != nil {
			return err
		}
	}
	if t := d.GetContent(); t != "" {
		if err := x.text("text", t); err != nil {
			return err
		}
	}
	for _, c := range d.GetToolCalls() {
		if err := x.call(c); err != nil {
			return err
		}
	}
	return nil
}

func (x *anthropicAnswer) text(kind, text string) error {
	if x.current != kind {
		empty := ""
		b := anthropicReplyBlock{Type: kind, Text: &empty}
		if kind == "thinking" {
			b = anthropicReplyBlock{Type: kind, Thinking: &empty, Signature: &empty}
		}
		if err := x.open(b); err != nil {
			return err
		}
	}
	if text == "" {
		return nil
	}
	return x.sink.add(text)
}

// call passes on a call. Arguments that are no object cannot be sent as input; they come out as text so that nothing of
// an answer is lost.
func (x *anthropicAnswer) call(c *runnerpb.ToolCall) error {
	args := json.RawMessage(c.GetArgumentsJson())
	if !isObject(args) || !json.Valid(args) {
		return x.text("text", c.GetName()+c.GetArgumentsJson())
	}
	b := anthropicReplyBlock{Type: "tool_use", ID: c.GetId(), Name: c.GetName(), Input: json.RawMessage("{}")}
	if b.ID == "" {
		b.ID = "toolu_" + rand.Text()
	}
	x.calls++
	if err := x.open(b); err != nil {
		return err
	}
	return x.sink.add(c.GetArgumentsJson())
}

func (x *anthropicAnswer) open(b anthropicReplyBlock) error {
	if err := x.shut(); err != nil {
		return err
	}
	x.current = b.Type
	return x.sink.open(b)
}

func (x *anthropicAnswer) shut() error {
	if x.current == "" {
		return nil
	}
	x.current = ""
	return x.sink.shut()
}

// stop tells why an answer ended. A stop string of the model's own is how it ends a turn.
func (x *anthropicAnswer) stop(f *runnerpb.Finished) anthropicStop {
	seq := f.GetStopSequence()
	switch {
	case f.GetReason() == runnerpb.Finished_REASON_LENGTH:
		return anthropicStop{StopReason: "max_tokens"}
	case f.GetReason() == runnerpb.Finished_REASON_STOP_SEQUENCE && slices.Contains(x.stops, seq):
		return anthropicStop{StopReason: "stop_sequence", StopSequence: &seq}
	case x.calls > 0:
		return anthropicStop{StopReason: "tool_use"}
	default:
		return anthropicStop{StopReason: "end_turn"}
	}
}

func anthropicUsageOf(u *runnerpb.Usage) anthropicUsage {
	return anthropicUsage{
		InputTokens:          u.GetPromptTokens() - u.GetCachedPromptTokens(),
		CacheReadInputTokens: u.GetCachedPromptTokens(),
		OutputTokens:         u.GetCompletionTokens(),
	}
}

// writeMessage writes an answer as one value.
func (s *Server) writeMessage(w http.ResponseWriter, r *http.Request, q *anthropicRequest, a *answer) {
	var blocks anthropicBlockList
	x := newAnthropicAnswer(q, &blocks)
	f, err := a.read(x.delta)
	if err == nil {
		err = x.shut()
	}
	if err != nil {
		s.failAnthropic(w, r, err)
		return
	}
	reply, stop := newAnthropicReply(q), x.stop(f)
	reply.Content = append(reply.Content, blocks.list...)
	reply.StopReason, reply.StopSequence = &stop.StopReason, stop.StopSequence
	reply.Usage = anthropicUsageOf(f.GetUsage())
	writeJSON(w, http.StatusOK, reply)
}

// anthropicBlockList collects blocks. It does not fail.
type anthropicBlockList struct {
	list []anthropicReplyBlock
	text strings.Builder
}

func (l *anthropicBlockList) open(b anthropicReplyBlock) error {
	l.list = append(l.list, b)
	l.text.Reset()
	return nil
}

func (l *anthropicBlockList) add(text string) error {
	l.text.WriteString(text)
	return nil
}

func (l *anthropicBlockList) shut() error {
	b, text := &l.list[len(l.list)-1], l.text.String()
	switch b.Type {
	case "text":
		b.Text = &text
	case "thinking":
		signature := thinkingSignature
		b.Thinking, b.Signature = &text, &signature
	case "tool_use":
		b.Input = json.RawMessage(text)
	}
	return nil
}
