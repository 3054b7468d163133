package mlxmodel

import (
	"encoding/json"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// Files of a LoRA adapter: as mlx-lm writes it, and the weights as PEFT does.
const (
	AdapterConfig      = "adapter_config.json"
	AdapterWeights     = "adapters.safetensors"
	AdapterPEFTWeights = "adapter_model.safetensors"
)

// maxRank is far above what is trained; the rank decides what a runner allocates.
const maxRank = 1024

// Adapter is what the files of a LoRA or DoRA adapter say about it.
type Adapter struct {
	// Files are those that make up the adapter.
	Files []string
	// Skipped are the others.
	Skipped []Skipped
	// PEFT: it is in the form of PEFT, which the engine does not take as it is.
	PEFT bool
	// Type is "lora" or "dora".
	Type string
	Rank int
	// Scale is what its product is multiplied with; 0 where the form does not say it so.
	Scale float64
}

// InspectAdapter reads an adapter and refuses, with errors of kind ErrInvalid or ErrUnsupported, what is none. Whether it
// fits a model is the engine's to say.
func InspectAdapter(src Source) (*Adapter, error) {
	a := &Adapter{}
	for _, p := range src.Paths() {
		switch {
		case path.Ext(p) == ".gguf":
			return nil, errdefs.New(errdefs.ErrUnsupported, "%s: adapters in GGUF form do not go with MLX models", p)
		case p == AdapterConfig, p == AdapterWeights, p == AdapterPEFTWeights:
			a.Files = append(a.Files, p)
		case path.Ext(p) == ".safetensors":
			a.Skipped = append(a.Skipped, Skipped{p, "an adapter's weights are read from " + AdapterWeights})
		default:
			a.Skipped = append(a.Skipped, Skipped{p, "not needed to use the adapter"})
		}
	}
	weights := AdapterWeights
	switch {
	case !slices.Contains(a.Files, AdapterConfig):
		return nil, invalid("the adapter has no %s", AdapterConfig)
	case slices.Contains(a.Files, AdapterWeights):
		a.Files = slices.DeleteFunc(a.Files, func(p string) bool { return p == AdapterPEFTWeights })
	case slices.Contains(a.Files, AdapterPEFTWeights):
		a.PEFT, weights = true, AdapterPEFTWeights
	case slices.ContainsFunc(src.Paths(), IsPickle):
		return nil, invalid("the adapter has only pickle weights: %s, so save it as safetensors", reasonPickle)
	default:
		return nil, invalid("the adapter has no %s", AdapterWeights)
	}
	if err := a.readConfig(src); err != nil {
		return nil, err
	}
	return a, a.checkWeights(src, weights)
}

func (a *Adapter) readConfig(src Source) error {
	raw, err := readFile(src, AdapterConfig, maxConfig)
	if err != nil {
		return err
	}
	var c struct {
		FineTuneType *string `json:"fine_tune_type"`
		Parameters   struct {
			Rank  any     `json:"rank"`
			Scale float64 `json:"scale"`
		} `json:"lora_parameters"`
		PEFTType string `json:"peft_type"`
		R        any    `json:"r"`
		DoRA     bool   `json:"use_dora"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return notJSON(AdapterConfig, err)
	}
	rank := c.Parameters.Rank
	a.Type, a.Scale = "lora", c.Parameters.Scale
	if c.FineTuneType != nil {
		a.Type = *c.FineTuneType
	}
	if a.PEFT {
		if c.PEFTType != "LORA" {
			return errdefs.New(errdefs.ErrUnsupported, "the adapter is of PEFT's type %.40q, and only LORA is supported", c.PEFTType)
		}
		if rank = c.R; c.DoRA {
			a.Type = "dora"
		}
	}
	if a.Type != "lora" && a.Type != "dora" {
		return errdefs.New(errdefs.ErrUnsupported, "the adapter's fine_tune_type is %.40q, and only lora and dora are adapters", a.Type)
	}
	r, ok := rank.(float64)
	if !ok || r < 1 || r > maxRank || r != math.Trunc(r) {
		return invalid("the adapter's rank is %.40v, and must be a whole number from 1 to %d", rank, maxRank)
	}
	a.Rank = int(r)
	return nil
}

// checkWeights looks at names and ranks in the header.
func (a *Adapter) checkWeights(src Source, file string) error {
	h, err := readHeader(src, file)
	if err != nil {
		return err
	}
	if len(h.Tensors) == 0 {
		return invalid("%s holds no tensors", file)
	}
	for _, t := range h.Tensors {
		_, leaf := cutLeaf(strings.TrimSuffix(t.Name, ".weight"))
		switch {
		case leaf == "m" && !a.PEFT, leaf == "lora_magnitude_vector" && a.PEFT:
			continue
		case (leaf == "lora_a" || leaf == "lora_b") && !a.PEFT, (leaf == "lora_A" || leaf == "lora_B") && a.PEFT:
		default:
			return errdefs.New(errdefs.ErrUnsupported, "%s: the tensor %.200q is no part of a LoRA or DoRA layer", file, t.Name)
		}
		// Where among the last two depends on the layer.
		if n := len(t.Shape); n < 2 || !slices.Contains(t.Shape[n-2:], uint64(a.Rank)) {
			return invalid("%s: the tensor %.200q has the shape %v, which does not go with the rank %d", file, t.Name, t.Shape, a.Rank)
		}
	}
	return nil
}

// ModelInfo returns what show tells of the adapter, in the vocabulary of GGUF keys.
func (a *Adapter) ModelInfo() map[string]any {
	return map[string]any{"adapter.type": a.Type, "adapter.lora.rank": a.Rank, "adapter.lora.scale": a.Scale}
}
