package store

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/gguf/gguftest"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

const goTemplate = `{{ if .System }}{{ .System }}{{ end }}{{ if .Tools }}{{ .Tools }}{{ end }}{{ .Prompt }}{{ .Suffix }}`

// ollamaStore writes a store as Ollama leaves it behind.
func ollamaStore(t *testing.T) foreign {
	f := foreign{t, t.TempDir()}
	llama := f.model("registry.ollama.ai/library/llama3.2/latest",
		`{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"3.2B","file_type":"Q4_K_M","architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`,
		"model", ggufFile(2, 3), "template", goTemplate, "license", "License one", "license", "License two", "system", "You are Llama.",
		"params", `{"stop":["<|eot_id|>","<|end|>"],"temperature":0.7,"num_ctx":1000000}`, "messages", `[{"role":"user","content":"Hi"}]`)
	age(t, llama, 3*time.Hour)
	age(t, f.model("registry.ollama.ai/library/nomic-embed-text/v1.5", `{"model_format":"gguf","model_family":"nomic-bert","model_type":"137M","file_type":"F16"}`, "model", string(gguftest.File{Architecture: "nomic-bert"}.Bytes())), 2*time.Hour)
	age(t, f.model("registry.ollama.ai/someone/LLaVA/7B", `{"model_format":"gguf","model_family":"llama"}`, "model", ggufFile(1, 2), "projector", ggufFile(2, 2)), time.Hour)
	age(t, f.model("hf.co/bartowski/Llama-3.2-1B-GGUF/Q4_K_M", `{"model_format":"gguf","model_family":"llama"}`, "model", ggufFile(3, 2)), 30*time.Minute)
	age(t, f.model("huggingface.co/unsloth/x-GGUF/latest", `{"model_format":"gguf","model_family":"llama"}`, "model", ggufFile(4, 2)), 20*time.Minute)
	age(t, f.model("registry.ollama.ai/library/qwen3.5/2b-nvfp4", `{"model_format":"safetensors","model_family":"qwen3.5","capabilities":["completion","thinking"],"requires":"0.19.0","renderer":"qwen3.5","parser":"qwen3.5"}`,
		"tensor#model.embed.weight", "tensor bytes", "json#config.json", `{"model_type":"qwen3_5"}`), 10*time.Minute)
	age(t, f.model("registry.ollama.ai/library/gpt-oss/120b-cloud", `{"remote_host":"https://ollama.com:443","remote_model":"gpt-oss:120b","model_family":"gptoss","capabilities":["completion","tools","thinking"],"context_length":131072}`), 5*time.Minute)
	return f
}

func TestModelsOfAnExistingOllamaStore(t *testing.T) {
	f := ollamaStore(t)
	before := tree(t, f.dir)
	s := open(t, Params{Dir: f.dir, BundledDir: bundle(t)})
	models, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range models {
		got = append(got, modelname.Display(m.Name)+" "+string(m.Format))
	}
	want := []string{
		"gpt-oss:120b-cloud ", "qwen3.5:2b-nvfp4 safetensors", "hf.co/unsloth/x-GGUF:latest gguf", "hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M gguf",
		"someone/LLaVA:7B gguf", "nomic-embed-text:v1.5 gguf", "llama3.2:latest gguf",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for path, content := range before {
		if now, err := os.ReadFile(filepath.Join(f.dir, path)); err != nil || string(now) != content {
			t.Errorf("%s changed: %v", path, err)
		}
	}
}

func TestGetOfAnOllamaModel(t *testing.T) {
	s := open(t, Params{Dir: ollamaStore(t).dir})
	m, err := s.Get(name(t, "LLAMA3.2"))
	if err != nil {
		t.Fatal(err)
	}
	if modelname.Display(m.Name) != "llama3.2:latest" || m.Format != FormatGGUF || len(m.Digest) != 64 {
		t.Errorf("got %s, %q, %s", m.Name, m.Format, m.Digest)
	}
	if m.Template != goTemplate || m.System != "You are Llama." || !slices.Equal(m.Licenses, []string{"License one", "License two"}) {
		t.Errorf("got %q, %q, %q", m.Template, m.System, m.Licenses)
	}
	if m.Parameters["temperature"] != 0.7 || len(m.Parameters["stop"].([]any)) != 2 || m.Messages[0].Content != "Hi" {
		t.Errorf("got %v, %v", m.Parameters, m.Messages)
	}
	if d := m.Details; d.Format != "gguf" || d.Family != "llama" || d.ParameterSize != "3.2B" || d.QuantizationLevel != "Q4_K_M" || d.ParentModel != "" {
		t.Errorf("got %+v", d)
	}
	if want := []model.Capability{"completion", "tools", "insert"}; !slices.Equal(m.Capabilities, want) {
		t.Errorf("got %v, want %v", m.Capabilities, want)
	}
	if m.WeightSize() != int64(len(ggufFile(2, 3))) || m.GGUF() != digestOf([]byte(ggufFile(2, 3))) {
		t.Errorf("got weights of %d bytes, %s", m.WeightSize(), m.GGUF())
	}
	if must(s.BlobPath(m.GGUF())) == "" {
		t.Error("the weights have no path")
	}
	for in, want := range map[string][]model.Capability{
		"nomic-embed-text:v1.5": {"embedding"}, "someone/llava:7b": {"completion", "vision"}, "qwen3.5:2b-nvfp4": {"completion", "tools", "thinking"}, "gpt-oss:120b-cloud": {"completion", "tools", "thinking"},
	} {
		if m, err := s.Get(name(t, in)); err != nil || !slices.Equal(m.Capabilities, want) {
			t.Errorf("%s: got %v, %v", in, m, err)
		}
	}
}

// Names lead to the same model on every route, because every route comes here.
func TestNamesInTheStore(t *testing.T) {
	f := foreign{t, t.TempDir()}
	for _, p := range []string{"registry.ollama.ai/library/demo/latest", "hf.co/mlx-community/Qwen3-0.6B-4bit/latest", "hf.co/org/OnHub/latest", "registry.ollama.ai/both/x/latest", "hf.co/both/x/latest", "hf.co/library/y/latest", "example.com/n/m/latest"} {
		f.model(p, `{"model_family":"`+p+`"}`, "model", ggufFile(1, 1))
	}
	s := open(t, Params{Dir: f.dir})
	for _, tt := range []struct{ in, want string }{
		{"demo", "demo:latest"},
		{"DEMO:Latest", "demo:latest"},
		{"library/demo", "demo:latest"},
		{"demo:other", ""},
		{"mlx-community/Qwen3-0.6B-4bit", "mlx-community/Qwen3-0.6B-4bit:latest"},
		{"MLX-Community/qwen3-0.6b-4BIT:latest", "mlx-community/Qwen3-0.6B-4bit:latest"},
		{"hf.co/mlx-community/Qwen3-0.6B-4bit", "mlx-community/Qwen3-0.6B-4bit:latest"},
		{"https://huggingface.co/mlx-community/Qwen3-0.6B-4bit", "mlx-community/Qwen3-0.6B-4bit:latest"},
		{"mlx-community_Qwen3-0.6B-4bit", ""},
		{"registry.ollama.ai/other/Qwen3-0.6B-4bit", ""},
		{"org/onhub", "hf.co/org/OnHub:latest"},
		{"hf.co/org/onhub", "hf.co/org/OnHub:latest"},
		{"both/x", "both/x:latest"},
		{"hf.co/both/x", "hf.co/both/x:latest"},
		{"y", ""},
		{"example.com/N/M", "example.com/n/m:latest"},
		{"n/m", ""},
	} {
		m, err := s.Get(name(t, tt.in))
		if tt.want == "" {
			if !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("%s: got %v, %v, want not found", tt.in, m, err)
			}
			if err := s.Delete(name(t, tt.in)); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("%s: Delete: got %v, want not found", tt.in, err)
			}
			if err := s.Copy(name(t, tt.in), name(t, "copy")); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("%s: Copy: got %v, want not found", tt.in, err)
			}
			continue
		}
		if err != nil || modelname.Display(m.Name) != tt.want {
			t.Errorf("%s: got %v, %v, want %s", tt.in, m, err, tt.want)
		}
	}
}

func TestInvalidNames(t *testing.T) {
	s := open(t, Params{})
	bad := model.Name{Host: "..", Namespace: "..", Model: "..", Tag: ".."}
	if _, err := s.Get(bad); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if err := s.Delete(bad); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if err := s.Copy(name(t, "x"), bad); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

// A file system that tells cases apart may hold two directories that differ in case alone.
func TestLookupTriesAllCases(t *testing.T) {
	f := foreign{t, t.TempDir()}
	f.model("registry.ollama.ai/library/Foo/a", `{}`, "model", ggufFile(1, 1))
	f.model("registry.ollama.ai/library/foo/b", `{}`, "model", ggufFile(1, 2))
	if len(must(os.ReadDir(filepath.Join(f.dir, "manifests/registry.ollama.ai/library")))) != 2 {
		t.Skip("this file system ignores case")
	}
	s := open(t, Params{Dir: f.dir})
	for _, in := range []string{"foo:a", "foo:b", "FOO:A", "Foo:b"} {
		if _, err := s.Get(name(t, in)); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// A damaged model is logged once and left out of the list; asking for it tells what is wrong; it can be deleted.
func TestDamagedModels(t *testing.T) {
	good := `{"model_family":"x"}`
	for _, tt := range []struct {
		name string
		make func(f foreign, rel string) string
		text string
	}{
		{"empty manifest", func(f foreign, rel string) string { return f.write("manifests/"+rel, nil) }, "no valid JSON"},
		{"cut manifest", func(f foreign, rel string) string { return f.write("manifests/"+rel, []byte(`{"schemaVersion":2,`)) }, "no valid JSON"},
		{"manifest of nothing", func(f foreign, rel string) string { return f.write("manifests/"+rel, []byte(`{}`)) }, "no layers"},
		{"manifest is a list", func(f foreign, rel string) string { return f.write("manifests/"+rel, []byte(`[]`)) }, "no valid JSON"},
		{"huge manifest", func(f foreign, rel string) string { return f.write("manifests/"+rel, make([]byte, maxManifest+1)) }, "larger than 16 MiB"},
		{"digest that is a path (CVE-2024-37032)", func(f foreign, rel string) string {
			return f.write("manifests/"+rel, []byte(`{"layers":[{"mediaType":"`+mediaModel+`","digest":"sha256:../../../etc/passwd","size":1}]}`))
		}, "invalid digest"},
		{"short digest (CVE-2025-1975)", func(f foreign, rel string) string {
			return f.write("manifests/"+rel, []byte(`{"config":{"digest":"sha256:1"},"layers":[]}`))
		}, "invalid digest"},
		{"no digest", func(f foreign, rel string) string {
			return f.write("manifests/"+rel, []byte(`{"layers":[{"mediaType":"`+mediaModel+`"}]}`))
		}, "invalid digest"},
		{"negative size", func(f foreign, rel string) string {
			return f.write("manifests/"+rel, []byte(`{"layers":[{"mediaType":"`+mediaModel+`","digest":"`+hexDigest("a")+`","size":-1}]}`))
		}, "negative size"},
		{"file that leaves its directory", func(f foreign, rel string) string {
			return f.write("manifests/"+rel, []byte(`{"layers":[{"mediaType":"`+mediaFile+`","digest":"`+hexDigest("a")+`","size":1,"name":"../x"}]}`))
		}, "invalid path"},
		{"config is no JSON", func(f foreign, rel string) string { return f.model(rel, "{", "model", ggufFile(1, 1)) }, "configuration are no valid JSON"},
		{"huge config", func(f foreign, rel string) string {
			return f.model(rel, `{"x":"`+strings.Repeat("x", maxSmall)+`"}`, "model", ggufFile(1, 1))
		}, "larger than 4 MiB"},
		{"params are no JSON", func(f foreign, rel string) string { return f.model(rel, good, "model", ggufFile(1, 1), "params", "x") }, "parameters are no valid JSON"},
		{"messages are no JSON", func(f foreign, rel string) string {
			return f.model(rel, good, "model", ggufFile(1, 1), "messages", "x")
		}, "messages are no valid JSON"},
		{"missing weights", func(f foreign, rel string) string {
			p := f.model(rel, good, "model", ggufFile(9, 9))
			os.Remove(filepath.Join(f.dir, "blobs", strings.Replace(digestOf([]byte(ggufFile(9, 9))), ":", "-", 1)))
			return p
		}, "is missing"},
		{"missing config", func(f foreign, rel string) string {
			p := f.model(rel, `{"only":"here"}`, "model", ggufFile(1, 1))
			os.Remove(filepath.Join(f.dir, "blobs", strings.Replace(digestOf([]byte(`{"only":"here"}`)), ":", "-", 1)))
			return p
		}, "not found"},
		{"cut weights", func(f foreign, rel string) string {
			p := f.model(rel, good, "model", ggufFile(9, 9))
			os.Truncate(filepath.Join(f.dir, "blobs", strings.Replace(digestOf([]byte(ggufFile(9, 9))), ":", "-", 1)), 10)
			return p
		}, "10 bytes instead of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := foreign{t, t.TempDir()}
			f.model("registry.ollama.ai/library/good/latest", good, "model", ggufFile(1, 1))
			path := tt.make(f, "registry.ollama.ai/library/bad/latest")
			logs := &logBuffer{}
			s := open(t, Params{Dir: f.dir, Logger: slog.New(slog.NewTextHandler(logs, nil))})
			for range 3 {
				if got := names(t, s); !slices.Equal(got, []string{"good:latest"}) {
					t.Errorf("got %v", got)
				}
			}
			if n := strings.Count(logs.String(), "a model is left out"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, logs)
			}
			_, err := s.Get(name(t, "bad"))
			if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), "ollmlx rm bad:latest") {
				t.Errorf("got %v, want it to say %q and the remedy", err, tt.text)
			}
			if err != nil && strings.Contains(err.Error(), f.dir) {
				t.Errorf("%q holds a path", err)
			}
			if err := s.Delete(name(t, "bad")); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("got %v", err)
			}
			if _, err := s.Get(name(t, "good")); err != nil {
				t.Errorf("the other model: %v", err)
			}
		})
	}
}

func TestStrayFilesAmongManifests(t *testing.T) {
	f := foreign{t, t.TempDir()}
	f.model("registry.ollama.ai/library/good/latest", `{}`, "model", ggufFile(1, 1))
	for _, p := range []string{".DS_Store", "registry.ollama.ai/.DS_Store", "registry.ollama.ai/library/good/.hidden", "file", "registry.ollama.ai/library/good/sub/deep", "registry.ollama.ai/library/good/bad name"} {
		f.write("manifests/"+p, []byte("x"))
	}
	s := open(t, Params{Dir: f.dir})
	if got := names(t, s); !slices.Equal(got, []string{"good:latest"}) {
		t.Errorf("got %v", got)
	}
}

// What a caller does with a model does not reach the next caller.
func TestModelsAreCopies(t *testing.T) {
	s := open(t, Params{Dir: ollamaStore(t).dir})
	m := must(s.Get(name(t, "llama3.2")))
	want := maps.Clone(m.Parameters)
	m.System = "changed"
	m.Parameters["temperature"] = 2.0
	if again := must(s.Get(name(t, "llama3.2"))); again.System == "changed" || again.Parameters["temperature"] != want["temperature"] {
		t.Errorf("got %q, %v", again.System, again.Parameters)
	}
}

// A model that another program replaced is seen at once.
func TestForeignChangesAreSeen(t *testing.T) {
	f := foreign{t, t.TempDir()}
	f.model("registry.ollama.ai/library/x/latest", `{"model_type":"1B"}`, "model", ggufFile(1, 1))
	s := open(t, Params{Dir: f.dir})
	first := must(s.Get(name(t, "x")))
	age(t, f.model("registry.ollama.ai/library/x/latest", `{"model_type":"2B"}`, "model", ggufFile(1, 1)), -time.Second)
	second := must(s.Get(name(t, "x")))
	if first.Digest == second.Digest || second.Details.ParameterSize != "2B" {
		t.Errorf("got %s, %+v", second.Digest, second.Details)
	}
}

func BenchmarkGet(b *testing.B) {
	f := foreign{b, b.TempDir()}
	f.model("registry.ollama.ai/library/llama/latest", `{"model_family":"llama"}`, "model", ggufFile(1, 1), "template", goTemplate, "system", "x")
	for i := range 100 {
		f.model("registry.ollama.ai/library/m"+strings.Repeat("x", i%40)+"/latest", `{}`, "model", ggufFile(1, 1))
	}
	s, err := Open(Params{Dir: f.dir})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	n, err := modelname.Parse("llama")
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for b.Loop() {
		if _, err := s.Get(n); err != nil {
			b.Fatal(err)
		}
	}
}
