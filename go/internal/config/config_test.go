package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/envconfig"
)

func load(t *testing.T, env map[string]string) (Config, []Warning) {
	t.Helper()
	c, warnings, err := loadErr(env)
	if err != nil {
		t.Fatal(err)
	}
	return c, warnings
}

func loadErr(env map[string]string) (Config, []Warning, error) {
	return LoadFrom(Params{
		Getenv:     func(name string) string { return env[name] },
		Executable: "/opt/env/lib/ollmlx/_bin/ollmlx",
		HomeDir:    "/home/ann",
		CacheDir:   "/home/ann/.cache",
	})
}

func TestDefaults(t *testing.T) {
	c, warnings := load(t, nil)
	if len(warnings) != 0 {
		t.Errorf("got warnings %v, want none", warnings)
	}
	if got, want := c.Host.ListenAddr(), "127.0.0.1:11434"; got != want {
		t.Errorf("got address %q, want %q", got, want)
	}
	if got, want := c.ModelsDir, "/home/ann/.ollama/models"; got != want {
		t.Errorf("got models in %q, want %q", got, want)
	}
	if got, want := c.BundledModelsDir, "/opt/env/lib/ollmlx/models"; got != want {
		t.Errorf("got bundled models in %q, want %q", got, want)
	}
	if got, want := c.CacheDir, "/home/ann/.cache/ollmlx"; got != want {
		t.Errorf("got cache %q, want %q", got, want)
	}
}

// The defaults that help shows must be the defaults that hold.
func TestShownDefaultsHold(t *testing.T) {
	want, _ := load(t, nil)
	for _, v := range variables {
		if v.Default == "" || strings.HasPrefix(v.Default, "~") {
			continue
		}
		got := want
		if err := v.set(&got, v.Default); err != nil {
			t.Errorf("%s: its own default %q is refused: %v", v.Name, v.Default, err)
			continue
		}
		got.Origins, want.Origins = nil, nil
		if !equal(got, want) {
			t.Errorf("%s: setting the shown default %q changes the configuration", v.Name, v.Default)
		}
	}
}

func equal(a, b Config) bool {
	return a.Host == b.Host && a.KeepAlive == b.KeepAlive && a.LoadTimeout == b.LoadTimeout &&
		a.MaxLoadedModels == b.MaxLoadedModels && a.NumParallel == b.NumParallel && a.MaxQueue == b.MaxQueue &&
		a.ContextLength == b.ContextLength && a.NoPrune == b.NoPrune && a.NoHistory == b.NoHistory &&
		a.LogLevel == b.LogLevel && a.LogFormat == b.LogFormat && a.PrefixCacheBytes == b.PrefixCacheBytes &&
		a.StepTimeout == b.StepTimeout && a.MemoryLimit == b.MemoryLimit && a.MemoryOverhead == b.MemoryOverhead && a.WarmRunner == b.WarmRunner && a.MaxTransferStreams == b.MaxTransferStreams
}

func TestValues(t *testing.T) {
	tests := []struct {
		name, value string
		got         func(Config) any
		want        any
	}{
		{"OLLAMA_MODELS", "/data/models", func(c Config) any { return c.ModelsDir }, "/data/models"},
		{"OLLAMA_MODELS", ` "/data/models" `, func(c Config) any { return c.ModelsDir }, "/data/models"},
		{"OLLAMA_KEEP_ALIVE", "90", func(c Config) any { return c.KeepAlive }, 90 * time.Second},
		{"OLLAMA_KEEP_ALIVE", "1h", func(c Config) any { return c.KeepAlive }, time.Hour},
		{"OLLAMA_KEEP_ALIVE", "0", func(c Config) any { return c.KeepAlive }, time.Duration(0)},
		{"OLLAMA_KEEP_ALIVE", "-1", func(c Config) any { return c.KeepAlive }, Forever},
		{"OLLAMA_KEEP_ALIVE", "-5m", func(c Config) any { return c.KeepAlive }, Forever},
		{"OLLAMA_KEEP_ALIVE", "9999999999999999", func(c Config) any { return c.KeepAlive }, Forever},
		{"OLLAMA_LOAD_TIMEOUT", "0", func(c Config) any { return c.LoadTimeout }, Forever},
		{"OLLAMA_LOAD_TIMEOUT", "30s", func(c Config) any { return c.LoadTimeout }, 30 * time.Second},
		{"OLLAMA_MAX_LOADED_MODELS", "3", func(c Config) any { return c.MaxLoadedModels }, 3},
		{"OLLAMA_NUM_PARALLEL", "'8'", func(c Config) any { return c.NumParallel }, 8},
		{"OLLAMA_MAX_QUEUE", "0", func(c Config) any { return c.MaxQueue }, 0},
		{"OLLAMA_CONTEXT_LENGTH", "8192", func(c Config) any { return c.ContextLength }, 8192},
		{"OLLAMA_ORIGINS", "https://a.example, ,app://x", func(c Config) any { return strings.Join(c.Origins, "|") }, "https://a.example|app://x"},
		{"OLLMLX_API_KEY", "one, two,", func(c Config) any { return strings.Join(c.APIKeys, "|") }, "one|two"},
		{"OLLAMA_NOPRUNE", "1", func(c Config) any { return c.NoPrune }, true},
		{"OLLAMA_MAX_TRANSFER_STREAMS", "9", func(c Config) any { return c.MaxTransferStreams }, 9},
		{"OLLAMA_EDITOR", "code --wait", func(c Config) any { return c.Editor }, "code --wait"},
		{"VISUAL", "emacs", func(c Config) any { return c.Editor }, "emacs"},
		{"EDITOR", "nano", func(c Config) any { return c.Editor }, "nano"},
		{"OTHER", "", func(c Config) any { return c.Editor }, "vi"},
		{"OLLAMA_NOHISTORY", "yes", func(c Config) any { return c.NoHistory }, true},
		{"OLLAMA_NOHISTORY", "False", func(c Config) any { return c.NoHistory }, false},
		{"OLLAMA_DEBUG", "1", func(c Config) any { return c.LogLevel }, slog.LevelDebug},
		{"OLLAMA_DEBUG", "true", func(c Config) any { return c.LogLevel }, slog.LevelDebug},
		{"OLLAMA_DEBUG", "2", func(c Config) any { return c.LogLevel }, LevelTrace},
		{"OLLAMA_DEBUG", "off", func(c Config) any { return c.LogLevel }, slog.LevelInfo},
		{"OLLMLX_LOG_FORMAT", "JSON", func(c Config) any { return c.LogFormat }, LogJSON},
		{"OLLMLX_PYTHON", "/usr/bin/python3", func(c Config) any { return c.Python }, "/usr/bin/python3"},
		{"OLLMLX_BUNDLED_MODELS", "/models", func(c Config) any { return c.BundledModelsDir }, "/models"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318", func(c Config) any { return c.Tracing }, true},
		{"OLLMLX_MEMORY", "1.5GiB", func(c Config) any { return c.MemoryLimit }, int64(3 << 29)},
		{"OLLAMA_GPU_OVERHEAD", "1000", func(c Config) any { return c.MemoryOverhead }, int64(1000)},
		{"OLLMLX_WARM_RUNNER", "0", func(c Config) any { return c.WarmRunner }, false},
		{"OLLMLX_STEP_TIMEOUT", "1.5", func(c Config) any { return c.StepTimeout }, 1500 * time.Millisecond},
		{"OLLMLX_PREFIX_CACHE", "20GB", func(c Config) any { return c.PrefixCacheBytes }, int64(20e9)},
		{"OLLMLX_PREFIX_CACHE", "1.5 gib", func(c Config) any { return c.PrefixCacheBytes }, int64(3 << 29)},
		{"OLLMLX_PREFIX_CACHE", "4096", func(c Config) any { return c.PrefixCacheBytes }, int64(4096)},
		{"OLLMLX_PREFIX_CACHE", "off", func(c Config) any { return c.PrefixCacheBytes }, int64(0)},
		{LifelineVar, "3", func(c Config) any { return c.LifelineFD }, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name+"="+tt.value, func(t *testing.T) {
			c, warnings := load(t, map[string]string{tt.name: tt.value})
			if len(warnings) != 0 {
				t.Errorf("got warnings %v, want none", warnings)
			}
			if got := tt.got(c); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestBadValuesWarnAndKeepTheDefault(t *testing.T) {
	want, _ := load(t, nil)
	bad := map[string]string{
		"OLLAMA_KEEP_ALIVE":        "soon",
		"OLLAMA_LOAD_TIMEOUT":      "5 minutes",
		"OLLAMA_MAX_LOADED_MODELS": "-1",
		"OLLAMA_NUM_PARALLEL":      "many",
		"OLLAMA_MAX_QUEUE":         "1.5",
		"OLLAMA_CONTEXT_LENGTH":    "4k",
		"OLLAMA_NOPRUNE":           "perhaps",

		"OLLAMA_MAX_TRANSFER_STREAMS": "0",

		"OLLAMA_NOHISTORY":  "2",
		"OLLAMA_DEBUG":      "loud",
		"OLLMLX_LOG_FORMAT": "xml",

		"OLLMLX_PREFIX_CACHE": "20 potatoes",
	}
	for name, value := range bad {
		c, warnings := load(t, map[string]string{name: value})
		if len(warnings) != 1 || !strings.Contains(warnings[0].String(), name) || !strings.Contains(warnings[0].String(), value) {
			t.Errorf("%s=%s: got warnings %v, want one that names both", name, value, warnings)
		}
		if !equal(c, want) {
			t.Errorf("%s=%s: the default does not hold", name, value)
		}
	}
}

// A command meant for one server must not go to the default one because of a typing error.
func TestBadHostIsAnError(t *testing.T) {
	for _, value := range []string{"host:port", "127.0.0.1:99999", "127.0.0.1:-1", "ftp://x", "a:b:c", "::1:x:y"} {
		if _, _, err := loadErr(map[string]string{"OLLAMA_HOST": value}); err == nil || !strings.Contains(err.Error(), "OLLAMA_HOST") {
			t.Errorf("%s: got error %v, want one that names OLLAMA_HOST", value, err)
		}
	}
}

// A server that was to have a key is never open because of a typing error, and the key is not shown.
func TestBadAPIKeyIsAnError(t *testing.T) {
	for _, value := range []string{",", " , ,", "se cret", "secr\u00e9t", "secret\x01"} {
		_, _, err := loadErr(map[string]string{"OLLMLX_API_KEY": value})
		if err == nil || !strings.Contains(err.Error(), "OLLMLX_API_KEY") || strings.Contains(err.Error(), "secr") {
			t.Errorf("%q: got error %v, want one that names OLLMLX_API_KEY and not its value", value, err)
		}
	}
}

// Ollama's own reader is the judge of what an accepted OLLAMA_HOST means.
func TestHostAgreesWithOllama(t *testing.T) {
	for _, value := range []string{
		"", "1.2.3.4", "1.2.3.4:1234", ":1234", "example.com", "example.com:1234", "http://1.2.3.4", "https://1.2.3.4",
		"http://1.2.3.4:5", "https://example.com/ollama", "[::1]", "[::1]:1337", "::1", "0.0.0.0", "[::]:80", " 1.2.3.4 ",
		`"1.2.3.4:99"`, "1.2.3.4:0", "example.com/", "http://",
	} {
		t.Run(value, func(t *testing.T) {
			t.Setenv("OLLAMA_HOST", value)
			want := envconfig.Host()
			c, _ := load(t, map[string]string{"OLLAMA_HOST": value})
			if got := c.Host.ListenAddr(); got != want.Host {
				t.Errorf("got %q, Ollama has %q", got, want.Host)
			}
			if c.Host.Scheme != want.Scheme || c.Host.Path != strings.Trim(want.Path, "/") {
				t.Errorf("got scheme %q path %q, Ollama has %q %q", c.Host.Scheme, c.Host.Path, want.Scheme, want.Path)
			}
		})
	}
}

func TestHostURL(t *testing.T) {
	for value, want := range map[string]string{
		"":                       "http://127.0.0.1:11434",
		":1234":                  "http://127.0.0.1:1234",
		"0.0.0.0":                "http://127.0.0.1:11434",
		"[::]:1":                 "http://[::1]:1",
		"https://example.com/a/": "https://example.com:443/a/",
	} {
		h, err := ParseHost(value)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.URL().String(); got != want {
			t.Errorf("%q: got %s, want %s", value, got, want)
		}
	}
}

func TestHostIsLocal(t *testing.T) {
	for value, want := range map[string]bool{
		"": true, "localhost:1": true, "0.0.0.0:1": true, "[::1]:1": true, "127.0.0.2": true,
		"10.0.0.1": false, "example.com": false, "https://localhost": false, "http://localhost/x": false,
	} {
		h, err := ParseHost(value)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.IsLocal(); got != want {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
	}
}

func TestVarsAreDocumented(t *testing.T) {
	for _, v := range Vars() {
		if v.Name == LifelineVar {
			t.Errorf("%s is not for users", v.Name)
		}
		if v.Meaning == "" {
			t.Errorf("%s has no meaning", v.Name)
		}
	}
}

func TestFindPython(t *testing.T) {
	dir := t.TempDir()
	touch := func(parts ...string) string {
		path := filepath.Join(append([]string{dir}, parts...)...)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	touch("env", "pyvenv.cfg")
	inEnv := touch("env", "bin", "python3")
	inPackage := touch("env", "lib", "python3.12", "site-packages", "ollmlx", "_bin", "ollmlx")
	loose := touch("loose", "ollmlx")
	lookPath := func(name string) (string, error) {
		switch {
		case name == "python":
			return "/usr/bin/python", nil
		case filepath.IsAbs(name) && isFile(name):
			return name, nil
		}
		return "", os.ErrNotExist
	}

	tests := []struct {
		what, named, exe, want string
	}{
		{"the named one wins", inEnv, loose, inEnv},
		{"the environment around the package", "", inPackage, inEnv},
		{"the one beside the program", "", filepath.Join(dir, "env", "bin", "ollmlx"), inEnv},
		{"python when PATH has no python3", "", loose, "/usr/bin/python"},
	}
	for _, tt := range tests {
		got, err := findPython(tt.named, tt.exe, lookPath)
		if err != nil || got.Path != tt.want {
			t.Errorf("%s: got %q, %v; want %q", tt.what, got.Path, err, tt.want)
		}
	}

	if _, err := findPython("/no/such/python", inPackage, lookPath); err == nil || !strings.Contains(err.Error(), "OLLMLX_PYTHON=/no/such/python") {
		t.Errorf("a named Python that is missing: got error %v, want one that names it", err)
	}
	nothing := func(string) (string, error) { return "", os.ErrNotExist }
	if _, err := findPython("", loose, nothing); err == nil {
		t.Error("no Python anywhere: got no error")
	}
}
