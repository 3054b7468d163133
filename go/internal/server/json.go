package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const (
	typeJSON   = "application/json; charset=utf-8"
	typeNDJSON = "application/x-ndjson"
)

// readJSON decodes a request's body into v. The body is read to its end, whatever its content type: net/http notices
// that a client has gone only after that. Unknown fields and what follows the first value are let pass.
func (s *Server) readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.params.MaxBody))
	if err == nil && strings.EqualFold(r.Header.Get("Content-Encoding"), "zstd") {
		body, err = unpack(body, s.params.MaxBody)
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return errdefs.New(errdefs.ErrTooLarge, "request body is larger than %d bytes", tooLarge.Limit)
	case err != nil:
		return errdefs.New(errdefs.ErrInvalid, "reading the request body: %w", err)
	}
	err = json.NewDecoder(bytes.NewReader(body)).Decode(v)
	switch {
	case errors.Is(err, io.EOF):
		return errdefs.New(errdefs.ErrInvalid, "missing request body")
	case err != nil:
		return errdefs.New(errdefs.ErrInvalid, "%w", err)
	}
	return nil
}

// unpack decompresses a body, which some agents send that way, up to a limit.
func unpack(body []byte, limit int64) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	out, err := io.ReadAll(io.LimitReader(d, limit+1))
	if int64(len(out)) > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	return out, err
}

// maxWindow bounds the memory that a compressed body makes its decoder use; what clients send needs less.
const maxWindow = 8 << 20

type errorBody struct {
	Error string `json:"error"`
}

// writeJSON writes a whole response.
func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"internal error: the response cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", typeJSON)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// fail answers with an error in the native dialect.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := errdefs.HTTPStatus(err)
	s.noteFailure(w, r, status, err)
	writeJSON(w, status, errorBody{publicText(err)})
}

// noteFailure logs what is not the client's own fault, and tells the client when to try again where that is known.
func (s *Server) noteFailure(w http.ResponseWriter, r *http.Request, status int, err error) {
	var later interface{ RetryAfter() time.Duration }
	switch {
	case errors.As(err, &later):
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(later.RetryAfter().Seconds()))))
	case status == http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	if status >= http.StatusInternalServerError {
		s.log.Error("request failed", "id", requestID(r.Context()), "path", r.URL.Path, "error", err)
	}
}

// lines writes a stream of JSON values, one a line. Its buffer and its encoder serve the whole stream, and each value
// is one write and one flush.
type lines struct {
	w     http.ResponseWriter
	flush func() error
	buf   bytes.Buffer
	enc   *json.Encoder
	begun bool
}

func newLines(w http.ResponseWriter) *lines {
	l := &lines{w: w, flush: http.NewResponseController(w).Flush}
	l.enc = json.NewEncoder(&l.buf)
	return l
}

var nextLine = []byte("\u0085")

// oneLine escapes, in JSON, the one line break of Unicode that its encoder leaves as it is. Clients in Python end lines
// there (str.splitlines, and so httpx and ollama-python), and would read half a value.
func oneLine(encoded []byte) []byte {
	if !bytes.Contains(encoded, nextLine) {
		return encoded
	}
	return bytes.ReplaceAll(encoded, nextLine, []byte(`\u0085`))
}

// send writes one value. After an error the client is gone.
func (l *lines) send(v any) error {
	l.buf.Reset()
	if err := l.enc.Encode(v); err != nil {
		return errdefs.New(errdefs.ErrInternal, "encoding a response: %w", err)
	}
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", typeNDJSON)
		l.w.WriteHeader(http.StatusOK)
	}
	if _, err := l.w.Write(oneLine(l.buf.Bytes())); err != nil {
		return errdefs.New(errdefs.ErrCanceled, "the client is gone: %w", err)
	}
	if err := l.flush(); err != nil {
		return errdefs.New(errdefs.ErrCanceled, "the client is gone: %w", err)
	}
	return nil
}

// fail ends the stream with an error: with the error's own status if nothing was sent, else as a last line.
func (l *lines) fail(s *Server, r *http.Request, err error) {
	if !l.begun {
		s.fail(l.w, r, err)
		return
	}
	if !errors.Is(err, errdefs.ErrCanceled) {
		s.log.Error("request failed", "id", requestID(r.Context()), "path", r.URL.Path, "error", err)
	}
	_ = l.send(errorBody{publicText(err)})
}
