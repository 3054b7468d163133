package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// The tests in this file run real Python processes: tests/fakes/fake_runner.py, which needs grpcio, and the MLX runner
// itself with the demo model.

const repository = "../../.."

// pythonWith returns a Python that has the modules, or skips the test.
func pythonWith(t *testing.T, modules ...string) string {
	t.Helper()
	python := cmp.Or(os.Getenv("OLLMLX_PYTHON"), "python3")
	check := "import importlib.util as u, sys; sys.exit(' '.join(m for m in sys.argv[1:] if u.find_spec(m) is None) or 0)"
	if out, err := exec.Command(python, append([]string{"-c", check}, modules...)...).CombinedOutput(); err != nil {
		t.Skipf("%s lacks %s or cannot be run (%v); set OLLMLX_PYTHON to a Python that has it", python, strings.TrimSpace(string(out)), err)
	}
	return python
}

func absolute(t *testing.T, path ...string) string {
	t.Helper()
	abs, err := filepath.Abs(filepath.Join(append([]string{repository}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// pythonParams are the params for a Python runner of this repository's sources.
func pythonParams(t *testing.T, engine string, command ...string) (Params, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	return Params{
		Command: command, Engine: engine, Dir: testDir(t), ModelName: "demo", Logger: log.logger(),
		Env: []string{"PYTHONPATH=" + absolute(t, "python_runner")}, TempDir: filepath.Join(shortTemp(t), "tmp"),
	}, log
}

func fakePython(t *testing.T, options ...string) (Params, *logBuffer) {
	t.Helper()
	python := pythonWith(t, "grpc")
	return pythonParams(t, "fake", append([]string{python, absolute(t, "tests/fakes/fake_runner.py")}, options...)...)
}

func mlxRunner(t *testing.T) (p Params, log *logBuffer, model string) {
	t.Helper()
	python := pythonWith(t, "grpc", "mlx_lm")
	p, log = pythonParams(t, "mlx", python, "-m", "ollmlx.runner")
	return p, log, absolute(t, "python_runner/ollmlx/models/demo")
}

func TestPythonFake(t *testing.T) {
	t.Run("serves", func(t *testing.T) {
		p, log := fakePython(t)
		r := startParams(t, p)
		mustLoad(t, r)
		if text, finished, err := readAll(mustGenerate(t, t.Context(), r, "one two three")); err != nil || text != "onetwothree" || finished == nil {
			t.Errorf("got %q, %v, %v", text, finished, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		st := mustGenerate(t, ctx, r, strings.Repeat("x ", 100_000))
		firstDelta(t, st)
		cancel()
		eventually(t, patience, "the request has left the runner", func() bool { return running(t, r) == 0 })
		mustStop(t, r)
		if !strings.Contains(log.String(), "print() of a library") || !strings.Contains(log.String(), "exit code 0") {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("hangs in Shutdown, ignores SIGTERM", func(t *testing.T) {
		p, log := fakePython(t, "--hang", "shutdown", "--ignore-term")
		p.Timeouts.Shutdown, p.Timeouts.Term = 100*time.Millisecond, 100*time.Millisecond
		mustStop(t, startParams(t, p))
		if !strings.Contains(log.String(), "killed by SIGKILL") {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("hangs in Load", func(t *testing.T) {
		p, _ := fakePython(t, "--hang", "load")
		p.Timeouts.Stall = 200 * time.Millisecond
		r := startParams(t, p)
		if _, err := r.Load(t.Context(), &runnerpb.LoadRequest{}, nil); !errors.Is(err, errdefs.ErrTimeout) {
			t.Errorf("got %v, want a timeout", err)
		}
		mustStop(t, r)
	})
	t.Run("crashes in a step", func(t *testing.T) {
		p, _ := fakePython(t, "--crash", "step")
		r := startParams(t, p)
		mustLoad(t, r)
		_, _, err := readAll(mustGenerate(t, t.Context(), r, strings.Repeat("x ", 100)))
		if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "exit code 70") {
			t.Errorf("got %v, want the exit code", err)
		}
		mustEnd(t, r)
	})
	for name, tt := range map[string]struct{ option, want string }{
		"crashes at the start": {"--crash=start", "exit code 70"},
		"garbage handshake":    {"--no-handshake", "INFO: listening"},
		"wrong arguments":      {"--no-such-option", "from one release"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := fakePython(t, tt.option)
			if _, err := Start(t.Context(), p); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("wrong Python", func(t *testing.T) {
		p, _ := fakePython(t)
		p.Env = []string{"PYTHONPATH=" + t.TempDir()}
		p.Command = []string{p.Command[0], "-S", "-m", "ollmlx.runner"} // -S: without installed packages
		_, err := Start(t.Context(), p)
		if err == nil || !strings.Contains(err.Error(), "this Python has no ollmlx package") {
			t.Errorf("got %v, want that the package is missing", err)
		}
	})
}

func TestMLXRunner(t *testing.T) {
	p, log, model := mlxRunner(t)
	begin := time.Now()
	r := startParams(t, p)
	started := time.Since(begin)
	var stages []string
	info, err := r.Load(t.Context(), &runnerpb.LoadRequest{ModelPath: model, ModelName: "demo"}, func(p *runnerpb.LoadProgress) {
		stages = append(stages, fmt.Sprintf("%s %d/%d", p.GetStage(), p.GetBytesDone(), p.GetBytesTotal()))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %s, loaded in %s; %v", started, time.Since(begin)-started, stages)
	if info.GetArchitecture() == "" || info.GetContextLength() == 0 {
		t.Errorf("info is %v", info)
	}

	first, second := mustChat(t, t.Context(), r, "What is ollmlx?"), mustChat(t, t.Context(), r, "Hello!")
	for _, st := range []*Stream{first, second} {
		text, finished, err := readAll(st)
		if err != nil || len(text) == 0 || finished.GetUsage().GetCompletionTokens() == 0 {
			t.Errorf("got %q, %v, %v", text, finished, err)
		}
		t.Logf("%q", text)
	}

	ctx, cancel := context.WithCancel(t.Context())
	st := mustChat(t, ctx, r, "Give me a long answer.")
	firstDelta(t, st)
	cancel()
	begin = time.Now()
	eventually(t, patience, "the cancelled request has left the runner", func() bool { return running(t, r) == 0 })
	t.Logf("cancelled in %s", time.Since(begin))

	begin = time.Now()
	mustStop(t, r)
	t.Logf("stopped in %s", time.Since(begin))
	if !strings.Contains(log.String(), "exit code 0") {
		t.Errorf("log:\n%s", log)
	}
}

func TestMLXRunnerDies(t *testing.T) {
	p, _, model := mlxRunner(t)
	r := startParams(t, p)
	if _, err := r.Load(t.Context(), &runnerpb.LoadRequest{ModelPath: model}, nil); err != nil {
		t.Fatal(err)
	}
	st := mustChat(t, t.Context(), r, "Give me a long answer.")
	firstDelta(t, st)
	if err := syscall.Kill(r.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, _, err := readAll(st)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "killed by SIGKILL") {
		t.Errorf("got %v, want the news of the kill", err)
	}
	// On a quiet machine this takes milliseconds; the race detector on a busy one is given time.
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("the request failed only after %s", took)
	}
	mustEnd(t, r)
}

func TestMLXRunnerStoppedInLoad(t *testing.T) {
	p, _, model := mlxRunner(t)
	r := startParams(t, p)
	failed := make(chan error)
	loading := make(chan struct{}, 100)
	go func() {
		_, err := r.Load(context.Background(), &runnerpb.LoadRequest{ModelPath: model}, func(*runnerpb.LoadProgress) { loading <- struct{}{} })
		failed <- err
	}()
	<-loading
	begin := time.Now()
	mustStop(t, r)
	t.Logf("stopped in %s", time.Since(begin))
	if err := <-failed; !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Load: got %v, want that it was stopped", err)
	}
}

func TestMLXRunnerLoadsNonsense(t *testing.T) {
	p, _, _ := mlxRunner(t)
	r := startParams(t, p)
	_, err := r.Load(t.Context(), &runnerpb.LoadRequest{ModelPath: t.TempDir()}, nil)
	if err == nil || errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("got %v, want the runner's own error", err)
	}
	t.Log(err)
	mustStop(t, r)
}

// TestKilledHostLeavesNoPython kills hosts of Python runners with SIGKILL.
func TestKilledHostLeavesNoPython(t *testing.T) {
	kinds := map[string]func(t *testing.T) (Params, string){
		"fake": func(t *testing.T) (Params, string) { p, _ := fakePython(t); return p, "" },
		"mlx":  func(t *testing.T) (Params, string) { p, _, model := mlxRunner(t); return p, model },
	}
	for name, kind := range kinds {
		for _, until := range []string{"start", "load", "generate"} {
			t.Run(name+" in "+until, func(t *testing.T) {
				p, model := kind(t)
				host, runner := startHost(t, hostParams{
					Base: shortTemp(t), Command: p.Command, Engine: p.Engine, Env: p.Env, Until: until, Model: model,
				})
				took := killHost(t, host, runner)
				if took >= time.Second {
					syscall.Kill(runner, syscall.SIGKILL)
					t.Fatalf("runner %d lives on after its host", runner)
				}
				t.Logf("runner ended %s after its host", took)
			})
		}
	}
}

func mustChat(t *testing.T, ctx context.Context, r *Runner, text string) *Stream {
	t.Helper()
	st, err := r.Generate(ctx, chat(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

func chat(text string) *runnerpb.GenerateRequest {
	limit := int32(200)
	return &runnerpb.GenerateRequest{
		Input: &runnerpb.GenerateRequest_Chat{Chat: &runnerpb.Chat{
			Messages: []*runnerpb.Message{{Role: "user", Content: text}},
		}},
		Options: &runnerpb.Options{NumPredict: &limit},
	}
}
