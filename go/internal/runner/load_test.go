package runner

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

func TestLoad(t *testing.T) {
	r := startFake(t, runnertest.Options{LoadSteps: 5, Context: 4096, WeightBytes: 7})
	if _, err := r.Generate(t.Context(), prompt("x")); !errors.Is(err, errdefs.ErrPrecondition) {
		t.Errorf("before Load: got %v, want a precondition error", err)
	}
	var done []uint64
	info, err := r.Load(t.Context(), &runnerpb.LoadRequest{NumCtx: 1000}, func(p *runnerpb.LoadProgress) {
		if p.GetStage() == runnerpb.LoadProgress_STAGE_WEIGHTS {
			done = append(done, p.GetBytesDone())
		}
		if got := r.State(); got != StateLoading {
			t.Errorf("state is %s, want loading", got)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetContextLength() != 1000 || info.GetMaxContextLength() != 4096 || r.Info() != info {
		t.Errorf("info is %v", info)
	}
	if len(done) != 5 || done[4] != 4 {
		t.Errorf("progress was %v", done)
	}
	if got := r.State(); got != StateServing {
		t.Errorf("state is %s, want serving", got)
	}
	if _, err := r.Load(t.Context(), &runnerpb.LoadRequest{}, nil); !errors.Is(err, errdefs.ErrPrecondition) {
		t.Errorf("second Load: got %v, want a precondition error", err)
	}
}

func TestLoadRefused(t *testing.T) {
	r := startFake(t, runnertest.Options{LoadFails: &runnertest.Failure{Code: int32(codes.InvalidArgument), Message: "no such type"}})
	for range 2 {
		_, err := r.Load(t.Context(), &runnerpb.LoadRequest{}, nil)
		if !errors.Is(err, errdefs.ErrInvalid) || err.Error() != "no such type" {
			t.Errorf("got %v, want the runner's own error", err)
		}
		if got := r.State(); got != StateReady {
			t.Errorf("state is %s, want ready", got)
		}
	}
}

func TestLoadDies(t *testing.T) {
	for _, tt := range []struct {
		code int
		want string
	}{{0, "killed by SIGKILL"}, {70, "exit code 70"}} {
		r := startFake(t, runnertest.Options{Crash: runnertest.CrashAtLoad, ExitCode: tt.code, Stderr: "weights are broken\n", LoadSteps: 3})
		_, err := r.Load(t.Context(), &runnerpb.LoadRequest{}, nil)
		if !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("got %v, want unavailable", err)
		}
		for _, want := range []string{stoppedText, tt.want, "weights are broken"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error does not tell %q:\n%v", want, err)
			}
		}
		mustEnd(t, r)
		if err := r.Err(); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Err is %v", err)
		}
	}
}

func TestLoadStalls(t *testing.T) {
	// Messages that repeat themselves are no progress.
	p, _ := fakeParams(t, runnertest.Options{LoadHangs: true, LoadSteps: 3, LoadInterval: 10 * time.Millisecond})
	p.Timeouts.Stall = 300 * time.Millisecond
	r := startParams(t, p)
	_, err := r.Load(t.Context(), &runnerpb.LoadRequest{}, nil)
	if !errors.Is(err, errdefs.ErrTimeout) || !strings.Contains(err.Error(), "m:latest made no progress for 300ms") {
		t.Errorf("got %v, want a timeout", err)
	}
	mustStop(t, r)
}

func TestSlowLoadDoesNotStall(t *testing.T) {
	// The whole takes longer than the stall timeout, no step does.
	p, _ := fakeParams(t, runnertest.Options{LoadSteps: 12, LoadInterval: 100 * time.Millisecond})
	p.Timeouts.Stall = time.Second
	mustLoad(t, startParams(t, p))
}

func TestLoadGivenUp(t *testing.T) {
	r := startFake(t, runnertest.Options{LoadHangs: true, LoadSteps: 2})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := r.Load(ctx, &runnerpb.LoadRequest{}, func(*runnerpb.LoadProgress) { cancel() })
	if !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("got %v, want canceled", err)
	}
	if got := r.State(); got != StateReady {
		t.Errorf("state is %s, want ready", got)
	}
	eventually(t, patience, "runner has given the load up", func() bool {
		resp, err := r.Status(t.Context(), &runnerpb.StatusRequest{})
		return err == nil && resp.GetState() == runnerpb.StatusResponse_STATE_IDLE
	})
}
