package store

import (
	"fmt"
	"path"
	"strings"

	"github.com/ollama/ollama/format"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
)

// fromFiles makes the layers of uploaded files: a model in Hugging Face layout, or a GGUF file. Which of the two it is
// is seen from the files.
func (c *creation) fromFiles() error {
	for _, p := range sortedKeys(c.files) {
		if err := c.useUpload(p, c.files[p]); err != nil {
			return err
		}
	}
	var gguf, hub bool
	for p, digest := range c.files {
		gguf = gguf || path.Ext(p) == ".gguf" || c.store.isGGUF(digest)
		hub = hub || path.Ext(p) == ".safetensors" || p == "config.json" || mlxmodel.IsPickle(p)
	}
	switch {
	case hub && !gguf:
		return c.fromHubLayout()
	case gguf:
		return c.fromGGUF()
	default:
		return errdefs.New(errdefs.ErrInvalid, "unknown type")
	}
}

func (c *creation) source() *blobSource { return &blobSource{c.store, c.files} }

func (c *creation) fromHubLayout() error {
	c.status("checking model files")
	info, err := mlxmodel.Inspect(c.source())
	if err != nil {
		return err
	}
	for _, f := range info.Skipped {
		c.status(fmt.Sprintf("skipping %s: %s", clip(f.Path), f.Reason))
	}
	for _, p := range info.Files {
		if !validFileName(p) {
			return errdefs.New(errdefs.ErrInvalid, "the file name %q cannot be stored", clip(p))
		}
		if err := c.take(mediaFile, p); err != nil {
			return err
		}
	}
	for _, p := range info.Licenses {
		if err := c.take(mediaLicense, p); err != nil {
			return err
		}
	}
	c.config.ModelFormat = string(FormatMLX)
	c.config.ModelFamily = info.ModelType
	c.config.ModelFamilies = []string{info.ModelType}
	c.config.ModelType = format.HumanNumber(info.Parameters)
	c.config.FileType = info.Level()
	c.config.ContextLen = info.ContextLength
	c.config.EmbedLen = info.EmbeddingLength
	for _, k := range info.Capabilities {
		c.config.Capabilities = append(c.config.Capabilities, string(k))
	}
	return nil
}

// take makes a layer of one of the files.
func (c *creation) take(mediaType, p string) error {
	size, err := c.store.blobSize(c.files[p])
	if err != nil {
		return err
	}
	l := Layer{MediaType: mediaType, Digest: c.files[p], Size: size}
	if mediaType == mediaFile {
		l.Name = p
	}
	c.layers = append(c.layers, l)
	return nil
}

// clip keeps a hostile path from flooding a message.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
