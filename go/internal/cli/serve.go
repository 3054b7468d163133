package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/ollmlx/ollmlx/go/internal/config"
	"github.com/ollmlx/ollmlx/go/internal/converter"
	"github.com/ollmlx/ollmlx/go/internal/hub"
	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/metrics"
	"github.com/ollmlx/ollmlx/go/internal/registry"
	"github.com/ollmlx/ollmlx/go/internal/runner"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/server"
	"github.com/ollmlx/ollmlx/go/internal/store"
	"github.com/ollmlx/ollmlx/go/internal/tracing"
	"github.com/ollmlx/ollmlx/go/internal/version"
)

const serveName = "serve"

// traceFlush bounds how long the last traces may take on their way.
const traceFlush = 3 * time.Second

// hangTimeout is how long a runner with requests may leave the question for its state unanswered: it answers while it
// computes, within milliseconds.
const hangTimeout = time.Minute

// prefixSaveTimeout is how long the end of a runner may wait for its prefix caches to be written. Most are written
// before, while the runner has nothing to do.
const prefixSaveTimeout = 8 * time.Second

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     serveName,
		Aliases: []string{"start"},
		Short:   "Start the server",
		Long:    "Start the server.\n\nEnvironment variables:\n" + variableTable(),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.serve(cmd.Context())
		},
	}
}

// variableTable is the documentation of the environment, made from what reads it.
func variableTable() string {
	var rows [][]string
	for _, v := range config.Vars() {
		meaning := v.Meaning
		if v.Default != "" {
			meaning += " (default " + v.Default + ")"
		}
		rows = append(rows, []string{v.Name, meaning})
	}
	var sb strings.Builder
	if err := writeTable(&sb, "  ", rows); err != nil {
		panic(err) // a strings.Builder does not fail
	}
	return strings.TrimRight(sb.String(), "\n")
}

// serve runs the server until a signal, or the end of the lifeline, asks it to stop. A second signal ends
// the process at once; runners notice by themselves.
func (a *app) serve(ctx context.Context) (err error) {
	ctx, release := interruptible(ctx)
	defer release()
	// Whoever reads the log may go away first; that must not end the server before its time.
	signal.Ignore(syscall.SIGPIPE)

	log := newLogger(a.err, a.config)
	slog.SetDefault(log)
	for _, w := range a.warnings {
		log.Warn(w.String())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := watchLifeline(a.config.LifelineFD, cancel); err != nil {
		return err
	}
	if a.config.Tracing {
		stop, err := tracing.Start(ctx)
		if err != nil {
			return err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceFlush)
			defer cancel()
			if err := stop(ctx); err != nil {
				log.Warn("the last traces could not be sent", "error", err)
			}
		}()
	}
	python, err := a.config.FindPython()
	if err != nil {
		return err
	}
	if a.config.ModelsDir == "" {
		return errors.New("there is no home directory to keep models in; set OLLAMA_MODELS")
	}
	// The port comes first: it is what a second server stumbles over, and its message helps most.
	ln, err := listen(a.config.Host)
	if err != nil {
		return err
	}
	defer ln.Close()
	models, err := store.Open(store.Params{
		Dir: a.config.ModelsDir, BundledDir: a.config.BundledModelsDir, NoPrune: a.config.NoPrune, Logger: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, models.Close()) }()
	dir, err := runner.NewRuntimeDir(runner.DirParams{Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()

	runners := a.runnerParams(dir, python, log)
	counters := metrics.New()
	scheduler := sched.New(a.schedParams(models, runners, counters, log))
	counters.Register(scheduler.Collector())
	registries := registry.New(registry.Params{
		Store: models, KeyFile: a.config.KeyFile, Streams: a.config.MaxTransferStreams,
		UserAgent: "ollmlx/" + version.Version, Logger: log,
	})
	conversions := converter.New(runners, scheduler.Reserve)
	asking := runners
	asking.Env = a.config.HubEnv
	modelHub := hub.New(hub.Params{Runner: asking, Store: models, Transfers: registries, Converter: conversions, Logger: log})
	defer modelHub.Close()
	srv, err := server.New(server.Params{
		Store: models, Scheduler: scheduler, Version: version.OllamaAPI, Origins: a.config.Origins,
		APIKeys: a.config.APIKeys, Logger: log,
		Puller:    registry.Sources{Store: models, Registry: registries, Hub: modelHub, Suggest: modelHub.Suggest},
		Pusher:    registries,
		Converter: conversions,
		Metrics:   counters,
	})
	if err != nil {
		return errors.Join(err, scheduler.Shutdown(ctx))
	}
	log.Info("listening", "address", ln.Addr().String(), "version", version.Version, "commit", version.Commit,
		"models", a.config.ModelsDir, "python", python.Path)
	notify(log, daemon.SdNotifyReady)
	context.AfterFunc(ctx, func() { notify(log, daemon.SdNotifyStopping) })
	err = srv.Serve(ctx, ln)
	log.Info("stopped")
	return err
}

// notify tells systemd, if it is there and wants to know, what the server does.
func notify(log *slog.Logger, state string) {
	// Not for runners: the socket stays ours.
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told", "state", state, "error", err)
	}
}

// runnerParams are what all processes of ours have in common.
func (a *app) runnerParams(dir *runner.RuntimeDir, python config.Python, log *slog.Logger) runner.Params {
	stall := a.config.LoadTimeout
	if stall == config.Forever {
		stall = -1
	}
	temp := ""
	if a.config.CacheDir != "" {
		temp = filepath.Join(a.config.CacheDir, "runner")
	}
	return runner.Params{
		Command:  []string{python.Path, "-m", "ollmlx.runner"},
		Dir:      dir,
		TempDir:  temp,
		Logger:   log,
		Timeouts: runner.Timeouts{Stall: stall},
	}
}

func (a *app) schedParams(models *store.Store, runners runner.Params, counters *metrics.Metrics, log *slog.Logger) sched.Params {
	load := &runnerpb.LoadRequest{
		NumCtx:      uint32(a.config.ContextLength),
		NumParallel: uint32(a.config.NumParallel),
	}
	if dir := a.config.PrefixCacheDir(); dir != "" && a.config.PrefixCacheBytes > 0 {
		load.CacheDir, load.CacheBytes = dir, uint64(a.config.PrefixCacheBytes)
		runners.Timeouts.Save = prefixSaveTimeout
	}
	mem := sched.NewMemory(models, memory.NewMachine(memory.Params{
		Limit: uint64(a.config.MemoryLimit), Overhead: uint64(a.config.MemoryOverhead), Context: a.config.ContextLength,
	}))
	p := sched.Params{
		KeepAlive: a.config.KeepAlive,
		MaxLoaded: a.config.MaxLoadedModels,
		MaxQueue:  a.config.MaxQueue,
		Memory:    mem,
		StepLimit: a.config.StepTimeout,
		HangAfter: min(a.config.StepTimeout, hangTimeout),
		Metrics:   counters,
		Logger:    log,
	}
	var spare *sched.SpareRunner
	// A server that lives as long as one command has no use for it.
	if a.config.WarmRunner && a.config.LifelineFD == 0 {
		spare = sched.NewSpareRunner(runners, sched.EngineMLX, mem)
		p.Spare = spare
	}
	p.Start = sched.NewStarter(sched.StarterParams{
		Store: models, Runner: runners, Load: load, Spare: spare,
		GGUF: &runnerpb.LoadRequest{KvCacheType: a.config.KVCacheType, FlashAttention: a.config.FlashAttention},
	})
	return p
}

func newLogger(w io.Writer, c config.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel, ReplaceAttr: nameTrace}
	if c.LogFormat == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// nameTrace prints our level below debug by its name.
func nameTrace(_ []string, attr slog.Attr) slog.Attr {
	if level, ok := attr.Value.Any().(slog.Level); ok && attr.Key == slog.LevelKey && level == config.LevelTrace {
		attr.Value = slog.StringValue("TRACE")
	}
	return attr
}

func listen(host config.Host) (net.Listener, error) {
	if host.Scheme != "http" {
		return nil, fmt.Errorf("OLLAMA_HOST asks for %s, but the server speaks plain http; put a reverse proxy before it", host.Scheme)
	}
	ln, err := net.Listen("tcp", host.ListenAddr())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("address %s is in use, probably by another server; stop that, or set OLLAMA_HOST to another address", host.ListenAddr())
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("this user may not listen on %s; set OLLAMA_HOST to a port above 1023", host.ListenAddr())
	case err != nil:
		return nil, fmt.Errorf("cannot listen on %s (OLLAMA_HOST): %w", host.ListenAddr(), err)
	}
	return ln, nil
}

// watchLifeline calls stop when the pipe that the parent holds open ends, see childServer. An fd of 0
// means that there is none.
func watchLifeline(fd int, stop func()) error {
	if fd == 0 {
		return nil
	}
	// For this process alone: runners get lifelines of their own, with the same number.
	os.Unsetenv(config.LifelineVar)
	pipe := os.NewFile(uintptr(fd), "lifeline")
	if pipe == nil {
		return fmt.Errorf("%s=%d is not an open file", config.LifelineVar, fd)
	}
	if _, err := pipe.Stat(); err != nil {
		return fmt.Errorf("%s=%d is not an open file: %w", config.LifelineVar, fd, err)
	}
	syscall.CloseOnExec(fd)
	go func() {
		io.Copy(io.Discard, pipe)
		stop()
	}()
	return nil
}
