// Package config is the one place where environment variables and their defaults live.
//
// Everything is read once, by Load, into a plain struct that the rest of the program is handed; no
// other package asks the environment. The names and meanings are Ollama's wherever Ollama has the
// setting, so that an existing setup works unchanged; settings of our own start with OLLMLX_. A value
// that cannot be understood never passes in silence: it yields a warning and the default holds, except
// where the default could do harm (a command for one server must not reach another), which is an error.
package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Forever is the duration that stands for "no limit" in KeepAlive and LoadTimeout.
const Forever = time.Duration(math.MaxInt64)

// LevelTrace is the log level below debug, for OLLAMA_DEBUG=2.
const LevelTrace = slog.LevelDebug - 4

// Formats of log lines.
const (
	LogText = "text"
	LogJSON = "json"
)

// Config is what the environment asks for, defaults filled in.
type Config struct {
	// Host is where the server listens and where commands look for it.
	Host Host
	// ModelsDir holds manifests and blobs. It is empty if it was not set and there is no home directory.
	ModelsDir string
	// BundledModelsDir holds the models that come with the program. It may not exist.
	BundledModelsDir string
	// CacheDir holds what can be made again, such as kernels that MLX compiled. It is empty if it was
	// not set and the system names no cache directory.
	CacheDir string
	// PrefixCacheBytes bounds the files in PrefixCacheDir; 0 for none.
	PrefixCacheBytes int64

	// KeepAlive is how long a model stays loaded after its last request; Forever for no limit.
	KeepAlive time.Duration
	// LoadTimeout is how long a load may show no progress; Forever for no limit.
	LoadTimeout time.Duration
	// StepTimeout is how long one step of an engine may take; 0 for no limit.
	StepTimeout time.Duration
	// MemoryLimit is how much memory all models together may take, 0 for what is free; MemoryOverhead is left free besides.
	MemoryLimit, MemoryOverhead int64
	// WarmRunner keeps a process ready for the next model.
	WarmRunner bool
	// MaxLoadedModels limits the models in memory at once; 0 lets memory decide.
	MaxLoadedModels int
	// NumParallel limits the requests that one model works on at once; 0 lets memory decide.
	NumParallel int
	// MaxQueue is how many requests may wait for a model before further ones are refused.
	MaxQueue int
	// KVCacheType is how the KV caches of GGUF models are stored; empty for the engine's default.
	KVCacheType string
	// FlashAttention switches flash attention of GGUF models on or off; nil leaves it to the engine.
	FlashAttention *bool
	// ContextLength is the default context window in tokens; 0 takes the model's own.
	ContextLength int
	// Origins are browser origins allowed in addition to local ones.
	Origins []string
	// APIKeys are keys of which a client must send one; without any, everyone may ask.
	APIKeys []string
	// NoPrune keeps unreferenced blobs at startup.
	NoPrune bool

	// MaxTransferStreams limits the bodies that pulls and pushes send or receive at once.
	MaxTransferStreams int
	// KeyFile is the private key that stands for the user at registries. It is empty if there is no home directory.
	KeyFile string

	// NoHistory keeps the interactive prompt from saving its history.
	NoHistory bool
	// Editor is the shell command of the editor that Ctrl-g opens at the interactive prompt.
	Editor string

	// LogLevel is the least severe level that is logged.
	LogLevel slog.Level
	// LogFormat is LogText or LogJSON.
	LogFormat string

	// HubEnv are environment entries for the process that asks the Hugging Face hub: what runners must not have, the way
	// to the network and the user's token.
	HubEnv []string

	// Tracing sends traces where OpenTelemetry's variables say.
	Tracing bool

	// Python is the interpreter that runs models, if the environment names one; see FindPython.
	Python string
	// LifelineFD is an open pipe whose end means that the server must stop, 0 for none. A command that
	// starts a server for its own lifetime sets it; it is not for users.
	LifelineFD int
}

// PrefixCacheDir is where runners keep prefix caches beyond their own life; empty if there is no CacheDir.
func (c Config) PrefixCacheDir() string {
	if c.CacheDir == "" {
		return ""
	}
	return filepath.Join(c.CacheDir, "prefixes")
}

// Warning tells about a value that was not understood.
type Warning struct {
	Name, Value string
	Err         error
}

func (w Warning) String() string {
	return fmt.Sprintf("%s=%q: %v; using the default", w.Name, w.Value, w.Err)
}

// Params say where Load finds its facts. Zero fields mean the real process.
type Params struct {
	Getenv     func(string) string
	Executable string // the program's path; symlinks are followed
	HomeDir    string
	CacheDir   string // the system's directory for caches
}

// Load reads the environment.
func Load() (Config, []Warning, error) { return LoadFrom(Params{}) }

// LoadFrom reads the environment that p describes.
func LoadFrom(p Params) (Config, []Warning, error) {
	if p.Getenv == nil {
		p.Getenv = os.Getenv
	}
	c := defaults(p)
	c.HubEnv = hubEnv(p.Getenv)
	var warnings []Warning
	for _, v := range variables {
		value := clean(p.Getenv(v.Name))
		if value == "" {
			continue
		}
		// Setters change c only when they succeed.
		err := v.set(&c, value)
		if err != nil && v.required {
			return c, warnings, badValue(v.Name, value, err)
		}
		if err != nil {
			warnings = append(warnings, Warning{Name: v.Name, Value: value, Err: err})
		}
	}
	return c, warnings, nil
}

// badValue names a value that was not understood, unless it is a secret, which must not come to light on a screen or in
// a log.
func badValue(name, value string, err error) error {
	if name == apiKeyVar {
		return fmt.Errorf("%s: %w", name, err)
	}
	return fmt.Errorf("%s=%q: %w", name, value, err)
}

// hubEnv takes over the user's own settings. Where they leave it open the hub is asked, without telemetry.
func hubEnv(getenv func(string) string) []string {
	env := []string{"HF_HUB_DISABLE_PROGRESS_BARS=1", "HF_HUB_DISABLE_UPDATE_CHECK=1"}
	for _, name := range []string{"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} {
		env = append(env, name+"="+clean(getenv(name)))
	}
	if getenv("HF_HUB_DISABLE_TELEMETRY") == "" {
		env = append(env, "HF_HUB_DISABLE_TELEMETRY=1")
	}
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if value := clean(getenv(name)); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// clean removes the blanks and quotes that shells and unit files leave around values.
func clean(value string) string {
	return strings.Trim(strings.TrimSpace(value), `"'`)
}

func defaults(p Params) Config {
	if p.HomeDir == "" {
		p.HomeDir, _ = os.UserHomeDir()
	}
	if p.CacheDir == "" {
		p.CacheDir, _ = os.UserCacheDir()
	}
	c := Config{
		Host:        DefaultHost(),
		KeepAlive:   5 * time.Minute,
		LoadTimeout: 5 * time.Minute,
		MaxQueue:    512,
		StepTimeout: 10 * time.Minute,
		WarmRunner:  true,
		LogLevel:    slog.LevelInfo,
		LogFormat:   LogText,

		MaxTransferStreams: 4,
		// What other programs follow too; OLLAMA_EDITOR goes before.
		Editor: cmp.Or(p.Getenv("VISUAL"), p.Getenv("EDITOR"), "vi"),
	}
	if p.HomeDir != "" {
		c.ModelsDir = filepath.Join(p.HomeDir, ".ollama", "models")
		c.KeyFile = filepath.Join(p.HomeDir, ".ollama", "id_ed25519")
	}
	if p.CacheDir != "" {
		c.CacheDir = filepath.Join(p.CacheDir, "ollmlx")
	}
	if exe := executable(p.Executable); exe != "" {
		// In the wheel the program is <package>/_bin/ollmlx and the models are <package>/models.
		c.BundledModelsDir = filepath.Join(filepath.Dir(filepath.Dir(exe)), "models")
	}
	return c
}

// executable is the program's own path with symlinks followed, or "" if the system cannot tell.
func executable(path string) string {
	if path == "" {
		var err error
		if path, err = os.Executable(); err != nil {
			return ""
		}
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}
