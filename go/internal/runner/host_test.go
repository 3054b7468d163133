package runner

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// hostEnv makes this test binary a host: a process that has a runner and does nothing else.
const hostEnv = "OLLMLX_TEST_HOST"

// hostParams is what the host does.
type hostParams struct {
	Base    string
	Command []string
	Engine  string
	Env     []string
	// Until is how far the host goes before it waits to be killed: "start", "load", "generate".
	Until string
	// Model is the directory that it loads.
	Model string
}

// hostMain is the host's main function, if this process is one. It tells "pid N" when it has come as far as it should; a
// runner that does not get as far as its handshake tells that itself.
func hostMain() {
	data := os.Getenv(hostEnv)
	if data == "" {
		return
	}
	var p hostParams
	if err := json.Unmarshal([]byte(data), &p); err != nil {
		panic(err)
	}
	os.Unsetenv(hostEnv)
	dir, err := NewRuntimeDir(DirParams{Base: p.Base})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	r, err := Start(ctx, Params{
		Command: p.Command, Engine: p.Engine, Dir: dir, Env: p.Env, Logger: slog.New(slog.NewTextHandler(os.Stdout, nil)),
	})
	if err != nil {
		panic(err)
	}
	// A process that the host starts later and that outlives it must not hold the runner's lifeline.
	if err := exec.Command("sleep", "5").Start(); err != nil {
		panic(err)
	}
	reached := func() { fmt.Printf("msg=\"pid %d\"\n", r.PID()) }
	switch p.Until {
	case "start":
		reached()
	case "load":
		var once sync.Once
		_, err = r.Load(ctx, &runnerpb.LoadRequest{ModelPath: p.Model}, func(*runnerpb.LoadProgress) { once.Do(reached) })
		if err != nil {
			panic(err)
		}
	case "generate":
		if _, err := r.Load(ctx, &runnerpb.LoadRequest{ModelPath: p.Model}, nil); err != nil {
			panic(err)
		}
		req := prompt(strings.Repeat("word ", 200))
		if p.Model != "" {
			req = chat("Give me a long answer.")
		}
		st, err := r.Generate(ctx, req)
		if err != nil {
			panic(err)
		}
		for text := ""; text == ""; {
			ev, err := st.Recv()
			if err != nil {
				panic(err)
			}
			text = ev.GetDelta().GetContent()
		}
		reached()
	}
	select {}
}

// startHost runs a host until it, or its runner, has told the runner's pid.
func startHost(t *testing.T, p hostParams) (host *exec.Cmd, runner int) {
	t.Helper()
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	host = exec.Command(os.Args[0])
	host.Env = append(os.Environ(), hostEnv+"="+string(data))
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	host.Stdout, host.Stderr = w, os.Stderr
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		host.Process.Kill()
		host.Wait()
		out.Close()
	})
	out.SetReadDeadline(time.Now().Add(3 * patience))
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		_, rest, ok := strings.Cut(lines.Text(), `msg="pid `)
		if !ok {
			continue
		}
		if _, err := fmt.Sscanf(rest, "%d", &runner); err != nil {
			t.Fatal(err)
		}
		return host, runner
	}
	t.Fatalf("the host told no pid: %v", lines.Err())
	return nil, 0
}

// killHost kills a host and returns how long its runner lives on, at most a second.
func killHost(t *testing.T, host *exec.Cmd, runner int) time.Duration {
	t.Helper()
	if gone(runner) {
		t.Fatalf("runner %d was gone before its host", runner)
	}
	if err := host.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for !gone(runner) && time.Since(begin) < time.Second {
		time.Sleep(time.Millisecond)
	}
	return time.Since(begin)
}

// TestKilledHostLeavesNothing kills hosts with SIGKILL in each phase of a runner's life.
func TestKilledHostLeavesNothing(t *testing.T) {
	tests := []struct {
		name, until string
		options     runnertest.Options
	}{
		{"before the handshake", "", runnertest.Options{LogPID: true, StartDelay: time.Minute}},
		{"idle", "start", runnertest.Options{}},
		{"ignoring signals", "start", runnertest.Options{IgnoresTerm: true}},
		{"loading", "load", runnertest.Options{LoadHangs: true, LoadSteps: 1}},
		{"generating", "generate", runnertest.Options{Repeat: endless}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base := shortTemp(t)
			host, runner := startHost(t, hostParams{
				Base: base, Command: runnertest.Command(t, tt.options), Engine: "fake", Until: tt.until,
			})
			took := killHost(t, host, runner)
			if took >= time.Second {
				syscall.Kill(runner, syscall.SIGKILL)
				t.Fatalf("runner %d lives on after its host", runner)
			}
			t.Logf("runner ended %s after its host", took)
			_ = host.Wait()
			mustBeSwept(t, base)
		})
	}
}

// TestLifelineIsWhatEndsRunners shows that the test above can fail: a runner that ignores its lifeline lives on.
func TestLifelineIsWhatEndsRunners(t *testing.T) {
	host, runner := startHost(t, hostParams{
		Base: shortTemp(t), Command: runnertest.Command(t, runnertest.Options{IgnoresLifeline: true}), Engine: "fake", Until: "start",
	})
	defer syscall.Kill(runner, syscall.SIGKILL)
	if took := killHost(t, host, runner); took < time.Second {
		t.Errorf("it ended after %s", took)
	}
}

// mustBeSwept checks that the next server removes what a killed one has left in base.
func mustBeSwept(t *testing.T, base string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(base, "ollmlx-*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("the killed host left %v, %v, want its runtime directory", left, err)
	}
	next, err := NewRuntimeDir(DirParams{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if _, err := os.Stat(left[0]); !os.IsNotExist(err) {
		t.Errorf("the next server did not remove %s", left[0])
	}
}
