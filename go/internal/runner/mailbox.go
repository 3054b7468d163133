package runner

import (
	"sync"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// mailbox holds the events of one request that its reader has not taken yet. put never waits for the reader: while it is
// slow, consecutive deltas are joined into one, so that the mailbox is as large as the unread text and no larger.
//
// One goroutine may take while others put and end.
type mailbox struct {
	mu    sync.Mutex
	ready sync.Cond
	// queue[head:] is unread.
	queue []mail
	head  int
	// err is what take returns when the queue is empty; set once, and nothing is put after that.
	err error
}

// mail is an event, or several deltas in one.
type mail struct {
	event *runnerpb.Event
	// Joined text grows here and not in the event, where each addition would copy all that is there.
	content, thinking []byte
	// latest is the last part that the delta holds, in the order in which readers pass parts on.
	latest part
}

// part orders what a delta can hold: a reader passes thinking on first, then content, then tool calls.
type part int

const (
	partNone part = iota
	partThinking
	partContent
	partToolCalls
)

func newMailbox() *mailbox {
	m := &mailbox{}
	m.ready.L = &m.mu
	return m
}

// put adds an event. The mailbox owns it from here on.
func (m *mailbox) put(event *runnerpb.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	if n := len(m.queue); n > m.head && m.queue[n-1].join(event) {
		return
	}
	_, latest := parts(event.GetDelta())
	m.queue = append(m.queue, mail{event: event, latest: latest})
	m.ready.Signal()
}

// end lets take return err once it has returned all events. The first end counts.
func (m *mailbox) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = err
		m.ready.Signal()
	}
}

// abort lets take return err next and drops the unread events, unless the mailbox has ended already.
func (m *mailbox) abort(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err, m.queue, m.head = err, nil, 0
		m.ready.Signal()
	}
}

// take returns the next event, waiting for it, or the error of end.
func (m *mailbox) take() (*runnerpb.Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.head == len(m.queue) && m.err == nil {
		m.ready.Wait()
	}
	if m.head == len(m.queue) {
		return nil, m.err
	}
	event := m.queue[m.head].seal()
	m.queue[m.head] = mail{}
	m.head++
	if m.head == len(m.queue) {
		m.queue, m.head = m.queue[:0], 0
	}
	return event, nil
}

// join adds an event to the one that waits and tells whether it could.
func (w *mail) join(event *runnerpb.Event) bool {
	switch next := event.Kind.(type) {
	case *runnerpb.Event_Prefill:
		// Progress: the newest replaces the one before.
		waiting, ok := w.event.Kind.(*runnerpb.Event_Prefill)
		if ok {
			waiting.Prefill = next.Prefill
		}
		return ok
	case *runnerpb.Event_Delta:
		waiting, ok := w.event.Kind.(*runnerpb.Event_Delta)
		return ok && w.joinDelta(waiting.Delta, next.Delta)
	}
	return false
}

// joinDelta joins next to the delta that waits, unless that would change the order in which a reader passes on what is
// in them: content and then thinking must stay two deltas.
func (w *mail) joinDelta(waiting, next *runnerpb.Delta) bool {
	earliest, latest := parts(next)
	if latest != partNone {
		if earliest < w.latest {
			return false
		}
		w.latest = latest
	}
	w.content = joinText(w.content, &waiting.Content, next.GetContent())
	w.thinking = joinText(w.thinking, &waiting.Thinking, next.GetThinking())
	waiting.ToolCalls = append(waiting.ToolCalls, next.GetToolCalls()...)
	waiting.Logprobs = append(waiting.Logprobs, next.GetLogprobs()...)
	waiting.Tokens += next.GetTokens()
	return true
}

// joinText appends to what waits: to the text itself while that is empty, else to its buffer.
func joinText(buffer []byte, text *string, more string) []byte {
	switch {
	case more == "":
		return buffer
	case buffer == nil && *text == "":
		*text = more
		return nil
	case buffer == nil:
		buffer = append(buffer, *text...)
	}
	return append(buffer, more...)
}

// seal returns the event with the joined text in it.
func (w *mail) seal() *runnerpb.Event {
	if w.content != nil {
		w.event.GetDelta().Content = string(w.content)
	}
	if w.thinking != nil {
		w.event.GetDelta().Thinking = string(w.thinking)
	}
	return w.event
}

// parts returns the earliest and the latest part that a delta holds, partNone for both if it holds only counts.
func parts(d *runnerpb.Delta) (earliest, latest part) {
	note := func(p part) {
		if earliest == partNone {
			earliest = p
		}
		latest = p
	}
	if d.GetThinking() != "" {
		note(partThinking)
	}
	if d.GetContent() != "" {
		note(partContent)
	}
	if len(d.GetToolCalls()) > 0 {
		note(partToolCalls)
	}
	return earliest, latest
}
