package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// Media types of layers. All but mediaFile are Ollama's.
const (
	mediaManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	mediaConfig    = "application/vnd.docker.container.image.v1+json"
	mediaModel     = "application/vnd.ollama.image.model"
	mediaDraft     = "application/vnd.ollama.image.draft"
	mediaProjector = "application/vnd.ollama.image.projector"
	mediaAdapter   = "application/vnd.ollama.image.adapter"
	mediaTensor    = "application/vnd.ollama.image.tensor"
	mediaTemplate  = "application/vnd.ollama.image.template"
	mediaPrompt    = "application/vnd.ollama.image.prompt" // an old name of mediaTemplate
	mediaSystem    = "application/vnd.ollama.image.system"
	mediaParams    = "application/vnd.ollama.image.params"
	mediaMessages  = "application/vnd.ollama.image.messages"
	mediaLicense   = "application/vnd.ollama.image.license"
	// mediaFile is a file of a model in Hugging Face layout; the layer's name is its relative path.
	mediaFile = "application/vnd.ollmlx.image.file"
)

// mediaOllama begins all of Ollama's kinds of layers.
const mediaOllama = "application/vnd.ollama.image."

// Bounds on what is read whole.
const (
	maxManifest = 16 << 20
	maxLayers   = 100_000
	maxSmall    = 4 << 20 // config, template, system, params, messages, license
)

// Layer is an entry of a manifest.
type Layer struct {
	MediaType string `json:"mediaType"`
	// Digest is canonical: "sha256:" and lower-case hex.
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// From is the model that the layer was taken over from.
	From string `json:"from,omitempty"`
	// Name is the relative path of a file of a model or an adapter, or the name of a tensor.
	Name string `json:"name,omitempty"`
}

type manifest struct {
	SchemaVersion int     `json:"schemaVersion"`
	MediaType     string  `json:"mediaType"`
	Config        Layer   `json:"config"`
	Layers        []Layer `json:"layers"`
}

// all returns the layers with the config's.
func (m *manifest) all() []Layer {
	if m.Config.Digest == "" {
		return m.Layers
	}
	return append([]Layer{m.Config}, m.Layers...)
}

// manifestFile is a manifest as it lies in the store.
type manifestFile struct {
	manifest
	info os.FileInfo
	// raw is the file's content, digest its SHA-256 in hex: the identity of the model.
	raw    []byte
	digest string
}

// readManifest reads and checks a manifest. Content that is no manifest is an error of kind ErrInvalid.
func readManifest(path string) (*manifestFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errdefs.New(errdefs.ErrInvalid, "the manifest is no regular file")
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	m.info = info
	return m, nil
}

// parseManifest checks the content of a manifest.
func parseManifest(raw []byte) (*manifestFile, error) {
	if len(raw) > maxManifest {
		return nil, errdefs.New(errdefs.ErrInvalid, "the manifest is larger than %d MiB", maxManifest>>20)
	}
	m := &manifestFile{raw: raw}
	// As Ollama does, anything after the first JSON value is left alone.
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&m.manifest); err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "the manifest is no valid JSON: %v", err)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	m.digest = hex.EncodeToString(sum[:])
	return m, nil
}

// check makes digests canonical and refuses what could not be a model of ours or Ollama's.
func (m *manifest) check() error {
	if len(m.Layers) > maxLayers {
		return errdefs.New(errdefs.ErrInvalid, "the manifest has more than %d layers", maxLayers)
	}
	if len(m.Layers) == 0 && m.Config.Digest == "" {
		return errdefs.New(errdefs.ErrInvalid, "the manifest has no layers")
	}
	// Ollama's oldest manifests have no config.
	if m.Config.Digest != "" {
		if err := m.Config.check(); err != nil {
			return err
		}
	}
	for i := range m.Layers {
		if err := m.Layers[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (l *Layer) check() error {
	d, err := ParseDigest(l.Digest)
	if err != nil {
		return errdefs.New(errdefs.ErrInvalid, "the manifest has a layer with an invalid digest")
	}
	l.Digest = d
	if l.Size < 0 {
		return errdefs.New(errdefs.ErrInvalid, "the manifest has a layer of negative size")
	}
	if l.MediaType == mediaFile && !validFileName(l.Name) {
		return errdefs.New(errdefs.ErrInvalid, "the manifest has a file with an invalid path")
	}
	return nil
}

// validFileName reports whether the name of a file layer can be used below a directory of ours: relative, without "..",
// hidden parts, or anything that another system would read as a separator.
func validFileName(name string) bool {
	if !fs.ValidPath(name) || !filepath.IsLocal(name) || strings.ContainsAny(name, "\\:\x00") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".") {
			return false
		}
	}
	return true
}

// writeManifest puts a manifest in place; the caller has mu for writing.
func (s *Store) writeManifest(path string, raw []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return s.writeFile(manifestsDir, path, func(f *os.File) error {
		_, err := f.Write(raw)
		return err
	})
}

// entry is a place of a manifest: the model's canonical name and the file.
type entry struct {
	name model.Name
	path string
}

// manifestPath is where a new model of this name goes.
func (s *Store) manifestPath(n model.Name) string {
	return filepath.Join(s.dir, manifestsDir, n.Host, n.Namespace, n.Model, n.Tag)
}

// find looks for a stored model of this very name in any case, and of any spelling of its host.
func (s *Store) find(n model.Name) (entry, bool) {
	for _, host := range modelname.HostSpellings(n.Host) {
		parts, ok := match(filepath.Join(s.dir, manifestsDir), []string{host, n.Namespace, n.Model, n.Tag})
		if !ok {
			continue
		}
		found := model.Name{Host: n.Host, Namespace: parts[1], Model: parts[2], Tag: parts[3], ProtocolScheme: n.ProtocolScheme}
		return entry{found, filepath.Join(append([]string{s.dir, manifestsDir}, parts...)...)}, true
	}
	return entry{}, false
}

// match follows the parts of a path below dir without regard to case and returns them as they are on disk. It prefers
// equal case but tries all, because a file system may hold both.
func match(dir string, parts []string) ([]string, bool) {
	if len(parts) == 0 {
		info, err := os.Stat(dir)
		return nil, err == nil && !info.IsDir()
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false
	}
	var candidates []string
	for _, e := range entries {
		switch {
		case e.Name() == parts[0]:
			candidates = append([]string{e.Name()}, candidates...)
		case strings.EqualFold(e.Name(), parts[0]):
			candidates = append(candidates, e.Name())
		}
	}
	for _, c := range candidates {
		if rest, ok := match(filepath.Join(dir, c), parts[1:]); ok {
			return append([]string{c}, rest...), true
		}
	}
	return nil, false
}

// resolve finds the model that users mean by a name: the very name, or the model of the hub where the name gave no host
// and only the hub's is stored.
func (s *Store) resolve(n model.Name) (entry, bool) {
	if e, ok := s.find(n); ok {
		return e, true
	}
	if hub, ok := modelname.OnHub(n); ok {
		return s.find(hub)
	}
	return entry{}, false
}

// entries lists the places of all manifests. What is no valid name is left out.
func (s *Store) entries() ([]entry, error) {
	var found []entry
	root := filepath.Join(s.dir, manifestsDir)
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && path == ".":
			return err
		case err != nil:
			s.warnOnce(path, "a directory of manifests cannot be read", bareError(err))
			return fs.SkipDir
		case path != "." && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case e.IsDir():
			return nil
		}
		n, ok := nameOf(path)
		if !ok {
			s.warnOnce(path, "a manifest has no valid place", errors.New("its path is no model name"))
			return nil
		}
		found = append(found, entry{n, filepath.Join(root, filepath.FromSlash(path))})
		return nil
	})
	return found, err
}

// nameOf returns the canonical name of a path below manifests/.
func nameOf(path string) (model.Name, bool) {
	parts := strings.Split(path, "/")
	if len(parts) != 4 {
		return model.Name{}, false
	}
	n := model.Name{
		Host: modelname.CanonicalHost(parts[0]), Namespace: parts[1], Model: parts[2], Tag: parts[3],
		ProtocolScheme: model.DefaultName().ProtocolScheme,
	}
	return n, modelname.Valid(n)
}
