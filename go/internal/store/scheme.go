package store

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// scheme is how weights are to be packed, and the name that users read for it.
type scheme struct {
	name string
	*runnerpb.QuantizationScheme
}

// SchemeNames are the quantizations that create accepts, as help and errors list them.
const SchemeNames = "int2, int3, int4, int5, int6, int8 (with a group size: int4-g32), mxfp4, mxfp8, nvfp4, mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6"

var (
	// affineName matches "int4", "4bit", "4-bit", "q4", and the same with a group size: "int4-g32", "4bit-gs32".
	affineName = regexp.MustCompile(`^(?:int|q)?([2-8])(?:-?bits?)?(?:-gs?([0-9]{1,4}))?$`)
	modeNames  = []string{"mxfp4", "mxfp8", "nvfp4"}
	mixedNames = []string{"mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"}
	// ggufNames are the types that users of GGUF know, and what comes nearest to each here.
	ggufNames = map[string]string{
		"q2_k":   "mixed_2_6",
		"q3_k_s": "int3", "q3_k_m": "mixed_3_4", "q3_k_l": "mixed_3_6",
		"q4_0": "int4", "q4_1": "int4", "q4_k_s": "int4", "q4_k_m": "mixed_4_6",
		"q5_0": "int5", "q5_1": "int5", "q5_k_s": "int5", "q5_k_m": "int5",
		"q6_k": "int6", "q8_0": "int8",
	}
	plainNames = []string{"f16", "fp16", "float16", "bf16", "bfloat16", "f32", "fp32", "float32"}
	// Both are MLX's own; group sizes of the other modes are fixed.
	affineBits   = []int{2, 3, 4, 5, 6, 8}
	affineGroups = []int{32, 64, 128}
)

// CheckQuantization refuses the name of a quantization that Create does not know.
func CheckQuantization(name string) error {
	_, err := parseScheme(name)
	return err
}

// parseScheme returns what a name of a quantization stands for, in any case; an error of kind ErrInvalid lists the names
// there are.
func parseScheme(name string) (scheme, error) {
	n := strings.ToLower(name)
	if nearest, ok := ggufNames[n]; ok {
		n = nearest
	}
	switch {
	case slices.Contains(modeNames, n):
		return scheme{n, &runnerpb.QuantizationScheme{Mode: n}}, nil
	case slices.Contains(mixedNames, n):
		return scheme{n, &runnerpb.QuantizationScheme{Mode: "affine", Recipe: n}}, nil
	case slices.Contains(plainNames, n):
		return scheme{}, errdefs.New(errdefs.ErrInvalid, "%q is no quantization; leave quantize out to keep the weights as they are, or choose one of %s", clip(name), SchemeNames)
	}
	m := affineName.FindStringSubmatch(n)
	if m == nil {
		return scheme{}, errdefs.New(errdefs.ErrInvalid, "unknown quantization %q; choose one of %s; names of GGUF types are understood too (%s)",
			clip(name), SchemeNames, strings.Join(slices.Sorted(maps.Keys(ggufNames)), ", "))
	}
	bits, _ := strconv.Atoi(m[1])
	if !slices.Contains(affineBits, bits) {
		return scheme{}, errdefs.New(errdefs.ErrInvalid, "weights cannot be packed into %d bits; choose one of %s", bits, SchemeNames)
	}
	label, group := fmt.Sprintf("int%d", bits), 0
	if m[2] != "" {
		group, _ = strconv.Atoi(m[2])
		if !slices.Contains(affineGroups, group) {
			return scheme{}, errdefs.New(errdefs.ErrInvalid, "weights cannot be packed in groups of %d; choose one of %v", group, affineGroups)
		}
		label += fmt.Sprintf("-g%d", group)
	}
	return scheme{label, &runnerpb.QuantizationScheme{Mode: "affine", Bits: uint32(bits), GroupSize: uint32(group)}}, nil
}
