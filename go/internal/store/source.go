package store

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
)

// blobSource is a mlxmodel.Source over blobs.
type blobSource struct {
	store *Store
	// files maps relative paths to canonical digests.
	files map[string]string
}

func (b *blobSource) Paths() []string { return slices.Sorted(maps.Keys(b.files)) }

func (b *blobSource) Open(path string) (mlxmodel.File, error) {
	digest, ok := b.files[path]
	if !ok {
		return nil, errdefs.New(errdefs.ErrNotFound, "the model has no file %s", clip(path))
	}
	f, err := os.Open(b.store.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdefs.New(errdefs.ErrNotFound, "blob %q of %s not found", digest, clip(path))
	}
	if err != nil {
		return nil, b.store.failure(err, "reading a blob")
	}
	return f, nil
}

// Files gives access to the files of a model in Hugging Face layout.
func (s *Store) Files(m *Model) mlxmodel.Source { return s.filesOf(m.Layers) }

func (s *Store) filesOf(layers []Layer) mlxmodel.Source {
	files := map[string]string{}
	for _, l := range layers {
		if l.MediaType == mediaFile {
			files[l.Name] = l.Digest
		}
	}
	return &blobSource{s, files}
}
