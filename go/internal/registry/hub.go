package registry

import (
	"context"
	"errors"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// Sources is the Puller for all names. Most belong to one kind of place, which their host tells; org/model without a host
// may be in Ollama's registry or on the hub, and is looked for in this order.
type Sources struct {
	// Store has the models that come with ollmlx, which are nowhere else.
	Store *store.Store
	// Registry has the names of all hosts but the hub's.
	Registry Puller
	// Hub has the names of Hugging Face.
	Hub Puller
	// Suggest returns names on the hub like one that is nowhere. Nil: none.
	Suggest func(ctx context.Context, n model.Name) []string
}

// Pull implements Puller.
func (s Sources) Pull(ctx context.Context, n model.Name, o Options, progress func(api.ProgressResponse)) error {
	if s.Store.Bundled(n) {
		return present(s.Store, n, progress)
	}
	if n.Host == modelname.HubHost {
		return s.suggest(ctx, n, s.Hub.Pull(ctx, n, o, progress))
	}
	if o.Quantize != "" {
		// What registries have is quantized already.
		onHub, ok := modelname.OnHub(n)
		if !ok {
			return errdefs.New(errdefs.ErrInvalid, "quantize is for models of Hugging Face, which %s is not; use create to quantize it", modelname.Display(n))
		}
		return s.suggest(ctx, onHub, s.Hub.Pull(ctx, onHub, o, progress))
	}
	err := s.Registry.Pull(ctx, n, o, progress)
	if n.Host != modelname.RegistryHost || err == nil || ctx.Err() != nil {
		return err
	}
	onHub, ok := modelname.OnHub(n)
	if !ok {
		return s.suggest(ctx, n, err)
	}
	if !errors.Is(err, errdefs.ErrNotFound) {
		// What the name means must not depend on who can be reached.
		return errdefs.New(errdefs.Kind(err), "%w; if this is a model of Hugging Face, call it %s", err, modelname.Display(onHub))
	}
	progress(api.ProgressResponse{Status: "not in " + modelname.RegistryHost + ", trying " + modelname.Display(onHub)})
	hubErr := s.Hub.Pull(ctx, onHub, o, progress)
	if errors.Is(hubErr, errdefs.ErrNotFound) {
		hubErr = errdefs.New(errdefs.ErrNotFound, "%s: %w; and %w", modelname.RegistryHost, err, hubErr)
	}
	return s.suggest(ctx, onHub, hubErr)
}

// suggest adds names that the user may have meant to the error that there is none such.
func (s Sources) suggest(ctx context.Context, n model.Name, err error) error {
	if s.Suggest == nil || ctx.Err() != nil || !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	if names := s.Suggest(ctx, n); len(names) > 0 {
		return errdefs.New(errdefs.ErrNotFound, "%w; did you mean %s?", err, strings.Join(names, ", "))
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
