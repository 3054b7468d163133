package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
	"github.com/ollmlx/ollmlx/go/internal/version"
)

func TestCreateFromFiles(t *testing.T) {
	s := open(t, Params{})
	files := mlxmodeltest.Model()
	files["README.md"] = []byte("card")
	files["modeling.py"] = []byte("code")
	files["pytorch_model.bin"] = []byte("pickle")
	files["LICENSE"] = []byte("MIT")
	digests := upload(t, s, files)
	statuses := mustCreate(t, s, api.CreateRequest{
		Model: "Mine", Files: digests, System: "Be brief.", Template: goTemplate, License: []string{"Apache", "more"},
		Parameters: map[string]any{"temperature": 0.5, "stop": []string{"a", "b"}, "num_ctx": 2048},
		Messages:   []api.Message{{Role: "user", Content: "Hi"}}, Requires: "0.1.0",
	})
	m := must(s.Get(name(t, "mine")))
	if m.Name.Model != "Mine" || m.Format != FormatMLX || m.System != "Be brief." || m.Template != goTemplate || m.Config.Requires != "0.1.0" {
		t.Errorf("got %+v", m)
	}
	if !slices.Equal(m.Licenses, []string{"MIT", "Apache", "more"}) || m.Messages[0].Content != "Hi" {
		t.Errorf("got %q, %v", m.Licenses, m.Messages)
	}
	if m.Parameters["temperature"] != 0.5 || m.Parameters["num_ctx"] != 2048.0 || len(m.Parameters["stop"].([]any)) != 2 {
		t.Errorf("got %v", m.Parameters)
	}
	if d := m.Details; d.Format != "mlx" || d.Family != "qwen3" || !slices.Equal(d.Families, []string{"qwen3"}) || d.ParameterSize != "6K" || d.QuantizationLevel != "4-bit" {
		t.Errorf("got %+v", d)
	}
	if m.ContextLength != 4096 || m.EmbeddingLength != 64 {
		t.Errorf("got context %d, embedding %d", m.ContextLength, m.EmbeddingLength)
	}
	// With a TEMPLATE, tools and insertion are the template's; this one knows no thinking.
	if want := []model.Capability{"completion", "tools", "insert"}; !slices.Equal(m.Capabilities, want) {
		t.Errorf("got %v, want %v", m.Capabilities, want)
	}
	var size int64
	for _, l := range m.Layers {
		size += l.Size
	}
	if m.Size <= size || m.WeightSize() != int64(len(files["model.safetensors"])) {
		t.Errorf("got size %d, weights %d", m.Size, m.WeightSize())
	}
	want := []string{"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
	if got := filePaths(m.Layers); !slices.Equal(got, want) {
		t.Errorf("got files %q, want %q", got, want)
	}
	for _, want := range []string{
		"skipping README.md: not needed to run the model", "skipping modeling.py: model code is never executed",
		"skipping pytorch_model.bin: pickle files can run code when they are read; only safetensors are",
		"using existing layer " + digests["config.json"], "creating new layer " + digestOf([]byte("Be brief.")), "writing manifest", "success",
	} {
		if !slices.Contains(statuses, want) {
			t.Errorf("no status %q in %q", want, statuses)
		}
	}
	if i := slices.Index(statuses, "writing manifest"); i != len(statuses)-2 || statuses[len(statuses)-1] != "success" {
		t.Errorf("got %q", statuses)
	}
}

// The manifest is one that Ollama reads: its own media types, digests of the content, a configuration with its fields.
func TestManifestOnDisk(t *testing.T) {
	s := open(t, Params{})
	mustCreate(t, s, api.CreateRequest{Model: "ns/m:tag", Files: upload(t, s, mlxmodeltest.Model()), System: "x"})
	raw := must(os.ReadFile(s.dir + "/manifests/registry.ollama.ai/ns/m/tag"))
	var m struct {
		SchemaVersion int
		MediaType     string
		Config        map[string]any
		Layers        []map[string]any
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if m.SchemaVersion != 2 || m.MediaType != "application/vnd.docker.distribution.manifest.v2+json" || m.Config["mediaType"] != "application/vnd.docker.container.image.v1+json" {
		t.Errorf("got %s", raw)
	}
	kinds := map[string]int{}
	for _, l := range append(m.Layers, m.Config) {
		kinds[l["mediaType"].(string)]++
		path := s.dir + "/blobs/" + strings.Replace(l["digest"].(string), ":", "-", 1)
		if content := must(os.ReadFile(path)); digestOf(content) != l["digest"] || float64(len(content)) != l["size"] {
			t.Errorf("layer %v does not match its content", l)
		}
	}
	if kinds["application/vnd.ollmlx.image.file"] != len(mlxmodeltest.Model()) || kinds["application/vnd.ollama.image.system"] != 1 {
		t.Errorf("got %v", kinds)
	}
	var c model.ConfigV2
	if err := json.Unmarshal(must(s.readSmall(m.Config["digest"].(string))), &c); err != nil {
		t.Fatal(err)
	}
	if c.ModelFormat != "mlx" || c.OS != "linux" || c.Architecture != "amd64" || len(c.RootFS.DiffIDs) != len(m.Layers) || c.ContextLen != 4096 {
		t.Errorf("got %+v", c)
	}
}

// Equal input makes an equal model, whatever the order of a map.
func TestCreateIsReproducible(t *testing.T) {
	digests := map[string]bool{}
	for range 5 {
		s := open(t, Params{})
		digests[createMLX(t, s, "m").Digest] = true
	}
	if len(digests) != 1 {
		t.Errorf("got %d different digests", len(digests))
	}
}

func TestCreateFromModel(t *testing.T) {
	s := open(t, Params{})
	mustCreate(t, s, api.CreateRequest{
		Model: "base", Files: upload(t, s, mlxmodeltest.Model()), System: "old", License: "one", Renderer: "qwen3-coder", Parser: "passthrough", Requires: "0.1.0",
		Parameters: map[string]any{"temperature": 0.5, "top_k": 3}, Messages: []api.Message{{Role: "user", Content: "old"}},
	})
	base := must(s.Get(name(t, "base")))

	mustCreate(t, s, api.CreateRequest{Model: "same", From: "base"})
	same := must(s.Get(name(t, "same")))
	if same.System != "old" || same.Config.Renderer != "qwen3-coder" || same.Parameters["top_k"] != 3.0 || same.Messages[0].Content != "old" || same.Details.ParentModel != "base:latest" {
		t.Errorf("got %+v", same)
	}
	if !slices.Equal(same.Capabilities, base.Capabilities) || same.ContextLength != base.ContextLength || same.Format != FormatMLX {
		t.Errorf("got %v, %d", same.Capabilities, same.ContextLength)
	}

	mustCreate(t, s, api.CreateRequest{
		Model: "derived", From: "BASE:latest", System: "new", License: "two", Parser: "qwen3-coder", Template: "{{ .Prompt }}",
		Parameters: map[string]any{"temperature": 0.9, "seed": 7}, Messages: []api.Message{{Role: "user", Content: "new"}},
	})
	d := must(s.Get(name(t, "derived")))
	if want := map[string]any{"temperature": 0.9, "top_k": 3.0, "seed": 7.0}; !maps.Equal(d.Parameters, want) {
		t.Errorf("got %v, want %v", d.Parameters, want)
	}
	if d.System != "new" || !slices.Equal(d.Licenses, []string{"one", "two"}) || len(d.Messages) != 1 || d.Messages[0].Content != "new" {
		t.Errorf("got %q, %q, %v", d.System, d.Licenses, d.Messages)
	}
	if d.Config.Renderer != "qwen3-coder" || d.Config.Parser != "qwen3-coder" || d.Config.Requires != "0.1.0" || d.Template != "{{ .Prompt }}" {
		t.Errorf("got %+v", d.Config)
	}
	// The base is as it was.
	if again := must(s.Get(name(t, "base"))); again.Digest != base.Digest {
		t.Error("the base changed")
	}
	// A model can be made of itself.
	mustCreate(t, s, api.CreateRequest{Model: "derived", From: "derived", System: "newest"})
	if again := must(s.Get(name(t, "derived"))); again.System != "newest" || again.Parameters["seed"] != 7.0 {
		t.Errorf("got %+v", again)
	}
}

func TestCreateFromOllamaModel(t *testing.T) {
	s := open(t, Params{Dir: ollamaStore(t).dir})
	mustCreate(t, s, api.CreateRequest{Model: "mine", From: "llama3.2", System: "Mine."})
	m := must(s.Get(name(t, "mine")))
	if m.Format != FormatGGUF || m.System != "Mine." || m.Template != goTemplate || len(m.Licenses) != 2 || m.Details.Family != "llama" {
		t.Errorf("got %+v", m)
	}
}

func TestCreatePullsAMissingBase(t *testing.T) {
	s := open(t, Params{})
	digests := upload(t, s, mlxmodeltest.Model())
	var pulled []string
	p := CreateParams{
		Request: api.CreateRequest{Model: "x", From: "mlx-community/base"},
		Pull: func(ctx context.Context, n model.Name, progress func(api.ProgressResponse)) error {
			pulled = append(pulled, n.String())
			return s.Create(ctx, CreateParams{Request: api.CreateRequest{Model: n.String(), Files: digests}}, nil)
		},
	}
	if err := s.Create(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(pulled, []string{"hf.co/mlx-community/base:latest"}) {
		t.Errorf("pulled %v", pulled)
	}
	if got := names(t, s); !slices.Equal(got, []string{"mlx-community/base:latest", "x:latest"}) {
		t.Errorf("got %v", got)
	}
	p.Request.From = "other"
	p.Pull = func(context.Context, model.Name, func(api.ProgressResponse)) error {
		return errdefs.New(errdefs.ErrUnavailable, "no network")
	}
	if err := s.Create(t.Context(), p, nil); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	p.Pull = nil
	if err := s.Create(t.Context(), p, nil); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestCreateFromGGUF(t *testing.T) {
	s := open(t, Params{})
	// By its content, whatever its name.
	for _, path := range []string{"model.gguf", "model.bin", "blob"} {
		digests := upload(t, s, map[string][]byte{path: []byte(ggufFile(2, 3)), "config.json": []byte("{}")})
		if path == "blob" {
			delete(digests, "config.json")
		}
		statuses := mustCreate(t, s, api.CreateRequest{Model: "g", Files: digests})
		if !slices.Contains(statuses, "parsing GGUF") {
			t.Errorf("got %q", statuses)
		}
		m := must(s.Get(name(t, "g")))
		if m.Format != FormatGGUF || m.Details.Format != "gguf" || !slices.Equal(m.Capabilities, []model.Capability{"completion"}) {
			t.Errorf("got %q, %v", m.Format, m.Capabilities)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	huge := ggufFile(2, 3)
	with := func(changes map[string]string) map[string][]byte {
		f := mlxmodeltest.Model()
		for name, content := range changes {
			if content == "" {
				delete(f, name)
				continue
			}
			f[name] = []byte(content)
		}
		return f
	}
	one := func(path, content string) map[string][]byte { return map[string][]byte{path: []byte(content)} }
	for _, tt := range []struct {
		name  string
		files map[string][]byte
		req   api.CreateRequest
		kind  error
		text  string
	}{
		{"no name", with(nil), api.CreateRequest{}, errdefs.ErrInvalid, "invalid model name"},
		{"bad name", with(nil), api.CreateRequest{Model: "../x"}, errdefs.ErrInvalid, "invalid model name"},
		{"neither", nil, api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "neither 'from' or 'files' was specified"},
		{"no files", nil, api.CreateRequest{Model: "x", Files: map[string]string{}}, errdefs.ErrInvalid, "no files provided to convert"},
		{"both", with(nil), api.CreateRequest{Model: "x", From: "y"}, errdefs.ErrInvalid, "both 'from' and 'files'"},
		{"bad from", nil, api.CreateRequest{Model: "x", From: "./dir"}, errdefs.ErrInvalid, "invalid model name"},
		{"missing from", nil, api.CreateRequest{Model: "x", From: "absent"}, errdefs.ErrNotFound, `model "absent:latest" not found`},
		{"absolute path", nil, api.CreateRequest{Model: "x", Files: map[string]string{"/etc/passwd": hexDigest("a")}}, errdefs.ErrInvalid, "file path must be relative"},
		{"path that leaves", nil, api.CreateRequest{Model: "x", Files: map[string]string{"../config.json": hexDigest("a")}}, errdefs.ErrInvalid, "file path must be relative"},
		{"path that leaves in the middle", nil, api.CreateRequest{Model: "x", Files: map[string]string{"a/../../config.json": hexDigest("a")}}, errdefs.ErrInvalid, "file path must be relative"},
		{"empty path", nil, api.CreateRequest{Model: "x", Files: map[string]string{"": hexDigest("a")}}, errdefs.ErrInvalid, "file path must be relative"},
		{"adapter path that leaves", with(nil), api.CreateRequest{Model: "x", Adapters: map[string]string{"../a": hexDigest("a")}}, errdefs.ErrInvalid, "file path must be relative"},
		{"empty digest", nil, api.CreateRequest{Model: "x", Files: map[string]string{"config.json": ""}}, errdefs.ErrInvalid, "invalid digest format"},
		{"digest that is a path", nil, api.CreateRequest{Model: "x", Files: map[string]string{"config.json": "sha256:../../../../etc/passwd"}}, errdefs.ErrInvalid, "invalid digest format"},
		{"blob not uploaded", nil, api.CreateRequest{Model: "x", Files: map[string]string{"config.json": hexDigest("a")}}, errdefs.ErrInvalid, "the content of config.json is not here: upload it first"},
		{"unknown type", one("notes.md", "hello"), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "unknown type"},
		{"not GGUF", one("x.gguf", "hello world"), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "supplied file was not in GGUF format"},
		{"GGUF of four bytes (CVE-2024-39720)", one("x.gguf", "GGUF"), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "ends within its header"},
		{"GGUF with huge counts (CVE-2025-0315)", one("x.gguf", ggufClaim(1<<62, 1)), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "it claims"},
		{"GGUF with counts beyond its size", one("x.gguf", ggufClaim(1<<19, 1<<15)), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "too short"},
		{"GGUF of an unknown version", one("x.gguf", huge[:4]+"\x09"+huge[5:]), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "version 9"},
		{"two GGUFs", map[string][]byte{"a.gguf": []byte(ggufFile(1, 1)), "b.gguf": []byte(ggufFile(1, 2))}, api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "are two models"},
		{"pickle", one("pytorch_model.bin", "x"), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "only pickle weights"},
		{"no config", with(map[string]string{"config.json": ""}), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "config.json is missing"},
		{"model code", with(map[string]string{"config.json": `{"model_type":"x","model_file":"m.py"}`}), api.CreateRequest{Model: "x"}, errdefs.ErrUnsupported, "model code is never executed"},
		{"damaged weights", with(map[string]string{"model.safetensors": "\xff\xff\xff\xff\xff\xff\xff\xff{}"}), api.CreateRequest{Model: "x"}, errdefs.ErrInvalid, "model.safetensors is damaged"},
		{"remote", nil, api.CreateRequest{Model: "x", From: "y", RemoteHost: "ollama.com"}, errdefs.ErrUnsupported, "remote models"},
		{"bad template", with(nil), api.CreateRequest{Model: "x", Template: "{{ .Prompt"}, errdefs.ErrInvalid, "template error"},
		{"license of numbers", with(nil), api.CreateRequest{Model: "x", License: []any{1}}, errdefs.ErrInvalid, "license must be"},
		{"license that is an object", with(nil), api.CreateRequest{Model: "x", License: map[string]any{}}, errdefs.ErrInvalid, "license must be"},
		{"parameter of a wrong type", with(nil), api.CreateRequest{Model: "x", Parameters: map[string]any{"num_ctx": "many"}}, errdefs.ErrInvalid, `option "num_ctx" must be of type integer`},
		{"info of a wrong type", with(nil), api.CreateRequest{Model: "x", Info: map[string]any{"context_length": "4096"}}, errdefs.ErrInvalid, `info "context_length" must be a whole number`},
		{"unknown info", with(nil), api.CreateRequest{Model: "x", Info: map[string]any{"y": 1}}, errdefs.ErrInvalid, `unknown info "y"`},
		{"info list of numbers", with(nil), api.CreateRequest{Model: "x", Info: map[string]any{"capabilities": []any{1.0}}}, errdefs.ErrInvalid, "list of strings"},
		{"unknown renderer", with(nil), api.CreateRequest{Model: "x", Renderer: "qwen9"}, errdefs.ErrInvalid, `unknown renderer "qwen9"; there are cogito, deepseek3.1`},
		{"unknown parser", with(nil), api.CreateRequest{Model: "x", Renderer: "qwen3-coder", Parser: "qwen9"}, errdefs.ErrInvalid, `unknown parser "qwen9"; there are cogito, deepseek3`},
		{"parser without a renderer", with(nil), api.CreateRequest{Model: "x", Parser: "qwen3-coder"}, errdefs.ErrInvalid, `parser "qwen3-coder" would have no effect`},
		{"requires no version", with(nil), api.CreateRequest{Model: "x", Requires: "soon"}, errdefs.ErrInvalid, "requires must be a valid semver (e.g. 0.14.0)"},
		{"requires a later version", with(nil), api.CreateRequest{Model: "x", Requires: "99.1.0"}, errdefs.ErrUnsupported, "the model requires version 99.1.0 of Ollama, and this server follows version " + version.OllamaAPI},
		{"huge system prompt", with(nil), api.CreateRequest{Model: "x", System: strings.Repeat("x", maxSmall+1)}, errdefs.ErrTooLarge, "larger than 4 MiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, Params{})
			if tt.files != nil {
				tt.req.Files = upload(t, s, tt.files)
			}
			statuses, err := create(s, tt.req)
			if !errors.Is(err, tt.kind) {
				t.Fatalf("got %v, want kind %v", err, tt.kind)
			}
			if !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), s.dir) {
				t.Errorf("got %q, want it to say %q without paths", err, tt.text)
			}
			if slices.Contains(statuses, "success") || len(names(t, s)) != 0 {
				t.Errorf("something was made: %q, %v", statuses, names(t, s))
			}
			if len(s.holds) != 0 {
				t.Errorf("holds stay: %v", s.holds)
			}
		})
	}
}

func TestCreateInfo(t *testing.T) {
	s := open(t, Params{})
	mustCreate(t, s, api.CreateRequest{Model: "x", Files: upload(t, s, mlxmodeltest.Model()), Info: map[string]any{
		"capabilities": []any{"completion"}, "model_family": "fam", "base_name": "b", "quantization_level": "q", "parameter_size": "9B", "context_length": 8.0, "embedding_length": 4.0,
	}})
	m := must(s.Get(name(t, "x")))
	if m.Details.Family != "fam" || m.Details.ParameterSize != "9B" || m.Details.QuantizationLevel != "q" || m.ContextLength != 8 || m.EmbeddingLength != 4 || m.Config.BaseName != "b" {
		t.Errorf("got %+v, %+v", m.Details, m.Config)
	}
	if !slices.Equal(m.Capabilities, []model.Capability{"completion"}) {
		t.Errorf("got %v", m.Capabilities)
	}
}

func TestCancelledCreateChangesNothing(t *testing.T) {
	s := open(t, Params{})
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Create(ctx, CreateParams{Request: api.CreateRequest{Model: "x", Files: upload(t, s, mlxmodeltest.Model())}}, func(p api.ProgressResponse) {
		if p.Status == "checking model files" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || len(names(t, s)) != 0 {
		t.Errorf("got %v, %v", err, names(t, s))
	}
}

// A manifest that cannot be written leaves the old model in place.
func TestFailedManifestWriteKeepsTheOldModel(t *testing.T) {
	s := open(t, Params{})
	createMLX(t, s, "x")
	// The name's directory is a file: what stands in for a full or broken disk, also when the tests run as root.
	(foreign{t, s.dir}).write("manifests/registry.ollama.ai/library/y", []byte(`{"config":{"digest":"`+hexDigest("a")+`"}}`))
	_, err := create(s, api.CreateRequest{Model: "y:tag", From: "x"})
	if !errors.Is(err, errdefs.ErrInternal) || strings.Contains(err.Error(), s.dir) || !strings.Contains(err.Error(), "writing a manifest failed") {
		t.Errorf("got %v", err)
	}
	if m, err := s.Get(name(t, "x")); err != nil || m.System != "I am x" {
		t.Errorf("got %v, %v", m, err)
	}
}

// Another program removes a blob while a model is made of it.
func TestBlobThatGoesDuringCreate(t *testing.T) {
	s := open(t, Params{})
	digests := upload(t, s, mlxmodeltest.Model())
	err := s.Create(t.Context(), CreateParams{Request: api.CreateRequest{Model: "x", Files: digests}}, func(p api.ProgressResponse) {
		if p.Status == "writing manifest" {
			os.Remove(s.blobPath(digests["model.safetensors"]))
		}
	})
	if !errors.Is(err, errdefs.ErrNotFound) || len(names(t, s)) != 0 {
		t.Errorf("got %v, %v", err, names(t, s))
	}
}

// Deleting the base in the middle of a create does not take the blobs that the new model shares with it.
func TestDeleteDuringCreate(t *testing.T) {
	s := open(t, Params{})
	createMLX(t, s, "base")
	err := s.Create(t.Context(), CreateParams{Request: api.CreateRequest{Model: "x", From: "base", System: "y"}}, func(p api.ProgressResponse) {
		if p.Status == "writing manifest" {
			if err := s.Delete(name(t, "base")); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.Get(name(t, "x")); err != nil || m.System != "y" {
		t.Errorf("got %v, %v", m, err)
	}
}

// A system prompt that is a digest's preimage of nothing special: large texts, other scripts and NUL bytes come back.
func TestSettingsComeBackAsTheyWere(t *testing.T) {
	s := open(t, Params{})
	digests := upload(t, s, mlxmodeltest.Model())
	for i, text := range []string{"Ünïcödé 模型 🙂", "a\x00b", "\"quoted\"\n\tand lines\r\n", strings.Repeat("long ", 100_000)} {
		as := fmt.Sprint("m", i)
		mustCreate(t, s, api.CreateRequest{Model: as, Files: digests, System: text, License: text, Messages: []api.Message{{Role: "user", Content: text}}})
		m := must(s.Get(name(t, as)))
		if m.System != text || m.Licenses[0] != text || m.Messages[0].Content != text {
			t.Errorf("%q changed", text[:8])
		}
	}
}
