package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ollama/ollama/format"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// incomingDir, below stateDir, holds the manifests of models whose transfer began and has not ended. What they refer to
// stays, so that a transfer can be taken up again, also after a restart.
const incomingDir = "incoming"

// incomingPatience is how long an interrupted transfer is remembered.
const incomingPatience = 7 * 24 * time.Hour

// Incoming is a model that is being brought into the store. Nobody sees it before Commit, and its blobs stay until
// Close. After a Close without Commit, a later Receive of the same manifest finds what has come so far.
type Incoming struct {
	store  *Store
	name   model.Name
	file   *manifestFile
	layers []Layer
	held   []string
}

// Receive begins to bring in the model that a manifest from elsewhere describes. It refuses with ErrInvalid what could
// not be stored. The caller brings the blobs of Layers (see OpenPartial), calls Commit, and in any case Close.
func (s *Store) Receive(n model.Name, raw []byte) (*Incoming, error) {
	if !modelname.Valid(n) {
		return nil, errdefs.New(errdefs.ErrInvalid, "invalid model name")
	}
	f, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	in := &Incoming{store: s, name: n, file: f}
	if err := in.checkLayers(); err != nil {
		return nil, err
	}
	for _, l := range in.layers {
		in.held = append(in.held, l.Digest)
	}
	s.hold(in.held...)
	if err := s.writeFile(filepath.Join(stateDir, incomingDir), in.record(), func(f *os.File) error {
		_, err := f.Write(raw)
		return err
	}); err != nil {
		in.Close()
		return nil, s.failure(err, "noting a transfer")
	}
	return in, nil
}

// checkLayers refuses manifests that no honest registry sends, and fills in the layers to bring.
func (in *Incoming) checkLayers() error {
	sizes := map[string]int64{}
	// The configuration comes last, as in Ollama.
	all := slices.Clone(in.file.Layers)
	if in.file.Config.Digest != "" {
		all = append(all, in.file.Config)
	}
	for _, l := range all {
		size, seen := sizes[l.Digest]
		if seen && size != l.Size {
			return errdefs.New(errdefs.ErrInvalid, "the manifest gives the layer %s two sizes", l.Digest)
		}
		if !seen {
			in.layers = append(in.layers, l)
		}
		sizes[l.Digest] = l.Size
	}
	paths := filePaths(in.file.Layers)
	slices.Sort(paths)
	if len(slices.Compact(slices.Clone(paths))) != len(paths) {
		return errdefs.New(errdefs.ErrInvalid, "the manifest has two files of one name")
	}
	for _, skipped := range mlxmodel.Select(paths).Skipped {
		return errdefs.New(errdefs.ErrInvalid, "the manifest has the file %q, which is no part of a model: %s", clip(skipped.Path), skipped.Reason)
	}
	return nil
}

func (in *Incoming) record() string {
	return filepath.Join(in.store.dir, stateDir, incomingDir, "sha256-"+in.file.digest)
}

// Layers are the blobs that the model needs, each once, the configuration last.
func (in *Incoming) Layers() []Layer { return slices.Clone(in.layers) }

// Has reports whether a layer's blob is here, with the size that the manifest gives it.
func (in *Incoming) Has(l Layer) (bool, error) {
	size, err := in.store.blobSize(l.Digest)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return err == nil && size == l.Size, err
}

// Missing returns how many bytes have still to come.
func (in *Incoming) Missing() (int64, error) {
	var n int64
	for _, l := range in.layers {
		has, err := in.Has(l)
		if err != nil {
			return 0, err
		}
		if has {
			continue
		}
		// Sizes come from outside; their sum may not fit.
		if n += l.Size - in.store.Received(l); n < 0 {
			return 0, errdefs.New(errdefs.ErrInvalid, "the manifest's layers are too large")
		}
	}
	return n, nil
}

// Commit makes the model appear, or replaces the one of its name, and reports whether that one had blobs that nothing
// needs any more. It fails, and changes nothing, if a blob is missing or the model could not work.
func (in *Incoming) Commit() (released bool, err error) {
	s := in.store
	if err := in.check(); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Another program that shares the store may have removed a blob meanwhile.
	if err := s.checkPresent(in.layers); err != nil {
		return false, err
	}
	released = !s.noPrune && in.releases()
	in.unhold()
	if err := s.commit(in.name, in.file.raw, in.layers); err != nil {
		return false, err
	}
	os.Remove(in.record()) // one that stays expires
	return released, nil
}

// check looks into the blobs as create does into files, so that what is pulled can be used.
func (in *Incoming) check() error {
	s := in.store
	m, err := s.build(in.file)
	if err == nil {
		m.Layers = in.layers
		err = s.checkLayers(m)
		m.Layers = in.file.Layers
	}
	var damage damagedError
	if errors.As(err, &damage) {
		return errdefs.New(errdefs.ErrInvalid, "the model cannot be stored: %s", damage)
	}
	if err != nil {
		return s.failure(err, "checking a model")
	}
	if err := m.CheckVersion(); err != nil {
		return err
	}
	switch m.Format {
	case FormatMLX:
		_, err = mlxmodel.Inspect(s.Files(m))
		if m.Adapter() != nil && err == nil {
			_, err = mlxmodel.InspectAdapter(s.adapterSource(m.Layers))
		}
	case FormatGGUF:
		err = s.checkGGUF(m)
	}
	return s.failure(err, "checking a model")
}

// Config is the layer of the model's configuration; ok is false if there is none.
func (in *Incoming) Config() (l Layer, ok bool) { return in.file.Config, in.file.Config.Digest != "" }

// CheckVersion refuses, as Commit would, a model that requires a later version than this server follows. Its configuration
// has to be here.
func (in *Incoming) CheckVersion() error {
	raw, err := in.store.readBlob(in.file.Config.Digest, in.file.Config.Size)
	if err != nil {
		return in.store.failure(err, "reading the configuration of a model")
	}
	var c struct {
		Requires string `json:"requires"`
	}
	if json.Unmarshal(raw, &c) != nil {
		return nil // Commit tells what is wrong with it.
	}
	return checkRequires(c.Requires)
}

// releases reports whether the model that is replaced has layers that this one has not. The caller has mu.
func (in *Incoming) releases() bool {
	e, ok := in.store.find(in.name)
	if !ok {
		return false
	}
	old, err := readManifest(e.path)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(old.all(), func(o Layer) bool {
		return !slices.ContainsFunc(in.layers, func(l Layer) bool { return l.Digest == o.Digest })
	})
}

// Close ends the protection of the model's blobs. What came without a Commit stays to be taken up later.
func (in *Incoming) Close() {
	in.store.mu.Lock()
	defer in.store.mu.Unlock()
	in.unhold()
}

func (in *Incoming) unhold() {
	in.store.unhold(in.held)
	in.held = nil
}

// FreeSpace returns how many bytes can be written to the store.
func (s *Store) FreeSpace() (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(filepath.Join(s.dir, blobsDir), &st); err != nil {
		return 0, s.failure(err, "asking for the free space of the disk")
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // the types differ between systems
}

// CheckSpace returns an error when `need` bytes are more than what freeSpace tells; `what` they are for completes the
// sentence.
func CheckSpace(need int64, what string, freeSpace func() (int64, error)) error {
	free, err := freeSpace()
	if err != nil || need <= free {
		return err
	}
	return errdefs.New(errdefs.ErrPrecondition, "not enough disk space: %s are needed %s, and %s are free; remove models "+
		"with \"ollmlx rm\", or set OLLAMA_MODELS to a larger disk", format.HumanBytes(need), what, format.HumanBytes(free))
}

// incomingDigests are what interrupted transfers have brought or may have brought. Records that are too old or that
// cannot be read are removed.
func (s *Store) incomingDigests() map[string]bool {
	digests := map[string]bool{}
	dir := filepath.Join(s.dir, stateDir, incomingDir)
	records, err := os.ReadDir(dir)
	if err != nil {
		s.log.Warn("interrupted transfers are not known", "error", err)
		return digests
	}
	for _, r := range records {
		path := filepath.Join(dir, r.Name())
		m, err := readManifest(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || time.Since(m.info.ModTime()) > incomingPatience {
			os.Remove(path)
			continue
		}
		for _, l := range m.all() {
			digests[l.Digest] = true
		}
	}
	return digests
}

// removePartials removes what no interrupted transfer is waiting for.
func (s *Store) removePartials() {
	wanted := s.incomingDigests()
	matches, _ := filepath.Glob(filepath.Join(s.tempFor(blobsDir), partialPrefix+"*")) // fails only for a bad pattern
	for _, m := range matches {
		name := strings.TrimPrefix(filepath.Base(m), partialPrefix)
		digest, err := ParseDigest(strings.TrimSuffix(name, partialState))
		if err == nil && wanted[digest] {
			continue
		}
		if err := os.Remove(m); err != nil {
			s.log.Warn("the rest of an old transfer stays", "file", filepath.Base(m), "error", bareError(err))
		}
	}
}

// Tensors reports whether the model has a layer for each tensor, as those of Ollama's own MLX engine have.
func (in *Incoming) Tensors() bool {
	return slices.ContainsFunc(in.layers, func(l Layer) bool { return l.MediaType == mediaTensor })
}
