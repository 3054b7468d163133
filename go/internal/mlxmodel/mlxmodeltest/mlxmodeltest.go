// Package mlxmodeltest makes tiny models in Hugging Face layout for tests. Their weights are zeros: they can be stored
// and inspected like real ones, not run.
package mlxmodeltest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Tensor is the type and shape of a tensor.
type Tensor struct {
	DType string
	Shape []uint64
}

// Of returns a tensor of a type and shape.
func Of(dtype string, shape ...uint64) Tensor { return Tensor{DType: dtype, Shape: shape} }

// Safetensors returns a file that holds the tensors, all zeros.
func Safetensors(tensors map[string]Tensor) []byte {
	header := map[string]any{"__metadata__": map[string]string{"format": "mlx"}}
	var offset uint64
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		t := tensors[name]
		size := width(t.DType)
		for _, d := range t.Shape {
			size *= d
		}
		header[name] = map[string]any{"dtype": t.DType, "shape": t.Shape, "data_offsets": []uint64{offset, offset + size}}
		offset += size
	}
	h, err := json.Marshal(header)
	if err != nil {
		panic(err)
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(h)))
	return append(append(b, h...), make([]byte, offset)...)
}

func width(dtype string) uint64 {
	switch dtype {
	case "U8", "I8", "BOOL":
		return 1
	case "BF16", "F16":
		return 2
	case "U32", "I32", "F32":
		return 4
	default:
		panic(fmt.Sprintf("no width for %q", dtype))
	}
}

// Model returns the files of a small Qwen3-like model: 4-bit weights, a chat template with tools and thinking. Callers
// change what they like.
func Model() map[string][]byte {
	return map[string][]byte{
		"config.json": []byte(`{
  "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
  "max_position_embeddings": 4096, "rope_theta": 10000.0, "head_dim": 16,
  "quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}
}`),
		"model.safetensors": Safetensors(map[string]Tensor{
			"model.embed_tokens.weight": Of("U32", 100, 8),
			"model.embed_tokens.scales": Of("BF16", 100, 1),
			"model.embed_tokens.biases": Of("BF16", 100, 1),
			"model.norm.weight":         Of("BF16", 64),
		}),
		"tokenizer.json":         []byte(`{"version": "1.0", "added_tokens": [{"id": 0, "content": "<|im_start|>"}], "model": {"type": "BPE"}}`),
		"tokenizer_config.json":  []byte(`{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}`),
		"chat_template.jinja":    []byte("{%- if tools %}{{ tools | tojson }}{%- endif %}{%- if enable_thinking %}<think>{%- endif %}"),
		"generation_config.json": []byte(`{"temperature": 0.6}`),
	}
}

// Unquantized returns the files of Model with weights that are not packed.
func Unquantized() map[string][]byte {
	files := Model()
	config, _, _ := bytes.Cut(files["config.json"], []byte(",\n  \"quantization\""))
	files["config.json"] = append(config, '}')
	files["model.safetensors"] = Safetensors(map[string]Tensor{
		"model.embed_tokens.weight": Of("BF16", 100, 64), "model.norm.weight": Of("BF16", 64),
	})
	return files
}

// Adapter returns the files of a LoRA adapter of rank 2 for Model, in MLX form.
func Adapter() map[string][]byte {
	return map[string][]byte{
		"adapter_config.json": []byte(`{"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}`),
		"adapters.safetensors": Safetensors(map[string]Tensor{
			"model.layers.0.self_attn.q_proj.lora_a": Of("F32", 64, 2), "model.layers.0.self_attn.q_proj.lora_b": Of("F32", 2, 64),
		}),
	}
}

// PEFTAdapter returns the files of such an adapter in the form of PEFT.
func PEFTAdapter() map[string][]byte {
	const prefix = "base_model.model.model.layers.0.self_attn.q_proj."
	return map[string][]byte{
		"adapter_config.json":       []byte(`{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": false}`),
		"adapter_model.safetensors": Safetensors(map[string]Tensor{prefix + "lora_A.weight": Of("F32", 2, 64), prefix + "lora_B.weight": Of("F32", 64, 2)}),
	}
}

// Parameters is the number of parameters of Model.
const Parameters = 100*64 + 64

// Write writes files to a new directory and returns it.
func Write(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
