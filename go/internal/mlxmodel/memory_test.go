package mlxmodel

import "testing"

// The sizes are those of the caches that mlx-lm 0.32.2 makes for these configurations.
func TestKVCache(t *testing.T) {
	const dense = `"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16`
	for _, tt := range []struct {
		name, config     string
		perToken, window uint64
	}{
		{"llama", dense, 128, 0},
		{"without head_dim", `"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2`, 128, 0},
		{"without kv heads", `"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4`, 256, 0},
		{"gemma3_text", dense + `, "sliding_window": 32, "sliding_window_pattern": 2`, 64, 32 * 64},
		{"gpt_oss", dense + `, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]`, 64, 32 * 64},
		{"deepseek_v2", dense + `, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16`, 320, 0},
		{"deepseek_v3", dense + `, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16`, 48, 0},
		{"afm7", `"hidden_dim": 64, "num_layers": 3, "num_kv_reuse_layers": 1, "num_heads": 4, "num_kv_heads": 2`, 128, 0},
		{"llama4", `"text_config": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "attention_chunk_size": 64}`, 64, 3 * 64 * 64},
		{"mamba", dense, 0, 0},
		{"lfm2", dense + `, "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]`, 64, 0},
		{"qwen3_next", dense + `, "full_attention_interval": 2`, 64, 0},
		{"nemotron_h", dense + `, "hybrid_override_pattern": "M-*-"`, 64, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseConfig("config.json", []byte("{"+tt.config+"}"))
			if err != nil {
				t.Fatal(err)
			}
			got := (&Info{ModelType: tt.name, config: c}).KVCache()
			if got.PerToken != tt.perToken || got.Window != tt.window {
				t.Errorf("got %+v, want %d and %d", got, tt.perToken, tt.window)
			}
		})
	}
}
