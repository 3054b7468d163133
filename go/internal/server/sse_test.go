package server

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// countingWriter counts writes and flushes, and fails when told to.
type countingWriter struct {
	*httptest.ResponseRecorder
	writes, flushes int
	fail            error
}

func (w *countingWriter) Write(p []byte) (int, error) {
	if w.fail != nil {
		return 0, w.fail
	}
	w.writes++
	return w.ResponseRecorder.Write(p)
}

func (w *countingWriter) Flush() { w.flushes++ }

func newCountingWriter() *countingWriter {
	return &countingWriter{ResponseRecorder: httptest.NewRecorder()}
}

func TestSSE(t *testing.T) {
	w := newCountingWriter()
	e := newSSE(w)
	if err := e.flush(); err != nil || e.begun {
		t.Fatalf("an empty flush: %v, begun %t", err, e.begun)
	}
	if err := errors.Join(e.add("a", map[string]string{"x": "<b>\n&"}), e.add("", 1), e.flush()); err != nil {
		t.Fatal(err)
	}
	e.addText("[DONE]")
	if err := errors.Join(e.flush(), e.send("b", nil)); err != nil {
		t.Fatal(err)
	}
	e.close()
	const want = "event: a\ndata: {\"x\":\"<b>\\n&\"}\n\ndata: 1\n\ndata: [DONE]\n\nevent: b\ndata: null\n\n"
	if got := w.Body.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if w.writes != 3 || w.flushes != 3 {
		t.Errorf("%d writes and %d flushes for 3 steps", w.writes, w.flushes)
	}
	if w.Header().Get("Content-Type") != "text/event-stream" || w.Code != 200 {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

// A value that cannot be encoded leaves no half event behind.
func TestSSEEncodingFails(t *testing.T) {
	w := newCountingWriter()
	e := newSSE(w)
	if err := e.add("x", func() {}); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("got %v", err)
	}
	if err := e.send("", 1); err != nil || w.Body.String() != "data: 1\n\n" {
		t.Errorf("%v, %q", err, w.Body)
	}
}

func TestSSEClientGone(t *testing.T) {
	w := newCountingWriter()
	w.fail = errors.New("broken pipe")
	e := newSSE(w)
	for range 2 {
		if err := e.send("", 1); !errors.Is(err, errdefs.ErrCanceled) {
			t.Errorf("got %v", err)
		}
	}
}

func TestSSEKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCountingWriter()
		e := newSSE(w)
		e.keepAlive(10*time.Second, nil)
		time.Sleep(9 * time.Second)
		if err := e.send("", 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if got := w.Body.String(); got != "data: 1\n\n" {
			t.Errorf("pinged too early: %q", got)
		}
		// A step that is being put together is not torn.
		_ = e.add("", 2)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if err := e.flush(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(21 * time.Second)
		synctest.Wait()
		e.close()
		e.close()
		time.Sleep(time.Minute)
		if got := w.Body.String(); got != "data: 1\n\ndata: 2\n\n: ping\n\n: ping\n\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestSSEPingEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCountingWriter()
		e := newSSE(w)
		e.keepAlive(time.Second, func() (string, any) { return "ping", map[string]string{"type": "ping"} })
		time.Sleep(time.Second)
		synctest.Wait()
		e.close()
		if got := w.Body.String(); got != "event: ping\ndata: {\"type\":\"ping\"}\n\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestSSEFail(t *testing.T) {
	b := newBed(t)
	r := httptest.NewRequest("POST", "/", nil)
	for _, tt := range []struct {
		name  string
		begun bool
		code  int
		body  string
	}{
		{"before the first event", false, 404, "whole"},
		{"after it", true, 200, "data: 1\n\nevent: error\ndata: \"oh\"\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newCountingWriter()
			e := newSSE(w)
			if tt.begun {
				_ = e.send("", 1)
			}
			e.fail(b.server, r, errdefs.New(errdefs.ErrNotFound, "oh"),
				func() { http.Error(w, "whole", http.StatusNotFound) },
				func() (string, any) { return "error", "oh" })
			if w.Code != tt.code || strings.TrimRight(w.Body.String(), "\n") != strings.TrimRight(tt.body, "\n") {
				t.Errorf("got %d %q", w.Code, w.Body)
			}
		})
	}
}
