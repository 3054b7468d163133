package runner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

const endless = 1 << 30

func TestGenerate(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	req := prompt("one two three")
	st, err := r.Generate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	// The caller owns its request again.
	req.GetPrompt().Text = "other"
	text, finished, err := readAll(st)
	if err != nil || text != "one two three" {
		t.Errorf("got %q, %v", text, err)
	}
	if finished.GetReason() != runnerpb.Finished_REASON_STOP || finished.GetUsage().GetCompletionTokens() != 3 {
		t.Errorf("finished with %v", finished)
	}
	st.Close()
	st.Close()
}

func TestGenerateManyAtOnce(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			want := strings.Repeat(fmt.Sprintf("request%d ", i), 1+i*3)
			st, err := r.Generate(t.Context(), prompt(want))
			if err != nil {
				t.Error(err)
				return
			}
			defer st.Close()
			if text, _, err := readAll(st); err != nil || text != want {
				t.Errorf("request %d: got %d bytes, %v, want %d", i, len(text), err, len(want))
			}
		})
	}
	wg.Wait()
}

func TestSlowReaderDelaysNobody(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	long := strings.Repeat("word ", 20_000)
	slow := mustGenerate(t, t.Context(), r, long)
	if text, _, err := readAll(mustGenerate(t, t.Context(), r, strings.Repeat("quick ", 21_000))); err != nil || len(text) != 6*21_000 {
		t.Fatalf("the other request: got %d bytes, %v", len(text), err)
	}
	// The slow one has ended before the quick one, unread. Its deltas wait as one.
	slow.box.mu.Lock()
	waiting := len(slow.box.queue) - slow.box.head
	slow.box.mu.Unlock()
	if waiting > 3 {
		t.Errorf("%d events wait, want prefill, delta, finished", waiting)
	}
	if text, _, err := readAll(slow); err != nil || text != long {
		t.Errorf("the slow request: got %d bytes, %v", len(text), err)
	}
}

func TestCancelByContext(t *testing.T) {
	r := serveFake(t, runnertest.Options{Repeat: endless, Interval: time.Millisecond})
	other := mustGenerate(t, t.Context(), r, "other ")
	firstDelta(t, other)
	ctx, cancel := context.WithCancel(t.Context())
	st := mustGenerate(t, ctx, r, "mine ")
	firstDelta(t, st)
	eventually(t, patience, "two requests run", func() bool { return running(t, r) == 2 })
	cancel()
	_, _, err := readAll(st)
	if !errors.Is(err, errdefs.ErrCanceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	eventually(t, patience, "the request has left the runner", func() bool { return running(t, r) == 1 })
	if _, err := other.Recv(); err != nil {
		t.Errorf("the other request: %v", err)
	}
}

func TestCancelByDeadline(t *testing.T) {
	r := serveFake(t, runnertest.Options{HangSteps: true})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	st := mustGenerate(t, ctx, r, "x")
	if _, _, err := readAll(st); !errors.Is(err, errdefs.ErrCanceled) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want canceled by its deadline", err)
	}
}

func TestCloseEndsTheRequest(t *testing.T) {
	r := serveFake(t, runnertest.Options{Repeat: endless, Interval: time.Millisecond})
	st := mustGenerate(t, t.Context(), r, "x ")
	firstDelta(t, st)
	received := make(chan error)
	go func() {
		_, _, err := readAll(st)
		received <- err
	}()
	st.Close()
	if err := <-received; !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("got %v, want canceled", err)
	}
	eventually(t, patience, "the request has left the runner", func() bool { return running(t, r) == 0 })
}

func TestContextThatHasEnded(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Generate(ctx, prompt("x")); !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

// TestCancelAtAnyMoment cancels and closes requests at random points while others must stay whole.
func TestCancelAtAnyMoment(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			want := strings.Repeat("w ", 200)
			st, err := r.Generate(ctx, prompt(want))
			if err != nil {
				t.Error(err)
				return
			}
			defer st.Close()
			switch i % 4 {
			case 0:
				cancel()
			case 1:
				st.Close()
			case 2:
				go cancel()
			default:
				if text, _, err := readAll(st); err != nil || text != want {
					t.Errorf("got %d bytes, %v", len(text), err)
				}
				return
			}
			if _, _, err := readAll(st); err != nil && !errors.Is(err, errdefs.ErrCanceled) {
				t.Errorf("got %v, want canceled", err)
			}
		})
	}
	wg.Wait()
	eventually(t, patience, "no request is left", func() bool { return running(t, r) == 0 })
	s := r.sessions.current
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) != 0 {
		t.Errorf("%d requests are left in the session", len(s.streams))
	}
}

func TestRequestFails(t *testing.T) {
	for _, tt := range []struct {
		code codes.Code
		kind error
	}{
		{codes.InvalidArgument, errdefs.ErrInvalid},
		{codes.Unimplemented, errdefs.ErrUnsupported},
		{codes.ResourceExhausted, errdefs.ErrBusy},
		{codes.OK, errdefs.ErrInternal},
		{9999, errdefs.ErrInternal},
	} {
		r := serveFake(t, runnertest.Options{Fails: &runnertest.Failure{Code: int32(tt.code), Message: "because"}})
		text, finished, err := readAll(mustGenerate(t, t.Context(), r, "x y"))
		if text != "x y" || finished != nil || !errors.Is(err, tt.kind) || err.Error() != "because" {
			t.Errorf("code %d: got %q, %v, %v, want %v", tt.code, text, finished, err, tt.kind)
		}
	}
}

func TestRequestThatCannotBeEncoded(t *testing.T) {
	r := serveFake(t, runnertest.Options{Repeat: endless, Interval: time.Millisecond})
	other := mustGenerate(t, t.Context(), r, "other ")
	firstDelta(t, other)
	_, err := r.Generate(t.Context(), prompt("not UTF-8: \xff"))
	if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("got %v, want an error about UTF-8", err)
	}
	if _, err := other.Recv(); err != nil {
		t.Errorf("the other request: %v", err)
	}
}

func TestRequestThatIsTooLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a gigabyte")
	}
	r := serveFake(t, runnertest.Options{})
	image := make([]byte, maxMessage)
	req := prompt("x")
	req.GetPrompt().Images = []*runnerpb.Image{{Data: image}}
	if _, err := r.Generate(t.Context(), req); !errors.Is(err, errdefs.ErrTooLarge) {
		t.Errorf("got %v, want too large", err)
	}
	if _, _, err := readAll(mustGenerate(t, t.Context(), r, "x")); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

func TestLargeRequest(t *testing.T) {
	r := serveFake(t, runnertest.Options{Answer: []runnertest.Delta{{Content: "ok"}}})
	req := prompt("x")
	req.GetPrompt().Images = []*runnerpb.Image{{Data: make([]byte, 20<<20)}}
	st, err := r.Generate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if text, _, err := readAll(st); err != nil || text != "ok" {
		t.Errorf("got %q, %v", text, err)
	}
}

// TestDeathFailsRequestsAtOnce kills the runner under requests that run and that wait.
func TestDeathFailsRequestsAtOnce(t *testing.T) {
	p, _ := fakeParams(t, runnertest.Options{Repeat: endless, Interval: time.Millisecond, Stderr: "some log\n"})
	r := startParams(t, p)
	if _, err := r.Load(t.Context(), &runnerpb.LoadRequest{NumParallel: 2}, nil); err != nil {
		t.Fatal(err)
	}
	var streams []*Stream
	for range 4 {
		streams = append(streams, mustGenerate(t, t.Context(), r, "x "))
	}
	firstDelta(t, streams[0])
	if err := syscall.Kill(r.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for _, st := range streams {
		_, _, err := readAll(st)
		if !errors.Is(err, errdefs.ErrUnavailable) || !strings.HasPrefix(err.Error(), stoppedText) || !strings.Contains(err.Error(), "killed by SIGKILL") {
			t.Errorf("got %v, want the news of the kill", err)
		}
	}
	took := time.Since(begin)
	t.Logf("all requests failed after %s", took)
	if took > time.Second {
		t.Errorf("requests failed only after %s", took)
	}
	mustEnd(t, r)
	if _, err := r.Generate(t.Context(), prompt("x")); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Generate after the end: got %v", err)
	}
	if _, err := r.Embed(t.Context(), &runnerpb.EmbedRequest{}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Embed after the end: got %v", err)
	}
	if _, err := r.Status(t.Context(), &runnerpb.StatusRequest{}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Status after the end: got %v", err)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "some log") {
		t.Errorf("Err is %v, want the reason and the log", err)
	}
	if err := r.Stop(t.Context()); err != nil {
		t.Errorf("Stop after the end: %v", err)
	}
}

func TestCrashInGeneration(t *testing.T) {
	r := serveFake(t, runnertest.Options{Crash: runnertest.CrashAtStep, AfterSteps: 5, ExitCode: 70, Repeat: endless, Interval: time.Millisecond})
	text, _, err := readAll(mustGenerate(t, t.Context(), r, "x"))
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "exit code 70") {
		t.Errorf("got %v, want the exit code", err)
	}
	// Prefill takes one of the five steps. What had come is not lost.
	if text != "xxxx" {
		t.Errorf("got %q before the crash, want four words", text)
	}
	mustEnd(t, r)
}

func TestCallFailsWhenTheRunnerDies(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	freeze(t, r)
	failed := make(chan error)
	go func() {
		_, err := r.Tokenize(t.Context(), &runnerpb.TokenizeRequest{})
		failed <- err
	}()
	if err := syscall.Kill(r.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "SIGKILL") {
		t.Errorf("got %v, want the news of the kill", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	freeze(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Status(ctx, &runnerpb.StatusRequest{}); !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func TestBrokenSessionIsReplaced(t *testing.T) {
	r := serveFake(t, runnertest.Options{BreakSession: true, AfterSteps: 3, Interval: time.Millisecond})
	for range 2 {
		_, _, err := readAll(mustGenerate(t, t.Context(), r, strings.Repeat("x ", 100)))
		if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "session broke: the session broke as it was told to") {
			t.Errorf("got %v, want the session's own error", err)
		}
	}
	if text, _, err := readAll(mustGenerate(t, t.Context(), r, "x")); err != nil || text != "x" {
		t.Errorf("a short request in a new session: %q, %v", text, err)
	}
	if got := r.State(); got != StateServing {
		t.Errorf("state is %s, want serving", got)
	}
}

func TestOtherCalls(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	ctx := t.Context()
	tokens, err := r.Tokenize(ctx, &runnerpb.TokenizeRequest{Input: &runnerpb.TokenizeRequest_Prompt{Prompt: &runnerpb.Prompt{Text: "a b a "}}})
	if err != nil || len(tokens.GetTokens()) != 4 {
		t.Fatalf("got %v, %v", tokens, err)
	}
	text, err := r.Detokenize(ctx, &runnerpb.DetokenizeRequest{Tokens: tokens.GetTokens()})
	if err != nil || text.GetText() != "a b a " {
		t.Errorf("got %v, %v", text, err)
	}
	// More than the 4 MiB that gRPC takes by default.
	resp, err := r.Embed(ctx, &runnerpb.EmbedRequest{Inputs: make([]string, 130_000)})
	if err != nil || len(resp.GetEmbeddings()) != 130_000 {
		t.Errorf("got %d vectors, %v", len(resp.GetEmbeddings()), err)
	}
}

func running(t testing.TB, r *Runner) int {
	t.Helper()
	resp, err := r.Status(t.Context(), &runnerpb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return int(resp.GetRunning() + resp.GetQueued())
}

// freeze stops the process, so that it answers nothing any more.
func freeze(t *testing.T, r *Runner) {
	t.Helper()
	if err := syscall.Kill(r.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "process is frozen", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := r.client.Status(ctx, &runnerpb.StatusRequest{})
		return err != nil
	})
}
