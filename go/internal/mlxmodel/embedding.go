package mlxmodel

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
)

// Files in which sentence-transformers keeps how a model's embeddings are made.
const (
	modulesFile  = "modules.json"
	poolingFile  = "1_Pooling/config.json"
	sentenceFile = "sentence_bert_config.json"
)

// isEmbedding reports whether a model was made for embeddings: by its architecture, or because its files say how.
func isEmbedding(files []string, c config) bool {
	if slices.Contains(files, modulesFile) || slices.Contains(files, poolingFile) {
		return true
	}
	kind := strings.ToLower(c.string("model_type"))
	return strings.Contains(kind, "bert") || strings.Contains(kind, "roberta") || kind == "mpnet"
}

// describeEmbedding corrects what is different for models that embed: which inputs they take, how wide their vectors are.
func (i *Info) describeEmbedding(src Source) error {
	if i.ContextLength -= unusedPositions(i.config); i.ContextLength < 0 {
		i.ContextLength = 0
	}
	if n := i.config.count("max_trained_positions"); n > 0 {
		i.ContextLength = min(i.ContextLength, n)
	}
	if slices.Contains(i.Files, sentenceFile) {
		c, err := readObject(src, sentenceFile)
		if err != nil {
			return err
		}
		if n := c.count("max_seq_length"); n > 0 && (i.ContextLength == 0 || n < i.ContextLength) {
			i.ContextLength = n
		}
	}
	return i.readModules(src)
}

// unusedPositions counts the first rows of a table of positions that no token has: the families of RoBERTa begin after
// the number of their padding token.
func unusedPositions(c config) int {
	switch c.string("model_type") {
	case "mpnet":
		return 2
	case "roberta", "xlm-roberta", "camembert":
		if !c.has("pad_token_id") {
			return 2
		}
		return c.count("pad_token_id") + 1
	}
	return 0
}

// readModules looks for linear layers after the model, which change the width of its vectors.
func (i *Info) readModules(src Source) error {
	if !slices.Contains(i.Files, modulesFile) {
		return nil
	}
	raw, err := readFile(src, modulesFile, maxConfig)
	if err != nil {
		return err
	}
	var modules []struct{ Type, Path string }
	if err := json.Unmarshal(raw, &modules); err != nil {
		return notJSON(modulesFile, err)
	}
	for _, m := range modules {
		file := path.Join(m.Path, "config.json")
		if !strings.HasSuffix(m.Type, ".Dense") || !slices.Contains(i.Files, file) {
			continue
		}
		c, err := readObject(src, file)
		if err != nil {
			return err
		}
		if n := c.count("out_features"); n > 0 {
			i.EmbeddingLength = n
		}
	}
	return nil
}

func readObject(src Source, file string) (config, error) {
	raw, err := readFile(src, file, maxConfig)
	if err != nil {
		return nil, err
	}
	return parseConfig(file, raw)
}
