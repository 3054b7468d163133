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
// parses: with a TEMPLATE of its own, tools, insertion and thinking are that template's.
func capabilities(m *Model) []model.Capability {
	caps := []model.Capability{}
	for _, c := range m.Config.Capabilities {
		caps = append(caps, model.Capability(c))
	}
	family := strings.ToLower(m.Config.ModelFamily)
	if len(caps) == 0 && m.gguf != nil && !strings.Contains(family, "bert") {
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
	if m.Template == "" || slices.Contains(caps, model.CapabilityEmbedding) {
		return caps
	}
	t, err := prompt.Parse(m.Template)
	if err != nil {
		return caps // it was valid for whoever stored it; rendering tells the rest
	}
	for c, has := range map[model.Capability]bool{
		model.CapabilityTools:    t.Tools(),
		model.CapabilityInsert:   t.Inserts(),
		model.CapabilityThinking: t.Thinks() || family == "gptoss" || family == "gpt-oss",
	} {
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
