package mlxmodel_test

import (
	"strings"
	"testing"

	"github.com/ollama/ollama/types/model"
)

func TestEmbeddingModels(t *testing.T) {
	const pooling = `{"pooling_mode_mean_tokens":true}`
	tests := []struct {
		name          string
		files         files
		context, wide int
	}{
		{"positions of bert", files{"config.json": []byte(`{"model_type":"bert","max_position_embeddings":512,"hidden_size":384}`)}, 512, 384},
		{"roberta begins after the padding token", files{"config.json": []byte(`{"model_type":"roberta","max_position_embeddings":514,"pad_token_id":1,"hidden_size":8}`)}, 512, 8},
		{"a padding token of number 0", files{"config.json": []byte(`{"model_type":"xlm-roberta","max_position_embeddings":514,"pad_token_id":0,"hidden_size":8}`)}, 513, 8},
		{"no word on the padding token", files{"config.json": []byte(`{"model_type":"xlm-roberta","max_position_embeddings":514,"hidden_size":8}`)}, 512, 8},
		{"mpnet", files{"config.json": []byte(`{"model_type":"mpnet","max_position_embeddings":514,"hidden_size":8}`)}, 512, 8},
		{"fewer positions than the padding token's number", files{"config.json": []byte(`{"model_type":"roberta","max_position_embeddings":1,"pad_token_id":7,"hidden_size":8}`)}, 0, 8},
		{"trained positions", files{"config.json": []byte(`{"model_type":"nomic_bert","n_positions":8192,"max_trained_positions":2048,"n_embd":8}`)}, 2048, 8},
		{"a shorter wish", files{
			"config.json":               []byte(`{"model_type":"bert","max_position_embeddings":512,"hidden_size":384}`),
			"sentence_bert_config.json": []byte(`{"max_seq_length":256}`),
		}, 256, 384},
		{"a longer wish", files{
			"config.json":               []byte(`{"model_type":"bert","max_position_embeddings":512,"hidden_size":384}`),
			"sentence_bert_config.json": []byte(`{"max_seq_length":9999}`),
		}, 512, 384},
		{"no wish", files{
			"config.json":               []byte(`{"model_type":"bert","max_position_embeddings":512,"hidden_size":384}`),
			"sentence_bert_config.json": []byte(`{"max_seq_length":null}`),
		}, 512, 384},
		{"a linear layer after the pooling", files{
			"config.json":           []byte(`{"model_type":"bert","max_position_embeddings":512,"hidden_size":384}`),
			"modules.json":          []byte(`[{"type":"a.Transformer","path":""},{"type":"a.Pooling","path":"1_Pooling"},{"type":"a.Dense","path":"2_Dense"}]`),
			"1_Pooling/config.json": []byte(pooling),
			"2_Dense/config.json":   []byte(`{"out_features":96}`),
		}, 512, 96},
		{"a decoder", files{
			"config.json":           []byte(`{"model_type":"qwen3","max_position_embeddings":4096,"hidden_size":64}`),
			"1_Pooling/config.json": []byte(pooling),
		}, 4096, 64},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info, err := inspect(t, with(tt.files))
			if err != nil {
				t.Fatal(err)
			}
			if info.ContextLength != tt.context || info.EmbeddingLength != tt.wide {
				t.Errorf("got context %d, width %d, want %d, %d", info.ContextLength, info.EmbeddingLength, tt.context, tt.wide)
			}
			if len(info.Capabilities) != 1 || info.Capabilities[0] != "embedding" {
				t.Errorf("got capabilities %v, want embedding only", info.Capabilities)
			}
		})
	}
}

func TestRerankers(t *testing.T) {
	const logits = `[{"type":"a.Transformer","path":""},{"type":"a.LogitScore","path":"1_LogitScore"}]`
	tests := []struct {
		name  string
		files files
		want  model.Capability
	}{
		{"one label", files{"config.json": []byte(`{"model_type":"xlm-roberta","architectures":["XLMRobertaForSequenceClassification"],"id2label":{"0":"LABEL_0"}}`)}, "rerank"},
		{"a number of labels", files{"config.json": []byte(`{"model_type":"modernbert","architectures":["ModernBertForSequenceClassification"],"num_labels":1}`)}, "rerank"},
		{"two labels", files{"config.json": []byte(`{"model_type":"bert","architectures":["BertForSequenceClassification"],"id2label":{"0":"A","1":"B"}}`)}, "embedding"},
		{"no classifier", files{"config.json": []byte(`{"model_type":"bert","architectures":["BertModel"],"id2label":{"0":"LABEL_0"}}`)}, "embedding"},
		{"a decoder that is asked yes or no", files{"config.json": []byte(`{"model_type":"qwen3","architectures":["Qwen3ForCausalLM"]}`), "modules.json": []byte(logits)}, "rerank"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info, err := inspect(t, with(tt.files))
			if err != nil {
				t.Fatal(err)
			}
			if len(info.Capabilities) != 1 || info.Capabilities[0] != tt.want {
				t.Errorf("got capabilities %v, want %s only", info.Capabilities, tt.want)
			}
		})
	}
}

func TestEmbeddingModelsWithBrokenFiles(t *testing.T) {
	for _, broken := range []files{
		{"modules.json": []byte(`{"a":1}`)},
		{"modules.json": []byte(`[`)},
		{"modules.json": []byte(`[]`), "sentence_bert_config.json": []byte(`[]`)},
		{"modules.json": []byte(`[{"type":"a.Dense","path":"2_Dense"}]`), "2_Dense/config.json": []byte(`?`)},
	} {
		if _, err := inspect(t, with(broken)); err == nil || !strings.Contains(err.Error(), "JSON") {
			t.Errorf("got %v, want an error about JSON", err)
		}
	}
}
