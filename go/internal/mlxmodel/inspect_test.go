package mlxmodel_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
)

type files = map[string][]byte

// with returns the test model with some files changed; nil removes one.
func with(changes files) files {
	f := mlxmodeltest.Model()
	for name, content := range changes {
		if content == nil {
			delete(f, name)
			continue
		}
		f[name] = content
	}
	return f
}

func inspect(t *testing.T, f files) (*mlxmodel.Info, error) {
	t.Helper()
	dir, err := mlxmodel.OpenDir(mlxmodeltest.Write(t, f))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	return mlxmodel.Inspect(dir)
}

func TestInspect(t *testing.T) {
	info, err := inspect(t, mlxmodeltest.Model())
	if err != nil {
		t.Fatal(err)
	}
	if info.ModelType != "qwen3" || info.ContextLength != 4096 || info.EmbeddingLength != 64 {
		t.Errorf("got %q, context %d, embedding %d", info.ModelType, info.ContextLength, info.EmbeddingLength)
	}
	if info.Parameters != mlxmodeltest.Parameters {
		t.Errorf("got %d parameters, want %d", info.Parameters, mlxmodeltest.Parameters)
	}
	if want := uint64(100*8*4 + 2*100*2 + 64*2); info.WeightBytes != want {
		t.Errorf("got %d bytes, want %d", info.WeightBytes, want)
	}
	if info.Level() != "4-bit" {
		t.Errorf("got level %q", info.Level())
	}
	if want := []model.Capability{"completion", "tools", "thinking"}; !slices.Equal(info.Capabilities, want) {
		t.Errorf("got %v, want %v", info.Capabilities, want)
	}
	m := info.ModelInfo()
	for key, want := range map[string]any{
		"general.architecture": "qwen3", "general.parameter_count": uint64(mlxmodeltest.Parameters), "qwen3.context_length": 4096,
		"qwen3.embedding_length": 64, "qwen3.block_count": 2, "qwen3.attention.head_count": 4, "qwen3.attention.head_count_kv": 2,
		"qwen3.feed_forward_length": 128, "qwen3.vocab_size": 100, "qwen3.rope.freq_base": 10000.0, "general.quantization_bits": 4,
	} {
		if m[key] != want {
			t.Errorf("%s: got %v, want %v", key, m[key], want)
		}
	}
	if len(info.Tensors) != 4 || info.Tensors[0].Name != "model.embed_tokens.biases" {
		t.Errorf("got tensors %v", info.Tensors)
	}
}

// A model that cannot work is refused in one line that says why.
func TestInspectRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changes files
		kind    error
		text    string
	}{
		{"no config", files{"config.json": nil}, errdefs.ErrInvalid, "config.json is missing"},
		{"an adapter", files{"config.json": nil, "adapter_config.json": []byte("{}")}, errdefs.ErrInvalid, "an adapter and no model"},
		{"config is no JSON", files{"config.json": []byte("{")}, errdefs.ErrInvalid, "no JSON object"},
		{"config is a list", files{"config.json": []byte("[]")}, errdefs.ErrInvalid, "no JSON object"},
		{"huge config", files{"config.json": make([]byte, 17<<20)}, errdefs.ErrInvalid, "larger than 16 MiB"},
		{"no model_type", files{"config.json": []byte("{}")}, errdefs.ErrInvalid, "no usable model_type"},
		{"model_type that leaves its package", files{"config.json": []byte(`{"model_type":"..os"}`)}, errdefs.ErrInvalid, "no usable model_type"},
		{"model_type with a dot", files{"config.json": []byte(`{"model_type":"llama.x"}`)}, errdefs.ErrInvalid, "no usable model_type"},
		{"model_file", files{"config.json": []byte(`{"model_type":"x","model_file":"model.py"}`), "model.py": []byte("1")}, errdefs.ErrUnsupported, "model code is never executed"},
		{"no weights", files{"model.safetensors": nil}, errdefs.ErrInvalid, "there are no weights"},
		{"pickle only", files{"model.safetensors": nil, "pytorch_model.bin": []byte("x")}, errdefs.ErrInvalid, "only pickle weights (pytorch_model.bin)"},
		{"weights of another name", files{"model.safetensors": nil, "weights.00.safetensors": []byte("x")}, errdefs.ErrInvalid, "only weights.00.safetensors"},
		{"missing shard by index", files{"model.safetensors.index.json": []byte(`{"weight_map":{"a":"model.safetensors","b":"model-2.safetensors","c":"model-3.safetensors"}}`)}, errdefs.ErrInvalid, "model-2.safetensors and 1 more is missing"},
		{"missing shard by count", files{"model.safetensors": nil, "model-00001-of-00002.safetensors": mlxmodeltest.Safetensors(nil)}, errdefs.ErrInvalid, "model-00002-of-00002.safetensors is missing"},
		{"index is no JSON", files{"model.safetensors.index.json": []byte(`{`)}, errdefs.ErrInvalid, "no valid JSON"},
		{"no tokenizer", files{"tokenizer.json": nil}, errdefs.ErrInvalid, "no tokenizer"},
		{"tokenizer in Python", files{"tokenizer.json": nil, "tokenizer_config.json": []byte(`{"auto_map":{"AutoTokenizer":["tok.T",null]}}`)}, errdefs.ErrUnsupported, "model code is never executed"},
		{"tokenizer config is no JSON", files{"tokenizer_config.json": []byte(`x`)}, errdefs.ErrInvalid, "tokenizer_config.json"},
		{"tokenizer is no JSON", files{"tokenizer.json": []byte(`x`)}, errdefs.ErrInvalid, "tokenizer.json"},
		{"chat template is no JSON", files{"chat_template.json": []byte(`x`)}, errdefs.ErrInvalid, "chat_template.json"},
		{"huge template", files{"chat_template.jinja": make([]byte, 5<<20)}, errdefs.ErrInvalid, "larger than 4 MiB"},
		{"cut weights", files{"model.safetensors": mlxmodeltest.Model()["model.safetensors"][:700]}, errdefs.ErrInvalid, "model.safetensors is damaged"},
		{"LFS pointer", files{"model.safetensors": []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")}, errdefs.ErrInvalid, "git lfs pull"},
		{"empty weights", files{"model.safetensors": {}}, errdefs.ErrInvalid, "damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := inspect(t, with(tt.changes))
			if !errors.Is(err, tt.kind) {
				t.Fatalf("got %v, want kind %v", err, tt.kind)
			}
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %q, want it to say %q", err, tt.text)
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), os.TempDir()) {
				t.Errorf("%q spans lines or holds a path", err)
			}
		})
	}
}

func TestInspectAccepts(t *testing.T) {
	for name, changes := range map[string]files{
		"tokenizer.model only":       {"tokenizer.json": nil, "tokenizer.model": []byte("x")},
		"tokenizer code not needed":  {"tokenizer_config.json": []byte(`{"auto_map":{"AutoTokenizer":["tok.T",null]}}`)},
		"model code not needed":      {"config.json": []byte(`{"model_type":"deepseek_v3","auto_map":{"AutoConfig":"c.C"}}`), "c.py": []byte("x")},
		"Python's infinity":          {"config.json": []byte(`{"model_type":"mamba2","time_step_limit":[0.0, Infinity],"x":-Infinity,"y":NaN,"s":"NaN \" Infinity"}`)},
		"all shards":                 {"model.safetensors": nil, "model-00001-of-00002.safetensors": mlxmodeltest.Safetensors(nil), "model-00002-of-00002.safetensors": mlxmodeltest.Safetensors(nil)},
		"pickle beside safetensors":  {"pytorch_model.bin": []byte("x")},
		"values of unexpected types": {"config.json": []byte(`{"model_type":"x","hidden_size":"wide","max_position_embeddings":null,"quantization":7,"vision_config":[],"text_config":1}`)},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := inspect(t, with(changes)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	vision := mlxmodeltest.Safetensors(map[string]mlxmodeltest.Tensor{"vision_tower.weight": {DType: "F32", Shape: []uint64{1}}})
	template := func(s string) files { return files{"chat_template.jinja": []byte(s)} }
	for _, tt := range []struct {
		name    string
		changes files
		want    []model.Capability
	}{
		{"no template", files{"chat_template.jinja": nil}, []model.Capability{"completion"}},
		{"plain template", template("{{ messages }}"), []model.Capability{"completion"}},
		{"tools in prose only", template("use your tools {# tools #}{{ messages }}"), []model.Capability{"completion"}},
		{"tools", template("{%- if tools is defined %}x{% endif %}"), []model.Capability{"completion", "tools"}},
		{"thinking by marker", template("{{ c.split('</think>')[-1] }}"), []model.Capability{"completion", "thinking"}},
		{"thinking by variable", template("{%- if not thinking %}x{% endif %}"), []model.Capability{"completion", "thinking"}},
		{"thinking by effort", template("{{ reasoning_effort }}"), []model.Capability{"completion", "thinking"}},
		{"thinking in prose only", template("You are thinking. {{ messages }}"), []model.Capability{"completion"}},
		{"template in tokenizer_config", files{"chat_template.jinja": nil, "tokenizer_config.json": []byte(`{"chat_template":"{{ tools }}"}`)}, []model.Capability{"completion", "tools"}},
		{"named templates", files{"chat_template.jinja": nil, "tokenizer_config.json": []byte(`{"chat_template":[{"name":"default","template":"x"},{"name":"tool_use","template":"{{ tools }}"}]}`)}, []model.Capability{"completion", "tools"}},
		{"chat_template.json", files{"chat_template.jinja": nil, "chat_template.json": []byte(`{"chat_template":"{{ enable_thinking }}"}`)}, []model.Capability{"completion", "thinking"}},
		{"additional templates", files{"chat_template.jinja": nil, "additional_chat_templates/tool_use.jinja": []byte(`{{ tools }}`)}, []model.Capability{"completion", "tools"}},
		{"template coded in the engine", files{"chat_template.jinja": nil, "tokenizer_config.json": []byte(`{"chat_template_type":"deepseek_v32"}`)}, []model.Capability{"completion", "tools", "thinking"}},
		{"insert", files{"chat_template.jinja": nil, "tokenizer.json": []byte(`{"added_tokens":[{"content":"<|fim_prefix|>"},{"content":"<|fim_suffix|>"},{"content":"<|fim_middle|>"}]}`)}, []model.Capability{"completion", "insert"}},
		{"insert needs all three", files{"chat_template.jinja": nil, "tokenizer.json": []byte(`{"added_tokens":[{"content":"<|fim_prefix|>"},{"content":"<|fim_suffix|>"}]}`)}, []model.Capability{"completion"}},
		{"insert by decoder", files{"chat_template.jinja": nil, "tokenizer_config.json": []byte(`{"added_tokens_decoder":{"1":{"content":"[PREFIX]"},"2":{"content":"[SUFFIX]"},"3":{"content":"[MIDDLE]"}}}`)}, []model.Capability{"completion", "insert"}},
		{"vision", files{"chat_template.jinja": nil, "config.json": []byte(`{"model_type":"qwen3_vl","vision_config":{"depth":1}}`), "model.safetensors": vision, "preprocessor_config.json": []byte(`{}`)}, []model.Capability{"completion", "vision"}},
		{"vision without a processor", files{"chat_template.jinja": nil, "config.json": []byte(`{"model_type":"qwen3_vl","vision_config":{"depth":1}}`), "model.safetensors": vision}, []model.Capability{"completion"}},
		{"vision without its weights", files{"chat_template.jinja": nil, "config.json": []byte(`{"model_type":"qwen3_vl","vision_config":{"depth":1}}`), "processor_config.json": []byte(`{}`)}, []model.Capability{"completion"}},
		{"BERT", files{"config.json": []byte(`{"model_type":"bert"}`)}, []model.Capability{"embedding"}},
		{"XLM-R", files{"config.json": []byte(`{"model_type":"xlm-roberta"}`)}, []model.Capability{"embedding"}},
		{"sentence-transformers", files{"modules.json": []byte(`[]`), "1_Pooling/config.json": []byte(`{}`)}, []model.Capability{"embedding"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info, err := inspect(t, with(tt.changes))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(info.Capabilities, tt.want) {
				t.Errorf("got %v, want %v", info.Capabilities, tt.want)
			}
		})
	}
}

func TestNestedTextConfig(t *testing.T) {
	info, err := inspect(t, with(files{"config.json": []byte(`{"model_type":"gemma3","text_config":{"model_type":"gemma3_text","max_position_embeddings":131072,"hidden_size":2560,"num_hidden_layers":34}}`)}))
	if err != nil {
		t.Fatal(err)
	}
	m := info.ModelInfo()
	if info.ContextLength != 131072 || m["gemma3.embedding_length"] != 2560 || m["gemma3.block_count"] != 34 {
		t.Errorf("got context %d, %v", info.ContextLength, m)
	}
}

func TestParametersAndLevel(t *testing.T) {
	type tensors = map[string]mlxmodeltest.Tensor
	of := mlxmodeltest.Of
	for _, tt := range []struct {
		name    string
		config  string
		tensors tensors
		params  uint64
		level   string
	}{
		{"bfloat16", ``, tensors{"a.weight": of("BF16", 3, 4), "n": of("F32", 2)}, 14, "BF16"},
		{"float32", ``, tensors{"a.weight": of("F32", 3, 4)}, 12, "F32"},
		{"8 bits", `"quantization":{"group_size":64,"bits":8}`, tensors{"a.weight": of("U32", 2, 16), "a.scales": of("BF16", 2, 1), "a.biases": of("BF16", 2, 1)}, 128, "8-bit"},
		{"3 bits", `"quantization":{"group_size":32,"bits":3}`, tensors{"a.weight": of("U32", 2, 3), "a.scales": of("BF16", 2, 1)}, 64, "3-bit"},
		{"mixed bits", `"quantization":{"group_size":64,"bits":4,"b":{"group_size":64,"bits":8},"c":false}`,
			tensors{"a.weight": of("U32", 1, 8), "a.scales": of("BF16", 1), "b.weight": of("U32", 1, 16), "b.scales": of("BF16", 1), "c.weight": of("BF16", 7)}, 64 + 64 + 7, "mixed 4/8-bit"},
		{"a router with more bits", `"quantization":{"group_size":64,"bits":4,"b":{"group_size":64,"bits":8}}`,
			tensors{"a.weight": of("U32", 10, 8), "a.scales": of("BF16", 10), "b.weight": of("U32", 1, 16), "b.scales": of("BF16", 1)}, 640 + 64, "4-bit"},
		{"a recipe", `"quantization":{"group_size":64,"bits":2,"b":{"group_size":64,"bits":6},"a":{"group_size":64,"bits":2}}`,
			tensors{"a.weight": of("U32", 3, 4), "a.scales": of("BF16", 3), "b.weight": of("U32", 1, 12), "b.scales": of("BF16", 1)}, 192 + 64, "mixed 2/6-bit"},
		{"mxfp4", `"quantization":{"group_size":32,"bits":4,"mode":"mxfp4"}`, tensors{"a.weight": of("U32", 1, 4), "a.scales": of("U8", 1, 1)}, 32, "mxfp4"},
		{"nvfp4 with a global scale", `"quantization":{"group_size":16,"bits":4,"mode":"nvfp4"}`, tensors{"a.weight": of("U32", 1, 4), "a.scales": of("U8", 1, 2), "a.global_scale": of("F32", 1)}, 32, "nvfp4"},
		{"AWQ", `"quantization_config":{"quant_method":"awq","bits":4,"group_size":128}`, tensors{"a.qweight": of("I32", 8, 1), "a.qzeros": of("I32", 1, 1), "a.scales": of("F16", 1, 8)}, 64, "4-bit"},
		{"compressed-tensors", `"quantization_config":{"quant_method":"compressed-tensors","config_groups":{"group_0":{"weights":{"num_bits":8}}}}`, tensors{"a.weight_packed": of("I32", 2, 2), "a.weight_scale": of("BF16", 2, 1), "a.weight_shape": of("I32", 2)}, 16, "8-bit"},
		{"blocks", `"quantization_config":{"quant_method":"mxfp4"}`, tensors{"w_blocks": of("U8", 2, 16), "w_scales": of("U8", 2)}, 64, "mxfp4"},
		{"fp8", `"quantization_config":{"quant_method":"fp8"}`, tensors{"a.weight": of("U8", 4), "a.weight_scale_inv": of("F32", 1)}, 4, "fp8"},
		{"nonsense bits", `"quantization":{"bits":-4}`, tensors{"a.weight": of("F16", 4)}, 4, "F16"},
		{"an unrelated scale", ``, tensors{"ls.scales": of("F32", 5)}, 5, "F32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := `{"model_type":"x"}`
			if tt.config != "" {
				c = `{"model_type":"x",` + tt.config + `}`
			}
			info, err := inspect(t, with(files{"config.json": []byte(c), "model.safetensors": mlxmodeltest.Safetensors(tt.tensors)}))
			if err != nil {
				t.Fatal(err)
			}
			if info.Parameters != tt.params || info.Level() != tt.level {
				t.Errorf("got %d %q, want %d %q", info.Parameters, info.Level(), tt.params, tt.level)
			}
		})
	}
}

func TestSelect(t *testing.T) {
	take := []string{
		"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "added_tokens.json", "additional_chat_templates/rag.jinja",
		"chat_template.jinja", "chat_template.json", "config.json", "config_sentence_transformers.json", "generation_config.json", "merges.txt",
		"model-00001-of-00002.safetensors", "model.safetensors", "model.safetensors.index.json", "modules.json", "preprocessor_config.json",
		"processor_config.json", "qwen.tiktoken", "sentence_bert_config.json", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model",
		"tiktoken.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
	}
	skip := []string{
		"pytorch_model.bin", "model.pt", "consolidated.00.pth", "x.pkl", "training_args.bin", "modeling_x.py", "consolidated.safetensors",
		"adapters.safetensors", "adapter_config.json", "README.md", ".gitattributes", ".hidden.json", "onnx/model.onnx", "onnx/config.json",
		"original/consolidated.00.pth", "checkpoint-1/model.safetensors", "x/y/config.json", "model.gguf", "../config.json", "1_Pooling/x.py", "requirements.txt",
	}
	licenses := []string{"LICENSE", "LICENSE.txt", "LICENSE_GEMMA.md", "NOTICE"}
	s := mlxmodel.Select(slices.Concat(skip, take, licenses))
	if !slices.Equal(s.Licenses, licenses) {
		t.Errorf("got licenses %q", s.Licenses)
	}
	if !slices.Equal(s.Files, take) {
		t.Errorf("got %q\nwant %q", s.Files, take)
	}
	var skipped []string
	for _, f := range s.Skipped {
		skipped = append(skipped, f.Path)
		if f.Reason == "" {
			t.Errorf("%s is skipped without a reason", f.Path)
		}
	}
	if !slices.Equal(skipped, skip) {
		t.Errorf("got %q\nwant %q", skipped, skip)
	}
}

func TestIsModel(t *testing.T) {
	for _, tt := range []struct {
		paths []string
		want  bool
	}{
		{slices.Collect(maps.Keys(mlxmodeltest.Model())), true},
		{[]string{"config.json"}, false},
		{[]string{"model.safetensors"}, false},
		{[]string{"config.json", "x/model.safetensors"}, false},
		{nil, false},
	} {
		if got := mlxmodel.IsModel(tt.paths); got != tt.want {
			t.Errorf("%v: got %v", tt.paths, got)
		}
	}
}

// A downloaded directory must not make ollmlx read other files of the user.
func TestOpenDirKeepsLinksInside(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret.json")
	if err := os.WriteFile(secret, []byte(`{"model_type":"secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, link := range map[string]string{"absolute": secret, "parent": "../" + filepath.Base(filepath.Dir(secret)) + "/secret.json", "broken": "nowhere"} {
		t.Run(name, func(t *testing.T) {
			root := mlxmodeltest.Write(t, with(files{"config.json": nil}))
			if err := os.Symlink(link, filepath.Join(root, "config.json")); err != nil {
				t.Fatal(err)
			}
			dir, err := mlxmodel.OpenDir(root)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			_, err = mlxmodel.Inspect(dir)
			if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "config.json cannot be read") {
				t.Errorf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%q tells where the link leads", err)
			}
		})
	}
}

func TestOpenDirReadsHuggingFaceCache(t *testing.T) {
	repo := filepath.Join(t.TempDir(), "models--org--name")
	snapshot := filepath.Join(repo, "snapshots", "0123")
	for _, dir := range []string{snapshot, filepath.Join(repo, "blobs")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range mlxmodeltest.Model() {
		if err := os.WriteFile(filepath.Join(repo, "blobs", name), content, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../blobs/"+name, filepath.Join(snapshot, name)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := mlxmodel.OpenDir(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if info, err := mlxmodel.Inspect(dir); err != nil || info.ModelType != "qwen3" {
		t.Errorf("got %v, %v", info, err)
	}
}

func TestOpenDirRefuses(t *testing.T) {
	if _, err := mlxmodel.OpenDir(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	root := mlxmodeltest.Write(t, mlxmodeltest.Model())
	if err := os.Remove(filepath.Join(root, "config.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "config.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := mlxmodel.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, p := range []string{"config.json", "../x", "/etc/passwd", "absent"} {
		if _, err := dir.Open(p); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%s: got %v", p, err)
		}
	}
}
