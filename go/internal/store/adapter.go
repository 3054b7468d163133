package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Adapter is what a model adds to its base: requests to the model go to the base's runner, which puts it on.
type Adapter struct {
	// Key identifies the content; equal adapters have equal keys.
	Key    string
	layers []Layer
}

// adapterFiles are the names of an MLX adapter's layers.
var adapterFiles = []string{mlxmodel.AdapterConfig, mlxmodel.AdapterWeights}

// Adapter returns the adapter of a model in MLX format, nil if it has none.
func (m *Model) Adapter() *Adapter {
	layers := adapterLayers(m.Layers)
	if m.Format != FormatMLX || len(layers) == 0 {
		return nil
	}
	h := sha256.New()
	for _, l := range layers {
		h.Write([]byte(l.Name + " " + l.Digest + "\n"))
	}
	return &Adapter{Key: "sha256:" + hex.EncodeToString(h.Sum(nil)), layers: layers}
}

func adapterLayers(layers []Layer) []Layer {
	return slices.DeleteFunc(slices.Clone(layers), func(l Layer) bool { return l.MediaType != mediaAdapter })
}

// checkAdapter finds adapters that would have to be left out to run the model.
func checkAdapter(m *Model) error {
	var names []string
	for _, l := range adapterLayers(m.Layers) {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	if m.Format == FormatMLX && len(names) > 0 && !slices.Equal(names, adapterFiles) {
		return damaged("it has an adapter in a form that MLX models do not take")
	}
	return nil
}

// MaterializeAdapter makes a directory of links to the files of a model's adapter below dir and returns its path, as
// Materialize does for the model.
func (s *Store) MaterializeAdapter(m *Model, dir string) (string, error) {
	a := m.Adapter()
	if a == nil {
		return "", errdefs.New(errdefs.ErrInternal, "model %q has no adapter", modelname.Display(m.Name))
	}
	s.linking.Lock()
	defer s.linking.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	path := filepath.Join(dir, "adapter-"+strings.TrimPrefix(a.Key, "sha256:"))
	if linked(a.layers, mediaAdapter, path) {
		return path, nil
	}
	return path, s.failure(s.link(a.layers, mediaAdapter, dir, path), "linking an adapter's files")
}

// adapterSource gives access to the files of a model's adapter.
func (s *Store) adapterSource(layers []Layer) *blobSource {
	files := map[string]string{}
	for _, l := range adapterLayers(layers) {
		files[l.Name] = l.Digest
	}
	return &blobSource{s, files}
}

func errOneAdapter(format string, args ...any) error {
	// The beginning is Ollama's text.
	return errdefs.New(errdefs.ErrInvalid, "only one adapter is currently supported"+format, args...)
}

// adapt adds the request's adapter to the model in the making.
func (c *creation) adapt(ctx context.Context) error {
	if len(c.adapters) == 0 {
		return nil
	}
	ofGGUF := slices.ContainsFunc(c.layers, func(l Layer) bool { return l.MediaType == mediaModel })
	if !ofGGUF && !mlxmodel.IsModel(filePaths(c.layers)) {
		return errdefs.New(errdefs.ErrUnsupported, "adapters are supported for models in MLX form and for GGUF, and this model is neither")
	}
	if old := adapterLayers(c.layers); len(old) > 0 {
		return errOneAdapter(", and model %q has one already; name the model that it was made from with FROM", c.req.From)
	}
	for _, p := range sortedKeys(c.adapters) {
		if err := c.useUpload(p, c.adapters[p]); err != nil {
			return err
		}
	}
	if ofGGUF {
		return c.adaptGGUF()
	}
	c.status("checking adapter")
	info, err := mlxmodel.InspectAdapter(&blobSource{c.store, c.adapters})
	if err != nil {
		return err
	}
	for _, f := range info.Skipped {
		c.status(fmt.Sprintf("skipping %s: %s", clip(f.Path), f.Reason))
	}
	var layers []Layer
	for _, p := range info.Files {
		size, err := c.store.blobSize(c.adapters[p])
		if err != nil {
			return err
		}
		layers = append(layers, Layer{MediaType: mediaAdapter, Digest: c.adapters[p], Size: size, Name: p})
	}
	if layers, err = c.fit(ctx, info, layers); err != nil {
		return err
	}
	c.layers = append(c.layers, layers...)
	return nil
}

// fit has the engine check that an adapter fits the model, and returns the adapter's layers in the form that the engine
// takes.
func (c *creation) fit(ctx context.Context, info *mlxmodel.Adapter, layers []Layer) ([]Layer, error) {
	if c.converter == nil {
		return nil, errdefs.New(errdefs.ErrUnsupported, "this server has no runner that could check the adapter")
	}
	dir, release, err := c.store.workDir()
	if err != nil {
		return nil, err
	}
	defer release()
	input, output, err := c.layOut(dir)
	if err != nil {
		return nil, err
	}
	adapter := filepath.Join(dir, "adapter")
	if err := c.store.link(layers, mediaAdapter, dir, adapter); err != nil {
		return nil, c.store.failure(err, "linking an adapter's files")
	}
	name := c.req.From
	if name == "" {
		name = "the model"
	}
	resp, err := c.converter.ImportAdapter(ctx, &runnerpb.ImportAdapterRequest{
		ModelPath: input, ModelName: name, AdapterPath: adapter, OutputPath: output,
	})
	if err != nil || !info.PEFT {
		return layers, err
	}
	c.status("converting adapter")
	layers = nil
	for _, name := range resp.GetFiles() {
		if !slices.Contains(adapterFiles, name) {
			return nil, errdefs.New(errdefs.ErrInternal, "the converter wrote a file of an unexpected name (%q)", clip(name))
		}
		l, err := c.adopt(mediaAdapter, filepath.Join(output, name))
		if err != nil {
			return nil, err
		}
		l.Name = name
		layers = append(layers, l)
	}
	slices.SortFunc(layers, func(a, b Layer) int { return strings.Compare(a.Name, b.Name) })
	if _, err := mlxmodel.InspectAdapter(c.store.adapterSource(layers)); err != nil {
		return nil, errdefs.New(errdefs.ErrInternal, "the converted adapter is not sound: %w", err)
	}
	return layers, nil
}

// checkAdapters makes digests canonical and takes the directory off the names: clients send an adapter's files with it or
// without.
func checkAdapters(files map[string]string) (map[string]string, error) {
	checked, err := checkFiles(files)
	if err != nil {
		return nil, err
	}
	bare := make(map[string]string, len(checked))
	dir, first := "", true
	for _, p := range sortedKeys(checked) {
		if d := path.Dir(p); first {
			dir, first = d, false
		} else if d != dir {
			return nil, errOneAdapter(": there are files of %s and of %s", clip(dir), clip(d))
		}
		if ext := path.Ext(p); ext == ".gguf" && len(checked) > 1 {
			return nil, errOneAdapter("")
		}
		bare[path.Base(p)] = checked[p]
	}
	return bare, nil
}

// useUpload protects a blob that a client uploaded for this creation.
func (c *creation) useUpload(path, digest string) error {
	c.hold(digest)
	c.claimed = append(c.claimed, digest)
	_, err := c.store.blobSize(digest)
	if errors.Is(err, errdefs.ErrNotFound) {
		return errdefs.New(errdefs.ErrInvalid, "the content of %s is not here: upload it first as blob %s", clip(path), digest)
	}
	return err
}
