package registry

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// place is a Puller that has some models and notes what it was asked for.
type place struct {
	has   []string
	err   error
	asked []string
}

func (p *place) Pull(_ context.Context, n model.Name, _ Options, _ func(api.ProgressResponse)) error {
	p.asked = append(p.asked, n.String())
	switch {
	case p.err != nil:
		return p.err
	case !slices.Contains(p.has, n.String()):
		return errdefs.New(errdefs.ErrNotFound, "not here")
	}
	return nil
}

// Which names are looked for where, in which order, and what is told when they are nowhere.
func TestSources(t *testing.T) {
	down := errdefs.New(errdefs.ErrUnavailable, "no route")
	for _, tt := range []struct {
		name          string
		registryDown  bool
		registry, hub string // what was asked for
		text          string // in the error; empty: found
		suggests      bool
	}{
		{name: "there", registry: "registry.ollama.ai/library/there:latest"},
		{name: "org/there", registry: "registry.ollama.ai/org/there:latest"},
		{name: "mlx-community/X", hub: "hf.co/mlx-community/X:latest"},
		{name: "https://huggingface.co/Qwen/X", hub: "hf.co/Qwen/X:latest"},
		{name: "Qwen/X", registry: "registry.ollama.ai/Qwen/X:latest", hub: "hf.co/Qwen/X:latest"},
		{name: "Qwen/X@v2", hub: "hf.co/Qwen/X:v2", text: "not here", suggests: true},
		{name: "Qwen/Z", registry: "registry.ollama.ai/Qwen/Z:latest", hub: "hf.co/Qwen/Z:latest",
			text: "registry.ollama.ai: not here; and not here; did you mean mlx-community/X?", suggests: true},
		{name: "nope", registry: "registry.ollama.ai/library/nope:latest", text: "not here; did you mean mlx-community/X?", suggests: true},
		{name: "mlx-community/Y", hub: "hf.co/mlx-community/Y:latest", text: "did you mean mlx-community/X?", suggests: true},
		{name: "example.com/org/X", registry: "example.com/org/X:latest", text: "not here"},
		{name: "Qwen/X", registryDown: true, registry: "registry.ollama.ai/Qwen/X:latest",
			text: "no route; if this is a model of Hugging Face, call it hf.co/Qwen/X:latest"},
		{name: "there", registryDown: true, registry: "registry.ollama.ai/library/there:latest", text: "no route"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := &place{has: []string{"registry.ollama.ai/library/there:latest", "registry.ollama.ai/org/there:latest"}}
			if tt.registryDown {
				reg.err = down
			}
			hub := &place{has: []string{"hf.co/mlx-community/X:latest", "hf.co/Qwen/X:latest"}}
			suggested := false
			sources := Sources{Store: newSide(t).store, Registry: reg, Hub: hub, Suggest: func(context.Context, model.Name) []string {
				suggested = true
				return []string{"mlx-community/X"}
			}}
			err := sources.Pull(t.Context(), parse(t, tt.name), Options{}, func(progress) {})
			if tt.text == "" && err != nil || tt.text != "" && (err == nil || !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
			if err != nil && !tt.registryDown && !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("got an error of kind %v", errdefs.Kind(err))
			}
			if got := strings.Join(reg.asked, " "); got != tt.registry {
				t.Errorf("the registry was asked for %q, want %q", got, tt.registry)
			}
			if got := strings.Join(hub.asked, " "); got != tt.hub {
				t.Errorf("the hub was asked for %q, want %q", got, tt.hub)
			}
			if suggested != tt.suggests {
				t.Errorf("suggestions: got %v, want %v", suggested, tt.suggests)
			}
		})
	}
}

// Models of the hub are not pushed.
func TestPushOfHubModels(t *testing.T) {
	s := newSide(t)
	m := s.create("mlx-community/X", mlxFiles(), "")
	if err := s.client.Push(t.Context(), m.Name, Options{}, func(progress) {}); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}
