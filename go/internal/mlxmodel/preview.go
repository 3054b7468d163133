package mlxmodel

import "slices"

// Needed are the files that Preview reads where they exist.
var Needed = []string{"config.json", "tokenizer_config.json", indexFile}

// Preview is what a model's small files say before its weights are here.
type Preview struct {
	Selection
	// ModelType and Architectures are those of config.json.
	ModelType     string
	Architectures []string
	// OwnCode means that config.json names code of the model's own, which is needed if the engine does not know the type.
	OwnCode bool
}

// Look decides from names and the files of Needed whether a model could work. src lists all files and need open those
// only. It refuses what Inspect would refuse, as far as it sees it.
func Look(src Source) (*Preview, error) {
	p := &Preview{Selection: Select(src.Paths())}
	c, err := readConfig(src, p.Selection)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(p.Files, isWeights) {
		return nil, noWeights(p.Selection)
	}
	if _, err := readTokenizerConfig(src, p.Files); err != nil {
		return nil, err
	}
	if err := checkShards(src, p.Files); err != nil {
		return nil, err
	}
	p.ModelType = c.string("model_type")
	p.Architectures = c.strings("architectures")
	p.OwnCode = c.object("auto_map").has("AutoModelForCausalLM") || c.object("auto_map").has("AutoModel")
	return p, nil
}
