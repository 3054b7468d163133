package store

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/prompt"
)

// capabilities are what the configuration says, where it says anything: it was written from the files. Who renders,
// parses: with a TEMPLATE or RENDERER of its own, tools, insertion and thinking are that template's.
func capabilities(m *Model) []model.Capability {
	caps := []model.Capability{}
	for _, c := range m.Config.Capabilities {
		caps = append(caps, model.Capability(c))
	}
	family := strings.ToLower(m.Config.ModelFamily)
	if len(caps) == 0 && m.gguf != nil && (!strings.Contains(family, "bert") || m.gguf.Own("pooling_type") == poolingRank) {
		caps = m.gguf.capabilities()
	}
	if len(caps) == 0 && m.Format == FormatGGUF {
		// Ollama derives these from the GGUF and stores none.
		if strings.Contains(family, "bert") {
			return []model.Capability{model.CapabilityEmbedding}
		}
		caps = append(caps, model.CapabilityCompletion)
	}
	if m.layer(mediaProjector) != nil && !slices.Contains(caps, model.CapabilityVision) {
		caps = append(caps, model.CapabilityVision)
	}
	if slices.Contains(caps, model.CapabilityEmbedding) {
		return caps
	}
	form, err := prompt.New(m.Prompt())
	if err != nil || form == nil {
		return caps // a template was valid for whoever stored it; rendering tells the rest
	}
	own := map[model.Capability]bool{model.CapabilityTools: form.Tools(), model.CapabilityThinking: form.Thinks()}
	if t, err := prompt.Parse(m.Template); err == nil && m.Template != "" {
		// Without a template of its own, the tokenizer tells how to insert.
		own[model.CapabilityInsert] = t.Inserts()
	}
	for c, has := range own {
		caps = slices.DeleteFunc(caps, func(have model.Capability) bool { return have == c })
		if has {
			caps = append(caps, c)
		}
	}
	slices.SortStableFunc(caps, func(a, b model.Capability) int {
		return cmp.Compare(slices.Index(capabilityOrder, a), slices.Index(capabilityOrder, b))
	})
	return caps
}

// capabilityOrder is the order in which users read them.
var capabilityOrder = []model.Capability{
	model.CapabilityCompletion, model.CapabilityEmbedding, mlxmodel.CapabilityRerank, model.CapabilityTools, model.CapabilityInsert,
	model.CapabilityVision, model.CapabilityThinking,
}
