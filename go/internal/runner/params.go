package runner

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// Params says what runner to start and how.
type Params struct {
	// Command is the program and its first arguments, for example {python, "-m", "ollmlx.runner"}.
	Command []string
	// Engine is what the runner is to generate with, for example "mlx"; a runner that announces another is refused.
	Engine string
	// Dir is the server's runtime directory: the runner's working directory and its socket's place.
	Dir *RuntimeDir
	// ModelName is the model's name as users see it, for log records and errors; that of a LoadRequest replaces it.
	ModelName string
	// Warm has the runner import its engine's libraries ahead of the load.
	Warm bool
	// Env is added to the host's environment, "NAME=value"; it wins over everything else.
	Env []string
	// TempDir becomes the runner's TMPDIR. It is made when missing and must be private, because code that was compiled
	// there is loaded. Empty: the host's own.
	TempDir string
	// Logger gets the runner's log. Nil: slog.Default().
	Logger   *slog.Logger
	Timeouts Timeouts
}

// Timeouts bounds what a runner may take its time for. A zero field takes its default.
type Timeouts struct {
	// Start bounds exec, handshake and connect together. Default 30 s.
	Start time.Duration
	// Stall is how long Load goes on without any progress. Default 5 min; negative: without end.
	Stall time.Duration
	// Drain is how long running requests may go on after Stop. Default: not at all.
	Drain time.Duration
	// Save is how long after Drain a runner may write its prefix caches to files. Default: not at all.
	Save time.Duration
	// Shutdown is the time that a runner has, after Drain and Save, to end on its own. Default 2 s.
	Shutdown time.Duration
	// Term is how long after SIGTERM SIGKILL follows. Default 3 s.
	Term time.Duration
	// Kill is how long after SIGKILL Stop gives up. Default 2 s.
	Kill time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	return Timeouts{
		Start:    cmp.Or(t.Start, 30*time.Second),
		Stall:    cmp.Or(t.Stall, 5*time.Minute),
		Drain:    t.Drain,
		Save:     t.Save,
		Shutdown: cmp.Or(t.Shutdown, 2*time.Second),
		Term:     cmp.Or(t.Term, 3*time.Second),
		Kill:     cmp.Or(t.Kill, 2*time.Second),
	}
}

// checked returns the params with defaults filled in.
func (p Params) checked() (Params, error) {
	if len(p.Command) == 0 || p.Dir == nil {
		return p, errdefs.New(errdefs.ErrInternal, "runner.Start needs a Command and a Dir")
	}
	if p.Logger == nil {
		p.Logger = slog.Default()
	}
	p.Timeouts = p.Timeouts.withDefaults()
	if p.TempDir == "" {
		return p, nil
	}
	return p, privateDir(p.TempDir)
}

func (p Params) commandLine(socket string) []string {
	args := append([]string{}, p.Command...)
	if p.Engine != "" {
		args = append(args, "--engine", p.Engine)
	}
	if p.Warm {
		args = append(args, "--warm")
	}
	if p.Logger != nil && p.Logger.Enabled(context.Background(), slog.LevelDebug) {
		args = append(args, "--log-level", "debug")
	}
	return append(args, "--socket", socket)
}

// hostSecrets are variables that a runner has no use for.
var hostSecrets = []string{"OLLMLX_API_KEY=", "HF_TOKEN=", "HUGGING_FACE_HUB_TOKEN="}

// environment is the host's without its secrets, with what keeps a runner off the network and its output prompt. Of
// equal names the last wins.
func (p Params) environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return slices.ContainsFunc(hostSecrets, func(name string) bool { return strings.HasPrefix(entry, name) })
	})
	env = append(env,
		"HF_HUB_OFFLINE=1",
		"TRANSFORMERS_OFFLINE=1",
		// It would say at each start that PyTorch is missing, which is no loss.
		"TRANSFORMERS_NO_ADVISORY_WARNINGS=1",
		"TOKENIZERS_PARALLELISM=false",
		"PYTHONUNBUFFERED=1",
	)
	if p.TempDir != "" {
		env = append(env, "TMPDIR="+p.TempDir)
	}
	return append(env, p.Env...)
}
