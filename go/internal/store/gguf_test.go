package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/gguf/gguftest"
)

// thinker is a model whose template shows tools and thinking, and whose vocabulary has the marks of infilling.
func thinker() []byte {
	return gguftest.File{Architecture: "qwen3", Keys: []gguftest.Key{
		gguftest.KV("qwen3.context_length", uint32(4096)), gguftest.KV("qwen3.embedding_length", uint32(64)),
		gguftest.KV("general.file_type", uint32(7)),
		gguftest.KV("tokenizer.chat_template", "{% if tools %}{{ tools }}{% endif %}{% if enable_thinking %}<think>{% endif %}"),
		gguftest.KV("tokenizer.ggml.tokens", []string{"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"}),
	}}.Bytes()
}

func part(no, count uint32) []byte {
	return gguftest.File{Seed: byte(no), Keys: []gguftest.Key{gguftest.KV("split.no", no), gguftest.KV("split.count", count)}}.Bytes()
}

func TestGGUFIsDescribedByItsFile(t *testing.T) {
	s := open(t, Params{})
	if _, err := create(s, api.CreateRequest{Model: "x", Files: upload(t, s, map[string][]byte{"x.gguf": thinker()})}); err != nil {
		t.Fatal(err)
	}
	m := must(s.Get(name(t, "x")))
	want := []model.Capability{model.CapabilityCompletion, model.CapabilityTools, model.CapabilityInsert, model.CapabilityThinking}
	if !slices.Equal(m.Capabilities, want) || m.ContextLength != 4096 || m.EmbeddingLength != 64 {
		t.Errorf("got %v, %d, %d", m.Capabilities, m.ContextLength, m.EmbeddingLength)
	}
	if d := m.Details; d.Family != "qwen3" || d.QuantizationLevel != "Q8_0" || d.ParameterSize != "32" || d.Format != "gguf" {
		t.Errorf("got %+v", d)
	}
	r := must(s.Show(m, ShowOptions{}))
	if r.ModelInfo["qwen3.context_length"] != uint64(4096) || r.ModelInfo["tokenizer.chat_template"] != nil || len(r.Tensors) != 0 {
		t.Errorf("got %v and %v", r.ModelInfo, r.Tensors)
	}
	if tokens := r.ModelInfo["tokenizer.ggml.tokens"].([]any); len(tokens) != 0 {
		t.Errorf("got %v, want no long arrays", tokens)
	}
	r = must(s.Show(m, ShowOptions{Verbose: true}))
	if len(r.Tensors) != 1 || len(r.ModelInfo["tokenizer.ggml.tokens"].([]any)) != 3 {
		t.Errorf("got %v and %v", r.ModelInfo, r.Tensors)
	}
}

func TestGGUFOfSeveralFiles(t *testing.T) {
	s := open(t, Params{})
	files := map[string][]byte{
		"b-2.gguf": part(1, 2), "z-1.gguf": part(0, 2),
		"mmproj.gguf": gguftest.File{Architecture: "clip"}.Bytes(),
		"lora.gguf":   gguftest.File{Keys: []gguftest.Key{gguftest.KV("general.type", "adapter")}}.Bytes(),
	}
	if _, err := create(s, api.CreateRequest{Model: "x", Files: upload(t, s, files)}); err != nil {
		t.Fatal(err)
	}
	m := must(s.Get(name(t, "x")))
	if !m.Can(model.CapabilityVision) {
		t.Errorf("got %v, want vision because of its projector", m.Capabilities)
	}
	dir := t.TempDir()
	got, err := s.MaterializeGGUF(m, dir)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(got.Model) != "model-00001-of-00002.gguf" || got.Draft != "" || len(got.Adapters) != 1 {
		t.Errorf("got %+v", got)
	}
	for path, content := range map[string][]byte{
		got.Model: files["z-1.gguf"], filepath.Join(dir, "model-00002-of-00002.gguf"): files["b-2.gguf"],
		got.Projector: files["mmproj.gguf"], got.Adapters[0].Path: files["lora.gguf"],
	} {
		if b, err := os.ReadFile(path); err != nil || string(b) != string(content) {
			t.Errorf("%s: got %d bytes, %v", path, len(b), err)
		}
	}
}

func TestGGUFThatIsNoWholeModelIsRefused(t *testing.T) {
	for text, files := range map[string]map[string][]byte{
		"not all of them":  {"a.gguf": part(0, 3), "b.gguf": part(2, 3)},
		"each once":        {"a.gguf": part(0, 2), "b.gguf": part(0, 2)},
		"no model among":   {"a.gguf": gguftest.File{Architecture: "clip"}.Bytes()},
		"beyond the end":   {"a.gguf": thinker()[:len(thinker())-1]},
		"it ends within":   {"a.gguf": []byte("GGUF")},
		"not in GGUF form": {"a.gguf": []byte("ggml")},
	} {
		s := open(t, Params{})
		_, err := create(s, api.CreateRequest{Model: "x", Files: upload(t, s, files)})
		if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
}

// A file that others put into the store, or that changed there, does not come before the engine either.
func TestMalformedGGUFIsNotLaidOut(t *testing.T) {
	s := open(t, Params{})
	f := foreign{t, s.dir}
	bad := thinker()
	f.model("registry.ollama.ai/library/bad/latest", `{"model_family":"qwen3"}`, "model", string(bad[:len(bad)-8]))
	m := must(s.Get(name(t, "bad")))
	if len(must(s.List())) != 1 || m.Details.Family != "qwen3" {
		t.Errorf("got %+v, want it to be listed", m)
	}
	dir := t.TempDir()
	if _, err := s.MaterializeGGUF(m, dir); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "beyond the end") {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("got %v, want no link to a malformed file", left)
	}
}
