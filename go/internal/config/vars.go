package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Var describes one environment variable for people.
type Var struct {
	Name    string
	Default string
	Meaning string
}

type variable struct {
	Var
	// set puts a cleaned, non-empty value into the configuration, or leaves it alone and fails.
	set      func(c *Config, value string) error
	required bool // a bad value is an error: falling back to the default could do harm
	internal bool // not for users
}

// Vars lists the variables that users may set, in the order in which help shows them.
func Vars() []Var {
	var vars []Var
	for _, v := range variables {
		if !v.internal {
			vars = append(vars, v.Var)
		}
	}
	return vars
}

var variables = []variable{
	{Var: Var{"OLLAMA_HOST", "127.0.0.1:11434", "address of the server, to listen on and to connect to"}, required: true,
		set: func(c *Config, v string) (err error) { return assign(&c.Host, v, ParseHost) }},
	{Var: Var{"OLLAMA_MODELS", "~/.ollama/models", "directory of the models"},
		set: func(c *Config, v string) error { return assign(&c.ModelsDir, v, filepath.Abs) }},
	{Var: Var{"OLLAMA_KEEP_ALIVE", "5m", "how long a model stays loaded after its last request; seconds or a duration, negative for ever"},
		set: func(c *Config, v string) error { return assign(&c.KeepAlive, v, keepAlive) }},
	{Var: Var{"OLLAMA_MAX_LOADED_MODELS", "0", "most models in memory at once; 0 lets memory decide"},
		set: func(c *Config, v string) error { return assign(&c.MaxLoadedModels, v, count) }},
	{Var: Var{"OLLAMA_NUM_PARALLEL", "0", "most requests that one model works on at once; 0 lets memory decide"},
		set: func(c *Config, v string) error { return assign(&c.NumParallel, v, count) }},
	{Var: Var{"OLLAMA_MAX_QUEUE", "512", "most requests that wait for a model before others are refused"},
		set: func(c *Config, v string) error { return assign(&c.MaxQueue, v, count) }},
	{Var: Var{"OLLAMA_CONTEXT_LENGTH", "0", "default context window in tokens; 0 takes an MLX model's own, and for a GGUF model 4096 or what its GPU has room for"},
		set: func(c *Config, v string) error { return assign(&c.ContextLength, v, count) }},
	{Var: Var{"OLLAMA_KV_CACHE_TYPE", "f16", "how the KV cache of GGUF models is stored, for example q8_0 or q4_0"},
		set: func(c *Config, v string) error { c.KVCacheType = strings.ToLower(v); return nil }},
	{Var: Var{"OLLAMA_FLASH_ATTENTION", "", "flash attention of GGUF models, true or false; the default is where the device has it"},
		set: func(c *Config, v string) error {
			on, err := boolean(v)
			if err == nil {
				c.FlashAttention = &on
			}
			return err
		}},
	{Var: Var{"OLLAMA_LOAD_TIMEOUT", "5m", "how long a load may show no progress; 0 or negative for ever"},
		set: func(c *Config, v string) error { return assign(&c.LoadTimeout, v, loadTimeout) }},
	{Var: Var{"OLLAMA_GPU_OVERHEAD", "0", "memory that is left free beside what models take, such as 2GB"},
		set: func(c *Config, v string) error { return assign(&c.MemoryOverhead, v, size) }},
	{Var: Var{"OLLMLX_MEMORY", "0", "most memory that all models together may take, such as 12GB; 0 for what is free"},
		set: func(c *Config, v string) error { return assign(&c.MemoryLimit, v, size) }},
	{Var: Var{"OLLMLX_WARM_RUNNER", "true", "keep a process ready for the next model while memory admits it; it makes loading seconds faster and takes about 100 MB"},
		set: func(c *Config, v string) error { return assign(&c.WarmRunner, v, boolean) }},
	{Var: Var{"OLLAMA_ORIGINS", "", "browser origins allowed besides local ones, separated by commas"},
		set: func(c *Config, v string) error { return assign(&c.Origins, v, list) }},
	{Var: Var{apiKeyVar, "", "keys, separated by commas, of which a client must send one; commands send the first"}, required: true,
		set: func(c *Config, v string) error { return assign(&c.APIKeys, v, apiKeys) }},
	{Var: Var{"OLLAMA_NOPRUNE", "false", "keep blobs that no model refers to at startup"},
		set: func(c *Config, v string) error { return assign(&c.NoPrune, v, boolean) }},
	{Var: Var{"OLLAMA_MAX_TRANSFER_STREAMS", "4", "most bodies that pulls and pushes send or receive at once; at least 1"},
		set: func(c *Config, v string) error { return assign(&c.MaxTransferStreams, v, positive) }},
	{Var: Var{"OLLAMA_NOHISTORY", "false", "do not save the history of the interactive prompt"},
		set: func(c *Config, v string) error { return assign(&c.NoHistory, v, boolean) }},
	{Var: Var{"OLLAMA_EDITOR", "vi", "editor that Ctrl-g opens at the interactive prompt; without it, VISUAL and EDITOR are asked"},
		set: func(c *Config, v string) error { c.Editor = v; return nil }},
	{Var: Var{"OLLAMA_DEBUG", "0", "log more: 1 for debug, 2 for trace"},
		set: func(c *Config, v string) error { return assign(&c.LogLevel, v, logLevel) }},
	{Var: Var{"OTEL_EXPORTER_OTLP_ENDPOINT", "", "where traces go by OpenTelemetry's protocol over HTTP; all its standard variables hold"},
		set: func(c *Config, _ string) error { c.Tracing = true; return nil }},
	{Var: Var{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "", "likewise, for traces alone"}, internal: true,
		set: func(c *Config, _ string) error { c.Tracing = true; return nil }},
	{Var: Var{"OTEL_TRACES_EXPORTER", "", "otlp or none"}, internal: true,
		set: func(c *Config, v string) error { return tracesExporter(c, v) }},
	{Var: Var{"OTEL_SDK_DISABLED", "", "no traces"}, internal: true,
		set: func(c *Config, v string) error {
			off, err := boolean(v)
			c.Tracing = c.Tracing && !off
			return err
		}},
	{Var: Var{"OLLMLX_LOG_FORMAT", LogText, "form of log lines: text or json"},
		set: func(c *Config, v string) error { return assign(&c.LogFormat, v, logFormat) }},
	{Var: Var{"HF_ENDPOINT", "https://huggingface.co", "address of the Hugging Face hub or of a mirror"},
		// This and the next are read by the hub's own library.
		set: func(*Config, string) error { return nil }},
	{Var: Var{"HF_HOME", "~/.cache/huggingface", "directory with the hub's token and its cache, of which files are used without a download"},
		set: func(*Config, string) error { return nil }},
	{Var: Var{"HF_TOKEN", "", "token for gated and private models of the hub; wins over that of login"},
		set: func(*Config, string) error { return nil }},
	{Var: Var{"HF_HUB_OFFLINE", "false", "do not ask the hub; pulls take what its cache has"},
		set: func(*Config, string) error { return nil }},
	{Var: Var{"OLLMLX_PYTHON", "", "Python with mlx-lm; the default is the one that ollmlx is installed in"},
		set: func(c *Config, v string) error { c.Python = v; return nil }},
	{Var: Var{"OLLMLX_BUNDLED_MODELS", "", "directory of models that come with the program; the default is inside the package"},
		set: func(c *Config, v string) error { return assign(&c.BundledModelsDir, v, filepath.Abs) }},
	{Var: Var{"OLLMLX_STEP_TIMEOUT", "600", "seconds after which a step of the engine counts as hung and its runner is replaced; 0 for never"},
		// Runners read it too.
		set: func(c *Config, v string) error { return assign(&c.StepTimeout, v, stepTimeout) }},
	{Var: Var{"OLLMLX_BLAS", "", "library that runners on Linux CPUs put before MLX's BLAS; the default is a tuned one where found, 0 for none"},
		// Runners read it themselves.
		set: func(*Config, string) error { return nil }},
	{Var: Var{"OLLMLX_CACHE", "", "directory for what can be made again; the default is ollmlx in the system's cache directory"},
		set: func(c *Config, v string) error { return assign(&c.CacheDir, v, filepath.Abs) }},
	{Var: Var{"OLLMLX_PREFIX_CACHE", "0", "disk space, such as 20GB, for what was computed of conversations, so that they go on quickly after an unload or a restart; 0 for none"},
		set: func(c *Config, v string) error { return assign(&c.PrefixCacheBytes, v, size) }},
	{Var: Var{LifelineVar, "", "file descriptor of the parent's lifeline"}, internal: true,
		set: func(c *Config, v string) error { return assign(&c.LifelineFD, v, count) }},
}

// apiKeyVar names the variable behind Config.APIKeys.
const apiKeyVar = "OLLMLX_API_KEY"

// LifelineVar names the variable behind Config.LifelineFD.
const LifelineVar = "OLLMLX_LIFELINE_FD"

// assign stores what parse makes of value, if it succeeds.
func assign[T any](field *T, value string, parse func(string) (T, error)) error {
	parsed, err := parse(value)
	if err != nil {
		return err
	}
	*field = parsed
	return nil
}

func count(value string) (int, error) {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 0 {
		return 0, errors.New("not a whole number from 0 to 2147483647")
	}
	return int(n), nil
}

func positive(value string) (int, error) {
	n, err := count(value)
	if err != nil || n == 0 {
		return 0, errors.New("not a whole number from 1 to 2147483647")
	}
	return n, nil
}

// units are what sizes may be written in, the powers of ten and of two as their names say.
var units = map[string]float64{
	"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// size reads a number of bytes such as 20GB or 512MiB; off is 0.
func size(value string) (int64, error) {
	if strings.EqualFold(value, "off") {
		return 0, nil
	}
	number := strings.TrimRight(strings.ToLower(value), "bkmgti ")
	unit, known := units[strings.TrimSpace(strings.ToLower(value)[len(number):])]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || !(n >= 0 && n*unit < math.MaxInt64) {
		return 0, errors.New("not a size such as 20GB, 512MiB or 0")
	}
	return int64(n * unit), nil
}

func boolean(value string) (bool, error) {
	switch strings.ToLower(value) {
	case "yes", "on":
		return true, nil
	case "no", "off":
		return false, nil
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, errors.New("not a truth value such as true or false")
	}
	return b, nil
}

// duration reads "90s" and, as Ollama does, a bare number as seconds.
func duration(value string) (time.Duration, error) {
	if d, err := time.ParseDuration(value); err == nil {
		return d, nil
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, errors.New("not a duration such as 90s, 5m or a number of seconds")
	}
	if seconds > int64(Forever/time.Second) {
		return Forever, nil
	}
	if seconds < 0 {
		return -1, nil
	}
	return time.Duration(seconds) * time.Second, nil
}

// tracesExporter knows the one exporter that there is.
func tracesExporter(c *Config, value string) error {
	switch value {
	case "otlp":
	case "none":
		c.Tracing = false
	default:
		return errors.New("not otlp or none")
	}
	return nil
}

func stepTimeout(value string) (time.Duration, error) {
	seconds, err := strconv.ParseFloat(value, 64)
	if err != nil || !(seconds >= 0 && seconds < Forever.Seconds()) {
		return 0, errors.New("not a number of seconds")
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

func keepAlive(value string) (time.Duration, error) {
	d, err := duration(value)
	if err == nil && d < 0 {
		return Forever, nil
	}
	return d, err
}

func loadTimeout(value string) (time.Duration, error) {
	d, err := duration(value)
	if err == nil && d <= 0 {
		return Forever, nil
	}
	return d, err
}

func list(value string) ([]string, error) {
	var items []string
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items, nil
}

// apiKeys reads keys that can travel in a header. A value that holds none is an error: whoever sets it wants a server
// that is not open to all.
func apiKeys(value string) ([]string, error) {
	keys, err := list(value)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	for _, key := range keys {
		if strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
			return nil, errors.New("a key may have no other characters than the visible ones of ASCII")
		}
	}
	return keys, nil
}

func logLevel(value string) (slog.Level, error) {
	if n, err := strconv.Atoi(value); err == nil {
		switch {
		case n <= 0:
			return slog.LevelInfo, nil
		case n == 1:
			return slog.LevelDebug, nil
		default:
			return LevelTrace, nil
		}
	}
	on, err := boolean(value)
	if err != nil {
		return 0, errors.New("not a truth value or a level such as 1 or 2")
	}
	if on {
		return slog.LevelDebug, nil
	}
	return slog.LevelInfo, nil
}

func logFormat(value string) (string, error) {
	switch value = strings.ToLower(value); value {
	case LogText, LogJSON:
		return value, nil
	}
	return "", fmt.Errorf("not %s or %s", LogText, LogJSON)
}
