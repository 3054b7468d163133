package sched_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/runner"
	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

func TestMain(m *testing.M) {
	runnertest.Main()
	os.Exit(m.Run())
}

// processes is a scheduler over real processes that only pretend to have a model.
type processes struct {
	*sched.Scheduler
	dir   *runner.RuntimeDir
	model *store.Model
}

func withProcesses(t *testing.T, o runnertest.Options) processes {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	// Socket paths are short; t.TempDir is not.
	base, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	dir, err := runner.NewRuntimeDir(runner.DirParams{Base: base, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	st, m := storeWithModel(t)
	s := sched.New(sched.Params{
		Start: sched.NewStarter(sched.StarterParams{
			Store:  st,
			Runner: runner.Params{Command: runnertest.Command(t, o), Dir: dir, Logger: quiet, Timeouts: runner.Timeouts{Start: 10 * time.Second}},
			Load:   &runnerpb.LoadRequest{NumCtx: 512},
		}),
		KeepAlive: time.Minute,
		Logger:    quiet,
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if names := modelDirs(t, dir); len(names) > 0 {
			t.Errorf("directories of models remain: %v", names)
		}
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	return processes{s, dir, m}
}

func storeWithModel(t *testing.T) (*store.Store, *store.Model) {
	t.Helper()
	st, err := store.Open(store.Params{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	files := map[string]string{}
	for name, content := range mlxmodeltest.Model() {
		sum := sha256.Sum256(content)
		files[name] = "sha256:" + hex.EncodeToString(sum[:])
		if _, err := st.PutBlob(files[name], bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Create(t.Context(), store.CreateParams{Request: api.CreateRequest{Model: "m", Files: files}}, nil); err != nil {
		t.Fatal(err)
	}
	m, err := st.Get(model.ParseName("m"))
	if err != nil {
		t.Fatal(err)
	}
	return st, m
}

func modelDirs(t *testing.T, dir *runner.RuntimeDir) []string {
	t.Helper()
	entries, err := os.ReadDir(dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "model-") {
			names = append(names, e.Name())
		}
	}
	return names
}

func text(t *testing.T, l *sched.Lease, prompt string) (string, error) {
	t.Helper()
	s, err := l.Runner().Generate(t.Context(), &runnerpb.GenerateRequest{Input: &runnerpb.GenerateRequest_Prompt{Prompt: &runnerpb.Prompt{Text: prompt}}})
	if err != nil {
		return "", err
	}
	defer s.Close()
	var b strings.Builder
	for {
		e, err := s.Recv()
		switch {
		case err == io.EOF:
			return b.String(), nil
		case err != nil:
			return b.String(), err
		}
		b.WriteString(e.GetDelta().GetContent())
	}
}

func TestStarterRunsAProcess(t *testing.T) {
	p := withProcesses(t, runnertest.Options{WeightBytes: 77})
	l, err := p.Acquire(t.Context(), p.model, sched.AcquireOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := text(t, l, "one two"); err != nil || strings.TrimSpace(got) != "one two" {
		t.Errorf("got %q, %v", got, err)
	}
	if x := p.Loaded(t.Context())[0]; x.ContextLength != 512 || x.Size < 77 {
		t.Errorf("got %+v", x)
	}
	if len(modelDirs(t, p.dir)) != 1 {
		t.Error("the model's files are not laid out")
	}
	l.Release()
	p.Unload(p.model)
	waitFor(t, "the runner is gone with its directory", func() bool { return len(p.Loaded(t.Context())) == 0 && len(modelDirs(t, p.dir)) == 0 })
}

func TestStarterLeavesNothingBehind(t *testing.T) {
	for _, o := range []runnertest.Options{
		{Crash: runnertest.CrashAtStart, ExitCode: 3, Stderr: "no such library\n"},
		{Crash: runnertest.CrashAtLoad},
		{LoadFails: &runnertest.Failure{Code: 12, Message: "unsupported architecture: x"}},
	} {
		p := withProcesses(t, o)
		_, err := p.Acquire(t.Context(), p.model, sched.AcquireOptions{})
		if err == nil {
			t.Fatalf("%+v: it started", o)
		}
		if o.LoadFails != nil && (!errors.Is(err, errdefs.ErrUnsupported) || err.Error() != o.LoadFails.Message) {
			t.Errorf("got %v of kind %v", err, errdefs.Kind(err))
		}
		if o.Stderr != "" && !strings.Contains(err.Error(), "no such library") {
			t.Errorf("the error does not tell why: %v", err)
		}
		if names := modelDirs(t, p.dir); len(names) > 0 || len(p.Loaded(t.Context())) > 0 {
			t.Errorf("%+v: left %v", o, names)
		}
	}
}

func TestLeavingEndsAHangingLoad(t *testing.T) {
	p := withProcesses(t, runnertest.Options{LoadSteps: 1, LoadHangs: true})
	ctx, leave := context.WithCancel(t.Context())
	_, err := p.Acquire(ctx, p.model, sched.AcquireOptions{Progress: func(*runnerpb.LoadProgress) { leave() }})
	if !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("got %v", err)
	}
	waitFor(t, "the load is given up", func() bool { return len(p.Loaded(t.Context())) == 0 && len(modelDirs(t, p.dir)) == 0 })
}

// A runner that dies with a request in it: the request fails at once, the next one has a new process.
func TestCrashedProcessIsReplaced(t *testing.T) {
	p := withProcesses(t, runnertest.Options{Crash: runnertest.CrashAtStep, AfterSteps: 2})
	for range 2 {
		l, err := p.Acquire(t.Context(), p.model, sched.AcquireOptions{})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := text(t, l, "one two three four"); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("it failed after %v", d)
		}
		l.Release()
		waitFor(t, "the dead runner is gone", func() bool { return len(p.Loaded(t.Context())) == 0 })
	}
}

func TestFormatsWithoutAnEngine(t *testing.T) {
	start := sched.NewStarter(sched.StarterParams{})
	m := named("looks-like-mlx")
	m.Format = store.FormatTensors
	_, err := start(t.Context(), sched.Load{Model: m}, nil)
	if !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), "safetensors") || !strings.Contains(err.Error(), "looks-like-mlx") {
		t.Errorf("got %v", err)
	}
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
	}
}
