package registry

import (
	"context"
	"errors"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// Sources is the Puller for all names: each canonical name belongs to one kind of place, which its host tells.
type Sources struct {
	// Store has the models that come with ollmlx, which are nowhere else.
	Store *store.Store
	// Registry has the names of all hosts but the hub's.
	Registry Puller
	// Hub has the names of Hugging Face.
	Hub Puller
}

// Pull implements Puller.
func (s Sources) Pull(ctx context.Context, n model.Name, o Options, progress func(api.ProgressResponse)) error {
	if s.Store.Bundled(n) {
		return present(s.Store, n, progress)
	}
	if n.Host == modelname.HubHost {
		return s.Hub.Pull(ctx, n, o, progress)
	}
	return s.Registry.Pull(ctx, n, o, progress)
}

// NoHub stands in for pulls from Hugging Face, which are not built yet. It finds what is stored already.
type NoHub struct{ Store *store.Store }

// Pull implements Puller.
func (h NoHub) Pull(_ context.Context, n model.Name, _ Options, progress func(api.ProgressResponse)) error {
	err := present(h.Store, n, progress)
	if errors.Is(err, errdefs.ErrNotFound) {
		name := modelname.Display(n)
		return errdefs.New(errdefs.ErrUnsupported, "pulls from Hugging Face are not available yet, and model %q is not here: download its files "+
			"from https://huggingface.co/%s/%s, write a Modelfile with \"FROM ./its-directory\" and run \"ollmlx create %s\"", name, n.Namespace, n.Model, name)
	}
	return err
}

// present reports a model that needs no transfer.
func present(s *store.Store, n model.Name, progress func(api.ProgressResponse)) error {
	m, err := s.Get(n)
	if err != nil {
		return err
	}
	progress(api.ProgressResponse{Status: statusManifest})
	for _, l := range m.Layers {
		progress(api.ProgressResponse{Status: "pulling " + shortDigest(l.Digest), Digest: l.Digest, Total: l.Size, Completed: l.Size})
	}
	for _, status := range []string{statusVerifying, statusWriting, statusSuccess} {
		progress(api.ProgressResponse{Status: status})
	}
	return nil
}
