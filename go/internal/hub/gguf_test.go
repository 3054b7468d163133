package hub

import (
	"slices"
	"strings"
	"testing"
)

func TestChooseGGUF(t *testing.T) {
	plain := []string{"README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-IQ2_XS.gguf", "m-UD-Q4_K_XL.gguf", "mmproj-m-F32.gguf", "mmproj-m-f16.gguf"}
	split := []string{"BF16/m-BF16-00002-of-00002.gguf", "BF16/m-BF16-00001-of-00002.gguf", "Q6_K/m-00001-of-00001.gguf", "m.Q5_K_S.gguf"}
	for _, tt := range []struct {
		tag   string
		paths []string
		want  []string // nil: refused
	}{
		{"", plain, []string{"m-Q4_K_M.gguf", "mmproj-m-f16.gguf"}},
		{"Q8_0", plain, []string{"m-Q8_0.gguf", "mmproj-m-f16.gguf"}},
		{"q8_0", plain, []string{"m-Q8_0.gguf", "mmproj-m-f16.gguf"}},
		{"IQ2_XS", plain, []string{"m-IQ2_XS.gguf", "mmproj-m-f16.gguf"}},
		{"UD-Q4_K_XL", plain, []string{"m-UD-Q4_K_XL.gguf", "mmproj-m-f16.gguf"}},
		{"Q4_K", plain, nil},
		{"dev", plain, nil},
		{"bf16", split, []string{"BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"}},
		{"Q6_K", split, []string{"Q6_K/m-00001-of-00001.gguf"}},
		{"", split, []string{"BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"}},
		{"", []string{"m.gguf"}, []string{"m.gguf"}},
		{"", []string{"m-Q4_0.gguf", "m-draft-Q4_0.gguf"}, []string{"m-Q4_0.gguf"}},
		{"", []string{"mmproj-f16.gguf"}, nil},
	} {
		got, err := chooseGGUF("org/m", tt.tag, tt.paths)
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.want != nil) {
			t.Errorf("%q of %v: got %v, %v, want %v", tt.tag, tt.paths, got, err, tt.want)
		}
		if err != nil && !strings.Contains(err.Error(), "its quantizations are") {
			t.Errorf("got %v", err)
		}
	}
}
