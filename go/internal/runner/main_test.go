package runner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

func TestMain(m *testing.M) {
	runnertest.Main()
	hostMain()
	os.Exit(m.Run())
}

// patience bounds what must happen but may take its time on a loaded machine.
const patience = 20 * time.Second

// logBuffer is a log that a test can read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func testDir(t testing.TB) *RuntimeDir {
	t.Helper()
	dir, err := NewRuntimeDir(DirParams{Base: shortTemp(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// shortTemp is a temporary directory whose path leaves room for a socket's name, which t.TempDir does not promise.
func shortTemp(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "rt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fakeParams are the params for a fake runner with short timeouts.
func fakeParams(t testing.TB, o runnertest.Options) (Params, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	return Params{
		Command: runnertest.Command(t, o), Engine: "fake", Dir: testDir(t), ModelName: "m:latest", Logger: log.logger(),
		Timeouts: Timeouts{Start: patience, Shutdown: 5 * time.Second, Term: 5 * time.Second, Kill: patience},
	}, log
}

func startParams(t testing.TB, p Params) *Runner {
	t.Helper()
	r, err := Start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.kill)
	return r
}

func startFake(t testing.TB, o runnertest.Options) *Runner {
	t.Helper()
	p, _ := fakeParams(t, o)
	return startParams(t, p)
}

// serveFake starts a fake runner and loads its model.
func serveFake(t testing.TB, o runnertest.Options) *Runner {
	t.Helper()
	r := startFake(t, o)
	mustLoad(t, r)
	return r
}

func mustLoad(t testing.TB, r *Runner) {
	t.Helper()
	if _, err := r.Load(t.Context(), &runnerpb.LoadRequest{}, nil); err != nil {
		t.Fatal(err)
	}
}

func prompt(text string) *runnerpb.GenerateRequest {
	return &runnerpb.GenerateRequest{Input: &runnerpb.GenerateRequest_Prompt{Prompt: &runnerpb.Prompt{Text: text}}}
}

func mustGenerate(t testing.TB, ctx context.Context, r *Runner, text string) *Stream {
	t.Helper()
	st, err := r.Generate(ctx, prompt(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

// readAll reads a stream to its end: all text, how it finished, and the error if it is not io.EOF.
func readAll(st *Stream) (text string, finished *runnerpb.Finished, err error) {
	var b strings.Builder
	for {
		ev, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return b.String(), finished, nil
		}
		if err != nil {
			return b.String(), finished, err
		}
		b.WriteString(ev.GetDelta().GetContent())
		if f := ev.GetFinished(); f != nil {
			finished = f
		}
	}
}

// firstDelta reads to the first text.
func firstDelta(t testing.TB, st *Stream) string {
	t.Helper()
	for {
		ev, err := st.Recv()
		if err != nil {
			t.Fatalf("before the first delta: %v", err)
		}
		if text := ev.GetDelta().GetContent(); text != "" {
			return text
		}
	}
}

// eventually polls until a condition holds.
func eventually(t testing.TB, within time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// gone tells whether a process has ended. One that waits to be reaped by its new parent has.
func gone(pid int) bool {
	if syscall.Kill(pid, 0) == syscall.ESRCH {
		return true
	}
	return isZombie(pid)
}

// isZombie looks a process up where the system shows it as a file; elsewhere it is false.
func isZombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, ok := strings.Cut(string(data), ") ")
	return ok && strings.HasPrefix(after, "Z")
}

// mustEnd waits for the runner's end and checks that nothing of it is left.
func mustEnd(t testing.TB, r *Runner) {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(patience):
		t.Fatalf("runner did not end, state %s", r.State())
	}
	if got := r.State(); got != StateExited {
		t.Errorf("state is %s, want exited", got)
	}
	if syscall.Kill(r.PID(), 0) != syscall.ESRCH {
		t.Errorf("process %d is still there", r.PID())
	}
	if _, err := os.Lstat(r.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is still there: %v", err)
	}
}
