package runnertest

import (
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// batch is the session's engine: it advances all rows by one delta per step and sends one message per step.
type batch struct {
	*service
	stream runnerpb.Runner_SessionServer
	rows   []*row
	queue  []*row
	steps  int
	// failed collects events for requests that never became rows.
	failed []*runnerpb.Event
}

// row is a request.
type row struct {
	id      uint64
	prompt  []string
	answer  []Delta
	left    int
	next    int
	limited bool
	context bool
	arrived time.Time
	started time.Time
	first   time.Time
}

func (s *service) Session(stream runnerpb.Runner_SessionServer) error {
	b := &batch{service: s, stream: stream}
	defer b.leave()
	incoming := make(chan *runnerpb.SessionRequest)
	go receive(stream, incoming)

	stopping := s.stopping
	for {
		// Without rows there is nothing to wait for but requests.
		var tick <-chan time.Time
		if len(b.rows)+len(b.failed) > 0 {
			tick = time.After(s.options.Interval)
		}
		select {
		case msg, ok := <-incoming:
			if !ok {
				return nil
			}
			b.take(msg)
		case <-tick:
			if err := b.step(); err != nil {
				return err
			}
		case <-stopping:
			stopping = nil
			if err := b.failAll(); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

func receive(stream runnerpb.Runner_SessionServer, incoming chan<- *runnerpb.SessionRequest) {
	defer close(incoming)
	for {
		msg, err := stream.Recv()
		if err != nil {
			return
		}
		select {
		case incoming <- msg:
		case <-stream.Context().Done():
			return
		}
	}
}

// leave takes the session's requests out of the counters.
func (b *batch) leave() {
	b.running.Add(int64(-len(b.rows)))
	b.queued.Add(int64(-len(b.queue)))
}

func (b *batch) take(msg *runnerpb.SessionRequest) {
	id := msg.GetRequestId()
	known := func(r *row) bool { return r.id == id }
	if msg.GetCancel() != nil {
		if i := slices.IndexFunc(b.rows, known); i >= 0 {
			b.rows = slices.Delete(b.rows, i, i+1)
			b.running.Add(-1)
			b.fail(id, codes.Canceled, "canceled")
		}
		if i := slices.IndexFunc(b.queue, known); i >= 0 {
			b.queue = slices.Delete(b.queue, i, i+1)
			b.queued.Add(-1)
			b.fail(id, codes.Canceled, "canceled")
		}
		b.admit()
		return
	}
	switch {
	case b.draining.Load():
		b.fail(id, codes.Unavailable, "the runner is stopping")
	case b.held() == nil:
		b.fail(id, codes.FailedPrecondition, "no model is loaded")
	case slices.ContainsFunc(b.rows, known), slices.ContainsFunc(b.queue, known):
		b.fail(id, codes.AlreadyExists, "the request id is in use")
	default:
		logRequest(msg.GetGenerate().GetTraceId())
		b.queue = append(b.queue, b.newRow(id, msg.GetGenerate()))
		b.queued.Add(1)
		b.admit()
	}
}

func (b *batch) newRow(id uint64, req *runnerpb.GenerateRequest) *row {
	prompt := split(req.GetPrompt().GetText())
	if messages := req.GetChat().GetMessages(); len(messages) > 0 {
		prompt = split(messages[len(messages)-1].GetContent())
	}
	answer := b.options.Answer
	if answer == nil {
		for _, word := range prompt {
			answer = append(answer, Delta{Content: word})
		}
	}
	r := &row{id: id, prompt: prompt, answer: answer, arrived: time.Now(), context: req.GetReturnContext()}
	r.left = len(answer) * max(b.options.Repeat, 1)
	if o := req.GetOptions(); o != nil && o.NumPredict != nil && o.GetNumPredict() >= 0 && int(o.GetNumPredict()) < r.left {
		r.left, r.limited = int(o.GetNumPredict()), true
	}
	return r
}

// admit moves waiting requests into the batch as far as it is wide.
func (b *batch) admit() {
	b.mu.Lock()
	width := b.width
	b.mu.Unlock()
	for len(b.queue) > 0 && (width == 0 || len(b.rows) < width) {
		b.queue[0].started = time.Now()
		b.rows = append(b.rows, b.queue[0])
		b.queue = b.queue[1:]
		b.queued.Add(-1)
		b.running.Add(1)
	}
}

func (b *batch) fail(id uint64, code codes.Code, message string) {
	b.failed = append(b.failed, failed(id, Failure{int32(code), message}))
}

// failAll ends what runs and what waits, for Shutdown.
func (b *batch) failAll() error {
	for _, r := range append(b.rows, b.queue...) {
		b.fail(r.id, codes.Unavailable, "the runner is stopping")
	}
	err := b.stream.Send(&runnerpb.StepEvents{Events: b.failed})
	b.leave()
	b.rows, b.queue, b.failed = nil, nil, nil
	return err
}

// step advances all rows and sends what happened.
func (b *batch) step() error {
	o := b.options
	if o.HangSteps && b.steps >= o.AfterSteps {
		<-b.stream.Context().Done()
		return nil
	}
	if o.BreakSession && b.steps >= o.AfterSteps {
		return status.Error(codes.Internal, "the session broke as it was told to")
	}
	if b.steps >= o.AfterSteps {
		o.crashAt(CrashAtStep)
	}
	events := b.failed
	b.failed = nil
	stay := b.rows[:0]
	for i, r := range b.rows {
		if o.Spread > 1 && i%o.Spread != b.steps%o.Spread {
			stay = append(stay, r)
			continue
		}
		event, ended := b.advance(r)
		events = append(events, event)
		if ended {
			b.running.Add(-1)
			continue
		}
		stay = append(stay, r)
	}
	b.rows = stay
	b.admit()
	b.steps++
	b.service.steps.Add(1)
	return b.stream.Send(&runnerpb.StepEvents{Events: events})
}

// advance makes the next event of a row: its prefill, its deltas, its end.
func (b *batch) advance(r *row) (event *runnerpb.Event, ended bool) {
	event = &runnerpb.Event{RequestId: r.id}
	switch {
	case r.first.IsZero():
		r.first = time.Now()
		total := uint32(len(r.prompt))
		event.Kind = &runnerpb.Event_Prefill{Prefill: &runnerpb.Prefill{TokensDone: total, TokensTotal: total}}
	case r.left > 0:
		delta := r.answer[r.next%len(r.answer)].message()
		if b.options.Clock {
			delta.Content = strconv.FormatInt(time.Now().UnixNano(), 10) + " "
		}
		event.Kind = &runnerpb.Event_Delta{Delta: delta}
		r.left--
		r.next++
	case b.options.Fails != nil:
		return failed(r.id, *b.options.Fails), true
	default:
		event.Kind = &runnerpb.Event_Finished{Finished: b.finished(r)}
		ended = true
	}
	return event, ended
}

func (b *batch) finished(r *row) *runnerpb.Finished {
	f := &runnerpb.Finished{
		Reason: runnerpb.Finished_REASON_STOP,
		Usage: &runnerpb.Usage{
			PromptTokens: uint32(len(r.prompt)), CompletionTokens: uint32(r.next),
			QueueNs: int64(r.started.Sub(r.arrived)), PrefillNs: int64(r.first.Sub(r.started)), DecodeNs: int64(time.Since(r.first)),
		},
	}
	if r.limited {
		f.Reason = runnerpb.Finished_REASON_LENGTH
	}
	if r.context {
		f.Context = b.words.encode(r.prompt)
		for i := range r.next {
			f.Context = append(f.Context, b.words.encode([]string{r.answer[i%len(r.answer)].Content})...)
		}
	}
	return f
}

func (d Delta) message() *runnerpb.Delta {
	m := &runnerpb.Delta{Content: d.Content, Thinking: d.Thinking, Tokens: 1}
	for i, call := range d.ToolCalls {
		m.ToolCalls = append(m.ToolCalls, &runnerpb.ToolCall{
			Id: call.ID, Name: call.Name, ArgumentsJson: call.Arguments, Index: uint32(i),
		})
	}
	return m
}

func failed(id uint64, f Failure) *runnerpb.Event {
	return &runnerpb.Event{RequestId: id, Kind: &runnerpb.Event_Failed{
		Failed: &runnerpb.Failed{Code: f.Code, Message: f.Message},
	}}
}
