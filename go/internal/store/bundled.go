package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

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

// Bundled reports whether a name means a model that comes with ollmlx.
func (s *Store) Bundled(n model.Name) bool {
	_, _, ok := s.bundledDir(n)
	return ok
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

// installBundled stores a bundled model, and reports whether there is one of this name. A model that is up to date, and
// one of the user's own, is left as it is.
func (s *Store) installBundled(n model.Name) (bool, error) {
	dir, name, ok := s.bundledDir(n)
	if !ok {
		return false, nil
	}
	s.installing.Lock()
	defer s.installing.Unlock()
	src, err := mlxmodel.OpenDir(dir)
	if err != nil {
		return true, s.failure(err, "reading a bundled model")
	}
	defer src.Close()
	paths := mlxmodel.Select(src.Paths()).All()
	files := map[string]string{}
	for _, p := range paths {
		if files[p], err = fileDigest(src, p); err != nil {
			return true, s.failure(err, "reading a bundled model")
		}
	}
	if m, err := s.stored(name); err == nil && (!m.bundled || sameFiles(m.Layers, files)) {
		return true, nil
	}
	c := &creation{store: s, name: name, progress: func(api.ProgressResponse) {}, files: files, fresh: map[string]bool{}}
	defer c.end()
	c.config.Bundled = true
	for _, p := range paths {
		c.hold(files[p])
		if err := s.putFile(src, p, files[p]); err != nil {
			return true, err
		}
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

func fileDigest(src mlxmodel.Source, path string) (string, error) {
	f, err := src.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), err
}

func (s *Store) putFile(src mlxmodel.Source, path, digest string) error {
	f, err := src.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = s.PutBlob(digest, f)
	return err
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
