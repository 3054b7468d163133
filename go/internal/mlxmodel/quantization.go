package mlxmodel

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/safetensors"
)

// Quantization is how a model's weights are stored.
type Quantization struct {
	// Bits of one weight; 0 if the method does not say.
	Bits      int
	GroupSize int
	// Mode is MLX's: "affine", "mxfp4", "mxfp8", "nvfp4".
	Mode string
	// Method is the name of another library's method ("awq", "gptq", "fp8", ...); empty for MLX's own.
	Method string
	// layers holds the bits of modules that differ from Bits.
	layers map[string]int
	// mixed are the bits that make up the packed weights, each of them a notable part; empty if there is one such.
	mixed []int
}

// notable is the share of the weights from which on bits that differ from the rest are told: routers and output layers
// with more bits than the others are usual, and do not make a model a mixed one.
const notable = 0.1

// Label returns what users read as quantization level: "4-bit" or "mixed 4/6-bit" in the way of mlx-community's names,
// the mode where that says more, or the other library's method.
func (q *Quantization) Label() string {
	switch {
	case len(q.mixed) > 1:
		texts := make([]string, len(q.mixed))
		for i, b := range q.mixed {
			texts[i] = strconv.Itoa(b)
		}
		return "mixed " + strings.Join(texts, "/") + "-bit"
	case q.Mode != "" && q.Mode != "affine":
		return q.Mode
	case q.Bits > 0:
		return fmt.Sprintf("%d-bit", q.Bits)
	default:
		return q.Method
	}
}

func (q *Quantization) bitsOf(module string) int {
	if q == nil {
		return 0
	}
	if b, ok := q.layers[module]; ok {
		return b
	}
	return q.Bits
}

// measure finds out which bits the packed weights really have.
func (q *Quantization) measure(tensors []safetensors.Tensor) {
	types := typesOf(tensors)
	sizes, total := map[int]uint64{}, uint64(0)
	for _, t := range tensors {
		module, leaf := cutLeaf(t.Name)
		if leaf != "weight" || t.DType != "U32" || types[module+".scales"] == "" {
			continue
		}
		n := logicalElements(t, types, q)
		sizes[q.bitsOf(module)] += n
		total += n
	}
	for bits, n := range sizes {
		if bits > 0 && float64(n) >= notable*float64(total) {
			q.mixed = append(q.mixed, bits)
		}
	}
	slices.Sort(q.mixed)
}

func typesOf(tensors []safetensors.Tensor) map[string]string {
	types := make(map[string]string, len(tensors))
	for _, t := range tensors {
		types[t.Name] = t.DType
	}
	return types
}

// cutLeaf splits the name of a tensor into its module and its own name within.
func cutLeaf(name string) (module, leaf string) {
	dot := strings.LastIndexByte(name, '.')
	return name[:max(dot, 0)], name[dot+1:]
}

// parseQuantization reads MLX's "quantization" or another library's "quantization_config". It returns nil for a model
// that is not quantized.
func parseQuantization(c config) *Quantization {
	raw := c.object("quantization")
	if raw == nil {
		raw = c.object("quantization_config")
	}
	if raw == nil {
		raw = c.text().object("quantization_config")
	}
	if raw == nil {
		return nil
	}
	q := &Quantization{
		Bits:      validBits(raw.count("bits", "w_bit")),
		GroupSize: raw.count("group_size", "q_group_size"),
		Mode:      raw.string("mode"),
		Method:    raw.string("quant_method"),
		layers:    map[string]int{},
	}
	for module, value := range raw {
		var layer struct {
			Bits int `json:"bits"`
		}
		if json.Unmarshal(value, &layer) == nil && validBits(layer.Bits) > 0 {
			q.layers[module] = layer.Bits
		}
	}
	if q.Method == "mxfp4" && q.Mode == "" {
		q.Mode = "mxfp4"
	}
	if q.Method == "compressed-tensors" && q.Bits == 0 {
		q.Bits = compressedBits(raw)
	}
	if q.Bits == 0 {
		q.Bits = map[string]int{"mxfp4": 4, "nvfp4": 4, "mxfp8": 8}[q.Mode]
	}
	if q.Bits == 0 && q.Method == "" {
		return nil
	}
	return q
}

// compressedBits finds the bits in the nested form of the compressed-tensors library.
func compressedBits(raw config) int {
	for _, group := range raw.object("config_groups") {
		var g struct {
			Weights struct {
				Bits int `json:"num_bits"`
			} `json:"weights"`
		}
		if json.Unmarshal(group, &g) == nil && validBits(g.Weights.Bits) > 0 {
			return g.Weights.Bits
		}
	}
	return 0
}

func validBits(b int) int {
	if b < 1 || b > 16 {
		return 0
	}
	return b
}

// countParameters adds up the tensors' logical sizes: packed weights count as what they unpack to, and what only
// serves to unpack them counts nothing.
func countParameters(tensors []safetensors.Tensor, q *Quantization) uint64 {
	types := typesOf(tensors)
	var total uint64
	for _, t := range tensors {
		total += logicalElements(t, types, q)
	}
	return total
}

// logicalElements knows the packings that mlx-lm reads. types holds the type of each tensor by name.
func logicalElements(t safetensors.Tensor, types map[string]string, q *Quantization) uint64 {
	module, leaf := cutLeaf(t.Name)
	has := func(leaf string) bool { _, ok := types[module+"."+leaf]; return ok }

	switch leaf {
	case "weight":
		// MLX packs weights into 32-bit words.
		if t.DType == "U32" && has("scales") {
			return unpack(t.Elements, 32, q.bitsOf(module))
		}
	case "scales", "biases", "global_scale":
		if types[module+".weight"] == "U32" || has("qweight") {
			return 0
		}
	case "qweight": // AWQ, GPTQ
		return unpack(t.Elements, 32, q.bitsOf(module))
	case "qzeros", "g_idx":
		if has("qweight") {
			return 0
		}
	case "weight_packed": // compressed-tensors
		width := 32
		if t.DType == "U8" {
			width = 8
		}
		return unpack(t.Elements, width, q.bitsOf(module))
	case "weight_scale", "weight_scale_inv", "weight_shape", "weight_zero_point", "weight_global_scale", "input_global_scale", "input_scale":
		if has("weight_packed") || has("weight") {
			return 0
		}
	}
	// mxfp4 as its authors publish it: two weights to a byte.
	if base, ok := strings.CutSuffix(t.Name, "_blocks"); ok && t.DType == "U8" && types[base+"_scales"] != "" {
		return 2 * t.Elements
	}
	if base, ok := strings.CutSuffix(t.Name, "_scales"); ok && types[base+"_blocks"] != "" {
		return 0
	}
	return t.Elements
}

func unpack(elements uint64, width, bits int) uint64 {
	if bits == 0 {
		bits = 4
	}
	return elements * uint64(width) / uint64(bits)
}

// dominantType returns the type that most bytes of the tensors have, as the level of a model that is not quantized.
func dominantType(tensors []safetensors.Tensor) string {
	sizes := map[string]uint64{}
	for _, t := range tensors {
		sizes[t.DType] += t.Size()
	}
	names := make([]string, 0, len(sizes))
	for name := range sizes {
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return slices.MaxFunc(names, func(a, b string) int {
		return cmp.Compare(sizes[a], sizes[b])
	})
}
