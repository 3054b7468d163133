package server

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// chunk is what one line of a native answer says, before the route gives it its form.
type chunk struct {
	content, thinking string
	calls             []api.ToolCall
	logprobs          []api.Logprob
	done              bool
	reason            string
	context           []int
	metrics           api.Metrics
	extras            answerExtras
}

func (c *chunk) empty() bool {
	return c.content == "" && c.thinking == "" && len(c.calls) == 0 && len(c.logprobs) == 0 && c.extras.Prefill == nil && !c.done
}

// answerExtras are the fields of an answer that Ollama's type does not have.
type answerExtras struct {
	// CachedCount is how many tokens of the prompt needed no computing, as Ollama's current version tells it. It is
	// there, be it 0, in the last chunk only.
	CachedCount *int `json:"prompt_eval_cached_count,omitempty"`
	// Prefill is our own: it is there in chunks that only tell how far a long prompt has come.
	Prefill *prefillProgress `json:"prefill,omitempty"`
}

// prefillProgress counts the tokens of a prompt.
type prefillProgress struct {
	Completed uint32 `json:"completed"`
	Total     uint32 `json:"total"`
}

// nativeAnswer serves one native request that generates.
type nativeAnswer struct {
	began, loaded time.Time
	model         *store.Model
	keepAlive     *api.Duration
	// stream is what the client said; streaming is the default.
	stream *bool
	// asksNothing: the request only loads the model or, with a keep-alive of 0, unloads it.
	asksNothing bool
	// renderOnly: the prompt is the answer.
	renderOnly bool
	// request translates the request, and returns the parser of its answer if it was rendered here.
	request func() (*runnerpb.GenerateRequest, *prompt.Parser, error)
	// without is the route's JSON value where nothing is generated: why, or the prompt.
	without func(reason string, info *api.DebugInfo) any
	// form turns a chunk into the route's JSON value; the value is used before the next call.
	form func(*chunk) any
}

func (n *nativeAnswer) serve(s *Server, w http.ResponseWriter, r *http.Request) {
	if n.asksNothing && n.keepAlive != nil && n.keepAlive.Duration == 0 {
		s.params.Scheduler.Unload(n.model)
		writeJSON(w, http.StatusOK, n.without("unload", nil))
		return
	}
	req, parser, err := n.request()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	a := &answer{parser: parser}
	var info *api.DebugInfo
	use := a.ask(r.Context(), req)
	switch {
	case n.asksNothing:
		use = func(sched.Generator) error { return nil }
	case n.renderOnly:
		use = func(g sched.Generator) (err error) {
			info, err = renderOnly(r.Context(), g, req)
			return err
		}
	}
	lease, loaded, err := s.withRunner(r.Context(), n.model, n.keepAlive, use)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer lease.Release()
	switch {
	case n.asksNothing:
		writeJSON(w, http.StatusOK, n.without("load", nil))
	case n.renderOnly:
		writeJSON(w, http.StatusOK, n.without("", info))
	default:
		defer a.close()
		n.loaded = loaded
		if n.stream != nil && !*n.stream {
			n.whole(s, w, r, a)
			return
		}
		n.lines(s, w, r, a)
	}
}

// lines writes each step of the answer as a line.
func (n *nativeAnswer) lines(s *Server, w http.ResponseWriter, r *http.Request, a *answer) {
	out := newLines(w)
	alive := n.prefillKeepAlive(s.params.PrefillInterval, out, a)
	defer alive.end()
	var c chunk
	for !c.done {
		e, err := a.next()
		switch {
		case err == nil && e.GetPrefill() != nil:
			err = alive.tell()
		case err == nil:
			alive.end()
			if n.read(e, &c); !c.empty() {
				err = out.send(n.form(&c))
			}
		}
		if err != nil {
			alive.end()
			out.fail(s, r, err)
			return
		}
	}
}

// prefillKeepAlive tells, while a stream would be silent for too long, how far the prompt has come: when there is news, and
// on the clock when there is none, since clients give up a silent stream. A quick prompt has no such line, which leaves
// its status open for an error.
type prefillKeepAlive struct {
	// end stops it and waits for that; afterwards the stream is its caller's alone.
	end func()

	mu       sync.Mutex
	interval time.Duration
	last     time.Time
	send     func(*runnerpb.Prefill) error
	answer   *answer
}

// leastTick is how often the clock is looked at, at most.
const leastTick = 250 * time.Millisecond

func (n *nativeAnswer) prefillKeepAlive(interval time.Duration, out *lines, a *answer) *prefillKeepAlive {
	k := &prefillKeepAlive{interval: interval, last: n.began, answer: a, send: func(p *runnerpb.Prefill) error {
		var c chunk
		c.extras.Prefill = &prefillProgress{Completed: p.GetTokensDone(), Total: p.GetTokensTotal()}
		return out.send(n.form(&c))
	}}
	stop, stopped := make(chan struct{}), make(chan struct{})
	k.end = sync.OnceFunc(func() {
		close(stop)
		<-stopped
	})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(max(interval/4, leastTick))
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				// The stream meets the error when it writes next.
				_ = k.tell()
			}
		}
	}()
	return k
}

// tell writes a line if the last one was long ago.
func (k *prefillKeepAlive) tell() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.answer.prefill.Load()
	if p == nil || time.Since(k.last) < k.interval {
		return nil
	}
	k.last = time.Now()
	return k.send(p)
}

// whole writes the answer as one value.
func (n *nativeAnswer) whole(s *Server, w http.ResponseWriter, r *http.Request, a *answer) {
	var content, thinking strings.Builder
	var all, c chunk
	for !c.done {
		e, err := a.next()
		if err != nil {
			s.fail(w, r, err)
			return
		}
		n.read(e, &c)
		content.WriteString(c.content)
		thinking.WriteString(c.thinking)
		all.calls = append(all.calls, c.calls...)
		all.logprobs = append(all.logprobs, c.logprobs...)
	}
	c.content, c.thinking, c.calls, c.logprobs = content.String(), thinking.String(), all.calls, all.logprobs
	writeJSON(w, http.StatusOK, n.form(&c))
}

// read turns an event into a chunk, an empty one if the event says nothing to the client.
func (n *nativeAnswer) read(e *runnerpb.Event, c *chunk) {
	*c = chunk{}
	switch k := e.GetKind().(type) {
	case *runnerpb.Event_Delta:
		c.content, c.thinking = k.Delta.GetContent(), k.Delta.GetThinking()
		c.logprobs = logprobsFrom(k.Delta.GetLogprobs())
		for _, call := range k.Delta.GetToolCalls() {
			c.addCall(call)
		}
	case *runnerpb.Event_Finished:
		c.done, c.reason = true, doneReason(k.Finished.GetReason())
		c.metrics = metricsOf(k.Finished.GetUsage(), n.began, n.loaded)
		cached := int(k.Finished.GetUsage().GetCachedPromptTokens())
		c.extras.CachedCount = &cached
		for _, t := range k.Finished.GetContext() {
			c.context = append(c.context, int(t))
		}
	}
}

// addCall adds a tool call. Arguments that are no JSON object cannot be written as one; they come out as content so
// that nothing of an answer is lost.
func (c *chunk) addCall(call *runnerpb.ToolCall) {
	out := api.ToolCall{ID: call.GetId()}
	if out.ID == "" {
		out.ID = newCallID()
	}
	out.Function.Name, out.Function.Index = call.GetName(), int(call.GetIndex())
	if err := json.Unmarshal([]byte(call.GetArgumentsJson()), &out.Function.Arguments); err != nil {
		c.content += call.GetName() + call.GetArgumentsJson()
		return
	}
	c.calls = append(c.calls, out)
}

// newCallID returns an id in Ollama's form.
func newCallID() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	id := []byte("call_00000000")
	for i := len("call_"); i < len(id); i++ {
		id[i] = letters[rand.IntN(len(letters))]
	}
	return string(id)
}

func logprobsFrom(in []*runnerpb.TokenLogprob) []api.Logprob {
	if len(in) == 0 {
		return nil
	}
	out := make([]api.Logprob, len(in))
	for i, t := range in {
		out[i].TokenLogprob = tokenLogprob(t)
		for _, alt := range t.GetTop() {
			out[i].TopLogprobs = append(out[i].TopLogprobs, tokenLogprob(alt))
		}
	}
	return out
}

func tokenLogprob(t *runnerpb.TokenLogprob) api.TokenLogprob {
	x := api.TokenLogprob{Token: t.GetText(), Logprob: float64(t.GetLogprob())}
	raw := t.GetBytes()
	if len(raw) == 0 {
		raw = []byte(t.GetText())
	}
	for _, b := range raw {
		x.Bytes = append(x.Bytes, int(b))
	}
	return x
}
