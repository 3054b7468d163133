package mlxmodel

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
)

func inspectAdapter(t *testing.T, f map[string][]byte) (*Adapter, error) {
	t.Helper()
	d, err := OpenDir(mlxmodeltest.Write(t, f))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return InspectAdapter(d)
}

func TestInspectAdapter(t *testing.T) {
	own := mlxmodeltest.Adapter()
	own["0000100_adapters.safetensors"] = []byte("checkpoint")
	own["README.md"] = []byte("card")
	a, err := inspectAdapter(t, own)
	if err != nil || a.PEFT || a.Type != "lora" || a.Rank != 2 || a.Scale != 20 || len(a.Files) != 2 || len(a.Skipped) != 2 {
		t.Errorf("got %+v, %v", a, err)
	}
	peft := mlxmodeltest.PEFTAdapter()
	peft["adapter_config.json"] = []byte(`{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": true}`)
	a, err = inspectAdapter(t, peft)
	if err != nil || !a.PEFT || a.Type != "dora" || a.Rank != 2 {
		t.Errorf("got %+v, %v", a, err)
	}
	// With both forms, the engine's own is taken.
	both := mlxmodeltest.Adapter()
	both["adapter_model.safetensors"] = peft["adapter_model.safetensors"]
	if a, err = inspectAdapter(t, both); err != nil || a.PEFT || len(a.Files) != 2 {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestInspectAdapterRefuses(t *testing.T) {
	own, peft := mlxmodeltest.Adapter(), mlxmodeltest.PEFTAdapter()
	with := func(base map[string][]byte, changes map[string]string) map[string][]byte {
		f := maps.Clone(base)
		for name, content := range changes {
			if f[name] = []byte(content); content == "" {
				delete(f, name)
			}
		}
		return f
	}
	of := func(tensors map[string]mlxmodeltest.Tensor) string { return string(mlxmodeltest.Safetensors(tensors)) }
	for name, tt := range map[string]struct {
		files map[string][]byte
		kind  error
		text  string
	}{
		"no configuration":      {with(own, map[string]string{"adapter_config.json": ""}), errdefs.ErrInvalid, "the adapter has no adapter_config.json"},
		"no weights":            {with(own, map[string]string{"adapters.safetensors": ""}), errdefs.ErrInvalid, "the adapter has no adapters.safetensors"},
		"pickle":                {with(own, map[string]string{"adapters.safetensors": "", "adapter_model.bin": "x"}), errdefs.ErrInvalid, "only pickle weights"},
		"GGUF":                  {map[string][]byte{"lora.gguf": []byte("GGUF")}, errdefs.ErrUnsupported, "lora.gguf: adapters in GGUF form do not go with MLX models"},
		"no JSON":               {with(own, map[string]string{"adapter_config.json": "{"}), errdefs.ErrInvalid, "adapter_config.json is no valid JSON"},
		"full fine-tuning":      {with(own, map[string]string{"adapter_config.json": `{"fine_tune_type": "full", "lora_parameters": {"rank": 2}}`}), errdefs.ErrUnsupported, `fine_tune_type is "full"`},
		"huge rank":             {with(own, map[string]string{"adapter_config.json": `{"lora_parameters": {"rank": 1e15}}`}), errdefs.ErrInvalid, "must be a whole number from 1 to 1024"},
		"no rank":               {with(own, map[string]string{"adapter_config.json": `{"lora_parameters": {}}`}), errdefs.ErrInvalid, "rank is <nil>"},
		"rank that is none":     {with(own, map[string]string{"adapter_config.json": `{"lora_parameters": {"rank": "2"}}`}), errdefs.ErrInvalid, "must be a whole number"},
		"another rank":          {with(own, map[string]string{"adapter_config.json": `{"lora_parameters": {"rank": 3}}`}), errdefs.ErrInvalid, "does not go with the rank 3"},
		"damaged":               {with(own, map[string]string{"adapters.safetensors": "\xff\xff\xff\xff\xff\xff\xff\xff{}"}), errdefs.ErrInvalid, "adapters.safetensors is damaged"},
		"no tensors":            {with(own, map[string]string{"adapters.safetensors": of(nil)}), errdefs.ErrInvalid, "holds no tensors"},
		"weights of a model":    {with(own, map[string]string{"adapters.safetensors": of(map[string]mlxmodeltest.Tensor{"model.norm.weight": mlxmodeltest.Of("F32", 64)})}), errdefs.ErrUnsupported, `"model.norm.weight" is no part of a LoRA`},
		"a vector":              {with(own, map[string]string{"adapters.safetensors": of(map[string]mlxmodeltest.Tensor{"q.lora_a": mlxmodeltest.Of("F32", 2)})}), errdefs.ErrInvalid, "has the shape [2]"},
		"PEFT of another kind":  {with(peft, map[string]string{"adapter_config.json": `{"peft_type": "IA3"}`}), errdefs.ErrUnsupported, `PEFT's type "IA3", and only LORA`},
		"MLX names beside PEFT": {with(peft, map[string]string{"adapter_model.safetensors": string(own["adapters.safetensors"])}), errdefs.ErrUnsupported, "no part of a LoRA"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := inspectAdapter(t, tt.files)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
		})
	}
}
