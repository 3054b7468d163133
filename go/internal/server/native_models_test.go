package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
	"github.com/ollmlx/ollmlx/go/internal/version"
)

func TestRootAndVersion(t *testing.T) {
	b := newBed(t)
	if r := b.do("GET", "/", ""); r.status != 200 || r.body != "Ollama is running" || !strings.HasPrefix(r.header.Get("Content-Type"), "text/plain") {
		t.Errorf("GET /: %+v", r)
	}
	if r := b.do("GET", "/api/version", ""); r.status != 200 || r.body != `{"version":"1.2.3","ollmlx":"`+version.Version+`"}` {
		t.Errorf("version: %+v", r)
	}
	if r := b.do("GET", "/api/status", ""); r.status != 200 || r.body != `{"cloud":{"disabled":true,"source":"config"}}` {
		t.Errorf("status: %+v", r)
	}
	for _, path := range []string{"/", "/api/version", "/api/tags"} {
		if r := b.do("HEAD", path, ""); r.status != 200 || r.body != "" {
			t.Errorf("HEAD %s: %+v", path, r)
		}
	}
}

func TestTags(t *testing.T) {
	b := newBed(t)
	if r := b.do("GET", "/api/tags", ""); r.body != `{"models":[]}` {
		t.Errorf("empty: %s", r.body)
	}
	b.create("Org/First", nil)
	b.createFrom("second", plainModel(), nil)
	var got struct {
		Models []struct {
			api.ListModelResponse
			Details struct {
				api.ModelDetails
				ContextLength   int `json:"context_length"`
				EmbeddingLength int `json:"embedding_length"`
			} `json:"details"`
			Capabilities []string
		}
	}
	r := b.do("GET", "/api/tags", "")
	r.json(t, &got)
	if len(got.Models) != 2 {
		t.Fatal(r.body)
	}
	x, y := got.Models[1], got.Models[0]
	if y.Name != "second:latest" || x.Name != "Org/First:latest" || x.Model != x.Name || len(x.Digest) != 64 || x.Size <= 0 || time.Since(x.ModifiedAt) > time.Hour {
		t.Errorf("got %s", r.body)
	}
	if x.Details.ContextLength != 4096 || x.Details.EmbeddingLength != 64 || x.Details.Family != "qwen3" || strings.Join(x.Capabilities, ",") != "completion,tools,thinking" {
		t.Errorf("details: %s", r.body)
	}
	// The object's field appears once, although two types have it.
	if strings.Count(r.body, `"details"`) != 2 {
		t.Errorf("got %s", r.body)
	}
}

func TestPs(t *testing.T) {
	b := newBed(t)
	if r := b.do("GET", "/api/ps", ""); r.body != `{"models":[]}` {
		t.Errorf("empty: %s", r.body)
	}
	b.create("a", nil)
	b.createFrom("b", plainModel(), nil)
	onStart := b.starter.OnStart
	b.starter.OnStart = func(r *schedtest.Runner) {
		onStart(r)
		if r.Model.Name.Model == "b" {
			r.ModelInfo.Device = "metal"
		}
	}
	b.post("/api/generate", `{"model": "a", "keep_alive": "1m"}`)
	b.post("/api/generate", `{"model": "b", "keep_alive": -1}`)
	var got api.ProcessResponse
	r := b.do("GET", "/api/ps", "")
	r.json(t, &got)
	if len(got.Models) != 2 || got.Models[0].Name != "b:latest" || got.Models[1].Name != "a:latest" {
		t.Fatal(r.body)
	}
	forever, short := got.Models[0], got.Models[1]
	if time.Until(forever.ExpiresAt) < 100*365*24*time.Hour || time.Until(short.ExpiresAt) > time.Minute || time.Until(short.ExpiresAt) < 30*time.Second {
		t.Errorf("expiry: %v, %v", forever.ExpiresAt, short.ExpiresAt)
	}
	if forever.SizeVRAM != forever.Size || forever.Size != 1500 || short.SizeVRAM != 0 || short.ContextLength != 4096 || len(short.Digest) != 64 || short.Details.Family != "qwen3" {
		t.Errorf("got %s", r.body)
	}
}

func TestShow(t *testing.T) {
	b := newBed(t)
	b.create("m", map[string]any{"system": "Be kind.", "license": "MIT", "parameters": map[string]any{"temperature": 0.5, "stop": []string{"A"}}})
	var got struct {
		api.ShowResponse
		Details struct {
			Family        string
			ContextLength int `json:"context_length"`
		} `json:"details"`
	}
	r := b.post("/api/show", `{"model": "M", "options": {"top_k": 3}}`)
	r.json(t, &got)
	if got.System != "Be kind." || got.License != "MIT" || got.Details.Family != "qwen3" || got.Details.ContextLength != 4096 || got.ModelInfo["general.architecture"] != "qwen3" {
		t.Errorf("got %s", r.body)
	}
	if got.Parameters != "stop                           \"A\"\ntemperature                    0.5" {
		t.Errorf("parameters %q", got.Parameters)
	}
	if !strings.Contains(got.Modelfile, "FROM m:latest") || !strings.Contains(got.Modelfile, "PARAMETER top_k 3") || strings.Contains(got.Modelfile, b.dir) {
		t.Errorf("modelfile %q", got.Modelfile)
	}
	b.post("/api/show", `{"model": "m", "system": "Other.", "verbose": true}`).json(t, &got)
	if got.System != "Other." || len(got.Tensors) != 4 {
		t.Errorf("got %+v", got)
	}
	// That editor's menu shows the base name, which is to be the name that it asked for.
	for agent, want := range map[string]any{"GitHubCopilotChat/0.1": "M", "curl/8": nil} {
		req, err := http.NewRequest("POST", b.http.URL+"/api/show", strings.NewReader(`{"model": "M"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", agent)
		resp, err := b.http.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var shown api.ShowResponse
		if err := json.NewDecoder(resp.Body).Decode(&shown); err != nil || shown.ModelInfo["general.basename"] != want {
			t.Errorf("%s: got base name %v, %v", agent, shown.ModelInfo["general.basename"], err)
		}
		_ = resp.Body.Close()
	}
}

func TestDelete(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.post("/api/generate", `{"model": "m"}`)
	if r := b.do("DELETE", "/api/delete", `{"name": "M"}`); r.status != 200 || r.body != "" {
		t.Errorf("got %+v", r)
	}
	b.expect("/api/show", `{"model": "m"}`, 404, "model 'm' not found")
	until(t, "the runner of a deleted model goes", func() bool { return len(b.sched.Loaded(t.Context())) == 0 })
}

func TestCopy(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	if r := b.post("/api/copy", `{"source": "m", "destination": "Ns/Copy:v1"}`); r.status != 200 || r.body != "" {
		t.Errorf("got %+v", r)
	}
	b.expect("/api/generate", `{"model": "ns/copy:V1", "prompt": "x"}`, 200, "")
	b.expect("/api/generate", `{"model": "m", "prompt": "x"}`, 200, "")
	if n := len(b.starter.Started()); n != 1 {
		t.Errorf("a copy has a runner of its own: %d", n)
	}
}

func TestCreateStream(t *testing.T) {
	b := newBed(t)
	files := b.upload(mlxmodeltest.Model())
	body, err := json.Marshal(map[string]any{"model": "m", "files": files})
	if err != nil {
		t.Fatal(err)
	}
	r := b.post("/api/create", string(body))
	got := linesOf[api.ProgressResponse](t, r)
	if r.header.Get("Content-Type") != typeNDJSON || got[len(got)-1].Status != "success" {
		t.Errorf("got %s", r.body)
	}
	r = b.post("/api/create", `{"model": "n", "from": "M", "system": "S"}`)
	if got = linesOf[api.ProgressResponse](t, r); got[len(got)-1].Status != "success" {
		t.Errorf("got %s", r.body)
	}
}

func TestBlobs(t *testing.T) {
	b := newBed(t)
	for name, digest := range b.upload(map[string][]byte{"x": []byte("content")}) {
		if r := b.do("HEAD", "/api/blobs/"+digest, ""); r.status != 200 {
			t.Errorf("HEAD %s: %d", name, r.status)
		}
		if r := b.post("/api/blobs/"+digest, "content"); r.status != 200 {
			t.Errorf("second upload: %d", r.status)
		}
	}
	if r := b.do("HEAD", "/api/blobs/sha256:"+strings.Repeat("0", 64), ""); r.status != 404 {
		t.Errorf("absent: %d", r.status)
	}
	if r := b.do("HEAD", "/api/blobs/sha256:00", ""); r.status != 400 {
		t.Errorf("bad digest: %d", r.status)
	}
}

func TestEmbed(t *testing.T) {
	b := newBed(t)
	b.createFrom("e", embeddingModel(), nil)
	var asked *runnerpb.EmbedRequest
	value := float32(0.5)
	b.starter.OnStart = func(r *schedtest.Runner) {
		r.OnEmbed = func(q *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
			asked = q
			out := &runnerpb.EmbedResponse{PromptTokens: 7}
			for range q.GetInputs() {
				out.Embeddings = append(out.Embeddings, &runnerpb.Embedding{Values: []float32{value, -1}})
			}
			return out, nil
		}
	}
	var got api.EmbedResponse
	b.post("/api/embed", `{"model": "E", "input": ["a", "b"], "truncate": false, "dimensions": 2, "options": {"num_ctx": 64}}`).json(t, &got)
	if got.Model != "E" || len(got.Embeddings) != 2 || got.Embeddings[1][1] != -1 || got.PromptEvalCount != 7 || got.LoadDuration <= 0 || got.TotalDuration < got.LoadDuration {
		t.Errorf("got %+v", got)
	}
	if asked.Truncate || asked.Dimensions != 2 || !asked.Normalize || asked.NumCtx != 64 || strings.Join(asked.Inputs, "") != "ab" {
		t.Errorf("asked %v", asked)
	}
	b.post("/api/embed", `{"model": "e", "input": "one"}`).json(t, &got)
	if !asked.Truncate || strings.Join(asked.Inputs, "") != "one" {
		t.Errorf("asked %v", asked)
	}
	asked = nil
	for _, input := range []string{`""`, `[]`, `null`} {
		if r := b.post("/api/embed", `{"model": "e", "input": `+input+`}`); r.body != `{"model":"e","embeddings":[]}` || asked != nil {
			t.Errorf("input %s: %s", input, r.body)
		}
	}
	if r := b.post("/api/embeddings", `{"model": "e"}`); r.body != `{"embedding":[]}` {
		t.Errorf("empty prompt: %s", r.body)
	}
	if r := b.post("/api/embeddings", `{"model": "e", "prompt": "x"}`); r.body != `{"embedding":[0.5,-1]}` || asked.Normalize {
		t.Errorf("legacy: %s, asked %v", r.body, asked)
	}
	value = float32(math.NaN())
	b.expect("/api/embed", `{"model": "e", "input": "x"}`, 400, "embedding contains NaN or Inf values")

	// A model that cannot embed says so itself.
	b.create("m", nil)
	b.starter.OnStart = nil
	b.expect("/api/embed", `{"model": "m", "input": "x"}`, 400, "Embed is not implemented by this fake")
}

func TestStartFailureReachesTheClient(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	b.starter.OnLoad = func(context.Context, *storeModel, func(*runnerpb.LoadProgress)) error {
		return errors.New("exit status 70: no such library")
	}
	b.expect("/api/generate", `{"model": "m", "prompt": "x"}`, 500, "exit status 70: no such library")
	b.expect("/api/chat", `{"model": "m"}`, 500, "exit status 70: no such library")
}

// A blob that is here already is read to its end all the same, because an early answer breaks the connection of a client
// that is still sending.
func TestUploadOfABlobThatIsHere(t *testing.T) {
	b := newBed(t)
	content := make([]byte, 8<<20)
	sum := sha256.Sum256(content)
	path := "/api/blobs/sha256:" + hex.EncodeToString(sum[:])
	conn, err := net.Dial("tcp", b.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	answers := bufio.NewReader(conn)
	for i, want := range []int{201, 200, 200} {
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", path, len(content)); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if _, err := conn.Write(content); err != nil {
			t.Fatalf("body %d: %v", i, err)
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil || resp.StatusCode != want || resp.Close {
			t.Fatalf("answer %d: %+v, %v", i, resp, err)
		}
	}
}
