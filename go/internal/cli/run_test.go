package cli

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/config"
	"github.com/ollmlx/ollmlx/go/internal/server"
)

func answering(t *testing.T, lines ...string) *fakeServer {
	t.Helper()
	f := newFakeServer(t)
	f.answers("POST /api/show", 200, demoInfo)
	f.answers("POST /api/generate", 200, lines...)
	return f
}

const lastLine = `{"done":true,"done_reason":"stop","total_duration":2000000000,"load_duration":5,"prompt_eval_count":4,"prompt_eval_duration":2000000000,"eval_count":10,"eval_duration":500000000}`

func TestRunPrintsTheAnswer(t *testing.T) {
	f := answering(t, `{"response":"Hel"}`, `{"response":"lo"}`, lastLine)
	got := runCLI(t, f.host(t), "", "run", "demo", "say", "hello")
	if got.code != 0 || got.out != "Hello\n\n" || got.err != "" {
		t.Errorf("got %+v", got)
	}
	if body := f.asked("POST /api/generate")[0]; body["model"] != "demo" || body["prompt"] != "say hello" {
		t.Errorf("got request %v", body)
	}
}

func TestRunDefaultsToTheDemoModel(t *testing.T) {
	f := answering(t, lastLine)
	runCLI(t, f.host(t), "hi", "run")
	if body := f.asked("POST /api/generate")[0]; body["model"] != demoModel || body["prompt"] != "hi" {
		t.Errorf("got request %v", body)
	}
}

func TestRunPutsPipedTextBeforeThePrompt(t *testing.T) {
	f := answering(t, lastLine)
	runCLI(t, f.host(t), "some text", "run", "demo", "summarize", "this")
	if body := f.asked("POST /api/generate")[0]; body["prompt"] != "some text summarize this" {
		t.Errorf("got request %v", body)
	}
}

func TestRunWithAnEmptyPromptOnlyLoads(t *testing.T) {
	f := answering(t, `{"done":true,"done_reason":"load"}`)
	if got := runCLI(t, f.host(t), "", "run", "demo", ""); got.code != 0 || got.out != "" {
		t.Errorf("got %+v", got)
	}
}

func TestRunVerbosePrintsRates(t *testing.T) {
	f := answering(t, `{"response":"x"}`, lastLine)
	got := runCLI(t, f.host(t), "", "run", "--verbose", "demo", "hi")
	want := "total duration:       2s\nload duration:        5ns\nprompt eval count:    4 token(s)\nprompt eval duration: 2s\n" +
		"prompt eval rate:     2.00 tokens/s\neval count:           10 token(s)\neval duration:        500ms\neval rate:            20.00 tokens/s\n"
	if got.err != want {
		t.Errorf("got\n%swant\n%s", got.err, want)
	}
}

func TestRunOptionsReachTheServer(t *testing.T) {
	tests := []struct {
		flag string
		key  string
		want string
	}{
		{"--format=json", "format", "json"},
		{`--format={"type":"object"}`, "format", "map[type:object]"},
		{"--think", "think", "true"},
		{"--think=false", "think", "false"},
		{"--think=high", "think", "high"},
		{"--think=max", "think", "max"},
		{"--keepalive=90", "keep_alive", "1m30s"},
		{"--keepalive=10m", "keep_alive", "10m0s"},
	}
	for _, tt := range tests {
		f := answering(t, lastLine)
		if got := runCLI(t, f.host(t), "", "run", tt.flag, "demo", "hi"); got.code != 0 {
			t.Errorf("%s: got %+v", tt.flag, got)
			continue
		}
		if body := f.asked("POST /api/generate")[0]; fmt.Sprint(body[tt.key]) != tt.want {
			t.Errorf("%s: got %s=%v, want %s", tt.flag, tt.key, body[tt.key], tt.want)
		}
	}
}

func TestRunRefusesBadOptionsBeforeItConnects(t *testing.T) {
	for _, flag := range []string{"--format=xml", "--format={", "--think=sometimes", "--keepalive=soon"} {
		got := runCLI(t, unused(t), "", "run", flag, "demo", "hi")
		name, _, _ := strings.Cut(flag, "=")
		if got.code != 1 || !strings.HasPrefix(got.err, "Error: invalid value for "+name) {
			t.Errorf("%s: got %+v", flag, got)
		}
	}
}

func TestRunShowsThinkingApart(t *testing.T) {
	lines := []string{`{"thinking":"Hmm"}`, `{"thinking":" so."}`, `{"response":"Yes."}`, lastLine}
	if got := runCLI(t, answering(t, lines...).host(t), "", "run", "demo", "hi"); got.out != "Thinking...\nHmm so.\n...done thinking.\n\nYes.\n\n" {
		t.Errorf("got %q", got.out)
	}
	if got := runCLI(t, answering(t, lines...).host(t), "", "run", "--hidethinking", "demo", "hi"); got.out != "Yes.\n\n" {
		t.Errorf("hidden: got %q", got.out)
	}
}

func TestRunEndsThinkingWithoutContent(t *testing.T) {
	f := answering(t, `{"thinking":"Hmm\n"}`, lastLine)
	if got := runCLI(t, f.host(t), "", "run", "demo", "hi"); got.out != "Thinking...\nHmm\n...done thinking.\n\n\n\n" {
		t.Errorf("got %q", got.out)
	}
}

func TestRunPullsAModelThatIsMissing(t *testing.T) {
	f := newFakeServer(t)
	shown := 0
	f.mux.HandleFunc("POST /api/show", func(w http.ResponseWriter, _ *http.Request) {
		if shown++; shown == 1 {
			w.WriteHeader(404)
			fmt.Fprint(w, `{"error":"model 'x' not found"}`)
			return
		}
		fmt.Fprint(w, demoInfo)
	})
	f.answers("POST /api/pull", 200, `{"status":"success"}`)
	f.answers("POST /api/generate", 200, `{"response":"ok"}`, lastLine)
	if got := runCLI(t, f.host(t), "", "run", "x", "hi"); got.code != 0 || got.out != "ok\n\n" || got.err != "success\n" {
		t.Errorf("got %+v", got)
	}
}

func TestRunReportsAnErrorInTheMiddle(t *testing.T) {
	f := answering(t, `{"response":"Hal"}`, `{"error":"the runner died"}`)
	if got := runCLI(t, f.host(t), "", "run", "demo", "hi"); got.code != 1 || got.out != "Hal\n" || got.err != "Error: the runner died\n" {
		t.Errorf("got %+v", got)
	}
}

func TestRunReportsAnAnswerThatJustStops(t *testing.T) {
	f := answering(t, `{"response":"Hal"}`)
	if got := runCLI(t, f.host(t), "", "run", "demo", "hi"); got.code != 1 || !strings.Contains(got.err, "before it was complete") {
		t.Errorf("got %+v", got)
	}
}

func TestRunPrintsVectorsOfEmbeddingModels(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/show", 200, `{"capabilities":["embedding"]}`)
	f.answers("POST /api/embed", 200, `{"embeddings":[[0.5,-1]]}`)
	if got := runCLI(t, f.host(t), "", "run", "--truncate=false", "--dimensions=2", "e", "some text"); got.out != "[0.5,-1]\n" {
		t.Errorf("got %+v", got)
	}
	if body := f.asked("POST /api/embed")[0]; body["truncate"] != false || body["dimensions"] != float64(2) || body["input"] != "some text" {
		t.Errorf("got request %v", body)
	}
	if got := runCLI(t, f.host(t), "", "run", "e", ""); got.code != 1 || !strings.Contains(got.err, "require input text") {
		t.Errorf("got %+v", got)
	}
}

func TestInterruptEndsTheAnswer(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/show", 200, demoInfo)
	gone := make(chan struct{})
	f.mux.HandleFunc("POST /api/generate", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, `{"response":"Well"}`)
		w.(http.Flusher).Flush()
		// The command has its answer, so its signal handler stands.
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
		<-r.Context().Done()
		close(gone)
	})
	got := runCLI(t, f.host(t), "", "run", "demo", "hi")
	if got.code != ExitInterrupted || strings.Contains(got.err, "Error") {
		t.Errorf("got %+v", got)
	}
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the server was not told that nobody listens any more")
	}
}

// helperVar makes the test binary a server that behaves as its value says.
const helperVar = "OLLMLX_TEST_SERVER"

func helperServer(mode string) int {
	switch mode {
	case "broken":
		fmt.Fprintln(os.Stderr, "level=ERROR msg=\"the store is locked\"")
		return 1
	case "deaf":
		select {}
	}
	ln, err := net.Listen("tcp", os.Getenv("OLLMLX_TEST_ADDRESS"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/show":
			fmt.Fprint(w, demoInfo)
		case "/api/generate":
			fmt.Fprintln(w, `{"response":"from a server of my own"}`)
			fmt.Fprintln(w, lastLine)
		}
	}))
	cfg, _, err := config.Load()
	if err != nil || cfg.LifelineFD == 0 {
		fmt.Fprintln(os.Stderr, "no lifeline:", err)
		return 1
	}
	os.NewFile(uintptr(cfg.LifelineFD), "lifeline").Read(make([]byte, 1)) // ends when the parent closes its end, or dies
	os.WriteFile(os.Getenv("OLLMLX_TEST_STOPPED"), nil, 0o600)
	return 0
}

func startingApp(t *testing.T, mode string, host config.Host) (*app, *strings.Builder, string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stopped := filepath.Join(t.TempDir(), "stopped")
	t.Setenv(helperVar, mode)
	t.Setenv("OLLMLX_TEST_ADDRESS", host.ListenAddr())
	t.Setenv("OLLMLX_TEST_STOPPED", stopped)
	var out strings.Builder
	a := newApp(Params{Config: config.Config{Host: host}, In: strings.NewReader(""), Out: &out, Err: &out})
	a.serverCommand = []string{exe}
	return a, &out, stopped
}

func TestRunStartsAServerForItsOwnLifetime(t *testing.T) {
	host := unused(t)
	a, out, stopped := startingApp(t, "good", host)
	if err := a.run(context.Background(), runOptions{Model: "demo"}, []string{"hi"}); err != nil {
		t.Fatal(err)
	}
	want := "no server at " + host.URL().Host + ": starting one until this command ends\nfrom a server of my own\n\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if _, err := os.Stat(stopped); err != nil {
		t.Errorf("the server was not stopped in order: %v", err)
	}
	if err := a.client().Heartbeat(context.Background()); err == nil {
		t.Error("the server still answers")
	}
}

func TestRunTellsWhyAServerDidNotStart(t *testing.T) {
	a, _, _ := startingApp(t, "broken", unused(t))
	err := a.run(context.Background(), runOptions{Model: "demo"}, []string{"hi"})
	if err == nil || !strings.Contains(err.Error(), "ended while starting") || !strings.Contains(err.Error(), "the store is locked") {
		t.Errorf("got %v, want the server's last words", err)
	}
}

func TestRunStopsWaitingForAServerOnInterrupt(t *testing.T) {
	a, _, _ := startingApp(t, "deaf", unused(t))
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	child, err := startServer(a.serverCommand, a.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := child.waitReady(ctx, a.client()); err == nil {
		t.Error("a server that never answers is ready")
	}
	if err := child.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-child.done
}

func TestTailKeepsTheEnd(t *testing.T) {
	tl := &tail{limit: 20}
	for i := range 10 {
		fmt.Fprintf(tl, "line %d\n", i)
	}
	if got := tl.lastLines(); got != "\nine 7\nline 8\nline 9" {
		t.Errorf("got %q", got)
	}
	if got := (&tail{limit: 1}).lastLines(); got != "it wrote no log" {
		t.Errorf("got %q", got)
	}
}

func TestRunAsksHowTheLoadGoes(t *testing.T) {
	f := newFakeServer(t)
	f.answers("POST /api/show", 200, demoInfo)
	var asked string
	f.mux.HandleFunc("POST /api/generate", func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get(server.LoadHeader)
		w.Header().Set(server.LoadHeader, "weights 1/2")
		w.WriteHeader(http.StatusProcessing)
		fmt.Fprintln(w, lastLine)
	})
	if got := runCLI(t, f.host(t), "", "run", "demo", ""); got.code != 0 || asked != "progress" {
		t.Errorf("got %+v, asked %q", got, asked)
	}
}

func TestParseLoad(t *testing.T) {
	for text, want := range map[string][2]int64{
		"weights 5/10": {5, 10}, "weights 0/0": {}, "weights": {}, "": {}, "weights a/b": {}, "weights -1/-5": {},
	} {
		completed, total, ok := parseLoad(text)
		if ok != (want[1] > 0) || (ok && [2]int64{completed, total} != want) {
			t.Errorf("%q: got %d/%d, %v", text, completed, total, ok)
		}
	}
}
