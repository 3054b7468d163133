package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// bed is a real server over a real store and a real scheduler; only the runners are fakes.
type bed struct {
	t       testing.TB
	dir     string
	store   *store.Store
	sched   *sched.Scheduler
	starter *schedtest.Starter
	server  *Server
	http    *httptest.Server

	mu sync.Mutex
	// answer makes the stream of each request; requests are all that runners were asked.
	answer   func(ctx context.Context, req *runnerpb.GenerateRequest) (sched.Stream, error)
	requests []*runnerpb.GenerateRequest
}

type setting func(*Params, *sched.Params)

func newBed(t testing.TB, settings ...setting) *bed {
	t.Helper()
	b := &bed{t: t, dir: t.TempDir(), starter: &schedtest.Starter{}}
	var err error
	if b.store, err = store.Open(store.Params{Dir: b.dir, Logger: quiet()}); err != nil {
		t.Fatal(err)
	}
	b.starter.OnStart = func(r *schedtest.Runner) { r.OnGenerate = b.generate }
	sp := sched.Params{Start: b.starter.Start, KeepAlive: 5 * time.Minute, Logger: quiet()}
	p := Params{Store: b.store, Version: "1.2.3", Logger: quiet()}
	for _, set := range settings {
		set(&p, &sp)
	}
	b.sched = sched.New(sp)
	p.Scheduler = b.sched
	if b.server, err = New(p); err != nil {
		t.Fatal(err)
	}
	b.http = httptest.NewServer(b.server.Handler())
	t.Cleanup(func() {
		b.http.CloseClientConnections()
		b.http.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := b.sched.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := b.store.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

func (b *bed) generate(ctx context.Context, req *runnerpb.GenerateRequest) (sched.Stream, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, req)
	if b.answer != nil {
		return b.answer(ctx, req)
	}
	return schedtest.Script(ctx, schedtest.Prefill(5, 5), schedtest.Content("Hello"), schedtest.Content(""), schedtest.Content(" <you>"), schedtest.Stop()), nil
}

// script makes every request be answered with these events.
func (b *bed) script(events ...*runnerpb.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = func(ctx context.Context, _ *runnerpb.GenerateRequest) (sched.Stream, error) {
		return schedtest.Script(ctx, events...), nil
	}
}

// asked returns what the last runner was asked last.
func (b *bed) asked() *runnerpb.GenerateRequest {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) == 0 {
		b.t.Fatal("no runner was asked anything")
	}
	return b.requests[len(b.requests)-1]
}

type reply struct {
	status int
	header http.Header
	body   string
}

func (b *bed) do(method, path, body string) reply {
	b.t.Helper()
	req, err := http.NewRequest(method, b.http.URL+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := b.http.Client().Do(req)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	text, err := readAll(resp)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{resp.StatusCode, resp.Header, text}
}

func (b *bed) post(path, body string) reply {
	b.t.Helper()
	return b.do("POST", path, body)
}

// expect posts and compares status and, unless empty, the error text.
func (b *bed) expect(path, body string, status int, errText string) {
	b.t.Helper()
	r := b.post(path, body)
	if r.status != status || (errText != "" && r.err() != errText) {
		b.t.Errorf("POST %s %s:\n got %d %s\nwant %d %s", path, body, r.status, r.body, status, errText)
	}
}

func (r reply) err() string {
	var e errorBody
	_ = json.Unmarshal([]byte(r.body), &e)
	return e.Error
}

func (r reply) json(t testing.TB, v any) {
	t.Helper()
	if r.status != http.StatusOK {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal([]byte(r.body), v); err != nil {
		t.Fatalf("%v in %s", err, r.body)
	}
}

// lines decodes an ndjson body.
func linesOf[T any](t testing.TB, r reply) []T {
	t.Helper()
	var out []T
	sc := bufio.NewScanner(strings.NewReader(r.body))
	sc.Buffer(nil, 10<<20)
	for sc.Scan() {
		var v T
		if err := json.Unmarshal(sc.Bytes(), &v); err != nil {
			t.Fatalf("%v in line %q", err, sc.Text())
		}
		out = append(out, v)
	}
	return out
}

// upload stores files as blobs, as the command line does, and returns what a create request says of them.
func (b *bed) upload(files map[string][]byte) map[string]string {
	b.t.Helper()
	digests := map[string]string{}
	for name, content := range files {
		sum := sha256.Sum256(content)
		digests[name] = "sha256:" + hex.EncodeToString(sum[:])
		r := b.post("/api/blobs/"+digests[name], string(content))
		if r.status != http.StatusCreated && r.status != http.StatusOK {
			b.t.Fatalf("upload of %s: %d %s", name, r.status, r.body)
		}
	}
	return digests
}

// create makes a model of the small test model's files through the API; more are further fields of the request.
func (b *bed) create(name string, more map[string]any) {
	b.t.Helper()
	b.createFrom(name, mlxmodeltest.Model(), more)
}

func (b *bed) createFrom(name string, files map[string][]byte, more map[string]any) {
	b.t.Helper()
	req := map[string]any{"model": name, "files": b.upload(files), "stream": false}
	for k, v := range more {
		req[k] = v
	}
	body, err := json.Marshal(req)
	if err != nil {
		b.t.Fatal(err)
	}
	if r := b.post("/api/create", string(body)); r.status != http.StatusOK || !strings.Contains(r.body, `"success"`) {
		b.t.Fatalf("create %s: %d %s", name, r.status, r.body)
	}
}

// plainModel is the test model without tools and thinking.
func plainModel() map[string][]byte {
	files := mlxmodeltest.Model()
	files["chat_template.jinja"] = []byte("{% for m in messages %}{{ m.content }}{% endfor %}")
	return files
}

// embeddingModel is one that embeds and does not complete.
func embeddingModel() map[string][]byte {
	files := mlxmodeltest.Model()
	files["modules.json"] = []byte(`[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}, {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]`)
	return files
}

// until polls for a condition.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

// open begins a streaming request and leaves it open.
func (b *bed) open(ctx context.Context, path, body string) *http.Response {
	b.t.Helper()
	req, err := http.NewRequestWithContext(ctx, "POST", b.http.URL+path, bytes.NewReader([]byte(body)))
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := b.http.Client().Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func fields(body string) string {
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		return err.Error()
	}
	var keys []string
	dec := json.NewDecoder(strings.NewReader(body))
	depth := 0
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			break
		}
		switch v := tok.(type) {
		case json.Delim:
			if v == '{' || v == '[' {
				depth++
			} else {
				depth--
			}
		case string:
			if depth == 1 {
				keys = append(keys, v)
				var skip json.RawMessage
				if err := dec.Decode(&skip); err != nil {
					return err.Error()
				}
			}
		}
	}
	return fmt.Sprint(keys)
}
