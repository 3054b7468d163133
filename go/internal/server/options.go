package server

import (
	"fmt"
	"log/slog"
	"math"
	"slices"

	"github.com/ollama/ollama/api"
	"google.golang.org/protobuf/proto"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// defaultOptions are Ollama's, as its current version has them. A model's parameters go over them, and a request's
// options over those.
func defaultOptions() api.Options {
	return api.Options{
		NumKeep:       4,
		Seed:          -1,
		NumPredict:    -1,
		TopK:          40,
		TopP:          0.9,
		TypicalP:      1,
		RepeatLastN:   64,
		Temperature:   0.8,
		RepeatPenalty: 1,
	}
}

// loadTimeOptions choose how llama.cpp loads a model; an MLX runner has no such choices.
var loadTimeOptions = []string{"num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "use_mlock", "draft_num_predict"}

// noEffect are options that were Ollama's once.
var noEffect = []string{"low_vram", "f16_kv", "logits_all", "vocab_only"}

// minContext is the smallest context that Ollama allows.
const minContext = 4

// mergeOptions returns the options of a request for m and the context length that it asks for (0: none). Values of a
// wrong type have Ollama's text and its status, 500.
//
// A GGUF model gets the wishes for its load with it, the context length among them: its runner allocates that once.
func mergeOptions(log *slog.Logger, m *store.Model, request map[string]any) (_ *runnerpb.Options, numCtx uint32, err error) {
	o := defaultOptions()
	for _, from := range []map[string]any{m.Parameters, request} {
		if err := o.FromMap(from); err != nil {
			return nil, 0, errdefs.New(errdefs.ErrInternal, "%w", err)
		}
	}
	idle := noEffect
	if m.Format == store.FormatGGUF {
		if m.Load, err = loadOptions(m.Parameters, request, o); err != nil {
			return nil, 0, err
		}
	} else {
		idle = slices.Concat(noEffect, loadTimeOptions)
	}
	for _, name := range idle {
		if _, ok := request[name]; ok {
			log.Warn("option has no effect here", "option", name)
		}
	}
	if err := checkOptions(o); err != nil {
		return nil, 0, err
	}
	p := &runnerpb.Options{
		NumKeep:          clampInt32(o.NumKeep),
		Temperature:      &o.Temperature,
		TopP:             &o.TopP,
		MinP:             &o.MinP,
		TypicalP:         &o.TypicalP,
		RepeatPenalty:    &o.RepeatPenalty,
		PresencePenalty:  &o.PresencePenalty,
		FrequencyPenalty: &o.FrequencyPenalty,
		Stop:             slices.DeleteFunc(slices.Clone(o.Stop), func(s string) bool { return s == "" }),
	}
	topK, lastN := clampInt32(max(o.TopK, 0)), clampInt32(o.RepeatLastN)
	p.TopK, p.RepeatLastN = &topK, &lastN
	if o.NumPredict > 0 {
		n := clampInt32(o.NumPredict)
		p.NumPredict = &n
	}
	if o.Seed != -1 {
		seed := int64(o.Seed)
		p.Seed = &seed
	}
	return p, contextLength(o), nil
}

// contextLength is the context length that options ask for; 0: none.
func contextLength(o api.Options) uint32 {
	if o.NumCtx == 0 {
		return 0
	}
	return uint32(min(max(o.NumCtx, minContext), math.MaxUint32))
}

// loadOptions returns the wishes for the load of a GGUF model; nil if there are none. o has both maps merged.
func loadOptions(model, request map[string]any, o api.Options) (*runnerpb.LoadRequest, error) {
	given := func(name string) (any, bool) {
		for _, from := range []map[string]any{request, model} {
			if v, ok := from[name]; ok && v != nil {
				return v, true
			}
		}
		return nil, false
	}
	p := &runnerpb.LoadRequest{NumCtx: contextLength(o), UseMmap: o.UseMMap}
	for _, x := range []struct {
		name  string
		value int
		set   *uint32
	}{{"num_batch", o.NumBatch, &p.NumBatch}, {"num_thread", o.NumThread, &p.NumThread}} {
		if x.value < 0 {
			return nil, errdefs.New(errdefs.ErrInvalid, "option %q must be 0 (the engine's choice) or more, got %d", x.name, x.value)
		}
		*x.set = uint32(min(x.value, math.MaxInt32))
	}
	if _, ok := given("num_gpu"); ok && o.NumGPU >= 0 {
		n := clampInt32(o.NumGPU)
		p.NumGpu = &n
	}
	if _, ok := given("main_gpu"); ok {
		if o.MainGPU < 0 {
			return nil, errdefs.New(errdefs.ErrInvalid, "option %q must be 0 or more, got %d", "main_gpu", o.MainGPU)
		}
		n := uint32(o.MainGPU)
		p.MainGpu = &n
	}
	if v, ok := given("use_mlock"); ok {
		if p.UseMlock, ok = v.(bool); !ok {
			return nil, errdefs.New(errdefs.ErrInternal, "option %q must be of type boolean", "use_mlock")
		}
	}
	if v, ok := given("draft_num_predict"); ok {
		n, ok := v.(float64)
		if !ok || n < 0 || n > math.MaxInt32 {
			return nil, errdefs.New(errdefs.ErrInternal, "option %q must be of type integer", "draft_num_predict")
		}
		p.DraftNumPredict = uint32(n)
	}
	if proto.Equal(p, &runnerpb.LoadRequest{}) {
		return nil, nil
	}
	return p, nil
}

// checkOptions refuses values that have no meaning, by name.
func checkOptions(o api.Options) error {
	for _, x := range []struct {
		name     string
		value    float32
		min, max float32
	}{
		{"temperature", o.Temperature, 0, math.MaxFloat32},
		{"top_p", o.TopP, 0, 1},
		{"min_p", o.MinP, 0, 1},
		{"typical_p", o.TypicalP, 0, 1},
		{"repeat_penalty", o.RepeatPenalty, 0, math.MaxFloat32},
		{"presence_penalty", o.PresencePenalty, -math.MaxFloat32, math.MaxFloat32},
		{"frequency_penalty", o.FrequencyPenalty, -math.MaxFloat32, math.MaxFloat32},
	} {
		// Written so that a NaN fails too.
		if !(x.value >= x.min && x.value <= x.max) {
			return errdefs.New(errdefs.ErrInvalid, "option %q must be %s, got %v", x.name, rangeText(x.min, x.max), x.value)
		}
	}
	if o.RepeatLastN < -1 {
		return errdefs.New(errdefs.ErrInvalid, "option %q must be -1 (the whole context), 0 (off) or more, got %d", "repeat_last_n", o.RepeatLastN)
	}
	return nil
}

func rangeText(low, high float32) string {
	switch {
	case low == -math.MaxFloat32:
		return "a number"
	case high == math.MaxFloat32:
		return fmt.Sprintf("at least %v", low)
	default:
		return fmt.Sprintf("between %v and %v", low, high)
	}
}

func clampInt32(n int) int32 {
	return int32(min(max(n, math.MinInt32), math.MaxInt32))
}
