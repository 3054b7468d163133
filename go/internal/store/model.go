package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Format is what a model's weights are kept in. It is known from the layers, never from the name.
type Format string

const (
	// FormatMLX is a model in Hugging Face layout with safetensors, which the MLX engine runs.
	FormatMLX Format = "mlx"
	// FormatGGUF is a GGUF file.
	FormatGGUF Format = "gguf"
	// FormatTensors is a model of Ollama's own MLX engine, one layer for each tensor; Ollama calls it "safetensors".
	FormatTensors Format = "safetensors"
	// FormatNone is a model without weights, for example one that Ollama runs in its cloud.
	FormatNone Format = ""
)

// Model is a stored model. What it refers to is shared: read it, do not change it.
type Model struct {
	// Name is canonical and keeps the case in which it is stored.
	Name model.Name
	// Digest is the SHA-256 of the manifest, in hex: equal digests are equal models.
	Digest     string
	Size       int64
	ModifiedAt time.Time
	Format     Format
	// Config is the manifest's configuration as stored.
	Config       model.ConfigV2
	Details      api.ModelDetails
	Capabilities []model.Capability
	// ContextLength is the longest context the model was made for, EmbeddingLength the width of its hidden state; 0 if
	// not known.
	ContextLength, EmbeddingLength int
	// Template is the Modelfile's TEMPLATE (Go syntax); empty if the tokenizer's own chat template applies.
	Template string
	System   string
	Licenses []string
	// Parameters are the Modelfile's PARAMETERs with the types of JSON.
	Parameters map[string]any
	Messages   []api.Message
	Layers     []Layer
	// Load are a request's wishes for how an engine loads the model; whoever asks for a runner sets them. Models that differ
	// in them need runners of their own. nil: the engine's defaults.
	Load *runnerpb.LoadRequest

	// Source is where the files come from, nil if that is not known.
	Source *Source

	bundled bool
	// gguf is what the file of a GGUF model says; nil for other formats, and if it cannot be read.
	gguf *ggufHead
}

// Source is a state of a repository on a model hub.
type Source struct {
	// Repository is "organisation/name", URL the page that shows this very state.
	Repository string `json:"repository"`
	URL        string `json:"url"`
	Commit     string `json:"commit"`
	// Quantize is what the weights were quantized to here; empty: they are as they came.
	Quantize string `json:"quantize,omitempty"`
}

// Can reports whether the model has a capability.
func (m *Model) Can(c model.Capability) bool { return slices.Contains(m.Capabilities, c) }

// Prompt is what the model says about its prompts, beside the chat template of its tokenizer.
func (m *Model) Prompt() prompt.Source {
	return prompt.Source{Template: m.Template, Renderer: m.Config.Renderer, Parser: m.Config.Parser, Family: strings.ToLower(m.Config.ModelFamily)}
}

// WeightSize returns the bytes of the model's weights as stored.
func (m *Model) WeightSize() int64 {
	var n int64
	for _, l := range m.Layers {
		switch {
		case l.MediaType == mediaModel, l.MediaType == mediaProjector, l.MediaType == mediaTensor,
			l.MediaType == mediaFile && strings.HasSuffix(l.Name, ".safetensors"):
			n += l.Size
		}
	}
	return n
}

// layer returns the model's first layer of a media type, or nil.
func (m *Model) layer(mediaType string) *Layer {
	i := slices.IndexFunc(m.Layers, func(l Layer) bool { return l.MediaType == mediaType })
	if i < 0 {
		return nil
	}
	return &m.Layers[i]
}

// GGUF returns the digest of a GGUF model's weights, for BlobPath; empty for other formats.
func (m *Model) GGUF() string {
	if l := m.layer(mediaModel); l != nil && m.Format == FormatGGUF {
		return l.Digest
	}
	return ""
}

// storedConfig is the manifest's configuration with what ollmlx adds to it. Ollama ignores the addition.
type storedConfig struct {
	model.ConfigV2
	// Bundled marks a model that was installed from ollmlx itself and follows its updates.
	Bundled bool `json:"ollmlx_bundled,omitempty"`
	// Source tells where the model's files come from.
	Source *Source `json:"ollmlx_source,omitempty"`
}

// Get returns the model that a name means, in any case. A bundled model that is not stored is installed. The error is
// of kind ErrNotFound if there is no such model, and ErrInvalid if it is damaged.
func (s *Store) Get(n model.Name) (*Model, error) {
	if !modelname.Valid(n) {
		return nil, errdefs.New(errdefs.ErrInvalid, "invalid model name")
	}
	m, err := s.stored(n)
	if !errors.Is(err, errdefs.ErrNotFound) {
		return m, err
	}
	installed, installErr := s.installBundled(n)
	if installErr != nil {
		return nil, installErr
	}
	if !installed {
		return nil, err
	}
	return s.stored(n)
}

// stored is Get without bundled models.
func (s *Store) stored(n model.Name) (*Model, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.resolve(n)
	if !ok {
		return nil, errdefs.New(errdefs.ErrNotFound, "model %q not found", modelname.Display(n))
	}
	m, err := s.load(e)
	var damage damagedError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errdefs.New(errdefs.ErrNotFound, "model %q not found", modelname.Display(n))
	case errors.As(err, &damage):
		name := modelname.Display(n)
		return nil, errdefs.New(errdefs.ErrInvalid, "model %q is damaged: %s; remove it with \"ollmlx rm %s\", then pull or create it again", name, damage, name)
	}
	return m, s.failure(err, "reading a model")
}

// List returns all models, newest first. A damaged one is logged and left out: what is listed can be used.
func (s *Store) List() ([]*Model, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	entries, err := s.entries()
	if err != nil {
		return nil, s.failure(err, "listing models")
	}
	models := []*Model{}
	seen := map[string]bool{}
	for _, e := range entries {
		m, err := s.load(e)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			s.warnOnce(e.path, "a model is left out", err)
			continue
		case seen[modelname.Key(m.Name)]:
			continue // the same name under another spelling of its host, or in another case: Get finds one of them
		}
		seen[modelname.Key(m.Name)] = true
		models = append(models, m)
	}
	slices.SortFunc(models, func(a, b *Model) int {
		return cmp.Or(b.ModifiedAt.Compare(a.ModifiedAt), strings.Compare(modelname.Key(a.Name), modelname.Key(b.Name)))
	})
	return models, nil
}

// damagedError says what is wrong with the content of one model.
type damagedError string

func (e damagedError) Error() string { return string(e) }

func damaged(format string, args ...any) error { return damagedError(fmt.Sprintf(format, args...)) }

// load returns the model of a manifest. The caller has mu for reading.
func (s *Store) load(e entry) (*Model, error) {
	info, err := os.Stat(e.path)
	if err != nil {
		return nil, err
	}
	m := s.cache.get(e.path, info)
	if m == nil {
		f, err := readManifest(e.path)
		if errors.Is(err, errdefs.ErrInvalid) {
			return nil, damaged("%v", err)
		}
		if err != nil {
			return nil, err
		}
		if m, err = s.build(f); err != nil {
			return nil, err
		}
		m.Name, m.ModifiedAt = e.name, f.info.ModTime()
		s.cache.put(e.path, f.info, m)
	}
	// Blobs can go at any time when another program shares the store, so that this is never cached.
	if err := s.checkLayers(m); err != nil {
		return nil, err
	}
	copied := *m
	copied.Name = e.name
	copied.Parameters = maps.Clone(m.Parameters)
	return &copied, nil
}

func (s *Store) checkLayers(m *Model) error {
	for _, l := range m.Layers {
		size, err := s.blobSize(l.Digest)
		switch {
		case errors.Is(err, errdefs.ErrNotFound):
			return damaged("layer %s is missing", l.Digest)
		case err != nil:
			return err
		case size != l.Size:
			return damaged("layer %s has %d bytes instead of %d", l.Digest, size, l.Size)
		}
	}
	return nil
}

// build reads what a manifest's small layers say.
func (s *Store) build(f *manifestFile) (*Model, error) {
	m := &Model{Digest: f.digest, Layers: f.Layers}
	for _, l := range f.all() {
		m.Size += l.Size
	}
	if f.Config.Digest != "" {
		var c storedConfig
		if err := s.readJSON(f.Config.Digest, "configuration", &c); err != nil {
			return nil, err
		}
		m.Config, m.bundled, m.Source = c.ConfigV2, c.Bundled, c.Source
	}
	for _, l := range f.Layers {
		if err := s.readLayer(m, l); err != nil {
			return nil, err
		}
	}
	m.Format = s.formatOf(m)
	if err := checkAdapter(m); err != nil {
		return nil, err
	}
	m.ContextLength, m.EmbeddingLength = m.Config.ContextLen, m.Config.EmbedLen
	if m.Format == FormatGGUF {
		// A file that is damaged is listed all the same, and refused when it is to be run.
		if h, err := s.readGGUFHead(m.GGUF()); err == nil {
			m.gguf = h
			h.describe(m)
		} else {
			s.log.Warn("model store: a GGUF file cannot be read", "digest", m.GGUF(), "error", err)
		}
	}
	m.Capabilities = capabilities(m)
	m.Details = details(m)
	return m, nil
}

// readLayer takes a layer's content into the model if it is one that describes it.
func (s *Store) readLayer(m *Model, l Layer) error {
	switch l.MediaType {
	case mediaParams:
		return s.readJSON(l.Digest, "parameters", &m.Parameters)
	case mediaMessages:
		return s.readJSON(l.Digest, "messages", &m.Messages)
	case mediaTemplate, mediaPrompt, mediaSystem, mediaLicense:
		b, err := s.readSmall(l.Digest)
		if err != nil {
			return err
		}
		switch l.MediaType {
		case mediaSystem:
			m.System = string(b)
		case mediaLicense:
			m.Licenses = append(m.Licenses, string(b))
		default:
			m.Template = string(b)
		}
	}
	return nil
}

func (s *Store) readSmall(digest string) ([]byte, error) {
	b, err := s.readBlob(digest, maxSmall)
	if errdefs.Kind(err) == errdefs.ErrNotFound || errdefs.Kind(err) == errdefs.ErrInvalid {
		return nil, damaged("%v", err)
	}
	return b, err
}

func (s *Store) readJSON(digest, what string, v any) error {
	b, err := s.readSmall(digest)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return damaged("its %s are no valid JSON: %v", what, err)
	}
	return nil
}

// formatOf looks at what the layers hold.
func (s *Store) formatOf(m *Model) Format {
	if mlxmodel.IsModel(filePaths(m.Layers)) {
		return FormatMLX
	}
	if l := m.layer(mediaModel); l != nil {
		if s.isGGUF(l.Digest) {
			return FormatGGUF
		}
		return FormatNone
	}
	if m.layer(mediaTensor) != nil {
		return FormatTensors
	}
	return FormatNone
}

func filePaths(layers []Layer) []string {
	var paths []string
	for _, l := range layers {
		if l.MediaType == mediaFile {
			paths = append(paths, l.Name)
		}
	}
	return paths
}

func details(m *Model) api.ModelDetails {
	d := api.ModelDetails{
		Format:            cmp.Or(string(m.Format), m.Config.ModelFormat),
		Family:            m.Config.ModelFamily,
		Families:          m.Config.ModelFamilies,
		ParameterSize:     m.Config.ModelType,
		QuantizationLevel: m.Config.FileType,
	}
	for _, l := range m.Layers {
		// Ollama keeps the path of a blob here when a model was not made from another one.
		if l.From != "" && !strings.HasPrefix(l.From, "/") {
			d.ParentModel = l.From
			break
		}
	}
	return d
}
