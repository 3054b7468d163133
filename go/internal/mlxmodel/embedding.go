package mlxmodel

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"github.com/ollama/ollama/types/model"
)

// Files in which sentence-transformers keeps how a model's embeddings are made.
const (
	modulesFile  = "modules.json"
	poolingFile  = "1_Pooling/config.json"
	sentenceFile = "sentence_bert_config.json"
)

// CapabilityRerank is that of models which score documents for a query. Ollama has no name for it.
const CapabilityRerank = model.Capability("rerank")

// isReranker reports whether a model was made to score documents for a query: an encoder with a classifier of one label,
// or a model whose sentence-transformers files make a score of the logits.
func isReranker(src Source, files []string, c config) (bool, error) {
	modules, err := readModuleList(src, files)
	if err != nil {
		return false, err
	}
	for _, m := range modules {
		if strings.HasSuffix(m.Type, ".LogitScore") {
			return true, nil
		}
	}
	labels := c.count("num_labels")
	if labels == 0 {
		labels = len(c.object("id2label"))
	}
	classifies := slices.ContainsFunc(c.strings("architectures"), func(a string) bool {
		return strings.HasSuffix(a, "ForSequenceClassification")
	})
	return classifies && labels == 1 && isEncoder(c), nil
}

// isEncoder reports whether a model's architecture is one that sees its whole input at once.
func isEncoder(c config) bool {
	kind := strings.ToLower(c.string("model_type"))
	return strings.Contains(kind, "bert") || strings.Contains(kind, "roberta") || kind == "mpnet"
}

// isEmbedding reports whether a model was made for embeddings: by its architecture, or because its files say how.
func isEmbedding(files []string, c config) bool {
	if slices.Contains(files, modulesFile) || slices.Contains(files, poolingFile) {
		return true
	}
	return isEncoder(c)
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
	modules, err := readModuleList(src, i.Files)
	if err != nil {
		return err
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

type module struct{ Type, Path string }

// readModuleList returns the stages that a model's sentence-transformers files list, none without such files.
func readModuleList(src Source, files []string) ([]module, error) {
	if !slices.Contains(files, modulesFile) {
		return nil, nil
	}
	raw, err := readFile(src, modulesFile, maxConfig)
	if err != nil {
		return nil, err
	}
	var modules []module
	if err := json.Unmarshal(raw, &modules); err != nil {
		return nil, notJSON(modulesFile, err)
	}
	return modules, nil
}

func readObject(src Source, file string) (config, error) {
	raw, err := readFile(src, file, maxConfig)
	if err != nil {
		return nil, err
	}
	return parseConfig(file, raw)
}
