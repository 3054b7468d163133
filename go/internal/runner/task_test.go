package runner

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

func TestRunTask(t *testing.T) {
	p, log := fakeParams(t, runnertest.Options{})
	var state runnerpb.StatusResponse_State
	err := RunTask(t.Context(), p, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		st, err := runnerpb.NewRunnerClient(conn).Status(ctx, &runnerpb.StatusRequest{})
		state = st.GetState()
		return err
	})
	if err != nil || state != runnerpb.StatusResponse_STATE_IDLE {
		t.Errorf("got %v, %v, want STATE_IDLE and no error", state, err)
	}
	if !strings.Contains(log.String(), "exit code 0") {
		t.Errorf("the process did not end in order:\n%s", log)
	}
}

func TestRunTaskTellsWhatWentWrong(t *testing.T) {
	own := errors.New("my own")
	unimplemented := func(ctx context.Context, conn grpc.ClientConnInterface) error {
		_, err := runnerpb.NewConverterClient(conn).ImportAdapter(ctx, &runnerpb.ImportAdapterRequest{})
		return err
	}
	crash := func(ctx context.Context, conn grpc.ClientConnInterface) error {
		stream, err := runnerpb.NewRunnerClient(conn).Load(ctx, &runnerpb.LoadRequest{})
		for err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for name, tt := range map[string]struct {
		options runnertest.Options
		do      func(context.Context, grpc.ClientConnInterface) error
		kind    error
		text    string
	}{
		"an error of the task's own": {do: func(context.Context, grpc.ClientConnInterface) error { return own }, kind: errdefs.ErrInternal, text: "my own"},
		"a call that fails":          {do: unimplemented, kind: errdefs.ErrUnsupported, text: "Converter"},
		"a process that dies": {options: runnertest.Options{Crash: runnertest.CrashAtLoad, ExitCode: 70}, do: crash,
			kind: errdefs.ErrUnavailable, text: "exit code 70"},
		"a start that fails": {options: runnertest.Options{Crash: runnertest.CrashAtStart, ExitCode: 75}, do: unimplemented,
			kind: errdefs.ErrUnavailable, text: "its engine cannot be imported"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := fakeParams(t, tt.options)
			err := RunTask(t.Context(), p, tt.do)
			if errdefs.Kind(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (%v), want %q (%v)", err, errdefs.Kind(err), tt.text, tt.kind)
			}
		})
	}
}

func TestRunTaskThatIsGivenUp(t *testing.T) {
	p, log := fakeParams(t, runnertest.Options{ShutdownHangs: true, IgnoresTerm: true})
	p.Timeouts.Shutdown, p.Timeouts.Term = patience, patience
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	err := RunTask(ctx, p, func(ctx context.Context, _ grpc.ClientConnInterface) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if errdefs.Kind(err) != errdefs.ErrCanceled {
		t.Errorf("got %v, want an error of kind %v", err, errdefs.ErrCanceled)
	}
	if took := time.Since(began); took > patience {
		t.Errorf("took %s: the process was asked before it was killed", took)
	}
	if !strings.Contains(log.String(), "SIGKILL") {
		t.Errorf("the process was not killed:\n%s", log)
	}
}
