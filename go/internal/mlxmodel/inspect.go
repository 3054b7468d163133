package mlxmodel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/safetensors"
)

// Info is what a model's files say about it.
type Info struct {
	Selection
	// ModelType is the architecture as config.json calls it, for example "qwen3".
	ModelType string
	// ContextLength is the longest context the model was made for, 0 if it does not say.
	ContextLength int
	// EmbeddingLength is the width of the hidden state.
	EmbeddingLength int
	// Quantization is nil for a model that is not quantized.
	Quantization *Quantization
	// DType is the type of most bytes of the weights, for example "BF16".
	DType string
	// Parameters counts packed weights as what they unpack to.
	Parameters uint64
	// WeightBytes is what the weights take as stored.
	WeightBytes  uint64
	Capabilities []model.Capability
	// Tensors are sorted by name.
	Tensors []safetensors.Tensor

	config config
}

// Level returns the quantization level that users read: see Quantization.Label; the type of the weights otherwise.
func (i *Info) Level() string {
	if i.Quantization != nil {
		return i.Quantization.Label()
	}
	return i.DType
}

// Inspect reads a model and decides whether it can work. An error of kind ErrInvalid or ErrUnsupported says in one line
// what is wrong with the model.
func Inspect(src Source) (*Info, error) {
	info, err := Describe(src)
	if err != nil {
		return nil, err
	}
	tokenizer, err := readTokenizerConfig(src, info.Files)
	if err != nil {
		return nil, err
	}
	if info.Capabilities, err = capabilities(src, info.Files, info.config, tokenizer, info.Tensors); err != nil {
		return nil, err
	}
	return info, nil
}

// Describe is Inspect without the tokenizer, which takes most of the time: Info.Capabilities stays empty.
func Describe(src Source) (*Info, error) {
	info := &Info{Selection: Select(src.Paths())}
	var err error
	if info.config, err = readConfig(src, info.Selection); err != nil {
		return nil, err
	}
	if info.Tensors, err = readWeights(src, info.Selection); err != nil {
		return nil, err
	}
	for _, t := range info.Tensors {
		info.WeightBytes += t.Size()
	}
	info.ModelType = info.config.string("model_type")
	if info.Quantization = parseQuantization(info.config); info.Quantization != nil {
		info.Quantization.measure(info.Tensors)
	}
	info.DType = dominantType(info.Tensors)
	info.Parameters = countParameters(info.Tensors, info.Quantization)
	info.ContextLength = contextLength(info.config)
	info.EmbeddingLength = info.config.text().count("hidden_size", "n_embd", "d_model", "dim")
	if isEmbedding(info.Files, info.config) {
		return info, info.describeEmbedding(src)
	}
	return info, nil
}

func contextLength(c config) int {
	keys := []string{"max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length", "n_ctx", "model_max_length"}
	if n := c.text().count(keys...); n > 0 {
		return n
	}
	return c.count(keys...)
}

func readConfig(src Source, s Selection) (config, error) {
	if !slices.Contains(s.Files, "config.json") {
		if slices.ContainsFunc(s.Skipped, func(f Skipped) bool { return f.Reason == reasonAdapter }) {
			return nil, invalid("this is an adapter and no model (there is no config.json): name it with ADAPTER, and its base model with FROM")
		}
		if !slices.ContainsFunc(s.Files, isWeights) && slices.ContainsFunc(s.Skipped, func(f Skipped) bool { return f.Reason == reasonPickle }) {
			return nil, noWeights(s)
		}
		return nil, invalid("config.json is missing: this is no model in Hugging Face layout")
	}
	raw, err := readFile(src, "config.json", maxConfig)
	if err != nil {
		return nil, err
	}
	c, err := parseConfig("config.json", raw)
	if err != nil {
		return nil, err
	}
	if file := c.string("model_file"); file != "" {
		return nil, needsCode("config.json", file)
	}
	if kind := c.string("model_type"); !modelTypeSyntax.MatchString(kind) {
		return nil, invalid("config.json has no usable model_type (%q)", kind)
	}
	return c, nil
}

// readTokenizerConfig returns tokenizer_config.json, empty if there is none, and checks that there is a vocabulary.
func readTokenizerConfig(src Source, files []string) (config, error) {
	c := config{}
	if slices.Contains(files, "tokenizer_config.json") {
		raw, err := readFile(src, "tokenizer_config.json", maxConfig)
		if err != nil {
			return nil, err
		}
		if c, err = parseConfig("tokenizer_config.json", raw); err != nil {
			return nil, err
		}
	}
	// A tokenizer in Python is only needed where none of the known forms is there.
	if !slices.Contains(files, "tokenizer.json") && c.object("auto_map").has("AutoTokenizer") {
		return nil, needsCode("tokenizer_config.json", "its own tokenizer module")
	}
	if !hasTokenizer(files) {
		return nil, invalid("there is no tokenizer (tokenizer.json or tokenizer.model)")
	}
	return c, nil
}

// readWeights reads the headers of all weights, after checking that all files are there.
func readWeights(src Source, s Selection) ([]safetensors.Tensor, error) {
	var weights []string
	for _, p := range s.Files {
		if strings.HasSuffix(p, ".safetensors") {
			weights = append(weights, p)
		}
	}
	if !slices.ContainsFunc(weights, isWeights) {
		return nil, noWeights(s)
	}
	if err := checkShards(src, s.Files); err != nil {
		return nil, err
	}
	var tensors []safetensors.Tensor
	for _, p := range weights {
		h, err := readHeader(src, p)
		if err != nil {
			return nil, err
		}
		tensors = append(tensors, h.Tensors...)
	}
	slices.SortStableFunc(tensors, func(a, b safetensors.Tensor) int { return strings.Compare(a.Name, b.Name) })
	return tensors, nil
}

func noWeights(s Selection) error {
	for _, f := range s.Skipped {
		switch f.Reason {
		case reasonPickle:
			return invalid("there are only pickle weights (%s): %s, so convert the model first, for example with mlx_lm.convert", f.Path, f.Reason)
		case reasonWeights:
			return invalid("there is no model*.safetensors, only %s, which MLX does not read", f.Path)
		}
	}
	return invalid("there are no weights (model*.safetensors)")
}

// indexFile tells in which file each tensor is.
const indexFile = "model.safetensors.index.json"

// checkShards compares the files with the index and with the counts in their own names.
func checkShards(src Source, files []string) error {
	want := map[string]bool{}
	if slices.Contains(files, indexFile) {
		raw, err := readFile(src, indexFile, maxIndex)
		if err != nil {
			return err
		}
		var i struct {
			Map map[string]string `json:"weight_map"`
		}
		if err := json.Unmarshal(raw, &i); err != nil {
			return notJSON(indexFile, err)
		}
		for _, shard := range i.Map {
			want[shard] = true
		}
	}
	var series []string
	for _, p := range files {
		m := shardName.FindStringSubmatch(p)
		if m == nil || slices.Contains(series, m[1]+m[3]) {
			continue
		}
		series = append(series, m[1]+m[3])
		last, _ := strconv.Atoi(m[3])
		for n := 1; n <= last; n++ {
			want[fmt.Sprintf("%s-%05d-of-%s.safetensors", m[1], n, m[3])] = true
		}
	}
	for _, p := range files {
		delete(want, p)
	}
	if len(want) == 0 {
		return nil
	}
	text := fmt.Sprintf("%.100s", slices.Min(slices.Collect(maps.Keys(want))))
	if len(want) > 1 {
		text += fmt.Sprintf(" and %d more", len(want)-1)
	}
	return invalid("the model is incomplete: %s is missing", text)
}

func readHeader(src Source, path string) (*safetensors.Header, error) {
	f, err := src.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	h, err := safetensors.ReadHeader(f, st.Size())
	if err == nil {
		return h, nil
	}
	var start [8]byte
	if n, _ := f.ReadAt(start[:], 0); bytes.HasPrefix(start[:n], []byte("version ")) {
		return nil, invalid("%s is a Git LFS pointer and not the file itself: run git lfs pull", path)
	}
	if errors.Is(err, errdefs.ErrInvalid) {
		return nil, invalid("%s is damaged: %w", path, err)
	}
	return nil, fmt.Errorf("reading %s: %w", path, err)
}

// ModelInfo returns the model_info of Ollama's show response, in the vocabulary of GGUF keys.
func (i *Info) ModelInfo() map[string]any {
	m := map[string]any{
		"general.architecture":    i.ModelType,
		"general.parameter_count": i.Parameters,
	}
	text := i.config.text()
	set := func(key string, value int) {
		if value > 0 {
			m[i.ModelType+"."+key] = value
		}
	}
	set("context_length", i.ContextLength)
	set("embedding_length", i.EmbeddingLength)
	set("block_count", text.count("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
	set("attention.head_count", text.count("num_attention_heads", "n_head", "n_heads"))
	set("attention.head_count_kv", text.count("num_key_value_heads", "num_kv_heads", "n_kv_heads"))
	set("attention.key_length", text.count("head_dim"))
	set("attention.sliding_window", text.count("sliding_window"))
	set("feed_forward_length", text.count("intermediate_size", "n_inner", "ffn_hidden_size"))
	set("vocab_size", text.count("vocab_size"))
	set("expert_count", text.count("num_experts", "n_routed_experts", "num_local_experts"))
	set("expert_used_count", text.count("num_experts_per_tok"))
	if f := text.number("rope_theta"); f > 0 {
		m[i.ModelType+".rope.freq_base"] = f
	}
	if q := i.Quantization; q != nil {
		m["general.quantization_bits"] = q.Bits
		if q.GroupSize > 0 {
			m["general.quantization_group_size"] = q.GroupSize
		}
		if mode := q.Mode; mode != "" {
			m["general.quantization_mode"] = mode
		}
	}
	return m
}

func needsCode(where, what string) error {
	return errdefs.New(errdefs.ErrUnsupported, "this model needs code of its own (%s asks for %.100s): model code is never executed", where, what)
}

func notJSON(path string, err error) error { return invalid("%s is no valid JSON: %v", path, err) }

func invalid(format string, args ...any) error {
	return errdefs.New(errdefs.ErrInvalid, format, args...)
}
