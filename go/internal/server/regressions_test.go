package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/registry"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

type storeModel = store.Model

// presentOnly is a Puller that finds what is stored.
type presentOnly struct{ store *store.Store }

func (p presentOnly) Pull(_ context.Context, n model.Name, _ registry.Options, _ func(api.ProgressResponse)) error {
	_, err := p.store.Get(n)
	return err
}

// Three faults of an earlier server, each of which left a user without a runner.

// A name reaches the same model, and the same runner, in every form and on every route.
func TestNameFormsReachTheSameModel(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) { p.Puller = presentOnly{p.Store} })
	b.create("mlx-community/Tiny-4bit", nil)
	for _, name := range []string{
		"mlx-community/Tiny-4bit", "MLX-Community/tiny-4BIT", "mlx-community/Tiny-4bit:latest", "mlx-community/tiny-4bit:LATEST",
		"hf.co/mlx-community/Tiny-4bit", "huggingface.co/mlx-community/Tiny-4bit", "HF.co/MLX-community/tiny-4bit:latest", "https://hf.co/mlx-community/Tiny-4bit",
	} {
		for _, q := range []struct{ method, path, body string }{
			{"POST", "/api/generate", `{"model": %q, "prompt": "x"}`},
			{"POST", "/api/chat", `{"model": %q, "messages": [{"role": "user", "content": "x"}]}`},
			{"POST", "/api/show", `{"model": %q}`},
			{"POST", "/api/show", `{"name": %q}`},
			{"POST", "/api/pull", `{"model": %q}`},
			{"POST", "/api/embed", `{"model": %q}`},
			{"POST", "/api/embeddings", `{"model": %q}`},
			{"POST", "/api/copy", `{"source": %q, "destination": "other"}`},
			{"POST", "/api/create", `{"model": "derived", "from": %q}`},
			{"DELETE", "/api/delete", `{"model": %q}`},
		} {
			if q.method == "DELETE" {
				b.post("/api/copy", `{"source": "mlx-community/Tiny-4bit", "destination": "backup"}`)
			}
			if r := b.do(q.method, q.path, fmt.Sprintf(q.body, name)); r.status != 200 {
				t.Errorf("%s %s %s: %d %s", q.method, q.path, name, r.status, r.body)
			}
			if q.method == "DELETE" {
				b.expect("/api/show", `{"model": "mlx-community/Tiny-4bit"}`, 404, "")
				b.post("/api/copy", `{"source": "backup", "destination": "mlx-community/Tiny-4bit"}`)
			}
		}
	}
}

func TestNameFormsShareARunner(t *testing.T) {
	b := newBed(t)
	b.create("mlx-community/Tiny-4bit", nil)
	for _, name := range []string{"mlx-community/Tiny-4bit", "MLX-Community/tiny-4BIT:latest", "hf.co/mlx-community/Tiny-4bit"} {
		b.expect("/api/generate", fmt.Sprintf(`{"model": %q, "prompt": "x"}`, name), 200, "")
	}
	if n := len(b.starter.Started()); n != 1 {
		t.Errorf("%d runners were started", n)
	}
}

// "org/model" and "org_model" are two names.
func TestSlashAndUnderscoreDiffer(t *testing.T) {
	b := newBed(t)
	b.create("org/model", nil)
	b.expect("/api/generate", `{"model": "org_model", "prompt": "x"}`, 404, "model 'org_model' not found")
	b.createFrom("org_model", plainModel(), nil)
	b.expect("/api/generate", `{"model": "org/model", "prompt": "x", "think": true}`, 200, "")
	b.expect("/api/generate", `{"model": "org_model", "prompt": "x", "think": true}`, 400, `"org_model" does not support thinking`)
	if r := b.do("DELETE", "/api/delete", `{"model": "org_model"}`); r.status != 200 {
		t.Error(r.body)
	}
	b.expect("/api/show", `{"model": "org/model"}`, 200, "")
}

// A model in MLX format starts a runner whatever its name looks like; the format is known from the files.
func TestRoutingByContentNotByName(t *testing.T) {
	b := newBed(t)
	for i, name := range []string{"llama3.2", "my-gguf-model:q4_k_m", "mlx-community/x", "someone/thing-mlx"} {
		b.create(name, map[string]any{"system": fmt.Sprint(i)})
		b.expect("/api/chat", fmt.Sprintf(`{"model": %q, "messages": [{"role": "user", "content": "x"}]}`, name), 200, "")
		r := b.starter.Started()
		if len(r) == 0 || r[len(r)-1].Model.Format != store.FormatMLX {
			t.Fatalf("%s: started %d", name, len(r))
		}
	}
}

// A model that came here by another program, and wants a later version, is refused whatever is asked of it.
func TestModelForALaterVersionIsRefusedEverywhere(t *testing.T) {
	b := newBed(t)
	b.create("later", map[string]any{"requires": "0.1.0", "info": map[string]any{"capabilities": []string{"completion", "embedding", "rerank"}}})
	blobs, err := filepath.Glob(filepath.Join(b.dir, "blobs", "sha256-*"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, path := range blobs {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if changed := bytes.Replace(content, []byte(`"requires":"0.1.0"`), []byte(`"requires":"9.1.0"`), 1); !bytes.Equal(changed, content) {
			found++
			if err := os.WriteFile(path, changed, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if found != 1 {
		t.Fatalf("%d configurations", found)
	}
	manifests, err := filepath.Glob(filepath.Join(b.dir, "manifests", "*", "*", "later", "*"))
	if err != nil || len(manifests) != 1 {
		t.Fatal(manifests, err)
	}
	// What was read of it before counts no more.
	if err := os.Chtimes(manifests[0], time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for path, body := range map[string]string{
		"/api/generate":        `{"model": "later", "prompt": "x"}`,
		"/api/chat":            `{"model": "later", "messages": [{"role": "user", "content": "x"}]}`,
		"/api/embed":           `{"model": "later", "input": "x"}`,
		"/api/embeddings":      `{"model": "later", "prompt": "x"}`,
		"/v1/rerank":           `{"model": "later", "query": "q", "documents": ["a"]}`,
		"/v1/chat/completions": `{"model": "later", "messages": [{"role": "user", "content": "x"}]}`,
		"/v1/messages":         `{"model": "later", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}`,
	} {
		if r := b.post(path, body); r.status != 400 || !strings.Contains(r.body, "requires version 9.1.0 of Ollama") {
			t.Errorf("%s: got %d %s", path, r.status, r.body)
		}
	}
}
