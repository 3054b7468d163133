package store

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ollama/ollama/format"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/gguf"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// encoders are architectures that give vectors and no text; the runner knows the same.
var encoders = []string{
	"bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe",
	"t5encoder",
}

// poolingRank is the pooling type of models that score documents for a query.
const poolingRank = 4

// isGGUF reports whether a blob begins like a GGUF file.
func (s *Store) isGGUF(digest string) bool {
	f, err := os.Open(s.blobPath(digest))
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [len(gguf.Magic)]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && string(magic[:]) == gguf.Magic
}

// readGGUF reads the head of a blob.
func (s *Store) readGGUF(digest string, o gguf.Options) (*gguf.File, error) {
	f, err := os.Open(s.blobPath(digest))
	if err != nil {
		return nil, s.failure(err, "reading a GGUF file")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, s.failure(err, "reading a GGUF file")
	}
	return gguf.Read(f, info.Size(), o)
}

// ggufHead is what a model's file says, with what its vocabulary shows.
type ggufHead struct {
	*gguf.File
	// infill: the vocabulary has the tokens of a fill-in-the-middle prompt.
	infill bool
}

func (s *Store) readGGUFHead(digest string) (*ggufHead, error) {
	known := map[string]bool{}
	f, err := s.readGGUF(digest, gguf.Options{Token: func(token string) {
		if mlxmodel.IsInfillToken(token) {
			known[token] = true
		}
	}})
	if err != nil {
		return nil, err
	}
	return &ggufHead{f, mlxmodel.Infills(known)}, nil
}

// describe fills in what the configuration, which others may have written, does not say.
func (h *ggufHead) describe(m *Model) {
	m.Config.ModelFamily = cmp.Or(m.Config.ModelFamily, h.Architecture())
	if m.Config.ModelFamily != "" && len(m.Config.ModelFamilies) == 0 {
		m.Config.ModelFamilies = []string{m.Config.ModelFamily}
	}
	m.Config.ModelType = cmp.Or(m.Config.ModelType, format.HumanNumber(h.Parameters))
	m.Config.FileType = cmp.Or(m.Config.FileType, h.FileType())
	m.ContextLength = cmp.Or(m.ContextLength, int(h.Own("context_length")))
	m.EmbeddingLength = cmp.Or(m.EmbeddingLength, int(h.Own("embedding_length")))
}

// capabilities are those of the file itself: its chat template and its vocabulary.
func (h *ggufHead) capabilities() []model.Capability {
	if h.Own("pooling_type") == poolingRank {
		return []model.Capability{mlxmodel.CapabilityRerank}
	}
	if slices.Contains(encoders, h.Architecture()) || h.Own("pooling_type") != 0 {
		return []model.Capability{model.CapabilityEmbedding}
	}
	caps := []model.Capability{model.CapabilityCompletion}
	template := h.ChatTemplate()
	if mlxmodel.TemplateHasTools(template) {
		caps = append(caps, model.CapabilityTools)
	}
	if h.infill {
		caps = append(caps, model.CapabilityInsert)
	}
	if mlxmodel.TemplateThinks(template) {
		caps = append(caps, model.CapabilityThinking)
	}
	return caps
}

// KVPerToken is how many bytes a token takes in the KV caches of a GGUF model, at two for each number; 0 if it is not known.
func (m *Model) KVPerToken() uint64 {
	if m.gguf == nil {
		return 0
	}
	h := m.gguf
	heads := h.Own("attention.head_count")
	if heads == 0 {
		return 0
	}
	size := h.Own("embedding_length") / heads
	width := cmp.Or(h.Own("attention.key_length"), size) + cmp.Or(h.Own("attention.value_length"), size)
	// The file's own numbers: a product that wraps around is an estimate like any other that is wrong.
	return 2 * h.Own("block_count") * cmp.Or(h.Own("attention.head_count_kv"), heads) * width
}

// modelInfo is Ollama's model_info: the file's keys, without those that it shows elsewhere. Long arrays are empty unless
// they were read.
func modelInfo(f *gguf.File) map[string]any {
	info := map[string]any{}
	for key, value := range f.Values {
		if key == "general.name" || key == "tokenizer.chat_template" {
			continue
		}
		if a, ok := value.(*gguf.Array); ok {
			value = a.Elements
			if a.Elements == nil {
				value = []any{}
			}
		}
		info[key] = value
	}
	info["general.parameter_count"] = f.Parameters
	return info
}

// fromGGUF makes the layers of GGUF files: a model in one file or in several, what turns images into what it sees, and
// adapters.
func (c *creation) fromGGUF() error {
	c.status("parsing GGUF")
	var parts []ggufPart
	for _, p := range sortedKeys(c.files) {
		switch {
		case !c.store.isGGUF(c.files[p]) && filepath.Ext(p) == ".gguf":
			return errNotGGUF()
		case !c.store.isGGUF(c.files[p]):
			c.status(fmt.Sprintf("skipping %s: not needed beside a GGUF file", clip(p)))
			continue
		}
		f, err := c.store.readGGUF(c.files[p], gguf.Options{})
		if err != nil {
			return err
		}
		switch f.Kind() {
		case gguf.KindProjector:
			err = c.take(mediaProjector, p)
		case gguf.KindAdapter:
			err = c.take(mediaAdapter, p)
		default:
			parts = append(parts, ggufPart{p, f})
		}
		if err != nil {
			return err
		}
	}
	if err := checkParts(parts); err != nil {
		return err
	}
	for _, x := range parts {
		if err := c.take(mediaModel, x.path); err != nil {
			return err
		}
	}
	c.config.ModelFormat = string(FormatGGUF)
	return nil
}

// adaptGGUF adds an adapter to a GGUF model: a GGUF file itself, which the engine takes when it loads the model.
func (c *creation) adaptGGUF() error {
	c.status("checking adapter")
	for _, p := range sortedKeys(c.adapters) {
		if !c.store.isGGUF(c.adapters[p]) {
			return errdefs.New(errdefs.ErrInvalid, "the model is a GGUF file, and its adapter has to be one too: convert %s with llama.cpp's convert_lora_to_gguf.py", clip(p))
		}
		f, err := c.store.readGGUF(c.adapters[p], gguf.Options{})
		if err != nil {
			return err
		}
		if f.Kind() != gguf.KindAdapter {
			return errdefs.New(errdefs.ErrInvalid, "%s is no adapter: its general.type says %q", clip(p), f.String("general.type"))
		}
		size, err := c.store.blobSize(c.adapters[p])
		if err != nil {
			return err
		}
		c.layers = append(c.layers, Layer{MediaType: mediaAdapter, Digest: c.adapters[p], Size: size})
	}
	return nil
}

// ggufPart is a file of a model's weights.
type ggufPart struct {
	path string
	head *gguf.File
}

// checkParts sorts the files of a model by their numbers and refuses what is no whole model.
func checkParts(parts []ggufPart) error {
	if len(parts) == 0 {
		return errdefs.New(errdefs.ErrInvalid, "there is no model among the GGUF files: a projector or an adapter needs one beside it")
	}
	slices.SortStableFunc(parts, func(a, b ggufPart) int {
		x, _ := a.head.Split()
		y, _ := b.head.Split()
		return cmp.Compare(x, y)
	})
	_, count := parts[0].head.Split()
	if count == 1 && len(parts) > 1 {
		return errdefs.New(errdefs.ErrInvalid, "%s and %s are two models; a model is made of one, or of all the files of one that is split", clip(parts[0].path), clip(parts[1].path))
	}
	for i, x := range parts {
		if no, of := x.head.Split(); no != i || of != count || len(parts) != count {
			return errdefs.New(errdefs.ErrInvalid, "the model comes in %d files, and these are not all of them, each once", count)
		}
	}
	return nil
}

// GGUFFiles are the files of a GGUF model, laid out for a runner.
type GGUFFiles struct {
	// Model has the weights; of a model in several files it is the first, and the others lie beside it.
	Model string
	// Projector and Draft are empty where the model has none.
	Projector, Draft string
	Adapters         []GGUFAdapter
}

// GGUFAdapter is an adapter's file and the digest of its content.
type GGUFAdapter struct{ Path, Digest string }

// MaterializeGGUF makes links to the files of a GGUF model in dir, after it has checked all of their heads: nothing that is
// malformed comes before the engine.
func (s *Store) MaterializeGGUF(m *Model, dir string) (*GGUFFiles, error) {
	if m.Format != FormatGGUF {
		return nil, errdefs.New(errdefs.ErrUnsupported, "model %q has the format %q, which the GGUF engine does not run", modelname.Display(m.Name), m.Details.Format)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var files GGUFFiles
	var parts []ggufPart
	link := func(l Layer, name string) (string, error) {
		path := filepath.Join(dir, name)
		return path, s.failure(linkFile(s.blobPath(l.Digest), path), "linking a model's files")
	}
	for _, l := range m.Layers {
		if !slices.Contains([]string{mediaModel, mediaProjector, mediaAdapter, mediaDraft}, l.MediaType) {
			continue
		}
		if err := s.checkPresent([]Layer{l}); err != nil {
			return nil, err
		}
		f, err := s.readGGUF(l.Digest, gguf.Options{})
		if err != nil {
			return nil, fmt.Errorf("model %q: %w", modelname.Display(m.Name), err)
		}
		var path string
		switch l.MediaType {
		case mediaModel:
			parts = append(parts, ggufPart{l.Digest, f})
		case mediaProjector:
			files.Projector, err = link(l, "projector.gguf")
		case mediaDraft:
			files.Draft, err = link(l, "draft.gguf")
		default:
			path, err = link(l, fmt.Sprintf("adapter-%d.gguf", len(files.Adapters)))
			files.Adapters = append(files.Adapters, GGUFAdapter{path, l.Digest})
		}
		if err != nil {
			return nil, err
		}
	}
	if err := checkParts(parts); err != nil {
		return nil, fmt.Errorf("model %q: %w", modelname.Display(m.Name), err)
	}
	for i, x := range parts {
		name := "model.gguf"
		if len(parts) > 1 {
			// The library finds the others by these names.
			name = fmt.Sprintf("model-%05d-of-%05d.gguf", i+1, len(parts))
		}
		path, err := link(Layer{Digest: x.path}, name)
		if err != nil {
			return nil, err
		}
		files.Model = cmp.Or(files.Model, path)
	}
	return &files, nil
}

// checkGGUF checks the heads of all GGUF files of a model.
func (s *Store) checkGGUF(m *Model) error {
	var parts []ggufPart
	for _, l := range m.Layers {
		if strings.HasPrefix(l.MediaType, mediaOllama) && s.isGGUF(l.Digest) {
			f, err := s.readGGUF(l.Digest, gguf.Options{})
			if err != nil {
				return err
			}
			if l.MediaType == mediaModel {
				parts = append(parts, ggufPart{l.Digest, f})
			}
		}
	}
	return checkParts(parts)
}

// errNotGGUF has Ollama's text.
func errNotGGUF() error {
	return errdefs.New(errdefs.ErrInvalid, "supplied file was not in GGUF format")
}
