package mlxmodel

import (
	"encoding/json"
	"slices"
	"strings"
)

// KVCache is the size of a model's KV caches, in numbers of whatever type the model computes with.
type KVCache struct {
	// PerToken is what each token of a request adds: zero for state-space models.
	PerToken uint64
	// Window is what layers with a sliding window hold of one request once the window is full.
	Window uint64
}

// KVCache estimates the KV caches from the configuration: which layers keep one, and how wide it is. What it does not
// know it takes for plain attention in every layer, which is the most there can be.
func (i *Info) KVCache() KVCache {
	text := i.config.text()
	if slices.Contains(i.Capabilities, "embedding") || stateSpace(i.ModelType) {
		return KVCache{}
	}
	full, sliding := attentionLayers(text)
	width := kvWidth(i.ModelType, text)
	window := text.count("sliding_window", "sliding_window_size", "attention_chunk_size")
	return KVCache{PerToken: uint64(full) * width, Window: uint64(sliding) * uint64(window) * width}
}

// stateSpace reports whether an architecture has no attention at all.
func stateSpace(modelType string) bool {
	return slices.ContainsFunc([]string{"mamba", "rwkv", "falcon_mamba"}, func(prefix string) bool {
		return strings.HasPrefix(modelType, prefix)
	})
}

// kvWidth is how many numbers one layer keeps for one token.
func kvWidth(modelType string, text config) uint64 {
	heads := text.count("num_attention_heads", "n_head", "n_heads", "num_heads")
	kvHeads := text.count("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num")
	if kvHeads == 0 {
		kvHeads = heads
	}
	headDim := text.count("head_dim", "attention_head_dim", "kv_channels")
	if headDim == 0 && heads > 0 {
		headDim = text.count("hidden_size", "n_embd", "d_model", "hidden_dim", "dim") / heads
	}
	rank, rope := text.count("kv_lora_rank"), text.count("qk_rope_head_dim")
	switch {
	case rank > 0 && (modelType == "deepseek_v2" || modelType == "minicpm3"):
		// Latent attention whose cache holds what the latent form unpacks to.
		return uint64(heads) * uint64(text.count("qk_nope_head_dim")+rope+text.count("v_head_dim"))
	case rank > 0:
		return uint64(rank + rope)
	}
	return 2 * uint64(kvHeads) * uint64(headDim)
}

// attentionLayers counts the layers that keep all tokens and those that keep a window of them.
func attentionLayers(text config) (full, sliding int) {
	layers := text.count("num_hidden_layers", "n_layer", "n_layers", "num_layers")
	shared := text.count("num_kv_reuse_layers", "num_kv_shared_layers")
	var kinds []string
	var indexes []int
	switch every := func(keys ...string) int { return text.count(keys...) }; {
	case text.list("layer_types", &kinds) && len(kinds) > 0, text.list("layers_block_type", &kinds) && len(kinds) > 0:
		for _, kind := range kinds[:max(len(kinds)-shared, 0)] {
			switch kind {
			case "full_attention", "attention", "hybrid":
				full++
			case "sliding_attention", "chunked_attention":
				sliding++
			}
		}
		return full, sliding
	case strings.Trim(text.string("hybrid_override_pattern"), "M*-E|") == "" && text.has("hybrid_override_pattern"):
		return strings.Count(text.string("hybrid_override_pattern"), "*"), 0
	case text.list("full_attn_idxs", &indexes):
		return len(indexes), 0
	case every("full_attention_interval", "attn_layer_period") > 0:
		return layers / every("full_attention_interval", "attn_layer_period"), 0
	case every("sliding_window_pattern") > 0:
		full = layers / every("sliding_window_pattern")
		return full, layers - full
	case every("attention_chunk_size") > 0:
		// Every fourth layer of llama4 sees everything.
		return layers / 4, layers - layers/4
	}
	return layers - shared, 0
}

// list decodes an array, and tells whether there is one.
func (c config) list(key string, into any) bool {
	return c.has(key) && json.Unmarshal(c[key], into) == nil
}

// WideBytes is what the weights take when all are float32 and none is packed.
func (i *Info) WideBytes() uint64 { return i.Parameters * 4 }

// ScaledBytes is what packed weights take with their scales, and all else that is not packed, made float32, and
// WeightBytes for a model that is not quantized.
func (i *Info) ScaledBytes() uint64 {
	if i.Quantization == nil {
		return i.WeightBytes
	}
	total := i.WeightBytes
	for _, t := range i.Tensors {
		if t.DType == "F16" || t.DType == "BF16" {
			total += t.Size()
		}
	}
	return total
}

// ComputeBytes is the size of the numbers that the model computes with as stored.
func (i *Info) ComputeBytes() uint64 {
	for _, t := range i.Tensors {
		switch t.DType {
		case "F16", "BF16":
			return 2
		}
	}
	return 4
}
