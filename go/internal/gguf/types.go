package gguf

import "cmp"

// Type is a type of tensor elements.
type Type struct {
	Name string
	// Elements come in blocks of this many, which take size bytes.
	block, size uint64
}

// types are those that llama.cpp has code for, by their number in a file.
var types = map[uint32]Type{
	0: {"F32", 1, 4}, 1: {"F16", 1, 2}, 2: {"Q4_0", 32, 18}, 3: {"Q4_1", 32, 20}, 6: {"Q5_0", 32, 22}, 7: {"Q5_1", 32, 24},
	8: {"Q8_0", 32, 34}, 9: {"Q8_1", 32, 36}, 10: {"Q2_K", 256, 84}, 11: {"Q3_K", 256, 110}, 12: {"Q4_K", 256, 144},
	13: {"Q5_K", 256, 176}, 14: {"Q6_K", 256, 210}, 15: {"Q8_K", 256, 292}, 16: {"IQ2_XXS", 256, 66}, 17: {"IQ2_XS", 256, 74},
	18: {"IQ3_XXS", 256, 98}, 19: {"IQ1_S", 256, 50}, 20: {"IQ4_NL", 32, 18}, 21: {"IQ3_S", 256, 110}, 22: {"IQ2_S", 256, 82},
	23: {"IQ4_XS", 256, 136}, 24: {"I8", 1, 1}, 25: {"I16", 1, 2}, 26: {"I32", 1, 4}, 27: {"I64", 1, 8}, 28: {"F64", 1, 8},
	29: {"IQ1_M", 256, 56}, 30: {"BF16", 1, 2}, 34: {"TQ1_0", 256, 54}, 35: {"TQ2_0", 256, 66}, 39: {"MXFP4", 32, 17},
	40: {"NVFP4", 64, 36}, 41: {"Q1_0", 128, 18}, 42: {"Q2_0", 64, 18},
}

// fileTypes are the names that Ollama shows for general.file_type.
var fileTypes = map[uint64]string{
	0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
	14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
	23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M",
	32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0",
}

// Architecture is the model's family, for example "llama".
func (f *File) Architecture() string { return f.String("general.architecture") }

// String returns a value that is text; empty if there is none.
func (f *File) String(key string) string {
	s, _ := f.Values[key].(string)
	return s
}

// Number returns a value that is a count; 0 if there is none.
func (f *File) Number(key string) uint64 {
	switch v := f.Values[key].(type) {
	case uint64:
		return v
	case int64:
		return uint64(max(v, 0))
	}
	return 0
}

// Own returns a count of the model's own architecture.
func (f *File) Own(key string) uint64 { return f.Number(f.Architecture() + "." + key) }

// FileType names how most of the tensors are stored.
func (f *File) FileType() string {
	if _, ok := f.Values["general.file_type"]; ok {
		return cmp.Or(fileTypes[f.Number("general.file_type")], "unknown")
	}
	return "unknown"
}

// ChatTemplate is the Jinja template that comes with the tokenizer.
func (f *File) ChatTemplate() string { return f.String("tokenizer.chat_template") }

// Kind tells what a file of a model is.
type Kind int

// Kinds of files.
const (
	KindModel Kind = iota
	// KindProjector turns images into what a model sees.
	KindProjector
	// KindAdapter changes a model.
	KindAdapter
)

// Kind returns what the file is.
func (f *File) Kind() Kind {
	switch {
	case f.String("general.type") == "adapter":
		return KindAdapter
	case f.Architecture() == "clip" || f.String("general.type") == "mmproj":
		return KindProjector
	}
	return KindModel
}

// Split returns the file's number among the files of its model, from 0, and how many these are; 0 and 1 for a model in one.
func (f *File) Split() (no, count int) {
	n := f.Number("split.count")
	if n < 2 || n > maxKeys {
		return 0, 1
	}
	return int(min(f.Number("split.no"), n)), int(n)
}
