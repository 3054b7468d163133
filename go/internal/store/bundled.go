package store

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// bundledDir returns the directory of the bundled model that a name means, and its canonical name.
func (s *Store) bundledDir(n model.Name) (dir string, name model.Name, ok bool) {
	for _, b := range s.bundledNames() {
		if modelname.Key(b) == modelname.Key(n) {
			return filepath.Join(s.bundled, b.Model), b, true
		}
	}
	return "", model.Name{}, false
}

// bundledNames lists the models that come with ollmlx.
func (s *Store) bundledNames() []model.Name {
	if s.bundled == "" {
		return nil
	}
	entries, err := os.ReadDir(s.bundled)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			s.log.Warn("bundled models cannot be listed", "error", err)
		}
		return nil
	}
	var names []model.Name
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") || strings.HasPrefix(e.Name(), "_") {
			continue
		}
		if _, err := os.Stat(filepath.Join(s.bundled, e.Name(), "config.json")); err != nil {
			continue
		}
		n, err := modelname.Parse(e.Name())
		if err != nil {
			s.log.Warn("a bundled model has no valid name", "name", e.Name())
			continue
		}
		names = append(names, n)
	}
	return names
}

// installAtOpen installs all bundled models if the store is empty, so that a new installation lists something to run,
// and brings installed ones up to date with this version of ollmlx. A failure is logged: the store works without.
func (s *Store) installAtOpen() {
	names := s.bundledNames()
	if len(names) == 0 {
		return
	}
	stored, err := s.entries()
	if err != nil {
		s.log.Warn("bundled models are not installed", "error", err)
		return
	}
	for _, n := range names {
		m, err := s.stored(n)
		outdated := err == nil && m.bundled
		if len(stored) > 0 && !outdated {
			continue
		}
		if _, err := s.installBundled(n); err != nil {
			s.log.Warn("a bundled model is not installed", "model", modelname.Display(n), "error", err)
		}
	}
}

// installBundled stores a bundled model, and reports whether there is one of this name. A model that is up to date is
// left as it is.
func (s *Store) installBundled(n model.Name) (bool, error) {
	dir, name, ok := s.bundledDir(n)
	if !ok {
		return false, nil
	}
	s.installing.Lock()
	defer s.installing.Unlock()
	c, err := s.bundledCreation(dir, name)
	if err != nil {
		return true, err
	}
	defer c.end()
	if m, err := s.stored(name); err == nil && (!m.bundled || sameFiles(m.Layers, c.files)) {
		return true, nil // installed by another request, or the user's own
	}
	if err := c.fromFiles(); err != nil {
		return true, err
	}
	if err := c.finish(); err != nil {
		return true, err
	}
	s.log.Info("installed a bundled model", "model", modelname.Display(name))
	return true, nil
}

// bundledCreation brings the files of a bundled model into the store.
func (s *Store) bundledCreation(dir string, name model.Name) (*creation, error) {
	src, err := mlxmodel.OpenDir(dir)
	if err != nil {
		return nil, s.failure(err, "reading a bundled model")
	}
	defer src.Close()
	c := &creation{store: s, name: name, progress: func(api.ProgressResponse) {}, files: map[string]string{}, fresh: map[string]bool{}}
	c.config.Bundled = true
	for _, p := range mlxmodel.Select(src.Paths()).All() {
		f, err := src.Open(p)
		if err != nil {
			c.end()
			return nil, err
		}
		digest, err := s.addFile(f)
		f.Close()
		if err != nil {
			c.end()
			return nil, errdefs.New(errdefs.ErrInternal, "installing the bundled model %s: %w", name.Model, err)
		}
		c.hold(digest)
		c.files[p] = digest
	}
	return c, nil
}

// sameFiles reports whether the file layers are the model's files among these.
func sameFiles(layers []Layer, files map[string]string) bool {
	for _, l := range layers {
		if l.MediaType == mediaFile && files[l.Name] != l.Digest {
			return false
		}
	}
	return len(filePaths(layers)) == len(mlxmodel.Select(slices.Collect(maps.Keys(files))).Files)
}
