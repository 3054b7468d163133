package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/config"
	"github.com/ollmlx/ollmlx/go/internal/version"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperVar); mode != "" {
		os.Exit(helperServer(mode))
	}
	os.Exit(m.Run())
}

// fakeServer is a server whose answers are written in the test, and which remembers what it was asked.
type fakeServer struct {
	*httptest.Server
	mux *http.ServeMux

	mu    sync.Mutex
	calls []call
}

type call struct {
	route string
	body  map[string]any
}

func newFakeServer(t *testing.T) *fakeServer {
	t.Helper()
	f := &fakeServer{mux: http.NewServeMux()}
	f.mux.HandleFunc("HEAD /{$}", func(http.ResponseWriter, *http.Request) {})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var body map[string]any
		json.Unmarshal(data, &body)
		f.mu.Lock()
		f.calls = append(f.calls, call{r.Method + " " + r.URL.Path, body})
		f.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(data))
		f.mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// answers makes a route respond with the given lines of JSON.
func (f *fakeServer) answers(route string, status int, lines ...string) {
	f.mux.HandleFunc(route, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		for _, line := range lines {
			fmt.Fprintln(w, line)
		}
	})
}

// asked returns the bodies of the requests to a route.
func (f *fakeServer) asked(route string) (bodies []map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c.route == route {
			bodies = append(bodies, c.body)
		}
	}
	return bodies
}

func (f *fakeServer) host(t *testing.T) config.Host {
	t.Helper()
	h, err := config.ParseHost(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

type result struct {
	code     int
	out, err string
}

func runCLI(t *testing.T, host config.Host, stdin string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	code := Run(context.Background(), Params{
		Config: config.Config{Host: host, ModelsDir: t.TempDir()},
		In:     strings.NewReader(stdin), Out: &out, Err: &errOut,
	}, args)
	return result{code, out.String(), errOut.String()}
}

// unused is a local address where nothing listens.
func unused(t *testing.T) config.Host {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	h, err := config.ParseHost(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestCommandsWithoutServerSayHowToStartIt(t *testing.T) {
	host := unused(t)
	for _, args := range [][]string{
		{"list"}, {"ps"}, {"show", "x"}, {"stop", "x"}, {"pull", "x"}, {"push", "x"}, {"rm", "x"}, {"cp", "a", "b"},
	} {
		got := runCLI(t, host, "", args...)
		want := "Error: could not connect to ollmlx server, run 'ollmlx serve' to start it\n"
		if got.code != ExitError || got.err != want {
			t.Errorf("%v: got code %d and %q, want 1 and %q", args, got.code, got.err, want)
		}
	}
}

func TestRemoteServerIsNeverStartedHere(t *testing.T) {
	// A documentation address: no route leads there, and the command must not start a server instead.
	got := runCLI(t, config.Host{Scheme: "http", Name: "host.invalid", Port: "1"}, "", "run", "demo", "hi")
	if got.code != ExitError || !strings.Contains(got.err, "could not connect to the server at http://host.invalid:1") {
		t.Errorf("got code %d and %q", got.code, got.err)
	}
}

func TestVersion(t *testing.T) {
	own := "ollmlx version is " + version.Version + "\n"
	client := "Warning: client version is " + version.Version + "\n"
	for name, tt := range map[string]struct{ answer, want string }{
		"same":    {fmt.Sprintf(`{"version":"0.33.0","ollmlx":%q}`, version.Version), own},
		"other":   {`{"version":"0.33.0","ollmlx":"9.9.9"}`, "ollmlx version is 9.9.9\n" + client},
		"foreign": {`{"version":"0.17.4"}`, "ollama version is 0.17.4\nWarning: the server at URL is not ollmlx\n" + client},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			f.answers("GET /api/version", 200, tt.answer)
			for _, flag := range []string{"--version", "-v"} {
				got := runCLI(t, f.host(t), "", flag)
				if want := strings.Replace(tt.want, "URL", f.URL, 1); got.code != 0 || got.out != want {
					t.Errorf("got %+v, want %q", got, want)
				}
			}
		})
	}
	if got := runCLI(t, unused(t), "", "-v"); got.out != own+"Warning: could not connect to a running ollmlx server\n" {
		t.Errorf("without a server: got %q", got.out)
	}
}

func TestCommandsThatAreLeftOutSaySo(t *testing.T) {
	for _, args := range [][]string{
		{"signin"}, {"signout"}, {"launch"}, {"launch", "claude", "--model", "x", "--restore", "-y", "--", "--flag"},
	} {
		got := runCLI(t, unused(t), "", args...)
		if got.code != ExitError || got.out != "" || !strings.HasPrefix(got.err, "Error: ") || strings.Count(got.err, "\n") != 1 || strings.Contains(got.err, "unknown") {
			t.Errorf("%v: got %+v", args, got)
		}
	}
	for name, hint := range map[string]string{"nonsense": `"ollmlx --help" lists them`, "docter": "did you mean doctor?"} {
		if got := runCLI(t, unused(t), "", name); got.code != ExitError || !strings.Contains(got.err, "unknown command \""+name+"\" for \"ollmlx\"; "+hint) {
			t.Errorf("got %+v", got)
		}
	}
}

// Commands, their other names and their flags are those of Ollama; create and doctor have more of their own.
func TestCommandsAndFlagsOfOllama(t *testing.T) {
	root := newApp(Params{}).rootCommand()
	for command, flags := range map[string]string{
		"serve": "", "start": "", "create": "file quantize", "show": "license modelfile parameters template system verbose",
		"run":  "keepalive verbose insecure nowordwrap format think hidethinking truncate dimensions",
		"stop": "", "pull": "insecure", "push": "insecure", "list": "", "ls": "", "ps": "", "cp": "", "rm": "",
		"signin": "", "login": "", "signout": "", "logout": "", "launch": "",
	} {
		found, _, err := root.Find([]string{command})
		if err != nil || found == root {
			t.Errorf("no command %s: %v", command, err)
			continue
		}
		for _, flag := range strings.Fields(flags) {
			if found.Flags().Lookup(flag) == nil {
				t.Errorf("%s has no flag --%s", command, flag)
			}
		}
	}
	for command, short := range map[string]string{"create": "f", "show": "v", "": "v"} {
		found, _, _ := root.Find(strings.Fields(command))
		if found.Flags().ShorthandLookup(short) == nil {
			t.Errorf("%q has no flag -%s", command, short)
		}
	}
}

func TestWarningsAboutTheEnvironmentAreShown(t *testing.T) {
	var errOut bytes.Buffer
	Run(context.Background(), Params{
		Config:   config.Config{Host: unused(t)},
		Warnings: []config.Warning{{Name: "OLLAMA_DEBUG", Value: "loud", Err: io.EOF}},
		Out:      io.Discard, Err: &errOut,
	}, []string{"list"})
	if !strings.HasPrefix(errOut.String(), `Warning: OLLAMA_DEBUG="loud": `) {
		t.Errorf("got %q", errOut.String())
	}
}

func TestList(t *testing.T) {
	f := newFakeServer(t)
	f.answers("GET /api/tags", 200, `{"models":[
		{"name":"demo:latest","digest":"sha256:0123456789abcdef","size":5300000,"modified_at":"2001-01-01T00:00:00Z"},
		{"name":"Other:7b","digest":"fedcba9876543210","size":4100000000,"modified_at":"2001-01-01T00:00:00Z"},
		{"name":"far:cloud","digest":"ab","size":1,"remote_model":"x"}]}`)
	got := runCLI(t, f.host(t), "", "list")
	lines := strings.Split(got.out, "\n")
	if len(lines) != 5 || strings.Join(strings.Fields(lines[0]), " ") != "NAME ID SIZE MODIFIED" {
		t.Fatalf("got %q", got.out)
	}
	if want := "demo:latest    0123456789ab    5.3 MB    "; !strings.HasPrefix(lines[1], want) {
		t.Errorf("got %q, want prefix %q", lines[1], want)
	}
	if fields := strings.Fields(lines[3]); fields[1] != "ab" || fields[2] != "-" {
		t.Errorf("a remote model has no size: got %q", lines[3])
	}
	if got := runCLI(t, f.host(t), "", "ls", "oth"); strings.Contains(got.out, "demo") || !strings.Contains(got.out, "Other:7b") {
		t.Errorf("a prefix in any case selects: got %q", got.out)
	}
}

func TestPs(t *testing.T) {
	f := newFakeServer(t)
	f.answers("GET /api/ps", 200, `{"models":[
		{"name":"a:1","digest":"0123456789abcdef","size":100,"size_vram":100,"context_length":4096,"expires_at":"2318-01-01T00:00:00Z"},
		{"name":"b:1","digest":"0123456789abcdef","size":100,"size_vram":0,"context_length":8,"expires_at":"2001-01-01T00:00:00Z"},
		{"name":"c:1","digest":"0123456789abcdef","size":100,"size_vram":25,"expires_at":"2318-01-01T00:00:00Z"},
		{"name":"d:1","digest":"0123456789abcdef","size":1,"size_vram":2,"expires_at":"2318-01-01T00:00:00Z"}]}`)
	out := runCLI(t, f.host(t), "", "ps").out
	for i, want := range []string{"NAME", "100% GPU", "100% CPU", "75%/25% CPU/GPU", "Unknown"} {
		if line := strings.Split(out, "\n")[i]; !strings.Contains(line, want) {
			t.Errorf("line %d: got %q, want %q in it", i, line, want)
		}
	}
	if !strings.Contains(out, "Forever") || !strings.Contains(out, "Stopping...") || !strings.Contains(out, "4096") {
		t.Errorf("got %q", out)
	}
}

func TestStop(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/generate", 200, `{"done":true,"done_reason":"unload"}`)
	if got := runCLI(t, f.host(t), "", "stop", "demo"); got.code != 0 || got.out+got.err != "" {
		t.Errorf("got %+v", got)
	}
	body := f.asked("POST /api/generate")[0]
	if body["model"] != "demo" || body["keep_alive"] != float64(0) && body["keep_alive"] != "0s" || body["prompt"] != nil && body["prompt"] != "" {
		t.Errorf("got request %v, want an unload", body)
	}

	f = newFakeServer(t)
	f.answers("POST /api/generate", 404, `{"error":"model 'nope' not found"}`)
	if got := runCLI(t, f.host(t), "", "stop", "nope"); got.code != 1 || got.err != "Error: couldn't find model \"nope\" to stop\n" {
		t.Errorf("got %+v", got)
	}
}

func TestRemoveStopsFirst(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/generate", 500, `{"error":"stuck"}`)
	f.answers("DELETE /api/delete", 200)
	got := runCLI(t, f.host(t), "", "rm", "a", "b")
	if got.code != 0 || got.out != "deleted 'a'\ndeleted 'b'\n" || !strings.Contains(got.err, "unable to stop model 'a'") {
		t.Errorf("got %+v", got)
	}

	f = newFakeServer(t)
	f.answers("POST /api/generate", 404, `{"error":"model 'a' not found"}`)
	f.answers("DELETE /api/delete", 404, `{"error":"model 'a' not found"}`)
	if got := runCLI(t, f.host(t), "", "rm", "a"); got.code != 1 || got.err != "Error: model 'a' not found\n" {
		t.Errorf("got %+v", got)
	}
}

func TestCopy(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/copy", 200)
	if got := runCLI(t, f.host(t), "", "cp", "a", "b"); got.code != 0 || got.out != "copied 'a' to 'b'\n" {
		t.Errorf("got %+v", got)
	}
	if got := runCLI(t, f.host(t), "", "cp", "a"); got.code != 1 || !strings.Contains(got.err, "accepts 2 arg(s), received 1") {
		t.Errorf("got %+v", got)
	}
}

func TestPullPrintsPlainLinesWithoutATerminal(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/pull", 200,
		`{"status":"pulling manifest"}`,
		`{"status":"pulling 0123456789ab","digest":"sha256:0123456789abcdef","total":10}`,
		`{"status":"pulling 0123456789ab","digest":"sha256:0123456789abcdef","total":10,"completed":5}`,
		`{"status":"pulling 0123456789ab","digest":"sha256:0123456789abcdef","total":10,"completed":10}`,
		`{"status":"success"}`)
	got := runCLI(t, f.host(t), "", "pull", "--insecure", "x")
	if want := "pulling manifest\npulling 0123456789ab:\nsuccess\n"; got.code != 0 || got.err != want {
		t.Errorf("got %d %q, want %q", got.code, got.err, want)
	}
	if body := f.asked("POST /api/pull")[0]; body["model"] != "x" || body["insecure"] != true {
		t.Errorf("got request %v", body)
	}
}

func TestPush(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/push", 200,
		`{"status":"retrieving manifest"}`,
		`{"status":"pushing 0123456789ab","digest":"sha256:0123456789abcdef","total":10,"completed":10}`,
		`{"status":"pushing manifest"}`,
		`{"status":"success"}`)
	got := runCLI(t, f.host(t), "", "push", "--insecure", "x")
	if want := "retrieving manifest\npushing 0123456789ab:\npushing manifest\nsuccess\n"; got.code != 0 || got.err != want {
		t.Errorf("got %d %q, want %q", got.code, got.err, want)
	}
	if body := f.asked("POST /api/push")[0]; body["model"] != "x" || body["insecure"] != true {
		t.Errorf("got request %v", body)
	}
}

func TestPullReportsAnErrorInTheStream(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/pull", 200, `{"status":"pulling manifest"}`, `{"error":"pull model manifest: file does not exist"}`)
	if got := runCLI(t, f.host(t), "", "pull", "x"); got.code != 1 || !strings.HasSuffix(got.err, "Error: pull model manifest: file does not exist\n") {
		t.Errorf("got %+v", got)
	}
}

const demoInfo = `{"details":{"family":"qwen3","parameter_size":"2.6M","quantization_level":"F32"},
	"model_info":{"general.architecture":"qwen3","qwen3.context_length":4096,"qwen3.embedding_length":192,"list":[1,2,3,4,5]},
	"capabilities":["completion","tools"],"parameters":"temperature                    0.2\nstop                           \"<x>\"",
	"license":"MIT\n\nline two\nline three","system":"Be brief.","template":"{{ .Prompt }}","modelfile":"FROM demo","messages":[]}`

func TestShow(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/show", 200, demoInfo)
	out := runCLI(t, f.host(t), "", "show", "demo").out
	for _, want := range []string{
		"  Model\n    architecture        qwen3\n", "parameters          2.6M\n", "context length      4096\n", "embedding length    192\n",
		"quantization        F32\n", "  Capabilities\n    completion\n    tools\n", "  Parameters\n    temperature    0.2\n    stop           \"<x>\"\n",
		"  System\n    Be brief.\n", "  License\n    MIT\n    line two\n    ...\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "Metadata") {
		t.Error("metadata without --verbose")
	}
	if out := runCLI(t, f.host(t), "", "show", "-v", "demo").out; !strings.Contains(out, "[1 2 3 ...+2 more]") {
		t.Errorf("no metadata in\n%s", out)
	}
	for flag, want := range map[string]string{
		"--license": "MIT\n\nline two\nline three\n", "--modelfile": "FROM demo\n", "--template": "{{ .Prompt }}", "--system": "Be brief.",
	} {
		if out := runCLI(t, f.host(t), "", "show", flag, "demo").out; out != want {
			t.Errorf("%s: got %q, want %q", flag, out, want)
		}
	}
	if got := runCLI(t, f.host(t), "", "show", "--license", "--system", "demo"); got.code != 1 || !strings.Contains(got.err, "only one of") {
		t.Errorf("got %+v", got)
	}
}

func TestServeHelpListsEveryVariable(t *testing.T) {
	out := runCLI(t, config.DefaultHost(), "", "serve", "--help").out
	for _, v := range config.Vars() {
		if !strings.Contains(out, v.Name) {
			t.Errorf("no %s in\n%s", v.Name, out)
		}
	}
}

func TestCompletionOffersModels(t *testing.T) {
	f := newFakeServer(t)
	f.answers("GET /api/tags", 200, `{"models":[{"name":"demo:latest"},{"name":"other:1"}]}`)
	if out := runCLI(t, f.host(t), "", "__complete", "run", "de").out; !strings.HasPrefix(out, "demo:latest\n:") {
		t.Errorf("got %q", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := runCLI(t, f.host(t), "", "completion", shell); got.code != 0 || !strings.Contains(got.out, "ollmlx") {
			t.Errorf("%s: got code %d", shell, got.code)
		}
	}
}
