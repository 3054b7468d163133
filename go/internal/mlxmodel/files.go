package mlxmodel

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// Selection divides the files that were offered into those that make up the model and the rest.
type Selection struct {
	// Files are the model's files, sorted.
	Files []string
	// Licenses are texts that belong to the model but are not needed to run it.
	Licenses []string
	// Skipped are the others, with the reason for each.
	Skipped []Skipped
}

// All returns everything that is taken.
func (s Selection) All() []string { return slices.Concat(s.Files, s.Licenses) }

// Skipped is a file that is not taken.
type Skipped struct {
	Path, Reason string
}

// The reasons say to a user what to do about a file that is left out.
const (
	reasonPickle   = "pickle files can run code when they are read; only safetensors are"
	reasonCode     = "model code is never executed"
	reasonAdapter  = "an adapter is not part of a model; name it with ADAPTER"
	reasonWeights  = "weights are read from model*.safetensors"
	reasonUnneeded = "not needed to run the model"
)

var (
	// moduleDir matches the directories in which sentence-transformers keeps the stages after the model itself.
	moduleDir   = regexp.MustCompile(`^[0-9]+_[A-Za-z]+$`)
	licenseName = regexp.MustCompile(`^(LICEN[SC]E|COPYING|NOTICE)([._-][A-Za-z0-9_-]+)?(\.txt|\.md)?$`)
	shardName   = regexp.MustCompile(`^(model.*)-([0-9]{5})-of-([0-9]{5})\.safetensors$`)

	pickleExts = []string{".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
	// tokenizerFiles are files that hold a vocabulary.
	tokenizerFiles = []string{"tokenizer.json", "tokenizer.model", "tiktoken.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "vocab.json", "vocab.txt"}
)

// Select decides which of the offered paths belong to a model. It looks at names only; Inspect looks inside.
func Select(paths []string) Selection {
	var s Selection
	for _, p := range paths {
		if licenseName.MatchString(p) {
			s.Licenses = append(s.Licenses, p)
			continue
		}
		if reason := skipReason(p); reason != "" {
			s.Skipped = append(s.Skipped, Skipped{p, reason})
			continue
		}
		s.Files = append(s.Files, p)
	}
	slices.Sort(s.Files)
	slices.Sort(s.Licenses)
	return s
}

// skipReason returns why a file is no part of a model, or "" if it is one.
func skipReason(p string) string {
	dir, base := path.Split(p)
	dir = strings.TrimSuffix(dir, "/")
	ext := path.Ext(base)
	switch {
	case strings.HasPrefix(base, "."):
		return reasonUnneeded
	case slices.Contains(pickleExts, ext):
		return reasonPickle
	case ext == ".py":
		return reasonCode
	case dir == "additional_chat_templates" && ext == ".jinja":
		return ""
	case moduleDir.MatchString(dir) && (base == "config.json" || base == "model.safetensors"):
		return ""
	case dir != "":
		return reasonUnneeded
	case base == "adapter_config.json", base == "adapters.safetensors", base == "adapter_model.safetensors":
		return reasonAdapter
	case ext == ".safetensors":
		if isWeights(p) {
			return ""
		}
		return reasonWeights
	case ext == ".json", ext == ".jinja", ext == ".tiktoken":
		return ""
	case base == "merges.txt", slices.Contains(tokenizerFiles, base):
		return ""
	default:
		return reasonUnneeded
	}
}

// IsPickle reports whether a file has the name of a format that can run code when it is read.
func IsPickle(p string) bool { return skipReason(p) == reasonPickle }

// isWeights reports whether the engine would read the file as part of the model's weights.
func isWeights(p string) bool {
	return strings.HasPrefix(p, "model") && path.Ext(p) == ".safetensors" && !strings.Contains(p, "/")
}

// IsModel reports whether the set of paths looks like a model in Hugging Face layout: the content rule by which
// the store tells MLX models from others.
func IsModel(paths []string) bool {
	return slices.Contains(paths, "config.json") && slices.ContainsFunc(paths, isWeights)
}

func hasTokenizer(paths []string) bool {
	return slices.ContainsFunc(paths, func(p string) bool {
		return slices.Contains(tokenizerFiles, p) || path.Ext(p) == ".tiktoken" && !strings.Contains(p, "/")
	})
}
