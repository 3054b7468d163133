package server

import (
	"net/http"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// responsesAnswer builds the output of a response from an answer, item by item, and tells of each step as an event.
// A whole response is built in the same way, its events going nowhere.
type responsesAnswer struct {
	request  *responsesRequest
	response *responsesResponse
	// emit takes an event; the event is used before it returns.
	emit     func(*responsesEvent) error
	sequence int
	// open is the last item while it grows: a message or reasoning; nil if none does.
	open *responsesOutput
	text strings.Builder
	// logprobs are those of the open message; behind sent, they wait for text to go with, maybe of the next message.
	logprobs []openaiLogprob
	sent     int
	// reasoning counts tokens.
	reasoning uint32
}

// writeResponse writes the response as one value.
func (s *Server) writeResponse(w http.ResponseWriter, r *http.Request, q *responsesRequest, a *answer) {
	x := &responsesAnswer{request: q, response: newResponse(q), emit: func(*responsesEvent) error { return nil }}
	end, err := a.read(x.delta)
	if err == nil {
		err = x.finish(end)
	}
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, x.response)
}

// streamResponse writes each step of the response as events.
func (s *Server) streamResponse(w http.ResponseWriter, r *http.Request, q *responsesRequest, a *answer) {
	out := newSSE(w)
	defer out.close()
	out.comment = a.progress
	out.keepAlive(s.params.PingInterval, nil)
	x := &responsesAnswer{request: q, response: newResponse(q), emit: func(e *responsesEvent) error { return out.add(e.Type, e) }}
	end, err := a.read(func(d *runnerpb.Delta) error {
		if err := x.delta(d); err != nil {
			return err
		}
		return out.flush()
	})
	if err == nil {
		err = x.finish(end)
	}
	if err == nil {
		err = out.flush()
	}
	if err != nil {
		out.fail(s, r, err, func() { s.failOpenAI(w, r, err) }, func() (string, any) {
			e := x.fail(err)
			return e.Type, e
		})
	}
}

// fail returns the event that ends the stream with an error. Its response keeps what there is of the output.
func (x *responsesAnswer) fail(err error) *responsesEvent {
	e := &responsesEvent{Type: "response.failed", SequenceNumber: x.sequence, Response: x.response}
	x.emit = func(*responsesEvent) error { return nil }
	_ = x.shut("incomplete")
	x.response.fail(err)
	return e
}

// delta adds what one step brought.
func (x *responsesAnswer) delta(d *runnerpb.Delta) error {
	if err := x.begin(); err != nil {
		return err
	}
	x.reasoning += reasoningTokens(d)
	if t := d.GetThinking(); t != "" {
		if err := x.think(t); err != nil {
			return err
		}
	}
	if d.GetThinking() == "" || d.GetContent() != "" {
		x.logprobs = append(x.logprobs, openaiLogprobs(d.GetLogprobs())...)
	}
	if t := d.GetContent(); t != "" {
		if err := x.say(t); err != nil {
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

// begin tells of the response before its first step.
func (x *responsesAnswer) begin() error {
	if x.sequence > 0 {
		return nil
	}
	if err := x.event(&responsesEvent{Type: "response.created", Response: x.response}); err != nil {
		return err
	}
	return x.event(&responsesEvent{Type: "response.in_progress", Response: x.response})
}

func (x *responsesAnswer) event(e *responsesEvent) error {
	e.SequenceNumber = x.sequence
	x.sequence++
	return x.emit(e)
}

// last is an event about the item that was added last, the parts of which have one index.
func (x *responsesAnswer) last(kind string) *responsesEvent {
	index := len(x.response.Output) - 1
	return &responsesEvent{Type: kind, OutputIndex: &index, ItemID: x.response.Output[index].ID}
}

var zero = 0

// add begins an item behind the others.
func (x *responsesAnswer) add(item *responsesOutput) error {
	if err := x.shut("completed"); err != nil {
		return err
	}
	x.response.Output = append(x.response.Output, item)
	e := x.last("response.output_item.added")
	e.ItemID, e.Item = "", item
	return x.event(e)
}

func (x *responsesAnswer) done(item *responsesOutput) error {
	e := x.last("response.output_item.done")
	e.ItemID, e.Item = "", item
	return x.event(e)
}

// grow has item open, a new one unless one of its type is.
func (x *responsesAnswer) grow(item *responsesOutput, kind string, part any) error {
	if x.open != nil && x.open.Type == item.Type {
		return nil
	}
	if err := x.add(item); err != nil {
		return err
	}
	x.open = item
	e := x.last(kind)
	e.Part = part
	if item.Type == "message" {
		e.ContentIndex = &zero
	} else {
		e.SummaryIndex = &zero
	}
	return x.event(e)
}

func (x *responsesAnswer) think(text string) error {
	item := &responsesOutput{ID: newOpenAIID("rs_"), Type: "reasoning", Status: "in_progress", Summary: &[]responsesSummary{}}
	if err := x.grow(item, "response.reasoning_summary_part.added", responsesSummary{Type: "summary_text"}); err != nil {
		return err
	}
	x.text.WriteString(text)
	e := x.last("response.reasoning_summary_text.delta")
	e.SummaryIndex, e.Delta = &zero, text
	return x.event(e)
}

func (x *responsesAnswer) say(text string) error {
	item := &responsesOutput{ID: newOpenAIID("msg_"), Type: "message", Status: "in_progress", Role: "assistant", Content: &[]responsesPart{}}
	if err := x.grow(item, "response.content_part.added", newResponsesPart("", nil)); err != nil {
		return err
	}
	if text == "" {
		return nil
	}
	x.text.WriteString(text)
	e := x.last("response.output_text.delta")
	fresh := append([]openaiLogprob{}, x.logprobs[x.sent:]...)
	x.sent = len(x.logprobs)
	e.ContentIndex, e.Delta, e.Logprobs = &zero, text, &fresh
	return x.event(e)
}

func newResponsesPart(text string, logprobs []openaiLogprob) responsesPart {
	return responsesPart{Type: "output_text", Text: text, Annotations: []any{}, Logprobs: append([]openaiLogprob{}, logprobs...)}
}

// call adds a function call, which comes whole.
func (x *responsesAnswer) call(c *runnerpb.ToolCall) error {
	name, ok := x.request.names[c.GetName()]
	if !ok {
		name.name = c.GetName()
	}
	item := &responsesOutput{ID: newOpenAIID("fc_"), Type: "function_call", Status: "in_progress", CallID: callID(c),
		Namespace: name.namespace, Name: name.name, Arguments: new(string)}
	if err := x.add(item); err != nil {
		return err
	}
	// Tokens of a call are not text.
	x.logprobs = nil
	arguments := callArguments(c)
	e := x.last("response.function_call_arguments.delta")
	e.Delta = arguments
	if err := x.event(e); err != nil {
		return err
	}
	e = x.last("response.function_call_arguments.done")
	e.Name, e.Arguments = item.Name, &arguments
	if err := x.event(e); err != nil {
		return err
	}
	item.Status, item.Arguments = "completed", &arguments
	return x.done(item)
}

// shut ends the open item.
func (x *responsesAnswer) shut(status string) error {
	item := x.open
	if item == nil {
		return nil
	}
	text := x.text.String()
	x.open, item.Status = nil, status
	x.text.Reset()
	if item.Type == "message" {
		part := newResponsesPart(text, x.logprobs[:x.sent])
		x.logprobs, x.sent = x.logprobs[x.sent:], 0
		return x.shutMessage(item, part)
	}
	part := responsesSummary{"summary_text", text}
	item.Summary, item.EncryptedContent = &[]responsesSummary{part}, text
	e := x.last("response.reasoning_summary_text.done")
	e.SummaryIndex, e.Text = &zero, &text
	if err := x.event(e); err != nil {
		return err
	}
	e = x.last("response.reasoning_summary_part.done")
	e.SummaryIndex, e.Part = &zero, part
	if err := x.event(e); err != nil {
		return err
	}
	return x.done(item)
}

func (x *responsesAnswer) shutMessage(item *responsesOutput, part responsesPart) error {
	item.Content = &[]responsesPart{part}
	e := x.last("response.output_text.done")
	e.ContentIndex, e.Text, e.Logprobs = &zero, &part.Text, &part.Logprobs
	if err := x.event(e); err != nil {
		return err
	}
	e = x.last("response.content_part.done")
	e.ContentIndex, e.Part = &zero, part
	if err := x.event(e); err != nil {
		return err
	}
	return x.done(item)
}

// finish ends the response well. One without any output gets an empty message.
func (x *responsesAnswer) finish(f *runnerpb.Finished) error {
	if err := x.begin(); err != nil {
		return err
	}
	if len(x.response.Output) == 0 {
		if err := x.say(""); err != nil {
			return err
		}
	}
	x.response.end(f, x.reasoning)
	if err := x.shut(x.response.Status); err != nil {
		return err
	}
	return x.event(&responsesEvent{Type: "response." + x.response.Status, Response: x.response})
}
