package store

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// Materialize makes a directory of links to the files of a model in Hugging Face layout, below dir, and returns its
// path. The directory is named by the model's digest and complete as soon as it exists, so that all runners of a model
// share one, and calling again is cheap. Runners only read it. Hard links keep the files of a model that is deleted
// while it runs; where they are not possible the links are symbolic.
func (s *Store) Materialize(m *Model, dir string) (string, error) {
	if m.Format != FormatMLX {
		return "", errdefs.New(errdefs.ErrUnsupported, "model %q has the format %q, which the MLX engine does not run", modelname.Display(m.Name), m.Details.Format)
	}
	if _, err := ParseDigest("sha256:" + m.Digest); err != nil {
		return "", errdefs.New(errdefs.ErrInvalid, "model %q has no digest", modelname.Display(m.Name))
	}
	s.linking.Lock()
	defer s.linking.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()

	path := filepath.Join(dir, m.Digest)
	if linked(m.Layers, mediaFile, path) {
		return path, nil
	}
	if err := s.link(m.Layers, mediaFile, dir, path); err != nil {
		return "", s.failure(err, "linking a model's files")
	}
	return path, nil
}

// linked reports whether the directory of links is there and whole. Cleaners of temporary directories take old files out
// of them.
func linked(layers []Layer, mediaType, path string) bool {
	for _, l := range layers {
		if l.MediaType != mediaType {
			continue
		}
		info, err := os.Stat(filepath.Join(path, filepath.FromSlash(l.Name)))
		if err != nil || !info.Mode().IsRegular() || info.Size() != l.Size {
			return false
		}
	}
	return true
}

// link makes the directory path, below dir, of links to the layers of a media type, by their names.
func (s *Store) link(layers []Layer, mediaType, dir, path string) (err error) {
	temp, err := os.MkdirTemp(dir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(temp)
		}
	}()
	for _, l := range layers {
		if l.MediaType != mediaType {
			continue
		}
		// The names were checked when the manifest was read; they are what would let a model write elsewhere.
		if !validFileName(l.Name) {
			return errdefs.New(errdefs.ErrInvalid, "the model has a file with an invalid path")
		}
		if err := s.checkPresent([]Layer{l}); err != nil {
			return err
		}
		target := filepath.Join(temp, filepath.FromSlash(l.Name))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := linkFile(s.blobPath(l.Digest), target); err != nil {
			return err
		}
	}
	// What is left of a directory that is not whole gives way. Another process of ours may use dir, too.
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// linkFile makes target another name of a blob.
func linkFile(blob, target string) error {
	err := os.Link(blob, target)
	if err == nil || errors.Is(err, os.ErrExist) {
		// Two files of one name: only a file system that ignores case can get here, and the model would not be what its
		// maker meant.
		return err
	}
	abs, err := filepath.Abs(blob)
	if err != nil {
		return err
	}
	return os.Symlink(abs, target)
}
