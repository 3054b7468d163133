package server

import (
	"net/http"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// streamMessage writes an answer as server-sent events.
func (s *Server) streamMessage(w http.ResponseWriter, r *http.Request, q *anthropicRequest, a *answer) {
	out := &anthropicStream{sse: newSSE(w), reply: newAnthropicReply(q)}
	defer out.sse.close()
	out.sse.keepAlive(s.params.PingInterval, anthropicPing)
	x := newAnthropicAnswer(q, out)
	for {
		e, err := a.next()
		if err == nil {
			err = out.event(x, e)
		}
		if err != nil {
			out.sse.fail(s, r, err,
				func() { s.failAnthropic(w, r, err) },
				func() (string, any) { return "error", anthropicErrorOf(r, err) })
			return
		}
		if e.GetFinished() != nil {
			return
		}
	}
}

func anthropicPing() (string, any) { return "ping", anthropicBareEvent{"ping"} }

// anthropicStream sends blocks as the events of a stream.
type anthropicStream struct {
	sse   *sse
	reply anthropicReply
	begun bool
	// index and kind are those of the block that is open, or was last.
	index int
	kind  string
}

// event sends what an event of the runner says, all of it in one write.
func (o *anthropicStream) event(x *anthropicAnswer, e *runnerpb.Event) error {
	if err := o.begin(e); err != nil {
		return err
	}
	if err := x.delta(e.GetDelta()); err != nil {
		return err
	}
	if f := e.GetFinished(); f != nil {
		if err := o.finish(x, f); err != nil {
			return err
		}
	}
	return o.sse.flush()
}

// begin announces the message. The first event is, but for a request that is over at once, the one that tells the size
// of the prompt. How much of it was cached is told at the end, with the counts that replace these.
func (o *anthropicStream) begin(e *runnerpb.Event) error {
	if o.begun {
		return nil
	}
	o.begun = true
	if p := e.GetPrefill(); p != nil {
		o.reply.Usage.InputTokens = p.GetTokensTotal()
	}
	return o.sse.add("message_start", anthropicMessageStart{"message_start", o.reply})
}

func (o *anthropicStream) finish(x *anthropicAnswer, f *runnerpb.Finished) error {
	if err := x.shut(); err != nil {
		return err
	}
	err := o.sse.add("message_delta", anthropicMessageDelta{"message_delta", x.stop(f), anthropicUsageOf(f.GetUsage())})
	if err != nil {
		return err
	}
	return o.sse.add("message_stop", anthropicBareEvent{"message_stop"})
}

func (o *anthropicStream) open(b anthropicReplyBlock) error {
	o.kind = b.Type
	return o.sse.add("content_block_start", anthropicBlockStart{"content_block_start", o.index, b})
}

func (o *anthropicStream) add(text string) error {
	switch o.kind {
	case "thinking":
		return o.delta(anthropicDelta{Type: "thinking_delta", Thinking: text})
	case "tool_use":
		return o.delta(anthropicDelta{Type: "input_json_delta", PartialJSON: text})
	default:
		return o.delta(anthropicDelta{Type: "text_delta", Text: text})
	}
}

func (o *anthropicStream) shut() error {
	if o.kind == "thinking" {
		if err := o.delta(anthropicDelta{Type: "signature_delta", Signature: thinkingSignature}); err != nil {
			return err
		}
	}
	err := o.sse.add("content_block_stop", anthropicBlockStop{"content_block_stop", o.index})
	o.index++
	return err
}

func (o *anthropicStream) delta(d anthropicDelta) error {
	return o.sse.add("content_block_delta", anthropicBlockDelta{"content_block_delta", o.index, d})
}
