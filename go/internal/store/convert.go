package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Converter does for a creation what needs the engine's libraries. Its calls take as long as the work and end it when ctx
// ends.
type Converter interface {
	// Quantize writes into req.OutputPath and calls progress as runnerpb.ConverterClient.Quantize streams; an error of
	// progress ends the work and is returned.
	Quantize(ctx context.Context, req *runnerpb.QuantizeRequest, progress func(*runnerpb.QuantizeProgress) error) error
	// ImportAdapter is that of runnerpb.ConverterClient.
	ImportAdapter(ctx context.Context, req *runnerpb.ImportAdapterRequest) (*runnerpb.ImportAdapterResponse, error)
}

// quantizeDigest stands in for a digest in progress that is about no blob: clients show a bar where there is one. It is
// what Ollama sends.
const quantizeDigest = "0000000000000000000"

// weightsIndex is the file that tells which weights are in which file.
const weightsIndex = "model.safetensors.index.json"

// workDir makes a directory for a conversion, on the file system of the blobs. What is in it when release is called, or
// when the process dies, is removed.
func (s *Store) workDir() (dir string, release func(), err error) {
	dir, err = os.MkdirTemp(s.tempFor(blobsDir), tempPrefix)
	if err != nil {
		return "", nil, s.failure(err, "making a directory for a conversion")
	}
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("a conversion's directory stays until the next start", "error", bareError(err))
		}
	}, nil
}

// quantize replaces the weights of the model in the making by quantized ones.
func (c *creation) quantize(ctx context.Context) error {
	if c.scheme == nil {
		return nil
	}
	what := "the model"
	if c.req.From != "" {
		what = fmt.Sprintf("model %q", c.req.From)
	}
	if !mlxmodel.IsModel(filePaths(c.layers)) {
		return errdefs.New(errdefs.ErrUnsupported, "%s cannot be quantized here: only models in MLX or Hugging Face form (safetensors) can; quantize a GGUF file with llama-quantize", what)
	}
	before, err := mlxmodel.Describe(c.store.filesOf(c.layers))
	if err != nil {
		return err
	}
	if before.Quantization != nil {
		return errdefs.New(errdefs.ErrInvalid, "%s is quantized already (%s); quantize the model that it was made from", what, before.Level())
	}
	if c.converter == nil {
		return errdefs.New(errdefs.ErrUnsupported, "this server has no runner that could quantize %s", what)
	}
	dir, release, err := c.store.workDir()
	if err != nil {
		return err
	}
	defer release()
	input, output, err := c.layOut(dir)
	if err != nil {
		return err
	}
	status := fmt.Sprintf("quantizing %s model to %s", before.Level(), c.scheme.name)
	c.status(status)
	q := quantizing{creation: c, status: status, output: output}
	err = c.converter.Quantize(ctx, &runnerpb.QuantizeRequest{
		ModelPath: input, ModelName: modelname.Display(c.name), OutputPath: output, Scheme: c.scheme.QuantizationScheme,
	}, q.saw)
	if err != nil {
		return err
	}
	c.layers = slices.DeleteFunc(c.layers, func(l Layer) bool {
		return l.MediaType == mediaFile && (isWeightsFile(l.Name) || l.Name == "config.json")
	})
	c.layers = append(c.layers, q.layers...)
	sortFiles(c.layers)
	return c.describeQuantized()
}

// isWeightsFile reports whether a file of a model is replaced when its weights are.
func isWeightsFile(name string) bool {
	return name == weightsIndex || strings.HasPrefix(name, "model") && strings.HasSuffix(name, ".safetensors")
}

// layOut makes the directories that a converter reads and writes.
func (c *creation) layOut(dir string) (input, output string, err error) {
	input, output = filepath.Join(dir, "model"), filepath.Join(dir, "output")
	c.store.linking.Lock()
	defer c.store.linking.Unlock()
	if err := c.store.link(c.layers, mediaFile, dir, input); err != nil {
		return "", "", c.store.failure(err, "linking a model's files")
	}
	if err := os.Mkdir(output, 0o700); err != nil {
		return "", "", c.store.failure(err, "making a directory for a conversion")
	}
	return input, output, nil
}

// sortFiles puts the files of a model in the order of their names, before everything else, as they are in every other
// manifest.
func sortFiles(layers []Layer) {
	slices.SortStableFunc(layers, func(a, b Layer) int {
		switch isA, isB := a.MediaType == mediaFile, b.MediaType == mediaFile; {
		case isA && isB:
			return strings.Compare(a.Name, b.Name)
		case isA:
			return -1
		case isB:
			return 1
		}
		return 0
	})
}

// describeQuantized brings the configuration in line with the new files, and checks that they make a model.
func (c *creation) describeQuantized() error {
	info, err := mlxmodel.Inspect(c.store.filesOf(c.layers))
	if err != nil {
		return errdefs.New(errdefs.ErrInternal, "the quantized model is not sound: %w", err)
	}
	c.config.FileType = info.Level()
	isVision := func(k string) bool { return k == string(model.CapabilityVision) }
	if !slices.Contains(info.Capabilities, model.CapabilityVision) && slices.ContainsFunc(c.config.Capabilities, isVision) {
		c.status("leaving out vision: only the language model is quantized")
		c.config.Capabilities = slices.DeleteFunc(c.config.Capabilities, isVision)
	}
	return nil
}

// quantizing follows a conversion and takes over what it has written.
type quantizing struct {
	*creation
	status, output string
	layers         []Layer
	checked        bool
}

func (q *quantizing) saw(p *runnerpb.QuantizeProgress) error {
	if !q.checked {
		q.checked = true
		if err := CheckSpace(int64(p.GetBytesTotal()), "for the quantized model", q.store.FreeSpace); err != nil {
			return err
		}
	}
	if p.GetFile() == "" {
		q.progress(api.ProgressResponse{
			Status: q.status, Digest: quantizeDigest, Total: int64(p.GetBytesTotal()), Completed: int64(p.GetBytesDone()),
		})
		return nil
	}
	if !validFileName(p.GetFile()) || filepath.Base(p.GetFile()) != p.GetFile() {
		return errdefs.New(errdefs.ErrInternal, "the converter wrote a file of an unexpected name (%q)", clip(p.GetFile()))
	}
	l, err := q.adopt(mediaFile, filepath.Join(q.output, p.GetFile()))
	if err != nil {
		return err
	}
	l.Name = p.GetFile()
	q.layers = append(q.layers, l)
	return nil
}

// adopt makes a layer of a file that a converter wrote into a directory of this creation; the file is moved.
func (c *creation) adopt(mediaType, path string) (Layer, error) {
	digest, size, created, err := c.store.adoptBlob(path)
	if err != nil {
		return Layer{}, c.store.failure(err, "storing a converted file")
	}
	c.hold(digest)
	c.claimed = append(c.claimed, digest)
	c.fresh[digest] = c.fresh[digest] || created
	return Layer{MediaType: mediaType, Digest: digest, Size: size}, nil
}

// adoptBlob moves a complete file among the blobs, durably, and claims it as PutBlob does. The file is on the file system
// of the blobs.
func (s *Store) adoptBlob(path string) (digest string, size int64, created bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", 0, false, err
	}
	if !info.Mode().IsRegular() {
		return "", 0, false, errdefs.New(errdefs.ErrInternal, "the converter wrote something that is no file")
	}
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, false, err
	}
	digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return "", 0, false, err
	}
	defer s.hold(digest)()
	if err := s.markUnused(digest); err != nil {
		return "", 0, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err = s.blobSize(digest)
	created = errors.Is(err, errdefs.ErrNotFound)
	if err := os.Rename(path, s.blobPath(digest)); err != nil {
		return "", 0, false, err
	}
	s.addClaim(digest)
	return digest, size, created, syncDir(filepath.Dir(s.blobPath(digest)))
}
