package runner

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

func mustStop(t testing.TB, r *Runner) {
	t.Helper()
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, r)
	if err := r.Err(); err != nil {
		t.Errorf("Err after Stop is %v, want nil", err)
	}
}

func TestStop(t *testing.T) {
	tests := []struct {
		name    string
		options runnertest.Options
		change  func(*Timeouts)
		reason  string
	}{
		{name: "shuts down", reason: "exit code 0"},
		{name: "hangs in Shutdown", options: runnertest.Options{ShutdownHangs: true},
			change: func(t *Timeouts) { t.Shutdown = 100 * time.Millisecond }, reason: "exit code 0"},
		{name: "lingers after Shutdown", options: runnertest.Options{ShutdownLingers: true},
			change: func(t *Timeouts) { t.Shutdown = 100 * time.Millisecond }, reason: "exit code 0"},
		{name: "crashes in Shutdown", options: runnertest.Options{Crash: runnertest.CrashAtShutdown, ExitCode: 70}, reason: "exit code 70"},
		{name: "ignores everything", options: runnertest.Options{ShutdownHangs: true, IgnoresTerm: true},
			change: func(t *Timeouts) { t.Shutdown, t.Term = 100*time.Millisecond, 100*time.Millisecond }, reason: "killed by SIGKILL"},
	}
	for _, tt := range tests {
		for _, loaded := range []bool{false, true} {
			t.Run(tt.name+", loaded="+strconv.FormatBool(loaded), func(t *testing.T) {
				p, log := fakeParams(t, tt.options)
				if tt.change != nil {
					tt.change(&p.Timeouts)
				}
				r := startParams(t, p)
				if loaded {
					mustLoad(t, r)
				}
				mustStop(t, r)
				if known := r.Info() != nil; known != loaded {
					t.Errorf("the model is known after the end: %t, want %t", known, loaded)
				}
				if !strings.Contains(log.String(), tt.reason) {
					t.Errorf("log does not tell %q:\n%s", tt.reason, log)
				}
				mustStop(t, r)
				if _, err := r.Generate(t.Context(), prompt("x")); !errors.Is(err, errdefs.ErrUnavailable) || strings.Contains(err.Error(), "unexpectedly") {
					t.Errorf("Generate after Stop: got %v", err)
				}
				if _, err := r.Load(t.Context(), &runnerpb.LoadRequest{}, nil); !errors.Is(err, errdefs.ErrUnavailable) {
					t.Errorf("Load after Stop: got %v", err)
				}
			})
		}
	}
}

func TestStopOfAFrozenProcess(t *testing.T) {
	p, _ := fakeParams(t, runnertest.Options{})
	p.Timeouts.Shutdown, p.Timeouts.Term = 50*time.Millisecond, 50*time.Millisecond
	r := startParams(t, p)
	freeze(t, r)
	mustStop(t, r)
}

func TestStopManyTimesAtOnce(t *testing.T) {
	r := serveFake(t, runnertest.Options{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := r.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if got := r.State(); got != StateExited {
				t.Errorf("after Stop the state is %s", got)
			}
		})
	}
	wg.Wait()
	mustEnd(t, r)
}

func TestStopOutOfPatience(t *testing.T) {
	// The steps would take minutes; the end of a later caller's ctx skips them.
	p, log := fakeParams(t, runnertest.Options{ShutdownHangs: true, IgnoresTerm: true})
	p.Timeouts.Shutdown, p.Timeouts.Term = time.Minute, time.Minute
	r := startParams(t, p)
	patient := make(chan error)
	go func() { patient <- r.Stop(context.Background()) }()
	eventually(t, patience, "stopping", func() bool { return r.State() == StateStopping })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := r.Stop(ctx); err != nil {
		t.Error(err)
	}
	if err := <-patient; err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("took %s", took)
	}
	mustEnd(t, r)
	if !strings.Contains(log.String(), "killed by SIGKILL") {
		t.Errorf("log:\n%s", log)
	}
}

func TestStopInLoad(t *testing.T) {
	r := startFake(t, runnertest.Options{LoadHangs: true, LoadSteps: 1})
	failed := make(chan error)
	loading := make(chan struct{})
	var once sync.Once
	go func() {
		_, err := r.Load(context.Background(), &runnerpb.LoadRequest{}, func(*runnerpb.LoadProgress) { once.Do(func() { close(loading) }) })
		failed <- err
	}()
	<-loading
	mustStop(t, r)
	if err := <-failed; !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "was stopped") {
		t.Errorf("Load: got %v, want that it was stopped", err)
	}
}

func TestStopFailsWhatRuns(t *testing.T) {
	r := serveFake(t, runnertest.Options{Repeat: endless, Interval: time.Millisecond})
	st := mustGenerate(t, t.Context(), r, "x ")
	firstDelta(t, st)
	mustStop(t, r)
	if _, _, err := readAll(st); !errors.Is(err, errdefs.ErrUnavailable) || strings.Contains(err.Error(), "unexpectedly") {
		t.Errorf("got %v, want that it was stopped", err)
	}
}

func TestStopDrains(t *testing.T) {
	p, _ := fakeParams(t, runnertest.Options{Interval: time.Millisecond})
	p.Timeouts.Drain = patience
	r := startParams(t, p)
	mustLoad(t, r)
	want := strings.Repeat("x ", 100)
	st := mustGenerate(t, t.Context(), r, want)
	first := firstDelta(t, st)
	stopped := make(chan error)
	go func() { stopped <- r.Stop(context.Background()) }()
	text, finished, err := readAll(st)
	if err != nil || finished == nil || first+text != want {
		t.Errorf("got %q, %v, want all of the answer", text, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	mustEnd(t, r)
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	for name, end := range map[string]func(*Runner){
		"stop":  func(r *Runner) { mustStop(t, r) },
		"death": func(r *Runner) { syscall.Kill(r.PID(), syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			p, log := fakeParams(t, runnertest.Options{Child: true})
			r := startParams(t, p)
			var child int
			eventually(t, patience, "child is told", func() bool {
				_, after, ok := strings.Cut(log.String(), `msg="child `)
				digits, _, whole := strings.Cut(after, `"`)
				child, _ = strconv.Atoi(digits)
				return ok && whole
			})
			if gone(child) {
				t.Fatalf("the runner's child %d is gone already", child)
			}
			end(r)
			mustEnd(t, r)
			eventually(t, patience, "the child is gone too", func() bool { return gone(child) })
		})
	}
}
