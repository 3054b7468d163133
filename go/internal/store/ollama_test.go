package store

import (
	"testing"

	ollama "github.com/ollama/ollama/manifest"

	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// Ollama's own code reads our manifests. It removes all blobs that no manifest it can read refers to, so this is what
// keeps models of ours alive in a store that both use.
func TestOllamaReadsOurStore(t *testing.T) {
	s := open(t, Params{})
	want := map[string]*Model{}
	for _, as := range []string{"demo", "mlx-community/Qwen3-0.6B-4bit", "hf.co/Org/Model:Tag"} {
		want[modelname.Key(name(t, as))] = createMLX(t, s, as)
	}
	t.Setenv("OLLAMA_MODELS", s.dir)
	found, err := ollama.Manifests(false)
	if err != nil {
		t.Fatal(err)
	}
	for n, f := range found {
		m := want[modelname.Key(n)]
		if m == nil {
			t.Errorf("Ollama finds %s", n)
			continue
		}
		if f.Digest() != m.Digest || f.Size() != m.Size || len(f.Layers) != len(m.Layers) {
			t.Errorf("%s: Ollama reads %s, %d bytes, %d layers; want %s, %d, %d", n, f.Digest(), f.Size(), len(f.Layers), m.Digest, m.Size, len(m.Layers))
		}
		for i, l := range f.Layers {
			if l.Digest != m.Layers[i].Digest || l.Name != m.Layers[i].Name {
				t.Errorf("%s: layer %d is %+v, want %+v", n, i, l, m.Layers[i])
			}
		}
	}
	if len(found) != len(want) {
		t.Errorf("Ollama finds %d models, want %d", len(found), len(want))
	}
}
