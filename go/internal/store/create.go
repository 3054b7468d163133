package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"slices"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
)

// CreateParams are what a model is made from.
type CreateParams struct {
	// Request is the client's; its files are digests of blobs that were uploaded before.
	Request api.CreateRequest
	// Pull brings a model that Request.From names and that is not stored. Nil: such a model is not found.
	Pull func(ctx context.Context, n model.Name, progress func(api.ProgressResponse)) error
	// Converter quantizes and checks adapters. Nil: what needs it is refused.
	Converter Converter
	// Source is where the request's files were got from; nil: from the client.
	Source *Source
}

// Create makes a model of files or of another model, and reports its progress in Ollama's words. Until the manifest is
// written, which is the last step, nothing changes for anyone; a model that has the name already is replaced and keeps
// the case of its name.
func (s *Store) Create(ctx context.Context, p CreateParams, progress func(api.ProgressResponse)) error {
	c, err := s.newCreation(p, progress)
	if err != nil {
		return err
	}
	defer c.end()
	if err := c.base(ctx); err != nil {
		return err
	}
	if err := c.quantize(ctx); err != nil {
		return err
	}
	if err := c.adapt(ctx); err != nil {
		return err
	}
	if err := c.apply(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.finish()
}

// creation is a model in the making.
type creation struct {
	store     *Store
	converter Converter
	pull      func(ctx context.Context, n model.Name, progress func(api.ProgressResponse)) error
	progress  func(api.ProgressResponse)
	req       api.CreateRequest
	name      model.Name
	// files and adapters map relative paths to canonical digests.
	files, adapters map[string]string
	layers          []Layer
	fresh           map[string]bool // digests that this creation brought into the store
	config          storedConfig
	// scheme is what to quantize to; nil: nothing.
	scheme *scheme
	// held are the digests that this creation keeps from being removed, claimed those that a client's upload or this
	// creation itself put into the store for it.
	held, claimed []string
}

// newCreation checks all of the request that can be checked without the store.
func (s *Store) newCreation(p CreateParams, progress func(api.ProgressResponse)) (*creation, error) {
	if progress == nil {
		progress = func(api.ProgressResponse) {}
	}
	c := &creation{store: s, converter: p.Converter, pull: p.Pull, progress: progress, req: p.Request, fresh: map[string]bool{}}
	c.config.Source = p.Source
	var err error
	if c.files, err = checkFiles(c.req.Files); err != nil {
		return nil, err
	}
	if c.adapters, err = checkAdapters(c.req.Adapters); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 older clients send the deprecated fields, and Ollama honours them
	if c.name, err = modelname.Parse(cmp.Or(c.req.Model, c.req.Name)); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 as above
	quantize := cmp.Or(c.req.Quantize, c.req.Quantization)
	switch {
	case c.req.From == "" && c.req.Files == nil:
		return nil, errdefs.New(errdefs.ErrInvalid, "neither 'from' or 'files' was specified")
	case c.req.From != "" && len(c.files) > 0:
		return nil, errdefs.New(errdefs.ErrInvalid, "both 'from' and 'files' were specified; a model is made from one of them")
	case c.req.From == "" && len(c.files) == 0:
		return nil, errdefs.New(errdefs.ErrInvalid, "no files provided to convert")
	case c.req.RemoteHost != "":
		return nil, errdefs.New(errdefs.ErrUnsupported, "remote models are not supported (remote_host %q)", c.req.RemoteHost)
	}
	if quantize != "" {
		sch, err := parseScheme(quantize)
		if err != nil {
			return nil, err
		}
		c.scheme = &sch
	}
	return c, c.checkSettings()
}

// checkFiles makes the digests of a request's files canonical.
func checkFiles(files map[string]string) (map[string]string, error) {
	checked := make(map[string]string, len(files))
	for path, digest := range files {
		// The texts are Ollama's.
		if !fs.ValidPath(path) || path == "." {
			return nil, errdefs.New(errdefs.ErrInvalid, "file path must be relative")
		}
		d, err := ParseDigest(digest)
		if err != nil {
			return nil, err
		}
		checked[path] = d
	}
	return checked, nil
}

func (c *creation) hold(digest string) {
	c.store.hold(digest)
	c.held = append(c.held, digest)
}

func (c *creation) end() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.store.unhold(c.held)
	c.held = nil
}

func (c *creation) status(status string) { c.progress(api.ProgressResponse{Status: status}) }

// base takes the layers of what the model is made from.
func (c *creation) base(ctx context.Context) error {
	if c.req.From != "" {
		return c.fromModel(ctx)
	}
	return c.fromFiles()
}

func (c *creation) fromModel(ctx context.Context) error {
	n, err := modelname.Parse(c.req.From)
	if err != nil {
		return err
	}
	m, err := c.store.Get(n)
	if errors.Is(err, errdefs.ErrNotFound) && c.pull != nil {
		if err := c.pull(ctx, n, c.progress); err != nil {
			return err
		}
		m, err = c.store.Get(n)
	}
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		c.hold(l.Digest)
		l.From = modelname.Display(m.Name)
		c.layers = append(c.layers, l)
	}
	c.config.ConfigV2 = m.Config
	// Held now: what a concurrent delete took before is told here and not by a model that is broken.
	return c.store.checkPresent(c.layers)
}

// checkPresent fails with ErrNotFound if a layer's blob is not in the store.
func (s *Store) checkPresent(layers []Layer) error {
	for _, l := range layers {
		if _, err := s.blobSize(l.Digest); err != nil {
			return err
		}
	}
	return nil
}

// add stores a layer of the given content.
func (c *creation) add(mediaType string, content []byte) (Layer, error) {
	if len(content) > maxSmall {
		return Layer{}, errdefs.New(errdefs.ErrTooLarge, "a part of the model's settings is larger than %d MiB", maxSmall>>20)
	}
	digest, created, err := c.store.addBlob(content)
	if err != nil {
		return Layer{}, err
	}
	c.hold(digest)
	c.claimed = append(c.claimed, digest)
	c.fresh[digest] = c.fresh[digest] || created
	return Layer{MediaType: mediaType, Digest: digest, Size: int64(len(content))}, nil
}

// replace removes all layers of a media type and adds one of the given content.
func (c *creation) replace(mediaType string, content []byte) error {
	c.layers = slices.DeleteFunc(c.layers, func(l Layer) bool {
		return l.MediaType == mediaType || mediaType == mediaTemplate && l.MediaType == mediaPrompt
	})
	return c.append(mediaType, content)
}

func (c *creation) append(mediaType string, content []byte) error {
	l, err := c.add(mediaType, content)
	if err != nil {
		return err
	}
	c.layers = append(c.layers, l)
	return nil
}

// finish writes configuration and manifest.
func (c *creation) finish() error {
	c.config.OS, c.config.Architecture = "linux", "amd64" // what Ollama writes everywhere
	c.config.RootFS = model.RootFS{Type: "layers", DiffIDs: []string{}}
	for _, l := range c.layers {
		c.config.RootFS.DiffIDs = append(c.config.RootFS.DiffIDs, l.Digest)
	}
	raw, err := json.Marshal(c.config)
	if err != nil {
		return err
	}
	config, err := c.add(mediaConfig, raw)
	if err != nil {
		return err
	}
	m := manifest{SchemaVersion: 2, MediaType: mediaManifest, Config: config, Layers: c.layers}
	if raw, err = json.Marshal(m); err != nil {
		return err
	}
	if len(raw) > maxManifest {
		return errdefs.New(errdefs.ErrTooLarge, "the model has too many layers")
	}
	for _, l := range append(slices.Clone(c.layers), config) {
		if c.fresh[l.Digest] {
			c.status("creating new layer " + l.Digest)
		} else {
			c.status("using existing layer " + l.Digest)
		}
	}
	c.status("writing manifest")
	if err := c.commit(raw, m.all()); err != nil {
		return err
	}
	c.status("success")
	return nil
}

func (c *creation) commit(raw []byte, layers []Layer) error {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	// Another program that shares the store may have removed a blob meanwhile.
	if err := s.checkPresent(layers); err != nil {
		return err
	}
	// From here on the manifest protects what it refers to, and what it replaces may go.
	s.unhold(c.held)
	c.held = nil
	s.redeem(c.claimed)
	return s.commit(c.name, raw, layers)
}

// sortedKeys returns the paths of files in a fixed order, so that equal files make equal manifests.
func sortedKeys(files map[string]string) []string { return slices.Sorted(maps.Keys(files)) }
