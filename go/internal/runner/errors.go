package runner

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// stoppedText is what clients of Ollama know to mean that the model's process died under their request.
const stoppedText = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check ollama server logs for details"

// exitGrace is how long a broken connection may precede the news of the exit that broke it.
const exitGrace = 500 * time.Millisecond

// Causes of a context's end. They are turned into errors for the caller where they surface.
var (
	errStartTimeout = errors.New("it did not announce itself in time")
	errExited       = errors.New("the runner's process ended")
	errStopping     = errors.New("the runner is being stopped")
	errStalled      = errors.New("loading stalled")
)

// exitError tells why a request cannot go on, after the process has exited.
func (r *Runner) exitError() error {
	now := r.published.Load()
	switch {
	case now.stopped:
		return stoppedError()
	case now.killed != nil:
		return unexpectedStop(now.killed.Error())
	}
	return unexpectedStop(exitReason(r.proc.state))
}

func stoppedError() error {
	return errdefs.New(errdefs.ErrUnavailable, "the model runner was stopped")
}

func unexpectedStop(reason string) error {
	return errdefs.New(errdefs.ErrUnavailable, "%s (%s)", stoppedText, reason)
}

// callError turns the error of a gRPC call into one for the caller: the end of its own ctx, the end of the process, or
// what the runner answered.
func (r *Runner) callError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return canceledError(ctx)
	}
	if r.diedUnder(err) {
		return r.exitError()
	}
	return errdefs.FromGRPC(err)
}

// diedUnder tells whether the process ended under a call that failed with err. The connection may break a moment before
// that is known.
func (r *Runner) diedUnder(err error) bool {
	code := status.Code(err)
	return (code == codes.Unavailable || code == codes.Canceled) && r.proc.exitedWithin(exitGrace, nil)
}

// canceledError is what the end of a request's own ctx comes to.
func canceledError(ctx context.Context) error {
	return errdefs.New(errdefs.ErrCanceled, "request canceled: %w", context.Cause(ctx))
}

// startError tells why a start failed: what was seen, how the process ended, the likely cause and remedy, and the end of
// the log. It is called after the process has been waited for; exited tells whether it ended on its own.
func startError(r *Runner, err error, exited bool) error {
	var b strings.Builder
	b.WriteString("the model runner did not start: ")
	b.WriteString(err.Error())
	if err == errStartTimeout {
		b.WriteString(" (" + r.params.Timeouts.Start.String() + ")")
	}
	end, code := "", -1
	if exited {
		end, code = exitReason(r.proc.state), r.proc.state.ExitCode()
		b.WriteString(" (" + end + ")")
	}
	log := r.proc.logs.tail.String()
	if hint := likelyCause(code, end, log); hint != "" {
		b.WriteString("; " + hint)
	}
	return withTail(errdefs.New(startKind(err), "%s", b.String()), log)
}

func startKind(err error) error {
	switch {
	case err == errStartTimeout:
		return errdefs.ErrTimeout
	case err == errNoHandshake, err == errExited:
		return errdefs.ErrUnavailable
	}
	return errdefs.Kind(err)
}

// likelyCause names the cause and the remedy of a failed start where exit code or log give it away.
func likelyCause(code int, end, log string) string {
	has := func(text string) bool { return strings.Contains(log, text) }
	switch {
	case has("No module named ollmlx"), has("No module named 'ollmlx"):
		return "this Python has no ollmlx package: install ollmlx into it, or set OLLMLX_PYTHON to the Python that has it"
	case has("No module named"):
		return "a Python package is missing: reinstall ollmlx with its dependencies, or set OLLMLX_PYTHON to the Python that has them"
	case code == 2:
		return "it does not know its arguments: install the ollmlx binary and the ollmlx Python package from one release"
	case code == 3:
		return "it did not find the pipes that the host hands it: if OLLMLX_PYTHON names a wrapper script, let it exec Python and keep fd 3 and 4 open"
	case code == 75:
		return "its engine cannot be imported: reinstall ollmlx with its dependencies"
	case has("Address already in use"), has("path too long"), has("File name too long"):
		return "its socket could not be made: set TMPDIR to a short path that you can write to"
	case strings.Contains(end, "SIGKILL"):
		return "the system may have run out of memory"
	}
	return ""
}

// withTail adds the end of a log to an error.
func withTail(err error, log string) error {
	if log == "" {
		return err
	}
	return errdefs.New(errdefs.Kind(err), "%w; last lines of its log:\n%s", err, log)
}
