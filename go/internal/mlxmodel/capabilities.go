package mlxmodel

import (
	"encoding/json"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/safetensors"
)

// Bounds on the files that are read whole.
const (
	maxConfig    = 16 << 20
	maxTemplate  = 4 << 20
	maxTokenizer = 256 << 20
	maxIndex     = 64 << 20
)

var (
	jinjaComment = regexp.MustCompile(`(?s)\{#.*?#\}`)
	jinjaTag     = regexp.MustCompile(`(?s)\{[{%].*?[%}]\}`)

	toolsWord = regexp.MustCompile(`\btools\b`)
	// Templates show thinking by the markers they write or split at, or by the variables they ask for.
	thinkMarker = regexp.MustCompile(`</?(seed:)?think>|\[/?THINK\]|<\|(START|END)_THINKING\|>|◁/?think▷|</?(thought|reasoning)>|<\|(begin|end)_of_thought\|>`)
	thinkWord   = regexp.MustCompile(`\benable_thinking\b|\bthinking\b|\breasoning(_content|_effort)?\b`)
)

// fimTokens are the marks of fill-in-the-middle by which tokenizers differ: prefix, suffix, middle.
var fimTokens = [][3]string{
	{"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"},
	{"<fim_prefix>", "<fim_suffix>", "<fim_middle>"},
	{"<fim-prefix>", "<fim-suffix>", "<fim-middle>"},
	{"<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"},
	{"<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"},
	{"[PREFIX]", "[SUFFIX]", "[MIDDLE]"},
	{"▁<PRE>", "▁<SUF>", "▁<MID>"},
}

// capabilities derives what a model can do from its files.
func capabilities(src Source, files []string, c config, tokenizer config, tensors []safetensors.Tensor) ([]model.Capability, error) {
	rerank, err := isReranker(src, files, c)
	if err != nil {
		return nil, err
	}
	if rerank {
		return []model.Capability{CapabilityRerank}, nil
	}
	if isEmbedding(files, c) {
		// As in Ollama: what embeds does not complete, even where it could.
		return []model.Capability{model.CapabilityEmbedding}, nil
	}
	caps := []model.Capability{model.CapabilityCompletion}
	templates, err := chatTemplates(src, files, tokenizer)
	if err != nil {
		return nil, err
	}
	// A template that is written in Python (by the engine, not by the model) serves families that know both.
	coded := tokenizer.string("chat_template_type") != ""
	if coded || slices.ContainsFunc(templates, TemplateHasTools) {
		caps = append(caps, model.CapabilityTools)
	}
	fim, err := hasFIM(src, files, tokenizer)
	if err != nil {
		return nil, err
	}
	if fim {
		caps = append(caps, model.CapabilityInsert)
	}
	if hasVision(files, c, tensors) {
		caps = append(caps, model.CapabilityVision)
	}
	if coded || slices.ContainsFunc(templates, TemplateThinks) {
		caps = append(caps, model.CapabilityThinking)
	}
	return caps, nil
}

// processorFiles say how images become pixels; one of them is enough.
var processorFiles = []string{"preprocessor_config.json", "processor_config.json"}

// hasVision wants configuration, weights and processor to agree: text-only conversions of multimodal models keep the
// configuration and drop the weights, or the processor. The runner decides alike (mlx/vision/support.py).
func hasVision(files []string, c config, tensors []safetensors.Tensor) bool {
	if len(c.object("vision_config")) == 0 || !slices.ContainsFunc(processorFiles, func(f string) bool { return slices.Contains(files, f) }) {
		return false
	}
	return slices.ContainsFunc(tensors, func(t safetensors.Tensor) bool {
		return strings.Contains(t.Name, "vision") || strings.Contains(t.Name, "visual")
	})
}

// chatTemplates returns the model's chat templates from every place where they are kept.
func chatTemplates(src Source, files []string, tokenizer config) ([]string, error) {
	var templates []string
	for _, p := range files {
		if path.Ext(p) != ".jinja" {
			continue
		}
		b, err := readFile(src, p, maxTemplate)
		if err != nil {
			return nil, err
		}
		templates = append(templates, string(b))
	}
	templates = append(templates, templatesOf(tokenizer)...)
	if slices.Contains(files, "chat_template.json") {
		b, err := readFile(src, "chat_template.json", maxTemplate)
		if err != nil {
			return nil, err
		}
		c, err := parseConfig("chat_template.json", b)
		if err != nil {
			return nil, err
		}
		templates = append(templates, templatesOf(c)...)
	}
	return templates, nil
}

// templatesOf reads "chat_template", which is one template or a list of named ones.
func templatesOf(c config) []string {
	if s := c.string("chat_template"); s != "" {
		return []string{s}
	}
	var named []struct {
		Template string `json:"template"`
	}
	if json.Unmarshal(c["chat_template"], &named) != nil {
		return nil
	}
	var templates []string
	for _, n := range named {
		templates = append(templates, n.Template)
	}
	return templates
}

// TemplateHasTools reports whether a Jinja chat template shows tools to the model.
func TemplateHasTools(template string) bool {
	return slices.ContainsFunc(jinjaTags(template), toolsWord.MatchString)
}

// TemplateThinks reports whether a Jinja chat template knows reasoning.
func TemplateThinks(template string) bool {
	return thinkMarker.MatchString(jinjaComment.ReplaceAllString(template, "")) ||
		slices.ContainsFunc(jinjaTags(template), thinkWord.MatchString)
}

// jinjaTags returns the statements and expressions of a template, so that its prose and comments are not searched.
func jinjaTags(template string) []string {
	return jinjaTag.FindAllString(jinjaComment.ReplaceAllString(template, ""), -1)
}

// hasFIM looks for a whole set of fill-in-the-middle tokens among the tokenizer's added tokens and vocabulary marks.
func hasFIM(src Source, files []string, tokenizer config) (bool, error) {
	known := map[string]bool{}
	for _, raw := range tokenizer.object("added_tokens_decoder") {
		var t struct {
			Content string `json:"content"`
		}
		if json.Unmarshal(raw, &t) == nil {
			known[t.Content] = true
		}
	}
	if Infills(known) {
		return true, nil
	}
	if slices.Contains(files, "tokenizer.json") {
		b, err := readFile(src, "tokenizer.json", maxTokenizer)
		if err != nil {
			return false, err
		}
		var t struct {
			Added []struct {
				Content string `json:"content"`
			} `json:"added_tokens"`
		}
		if err := json.Unmarshal(b, &t); err != nil {
			return false, notJSON("tokenizer.json", err)
		}
		for _, a := range t.Added {
			known[a.Content] = true
		}
	}
	return Infills(known), nil
}

// IsInfillToken reports whether a token is one of those that Infills looks for.
func IsInfillToken(token string) bool {
	return slices.ContainsFunc(fimTokens, func(t [3]string) bool { return slices.Contains(t[:], token) })
}

// Infills reports whether a vocabulary has a whole set of fill-in-the-middle tokens.
func Infills(known map[string]bool) bool {
	return slices.ContainsFunc(fimTokens, func(t [3]string) bool {
		return known[t[0]] && known[t[1]] && known[t[2]]
	})
}
