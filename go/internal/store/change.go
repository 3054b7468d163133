package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// Delete removes a model and those of its blobs that nothing else needs. A damaged model can be deleted too.
func (s *Store) Delete(n model.Name) error {
	if !modelname.Valid(n) {
		return errdefs.New(errdefs.ErrInvalid, "invalid model name")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.resolve(n)
	if !ok {
		return errdefs.New(errdefs.ErrNotFound, "model %q not found", modelname.Display(n))
	}
	old, readErr := readManifest(e.path)
	if err := os.Remove(e.path); err != nil {
		return s.failure(err, "deleting a model")
	}
	s.cache.forget(e.path)
	if err := syncDir(filepath.Dir(e.path)); err != nil {
		return s.failure(err, "deleting a model")
	}
	s.removeEmptyDirs(filepath.Dir(e.path))
	if readErr != nil {
		s.log.Warn("the blobs of a deleted model stay, because its manifest could not be read", "model", modelname.Display(e.name), "error", readErr)
		return nil
	}
	s.release(old)
	return nil
}

// removeEmptyDirs removes the directories that a deleted manifest leaves empty, up to manifests/.
func (s *Store) removeEmptyDirs(dir string) {
	for top := filepath.Join(s.dir, manifestsDir); dir != top; dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			return // not empty
		}
	}
}

// Copy gives a model a second name. A model that has that name already is replaced, and keeps the case of its name.
func (s *Store) Copy(src, dst model.Name) error {
	if !modelname.Valid(dst) {
		return errdefs.New(errdefs.ErrInvalid, "invalid model name")
	}
	if _, err := s.Get(src); err != nil { // installs a bundled model
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.resolve(src)
	if !ok {
		return errdefs.New(errdefs.ErrNotFound, "model %q not found", modelname.Display(src))
	}
	m, err := readManifest(e.path)
	if err != nil {
		return s.failure(err, "copying a model")
	}
	return s.commit(dst, m.raw, m.all())
}

// commit writes the manifest of a model and gives free what the model it replaces no longer needs. The caller has mu
// for writing.
func (s *Store) commit(n model.Name, raw []byte, layers []Layer) error {
	path := s.manifestPath(n)
	if e, ok := s.find(n); ok {
		path = e.path
	}
	old, err := readManifest(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("a damaged model is replaced and its blobs stay", "model", modelname.Display(n), "error", err)
	}
	if err := s.writeManifest(path, raw); err != nil {
		return s.failure(err, "writing a manifest")
	}
	s.cache.forget(path)
	for _, l := range layers {
		os.Remove(s.markPath(l.Digest)) // a mark that stays is removed by the next sweep
	}
	if old != nil && !s.noPrune {
		s.release(old)
	}
	return nil
}
