// Package memory says what a model will take when it is loaded, and what the machine has left.
//
// It is the one place that knows both. A Need is estimated before the load, from the headers of the weights and the
// configuration; a Machine asks the operating system, and knows from runners what they compute on. The scheduler adds
// and subtracts; it does not know where the numbers come from.
package memory

import (
	"github.com/ollama/ollama/format"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
)

const (
	// minContext is how many tokens a request must have room for before a model is loaded at all.
	minContext = 4096
	// wantRows is how many requests of full context the KV caches of a model are meant for when there is plenty of memory.
	wantRows = 8
	// slackKV is the room for caches of models whose caches do not grow with tokens.
	slackKV = 64 << 20
	// wideShare is the part of the free memory that a CPU's weights may take to be float32: they compute faster, and leave
	// less for others.
	wideShare = 2
)

// Need is what a model takes when it is loaded, in bytes.
type Need struct {
	// Base is a runner without a model.
	Base uint64
	// Weights are those of the model as they are kept; WideWeights as float32, 0 where that is no choice.
	Weights, WideWeights uint64
	// KVPerToken is what one token takes in the KV caches, WideKVPerToken with wide weights.
	KVPerToken, WideKVPerToken uint64
	// KVFixed is what one request takes whatever its length.
	KVFixed uint64
	// Context is how many tokens a request may have.
	Context uint64
}

// Plan is a Need with everything decided.
type Plan struct {
	Base, Weights uint64
	// KVMin are the caches of one request; KVWant of as many as there may usefully be.
	KVMin, KVWant uint64
	// KV is what caches may use.
	KV uint64
	// KVPerToken is what one token takes in the caches.
	KVPerToken uint64
	// Wide: the weights are made float32.
	Wide bool
}

// Min is the least that the model can do with.
func (p Plan) Min() uint64 { return p.Base + p.Weights + p.KVMin }

// Total is what the model may take.
func (p Plan) Total() uint64 { return p.Base + p.Weights + p.KV }

// Least is the plan with which the model takes least.
func (n Need) Least() Plan { return n.plan(n.Weights, n.KVPerToken, false) }

// Fit is the plan for a machine with that many free bytes: wide weights if there is plenty, and KV caches with a share
// of what is left. It may need more than there is.
func (n Need) Fit(free uint64) Plan {
	p := n.Least()
	if wide := n.plan(n.WideWeights, n.WideKVPerToken, true); n.WideWeights > 0 && wide.Min() <= free/wideShare {
		p = wide
	}
	p.KV = p.KVMin
	if free > p.Min() {
		// Half of what is left stays for other models.
		p.KV = min(max(p.KVWant, p.KVMin), p.KVMin+(free-p.Min())/2)
	}
	return p
}

func (n Need) plan(weights, perToken uint64, wide bool) Plan {
	p := Plan{Base: n.Base, Weights: weights, Wide: wide, KVPerToken: perToken}
	p.KVMin = n.KVFixed + perToken*min(n.Context, minContext)
	p.KVWant = wantRows * (n.KVFixed + perToken*n.Context)
	if p.KVMin == 0 {
		p.KVMin, p.KVWant = slackKV/4, slackKV
	}
	p.KV = p.KVMin
	return p
}

// For estimates the need of a model in Hugging Face layout on a device with a context length, 0 for the model's own.
func For(info *mlxmodel.Info, device Device, base uint64, context int) Need {
	kv := info.KVCache()
	n := Need{Base: base, Context: uint64(context)}
	if longest := uint64(info.ContextLength); longest > 0 && (n.Context == 0 || n.Context > longest) {
		n.Context = longest
	}
	if n.Context == 0 {
		n.Context = minContext
	}
	stored := info.ComputeBytes()
	if device.Kind != CPU {
		n.Weights, n.KVPerToken, n.KVFixed = info.WeightBytes, kv.PerToken*stored, kv.Window*stored
		return n
	}
	n.Weights, n.KVPerToken, n.KVFixed = info.ScaledBytes(), kv.PerToken*stored, kv.Window*4
	if info.Quantization != nil {
		n.KVPerToken = kv.PerToken * 4
	}
	n.WideWeights, n.WideKVPerToken = info.WideBytes(), kv.PerToken*4
	return n
}

// Stored is the need of a model of which only the size of its weights is known.
func Stored(weights, base uint64, context int) Need {
	return Need{Base: base, Weights: weights, Context: uint64(context), KVFixed: weights / 16}
}

// TooBig is the error of a model that cannot be loaded whatever else is unloaded, in the words of Ollama.
func TooBig(model string, need, available, overhead uint64) error {
	return errdefs.New(errdefs.ErrPrecondition,
		"model requires %s but only %s are available (after %s overhead): %s does not fit into memory; use a smaller or a more quantized model, a shorter OLLAMA_CONTEXT_LENGTH, or close other programs",
		format.HumanBytes2(need), format.HumanBytes2(available), format.HumanBytes2(overhead), model)
}
