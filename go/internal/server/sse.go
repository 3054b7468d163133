package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const typeEventStream = "text/event-stream"

// DefaultPingInterval is how long a stream of server-sent events is silent before something is sent to keep proxies and
// clients from giving it up: the prefill of a long prompt may take minutes.
const DefaultPingInterval = 15 * time.Second

// sse writes server-sent events. What is added waits until flush sends it, so that all events of one step are one write
// and one flush. The response begins, with status 200, with the first flush; until then an error may still have a
// status of its own.
//
// The handler and the keep-alive share it: each call is safe beside the others.
type sse struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	push  func() error
	buf   bytes.Buffer
	enc   *json.Encoder
	begun bool
	last  time.Time
	err   error
	// comment is what the keep-alive says where it sends comments; nil for no more than that it lives.
	comment func() string
	// end stops the keep-alive and waits for it; nil without one.
	end func()
}

func newSSE(w http.ResponseWriter) *sse {
	e := &sse{w: w, push: http.NewResponseController(w).Flush, last: time.Now()}
	e.enc = json.NewEncoder(&e.buf)
	e.enc.SetEscapeHTML(false)
	return e
}

// add appends an event with v as JSON; an empty name leaves out the event line, as OpenAI does.
func (e *sse) add(name string, v any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.append(name, v)
}

func (e *sse) append(name string, v any) error {
	began := e.buf.Len()
	if name != "" {
		e.buf.WriteString("event: " + name + "\n")
	}
	e.buf.WriteString("data: ")
	// The encoder ends the line, and writes no other line break but the one that oneLine escapes.
	if err := e.enc.Encode(v); err != nil {
		e.buf.Truncate(began)
		return errdefs.New(errdefs.ErrInternal, "encoding a response: %w", err)
	}
	e.buf.WriteByte('\n')
	return nil
}

// addText appends an event whose data is one line of plain text.
func (e *sse) addText(data string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.buf.WriteString("data: " + data + "\n\n")
}

// flush sends what was added, if anything was. After an error the client is gone.
func (e *sse) flush() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.write()
}

func (e *sse) write() error {
	if e.err != nil || e.buf.Len() == 0 {
		return e.err
	}
	if !e.begun {
		e.begun = true
		h := e.w.Header()
		h.Set("Content-Type", typeEventStream)
		h.Set("Cache-Control", "no-cache")
		// Tells nginx not to collect the stream.
		h.Set("X-Accel-Buffering", "no")
		e.w.WriteHeader(http.StatusOK)
	}
	_, err := e.w.Write(oneLine(e.buf.Bytes()))
	e.buf.Reset()
	if err == nil {
		err = e.push()
	}
	if err != nil {
		e.err = errdefs.New(errdefs.ErrCanceled, "the client is gone: %w", err)
	}
	e.last = time.Now()
	return e.err
}

// send is add and flush.
func (e *sse) send(name string, v any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.append(name, v); err != nil {
		return err
	}
	return e.write()
}

// keepAlive sends something whenever nothing was sent for the interval, until close: an event that ping returns, or a
// comment, which every client skips, if ping is nil. ping and comment run beside the handler. It is started when the request
// has reached its runner, since the first ping settles the response's status.
func (e *sse) keepAlive(interval time.Duration, ping func() (name string, v any)) {
	stop, done := make(chan struct{}), make(chan struct{})
	e.end = sync.OnceFunc(func() {
		close(stop)
		<-done
	})
	go func() {
		defer close(done)
		timer := time.NewTimer(interval)
		defer timer.Stop()
		for {
			select {
			case <-stop:
				return
			case <-timer.C:
				timer.Reset(e.pingIfSilent(interval, ping))
			}
		}
	}()
}

// pingIfSilent returns when to look again.
func (e *sse) pingIfSilent(interval time.Duration, ping func() (string, any)) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if left := interval - time.Since(e.last); left > 0 {
		return left
	}
	// What the handler has added belongs behind the ping only if it is complete, which nobody knows here: let it be.
	if e.buf.Len() > 0 {
		return interval
	}
	if ping == nil {
		text := "ping"
		if e.comment != nil {
			text = e.comment()
		}
		e.buf.WriteString(": " + text + "\n\n")
	} else if name, v := ping(); e.append(name, v) != nil {
		return interval
	}
	// The handler meets the error when it writes next.
	_ = e.write()
	return interval
}

// close ends the keep-alive. What was added and not flushed is dropped.
func (e *sse) close() {
	if e.end != nil {
		e.end()
	}
}

// fail ends the stream with an error. If nothing was sent yet, whole writes a response with the error's own status;
// otherwise the event that last returns is sent, since a stream must not just break off.
func (e *sse) fail(s *Server, r *http.Request, err error, whole func(), last func() (name string, v any)) {
	e.close()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.begun {
		whole()
		return
	}
	if !errors.Is(err, errdefs.ErrCanceled) {
		s.log.Error("request failed", "id", requestID(r.Context()), "path", r.URL.Path, "error", err)
	}
	if name, v := last(); e.append(name, v) == nil {
		_ = e.write()
	}
}
