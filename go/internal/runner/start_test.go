package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

func TestStart(t *testing.T) {
	p, log := fakeParams(t, runnertest.Options{
		Stdout: "print() of a library\n",
		Stderr: `{"level": "warn", "logger": "ollmlx.runner", "msg": "hello", "attrs": {"n": 1}}` + "\n",
	})
	r := startParams(t, p)
	if got := r.State(); got != StateReady {
		t.Errorf("state is %s, want ready", got)
	}
	h := r.Handshake()
	if h.PID != r.PID() || h.Engine != "fake" || h.Versions["fake"] != "1" {
		t.Errorf("handshake is %+v, pid %d", h, r.PID())
	}
	info, err := os.Stat(r.socket)
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	resp, err := r.Status(t.Context(), &runnerpb.StatusRequest{})
	if err != nil || resp.GetState() != runnerpb.StatusResponse_STATE_IDLE {
		t.Errorf("status is %v, %v", resp, err)
	}
	if r.Info() != nil || r.Err() != nil {
		t.Errorf("got info %v and error %v before a load", r.Info(), r.Err())
	}
	for _, want := range []string{
		`level=INFO msg="print() of a library" runner=r1 model=m:latest`,
		`level=WARN msg=hello runner=r1 model=m:latest logger=ollmlx.runner n=1`,
	} {
		eventually(t, patience, "log holds "+want, func() bool { return strings.Contains(log.String(), want) })
	}
}

func TestStartFails(t *testing.T) {
	tests := []struct {
		name    string
		options runnertest.Options
		change  func(*Params)
		kind    error
		// want are texts of the error.
		want []string
	}{
		{"killed before the handshake", runnertest.Options{Crash: runnertest.CrashAtStart}, nil,
			errdefs.ErrUnavailable, []string{"did not start", "killed by SIGKILL", "out of memory"}},
		{"exits before the handshake", runnertest.Options{Crash: runnertest.CrashAtStart, ExitCode: 75, Stderr: "one\nno engine here\n"}, nil,
			errdefs.ErrUnavailable, []string{"exit code 75", "engine cannot be imported", "last lines of its log:\none\nno engine here"}},
		{"wrong arguments", runnertest.Options{}, func(p *Params) { p.Command = append(p.Command, "--no-such-flag") },
			errdefs.ErrUnavailable, []string{"exit code 2", "from one release", "no-such-flag"}},
		{"not a runner", runnertest.Options{}, func(p *Params) { p.Command = []string{"/bin/echo", "hello"} },
			errdefs.ErrUnavailable, []string{"ended before it announced itself", "exit code 0", "hello --engine fake --log-level debug --socket"}},
		{"no such program", runnertest.Options{}, func(p *Params) { p.Command = []string{"/no/such/python3"} },
			errdefs.ErrPrecondition, []string{"/no/such/python3 not found", "OLLMLX_PYTHON"}},
		{"no such program on PATH", runnertest.Options{}, func(p *Params) { p.Command = []string{"no-such-python3"} },
			errdefs.ErrPrecondition, []string{"no-such-python3 not found", "OLLMLX_PYTHON"}},
		{"not executable", runnertest.Options{}, func(p *Params) { p.Command = []string{"/etc/passwd"} },
			errdefs.ErrPrecondition, []string{"/etc/passwd", "permission denied"}},
		{"not a program", runnertest.Options{}, func(p *Params) { p.Command = []string{script(t, "neither script nor program")} },
			errdefs.ErrUnavailable, []string{"cannot start the runner", "exec format error"}},
		{"no command", runnertest.Options{}, func(p *Params) { p.Command = nil }, errdefs.ErrInternal, []string{"needs a Command"}},
		{"no package", runnertest.Options{}, func(p *Params) {
			p.Command = []string{script(t, "#!/bin/sh\necho \"/usr/bin/python3: No module named ollmlx\" >&2\nexit 1\n")}
		}, errdefs.ErrUnavailable, []string{"exit code 1", "this Python has no ollmlx package", "OLLMLX_PYTHON"}},
		{"package lacks a dependency", runnertest.Options{
			Crash: runnertest.CrashAtStart, ExitCode: 1, Stderr: "Traceback (most recent call last):\nModuleNotFoundError: No module named 'grpc'\n",
		}, nil, errdefs.ErrUnavailable, []string{"a Python package is missing", "'grpc'"}},
		{"no handshake in time", runnertest.Options{Handshake: runnertest.HandshakeNone, Stderr: "still importing\n"},
			func(p *Params) { p.Timeouts.Start = 300 * time.Millisecond },
			errdefs.ErrTimeout, []string{"did not announce itself in time (300ms)", "still importing"}},
		{"slow start", runnertest.Options{StartDelay: time.Minute}, func(p *Params) { p.Timeouts.Start = 300 * time.Millisecond },
			errdefs.ErrTimeout, []string{"in time"}},
		{"handshake closed", runnertest.Options{Handshake: runnertest.HandshakeClosed}, nil,
			errdefs.ErrUnavailable, []string{"ended before it announced itself"}},
		{"garbage handshake", runnertest.Options{Handshake: runnertest.HandshakeGarbage}, nil,
			errdefs.ErrInternal, []string{"not the JSON it should be", "Application startup complete"}},
		{"endless handshake", runnertest.Options{Handshake: runnertest.HandshakeEndless}, nil,
			errdefs.ErrInternal, []string{"handshake is not a line", "xxx"}},
		{"wrong protocol", runnertest.Options{Handshake: runnertest.HandshakeProtocol}, nil,
			errdefs.ErrPrecondition, []string{"speaks protocol 99", "from one release"}},
		{"wrong engine", runnertest.Options{Handshake: runnertest.HandshakeEngine}, nil,
			errdefs.ErrInternal, []string{`engine "other", not "fake"`}},
		{"crashes after the handshake", runnertest.Options{NoSocket: true, Crash: runnertest.CrashAtReady, ExitCode: 70}, nil,
			errdefs.ErrUnavailable, []string{"process ended", "exit code 70"}},
		{"does not listen", runnertest.Options{NoSocket: true}, func(p *Params) { p.Timeouts.Start = time.Second },
			errdefs.ErrTimeout, []string{"in time (1s)"}},
		{"ignores SIGTERM", runnertest.Options{Handshake: runnertest.HandshakeGarbage, IgnoresTerm: true}, nil,
			errdefs.ErrInternal, []string{"JSON"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, _ := fakeParams(t, tt.options)
			if tt.change != nil {
				tt.change(&p)
			}
			r, err := Start(t.Context(), p)
			if err == nil {
				r.kill()
				t.Fatal("it started")
			}
			if !errors.Is(err, tt.kind) {
				t.Errorf("kind of error is %v, want %v", errdefs.Kind(err), tt.kind)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not tell %q:\n%v", want, err)
				}
			}
			if left, err := filepath.Glob(filepath.Join(p.Dir.Path(), "*.sock")); err != nil || len(left) > 0 {
				t.Errorf("left in the runtime directory: %v", left)
			}
		})
	}
}

func TestStartGivenUp(t *testing.T) {
	p, log := fakeParams(t, runnertest.Options{StartDelay: time.Minute, IgnoresTerm: true, Stderr: "up\n"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for !strings.Contains(log.String(), "msg=up") {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	begin := time.Now()
	_, err := Start(ctx, p)
	if !errors.Is(err, errdefs.ErrCanceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("giving up took %s", took)
	}
	if !strings.Contains(log.String(), "killed by SIGKILL") {
		t.Errorf("log does not tell the end:\n%s", log)
	}
}

func TestNoisyStart(t *testing.T) {
	p, log := fakeParams(t, runnertest.Options{
		Stdout: "{\"level\": 7}\n\x00\xff\xfe garbage \x1b[31m\n", LogBytes: 8 << 20,
	})
	r := startParams(t, p)
	eventually(t, patience, "long line is logged", func() bool { return strings.Contains(log.String(), "xxx [cut]") })
	if tail := r.proc.logs.tail.String(); len(tail) > tailSize {
		t.Errorf("tail has %d bytes", len(tail))
	}
	if n := len(log.String()); n > 1<<20 {
		t.Errorf("log has %d bytes", n)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("HF_HUB_OFFLINE", "0")
	t.Setenv("FROM_HOST", "1")
	t.Setenv("OLLMLX_API_KEY", "secret")
	t.Setenv("HF_TOKEN", "secret")
	temp := filepath.Join(shortTemp(t), "temp")
	out := filepath.Join(shortTemp(t), "env")
	p, _ := fakeParams(t, runnertest.Options{})
	p.Command = []string{script(t, "#!/bin/sh\n{ env; echo PWD=`pwd`; echo ARGS=$*; ls -l /proc/$$/fd 2>/dev/null; } > "+out+"\nread line; echo stdin=$? >> "+out+"\n")}
	p.TempDir = temp
	p.Env = []string{"TOKENIZERS_PARALLELISM=true", "EXTRA=2"}
	if _, err := Start(t.Context(), p); err == nil {
		t.Fatal("a script without a handshake started")
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	for _, want := range []string{
		"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "PYTHONUNBUFFERED=1", "FROM_HOST=1", "EXTRA=2",
		"TOKENIZERS_PARALLELISM=true", "TMPDIR=" + temp, "PWD=" + p.Dir.Path(),
		"ARGS=--engine fake --log-level debug --socket " + filepath.Join(p.Dir.Path(), "r1.sock"), "stdin=1",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %q in\n%s", want, data)
		}
	}
	if strings.Contains(string(data), "secret") {
		t.Errorf("the runner got the host's secrets:\n%s", data)
	}
}

func TestUnsafeTempDirIsRefused(t *testing.T) {
	p, _ := fakeParams(t, runnertest.Options{})
	p.TempDir = filepath.Join(shortTemp(t), "open")
	if err := os.Mkdir(p.TempDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.TempDir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), p); !errors.Is(err, errdefs.ErrPrecondition) {
		t.Errorf("got %v, want a precondition error", err)
	}
}

// script makes an executable file.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}
