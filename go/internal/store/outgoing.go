package store

import (
	"os"
	"slices"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// Outgoing is a model that is being sent elsewhere. Its blobs stay until Close, also if it is deleted meanwhile.
type Outgoing struct {
	// Manifest is the model's, byte for byte: its digest is the model's identity.
	Manifest []byte
	// Layers are the blobs that the manifest refers to, each once, the configuration last.
	Layers []Layer

	store *Store
	held  []string
}

// Send begins to send a model. The error is that of Get if it cannot be used.
func (s *Store) Send(n model.Name) (*Outgoing, error) {
	if _, err := s.Get(n); err != nil { // installs a bundled model
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.resolve(n)
	if !ok {
		return nil, errdefs.New(errdefs.ErrNotFound, "model %q not found", modelname.Display(n))
	}
	f, err := readManifest(e.path)
	if err != nil {
		return nil, s.failure(err, "reading a model")
	}
	out := &Outgoing{Manifest: f.raw, store: s}
	for _, l := range append(slices.Clone(f.Layers), f.Config) {
		if l.Digest == "" || slices.Contains(out.held, l.Digest) {
			continue
		}
		out.Layers = append(out.Layers, l)
		out.held = append(out.held, l.Digest)
		s.holds[l.Digest]++
	}
	return out, nil
}

// Open opens the blob of a layer.
func (o *Outgoing) Open(l Layer) (*os.File, error) {
	f, err := os.Open(o.store.blobPath(l.Digest))
	return f, o.store.failure(err, "reading a blob")
}

// Close ends the protection of the model's blobs.
func (o *Outgoing) Close() {
	o.store.mu.Lock()
	defer o.store.mu.Unlock()
	o.store.unhold(o.held)
	o.held = nil
}

// Tensors reports whether the model has a layer for each tensor, as those of Ollama's own MLX engine have.
func (o *Outgoing) Tensors() bool {
	return slices.ContainsFunc(o.Layers, func(l Layer) bool { return l.MediaType == mediaTensor })
}
