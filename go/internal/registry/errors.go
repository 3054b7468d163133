package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// maxErrorBody bounds what is read of a response that is an error.
const maxErrorBody = 64 << 10

// maxRetryDelay bounds the pause before a repetition.
const maxRetryDelay = time.Minute

// errStalled ends a connection over which nothing comes.
var errStalled = errdefs.New(errdefs.ErrTimeout, "the connection stalled")

// statusError is an answer that is no success.
type statusError struct {
	// peer names who answered; empty: the registry.
	peer       string
	code       int
	message    string
	retryAfter time.Duration
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s answered %d %s", cmp.Or(e.peer, "the registry"), e.code, http.StatusText(e.code))
	if e.message != "" {
		text += ": " + e.message
	}
	return text
}

// newStatusError reads the answer and closes it.
func newStatusError(resp *http.Response) *statusError {
	defer resp.Body.Close()
	e := &statusError{code: resp.StatusCode}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.retryAfter = min(time.Duration(s)*time.Second, maxRetryDelay)
	}
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Error string `json:"error"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, maxErrorBody)).Decode(&body) != nil {
		return e
	}
	e.message = body.Error
	if len(body.Errors) > 0 {
		e.message = cmp.Or(body.Errors[0].Message, body.Errors[0].Code)
	}
	e.message = printable(e.message)
	return e
}

// printable keeps a registry's text short and out of the terminal's control.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	const most = 300
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + "..."
	}
	return s
}

// Status returns the HTTP status with which a registry or site refused, 0 if err tells of none.
func Status(err error) int {
	var status *statusError
	if !errors.As(err, &status) {
		return 0
	}
	return status.code
}

func hasStatus(err error, codes ...int) bool {
	var status *statusError
	if !errors.As(err, &status) {
		return false
	}
	for _, code := range codes {
		if status.code == code {
			return true
		}
	}
	return false
}

// transient reports whether the same request may succeed later. Errors with a kind of their own are our decision, or the
// disk's, and final.
func transient(err error) bool {
	var status *statusError
	switch {
	case errors.As(err, &status):
		return status.code >= 500 || status.code == http.StatusTooManyRequests || status.code == http.StatusRequestTimeout
	case errors.Is(err, errStalled):
		return true
	case errors.Is(err, context.Canceled), errors.Is(err, errNoRanges):
		return false
	case errdefs.Kind(err) != errdefs.ErrInternal, errors.Is(err, errdefs.ErrInternal):
		return errors.Is(err, context.DeadlineExceeded)
	}
	return true
}

// retry repeats try until it succeeds, fails for good, or fails too often in a row without any progress.
func (c *Client) retry(ctx context.Context, most int, try func() (progressed bool, err error)) error {
	failures := 0
	for {
		progressed, err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if progressed {
			failures = 0
		}
		if failures++; !transient(err) || failures > most {
			return err
		}
		delay := min(c.params.RetryDelay<<min(failures-1, 16), maxRetryDelay)
		delay = delay/2 + rand.N(delay/2+1) // so that the parts of a blob do not all come back at once
		var status *statusError
		if errors.As(err, &status) {
			delay = max(delay, status.retryAfter)
		}
		c.log.Debug("registry: a transfer is repeated", "error", err, "failures", failures, "delay", delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watch returns a context that ends with errStalled when nothing calls touch for a while.
func watch(ctx context.Context, patience time.Duration) (watched context.Context, touch, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(patience, func() { cancel(errStalled) })
	return ctx, func() { timer.Reset(patience) }, func() { timer.Stop(); cancel(nil) }
}

// slot waits for the right to have a body under way.
func (c *Client) slot(ctx context.Context) (release func(), err error) {
	select {
	case c.slots <- struct{}{}:
		return func() { <-c.slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
